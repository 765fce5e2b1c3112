"""Metrics of probabilities, in the form of ``pmray.scoring.metrics``: weighted rows in, one score per draw out.

Their lines carry the truth and every probability (see `lines_of`), so no two rows are alike, and a draw costs more than
with counts of predictions. They are reported beside the deciding metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmray.scoring.metrics import Metric, Outcomes, Scores, Weights

BINS = 10
"""Of the expected calibration error: as many as a reader can look at."""


def lines_of(targets: NDArray[Any], scores: NDArray[Any]) -> Outcomes:
    """Put truth and probabilities side by side.

    Args:
        targets: Class numbers, (rows,), or label bits, (rows, labels).
        scores: Probabilities, (rows, labels).

    Returns:
        float64, (rows, 1 + labels), or (rows, 2 * labels) for bits.
    """
    return np.concatenate([np.atleast_2d(targets.T).T, scores], axis=1).astype(np.float64)


def probability_metrics(labels: int, *, multi_label: bool, positive: int | None = None) -> Mapping[str, Metric]:
    """The metrics of probabilities by name.

    Args:
        labels: How many.
        multi_label: Whether lines begin with bits.
        positive: With two classes, the one whose probability is ranked; the second by default.

    >>> lines = lines_of(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]))
    >>> {name: round(float(of(lines, np.ones((1, 3)))[0]), 3)
    ...  for name, of in probability_metrics(2, multi_label=False).items()}
    {'roc_auc': 1.0, 'pr_auc': 1.0, 'log_loss': 0.415, 'brier': 0.137, 'ece': 0.3}
    """
    columns = range(labels) if multi_label or labels > 2 else [1 if positive is None else positive]
    parts = partial(_label_columns, labels=labels, multi_label=multi_label, columns=tuple(columns))
    return {
        "roc_auc": partial(_mean_over_labels, parts=parts, of=roc_auc),
        "pr_auc": partial(_mean_over_labels, parts=parts, of=average_precision),
        "log_loss": partial(log_loss, labels=labels, multi_label=multi_label),
        "brier": partial(brier, labels=labels, multi_label=multi_label),
        "ece": partial(ece, labels=labels, multi_label=multi_label),
    }


def roc_auc(true: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights) -> Scores:
    """Area under the ROC curve: how often a row that has the label scores higher than one that has not, ties half.

    Args:
        true: Whether each row has the label, (rows,).
        scores: Its probability, (rows,).
        weights: (draws, rows).

    Returns:
        (draws,); NaN in a draw in which all rows have the label, or none.
    """
    positives, negatives = _by_score(true, scores, weights)
    above = negatives.sum(axis=1, keepdims=True) - negatives.cumsum(axis=1)
    # Scores fall from left to right: what lies to the right is beaten.
    won = (positives * (above + negatives / 2)).sum(axis=1)
    return _defined(won, positives.sum(axis=1) * negatives.sum(axis=1))


def average_precision(true: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights) -> Scores:
    """Area under the precision-recall curve as a sum of steps: sum of (R_n - R_n-1) P_n over falling thresholds.

    Arguments and NaN as for `roc_auc`.
    """
    positives, negatives = _by_score(true, scores, weights)
    hits, said = positives.cumsum(axis=1), (positives + negatives).cumsum(axis=1)
    precision = np.divide(hits, said, out=np.zeros_like(hits), where=said > 0)
    return _defined((positives * precision).sum(axis=1), positives.sum(axis=1))


def log_loss(outcomes: Outcomes, weights: Weights, *, labels: int, multi_label: bool) -> Scores:
    """Mean negative log-likelihood in nats; of several labels a row, the mean over the labels."""
    true, scores = _split(outcomes, labels, multi_label)
    # As scikit-learn clips: a certain error costs 36 nats, not infinitely many.
    small = np.finfo(np.float64).eps
    sure = np.clip(scores, small, 1 - small)
    if multi_label:
        each = -np.where(true == 1, np.log(sure), np.log1p(-sure)).mean(axis=1)
    else:
        each = -np.log(np.take_along_axis(sure, true, axis=1)[:, 0])
    return _mean(each, weights)


def brier(outcomes: Outcomes, weights: Weights, *, labels: int, multi_label: bool) -> Scores:
    """Brier score (1950): mean squared distance of the probabilities from the truth.

    With two classes, of the probability of one of them (0 to 1); with more, the sum over classes (0 to 2); of several
    labels a row, the mean over the labels.
    """
    true, scores = _split(outcomes, labels, multi_label)
    bits = true if multi_label else np.arange(labels) == true
    squares = (scores - bits) ** 2
    each = squares.mean(axis=1) if multi_label else squares.sum(axis=1) / (2 if labels == 2 else 1)
    return _mean(each, weights)


def ece(outcomes: Outcomes, weights: Weights, *, labels: int, multi_label: bool) -> Scores:
    """Expected calibration error in bins of equal width (Guo et al. 2017; Naeini et al. 2015).

    Of the probability of what is said; with several labels a row, of every label's probability.
    """
    true, scores = _split(outcomes, labels, multi_label)
    if multi_label:
        confidence, right, per_row = scores.ravel(), true.ravel() == 1, labels
    else:
        said = scores.argmax(axis=1)
        confidence, right, per_row = np.take_along_axis(scores, said[:, None], 1)[:, 0], said == true[:, 0], 1
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.zeros((len(outcomes), BINS))
    np.add.at(gaps, (np.repeat(np.arange(len(outcomes)), per_row), number), confidence - right)
    return _defined(np.abs(weights @ gaps).sum(axis=1), per_row * weights.sum(axis=1))


LabelColumns = Callable[[Outcomes], list[tuple[NDArray[np.bool_], NDArray[np.float64]]]]


def _mean_over_labels(
    outcomes: Outcomes, weights: Weights, *, parts: LabelColumns, of: Callable[..., Scores]
) -> Scores:
    """Mean of the labels that a draw can judge; NaN where it can judge none."""
    each = np.stack([of(true, scores, weights) for true, scores in parts(outcomes)])
    judged = ~np.isnan(each)
    return _defined(np.where(judged, each, 0).sum(axis=0), judged.sum(axis=0))


def _label_columns(
    outcomes: Outcomes, *, labels: int, multi_label: bool, columns: tuple[int, ...]
) -> list[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    true, scores = _split(outcomes, labels, multi_label)
    return [(true[:, one] == 1 if multi_label else true[:, 0] == one, scores[:, one]) for one in columns]


def _split(outcomes: Outcomes, labels: int, multi_label: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    place = labels if multi_label else 1
    return outcomes[:, :place].astype(np.int64), outcomes[:, place:]


def _by_score(
    true: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight of the rows with and without the label at each different score, falling; both (draws, scores)."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) != 0]))
    ordered = np.asarray(weights, np.float64)[:, order]
    having = np.add.reduceat(ordered * true[order], starts, axis=1)
    return having, np.add.reduceat(ordered * ~true[order], starts, axis=1)


def _mean(each: NDArray[np.float64], weights: Weights) -> Scores:
    return _defined(weights @ each, weights.sum(axis=1))


def _defined(above: NDArray[Any], below: NDArray[Any]) -> Scores:
    """Divide; what has nothing to divide by is NaN."""
    answer = np.full(np.shape(below), np.nan)
    np.divide(above, below, out=answer, where=below > 0)
    return answer
