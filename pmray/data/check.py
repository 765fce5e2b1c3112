"""What can be wrong with labelled rows of any kind; everything found is reported, nothing is dropped in silence.

* usable_rows     rows without an input or a label, or with a label that is not listed
* readable_images images that cannot be decoded
* drop_leaks      the same input in two splits
* known_labels    labels that train never shows
* check_train     too few rows or labels; the same input twice, or with two labels
* check_splits    empty splits; one group in two splits

What columns and labels look like as a whole is in ``pmray.data.distributions``, rows that are almost equal in
``pmray.data.duplicates``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmray.data.documents import NOT_INPUTS, documents, input_keys
from pmray.data.images import each, problem_of

MIN_ROWS = 10
"""Training rows below which nothing is worth fitting."""

NAMED = 5
"""Row ids that a finding names."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """Something the data check found."""

    severity: str
    """``error`` (stops the run), ``warning`` or ``info``."""
    check: str
    """Which check found it, such as ``empty text``."""
    message: str
    """What was found and what pmray does about it."""
    count: int = 1
    """Rows concerned."""
    examples: tuple[str, ...] = ()
    """Row ids of the first few rows concerned (``file:row``, the first data row is 1)."""


def usable_rows(
    table: pa.Table, split: str, *, labels: Sequence[str] | None, drop: bool
) -> tuple[pa.Table, list[Finding]]:
    """Leave out rows that cannot be used: an empty input, no label, a label that is not one of `labels`.

    Args:
        table: Rows of one split.
        split: Its name in messages.
        labels: The labels that the spec lists; None when it lists none.
        drop: Report such rows as dropped (a warning) instead of as errors.

    Returns:
        The usable rows, and what was found.
    """
    findings, keep = [], np.ones(len(table), dtype=bool)
    for role in table.column_names:
        if role not in NOT_INPUTS:
            bad = _blank(table[role])
            findings += _row_finding(f"empty {role}", f"have no {role}", table, bad, split, drop)
            keep &= ~bad
    if "label" in table.column_names:
        bad = _unlabelled(table["label"])
        findings += _row_finding("no label", "have no label", table, bad, split, drop)
        keep &= ~bad
        if labels is not None:
            found, bad = _unlisted(table, labels, split, f"data.labels ({listed(labels)})", drop)
            findings += found
            keep &= ~bad
    return table.filter(pa.array(keep)), findings


def readable_images(table: pa.Table, split: str, *, drop: bool) -> tuple[pa.Table, list[Finding]]:
    """Decode every image once, and leave out rows whose image cannot be read.

    Args:
        table: Rows of one split with a column ``image`` (encoded bytes, or paths).
        split: Its name in messages.
        drop: Report such rows as dropped (a warning) instead of as errors.

    Returns:
        The readable rows, and what was found.
    """
    problems = each(table["image"].to_pylist(), problem_of)
    bad = np.array([one is not None for one in problems], dtype=bool)
    found = _row_finding(
        "unreadable image", "have an image that cannot be read", table, bad, split, drop, "repair them"
    )
    reasons = [
        f"  {row_id}: {problem}"
        for row_id, problem in zip(table["row_id"].to_pylist(), problems, strict=True)
        if problem is not None
    ]
    found = [replace(one, message="\n".join([one.message, *reasons[:NAMED]])) for one in found]
    return table.filter(pa.array(~bad)), found


def known_labels(splits: Mapping[str, pa.Table], *, drop: bool) -> tuple[dict[str, pa.Table], list[Finding]]:
    """Leave out rows of validation and test whose label train never shows; for specs that list no labels."""
    seen, findings = _labels(splits["train"]), []
    kept = dict(splits)
    for split in [name for name in ("validation", "test") if name in splits]:
        found, bad = _unlisted(kept[split], seen, split, f"the labels of train ({listed(seen)})", drop)
        findings += found
        kept[split] = kept[split].filter(pa.array(~bad))
    return kept, findings


def drop_leaks(splits: Mapping[str, pa.Table]) -> tuple[dict[str, pa.Table], list[Finding]]:
    """Drop inputs that are in two splits: test keeps them, validation loses to test, train loses to both.

    A finding's ``count`` and ``examples`` are those of the split that keeps them.
    """
    kept, findings = dict(splits), []
    for loser, winner in (("validation", "test"), ("train", "test"), ("train", "validation")):
        if loser not in kept or winner not in kept:
            continue
        ours, theirs = input_keys(kept[winner]), input_keys(kept[loser])
        if ours is None or theirs is None:
            continue
        leaked, lost = is_in(ours, theirs), is_in(theirs, ours)
        if not leaked.any():
            continue
        ids = example_ids(kept[winner], leaked)
        message = (
            f"{winner}: {counted(leaked.sum())} also found in {loser}{named(ids, leaked.sum())}; "
            f"dropped {lost.sum()} from {loser}"
        )
        findings.append(Finding("warning", f"{winner} rows in {loser}", message, int(leaked.sum()), ids))
        kept[loser] = kept[loser].filter(pa.array(~lost))
    return kept, findings


def check_train(train: pa.Table, labels: Sequence[str] | None) -> list[Finding]:
    """Say what makes training rows hard to learn from."""
    findings = []
    if len(train) < MIN_ROWS:
        message = f"train: {counted(len(train))} left, at least {MIN_ROWS} are needed; add rows"
        findings.append(Finding("error", "too few rows", message, len(train)))
    if "label" in train.column_names:
        findings += _check_labels(train, labels)
    return findings + _check_repeats(train)


def check_splits(splits: Mapping[str, pa.Table]) -> list[Finding]:
    """Say which splits are empty, and which groups are in two of them."""
    findings = []
    for split in ("validation", "test"):
        if split in splits and not len(splits[split]):
            message = f"{split}: no rows left; give more rows, or a fraction such as `data.{split}: 0.2`"
            findings.append(Finding("error", "empty split", message, 0))
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if any(name not in splits or "group" not in splits[name].column_names for name in (first, second)):
            continue
        shared = is_in(splits[second]["group"], splits[first]["group"])
        if shared.any():
            groups = pc.count_distinct(splits[second]["group"].filter(pa.array(shared))).as_py()
            ids = example_ids(splits[second], shared)
            message = (
                f"{second}: {counted(shared.sum())}{named(ids, shared.sum())} belong to {groups} groups that are also "
                f"in {first}; kept, but scores will look better than on new groups"
            )
            findings.append(Finding("warning", "group in two splits", message, int(shared.sum()), ids))
    return findings


def _check_labels(train: pa.Table, labels: Sequence[str] | None) -> list[Finding]:
    findings = []
    several = pa.types.is_list(train["label"].type)
    counts = label_counts(train)
    if len(train) and len(counts) < (1 if several else 2):
        found = f"only the label {next(iter(counts))!r}" if counts else "no label at all"
        message = f"train: {found} found; at least two are needed, so check `data.columns` and the label column"
        findings.append(Finding("error", "single label", message, len(train)))
    if rare := sorted(label for label, count in counts.items() if count < 2):
        message = f"train: only one row each has the label {listed(rare)}; kept, but such labels cannot be learned"
        findings.append(Finding("warning", "rare label", message, len(rare)))
    if absent := [label for label in labels or () if label not in counts]:
        message = f"train: no row has the label {listed(absent)} of data.labels; it will never be predicted"
        findings.append(Finding("warning", "absent label", message, len(absent)))
    return findings


def _check_repeats(train: pa.Table) -> list[Finding]:
    """Find inputs that are there twice, and those that have different labels (after normalising text)."""
    keys = input_keys(train)
    if keys is None or not len(train):
        return []
    findings = []
    together = _together(keys)
    if together:
        again = sorted(position for positions in together for position in positions[1:])
        ids = tuple(train["row_id"].take(again[:NAMED]).to_pylist())
        message = f"train: {counted(len(again))} repeat an earlier row{named(ids, len(again))}; kept"
        findings.append(Finding("info", "repeated row", message, len(again), ids))
    if "label" not in train.column_names:
        return findings
    texts = documents(train)
    same = together if texts is None else _together(texts)
    members = sorted(position for positions in same for position in positions)
    found = train["label"].take(pa.array(members, pa.int64())).to_pylist()
    labels = {
        position: _comparable(one, ordered="words" in train.column_names)
        for position, one in zip(members, found, strict=True)
    }
    differing = (positions for positions in same if len({labels[position] for position in positions}) > 1)
    if torn := sorted(position for positions in differing for position in positions):
        ids = tuple(train["row_id"].take(torn[:NAMED]).to_pylist())
        message = (
            f"train: {counted(len(torn))} have the same input (but for case, space and punctuation) and different "
            f"labels{named(ids, len(torn))}; kept"
        )
        findings.append(Finding("warning", "contradictory labels", message, len(torn), ids))
    return findings


def _comparable(label: Any, *, ordered: bool) -> Any:
    """A label, labels in any order, or tags in theirs, as something that can be compared."""
    if not isinstance(label, list):
        return label
    return tuple(label) if ordered else tuple(sorted(set(label)))


def _together(keys: pa.ChunkedArray) -> list[list[int]]:
    """Positions of rows with equal keys, for the keys that several rows have."""
    coded = keys.combine_chunks().dictionary_encode().indices.to_numpy()
    repeated = np.flatnonzero(np.bincount(coded)[coded] > 1)
    # Only the repeated rows are walked through in Python; they are few.
    positions = defaultdict(list)
    for position, key in zip(repeated.tolist(), coded[repeated].tolist(), strict=True):
        positions[key].append(position)
    return list(positions.values())


def _row_finding(
    check: str, what: str, table: pa.Table, bad: Mask, split: str, drop: bool, fix: str = "fill them in"
) -> list[Finding]:
    count = int(bad.sum())
    if not count:
        return []
    ids = example_ids(table, bad)
    what = what.replace("have ", "has ", 1) if count == 1 else what
    done = "dropped" if drop else f"{fix}, or set `data.bad_rows: drop`"
    message = f"{split}: {counted(count)} {what}{named(ids, count)}; {done}"
    return [Finding("warning" if drop else "error", check, message, count, ids)]


def _unlisted(table: pa.Table, known: Iterable[str], split: str, place: str, drop: bool) -> tuple[list[Finding], Mask]:
    """Find rows with a label that is not known."""
    values, parents = flat_labels(table)
    strange = ~is_in(values, pa.chunked_array([pa.array(list(known), pa.string())])) & values.is_valid().to_numpy()
    bad = np.zeros(len(table), dtype=bool)
    bad[parents[strange]] = True
    names = sorted(values.filter(pa.array(strange)).unique().to_pylist())
    what = f"have a label that is not one of {place}: {listed(names)}"
    return _row_finding("unknown label", what, table, bad, split, drop, "correct them"), bad


def _labels(table: pa.Table) -> list[str]:
    return sorted(flat_labels(table)[0].drop_null().unique().to_pylist())


def label_counts(table: pa.Table) -> Counter[str]:
    """Rows (of lists: mentions) of each label."""
    counts = pc.value_counts(flat_labels(table)[0].combine_chunks())
    return Counter(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))


def flat_labels(table: pa.Table) -> tuple[pa.ChunkedArray, NDArray[np.int64]]:
    """All labels one after the other, and the row each belongs to; of tagged words, the type of each marked span."""
    values, parents = _elements(table["label"])
    if "words" not in table.column_names:
        return values, parents
    begins = pc.fill_null(pc.starts_with(values, "B-"), False)
    return pc.utf8_slice_codeunits(values.filter(begins), 2), parents[begins.to_numpy()]


def _elements(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, NDArray[np.int64]]:
    if not pa.types.is_list(column.type):
        return column, np.arange(len(column))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return pc.list_flatten(column), np.repeat(np.arange(len(column)), lengths)


def _unlabelled(column: pa.ChunkedArray) -> Mask:
    """Rows without a label. An empty list is a label: none of them applies."""
    missing: Mask = column.is_null().to_numpy().copy()
    values, parents = _elements(column)
    missing[parents[values.is_null().to_numpy()]] = True
    return missing


def _blank(column: pa.ChunkedArray) -> Mask:
    if pa.types.is_string(column.type):
        empty = pc.equal(pc.utf8_trim_whitespace(column), "")
    elif pa.types.is_list(column.type):
        empty = pc.equal(pc.list_value_length(column), 0)
    else:
        empty = column.is_null()
    blank: Mask = pc.fill_null(empty, True).to_numpy()
    return blank


def is_in(values: pa.ChunkedArray, others: pa.ChunkedArray) -> Mask:
    """Which of these values are also among the others; null is in nothing."""
    found: Mask = pc.is_in(values, value_set=others.drop_null().unique()).to_numpy()
    return found


def example_ids(table: pa.Table, rows: Mask) -> tuple[str, ...]:
    """Ids of the first few rows of a mask."""
    return tuple(table["row_id"].take(np.flatnonzero(rows)[:NAMED]).to_pylist())


def named(ids: Sequence[str], count: int) -> str:
    """The ids in brackets, with a sign that there are more."""
    return f" ({', '.join(ids)}{', …' if count > len(ids) else ''})"


def counted(rows: int) -> str:
    """A number of rows in words."""
    return "1 row" if rows == 1 else f"{rows} rows"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(map(repr, names[:10]))
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown
