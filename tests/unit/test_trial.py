"""A trial: whatever happens in it comes back as facts, and a final leaves a model that transformers opens alone."""

import dataclasses
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pmray.data.encode import encode_splits, write_arrow
from pmray.spec import Candidate, Recipe
from pmray.tasks.text import TextClassification
from pmray.training import loop, trial
from pmray.training.model import locate
from pmray.training.trial import Work, carry_out, read_predictions, recipe_length, save_predictions
from tests.tiny import tiny_model, tiny_rows

TASK = TextClassification(labels=("negative", "positive"), positive="negative")


def table(count, seed):
    rows = [{"row_id": f"s{seed}:{number}", **row} for number, row in enumerate(tiny_rows(count, seed))]
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    root = tmp_path_factory.mktemp("trial")
    model, cache = tiny_model(root / "bert"), root / "cache"
    splits = {"train": table(96, 0), "validation": table(20, 1), "test": table(30, 2)}
    (cache / "data-d").mkdir(parents=True)
    for name, rows in splits.items():
        # The labels of test are sealed: no trial sees them.
        write_arrow(rows.drop_columns(["label"]) if name == "test" else rows, cache / "data-d" / f"{name}.arrow")
    encode_splits(splits, TASK, lambda: TASK.processor(str(model)), key="e", max_length=16, cache=cache)
    recipe = Recipe(lr=3e-3, epochs=2, batch_size=16, dropout=0.0, max_length=16, precision="fp32")
    return Work(
        key="k", pretrained=locate(Candidate(model=str(model))), recipe=recipe, seed=0, task=TASK.to_json(),
        metric="f1_macro", rungs=(64, 192), cache=str(cache), data="d", encoding="e",
    )  # fmt: skip


def test_a_trial_gives_its_curve_and_what_it_cost(work):
    rungs = []
    facts = carry_out(work, rungs.append)
    assert (facts.status, facts.error, facts.examples) == ("done", None, 192)
    assert facts.curve == tuple((rung.examples, rung.score) for rung in rungs)
    assert facts.score == max(score for _, score in facts.curve)
    assert {"host", "open_seconds", "train_seconds", "examples_per_second", "loss", "parameters"} <= set(facts.measured)
    json.dumps(dataclasses.asdict(facts), allow_nan=False)


def test_the_same_work_gives_the_same_facts(work):
    assert carry_out(work).curve == carry_out(work).curve


def test_a_corrupt_candidate_is_unavailable_with_the_cause(work, tmp_path):
    gone = dataclasses.replace(work.pretrained, folder=str(tmp_path / "gone"), candidate=Candidate(model="./gone"))
    facts = carry_out(dataclasses.replace(work, pretrained=gone))
    assert (facts.status, facts.score, facts.examples) == ("unavailable", None, 0)
    assert "no such folder" in facts.error


def test_an_exception_is_a_failure_with_its_last_lines(work, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a bug in the loop")

    monkeypatch.setattr(loop, "predict", broken)
    facts = carry_out(work)
    assert facts.status == "failed"
    assert facts.error.endswith("ZeroDivisionError: a bug in the loop")
    assert "test_trial.py" in facts.error
    assert len(facts.error) <= 2000


def test_a_failure_keeps_what_was_reached_before(work):
    def stop(rung):
        raise RuntimeError("killed")

    facts = carry_out(work, stop)
    assert (facts.status, facts.examples, len(facts.curve)) == ("failed", 64, 1)
    assert facts.score == facts.curve[0][1]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_too_little_memory_is_infeasible_not_a_failure(work, monkeypatch, error):
    def full(*_, **__):
        raise error("no room")

    monkeypatch.setattr(torch.Tensor, "backward", full)
    facts = carry_out(work)
    assert facts.status == "infeasible"
    assert "ran out of memory on cpu with a micro-batch of 1 rows" in facts.error


def test_running_out_of_memory_in_evaluation_is_infeasible_too(work, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(TextClassification, "predict", full)
    assert carry_out(work).status == "infeasible"


def test_a_diverged_trial_fails_and_says_what_to_do(work):
    facts = carry_out(
        dataclasses.replace(work, recipe=work.recipe.changed({"lr": 1.0, "clip": 1e30, "weight_decay": 1e30}))
    )
    assert facts.status == "failed"
    assert "use a lower lr or more warm-up" in facts.error


def test_ctrl_c_is_not_a_fact(work):
    def interrupt(rung):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(work, interrupt)


def test_a_final_leaves_predictions_and_a_model_that_transformers_opens_alone(work, tmp_path):
    final = dataclasses.replace(work, run=str(tmp_path))
    facts = carry_out(final)
    assert facts.status == "done"
    assert facts.measured["latency_ms"] > 0
    assert facts.measured["temperature"] > 0
    assert TextClassification.from_json(facts.measured["task"]) == TASK

    ids, scores = read_predictions(final.predictions / "test.parquet")
    assert ids == [f"s2:{number}" for number in range(30)]
    validation = read_predictions(final.predictions / "validation.parquet")[1]
    said = TASK.outcome(validation, TASK.targets(table(20, 1)))
    assert TASK.score("f1_macro", said, np.ones((1, 20)))[0] == pytest.approx(facts.score)

    model = AutoModelForSequenceClassification.from_pretrained(final.checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(final.checkpoint)
    assert tokenizer.model_max_length == 16
    texts = table(30, 2)["text"].to_pylist()
    with torch.no_grad():
        logits = model(**tokenizer(texts, truncation=True, padding=True, return_tensors="pt")).logits
    assert np.allclose(logits.softmax(-1).numpy(), scores, atol=1e-5)


def test_a_trial_of_the_sweep_writes_nothing(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.parent.rglob("*"))
    carry_out(work)
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_work_travels_as_a_small_pickle(work):
    assert pickle.loads(pickle.dumps(work)) == work
    assert len(pickle.dumps(work)) < 10_000


def test_predictions_survive_their_file(tmp_path):
    scores = np.array([[0.25, 0.75], [1.0, 0.0]], dtype=np.float32)
    save_predictions(tmp_path / "deep" / "test.parquet", ["a:1", "a:2"], scores)
    ids, found = read_predictions(tmp_path / "deep" / "test.parquet")
    assert ids == ["a:1", "a:2"]
    assert np.array_equal(found, scores)


def test_rows_are_cut_to_what_the_model_can_take(work):
    assert recipe_length(Recipe(max_length=512), work.pretrained) == 64
    assert recipe_length(Recipe(max_length=32), work.pretrained) == 32
    assert recipe_length(Recipe(max_length=512), dataclasses.replace(work.pretrained, max_positions=None)) == 512


def test_a_size_of_passes_that_was_found_is_remembered_for_the_next_trial(work, monkeypatch, tmp_path):
    import shutil

    cache = tmp_path / "cache"
    shutil.copytree(work.cache, cache)
    mine = dataclasses.replace(work, cache=str(cache))
    backward, failures = torch.Tensor.backward, []

    def full(loss, *args, **options):
        if not failures:
            failures.append(loss)
            raise torch.OutOfMemoryError("no room")
        return backward(loss, *args, **options)

    monkeypatch.setattr(torch.Tensor, "backward", full)
    first = carry_out(mine)
    second = carry_out(mine)
    assert first.status == second.status == "done"
    assert first.measured["micro_batch_tokens"] == second.measured["micro_batch_tokens"] < 8192
    other = carry_out(dataclasses.replace(mine, recipe=mine.recipe.changed({"max_length": 15})))
    assert other.measured["micro_batch_tokens"] == 8192


def test_an_interrupted_trial_goes_on_and_leaves_no_state_problem(work, tmp_path):
    class Killed(BaseException):
        pass

    def kill(rung):
        raise Killed

    states = tmp_path / "states"
    mine = dataclasses.replace(work, states=str(states))
    keeper = trial.open_state(str(states), mine.key, writes=True, seconds=0)
    with pytest.raises(Killed):
        carry_out(mine, kill, keeper)
    assert [file.name for file in states.iterdir()] == ["k.pt"]
    seen = []
    facts = carry_out(mine, seen.append)
    assert facts.curve == carry_out(work).curve
    assert "state_problem" not in facts.measured


def test_a_merged_adapter_is_a_plain_bundle(work, tmp_path):
    recipe = work.recipe.changed({"lora_rank": 2})
    mine = dataclasses.replace(work, recipe=recipe, run=str(tmp_path))
    assert carry_out(mine).status == "done"
    model = AutoModelForSequenceClassification.from_pretrained(mine.checkpoint)
    assert not any("lora" in name for name, _ in model.named_parameters())
    # What transformers opens predicts what the trial wrote down.
    ids, scores = read_predictions(mine.predictions / "validation.parquet")
    tokenizer = AutoTokenizer.from_pretrained(mine.checkpoint)
    texts = table(20, 1)["text"].to_pylist()
    with torch.no_grad():
        found = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.softmax(-1).numpy()
    assert np.allclose(found, scores, atol=1e-5) and len(ids) == 20
