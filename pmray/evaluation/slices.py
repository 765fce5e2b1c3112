"""Where a model does worse: scores of given slices of the rows, and a search for the worst ones.

A slice is a set of rows that people can name: a value of a column, a range of a number or of the length of the text, a
word. ``slices_by`` scores all values of one column; ``worst_slices`` looks through all columns, lengths and words, as
SliceFinder does (Chung et al. 2019, "Slice Finder: automated data slicing for model validation", ICDE) with slices of
one condition. What differs is the care for having looked at many: each slice's share of errors is tested against the
rows outside it by an exact test, the p-values are adjusted (Benjamini & Hochberg 1995), and the intervals of those
that are shown are widened for having been picked (Benjamini & Yekutieli 2005, JASA 100: level 1 - alpha shown/tested).

Rows that come in groups are not independent: then intervals draw whole groups, and the shares of errors are compared
with the standard error that sums over groups (Liang & Zeger 1986, Biometrika 73; Cameron & Miller 2015, J. Human
Resources 50), by a t-test with one degree of freedom less than there are groups in the slice, or outside where they are
fewer. A slice inside one group tells of that group alone: its interval draws rows, its p-value is 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse, stats

from pmray.errors import DataError
from pmray.scoring.intervals import Interval, bootstrap
from pmray.scoring.metrics import Metric, Outcomes
from pmray.scoring.paired import holm

LENGTH = "length"
"""Name of the slices by number of characters of the inputs."""
MIN_ROWS = 30
MAX_VALUES = 50
"""A column with more different values is cut into quarters when it holds numbers, and is no column to slice by else."""
MAX_WORDS = 2_000
"""Most frequent words that are looked at."""
SHOWN = 10
SAME = 0.9
"""Slices that share this part of their rows (intersection over union) are one finding, told once."""
WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True)
class Slice:
    """A model's score on some of the rows."""

    column: str
    """Column of the data, ``length``, or ``word``."""
    value: str
    rows: int
    score: Interval
    """The deciding metric. For metrics such as macro F1 it depends on which labels the slice has."""
    errors: Interval
    """Share of its rows that are wrong."""
    errors_elsewhere: float
    """Share of all other rows that are wrong."""
    p_value: float
    """Of the shares being equal, adjusted for all slices tested together."""


@dataclass(frozen=True)
class WorstSlices:
    """The outcome of a search."""

    tested: int
    """Slices looked at; what the p-values are adjusted for."""
    alpha: float
    significant: int
    """Slices with more errors than elsewhere at a false discovery rate of alpha, of those tested."""
    slices: tuple[Slice, ...]
    """The worst ones by p-value, significant or not, without those that are nearly the same rows."""


@dataclass(frozen=True)
class Part:
    """Rows with a name."""

    column: str
    value: str
    rows: NDArray[np.int64]
    """Positions, ascending."""


def slices_by(
    name: str,
    values: pa.ChunkedArray | NDArray[np.int64],
    right: NDArray[np.bool_],
    outcomes: Outcomes,
    metric: Metric,
    *,
    clusters: NDArray[np.int64] | None = None,
    min_rows: int = MIN_ROWS,
    draws: int = 1_000,
    level: float = 0.95,
) -> list[Slice]:
    """Score every value of a column; numbers of many values in quarters, rare values together as one slice.

    The p-values are those of Fisher's exact test of "in the slice" against "wrong" (of the t-test where there are
    groups), two-sided, with Holm's correction.

    Args:
        name: The column's name.
        values: Its values, (rows,).
        right: Whether each row's prediction is right, (rows,).
        outcomes: (rows, k).
        metric: The score.
        clusters: Group of each row, (rows,).
        min_rows: A smaller slice is put together with other small ones.
        draws: Bootstrap draws.
        level: Coverage of the intervals.

    Raises:
        DataError: The column cannot be sliced by, or no two slices have enough rows.
    """
    parts = _parts(name, values)
    if parts is None:
        raise DataError(
            f"column {name!r} is none to slice by: it holds lists, or text of more than {MAX_VALUES} different values; "
            "use numbers, or a column of fewer values"
        )
    small = [part for part in parts if len(part.rows) < min_rows]
    parts = [part for part in parts if len(part.rows) >= min_rows]
    if small:
        rest = np.sort(np.concatenate([part.rows for part in small]))
        if not parts or (len(parts) == 1 and len(rest) < min_rows):
            raise DataError(
                f"column {name!r}: too few rows to slice by: {len(right)} rows in {len(small) + len(parts)} values, of "
                f"which {len(parts)} have {min_rows} rows or more; use another column, more rows, or fewer rows a slice"
            )
        told = small[0].value if len(small) == 1 else f"({len(small)} values of fewer than {min_rows} rows)"
        parts.append(Part(name, told, rest))
    wrong = ~right
    test = _fisher if clusters is None else partial(_clustered, clusters=clusters, alternative="two-sided")
    adjusted = holm({place: test(wrong, part.rows) for place, part in enumerate(parts)})
    return [
        _scored(part, wrong, outcomes, metric, clusters, adjusted[place], level, draws)
        for place, part in enumerate(parts)
    ]


def worst_slices(
    columns: Mapping[str, pa.ChunkedArray],
    texts: Sequence[Sequence[str]],
    right: NDArray[np.bool_],
    outcomes: Outcomes,
    metric: Metric,
    *,
    clusters: NDArray[np.int64] | None = None,
    min_rows: int = MIN_ROWS,
    alpha: float = 0.05,
    shown: int = SHOWN,
    draws: int = 1_000,
) -> WorstSlices:
    """Find the slices with the most errors, looking at values of columns, lengths and words.

    A slice's p-value is the chance to have so many errors in so many rows drawn from all (hypergeometric, one-sided:
    Fisher's exact test); where there are groups, that of a one-sided t-test.

    Args:
        columns: Name -> values, (rows,); those of too many values, and lists, are left out.
        texts: The input texts of each row, for lengths and words; may be empty.
        right: Whether each row's prediction is right, (rows,).
        outcomes: (rows, k).
        metric: The score.
        clusters: Group of each row, (rows,).
        min_rows: Smaller slices, and those that leave fewer rows outside, are not looked at.
        alpha: False discovery rate.
        shown: At most so many slices are returned.
        draws: Bootstrap draws of their scores.

    Raises:
        DataError: There are too few rows.
    """
    total = len(right)
    if total < 2 * min_rows:
        raise DataError(
            f"a search for slices of {min_rows} rows needs {2 * min_rows} rows, but {total} were scored; "
            "give more rows, or ask for smaller slices"
        )
    wrong = ~right
    found = [part for part in _all_parts(columns, texts, min_rows) if min_rows <= len(part.rows) <= total - min_rows]
    if not found:
        return WorstSlices(0, alpha, 0, ())
    if clusters is None:
        sizes = np.array([len(part.rows) for part in found])
        errors = np.array([wrong[part.rows].sum() for part in found])
        p_values = stats.hypergeom.sf(errors - 1, total, int(wrong.sum()), sizes)
    else:
        p_values = np.array([_clustered(wrong, part.rows, clusters, alternative="greater") for part in found])
    adjusted = benjamini_hochberg(p_values)
    kept = _distinct_worst(found, p_values, total, shown)
    # Shown because they looked bad: at the plain level their intervals would miss too often.
    level = 1 - alpha * len(kept) / len(found)
    return WorstSlices(
        tested=len(found),
        alpha=alpha,
        significant=int((adjusted < alpha).sum()),
        slices=tuple(
            _scored(found[place], wrong, outcomes, metric, clusters, float(adjusted[place]), level, draws)
            for place in kept
        ),
    )


def benjamini_hochberg(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p-values for the false discovery rate (Benjamini & Hochberg 1995, JRSS B 57), shape (tests,).

    It holds for independent tests and for those that go the same way together, as slices that share rows do.

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.04, 0.04]
    """
    adjusted: NDArray[np.float64] = stats.false_discovery_control(p_values, method="bh")
    return adjusted


def lengths(texts: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Characters of each row's inputs together, shape (rows,)."""
    return np.array([sum(len(text) for text in row) for row in texts], dtype=np.int64)


def _all_parts(columns: Mapping[str, pa.ChunkedArray], texts: Sequence[Sequence[str]], min_rows: int) -> Iterator[Part]:
    for name, values in columns.items():
        yield from _parts(name, values) or ()
    if texts:
        yield from _parts(LENGTH, lengths(texts)) or ()
        yield from _words(texts, min_rows)


def _parts(name: str, values: pa.ChunkedArray | NDArray[np.int64]) -> list[Part] | None:
    """Cut rows by their value, or by quarters of it; None where a column cannot be cut."""
    if isinstance(values, np.ndarray):
        return _quarters(name, values.astype(np.float64), unit=" characters")
    kind = values.type
    if not _is_scalar(kind):
        return None
    codes = pc.dictionary_encode(values.combine_chunks(), null_encoding="encode")
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if len(codes.dictionary) > MAX_VALUES:
        return _quarters(name, values.cast(pa.float64()).to_numpy(), unit="") if numeric else None
    shown = ["(missing)" if value is None else str(value) for value in codes.dictionary.to_pylist()]
    numbers = codes.indices.to_numpy()
    parts = [Part(name, value, np.flatnonzero(numbers == code)) for code, value in enumerate(shown)]
    return sorted(parts, key=lambda part: -len(part.rows))


def _is_scalar(kind: pa.DataType) -> bool:
    kinds = (
        *(pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_date, pa.types.is_timestamp),
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    )
    return any(is_kind(kind) for is_kind in kinds)


def _quarters(name: str, values: NDArray[np.float64], unit: str) -> list[Part]:
    """Cut numbers at their quartiles; equal numbers stay together, missing ones are a slice of their own."""
    there = ~np.isnan(values)
    parts = [Part(name, "(missing)", np.flatnonzero(~there))] if not there.all() else []
    if not there.any():
        return parts
    # Existing values as bounds, so that the name says exactly which rows are meant.
    bounds = np.unique(np.quantile(values[there], [0.25, 0.5, 0.75, 1], method="lower"))
    quarter = np.searchsorted(bounds, values, side="left")
    for number in range(len(bounds)):
        rows = np.flatnonzero(there & (quarter == number))
        low, high = values[rows].min(), values[rows].max()
        span = f"{low:g} to {high:g}" if low < high else f"{low:g}"
        parts.append(Part(name, span + unit, rows))
    return parts


def _words(texts: Sequence[Sequence[str]], min_rows: int) -> Iterator[Part]:
    """Rows that have a word, for the most frequent words."""
    index: dict[str, int] = {}
    rows: list[int] = []
    columns: list[int] = []
    for row, parts in enumerate(texts):
        for word in {found.group().lower() for text in parts for found in WORD.finditer(text)}:
            rows.append(row)
            columns.append(index.setdefault(word, len(index)))
    if not index:
        return
    cells = (np.ones(len(rows), bool), (rows, columns))
    having = sparse.csc_array(cells, shape=(len(texts), len(index)))
    having.sort_indices()
    names, counts = list(index), np.diff(having.indptr)
    for column in np.argsort(-counts, kind="stable")[:MAX_WORDS]:
        if counts[column] >= min_rows:
            span = slice(having.indptr[column], having.indptr[column + 1])
            yield Part("word", names[column], having.indices[span].astype(np.int64))


def _distinct_worst(found: Sequence[Part], p_values: NDArray[np.float64], total: int, shown: int) -> list[int]:
    """Places of the smallest p-values, without slices of nearly the same rows as one before."""
    kept: list[int] = []
    masks: list[NDArray[np.bool_]] = []
    for place in np.argsort(p_values, kind="stable"):
        if len(kept) == shown:
            break
        mask = np.zeros(total, bool)
        mask[found[place].rows] = True
        if all((mask & other).sum() < SAME * (mask | other).sum() for other in masks):
            kept.append(int(place))
            masks.append(mask)
    return kept


def _scored(
    part: Part,
    wrong: NDArray[np.bool_],
    outcomes: Outcomes,
    metric: Metric,
    clusters: NDArray[np.int64] | None,
    p_value: float,
    level: float,
    draws: int,
) -> Slice:
    rows = part.rows
    # Of a slice inside one group only its rows can be drawn; it then tells of that group alone.
    mine = None if clusters is None or len(np.unique(clusters[rows])) == 1 else clusters[rows]
    inside, elsewhere = int(wrong[rows].sum()), len(wrong) - len(rows)
    if mine is None:
        share = stats.binomtest(inside, len(rows)).proportion_ci(level, method="exact")
        errors = Interval(inside / len(rows), float(share.low), float(share.high), level)
    else:
        errors = bootstrap(_share, wrong[rows, None].astype(np.int64), draws=draws, level=level, clusters=mine)
    return Slice(
        column=part.column,
        value=part.value,
        rows=len(rows),
        score=bootstrap(metric, outcomes[rows], draws=draws, level=level, clusters=mine),
        errors=errors,
        errors_elsewhere=(int(wrong.sum()) - inside) / elsewhere if elsewhere else 0.0,
        p_value=p_value,
    )


def _share(outcomes: Outcomes, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of ones, (draws,)."""
    shares: NDArray[np.float64] = weights @ outcomes[:, 0] / weights.sum(axis=1)
    return shares


def _clustered(
    wrong: NDArray[np.bool_],
    rows: NDArray[np.int64],
    clusters: NDArray[np.int64],
    *,
    alternative: Literal["two-sided", "greater"],
) -> float:
    """P-value of the share of errors being the same inside and outside, with a standard error that sums over groups.

    Shares have half an error and half a success added, so that the standard error is never 0.
    """
    inside = np.zeros(len(wrong), bool)
    inside[rows] = True
    groups = int(clusters.max()) + 1
    difference, sums, fewest = 0.0, np.zeros(groups), groups
    for side, sign in ((inside, 1), (~inside, -1)):
        share = (wrong[side].sum() + 0.5) / (side.sum() + 1)
        difference += sign * share
        sums += sign * np.bincount(clusters[side], wrong[side] - share, groups) / max(1, side.sum())
        fewest = min(fewest, len(np.unique(clusters[side])))
    if fewest < 2:
        return 1.0
    error = np.sqrt(groups / (groups - 1) * (sums**2).sum())
    one_sided = stats.t.sf(difference / error if alternative == "greater" else abs(difference) / error, fewest - 1)
    return float(one_sided if alternative == "greater" else 2 * one_sided)


def _fisher(wrong: NDArray[np.bool_], rows: NDArray[np.int64]) -> float:
    inside, every = int(wrong[rows].sum()), int(wrong.sum())
    table = [
        [inside, len(rows) - inside],
        [every - inside, len(wrong) - len(rows) - (every - inside)],
    ]
    return float(stats.fisher_exact(table).pvalue)
