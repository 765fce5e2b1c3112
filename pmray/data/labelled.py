"""Labelled rows for an evaluation: the columns of the task, and all others to slice by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pmray.data.annotations import annotate
from pmray.data.columns import role_columns, stacked
from pmray.data.sources import read_source
from pmray.errors import DataError, first_problems, nearest
from pmray.spec import Source

INPUTS = ("text", "text_pair", "words")
"""Roles that hold what a person can read."""


@dataclass(frozen=True)
class LabelledRows:
    """Rows to score a model on; both tables are in the same order."""

    table: pa.Table
    """``row_id`` (``<file>:<row>``) and the columns of the roles, named by role, labels as text or lists of text."""
    columns: pa.Table
    """Every column that all files have, as it is."""
    names: Mapping[str, str]
    """Role -> the column that it was read from."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def multi_label(self) -> bool:
        """Whether the label column holds lists."""
        kind = self.table["label"].type
        return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))

    @property
    def labels(self) -> tuple[str, ...]:
        """The different labels, sorted."""
        column = self.table["label"].combine_chunks()
        return tuple(sorted(set((column.flatten() if self.multi_label else column).to_pylist()) - {None}))

    def taken(self, kept: pa.Array) -> LabelledRows:
        """Only the rows where `kept`, bool (rows,), is true."""
        return replace(self, table=self.table.filter(kept), columns=self.columns.filter(kept))

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of the data.

        Raises:
            DataError: There is none of that name in every file.
        """
        if name not in self.columns.column_names:
            hint = nearest(name, self.columns.column_names)
            listed = ", ".join(first_problems([repr(one) for one in self.columns.column_names]))
            proposal = f"; did you mean {hint!r}?" if hint else ""
            raise DataError(f"the data has no column {name!r} (in all its files); found: {listed}{proposal}")
        return self.columns[name]


def read_labelled(
    source: Source, roles: Mapping[str, bool], columns: Mapping[str, str], *, optional: Mapping[str, str] | None = None
) -> LabelledRows:
    """Read labelled rows.

    Args:
        source: As in a spec.
        roles: Role -> whether it is required; one that is not is used when `columns` names it.
        columns: Role -> column name; a role left out means a column of that name.
        optional: Role -> column that is also used where every file has it.

    Raises:
        DataError: The source cannot be read, has no rows, or a column is missing.
    """
    parts = read_source(source, "test", drop=False)
    first = parts[0].table.column_names
    shared = [name for name in first if all(name in part.table.column_names for part in parts)]
    columns = {**{role: name for role, name in (optional or {}).items() if name in shared}, **columns}
    table = role_columns(parts, roles, columns)
    if "words" in roles:
        read, findings = annotate({"test": table}, drop=False)
        if errors := [finding.message for finding in findings if finding.severity == "error"]:
            raise DataError(errors)
        table = read["test"]
    if not len(table):
        raise DataError(f"{source} has no rows; give labelled rows")
    named = {role: columns.get(role, role) for role in table.column_names if role != "row_id"}
    every = stacked([replace(part, table=part.table.select(shared)) for part in parts])
    return LabelledRows(table, every.select([name for name in every.column_names if name != "row_id"]), named)


def inputs_of(table: pa.Table, positions: Sequence[int]) -> list[dict[str, str]]:
    """The readable inputs of some rows of a table whose columns are named by role: role -> text."""
    some = table.select([role for role in INPUTS if role in table.column_names])
    if not some.column_names:
        return [{} for _ in positions]
    taken = some.take(np.asarray(positions, dtype=np.int64)).to_pylist()
    return [{role: _as_text(value) for role, value in row.items()} for row in taken]


def texts_of(table: pa.Table) -> list[tuple[str, ...]]:
    """Input texts of each row; none where the data has none."""
    columns = [table[role].to_pylist() for role in INPUTS if role in table.column_names]
    return [tuple(_as_text(value) for value in row) for row in zip(*columns, strict=True)]


def _as_text(value: str | list[str] | None) -> str:
    """A text, or words with the white space after each, as one text."""
    return "".join(value).rstrip() if isinstance(value, list) else value or ""
