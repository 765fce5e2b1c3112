"""Which rows go into which batch: rows of similar length together, a token budget for every forward pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Positions of rows in an encoded split."""

POOL = 50
"""Batches sorted by length together; larger pools pad less but mix less (transformers' group_by_length: 50)."""


def training_steps(
    lengths: NDArray[np.int32],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    weights: NDArray[np.float64] | None = None,
) -> list[Rows]:
    """The rows of every optimizer step of an epoch, in order.

    The plan depends on seed and epoch alone, never on the number of workers, so that N workers take the same steps as
    one.

    Args:
        lengths: Length of each row, shape (rows,).
        batch_size: Rows per step over all workers; the last step may have fewer.
        seed: Seed of the fit.
        epoch: Counted from 0; each epoch is shuffled anew.
        weights: Probability of each row, (rows,); an epoch then draws as many rows with replacement. None: each once.

    >>> steps = training_steps(np.array([5, 9, 5, 9], dtype=np.int32), 2, seed=0, epoch=0)
    >>> sorted(row for step in steps for row in step.tolist())
    [0, 1, 2, 3]
    """
    random = np.random.default_rng([seed, epoch])
    rows = len(lengths)
    order = random.permutation(rows) if weights is None else random.choice(rows, rows, p=weights)
    pool = batch_size * POOL
    batches: list[Rows] = []
    for start in range(0, len(order), pool):
        pooled = order[start : start + pool]
        pooled = pooled[np.argsort(-lengths[pooled], kind="stable")]
        batches += [pooled[first : first + batch_size] for first in range(0, len(pooled), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]


def within_budget(rows: Rows, lengths: NDArray[np.int32], max_tokens: int) -> Iterator[Rows]:
    """Cut rows into forward passes of at most `max_tokens` tokens, padding included; a longer row goes alone.

    >>> [part.tolist() for part in within_budget(np.array([0, 1, 2]), np.array([4, 4, 9], dtype=np.int32), 10)]
    [[2], [0, 1]]
    """
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    start = 0
    while start < len(rows):
        # Sorted longest first, so the first row of a part is its width.
        count = max(1, max_tokens // max(1, int(lengths[rows[start]])))
        yield rows[start : start + count]
        start += count


def share(rows: Rows, rank: int, workers: int) -> Rows:
    """The part of a batch that one of several workers takes.

    >>> share(np.arange(5), 1, 2).tolist()
    [1, 3]
    """
    return rows[rank::workers]
