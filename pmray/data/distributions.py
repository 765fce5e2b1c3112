"""What columns, labels and texts look like as a whole, where that hints at a mistake; nothing is dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmray.data.check import MIN_ROWS, Finding, Mask, counted, example_ids, flat_labels, label_counts, listed, named
from pmray.data.documents import NOT_INPUTS, normalised
from pmray.data.formats import MIXTURE, Part

IMBALANCE, STRONG_IMBALANCE = 5, 50
"""Rows of the commonest label for one of the rarest, from which that is said, and from which it is a warning."""

HUGE = 100_000
"""Characters of a cell that no sentence or page has; about 20,000 words."""

SHIFT, SHIFT_P = 0.1, 0.001
"""Total variation distance of label shares between splits that is told, if chance gives it less often than this."""

ID_LIKE = r"^[\w.:/-]*\d[\w.:/-]*$"
"""One run of letters, signs and at least one digit, without a space."""

ID_SHARE = 0.95
"""Share of the values that must differ, and look so, for a column to be called id-like."""

DAMAGED = r"\x{FFFD}|[\x{C2}\x{C3}][\x{80}-\x{BF}]|\x{E2}\x{20AC}"
"""The replacement character, and UTF-8 that was read as Latin-1 or Windows-1252 (``Ã©``, ``â€™``)."""

CONTROL = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F]"


@dataclass(frozen=True)
class Column:
    """What a column holds."""

    name: str
    kind: str
    """Its Arrow type."""
    rows: int
    missing: int
    """Null, or a blank text."""
    distinct: int | None
    """Different values; None for types that cannot be compared, such as lists."""
    example: str
    """Its first value, shortened."""
    note: str = ""
    """``constant`` or ``id-like``, where it is that."""


def describe_columns(parts: Sequence[Part]) -> tuple[Column, ...]:
    """Describe all columns of a split, those that no role uses too; files that lack a column do not count for it."""
    names = dict.fromkeys(name for part in parts for name in part.table.column_names)
    return tuple(
        _described(name, [part.table[name] for part in parts if name in part.table.column_names]) for name in names
    )


def check_columns(columns: Sequence[Column], used: Mapping[str, str]) -> list[Finding]:
    """Say which columns of train are constant or id-like; `used` maps a column's name to its role."""
    findings = []
    for column in columns:
        if not column.note:
            continue
        role = used.get(column.name)
        if role == "group":
            continue
        done = f"used as {role}; check `data.columns`" if role else "not used"
        said = "holds one value only" if column.note == "constant" else "looks like an id"
        message = f"train: column {column.name!r} {said} (such as {column.example}); {done}"
        findings.append(Finding("warning" if role else "info", f"{column.note} column", message, column.rows))
    return findings


def check_kinds(parts: Sequence[Part], split: str, names: Sequence[str]) -> list[Finding]:
    """Say where values of several kinds stand in one column, of those columns that a role uses."""
    findings = []
    for part in parts:
        for field in part.table.schema:
            if field.name not in names or not field.metadata or MIXTURE not in field.metadata:
                continue
            found = json.loads(field.metadata[MIXTURE])
            ids = tuple(f"{part.name}:{row}" for row in found["rows"])
            common, *others = found["kinds"]
            message = (
                f"{split}: column {field.name!r} of {part.name} holds {common}, but {' and '.join(others)} in "
                f"{counted(found['count'])}{named(ids, found['count'])}; all read as text (3 as '3')"
            )
            findings.append(Finding("warning", "mixed types", message, found["count"], ids))
    return findings


def check_distributions(splits: Mapping[str, pa.Table]) -> list[Finding]:
    """Look at texts and labels as a whole: damaged characters, huge cells, constant inputs, imbalance, shares."""
    findings = [finding for split, table in splits.items() for finding in _check_texts(table, split)]
    if "label" in splits["train"].column_names:
        findings += _check_balance(splits["train"]) + _check_names(splits["train"])
        for split in ("validation", "test"):
            if split in splits and len(splits[split]) >= MIN_ROWS <= len(splits["train"]):
                findings += _check_shares(splits["train"], splits[split], split)
    return findings


def check_words(splits: Mapping[str, pa.Table]) -> list[Finding]:
    """Say how long texts are, in words; for data that is looked at without a tokenizer."""
    findings = []
    for role in _text_roles(splits["train"]):
        told, rows = [], 0
        for split, table in splits.items():
            words = pc.fill_null(pc.list_value_length(pc.utf8_split_whitespace(table[role])), 0).to_numpy()
            if len(words):
                told.append(f"{split} {spread(words)}")
                rows += len(words)
        message = f"words of {role}: {'; '.join(told)} (counted without a tokenizer, so no cut is known)"
        findings += [Finding("info", "length", message, rows)] if told else []
    return findings


def spread(lengths: np.ndarray[tuple[int], np.dtype[np.integer]]) -> str:
    """The middle and the long end of lengths, in words.

    >>> spread(np.arange(1, 101))
    '50 in the median, 95 at 95 %, at most 100'
    """
    middle, most = np.percentile(lengths, [50, 95], method="lower")
    return f"{middle} in the median, {most} at 95 %, at most {lengths.max()}"


def _described(name: str, chunks: Sequence[pa.ChunkedArray]) -> Column:
    kinds = {chunk.type for chunk in chunks}
    rows = sum(map(len, chunks))
    missing = sum(chunk.null_count for chunk in chunks)
    kind = " or ".join(map(str, kinds))
    values = (
        pa.chunked_array([one for chunk in chunks for one in chunk.chunks], chunks[0].type) if len(kinds) < 2 else None
    )
    first = next((value for chunk in chunks for value in chunk.slice(0, 100).to_pylist() if value is not None), None)
    example = _short(first)
    if values is None or pa.types.is_nested(values.type) or isinstance(values.type, pa.ExtensionType):
        return Column(name, kind, rows, missing, None, example)
    if pa.types.is_string(values.type):
        missing += pc.sum(pc.equal(pc.utf8_trim_whitespace(values), "")).as_py() or 0
    distinct = pc.count_distinct(values).as_py()
    return Column(name, kind, rows, missing, distinct, example, _note(values, distinct))


def _note(values: pa.ChunkedArray, distinct: int) -> str:
    present = len(values) - values.null_count
    if present >= MIN_ROWS and distinct == 1:
        return "constant"
    if present < MIN_ROWS or distinct < ID_SHARE * present:
        return ""
    if pa.types.is_integer(values.type):
        return "id-like"
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return "id-like" if pc.sum(pc.match_substring_regex(values, ID_LIKE)).as_py() >= ID_SHARE * present else ""
    return ""


def _check_texts(table: pa.Table, split: str) -> list[Finding]:
    findings = []
    for role in _text_roles(table):
        texts = table[role]
        huge = pc.greater(pc.utf8_length(texts), HUGE)
        findings += _of_rows(
            table, huge, "warning", "huge cell", split, f"have over {HUGE:,} characters in {role}",
            "kept, and cut to the model's length; is a quote missing in the file?",
        )  # fmt: skip
        findings += _of_rows(
            table, pc.match_substring_regex(texts, DAMAGED), "warning", "damaged characters", split,
            f"have signs of a wrong encoding in {role} (such as \\ufffd or Ã©)",
            "kept; write the file again from its source",
        )  # fmt: skip
        findings += _of_rows(
            table, pc.match_substring_regex(texts, CONTROL), "info", "control characters", split,
            f"have control characters in {role}", "kept; tokenizers drop or split at them",
        )  # fmt: skip
        if split == "train" and len(table) >= MIN_ROWS:
            distinct = pc.count_distinct(texts).as_py()
            note = _note(texts, distinct)
            if note:
                what = "is the same in all rows" if note == "constant" else "looks like an id, not like text"
                message = f"train: {role} {what} (such as {_short(texts[0].as_py())}); check `data.columns`"
                findings.append(Finding("warning", f"{note} {role}", message, len(table)))
    return findings


def _of_rows(
    table: pa.Table, found: pa.ChunkedArray, severity: str, check: str, split: str, what: str, done: str
) -> list[Finding]:
    mask: Mask = pc.fill_null(found, False).to_numpy()
    count = int(mask.sum())
    if not count:
        return []
    ids = example_ids(table, mask)
    what = what.replace("have ", "has ", 1) if count == 1 else what
    return [Finding(severity, check, f"{split}: {counted(count)} {what}{named(ids, count)}; {done}", count, ids)]


def _check_balance(train: pa.Table) -> list[Finding]:
    counts = label_counts(train)
    if len(counts) < 2:
        return []
    (common, most), (rare, fewest) = counts.most_common(1)[0], min(counts.items(), key=lambda one: (one[1], one[0]))
    if most < IMBALANCE * fewest:
        return []
    several = pa.types.is_list(train["label"].type)
    values, parents = flat_labels(train)
    mask = np.zeros(len(train), dtype=bool)
    mask[parents[pc.equal(values, rare).to_numpy()]] = True
    message = (
        f"train: {common!r} is in {most / len(train):.1%} of the rows, {rare!r} in {fewest / len(train):.1%}, "
        f"{most / fewest:.0f} to 1; kept, "
        + (
            "each label is scored by its own F1 too"
            if several
            else "macro F1 counts all labels alike, accuracy does not"
        )
    )
    severity = "warning" if most >= STRONG_IMBALANCE * fewest else "info"
    return [Finding(severity, "class imbalance", message, fewest, example_ids(train, mask))]


def _check_names(train: pa.Table) -> list[Finding]:
    """Labels that differ in case, space or punctuation only are usually one label, written in two ways."""
    counts = label_counts(train)
    names = sorted(counts)
    plain = normalised(pa.chunked_array([pa.array(names, pa.string())])).to_pylist()
    alike: dict[str, list[str]] = {}
    for name, form in zip(names, plain, strict=True):
        # Signs and marks are told apart: B-PER and I-PER, + and -, are two labels each.
        alike.setdefault(form.replace(" ", ""), []).append(name)
    findings = []
    for group in alike.values():
        if len(group) > 1:
            rare = min(group, key=lambda name: (counts[name], name))
            values, parents = flat_labels(train)
            mask = np.zeros(len(train), dtype=bool)
            mask[parents[pc.equal(values, rare).to_numpy()]] = True
            ids = example_ids(train, mask)
            message = (
                f"train: the labels {listed(group)} differ in case, space or signs only ({rare!r}: "
                f"{', '.join(ids)}); kept as {len(group)} labels"
            )
            findings.append(Finding("warning", "similar labels", message, counts[rare], ids))
    return findings


def _check_shares(train: pa.Table, table: pa.Table, split: str) -> list[Finding]:
    """Labels of train that another split never shows, and shares of labels that chance does not explain."""
    from scipy.stats import chi2_contingency

    ours, theirs = label_counts(train), label_counts(table)
    findings = []
    if absent := sorted(label for label in ours if label not in theirs):
        message = f"{split}: no row has the label {listed(absent)} of train; kept, but F1 of such a label says nothing"
        findings.append(Finding("warning", f"label not in {split}", message, len(absent)))
    names = sorted({*ours, *theirs})
    shown = np.array([[counts[name] for name in names] for counts in (ours, theirs)], dtype=float)
    if len(names) > 1 and shown.sum(1).all():
        shares = shown / shown.sum(1, keepdims=True)
        distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
        if distance >= SHIFT and chi2_contingency(shown).pvalue < SHIFT_P:
            most = int(np.abs(shares[0] - shares[1]).argmax())
            message = (
                f"{split}: labels have other shares than in train (total variation {distance:.2f}; {names[most]!r}: "
                f"{shares[1][most]:.1%} against {shares[0][most]:.1%}); kept, but validation and test should be like "
                "the rows to come"
            )
            findings.append(Finding("warning", "label shares differ", message, len(table)))
    return findings


def _text_roles(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name not in NOT_INPUTS and pa.types.is_string(table[name].type)]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
