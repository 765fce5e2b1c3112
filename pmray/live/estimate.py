"""The score without labels: what calibrated probabilities say about themselves. An estimate, and always called one.

Confidence-based performance estimation (CBPE, the method of NannyML; Bialek et al. 2024, "Estimating model performance
under covariate shift without labels", arXiv 2401.08348): a row whose label is said with probability p is right in a
share p of the cases, if probabilities mean what they say. So every row stands for all its possible labels, weighted by
their probabilities, and the expected confusion matrix goes into the same metrics as a counted one.

It sees inputs that have become harder. It cannot see that labels have come to mean something else, and it is only as
good as the calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pmray.scoring.intervals import Interval
from pmray.scoring.metrics import Metric, subset_accuracy
from pmray.scoring.ragged import is_ragged
from pmray.tasks.base import Task

DRAWS = 200

MIN_ROWS = 50
"""Predictions of the smallest window that gets an estimate."""


@dataclass(frozen=True)
class Estimate:
    """A score that no label has confirmed."""

    score: Interval
    """Where the score of so many labelled rows would be, if probabilities mean what they say."""
    rows: int
    method: str = "CBPE"


def estimate(
    task: Task, metric: str, scores: NDArray[np.float32], *, draws: int = DRAWS, seed: int = 0, level: float = 0.95
) -> Estimate | None:
    """Estimate a metric from score vectors alone.

    The interval draws rows, and labels by their probabilities: it is as wide as that of as many labelled rows.

    Args:
        task: What the scores are of.
        metric: Name of a metric that needs no more than a confusion matrix.
        scores: Probabilities, (rows, labels).
        draws: For the interval.
        seed: Of the draws.
        level: Coverage aimed at.

    Returns:
        None where a row is no set of independent decisions (tags of words, shares of rows all right) or has no
        probabilities, and of fewer than `MIN_ROWS` rows.
    """
    if len(scores) < MIN_ROWS or is_ragged(scores) or scores.min() < 0 or scores.max() > 1:
        return None
    said = task.said(scores)
    halves = task.halves(task.paired_outcome(said, said))
    function = task.metric(metric)
    if halves is None or function is subset_accuracy:
        return None
    several = said.ndim == 2
    if not several and not np.allclose(scores.sum(axis=1), 1, atol=0.01):
        return None
    lines, weights = (_bit_lines if several else _class_lines)(scores.astype(np.float64), said)
    value = float(function(lines, weights[None])[0])
    drawn = _drawn(function, scores.astype(np.float64), said, lines, draws, np.random.default_rng(seed))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(Interval(value, min(value, float(low)), max(value, float(high)), level), len(scores))


def _class_lines(scores: NDArray[np.float64], said: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All pairs (true, said) and how many rows of each are expected."""
    labels = scores.shape[1]
    expected = np.zeros((labels, labels))
    np.add.at(expected.T, said, scores)
    true, predicted = np.indices((labels, labels))
    return np.stack([true.ravel(), predicted.ravel()], axis=1), expected.ravel()


def _bit_lines(scores: NDArray[np.float64], said: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Lines of one label each: true and said, true alone, said alone; counts of the other labels they leave alone."""
    labels = scores.shape[1]
    one, none = np.eye(labels, dtype=np.int64), np.zeros((labels, labels), np.int64)
    lines = np.concatenate([np.hstack(pair) for pair in ((one, one), (one, none), (none, one))])
    return lines, _bit_weights(scores, said)


def _bit_weights(true: NDArray[np.float64], said: NDArray[np.int8]) -> NDArray[np.float64]:
    return np.concatenate([(true * said).sum(axis=0), (true * (1 - said)).sum(axis=0), ((1 - true) * said).sum(axis=0)])


def _drawn(
    metric: Metric,
    scores: NDArray[np.float64],
    said: NDArray[np.int64] | NDArray[np.int8],
    lines: NDArray[np.int64],
    draws: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The metric on rows drawn with replacement, with labels drawn by their probabilities, (draws,)."""
    rows, labels = scores.shape
    cumulated = scores.cumsum(axis=1)
    weights = np.zeros((draws, len(lines)))
    for draw in range(draws):
        chosen = rng.integers(rows, size=rows)
        if said.ndim == 2:
            bits = (rng.random((rows, labels)) < scores[chosen]).astype(np.float64)
            weights[draw] = _bit_weights(bits, said[chosen])
        else:
            ends = cumulated[chosen]
            true = (rng.random((rows, 1)) * ends[:, -1:] > ends).sum(axis=1)
            weights[draw] = np.bincount(true * labels + said[chosen], minlength=labels**2)
    found: NDArray[np.float64] = metric(lines, weights)
    return found
