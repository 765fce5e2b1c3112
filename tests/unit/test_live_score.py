"""The live score, the estimate without labels, and the comparison of two versions."""

import numpy as np
import pytest

from pmray.live.estimate import estimate
from pmray.live.records import pack
from pmray.live.score import anytime, label_problem, lag, pairing, profile, scored, step_of, windows
from pmray.live.store import Answered
from pmray.scoring.intervals import bootstrap
from pmray.tasks.text import TextClassification
from pmray.tasks.tokens import TokenClassification
from tests.live import LABELS, TASK, labels_of, scores_of


def answered(scores, labels=None, *, version="1", step=1.0, wait=60.0, prediction=None):
    labels = labels or [None] * len(scores)
    return [
        Answered(
            id=f"row{n}",
            version=version,
            time=step * n,
            served=True,
            prediction=prediction or LABELS[int(row.argmax())],
            scores=pack(row),
            length=10,
            words=1,
            latency_ms=None,
            label=label,
            received=None if label is None else step * n + wait,
        )
        for n, (row, label) in enumerate(zip(scores, labels, strict=True))
    ]


def test_the_live_score_is_the_metric_on_joined_rows():
    scores = scores_of(400)
    labels = labels_of(scores)
    found = scored(TASK, answered(scores, labels))
    numbers = np.array([LABELS.index(label) for label in labels])
    np.testing.assert_array_equal(found.outcomes, np.stack([numbers, scores.argmax(1)], axis=1))
    # The same rows by hand.
    by_class = []
    for k in (0, 1):
        hits = ((numbers == k) & (scores.argmax(1) == k)).sum()
        by_class.append(2 * hits / ((numbers == k).sum() + (scores.argmax(1) == k).sum()))
    assert bootstrap(TASK.metric("f1_macro"), found.outcomes).value == pytest.approx(np.mean(by_class))


def test_rows_without_label_and_labels_that_the_model_does_not_know_are_left_out():
    scores = scores_of(4)
    found = scored(TASK, answered(scores, ["positive", None, "fine", ["positive"]]))
    assert ([row.id for row in found.rows], found.unusable) == (["row0"], 2)
    assert scored(TASK, answered(scores)) is None


def test_windows_are_by_the_time_of_the_prediction():
    scores = scores_of(240)
    labels = labels_of(scores)
    rows = answered(scores, [*labels[:130], *[None] * 110], step=60.0, wait=1e6)
    found = windows(TASK, "f1_macro", rows, since=0.0, until=240 * 60.0)
    step = step_of(240 * 60.0)
    assert step == 900
    assert [one.start for one in found] == [900.0 * n for n in range(16)]
    assert {one.predictions for one in found} == {15}
    assert [one.labelled for one in found] == [15] * 8 + [10] + [0] * 7
    assert all(one.score is None for one in found)  # 15 are too few
    wide = windows(TASK, "f1_macro", rows, since=0.0, until=86_400.0)
    assert [(one.predictions, one.labelled) for one in wide] == [(60, 60), (60, 60), (60, 10), (60, 0)]
    assert [one.score is not None for one in wide] == [True, True, False, False]
    assert [one.estimate is not None for one in wide] == [True] * 4
    assert windows(TASK, "f1_macro", [], since=0, until=1) == []


def test_lag_is_from_prediction_to_label():
    found = lag(answered(scores_of(10), ["positive"] * 9 + [None], wait=30.0))
    assert (found.median_s, found.p90_s) == (30.0, 30.0)
    assert lag(answered(scores_of(3))) is None


def test_the_estimate_is_near_the_truth_of_a_calibrated_model_and_its_interval_covers():
    covered = []
    for seed in range(60):
        scores = scores_of(300, seed)
        truth = scored(TASK, answered(scores, labels_of(scores, 1000 + seed)))
        value = float(TASK.metric("f1_macro")(truth.outcomes, np.ones((1, 300)))[0])
        found = estimate(TASK, "f1_macro", scores)
        covered.append(found.score.low <= value <= found.score.high)
        assert found.score.value == pytest.approx(value, abs=0.1)
    assert np.mean(covered) >= 0.9


def test_the_estimate_falls_when_inputs_become_harder():
    easy, hard = (estimate(TASK, "accuracy", scores_of(2_000, sharpness=one)).score for one in (3.0, 0.7))
    assert hard.high < easy.low
    # The expectation of accuracy is the mean of the larger probability.
    assert hard.value == pytest.approx(scores_of(2_000, sharpness=0.7).max(axis=1).mean(), abs=1e-6)


@pytest.mark.parametrize("metric", ["f1_micro", "f1_macro", "f1_weighted", "precision_macro", "recall_micro"])
def test_the_estimate_of_several_labels_is_the_metric_of_expected_counts(metric):
    rng = np.random.default_rng(1)
    task = TextClassification(labels=("a", "b", "c"), multi_label=True)
    scores = rng.beta(0.6, 1.0, (4_000, 3)).astype(np.float32)
    bits = (rng.random(scores.shape) < scores).astype(np.int8)
    value = float(task.metric(metric)(task.outcome(scores, bits), np.ones((1, len(bits))))[0])
    found = estimate(task, metric, scores)
    assert found.score.value == pytest.approx(value, abs=0.02)
    assert found.score.low < value < found.score.high
    assert estimate(task, "subset_accuracy", scores) is None


def test_what_cannot_be_estimated_is_not():
    tags = TokenClassification(labels=("O", "B-X", "I-X"))
    rows = answered([np.eye(3, dtype=np.float32)] * 60, prediction=["O", "B-X", "I-X"])
    found = windows(tags, tags.default_score(), rows, since=0, until=60)
    assert found[0].estimate is None
    assert estimate(TASK, "f1_macro", scores_of(20)) is None  # too few
    assert estimate(TASK, "f1_macro", scores_of(100) * 30) is None  # no probabilities


def test_tags_are_scored_by_spans_and_profiled_by_marked_words():
    task = TokenClassification(labels=("O", "B-X", "I-X"))
    right = np.eye(3, dtype=np.float32)[[0, 1, 2]]
    rows = answered([right] * 30, [["O", "B-X", "I-X"]] * 29 + [["O", "O"]], prediction=["O", "B-X", "I-X"])
    found = scored(task, rows)
    assert found.unusable == 1  # two tags for three words
    assert anytime(task, task.default_score(), rows) is None  # fewer than 50
    assert task.metric(task.default_score())(found.outcomes, np.ones((1, 29)))[0] == 1
    assert profile(task, rows).predictions[0] == "2 marked"


@pytest.mark.parametrize(
    ("task", "label", "problem"),
    [
        (TASK, "positive", None),
        (TASK, "fine", "'fine' is not one of: negative, positive"),
        (TASK, ["positive"], "one label, as text"),
        (TASK, None, "is not one of"),
        (TASK, 3, "is not one of"),
        (TextClassification(labels=("a", "b"), multi_label=True), [], None),
        (TextClassification(labels=("a", "b"), multi_label=True), "a", "a list of labels"),
        (TextClassification(labels=("a", "b"), multi_label=True), ["a", {}], "is not one of"),
        (TokenClassification(labels=("O", "B-X")), ["O", "B-X"], None),
        (TokenClassification(labels=("O", "B-X")), ["O"], "1 tags, but the row has 2 words"),
        (TokenClassification(labels=("O", "B-X")), "O", "a list of labels"),
    ],
)
def test_a_label_that_cannot_be_is_told(task, label, problem):
    parts = 2 if isinstance(task, TokenClassification) else None
    found = label_problem(task, label, parts)
    assert found is None if problem is None else problem in found


def test_versions_are_compared_on_the_rows_that_both_answered():
    scores = scores_of(600)
    labels = labels_of(scores)
    truth = np.array([LABELS.index(label) for label in labels])
    better = np.eye(2, dtype=np.float32)[np.where(np.arange(600) % 10 < 1, 1 - truth, truth)]
    pairs = list(zip(answered(scores, labels), answered(better, labels, version="2"), strict=True))
    found = pairing(TASK, "f1_macro", pairs)
    assert found.rows == 600
    assert found.difference.value == pytest.approx(found.challenger.value - found.champion.value)
    assert found.difference.low > 0
    assert found.class_drops["negative"].rows == (truth == 0).sum()
    assert all(one.drop < 0 for one in found.class_drops.values())
    swapped = pairing(TASK, "f1_macro", [(b, a) for a, b in pairs])
    assert swapped.difference.high < 0
    assert swapped.difference.value == pytest.approx(-found.difference.value)
    assert pairing(TASK, "f1_macro", []).rows == 0
    assert pairing(TASK, "f1_macro", pairs, TextClassification(labels=("x", "y"))).difference is None
