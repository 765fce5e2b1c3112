"""Turning probabilities into decisions: thresholds that are fitted to validation rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = np.round(np.linspace(0.05, 0.95, 37), 3)
"""Thresholds tried. A fixed grid, not every score seen: its steps of 0.025 are finer than validation rows can tell."""


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
