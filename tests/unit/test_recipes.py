"""What a recipe can ask of the loop: rates, losses, sampling, frozen weights, adapters and precisions."""

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from pmray.data.batches import training_steps
from pmray.errors import TrialError
from pmray.spec import Candidate, Recipe
from pmray.spec_file import spec_from
from pmray.stages.preparation import prepare
from pmray.tasks.base import LossOptions
from pmray.tasks.text import TextClassification
from pmray.training import loop
from pmray.training.dropout import Chance, CheapDropout, make_dropout_cheap
from pmray.training.layers import depths, freeze
from pmray.training.model import locate, open_model, without_adapters
from pmray.training.optimizer import Optimizer
from pmray.training.prediction import predict
from tests.tiny import tiny_image_model, tiny_model, tiny_spec
from tests.unit.test_loop import RECIPE, TASK, Setting, farthest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama", "vit", "mobilenet_v1"])
def family(request, tmp_path_factory):
    make = tiny_image_model if request.param in ("vit", "mobilenet_v1") else tiny_model
    return make(tmp_path_factory.mktemp("models") / request.param, request.param)


def opened(folder, recipe):
    from pmray.tasks.images import ImageClassification

    one = locate(Candidate(model=str(folder)))
    labels = ("negative", "positive")
    task = ImageClassification(labels) if one.family in ("vit", "mobilenet_v1") else TASK
    return open_model(one, task, pad=0, recipe=recipe)


def test_rates_fall_from_the_head_to_the_embeddings(folder):
    model = opened(folder, Recipe())
    optimizer = Optimizer(model, Recipe(lr=1.0, layer_decay=0.5))
    rates = {id(one): group["lr"] for group in optimizer.adamw.param_groups for one in group["params"]}
    named = dict(model.named_parameters())
    assert rates[id(named["classifier.weight"])] == 1.0
    assert rates[id(named["bert.encoder.layer.1.output.dense.weight"])] == 0.5
    assert rates[id(named["bert.encoder.layer.0.output.dense.weight"])] == 0.25
    assert rates[id(named["bert.embeddings.word_embeddings.weight"])] == 0.125


def test_depths_rise_from_the_inputs_to_the_head_in_all_families(family):
    found = depths(opened(family, Recipe()))
    assert set(range(max(found.values()) + 1)) == set(found.values())
    assert next(iter(found.values())) == 0
    assert list(found.values())[-1] == max(found.values())


def test_frozen_layers_and_body_are_not_trained(family):
    some = {name: one.requires_grad for name, one in opened(family, Recipe(freeze_layers=1)).named_parameters()}
    assert any(some.values()) and not all(some.values())
    model = opened(family, Recipe(head_only=True))
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    assert trained and all(not name.startswith(f"{model.base_model_prefix}.") for name in trained)
    with pytest.raises(TrialError, match=r"`freeze_layers: 99`, but the model has \d+"):
        freeze(model, layers=99)


def test_adapters_are_trained_and_merged_into_a_plain_model(family):
    recipe = Recipe(lora_rank=2)
    if "mobilenet" in str(family):
        from pmray.errors import CandidateUnavailable

        with pytest.raises(CandidateUnavailable, match="has no linear layer below its head"):
            opened(family, recipe)
        return
    model = opened(family, recipe)
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    assert trained and all("lora_" in name or "modules_to_save" in name for name in trained)
    plain = opened(family, Recipe())
    assert set(without_adapters(model).state_dict()) == set(plain.state_dict())


def test_adapters_learn_and_leave_the_same_predictions_when_merged(folder):
    recipe = RECIPE.changed({"lora_rank": 4, "lr": 2e-2, "epochs": 12})
    setting = Setting(folder, recipe=recipe)
    fitted = setting.fit(recipe)
    assert fitted.loss < 0.6
    merged = without_adapters(setting.model)
    assert np.allclose(predict(merged, TASK, setting.validation), fitted.validation, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_bf16_weights_learn_and_come_back_in_fp32(folder, frozen):
    recipe = RECIPE.changed({"precision": "bf16", "epochs": 10, "batch_size": 8, "freeze_embeddings": frozen})
    setting = Setting(folder, recipe=recipe)
    before = setting.weights()
    fitted = setting.fit(recipe)
    after = setting.weights()
    assert fitted.loss < 0.65 and fitted.precision == "bf16"
    assert {one.dtype for one in setting.model.parameters()} == {torch.float32}
    embeddings = "bert.embeddings.word_embeddings.weight"
    # What is not trained is as exact as it was; what is, is finer than bf16 can say.
    assert torch.equal(before[embeddings], after[embeddings]) == frozen
    assert not torch.equal(after["classifier.weight"], after["classifier.weight"].bfloat16().float())


def test_fp16_needs_a_gpu(folder):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(TrialError, match="`precision: fp16` needs a GPU"):
        Setting(folder).fit(RECIPE.changed({"precision": "fp16"}))


def test_the_loss_is_that_of_torch_with_smoothing_and_weights():
    logits = torch.randn(6, 2)
    targets = np.array([0, 1, 1, 1, 0, 1])
    weights = loop.loss_options(Recipe(class_weights="balanced"), targets, 2, torch.device("cpu")).weights
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=targets)
    assert weights.tolist() == pytest.approx(expected.tolist())
    found = TASK.loss(logits, targets, None, LossOptions(0.2, weights))
    smooth = F.cross_entropy(logits, torch.from_numpy(targets), weights, label_smoothing=0.2, reduction="none")
    assert torch.equal(found, smooth)


def test_bits_are_weighed_by_how_many_rows_lack_them_and_smoothed_to_both_sides():
    task = TextClassification(("a", "b"), multi_label=True)
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=np.int8)
    options = loop.loss_options(Recipe(class_weights="balanced", label_smoothing=0.2), targets, 2, torch.device("cpu"))
    assert options.weights.tolist() == pytest.approx([1 / 3, 3])
    found = task.loss(torch.zeros(4, 2), targets, None, options)
    assert float(found[3]) == pytest.approx(np.log(2) * sum(0.9 + 0.1 * weight for weight in (1 / 3, 3)), rel=1e-5)


def test_balanced_sampling_draws_labels_equally_often():
    targets = np.array([0] * 90 + [1] * 10)
    weights = loop._row_weights(Recipe(sampling="balanced"), targets)
    steps = training_steps(np.full(100, 5, np.int32), 10, seed=0, epoch=0, weights=weights)
    drawn = targets[np.concatenate(steps)]
    assert len(drawn) == 100 and 35 <= drawn.sum() <= 65
    with pytest.raises(TrialError, match="needs rows with one label each"):
        loop._row_weights(Recipe(sampling="balanced"), np.zeros((3, 2), np.int8))


def test_cheap_dropout_keeps_the_mean_and_repeats_itself():
    chance = Chance()
    layer = CheapDropout(0.1, chance)
    values = torch.ones(400, 500)

    def dropped(*place):
        chance.begin(*place)
        return layer(values)

    first = dropped(0, 1)
    assert torch.equal(first, dropped(0, 1)) and not torch.equal(first, dropped(0, 2))
    share = float((first == 0).float().mean())
    assert share == pytest.approx(26 / 256, abs=0.003)
    assert float(first.mean()) == pytest.approx(1, abs=0.005)
    assert torch.equal(layer.eval()(values), values)


def test_dropout_is_put_back(folder):
    model = opened(folder, Recipe(dropout=0.1))
    before = {name: type(one) for name, one in model.named_modules()}
    put_back = make_dropout_cheap(model, Chance())
    assert any(isinstance(one, CheapDropout) for one in model.modules())
    put_back()
    assert {name: type(one) for name, one in model.named_modules()} == before


def test_contradicting_recipes_are_refused():
    with pytest.raises(ValueError, match="lora_rank leaves the body as it is; take out head_only and freeze_layers"):
        Recipe(lora_rank=4, head_only=True)


def test_a_fit_leaves_the_same_weights_whatever_the_size_of_passes(folder):
    one, other = (Setting(folder) for _ in range(2))
    one.fit()
    other.fit(micro_batch_tokens=60)
    assert farthest(one.weights(), other.weights()) < 1e-3


def test_where_few_weights_are_trained_the_default_rate_is_higher(tmp_path):
    spec = tiny_spec(tmp_path)
    model = spec["candidates"][0]["model"]
    recipes = {
        "whole": {},
        "head": {"head_only": True},
        "adapters": {"lora_rank": 2},
        "mine": {"head_only": True, "lr": 1e-3},
    }
    spec["candidates"] = [{"model": model, "name": name, "recipe": recipe} for name, recipe in recipes.items()]
    arms = prepare(spec_from(spec), Console(quiet=True)).arms
    rates = {name: arms[name].default.lr for name in recipes}
    assert rates["head"] == pytest.approx(100 * rates["whole"])
    assert rates["adapters"] == pytest.approx(10 * rates["whole"])
    assert rates["mine"] == 1e-3
    low, high = arms["head"].space["lr"].log
    assert low < rates["head"] < high
