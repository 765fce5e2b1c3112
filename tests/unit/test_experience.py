"""What earlier runs found is kept in a file, orders candidates, and gives first recipes."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pmray.errors import LedgerError
from pmray.selection.experience import (
    Experience,
    Signature,
    add_experience,
    expected,
    first_recipes,
    read_experience,
    signature_of,
    similarity,
    tell,
)
from pmray.selection.search import Arm
from pmray.spec import Choice, Log, Recipe, Search, Spec

NOW = Signature("text-classification", "f1_macro", 1000, 2, 1.0, 20.0)


def seen(data, weights, score, *, key=None, signature=NOW, done=True, **recipe):
    return Experience(
        key or f"{data} {weights} {score} {recipe}", data, signature, weights, weights,
        Recipe(**recipe).model_dump(), score, 100, done,
    )  # fmt: skip


def test_a_signature_tells_size_labels_balance_and_length():
    texts = pa.table({"text": ["a b c"] * 90 + ["a"] * 10, "label": ["x"] * 90 + ["y"] * 10})
    found = signature_of(texts, 2, "text-classification", "f1_macro")
    assert (found.rows, found.labels, found.length) == (100, 2, 2.8)
    assert found.balance == pytest.approx(0.469)
    tags = pa.table({"words": [["a", "b"], ["c"]], "label": [["O", "B"], ["O"]]})
    assert signature_of(tags, 2, "token-classification", "f1").length == 1.5
    bits = pa.table({"image": [b""] * 2, "label": [["x", "y"], ["x"]]})
    assert signature_of(bits, 2, "image-classification", "f1").length == 0


def test_what_is_alike_counts_more_and_another_task_not_at_all():
    near, far = replace(NOW, rows=2000), replace(NOW, rows=100_000, labels=77)
    assert 1 == similarity(NOW, NOW) > similarity(NOW, near) > similarity(NOW, far) > 0
    assert similarity(NOW, replace(NOW, metric="accuracy")) == similarity(NOW, replace(NOW, task="other")) == 0


def test_models_are_told_apart_where_each_was_tried_on_some_data_sets_only():
    random = np.random.default_rng(0)
    talent = np.linspace(-0.2, 0.2, 10)
    past = [
        seen(f"d{data}", f"m{model}", hard + talent[model] + 0.02 * random.normal())
        for data, hard in enumerate(random.uniform(0.4, 0.8, 12))
        # Better models were tried on harder data sets: their mean score misleads.
        for model in random.choice(10, 4, replace=False)
    ]
    found = expected(past, NOW, [f"m{model}" for model in range(10)])
    ranks = np.argsort(np.argsort([found[f"m{model}"] for model in range(10)]))
    assert np.corrcoef(ranks, np.arange(10))[0, 1] > 0.9


def test_a_similar_data_set_outweighs_another():
    other = replace(NOW, rows=1_000_000, labels=1000)
    past = [seen("near", "a", 0.9), seen("near", "b", 0.7), seen("far", "a", 0.5, signature=other)]
    past += [seen("far", "b", 0.9, signature=other)]
    found = expected(past, NOW, ["a", "b", "unknown"])
    assert found["a"] > found["b"] and "unknown" not in found


def test_who_knows_less_than_two_of_the_candidates_says_nothing():
    assert expected([], NOW, ["a", "b"]) == {}
    assert expected([seen("d", "a", 0.9), seen("d", "z", 0.8)], NOW, ["a", "b"]) == {}


def test_the_best_recipe_of_the_most_similar_data_set_is_a_first_one():
    space = {"lr": Log(log=(1e-5, 1e-3)), "batch_size": Choice(choice=[16, 32])}
    arm = Arm("mine", Recipe(epochs=7), space)
    past = [
        seen("near", "a", 0.8, lr=2e-4, batch_size=16, epochs=2),
        seen("near", "a", 0.7, lr=3e-4, batch_size=16),
        seen("near", "a", 0.9, lr=4e-4, batch_size=16, done=False),
        seen("near", "a", 0.95, lr=0.5, batch_size=16),
        seen("far", "a", 0.99, lr=5e-4, signature=replace(NOW, rows=10**6)),
    ]
    assert first_recipes(past, NOW, {"a": arm}) == {"a": Recipe(lr=2e-4, batch_size=16, epochs=7)}
    assert first_recipes([seen("d", "a", 0.9)], NOW, {"a": Arm("mine", Recipe(), space)}) == {}, "that is the default"
    assert first_recipes(past, NOW, {"b": arm}) == {}


def test_many_runs_may_write_and_each_outcome_counts_once(tmp_path):
    path = tmp_path / "deep" / "experience.jsonl"
    assert read_experience(path) == []
    with ThreadPoolExecutor(8) as pool:
        added = list(
            pool.map(lambda run: add_experience(path, [seen(f"d{run}", "a", 0.5), seen("same", "a", 0.7)]), range(20))
        )
    assert sum(added) == 21
    found = read_experience(path)
    assert len(found) == 21
    assert found[0].signature == NOW
    assert "21 trials on 21 data sets" in tell(found, NOW)
    assert "none yet" in tell(found, replace(NOW, task="other"))


def test_half_a_line_is_dropped_and_a_damaged_one_is_told(tmp_path):
    path = tmp_path / "e.jsonl"
    add_experience(path, [seen("a", "m", 0.5)])
    with path.open("a") as file:
        file.write('{"key": "half')
    assert len(read_experience(path)) == 1
    assert add_experience(path, [seen("b", "m", 0.5)]) == 1
    assert [one.data for one in read_experience(path)] == ["a", "b"]
    path.write_text(json.dumps({"key": "?"}) + "\n" + path.read_text())
    with pytest.raises(LedgerError, match=r"e.jsonl:1 is not a line of experience"):
        read_experience(path)


@pytest.mark.parametrize(
    ("said", "where"), [("off", None), ("on", "runs/experience.jsonl"), ("x/e.jsonl", "x/e.jsonl")]
)
def test_the_spec_switches_it_on_or_names_a_file(said, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = Search(experience=said)
    spec = Spec(task="text-classification", data={"train": "t.csv"}, candidates=["a/b"], search=asked)
    assert spec.experience == (None if where is None else tmp_path / where)
    with pytest.raises(ValueError, match="must be on, off, or the path of a file"):
        Search(experience=3)
