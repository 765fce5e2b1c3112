"""Do probabilities mean what they say: reliability table and expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Predictions of similar confidence."""

    low: float
    """Confidence above this (the first bin: from it) …"""
    high: float
    """… up to this."""
    count: int
    confidence: float
    """Mean of the bin."""
    right: float
    """Share that is right; equal to the confidence where a model is calibrated."""


@dataclass(frozen=True)
class Reliability:
    """How far confidence and success are apart."""

    ece: float
    """Expected calibration error: mean over predictions of |confidence - right| of their bin, 0 to 1. Few rows in a
    bin make it too large: a calibrated model of 200 rows has about 0.05, not 0."""
    mce: float
    """Largest such difference of a bin."""
    overconfidence: float
    """Mean confidence minus share right; above 0 the model promises too much."""
    bins: tuple[Bin, ...]
    """Those that hold a prediction, from low confidence to high."""


def reliability(confidence: NDArray[Any], right: NDArray[Any], bins: int = BINS) -> Reliability:
    """Compare confidence with success in bins of equal width (Guo et al. 2017, "On calibration of modern neural
    networks", ICML; Naeini et al. 2015, AAAI).

    Args:
        confidence: Probability of what was said, float in 0 to 1, shape (predictions,).
        right: Whether it was right, bool, (predictions,).
        bins: How many.

    >>> found = reliability(np.array([0.95, 0.95, 0.65, 0.65]), np.array([True, True, True, False]))
    >>> round(found.ece, 3), [one.count for one in found.bins]
    (0.1, [2, 2])
    """
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    edges = np.linspace(0, 1, bins + 1)
    number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    used = np.flatnonzero(count)
    means, shares = (np.bincount(number, values, bins)[used] / count[used] for values in (confidence, right))
    gaps = np.abs(means - shares)
    return Reliability(
        ece=float(gaps @ count[used] / len(confidence)),
        mce=float(gaps.max()),
        overconfidence=float(confidence.mean() - right.mean()),
        bins=tuple(
            Bin(float(edges[one]), float(edges[one + 1]), int(count[one]), float(mean), float(share))
            for one, mean, share in zip(used, means, shares, strict=True)
        ),
    )


def surest_error(scores: NDArray[Any], true: NDArray[Any], said: NDArray[Any]) -> float:
    """How sure a model was of what is wrong in a row.

    Args:
        scores: Score vector, (labels,), or one for each part, (parts, labels).
        true: Label number, label bits, (labels,), or the number of each part, (parts,).
        said: In the same form.

    >>> float(surest_error(np.array([0.2, 0.8]), np.int64(0), np.int64(1)))
    0.8
    """
    if np.ndim(true) == 0:
        return float(scores[said])
    # Of label bits, how sure the model was of the wrong bit; of parts, of what it said of the wrong part.
    sure = np.where(said == 1, scores, 1 - scores) if scores.ndim == 1 else scores[np.arange(len(said)), said]
    return float(np.where(true != said, sure, -np.inf).max(initial=-np.inf))
