"""Metrics of probabilities are those of scikit-learn, weights included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from pmray.evaluation.reliability import reliability
from pmray.scoring.probabilities import BINS, lines_of, probability_metrics


def drawn(seed, labels, rows, *, ties, multi_label=False):
    random = np.random.default_rng(seed)
    scores = random.random((rows, labels)) if multi_label else random.dirichlet(np.ones(labels), rows)
    if ties:
        scores = np.round(scores * 4) / 4 if multi_label else np.eye(labels)[scores.argmax(1)] * 0.5 + 0.5 / labels
    targets = random.integers(0, 2, (rows, labels)) if multi_label else random.integers(0, labels, rows)
    return targets, scores, random.integers(0, 4, (3, rows))


def ours(targets, scores, weights, *, multi_label=False):
    found = probability_metrics(scores.shape[1], multi_label=multi_label)
    lines = lines_of(targets, scores)
    return {name: metric(lines, weights) for name, metric in found.items()}


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 60), st.booleans())
def test_two_classes_as_in_scikit_learn(seed, rows, ties):
    targets, scores, weights = drawn(seed, 2, rows, ties=ties)
    found = ours(targets, scores, weights)
    for draw, weight in enumerate(weights):
        there = set(targets[weight > 0])
        if len(there) == 2:
            chance = scores[:, 1]
            assert found["roc_auc"][draw] == pytest.approx(
                reference.roc_auc_score(targets, chance, sample_weight=weight), abs=1e-9
            )
            assert found["pr_auc"][draw] == pytest.approx(
                reference.average_precision_score(targets, chance, sample_weight=weight), abs=1e-9
            )
        else:
            assert np.isnan(found["roc_auc"][draw])
        if there:
            assert found["log_loss"][draw] == pytest.approx(
                reference.log_loss(targets, scores, sample_weight=weight, labels=[0, 1]), abs=1e-9
            )
            assert found["brier"][draw] == pytest.approx(
                np.average((scores[:, 1] - targets) ** 2, weights=weight), abs=1e-9
            )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.booleans())
def test_several_classes_are_averaged_as_one_against_the_rest(seed, ties):
    targets, scores, _ = drawn(seed, 4, 60, ties=ties)
    weights = np.random.default_rng(seed).integers(1, 4, (2, 60))
    found = ours(targets, scores, weights)
    for draw, weight in enumerate(weights):
        assert found["roc_auc"][draw] == pytest.approx(
            reference.roc_auc_score(targets, scores, sample_weight=weight, multi_class="ovr", average="macro"), abs=1e-9
        )
        assert found["log_loss"][draw] == pytest.approx(
            reference.log_loss(targets, scores, sample_weight=weight, labels=range(4)), abs=1e-9
        )
        squares = ((scores - np.eye(4)[targets]) ** 2).sum(1)
        assert found["brier"][draw] == pytest.approx(np.average(squares, weights=weight), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.booleans())
def test_several_labels_a_row(seed, ties):
    targets, scores, weights = drawn(seed, 3, 50, ties=ties, multi_label=True)
    found = ours(targets, scores, weights, multi_label=True)
    for draw, weight in enumerate(weights):
        assert found["roc_auc"][draw] == pytest.approx(
            reference.roc_auc_score(targets, scores, sample_weight=weight, average="macro"), abs=1e-9
        )
        assert found["pr_auc"][draw] == pytest.approx(
            reference.average_precision_score(targets, scores, sample_weight=weight, average="macro"), abs=1e-9
        )
        each = [reference.log_loss(targets[:, one], scores[:, one], sample_weight=weight) for one in range(3)]
        assert found["log_loss"][draw] == pytest.approx(np.mean(each), abs=1e-9)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_calibration_error_is_that_of_the_reliability_table(multi_label):
    targets, scores, _ = drawn(7, 3, 200, ties=False, multi_label=multi_label)
    found = ours(targets, scores, np.ones((1, 200)), multi_label=multi_label)["ece"][0]
    if multi_label:
        table = reliability(scores.ravel(), targets.ravel() == 1, BINS)
    else:
        table = reliability(scores.max(1), scores.argmax(1) == targets, BINS)
    assert found == pytest.approx(table.ece, abs=1e-12)


def test_a_row_counted_twice_is_two_rows():
    targets, scores, _ = drawn(3, 3, 30, ties=True)
    twice = np.ones((1, 30), int)
    twice[0, :10] = 2
    repeated = ours(np.r_[targets, targets[:10]], np.r_[scores, scores[:10]], np.ones((1, 40)))
    for name, value in ours(targets, scores, twice).items():
        assert value == pytest.approx(repeated[name], abs=1e-12), name


def test_perfect_and_worst_rankings():
    targets = np.array([0, 0, 1, 1])
    perfect, worst = np.eye(2)[targets], np.eye(2)[1 - targets]
    assert ours(targets, perfect, np.ones((1, 4)))["roc_auc"] == 1
    found = ours(targets, worst, np.ones((1, 4)))
    assert (found["roc_auc"], found["brier"], found["ece"]) == (0, 1, 1)
    assert np.isfinite(found["log_loss"])
