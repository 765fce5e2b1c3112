"""Texts as words, and what is marked in them as one tag a word; however people write it down.

Words come as lists, or as texts that are cut into words; marks as tags in the schemes IO, BIO (IOB2), BIOES or BILOU,
or as character spans. What comes out is one form: a list of words and a list of as many BIO tags. A word keeps the
white space that follows it, so that the words put together are the text again, with all its character positions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pmray.data.check import NAMED, Finding, counted, named
from pmray.errors import DataError

OUTSIDE = "O"
"""The tag of words that belong to nothing."""

WORD = re.compile(r"(?:^\s+)?(?:\w+|[^\w\s])\s*")
"""A run of letters and digits, or one other sign, with the white space after it."""

PREFIXES = {"BIO": "BI", "BIOES": "BIES", "BILOU": "BILU"}
"""Scheme -> how its tags begin."""


def cut(text: str) -> list[str]:
    """Cut a text into words and signs, each with the white space after it.

    >>> cut("It's 5 p.m.")
    ['It', "'", 's ', '5 ', 'p', '.', 'm', '.']
    """
    return WORD.findall(text)


def spaced(words: Sequence[str], space_after: Sequence[bool] | None = None) -> list[str]:
    """Words of a list with a space after each, or after those of `space_after` (``SpaceAfter`` in CoNLL-U)."""
    spaces = space_after or [True] * len(words)
    return [f"{word.rstrip()}{' ' if space else ''}" for word, space in zip(words, spaces, strict=True)]


def annotate(tables: Mapping[str, pa.Table], *, drop: bool) -> tuple[dict[str, pa.Table], list[Finding]]:
    """Bring columns ``words`` and ``label`` into one form; rows in which they do not fit together are left out.

    Args:
        tables: Split -> rows with ``row_id``, ``words`` (texts or lists of words) and ``label`` (lists of tags; texts
            of tags between spaces; or lists of spans with ``start``, ``end`` and ``label``, also as JSON).
        drop: Report rows that cannot be used as dropped (a warning) instead of as errors.

    Returns:
        Split -> rows with lists of words and of BIO tags, and what was found.
    """
    read = {split: [_read(*row) for row in _rows(table)] for split, table in tables.items()}
    scheme = scheme_of(
        {tag for rows in read.values() for row in rows if isinstance(row, tuple) for tag in row[1] or ()}
    )
    made, findings = {}, []
    for split, rows in read.items():
        words: list[list[str] | None] = []
        tags: list[list[str] | None] = []
        problems: dict[int, str] = {}
        begun: list[int] = []
        for place, row in enumerate(rows):
            if not isinstance(row, tuple):
                problems[place] = row
                row = (None, None)
            elif row[1] is not None:
                try:
                    unified, repaired = as_bio(row[1], scheme)
                    row = (row[0], unified)
                    if repaired:
                        begun.append(place)
                except DataError as error:
                    problems[place] = str(error)
            words.append(row[0])
            tags.append(row[1])
        table = tables[split]
        for name, column in (("words", words), ("label", tags)):
            if name in table.column_names:
                index = table.column_names.index(name)
                table = table.set_column(index, name, pa.array(column, pa.list_(pa.string())))
        findings += _found(tables[split], split, problems, begun, drop)
        made[split] = table.filter(pa.array([place not in problems for place in range(len(table))], pa.bool_()))
    return made, findings


def as_bio(tags: Sequence[str], scheme: str) -> tuple[list[str], bool]:
    """Write a row's tags in BIO.

    Args:
        tags: As they are.
        scheme: IO, BIO, BIOES or BILOU.

    Returns:
        The tags, and whether something began with a tag that goes on or ends, which is read as a beginning.

    Raises:
        DataError: A tag does not belong to the scheme.

    >>> as_bio(["S-PER", "O", "B-LOC", "E-LOC"], "BIOES")
    (['B-PER', 'O', 'B-LOC', 'I-LOC'], False)
    >>> as_bio(["PER", "PER", "O", "LOC"], "IO")
    (['B-PER', 'I-PER', 'O', 'B-LOC'], False)
    >>> as_bio(["O", "I-PER", "I-PER"], "BIO")
    (['O', 'B-PER', 'I-PER'], True)
    """
    unified: list[str] = []
    repaired = False
    going_on: str | None = None
    for place, tag in enumerate(tags, 1):
        if tag == OUTSIDE:
            unified.append(tag)
            going_on = None
            continue
        parsed = prefix_and_type(tag, scheme)
        if parsed is None:
            raise DataError(f"tag {place} is {tag!r}, expected {OUTSIDE} or one of {scheme}, such as B-PER")
        prefix, kind = parsed
        begins = prefix in "BSU" or kind != going_on
        repaired |= begins and prefix not in "BSU" and scheme != "IO"
        unified.append(f"{'B' if begins else 'I'}-{kind}")
        going_on = None if prefix in "ELSU" else kind
    return unified, repaired


def prefix_and_type(tag: str, scheme: str) -> tuple[str, str] | None:
    """Take a tag other than O apart; in IO everything goes on. None for one that does not belong to the scheme.

    >>> prefix_and_type("S-PER", "BIOES"), prefix_and_type("PER", "IO"), prefix_and_type("PER", "BIO")
    (('S', 'PER'), ('I', 'PER'), None)
    """
    if scheme == "IO":
        return "I", tag
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if dash and kind and prefix in tuple(PREFIXES[scheme]) else None


def scheme_of(tags: set[str]) -> str:
    """The scheme that these tags are written in: IO, BIO, BIOES or BILOU."""
    inside = {tag for tag in tags if tag != OUTSIDE}
    dashed = {tag for tag in inside if tag[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") and tag[2:]}
    if not dashed:
        return "IO"
    prefixes = {tag[0] for tag in dashed}
    if prefixes & {"E", "S"}:
        return "BIOES"
    return "BILOU" if prefixes & {"L", "U"} else "BIO"


def _rows(table: pa.Table) -> list[tuple[Any, Any]]:
    words = table["words"].to_pylist()
    labels = table["label"].to_pylist() if "label" in table.column_names else [None] * len(words)
    return list(zip(words, labels, strict=True))


def _read(words: Any, label: Any) -> tuple[list[str] | None, list[str] | None] | str:
    """Words and tags of a row, None for what it lacks; or what is wrong with it."""
    if words is None or (isinstance(words, list) and any(word is None for word in words)):
        return (None, None) if words is None else "a word is missing (null); write an empty text, or take it out"
    if isinstance(label, str):
        try:
            label = json.loads(label) if label.lstrip().startswith("[") else label.split()
        except ValueError:
            return f"its label {label[:40]!r} is neither tags between spaces nor a list in JSON"
        if isinstance(words, str) and all(isinstance(one, str) for one in label):
            words = words.split()
    pieces = cut(words) if isinstance(words, str) else spaced(words)
    if label is None or not isinstance(label, list) or None in label:
        return pieces, None
    if label and isinstance(label[0], Mapping):
        return _tagged(pieces, label)
    if label == [] and isinstance(words, str):
        return pieces, [OUTSIDE] * len(pieces)
    if len(label) != len(pieces):
        return f"it has {len(pieces)} words, but {len(label)} tags"
    return pieces, [str(one) for one in label]


def _tagged(pieces: list[str], spans: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]] | str:
    """BIO tags of character spans; a span that begins or ends inside a word takes in the whole word."""
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces] if pieces else ends
    visible = starts + [len(piece.rstrip()) for piece in pieces] if pieces else ends
    size = int(ends[-1]) if len(ends) else 0
    tags = [OUTSIDE] * len(pieces)
    for span in spans:
        try:
            start, end, kind = int(span["start"]), int(span["end"]), str(span["label"])
        except (KeyError, TypeError, ValueError):
            return f"a span is {str(dict(span))[:60]}, expected start, end and label"
        if not 0 <= start < end <= size:
            return f"span {start}-{end} ({kind}) is not inside the text, which has {size} characters"
        inside = np.flatnonzero((starts < end) & (visible > start))
        if not len(inside):
            return f"span {start}-{end} ({kind}) holds no word"
        if any(tags[place] != OUTSIDE for place in inside):
            return f"span {start}-{end} ({kind}) overlaps another one; a word can have one tag"
        for place in inside:
            tags[place] = f"{'B' if place == inside[0] else 'I'}-{kind}"
    return pieces, tags


def _found(table: pa.Table, split: str, problems: Mapping[int, str], begun: Sequence[int], drop: bool) -> list[Finding]:
    findings = []
    ids = _ids_of(table)
    if problems:
        some = ids(list(problems))
        done = "dropped" if drop else "repair them, or set `data.bad_rows: drop`"
        lines = [f"  {row_id}: {problem}" for row_id, problem in zip(some, problems.values(), strict=False)]
        what = "words and tags of {} do not fit together{}; {}"
        message = f"{split}: {what.format(counted(len(problems)), named(some, len(problems)), done)}"
        message = "\n".join([message, *lines])
        findings.append(Finding("warning" if drop else "error", "tags", message, len(problems), some))
    if begun:
        some = ids(begun)
        message = (
            f"{split}: in {counted(len(begun))}{named(some, len(begun))} something begins with a tag that goes on, "
            "such as I- without B- before it; read as B-"
        )
        findings.append(Finding("warning", "tag sequence", message, len(begun), some))
    return findings


def _ids_of(table: pa.Table) -> Callable[[Sequence[int]], tuple[str, ...]]:
    return lambda places: tuple(table["row_id"].take(pa.array(list(places)[:NAMED], pa.int64())).to_pylist())
