"""Rows with something for each of their parts, such as a label for each word: ragged arrays.

A ragged array is a one-dimensional object array with one array a row. Code for rows that are all of one size works on
it row by row (`values[positions]`, `len(values)`); code that only counts works on `flat(values)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def ragged(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Hold one array a row, also where all rows happen to be of one size.

    >>> ragged([np.array([1, 2]), np.array([3, 4])]).shape
    (2,)
    """
    values = np.empty(len(rows), dtype=object)
    for position, row in enumerate(rows):
        values[position] = row
    return values


def is_ragged(values: NDArray[Any]) -> bool:
    """Whether rows hold arrays of their own."""
    return values.dtype == object


def flat(values: NDArray[Any]) -> NDArray[Any]:
    """The parts of all rows one after the other; what is not ragged stays as it is.

    >>> flat(ragged([np.array([1, 2]), np.array([3])])).tolist()
    [1, 2, 3]
    """
    return np.concatenate(list(values)) if is_ragged(values) else values


def like(parts: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Cut what is flat into the rows of `values`; undoes ``flat``.

    >>> [row.tolist() for row in like(np.arange(3), ragged([np.array([7, 7]), np.array([7])]))]
    [[0, 1], [2]]
    """
    if not is_ragged(values):
        return parts
    return ragged(np.split(parts, np.cumsum([len(row) for row in values])[:-1]))


def stacked(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Put score vectors of single rows together: a matrix of vectors, ragged where a row has several.

    >>> stacked([np.zeros(2), np.ones(2)]).shape, stacked([np.zeros((3, 2)), np.zeros((1, 2))]).shape
    ((2, 2), (2,))
    """
    return np.stack(rows) if rows[0].ndim == 1 else ragged(rows)
