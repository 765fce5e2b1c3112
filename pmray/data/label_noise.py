"""Labels that are probably wrong: confident learning (Northcutt, Jiang & Chuang, JAIR 2021), in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def label_issues(probabilities: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find rows whose given label a model confidently contradicts: off the diagonal of the confident joint.

    A class counts as likely for a row when its probability reaches the mean that it has on rows of that class; the
    likeliest of them is what the row looks like. Where this is not the given label, the row is a candidate.

    Args:
        probabilities: Out-of-fold, shape (rows, labels); of rows with several labels each column on its own.
        targets: Label numbers, shape (rows,); or label bits, shape (rows, labels).

    Returns:
        Positions of the candidates, and the label each looks like (with label bits: the label that is wrong); those
        that the model contradicts most strongly come first.

    >>> sure = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.95, 0.05]])
    >>> label_issues(sure, np.array([0, 0, 1, 1, 1]))
    (array([4]), array([0]))
    """
    if targets.ndim == 2:
        return _bit_issues(probabilities, targets)
    said, gap = _suspects(probabilities, targets)
    rows = np.flatnonzero(gap > 0)
    rows = rows[np.argsort(-gap[rows], kind="stable")]
    return rows, said[rows]


def _suspects(probabilities: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What each row looks like, and by how much that is likelier than its label; 0 where it is no candidate."""
    count = probabilities.shape[1]
    members = np.bincount(targets, minlength=count)
    own = probabilities[np.arange(len(targets)), targets]
    usual = np.bincount(targets, weights=own, minlength=count) / np.maximum(members, 1)
    # What no row has cannot be what a row looks like.
    usual[members == 0] = np.inf
    likely = np.where(probabilities >= usual, probabilities, -np.inf)
    said = likely.argmax(1)
    best = likely.max(1)
    return said, np.where((said != targets) & np.isfinite(best), np.maximum(best - own, 0.0), 0.0)


def _bit_issues(probabilities: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    gaps = np.stack(
        [
            _suspects(np.stack([1 - column, column], axis=1), bits.astype(np.int64))[1]
            for column, bits in zip(probabilities.T, targets.T, strict=True)
        ],
        axis=1,
    )
    worst = gaps.max(1)
    rows = np.flatnonzero(worst > 0)
    rows = rows[np.argsort(-worst[rows], kind="stable")]
    return rows, gaps.argmax(1)[rows]
