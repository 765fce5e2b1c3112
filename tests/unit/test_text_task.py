"""Text classification: what it finds in data, how it encodes, and the promises every task keeps."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

from pmray.errors import DataError, SpecError
from pmray.spec import Data
from pmray.tasks.text import TextClassification
from tests.tiny import tiny_model

BINARY = TextClassification(labels=("negative", "positive"), positive="negative")
TOPICS = TextClassification(labels=("a", "b", "c"))
PAIRS = TextClassification(labels=("no", "yes"), pair=True, positive="yes")
MULTI = TextClassification(labels=("x", "y", "z"), multi_label=True, thresholds=(0.3, 0.3, 0.3))
KINDS = pytest.mark.parametrize("task", [BINARY, TOPICS, PAIRS, MULTI], ids=["binary", "topics", "pairs", "multi"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return BINARY.processor(str(tiny_model(tmp_path_factory.mktemp("models") / "bert")))


def rows(task, count=6):
    labels = [
        list(task.labels[: 1 + n % 3]) if task.multi_label else task.labels[n % len(task.labels)] for n in range(count)
    ]
    columns = {
        "row_id": [f"a:{n}" for n in range(count)],
        "text": [" ".join(["good phone"] * (1 + n % 4)) for n in range(count)],
    }
    if task.pair:
        columns["text_pair"] = [" ".join(["bad"] * (1 + n)) for n in range(count)]
    return pa.table({**columns, "label": labels})


def from_labels(values, **data):
    table = pa.table({"text": ["t"] * len(values), "label": values})
    return TextClassification.from_data(Data(train="x", **data), table)


@KINDS
def test_a_task_travels_as_a_small_pickle_and_as_json(task):
    assert pickle.loads(pickle.dumps(task)) == task
    assert len(pickle.dumps(task)) < 10_000
    assert TextClassification.from_json(json.loads(json.dumps(task.to_json()))) == task


@KINDS
def test_encoding_twice_gives_the_same_and_looks_at_no_labels(task, tokenizer):
    table = rows(task)
    encoded = task.encode(table, tokenizer, 16)
    assert encoded.equals(task.encode(table, tokenizer, 16))
    assert encoded.equals(task.encode(table.drop_columns(["label"]), tokenizer, 16))
    assert encoded["length"].type == pa.int32()
    assert max(encoded["length"].to_pylist()) <= 16
    assert encoded.schema.equals(task.encode(table.slice(0, 0), tokenizer, 16).schema)


@KINDS
def test_targets_said_and_outcomes_have_one_form(task):
    targets = task.targets(rows(task))
    perfect = targets.astype(float) if task.multi_label else np.eye(len(task.labels))[targets]
    said = task.said(perfect)
    assert said.shape == targets.shape
    assert np.array_equal(said, targets)
    outcomes = task.outcome(perfect, targets)
    assert np.array_equal(outcomes, task.paired_outcome(said, targets))
    assert task.right(outcomes).all()
    for name in task.metrics():
        assert task.score(name, outcomes, np.ones((2, len(outcomes)))) == pytest.approx([1, 1]), name


@KINDS
def test_losses_are_one_a_row_and_fall_towards_the_target(task):
    table = rows(task)
    targets = task.targets(table)
    bits = torch.from_numpy(targets)
    one_hot = bits if task.multi_label else torch.nn.functional.one_hot(bits, len(task.labels))
    right, wrong = 5.0 * (2 * one_hot - 1), -5.0 * (2 * one_hot - 1)
    assert task.loss(right, targets, table).shape == (6,)
    assert (task.loss(right, targets, table) < 0.1).all()
    assert (task.loss(wrong, targets, table) > 1).all()


@KINDS
def test_scores_are_float32_probabilities(task):
    scores = task.predict(torch.randn(4, len(task.labels), dtype=torch.bfloat16), rows(task).slice(0, 4))
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    if not task.multi_label:
        assert scores.sum(1) == pytest.approx(np.ones(4), abs=1e-5)


@KINDS
def test_an_answer_is_json_and_agrees_with_what_is_said(task):
    scores = np.linspace(0.2, 0.9, len(task.labels)).astype(np.float32)
    answer = json.loads(json.dumps(task.answer(scores, {})))
    assert list(answer["scores"]) == list(task.labels)
    assert task.scores_of(answer) == pytest.approx(scores)
    assert answer.get("labels") == ["y", "z"] if task.multi_label else answer["label"] == task.labels[-1]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["b", "a", "c", "a"], ("a", "b", "c")),
        (["10", "9", "1"], ("1", "9", "10")),
        (["0.5", "-1", "x", "3"], ("-1", "0.5", "3", "x")),
    ],
)
def test_labels_are_sorted_and_numbers_by_their_value(values, labels):
    assert from_labels(values).labels == labels


def test_the_label_nan_does_not_break_the_order():
    assert set(from_labels(["2", "nan", "1", "inf"]).labels) == {"1", "2", "inf", "nan"}
    assert from_labels(["2", "nan", "1", "10"]).labels == from_labels(["nan", "10", "2", "1"]).labels


def test_listed_labels_keep_their_order():
    assert from_labels(["a", "b"], labels=["b", "never", "a"]).labels == ("b", "never", "a")


def test_the_rarer_of_two_labels_is_the_positive_one():
    assert from_labels(["ham"] * 3 + ["spam"]).positive == "spam"
    assert from_labels(["ham", "spam", "spam"]).positive == "ham"
    assert from_labels(["no", "yes"]).positive == "yes"
    assert from_labels(["ham"] * 3 + ["spam"], positive_label="ham").positive == "ham"
    assert from_labels(["a", "b", "c"]).positive is None


@pytest.mark.parametrize("values", [["a", "b"], ["a", "b", "spam"]])
def test_a_positive_label_must_be_one_of_two(values):
    with pytest.raises(DataError, match=r"positive_label is 'spam'.*exactly two"):
        from_labels(values, positive_label="spam")


def test_lists_of_labels_make_a_multi_label_task():
    task = from_labels([["b", "a"], [], ["c"]])
    assert (task.multi_label, task.labels, task.positive) == (True, ("a", "b", "c"), None)
    assert task.targets(pa.table({"label": [["c", "a"], []]})).tolist() == [[1, 0, 1], [0, 0, 0]]
    assert task.default_score() == "f1_micro"


def test_a_second_text_makes_pairs():
    table = pa.table({"text": ["a", "b"], "text_pair": ["c", "d"], "label": ["x", "y"]})
    assert TextClassification.from_data(Data(train="x"), table).pair


def test_pairs_have_token_types(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "token_type_ids"])
    encoded = PAIRS.encode(pa.table({"text": ["good phone"], "text_pair": ["bad"]}), tokenizer, 16)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].as_py()) == [
        *("[CLS]", "good", "phone", "[SEP]"),
        *("bad", "[SEP]"),
    ]
    assert encoded["token_type_ids"][0].as_py() == [0, 0, 0, 0, 1, 1]


def test_a_batch_is_padded_to_its_own_longest_row():
    encoded = pa.table(
        {
            "input_ids": pa.array([[5, 6, 7], [8]], pa.list_(pa.int32())),
            "length": pa.array([3, 1], pa.int32()),
            "token_type_ids": pa.array([[0, 1, 1], [1]], pa.list_(pa.int8())),
        }
    )
    batch = {name: value.tolist() for name, value in PAIRS.collate(encoded, 9).items()}
    assert batch == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "token_type_ids": [[0, 1, 1], [1, 0, 0]],
    }
    assert PAIRS.collate(encoded.slice(1), 9)["input_ids"].tolist() == [[8]]


def test_a_token_that_pads_and_means_something_is_not_masked():
    encoded = pa.table(
        {"input_ids": pa.array([[3, 5], [3]], pa.list_(pa.int32())), "length": pa.array([2, 1], pa.int32())}
    )
    assert BINARY.collate(encoded, 3)["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_thresholds_are_tuned_to_each_label_and_rare_labels_share_one():
    random = np.random.default_rng(0)
    targets = (random.random((300, 3)) < [0.4, 0.4, 0.02]).astype(np.int8)
    # Each label's true rows lie over its own bound and its false ones under it.
    bounds = np.array([0.2, 0.7, 0.9])
    scores = np.where(targets, bounds + 0.03 + 0.05 * random.random(targets.shape), (bounds - 0.03) * 0.98)
    tuned = MULTI.tuned(scores, targets, "f1_macro")
    assert tuned.thresholds[:2] == pytest.approx((0.2, 0.7), abs=0.031)
    assert (tuned.said(scores)[:, :2] == targets[:, :2]).all()
    assert targets[:, 2].sum() < 20
    assert tuned.thresholds[2] < 0.8  # not the 0.9 that its few rows would ask for
    assert TextClassification.from_json(tuned.to_json()) == tuned
    assert len(set(MULTI.tuned(scores, targets, "f1_micro").thresholds)) == 1
    assert BINARY.tuned(scores, targets, "f1_macro") is BINARY


def test_the_one_threshold_of_older_bundles_is_still_read():
    settings = {key: value for key, value in MULTI.to_json().items() if key != "thresholds"}
    assert TextClassification.from_json({**settings, "threshold": 0.3}).thresholds == (0.3,) * len(MULTI.labels)
    settings = {key: value for key, value in BINARY.to_json().items() if key != "thresholds"}
    assert TextClassification.from_json({**settings, "threshold": 0.5}) == BINARY


def test_the_score_must_exist_and_fit_the_labels():
    assert {"f1_macro", "f1_positive", "f1_micro"} <= TextClassification.scores()
    with pytest.raises(SpecError, match="does not fit data with 3 labels"):
        TOPICS.check_score("f1_positive")
    with pytest.raises(SpecError, match="does not fit data with several labels"):
        MULTI.check_score("accuracy")
    BINARY.check_score("f1_positive")


def test_class_metrics_score_one_label_alone():
    outcomes = TOPICS.paired_outcome(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]))
    weights = np.ones((1, 4))
    found = {label: kinds["recall"](outcomes, weights)[0] for label, kinds in TOPICS.class_metrics().items()}
    assert found == {"a": 1.0, "b": 0.5, "c": 1.0}


def test_very_short_texts_are_noted_not_dropped():
    (finding,) = BINARY.check(pa.table({"row_id": ["a:1", "a:2"], "text": [" x ", "fine"]}), "train")
    assert (finding.severity, finding.count, finding.examples) == ("info", 1, ("a:1",))


def test_smaller_models_get_larger_learning_rates():
    rates = [BINARY.default_recipe("bert", int(size)).lr for size in (1e6, 2e7, 1.1e8, 3.3e8)]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 4


@pytest.mark.parametrize("size", [1e6, 2e7, 1.1e8, 3.3e8])
def test_the_default_recipe_lies_in_the_default_space(size):
    recipe, space = BINARY.default_recipe("bert", int(size)), BINARY.default_space("bert", int(size))
    low, high = space["lr"].log
    assert low < recipe.lr < high
    assert recipe.batch_size in space["batch_size"].choice
