"""Which columns a task uses: found by role, and written one way in all files."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmray.data.formats import Part, json_kind
from pmray.errors import DataError, first_problems, nearest

COMMON_NAMES = {
    "text": ("sentence", "sentence1", "review", "content", "message", "question", "premise", "tweet", "body", "title"),
    "text_pair": ("sentence2", "question2", "hypothesis", "passage", "context"),
    "words": ("tokens", "word_list"),
    "image": ("img", "picture", "photo", "image_path", "file_name", "filename", "path", "file"),
    "label": ("class", "category", "target", "sentiment", "topic", "intent", "y", "tags", "ner_tag_names", "ner_tags"),
    "group": ("user", "author", "speaker", "patient", "document"),
}
"""Names that other data sets use for a role; proposed where a column is missing."""


def find_column(role: str, names: Iterable[str]) -> str | None:
    """The column that a role means where a spec names none: of its own name, else of a name that others use for it.

    >>> find_column("label", ["text", "labels"]), find_column("text", ["Review", "stars"]), find_column("group", [])
    ('labels', 'Review', None)
    """
    known = list(names)
    lower = {name.lower(): name for name in reversed(known)}
    wanted = (role, *(("labels",) if role == "label" else ()), *COMMON_NAMES.get(role, ()))
    return next((lower[name] for name in wanted if name in lower), None)


def role_columns(parts: Sequence[Part], roles: Mapping[str, bool], columns: Mapping[str, str]) -> pa.Table:
    """Keep ``row_id`` and the columns of the roles, named by role and written one way in all files."""
    tables, problems = [], []
    for part in parts:
        chosen = {"row_id": part.row_ids()}
        for role, required in roles.items():
            if required or role in columns:
                try:
                    chosen[role] = _role(part, role, columns.get(role), tagged="words" in roles)
                except DataError as error:
                    problems += error.problems
        tables.append(pa.table(chosen))
    if problems:
        raise DataError(first_problems(problems))
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"the files write a column in different ways ({error}); use one way") from None


def stacked(parts: Sequence[Part]) -> pa.Table:
    """All parts in one table, by column name; what is text in one file and a number in another becomes text."""
    names = list(dict.fromkeys(name for part in parts for name in part.table.column_names if name != "row_id"))
    if problems := [
        f"{part.name}: no column {name!r}, which other files of this source have; add it, or read the files apart"
        for part in parts
        for name in names
        if name not in part.table.column_names
    ]:
        raise DataError(first_problems(problems))
    tables = [part.table.select(names).append_column("row_id", part.row_ids()) for part in parts]
    for text in (False, True):
        for position, name in enumerate(names if text else ()):
            if len({table.schema.field(name).type for table in tables}) > 1:
                texts = [_as_text(table[name]) for table in tables]
                tables = [
                    table if column is None else table.set_column(position, name, column)
                    for table, column in zip(tables, texts, strict=True)
                ]
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            reason = error
    raise DataError(f"the files of this source have columns of different kinds ({reason}); write them one way")


def _role(part: Part, role: str, mapped: str | None, *, tagged: bool) -> pa.ChunkedArray:
    """Find the column of a role and convert it; labels of words may also be spans, which ``annotations`` reads."""
    found = part.table.column_names
    name = mapped or ("labels" if role == "label" and "label" not in found and "labels" in found else role)
    if name not in found:
        raise DataError(_no_column(part.name, name, role, found))
    column = part.table[name]
    values: pa.ChunkedArray | None = column
    if role in ("text", "text_pair"):
        values, wanted = None if pa.types.is_boolean(column.type) else _as_text(column), "text or numbers"
    elif role == "words":
        wanted = "texts, or lists of words"
        values = each_element(column, _as_text) if _is_list(column.type) else _as_text(column)
    elif role == "label" and tagged and _are_spans(column.type):
        wanted = ""
    elif role == "image":
        wanted, values = "encoded images (bytes), or their paths", _as_images(column, part.address)
    elif role in ("label", "group"):
        wanted = "text, numbers or truth values" + (", or lists of these" if role == "label" else "")
        values = _as_labels(column) if role == "label" or not _is_list(column.type) else None
    if values is None:
        raise DataError(
            f"{part.name}: column {name!r} ({role}) holds {_contents(column)}, expected {wanted}; map another column, "
            f"such as `data.columns: {{{role}: …}}`, or write the file again"
        )
    return values


def _no_column(file: str, name: str, role: str, found: Sequence[str]) -> str:
    lower = {column.lower(): column for column in found}
    known = (column for common in COMMON_NAMES.get(role, ()) for column in [lower.get(common)] if column)
    hint = nearest(name, found) or lower.get(name.lower()) or next(known, None)
    fix = f"`data.columns: {{{role}: {hint or 'its name'}}}`"
    listed = ", ".join(first_problems([*map(repr, found)])) or "none"
    return (
        f"{file}: no column {name!r} for {role}; found: {listed}; map it with {fix} (in CSV the first line names them)"
    )


def _contents(column: pa.ChunkedArray) -> str:
    """Say what a column holds, for people; of mixed columns, where the kinds change."""
    if column.type != pa.json_():
        return str(column.type)
    kinds = ((row, json_kind(json.loads(value.as_py()))) for row, value in enumerate(column, 1) if value.is_valid)
    row, first = next(kinds)
    other, second = next(((other, kind) for other, kind in kinds if kind != first), (row, "others"))
    return f"a mixture ({first} in row {row}, {second} in row {other})"


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Write scalars one way: 3 and 3.0 as ``3``, true as ``true``; None where the type is not scalar."""
    kind = column.type
    if pa.types.is_floating(kind):
        column = column.cast(pa.float32()) if pa.types.is_float16(kind) else column
        whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 1e15))
        digits = pc.if_else(whole, column, 0.0).cast(pa.int64()).cast(pa.string())
        written = pc.if_else(whole, digits, column.cast(pa.string()))
        return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.string()), written)
    simple = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
    if any(is_kind(kind) for is_kind in simple) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    return None


def _as_labels(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Write labels one way, alone or in lists; blank ones are null."""
    if _is_list(column.type):
        return each_element(column, _as_labels)
    texts = _as_text(column)
    if texts is None:
        return None
    stripped = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(stripped, ""), pa.scalar(None, pa.string()), stripped)


def _as_images(column: pa.ChunkedArray, address: str) -> pa.ChunkedArray | None:
    """Encoded bytes, or paths, where relative ones begin at the file that names them; None for anything else."""
    if pa.types.is_struct(column.type) and {field.name for field in column.type} >= {"bytes", "path"}:
        # As `datasets` writes images.
        inside = column.combine_chunks()
        column = pa.chunked_array([inside.field("bytes" if inside.field("bytes").null_count == 0 else "path")])
    if any(is_kind(column.type) for is_kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)):
        return column.cast(pa.binary())
    if not any(is_kind(column.type) for is_kind in (pa.types.is_string, pa.types.is_large_string)):
        return None
    folder = posixpath.dirname(address).removeprefix("file://")

    def located(path: str | None) -> str | None:
        whole = path is None or "://" in path or path.startswith(("/", "~"))
        return path if whole else posixpath.join(folder, str(path))

    return pa.chunked_array([pa.array([located(path) for path in column.to_pylist()], pa.string())])


def _are_spans(kind: pa.DataType) -> bool:
    return _is_list(kind) and pa.types.is_struct(kind.value_type)


def _is_list(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(is_kind(kind) for is_kind in kinds)


def each_element(
    column: pa.ChunkedArray, convert: Callable[[pa.ChunkedArray], pa.ChunkedArray | None]
) -> pa.ChunkedArray | None:
    """Convert the elements of lists; None where they cannot be converted."""
    lists = column.cast(pa.list_(column.type.value_type))
    elements = pc.list_flatten(lists)
    if _is_list(elements.type) or (values := convert(elements)) is None:
        return None
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    nulls = pa.array(lists.is_null().to_numpy())
    return pa.chunked_array([pa.ListArray.from_arrays(ends, flat, mask=nulls)])
