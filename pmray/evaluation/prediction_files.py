"""Predictions that somebody wrote to a file, put in the order of the rows that they are predictions of."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.data.annotations import OUTSIDE, prefix_and_type, scheme_of
from pmray.data.columns import find_column, role_columns
from pmray.data.formats import Part
from pmray.data.labelled import LabelledRows
from pmray.data.sources import read_source
from pmray.errors import DataError, first_problems
from pmray.evaluation.foreign_models import UNNAMED, Classifier, as_in_data, data_with
from pmray.scoring.ragged import ragged
from pmray.tasks.text import TextClassification
from pmray.tasks.tokens import TokenClassification


@dataclass(frozen=True)
class Written:
    """What a file says of labelled rows, in their order."""

    task: Classifier
    said: NDArray[Any]
    """In the form of ``task.targets``."""
    scores: NDArray[Any] | None
    """Score vectors, shape (rows, labels); None where the file has predictions alone."""


def task_kind_of(columns: Iterable[str], mapping: Mapping[str, str]) -> type[Classifier]:
    """What rows with these columns are predicted: tags where there are words and no text, else labels.

    Args:
        columns: Of the data.
        mapping: Role -> column that the user names.
    """
    names = list(columns)
    if "words" in mapping:
        return TokenClassification
    has_text = "text" in mapping or find_column("text", names)
    return TokenClassification if find_column("words", names) and not has_text else TextClassification


def read_predictions(path: str, rows: LabelledRows, labels: Sequence[str] | None = None) -> Written:
    """Read predictions that somebody wrote, and put them in the order of the rows.

    Rows are found by a column ``row_id`` (as ``pmray evaluate --predictions`` writes it: ``<file>:<row>``); without
    one, the file has as many rows as the data, in its order. What is said is in a column ``prediction`` (for several
    labels a row, a list or ``a|b``), or in scores, the highest of which counts: one column for each label, called like
    the label or ``score: LABEL``; or a column ``scores`` with an object of label and score, or with a list in the order
    of `labels`. With both, ``prediction`` decides and the scores give calibration and confidence. For rows of words,
    ``prediction`` has a tag for each word, as a list or with spaces between them, in any scheme.

    Args:
        path: CSV, Parquet, or another kind that data may have.
        rows: What they are predictions of.
        labels: All labels (or tags) that may be said, in the order of score lists; by default those of the data.

    Raises:
        DataError: They cannot be read, are of other rows, lack some, have some twice, or say unknown labels.
    """
    parts = read_source(path, "predictions", drop=False)
    try:
        table = pa.concat_tables([part.table for part in parts], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{path}: its files have columns of different kinds ({error}); write them one way") from None
    order = _order(path, table, rows)
    if "words" in rows.table.column_names:
        return _tagged(path, parts, rows, order, labels)
    named = as_in_data(labels, rows.labels) if labels else rows.labels
    task = TextClassification.from_data(data_with(named), rows.table)
    names = {column.casefold().removeprefix("score:").strip(): column for column in table.column_names}
    columns = {label: names[label.casefold()] for label in task.labels if label.casefold() in names}
    scores = None
    if "scores" in table.column_names:
        scores = _vectors(path, table["scores"], task, labels is not None)
    elif len(columns) == len(task.labels):
        scores = np.stack([_numbers(path, table[columns[label]]) for label in task.labels], axis=1)
    if "prediction" in table.column_names:
        predictions = role_columns(parts, {"label": True}, {"label": "prediction"})["label"]
        said = _label_numbers(path, predictions.to_pylist(), task, labels)
    elif scores is not None:
        said = task.said(scores)
    else:
        lacking = f" (of {len(columns)} labels found, of {len(task.labels)} expected)" if columns else ""
        raise DataError(
            f"{path} has neither a column 'prediction' nor scores of all labels{lacking}; found: "
            f"{', '.join(first_problems([repr(name) for name in table.column_names]))}; expected 'prediction', "
            f"'scores', or one column for each of: {', '.join(task.labels)}"
        )
    ordered = None if scores is None else scores[order].astype(np.float32)
    return Written(task, said[order], ordered)


def _tagged(
    path: str, parts: Sequence[Part], rows: LabelledRows, order: NDArray[np.int64], labels: Sequence[str] | None
) -> Written:
    """Read a tag for each word."""
    known = scheme_of(set(labels or ()))
    told = [label if known == "IO" else label.partition("-")[2] for label in labels or () if label != OUTSIDE]
    types = sorted({tag[2:] for tag in rows.labels if tag != OUTSIDE} | set(told))
    task = TokenClassification.from_data(data_with(types), rows.table)
    written = role_columns(parts, {"label": True}, {"label": "prediction"})["label"].take(pa.array(order)).to_pylist()
    said = [value.split() if isinstance(value, str) else value or [] for value in written]
    scheme = scheme_of({tag for tags in said for tag in tags})
    numbers: dict[str, int] = {OUTSIDE: 0}
    problems = []
    for row, words, tags in zip(order, rows.table["words"].to_pylist(), said, strict=True):
        if len(tags) != len(words):
            problems.append(f"{path}, row {row + 1}: found {len(tags)} tags for {len(words)} words")
        for tag in tags:
            if tag not in numbers:
                parsed = prefix_and_type(tag, scheme)
                if parsed is None or parsed[1] not in types:
                    problems.append(f"{path}, row {row + 1}: prediction {tag!r} is no tag of the data")
                else:
                    numbers[tag] = 2 * types.index(parsed[1]) + (1 if parsed[0] in "BSU" else 2)
    if problems:
        hint = f"the types are {', '.join(types)}; one that the data happens to lack can be named by `--labels`"
        raise DataError([*first_problems(problems, 5), hint])
    return Written(task, ragged([np.array([numbers[tag] for tag in tags], np.int64) for tags in said]), None)


def _order(path: str, table: pa.Table, rows: LabelledRows) -> NDArray[np.int64]:
    """Position in the file of each row of the data, shape (rows,)."""
    wanted = rows.table["row_id"].to_pylist()
    if "row_id" not in table.column_names:
        if len(table) != len(wanted):
            raise DataError(
                f"{path} has {len(table)} predictions, but the data has {len(wanted)} rows; without a column 'row_id' "
                "there must be one for each row, in order"
            )
        _refuse_other_texts(path, table, rows)
        return np.arange(len(wanted))
    found = table["row_id"].cast(pa.string()).to_pylist()
    known = set(wanted)
    problems = {
        "has rows twice": [one for one, count in Counter(found).items() if count > 1],
        "predicts rows that the data does not have": [one for one in dict.fromkeys(found) if one not in known],
        "lacks rows": [one for one in wanted if one not in set(found)] if len(set(found) & known) < len(known) else [],
    }
    if told := [
        f"{path} {what}: {len(ids)}, such as {', '.join(repr(one) for one in ids[:3])}"
        for what, ids in problems.items()
        if ids
    ]:
        raise DataError(
            [
                *told,
                f"expected each of the {len(wanted)} rows once, from {wanted[0]!r} to {wanted[-1]!r}; repair the file, "
                "or leave out the column 'row_id' when it is in the order of the data",
            ]
        )
    place = {row_id: position for position, row_id in enumerate(found)}
    return np.array([place[row_id] for row_id in wanted], dtype=np.int64)


def _refuse_other_texts(path: str, table: pa.Table, rows: LabelledRows) -> None:
    """Where the file repeats the texts, they must be those of the data."""
    name = rows.names.get("text")
    if name is None or name not in table.column_names:
        return
    pairs = zip(table[name].to_pylist(), rows.table["text"].to_pylist(), strict=True)
    for number, (theirs, ours) in enumerate(pairs, start=1):
        if str(theirs) != ours:
            raise DataError(
                f"{path} predicts other rows: in row {number} its {name!r} is {str(theirs)[:60]!r}, but that of the "
                f"data is {str(ours)[:60]!r}; put it in the order of the data, or give it a column 'row_id'"
            )


def _label_numbers(path: str, values: Sequence[Any], task: TextClassification, given: Sequence[str] | None) -> Any:
    """Predicted labels in the form of ``task.targets``."""
    bits = np.zeros((len(values), len(task.labels)), dtype=np.int8)
    problems = []
    for row, value in enumerate(values):
        if task.multi_label:
            names = value.split("|") if isinstance(value, str) else value or []
        else:
            names = value if isinstance(value, list) else [value] if value is not None else []
            if len(names) != 1:
                problems.append(f"{path}, row {row + 1}: expected one label, found {names or 'none'}")
                continue
        for name in as_in_data([_named(one.strip(), given) for one in names], task.labels):
            if name in task.labels:
                bits[row, task.labels.index(name)] = 1
            else:
                problems.append(f"{path}, row {row + 1}: prediction {name!r} is no label of the data")
    if problems:
        hint = f"the labels are {', '.join(task.labels)}; one that the data happens to lack can be named by `--labels`"
        raise DataError([*first_problems(problems, 5), hint])
    return bits if task.multi_label else bits.argmax(1)


def _named(name: str, given: Sequence[str] | None) -> str:
    """What ``LABEL_1`` stands for."""
    number = int(name.removeprefix("LABEL_")) if given and UNNAMED.fullmatch(name) else -1
    return given[number] if given and 0 <= number < len(given) else name


def _vectors(path: str, column: pa.ChunkedArray, task: TextClassification, in_order: bool) -> NDArray[np.float64]:
    """Score vectors from objects or lists, shape (rows, labels)."""
    scores = np.zeros((len(column), len(task.labels)))
    for row, value in enumerate(column.to_pylist()):
        where = f"{path}, row {row + 1}: `scores`"
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise DataError(f"{where} is {value[:60]!r}, expected an object or list of numbers in JSON") from None
        if isinstance(value, Mapping):
            named = dict(zip(as_in_data(list(value), task.labels), value.values(), strict=True))
            if set(named) != set(task.labels):
                raise DataError(f"{where} has {', '.join(named)}; expected one of each of: {', '.join(task.labels)}")
            value = [named[label] for label in task.labels]
        elif not in_order:
            raise DataError(f"{where} is a list, whose order only `--labels` can tell, such as {','.join(task.labels)}")
        if not isinstance(value, list) or len(value) != len(task.labels):
            raise DataError(f"{where} is {str(value)[:60]}, expected {len(task.labels)} numbers")
        scores[row] = [_number(one, where) for one in value]
    return scores


def _numbers(path: str, column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.array([_number(value, f"{path}, row {row}: a score") for row, value in enumerate(column.to_pylist(), 1)])


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where} is {value!r}, expected a number")
    return number
