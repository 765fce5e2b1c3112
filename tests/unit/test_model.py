"""Pre-trained models: found or refused with the cause, opened in every family, and blind to padding."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from pmray.data.encode import encode_table
from pmray.errors import CandidateUnavailable
from pmray.spec import Candidate, Decide, Recipe
from pmray.tasks.text import TextClassification
from pmray.training.model import check_processor, check_rules, locate, on_this_node, open_model
from tests.tiny import tiny_model, tiny_rows

FAMILIES = ("bert", "roberta", "gpt2", "llama")
TASK = TextClassification(labels=("a", "b", "c"))
ROWS = pa.table({"text": [row["text"] for row in tiny_rows(6)]})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: tiny_model(root / family, family) for family in FAMILIES}


@pytest.fixture
def bert(folders, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(folders["bert"], tmp_path / "bert")


def found(folder, **options):
    return locate(Candidate(model=str(folder), **options))


def opened(pretrained, **options):
    torch.manual_seed(0)
    processor = TASK.processor(pretrained.folder)
    model = open_model(pretrained, TASK, pad=processor.pad_token_id, **options).eval()
    return model, encode_table(TASK, ROWS, processor, 16)


def batch_of(encoded, positions):
    return TASK.collate(encoded.rows(np.array(positions)), encoded.pad)


def reason(model, **options):
    with pytest.raises(CandidateUnavailable) as caught:
        locate(Candidate(model=str(model), name="x", **options))
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_of_a_model_is_what_is_opened(folders, family):
    pretrained = found(folders[family])
    model, _ = opened(pretrained)
    body = sum(parameter.numel() for name, parameter in model.base_model.named_parameters())
    assert (pretrained.family, pretrained.layers, pretrained.max_positions) == (family, 2, 64 + (family == "roberta"))
    # RoBERTa's classifier brings a pooler of its own, in its head.
    assert pretrained.parameters == body
    assert 0 < pretrained.layer_parameters < body


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_change_what_a_model_says(folders, family):
    model, encoded = opened(found(folders[family]))
    assert len(set(encoded.lengths.tolist())) > 2
    together = model(**batch_of(encoded, range(6))).logits
    assert together.shape == (6, 3)
    for row in range(6):
        alone = model(**batch_of(encoded, [row])).logits[0]
        assert torch.allclose(alone, together[row], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_one_vector_a_row_whatever_the_padding(folders, family):
    model, encoded = opened(found(folders[family]))
    with torch.no_grad():
        together = TASK.features(model, batch_of(encoded, range(6)), encoded.table)
        assert together.shape == (6, 3, 32)
        assert torch.allclose(TASK.features(model, batch_of(encoded, [2]), encoded.table)[0], together[2], atol=1e-4)
    assert len({tuple(row) for row in together[:, 0].tolist()}) == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_layers_are_a_smaller_model_of_the_same_weights(folders, family):
    whole, cut = found(folders[family]), found(folders[family], layers=1)
    assert cut.layers == 1
    assert cut.layer_parameters == whole.layer_parameters // 2
    assert whole.parameters - cut.parameters == cut.layer_parameters
    small, large = (opened(one)[0].base_model.state_dict() for one in (cut, whole))
    assert set(small) < set(large)
    body = {name: value for name, value in small.items() if "pooler" not in name}
    assert all(torch.equal(value, large[name]) for name, value in body.items())


def test_more_layers_than_there_are_cannot_be_kept(folders):
    assert "`layers: 9`, but the model has 2" in reason(folders["bert"], layers=9)


def test_an_encoder_without_a_pooler_gets_one(bert):
    weights = {name: value for name, value in load_file(bert / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    model, encoded = opened(found(bert))
    assert torch.isfinite(model(**batch_of(encoded, [0, 1])).logits).all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_without_a_padding_token_pads_with_its_end(folders, family):
    pretrained = found(folders[family])
    check_processor(TASK, pretrained)
    processor = TASK.processor(pretrained.folder)
    assert (processor.pad_token, processor.padding_side) == (processor.eos_token, "right")
    assert opened(pretrained)[0].config.pad_token_id == processor.eos_token_id


def test_the_head_follows_the_seed_and_the_body_the_file(folders):
    pretrained = found(folders["bert"])
    first, again = opened(pretrained)[0].state_dict(), opened(pretrained)[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    saved = load_file(f"{pretrained.folder}/model.safetensors")
    assert all(torch.equal(first[f"bert.{name}"], value) for name, value in saved.items())


def test_labels_are_written_into_the_configuration(folders):
    config = opened(found(folders["bert"]))[0].config
    assert (config.id2label, config.label2id) == ({0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2})


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_and_frozen_embeddings_follow_the_recipe(folders, family):
    model, _ = opened(found(folders[family]), recipe=Recipe(dropout=0.35, freeze_embeddings=True))
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates <= {0.35}
    assert family == "llama" or rates
    assert not model.get_input_embeddings().weight.requires_grad
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_the_same_files_are_the_same_revision_anywhere(folders, bert):
    before = found(bert).revision
    assert before == found(folders["bert"]).revision
    with (bert / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x42")
    assert found(bert).revision != before


def test_a_model_inside_an_installed_package_is_found(folders, tmp_path, monkeypatch):
    shutil.copytree(folders["bert"], tmp_path / "weights_in_a_package" / "model")
    (tmp_path / "weights_in_a_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    pretrained = locate(Candidate(model="package:weights_in_a_package/model"))
    assert pretrained.revision == found(folders["bert"]).revision
    assert "has no folder 'other'" in reason("package:weights_in_a_package/other")


def test_a_folder_is_used_where_it_is(folders):
    pretrained = found(folders["bert"])
    assert on_this_node(pretrained) is pretrained


@pytest.mark.parametrize("model", ["package:no_such_package/model", "package:no_such.package/model", "package:"])
def test_a_package_that_is_not_installed_is_named(model):
    assert "no installed package" in reason(model)


@pytest.mark.parametrize("model", ["./no-such-folder", "/no/such/folder", "$PMRAY_NO_SUCH/model", "a/b/c"])
def test_a_missing_folder_is_named(model):
    assert "no such folder" in reason(model)


def test_a_hub_model_without_network_says_so():
    assert "the Hub cannot be reached" in reason("no-such-org/no-such-model")


def test_what_is_not_a_hub_id_is_not_asked_for():
    assert "not a Hub id" in reason("has spaces/in it")


def test_damaged_weights_are_found_before_anything_runs(bert):
    weights = bert / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors is damaged" in reason(bert)


def test_pickles_are_never_opened(bert):
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    assert "only pytorch_model.bin, a pickle that could run code" in reason(bert)


def test_missing_weights_are_named(bert):
    (bert / "model.safetensors").unlink()
    assert "no safetensors weights (none in" in reason(bert)


def test_a_missing_configuration_is_named(bert):
    (bert / "config.json").unlink()
    assert "no config.json" in reason(bert)


@pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '{"model_type": "no-such-architecture"}'])
def test_an_unusable_configuration_is_named(bert, text):
    (bert / "config.json").write_text(text)
    assert "config.json is not usable" in reason(bert)


def test_a_model_that_needs_its_own_code_is_refused(bert):
    (bert / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "evil.Config"}}))
    assert "needs code of its own" in reason(bert)


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {"a": "gone.safetensors"}}'])
def test_a_damaged_index_of_weights_is_named(bert, index):
    (bert / "model.safetensors.index.json").write_text(index)
    assert "safetensors" in reason(bert)


def test_sharded_weights_are_counted_once(bert):
    before = found(bert).parameters
    weights = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    names = sorted(weights)
    place = {name: f"{number % 2}.safetensors" for number, name in enumerate(names)}
    for file in set(place.values()):
        save_file({name: weights[name] for name in names if place[name] == file}, bert / file, {"format": "pt"})
    (bert / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    assert found(bert).parameters == before
    opened(found(bert))


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_an_unusable_tokenizer_is_found_before_the_sweep(bert, damage):
    file = bert / "tokenizer.json"
    if damage == "missing":
        file.unlink()
        (bert / "tokenizer_config.json").unlink()
    else:
        file.write_text(file.read_text()[:100])
    with pytest.raises(CandidateUnavailable, match="no usable tokenizer"):
        check_processor(TASK, found(bert))


CARD = "---\nlicense: apache-2.0\nlanguage:\n- en\n- de\n---\n# A model\n"


@pytest.mark.parametrize(
    ("card", "rules", "said"),
    [
        (CARD, {"licences": ["mit", "apache-2.0"], "languages": ["de"]}, None),
        (CARD, {"licences": ["mit"]}, "its card says licence 'apache-2.0', and decide.licences allows mit"),
        (CARD, {"languages": ["fr", "es"]}, "its card names en, de, and decide.languages asks for fr, es"),
        (CARD.replace("\n- en\n- de", " en"), {"languages": ["en"]}, None),
        (None, {}, None),
        (None, {"licences": ["mit"]}, "no card tells its licence"),
        ("---\nlicense: [\n---\n", {"languages": ["en"]}, "no card tells its languages"),
        ("# no front matter", {"licences": ["mit"]}, "no card tells its licence"),
        (CARD, {"max_parameters": 10}, "over decide.max_parameters"),
    ],
)
def test_a_model_is_held_against_the_rules_of_the_spec(tmp_path, card, rules, said):
    folder = tiny_model(tmp_path / "bert")
    if card is not None:
        (folder / "README.md").write_text(card)
    one = locate(Candidate(model=str(folder)))
    if said is None:
        check_rules(one, Decide(**rules))
    else:
        with pytest.raises(CandidateUnavailable, match=re.escape(said)):
            check_rules(one, Decide(**rules))
