"""Probabilities that mean what they say, and decisions from them: temperature and thresholds, from validation rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax

TINY = 1e-7
"""Smallest probability that float32 scores are believed to mean."""
GRID = np.round(np.linspace(0.05, 0.95, 37), 3)
"""Thresholds tried. A fixed grid, not every score seen: its steps of 0.025 are finer than validation rows can tell."""


COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures tried; beyond them a model is not badly calibrated but wrong."""


def fit_temperature(scores: NDArray[Any], targets: NDArray[Any]) -> float:
    """Find the temperature that makes probabilities likeliest (Guo et al. 2017, "On calibration of modern neural
    networks", ICML, section 4.2): one number by which all logits are divided. Over 1, the model was too sure.

    Args:
        scores: Probabilities, (rows, labels).
        targets: Class numbers, (rows,), or label bits, (rows, labels).

    >>> sure = np.array([[0.99, 0.01]] * 4)
    >>> t = fit_temperature(sure, np.array([0, 0, 0, 1]))
    >>> rescaled(sure, t, multi_label=False)[0].round(2)
    array([0.75, 0.25])
    """
    multi_label = targets.ndim == 2
    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        said = rescaled(scores, float(np.exp(log_temperature)), multi_label=multi_label)
        likely = np.where(targets == 1, said, 1 - said) if multi_label else said[rows, targets]
        return float(-np.log(np.maximum(likely, TINY)).mean())

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    # The search is local: it must not make worse what was good.
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def rescaled(scores: NDArray[Any], temperature: float, *, multi_label: bool) -> NDArray[np.float64]:
    """Probabilities as they are when the logits behind them are divided by a temperature, (rows, labels)."""
    sure = np.clip(scores.astype(np.float64), TINY, None)
    if multi_label:
        shifted: NDArray[np.float64] = expit(logit(np.clip(sure, TINY, 1 - 1e-7)) / temperature)
        return shifted
    # Log-probabilities are logits up to a number that softmax takes away again.
    result: NDArray[np.float64] = softmax(np.log(sure) / temperature, axis=1)
    return result


def best_thresholds(scores: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Find each column's threshold of best F1, shape (labels,); a label is said at its threshold and above.

    Of thresholds that are equally good the one nearest to 0.5 is taken, so that a column of which nothing can be
    learned (no row has the label) keeps 0.5.

    Args:
        scores: Probabilities, (rows, labels).
        targets: Label bits, (rows, labels).

    >>> best_thresholds(np.array([[0.2], [0.3], [0.1]]), np.array([[1], [1], [0]]))
    array([0.2])
    """
    true = targets.astype(bool)
    f1 = np.zeros((len(GRID), scores.shape[1]))
    for place, threshold in enumerate(GRID):
        said = scores >= threshold
        below = said.sum(axis=0) + true.sum(axis=0)
        np.divide(2 * (said & true).sum(axis=0), below, out=f1[place], where=below > 0)
    nearest_first = np.argsort(np.abs(GRID - 0.5), kind="stable")
    best: NDArray[np.float64] = GRID[nearest_first[f1[nearest_first].argmax(axis=0)]]
    return best
