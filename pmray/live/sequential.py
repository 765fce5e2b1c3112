"""Intervals that stay valid however often one looks: of a live score, and of the difference of two on the same rows.

An ordinary 95 % interval is wrong in 5 % of the cases when it is looked at once. Looked at every night, it will
sooner or later exclude the truth. A confidence sequence excludes it *ever* with that probability, so that whoever
looks may stop at any time. The one used here is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha,
Kennedy & Ramdas (2024, "Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics
52, theorem 2.2; a mixture of Robbins 1970). After t rows, with s / sqrt(t) the standard error::

    value +- s sqrt(2 (t rho^2 + 1) / (t^2 rho^2) log(sqrt(t rho^2 + 1) / alpha))

rho makes it tightest at about t* rows (their appendix)::

    rho^2 = (-2 log alpha + log(-2 log alpha + 1)) / t*

F1 is no mean of rows, but near enough to the mean of its influence values; their standard error comes from the
jackknife over rows (Tukey 1958), for any metric of ``pmray.scoring``. It is asymptotic: a handful of rows proves
nothing, so that callers wait for some tens (`MIN_ROWS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmray.scoring.intervals import CELLS, PARTS, resampled, shared_lines
from pmray.scoring.metrics import Metric, Outcomes

MIN_ROWS = 50
"""Labels below which no sequence is shown: the central limit theorem has not set in."""

TIGHTEST_AT = 500
"""Labels at which the interval is meant to be tightest; it is within a few per cent of that from a fifth to five times
as many."""


@dataclass(frozen=True)
class Anytime:
    """A value and an interval that holds the truth at all times together with probability `level`."""

    value: float
    low: float
    high: float
    level: float
    rows: int
    """Labels behind it."""
    error: float
    """Standard error of the value."""


def score_sequence(
    metric: Metric, outcomes: Outcomes, *, level: float = 0.95, tightest_at: int = TIGHTEST_AT
) -> Anytime | None:
    """The score of a model on all labels so far; None while there are too few.

    Args:
        metric: The score.
        outcomes: One line a row, (rows, k).
        level: Coverage, at all times together.
        tightest_at: See the module.
    """
    return _sequence(metric, [outcomes], np.array([1.0]), level, tightest_at)


def difference_sequence(
    metric: Metric, first: Outcomes, second: Outcomes, *, level: float = 0.95, tightest_at: int = TIGHTEST_AT
) -> Anytime | None:
    """The score of `first` minus that of `second` on the same rows; None while there are too few.

    >>> from pmray.scoring.metrics import accuracy
    >>> right, wrong = np.array([[0, 0]] * 400), np.array([[0, 1]] * 60 + [[0, 0]] * 340)
    >>> found = difference_sequence(accuracy, right, wrong)
    >>> round(found.value, 2), found.low > 0
    (0.15, True)
    """
    return _sequence(metric, [first, second], np.array([1.0, -1.0]), level, tightest_at)


def _sequence(
    metric: Metric, runs: Sequence[Outcomes], signs: NDArray[np.float64], level: float, tightest_at: int
) -> Anytime | None:
    rows = len(runs[0])
    if rows < MIN_ROWS:
        return None
    lines, counts, _ = shared_lines(runs, None)
    if len(counts) <= PARTS:
        values, errors = jackknife(metric, lines, counts[None], signs)
        value, error = float(values[0]), float(errors[0])
    else:  # too many that differ: some are left out together
        found = resampled(metric, runs, 1, np.random.default_rng(0))
        without, n = found.without @ signs, found.times.sum()
        spread = (found.times * (without - np.average(without, weights=found.times)) ** 2).sum()
        value, error = float(found.scores @ signs), float(np.sqrt((n - 1) / n * spread))
    low, high = anytime_interval(np.array(value), np.array(error), np.array(rows), level, tightest_at)
    return Anytime(value, float(low), float(high), level, rows, error)


def jackknife(
    metric: Metric, lines: Sequence[Outcomes], counts: NDArray[Any], signs: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Signed sum of the scores of several runs, and its standard error, for many counts of rows at once.

    Args:
        metric: The score.
        lines: Distinct joint lines, one array (lines, k) a run.
        counts: How many rows each line stands for, (looks, lines).
        signs: One a run: 1 and -1 give a difference.

    Returns:
        Values and standard errors, (looks,) each.
    """
    looks, width = counts.shape
    step = max(1, CELLS // (width * width))
    values, errors = [], []
    for start in range(0, looks, step):
        some = counts[start : start + step].astype(np.float64)
        without = np.maximum(some[:, None, :] - np.eye(width), 0.0).reshape(-1, width)
        value = sum(sign * metric(run, some) for run, sign in zip(lines, signs, strict=True))
        left = sum(sign * metric(run, without) for run, sign in zip(lines, signs, strict=True))
        left = np.asarray(left).reshape(len(some), width)
        n = some.sum(axis=1)
        mean = (left * some).sum(axis=1) / n
        values.append(value)
        errors.append(np.sqrt((n - 1) / n * (some * (left - mean[:, None]) ** 2).sum(axis=1)))
    return np.concatenate(values), np.concatenate(errors)


def anytime_interval(
    value: NDArray[np.float64], error: NDArray[np.float64], rows: NDArray[Any], level: float, tightest_at: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the confidence sequence at some numbers of rows; arguments may be arrays of one shape.

    >>> low, high = anytime_interval(np.array(0.0), np.array(0.01), np.array(500), 0.95, 500)
    >>> round(float(high), 3)
    0.03
    """
    alpha = 1 - level
    rho2 = (-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / tightest_at
    scaled = rows * rho2 + 1
    # Models that gave the same answers so far may differ on the next row: as if one row in t did, much as the "rule of
    # three" bounds what was never seen. s = error sqrt(t), so that one t of the formula's t^2 goes.
    half = np.maximum(error, 1 / rows) * np.sqrt(2 * scaled / (rows * rho2) * np.log(np.sqrt(scaled) / alpha))
    return value - half, value + half
