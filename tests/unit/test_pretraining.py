"""Language modelling on packed texts: what is packed and masked, what is scored, and that it is learned."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import pmray
from pmray.data.encode import encode_table
from pmray.spec import Candidate, Recipe
from pmray.tasks.pretraining import SCORE, Pretraining
from pmray.training import loop
from pmray.training.model import check_processor, locate, open_model
from pmray.training.prediction import predict
from tests.tiny import tiny_model, tiny_rows

TASK = Pretraining()


def texts(count, seed=0):
    return pa.table({"text": [row["text"] for row in tiny_rows(count, seed)]})


@pytest.fixture(scope="module", params=["bert", "roberta", "gpt2", "llama"])
def family(request, tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "bert")


def test_packing_keeps_every_token_in_order(family):
    tokenizer = TASK.processor(str(family))
    table = texts(40)
    encoded = encode_table(TASK, table, tokenizer, 16)
    begins = [] if tokenizer.mask_token_id is None else [tokenizer.cls_token_id]
    end = tokenizer.eos_token_id if tokenizer.mask_token_id is None else tokenizer.sep_token_id
    rows = encoded.table["input_ids"].to_pylist()
    assert [len(row) for row in rows[:-1]] == [16] * (len(rows) - 1)
    assert all(row[: len(begins)] == begins for row in rows)
    whole = [
        token
        for text in table["text"].to_pylist()
        for token in [*tokenizer.encode(text, add_special_tokens=False), end]
    ]
    assert [token for row in rows for token in row[len(begins) :]] == whole
    assert not len(encode_table(TASK, table.slice(0, 0), tokenizer, 16))


def test_masks_are_those_of_the_bert_paper(bert):
    tokenizer = TASK.processor(str(bert))
    encoded = encode_table(TASK, texts(3_000), tokenizer, 64)
    batch = TASK.collate(encoded.table, encoded.pad, np.random.default_rng(0))
    chosen, targets, inputs = batch["predicted"], batch["targets"], batch["input_ids"]
    assert not set(targets[chosen].tolist()) & set(tokenizer.all_special_ids)
    free = np.concatenate(encoded.table["free"].to_numpy()).sum()
    assert float(chosen.sum()) / free == pytest.approx(0.15, abs=0.01)
    assert float((inputs[chosen] == tokenizer.mask_token_id).float().mean()) == pytest.approx(0.8, abs=0.02)
    # A tenth are left; of the tenth that are replaced by any token, few by themselves.
    assert float((inputs[chosen] == targets[chosen]).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(inputs[~chosen], targets[~chosen])


def test_held_out_rows_have_the_same_masks_in_every_batch(bert):
    encoded = encode_table(TASK, texts(40), TASK.processor(str(bert)), 16)
    whole = TASK.collate(encoded.table, encoded.pad)
    last = TASK.collate(encoded.table.slice(len(encoded) - 1), encoded.pad)
    width = last["predicted"].shape[1]
    assert torch.equal(whole["predicted"][-1, :width], last["predicted"][0])
    drawn = [TASK.collate(encoded.table, encoded.pad, np.random.default_rng(seed))["predicted"] for seed in (0, 1)]
    assert not torch.equal(*drawn)


def test_likelihoods_are_those_of_transformers(family):
    one = locate(Candidate(model=str(family)))
    encoded = encode_table(TASK, texts(40), TASK.processor(one.folder), 16)
    torch.manual_seed(0)
    model = open_model(one, TASK, pad=encoded.pad).eval()
    told = predict(model, TASK, encoded)
    batch = TASK.collate(encoded.table, encoded.pad)
    masked = not encoded.table["mask_id"].null_count
    kind = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    plain = kind.from_pretrained(one.folder, attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    # What does not count is -100 to transformers, which moves the tokens of decoders itself.
    counts = batch["predicted"] if masked else batch["attention_mask"].bool()
    labels = torch.where(counts, batch["targets"] if masked else batch["input_ids"], -100)
    with torch.no_grad():
        loss = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    assert told[:, 1].sum() == batch["predicted"].sum()
    assert float(TASK.score(SCORE, told, np.ones((1, len(told))))[0]) == pytest.approx(-float(loss), abs=1e-5)


def test_perplexity_falls_to_what_there_is_to_know(family):
    one = locate(Candidate(model=str(family)))
    tokenizer = TASK.processor(one.folder)
    train, held = (encode_table(TASK, texts(count, seed), tokenizer, 32) for count, seed in ((300, 0), (60, 1)))
    torch.manual_seed(0)
    model = open_model(one, TASK, pad=train.pad)
    before = TASK.score(SCORE, predict(model, TASK, held), np.ones((1, len(held))))[0]
    recipe = Recipe(lr=3e-3, epochs=8, batch_size=16, dropout=0.0, precision="fp32", augment=True)
    fitted = loop.fit(
        model, TASK, recipe, train, TASK.targets(train.table), held, TASK.targets(held.table),
        metric=SCORE, rungs=loop.rungs_of(recipe, len(train), 0, 1), seed=0,
    )  # fmt: skip
    assert np.exp(-before) > 20, "as good as a guess among 25 tokens"
    assert np.exp(-fitted.score) < 0.75 * np.exp(-before)


def test_an_encoder_without_a_mask_token_cannot_be_had(tmp_path):
    folder = tiny_model(tmp_path / "bert")
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"mask_token": "[MASK]"', '"mask_token": null'))
    with pytest.raises(pmray.CandidateUnavailable, match="bert model needs a mask token, and it has none"):
        check_processor(TASK, locate(Candidate(model=str(folder))))
