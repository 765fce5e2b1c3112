from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from pmray.errors import UnknownName
from pmray.scoring import metrics

quick = settings(max_examples=50, deadline=None, derandomize=True)

SKLEARN = {
    "f1": reference.f1_score,
    "precision": reference.precision_score,
    "recall": reference.recall_score,
}
PER_CLASS = {
    "f1": metrics.f1_per_class,
    "precision": metrics.precision_per_class,
    "recall": metrics.recall_per_class,
}


@st.composite
def weighted_lines(draw, multi_label=False):
    """Lines with two draws of weights: all ones, and some of which may be zero or broken numbers."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows, classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    kind = draw(st.sampled_from(["random", "right", "wrong", "constant"]))
    true = rng.random((rows, classes)) < 0.4 if multi_label else rng.integers(classes, size=(rows, 1))
    said = {
        "random": rng.permutation(true),
        "right": true,
        "wrong": ~true if multi_label else (true + 1) % classes,
        "constant": np.zeros_like(true),
    }[kind]
    weights = rng.integers(0, 3, size=rows) if draw(st.booleans()) else rng.random(rows)
    return np.hstack([true, said]).astype(np.int64), np.stack([np.ones(rows), weights])


def sklearn_single_label(name, lines, weights):
    lines, weights = lines[weights > 0], weights[weights > 0]  # here, a row of weight zero is not there
    if not len(lines):
        return 0.0
    true, said = lines.T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes nobody has, single-class input
        if name == "mcc":
            return reference.matthews_corrcoef(true, said, sample_weight=weights)
        elif name in ("accuracy", "balanced_accuracy"):
            return getattr(reference, f"{name}_score")(true, said, sample_weight=weights)
        ratio, average = name.split("_")
        if average == "positive":
            true, said, average = true == 1, said == 1, "binary"
        return SKLEARN[ratio](true, said, average=average, sample_weight=weights, zero_division=0)


def sklearn_multi_label(name, lines, weights):
    true, said = np.split(lines, 2, axis=1)
    if not weights.sum():
        return 0.0
    if name == "subset_accuracy":
        return reference.accuracy_score(true, said, sample_weight=weights)
    ratio, average = name.split("_")
    return SKLEARN[ratio](true, said, average=average, sample_weight=weights, zero_division=0)


@pytest.mark.parametrize("name", metrics.BINARY)
@quick
@given(weighted_lines())
def test_single_label_equals_sklearn(name, example):
    lines, weights = example
    expected = [sklearn_single_label(name, lines, line) for line in weights]
    found = metrics.single_label_metric(name, positive=1)(lines, weights)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", metrics.MULTI_LABEL)
@quick
@given(weighted_lines(multi_label=True))
def test_multi_label_equals_sklearn(name, example):
    lines, weights = example
    expected = [sklearn_multi_label(name, lines, line) for line in weights]
    np.testing.assert_allclose(metrics.multi_label_metric(name)(lines, weights), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", SKLEARN)
@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_every_average_with_many_classes_equals_sklearn(ratio, average):
    rng = np.random.default_rng(0)
    lines, weights = rng.integers(77, size=(1_000, 2)), rng.random((1, 1_000))
    expected = SKLEARN[ratio](*lines.T, average=average, sample_weight=weights[0], zero_division=0)
    assert getattr(metrics, ratio)(lines, weights, average=average) == pytest.approx([expected], abs=1e-12, rel=0)


@pytest.mark.parametrize("ratio", SKLEARN)
def test_per_class_equals_sklearn(ratio):
    rng = np.random.default_rng(1)
    single, multi, weights = rng.integers(4, size=(50, 2)), rng.integers(2, size=(50, 6)), rng.random((1, 50))
    options = {"average": None, "sample_weight": weights[0], "zero_division": 0}
    found = PER_CLASS[ratio](single, weights, classes=5)
    np.testing.assert_allclose(found[0], SKLEARN[ratio](*single.T, labels=range(5), **options), atol=1e-12)
    found = PER_CLASS[ratio](multi, weights, multi_label=True)
    np.testing.assert_allclose(found[0], SKLEARN[ratio](multi[:, :3], multi[:, 3:], **options), atol=1e-12)


def test_confusion_equals_sklearn_even_for_small_integers():
    lines = np.random.default_rng(2).integers(77, size=(500, 2)).astype(np.int8)
    expected = reference.confusion_matrix(*lines.T, labels=range(77))
    np.testing.assert_array_equal(metrics.confusion(lines, 77), expected)


def test_a_row_that_weighs_two_is_a_row_twice():
    lines = np.random.default_rng(3).integers(5, size=(30, 2))
    weights = np.random.default_rng(4).integers(0, 4, size=30)
    for name in metrics.BINARY:
        metric = metrics.single_label_metric(name, positive=2)
        twice = metric(np.repeat(lines, weights, axis=0), np.ones((1, weights.sum())))
        assert metric(lines, weights[None]) == pytest.approx(twice, abs=1e-12)


def test_stacked_workers_score_like_one():
    lines = np.random.default_rng(5).integers(6, size=(101, 2))
    stacked = np.concatenate([lines[worker::3] for worker in range(3)])
    for name in metrics.SINGLE_LABEL:
        metric = metrics.single_label_metric(name)
        assert metric(stacked, np.ones((1, 101))) == pytest.approx(metric(lines, np.ones((1, 101))), abs=1e-12)


@pytest.mark.parametrize("name", metrics.SINGLE_LABEL)
def test_distinct_lines_weighted_by_their_counts_score_the_same(name):
    lines = np.random.default_rng(6).integers(4, size=(300, 2))
    metric, (few, rows) = metrics.single_label_metric(name), metrics.distinct(lines)
    assert len(few) == 16
    assert metric(few, rows[None]) == pytest.approx(metric(lines, np.ones((1, 300))), abs=1e-12)


@pytest.mark.parametrize(
    "lines",
    [
        np.random.default_rng(7).integers(-3, 4, size=(200, 2)),
        np.random.default_rng(7).integers(2, size=(40, 200)),  # 2^200 possible lines: renumbered on the way
        np.random.default_rng(7).integers(2, size=(200, 3)).astype(bool),
        np.random.default_rng(7).integers(2, size=(200, 3)) * 2.0**62 + 0.5,
        np.array([[-(2**63), 0], [2**63 - 1, 0], [-(2**63), 0]]),
        np.random.default_rng(7).integers(256, size=(200, 1)).astype(np.uint8),
        np.empty((0, 2), dtype=np.int64),
    ],
    ids=["negative", "many columns", "bool", "float", "extremes", "uint8", "no rows"],
)
def test_distinct_equals_numpy(lines):
    few, rows = metrics.distinct(lines)
    expected, expected_rows = np.unique(lines, axis=0, return_counts=True)
    np.testing.assert_array_equal(few, expected)
    np.testing.assert_array_equal(rows, expected_rows)
    assert few.dtype == lines.dtype


def test_no_rows_score_zero():
    for name in metrics.BINARY:
        assert metrics.single_label_metric(name, positive=1)(np.empty((0, 2), dtype=int), np.ones((2, 0))).sum() == 0


def test_a_class_number_that_does_not_exist_is_refused():
    for lines in (np.array([[0, -1]]), np.array([[0, 3]])):
        with pytest.raises(ValueError, match="index"):
            metrics.f1_per_class(lines, np.ones((1, 1)), classes=3)


def test_unknown_names_propose_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'f1_macro'"):
        metrics.single_label_metric("f1_marco")
    with pytest.raises(UnknownName, match="Did you mean 'subset_accuracy'"):
        metrics.multi_label_metric("subset_acuracy")
    with pytest.raises(UnknownName):  # positive of what?
        metrics.single_label_metric("f1_positive")


def test_metrics_travel_to_workers():
    for name in metrics.BINARY:
        pickle.dumps(metrics.single_label_metric(name, positive=1))
    for name in metrics.MULTI_LABEL:
        pickle.dumps(metrics.multi_label_metric(name))
