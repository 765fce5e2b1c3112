"""Rows as documents: what is equal, byte by byte or after normalising case, space and punctuation."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pmray.data.images import content_keys

NOT_INPUTS = ("row_id", "label", "group")
"""Columns that are no input of a model."""


def input_keys(table: pa.Table) -> pa.ChunkedArray | None:
    """One text for each row that is equal where all inputs are; None where an input is not text or numbers."""
    parts = []
    for role in table.column_names:
        if role in NOT_INPUTS:
            continue
        if role == "image":
            parts.append(pc.fill_null(content_keys(table[role]), ""))
            continue
        column = _joined(table[role], "\x1f")
        kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            column = column.cast(pa.string())
        if not pa.types.is_string(column.type):
            return None
        parts.append(pc.fill_null(column, ""))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "\x1e")


def documents(table: pa.Table) -> pa.ChunkedArray | None:
    """The inputs of each row in one normalised text, a pair as one document; None where an input is not text.

    Words are separated by single spaces; the texts of a pair by a sign that is in no text.
    """
    columns = [_joined(table[role], " ") for role in table.column_names if role not in NOT_INPUTS]
    if "image" in table.column_names or not columns or not all(pa.types.is_string(column.type) for column in columns):
        return None
    parts = [normalised(column) for column in columns]
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, " \x1e ")


def normalised(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lower case, compatible characters as one (NFKC), and one space for all that is no letter, mark or digit.

    A text without letters and digits (``:-)``) stays as it is: signs are all that it says.

    >>> normalised(pa.chunked_array([["  Don't STOP!", ":-)", None]])).to_pylist()
    ['don t stop', ':-)', '']
    """
    texts = pc.utf8_trim_whitespace(pc.fill_null(column, ""))
    plain = pc.utf8_lower(pc.utf8_normalize(texts, "NFKC"))
    words = pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, r"[^\p{L}\p{N}\p{M}]+", " "))
    return pc.if_else(pc.equal(words, ""), texts, words)


def _joined(column: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    """Lists of texts (words of a sentence) as one text each; other columns as they are."""
    if pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
        return pc.binary_join(column, separator)
    return column
