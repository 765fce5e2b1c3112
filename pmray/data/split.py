"""Which rows are kept aside, and which are drawn: stratified, grouped, seeded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.errors import DataError

Codes = NDArray[np.int64]
"""A small number for each row, the same for equal values."""


def split_off(
    table: pa.Table, fraction: float, *, label: str | None, group: str | None, seed: int
) -> tuple[pa.Table, pa.Table]:
    """Keep part of the rows aside, with each label's share about the same on both sides.

    Rows of one group (a speaker, a patient, a user) never fall on both sides; rows without a group are their own. Every
    label stays on the first side: what would take its last row or group from there is left where it is. Both sides keep
    the order of the rows.

    Args:
        table: The rows, in any order.
        fraction: Share kept aside, between 0 and 1.
        label: Column to stratify by; a row with a list of labels counts for its rarest one.
        group: Column that names the group; None splits row by row.
        seed: Another seed draws other rows.

    Returns:
        The rest, and the part kept aside.

    Raises:
        DataError: No rows can be kept aside.

    >>> table = pa.table({"label": list("aaaabbbb"), "who": list("xxyyxxyy")})
    >>> rest, part = split_off(table, 0.5, label="label", group="who", seed=0)
    >>> set(rest["who"].to_pylist()) & set(part["who"].to_pylist())
    set()
    """
    random = np.random.default_rng(seed)
    strata = _strata(table, label)
    taken = _groups(strata, _codes(table[group]), fraction, random) if group else _rows(strata, fraction, random)
    if not taken.any():
        unit = "group" if group else "row"
        raise DataError(
            f"nothing can be split off, because no label has two {unit}s (rows in all: {len(table)}); add rows, or "
            "give this split as a file"
        )
    return table.filter(pa.array(~taken)), table.filter(pa.array(taken))


def sample(table: pa.Table, rows: int, label: str | None, seed: int) -> pa.Table:
    """Draw this many rows, with each label's share about the same and no label lost where there is room.

    >>> sample(pa.table({"label": list("aaaaaab")}), 3, "label", seed=0)["label"].to_pylist()
    ['a', 'a', 'b']
    """
    if rows >= len(table):
        return table
    strata = _strata(table, label)
    counts = np.bincount(strata)
    low = np.minimum(counts, 1) if rows >= np.count_nonzero(counts) else np.zeros_like(counts)
    taken = _draw(strata, _allot(counts, rows, low, counts), np.random.default_rng(seed))
    return table.filter(pa.array(taken))


def _strata(table: pa.Table, label: str | None) -> Codes:
    if label is None:
        return np.zeros(len(table), dtype=np.int64)
    column = table[label]
    if not pa.types.is_list(column.type):
        return _codes(column)
    lists = [[name for name in row or () if name is not None] for row in column.to_pylist()]
    counts = Counter(name for row in lists for name in row)
    rarest = [min(row, key=lambda name: (counts[name], name), default=None) for row in lists]
    return _codes(pa.chunked_array([pa.array(rarest, pa.string())]), null_is_one=True)


def group_numbers(table: pa.Table) -> Codes | None:
    """Number of each row's group, shape (rows,), for intervals that draw whole groups; None without a group column.

    A row without a group is a group of its own.

    >>> group_numbers(pa.table({"group": ["b", None, "b", "a"]})).tolist()
    [1, 2, 1, 0]
    """
    return _codes(table["group"]) if "group" in table.column_names else None


def _codes(column: pa.ChunkedArray, *, null_is_one: bool = False) -> Codes:
    """Number the values in sorted order; each null is a value of its own unless `null_is_one`."""
    rank = {value: number for number, value in enumerate(sorted(column.drop_null().unique().to_pylist()))}
    codes = np.array([rank.get(value, -1) for value in column.to_pylist()], dtype=np.int64)
    nulls = codes < 0
    codes[nulls] = len(rank) + (0 if null_is_one else np.arange(nulls.sum()))
    return codes


def _rows(strata: Codes, fraction: float, random: np.random.Generator) -> NDArray[np.bool_]:
    counts = np.bincount(strata)
    high = np.maximum(counts - 1, 0)
    wanted = max(1, round(fraction * len(strata)))
    return _draw(strata, _allot(counts, wanted, np.zeros_like(counts), high), random)


def _allot(counts: Codes, total: int, low: Codes, high: Codes) -> Codes:
    """Share `total` among strata by size, within bounds: whole parts first, then the largest remainders."""
    ideal = counts * (total / max(1, counts.sum()))
    given: Codes = np.clip(np.floor(ideal), low, high).astype(np.int64)
    while (left := total - given.sum()) != 0:
        step = 1 if left > 0 else -1
        room = given < high if step > 0 else given > low
        if not room.any():
            break
        given[np.argmax(np.where(room, step * (ideal - given), -np.inf))] += step
    return given


def _draw(strata: Codes, given: Codes, random: np.random.Generator) -> NDArray[np.bool_]:
    """Draw as many rows of each stratum as it was given."""
    order = random.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    counts = np.bincount(strata, minlength=len(given))
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    taken = np.zeros(len(strata), dtype=bool)
    taken[order[place < np.repeat(given, counts)]] = True
    return taken


def _groups(strata: Codes, groups: Codes, fraction: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Take whole groups, the largest first, while each brings the labels' counts nearer to the fraction."""
    counts = np.bincount(strata)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    shuffled = random.permutation(len(members))
    order = shuffled[np.argsort([-len(members[group]) for group in shuffled], kind="stable")]
    # Relative to each label's own count, so that a rare label weighs as much as a frequent one.
    scale = np.maximum(counts, 1)
    missing = fraction * counts
    taken = np.zeros(len(strata), dtype=bool)
    nearest: tuple[float, Codes] | None = None
    left = counts.copy()
    for group in order:
        rows = members[group]
        found, held = np.unique(strata[rows], return_counts=True)
        if (held >= left[found]).any():
            continue
        before, after = missing[found] / scale[found], (missing[found] - held) / scale[found]
        change = float((after**2).sum() - (before**2).sum())
        if change < 0:
            taken[rows] = True
            missing[found] -= held
            left[found] -= held
        elif nearest is None or change < nearest[0]:
            nearest = change, rows
    if not taken.any() and nearest is not None:
        taken[nearest[1]] = True
    return taken
