"""What an endpoint does with the rows of a request, once they are read from it. No Ray, no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pyarrow as pa

from pmray.data.labelled import LabelledRows
from pmray.errors import DataError
from pmray.evaluation.evaluate import Evaluation, evaluate_predicted
from pmray.evaluation.predictors import Predicted, known_rows
from pmray.scoring.ragged import stacked
from pmray.serving.batching import Batcher
from pmray.serving.recording import Prediction
from pmray.serving.scorer import Answer, Reader, Refused

INLINE_CHARACTERS = 20_000
"""Longer requests are read in a thread, so that the event loop goes on; a fast tokenizer reads this much in 5 ms."""

LABEL = "label"


@dataclass(frozen=True)
class Answered:
    """The answers to one request."""

    body: Mapping[str, Any]
    """As JSON."""
    predictions: list[Prediction]
    """Without the rows that were refused."""


class Service:
    """One version of one model: reads rows, asks the model in batches, writes answers."""

    def __init__(
        self,
        name: str,
        version: str,
        reader: Reader,
        batcher: Batcher,
        *,
        max_rows: int,
        serving: Mapping[str, Any] | None = None,
    ) -> None:
        """Make one.

        Args:
            name: Of the model, as it is served.
            version: In the registry, or ``-``.
            reader: Reads rows, writes answers.
            batcher: Asks the model.
            max_rows: Rows that are read at a time.
            serving: What was found out about the model on this machine, for ``/v1/model``.
        """
        self.serving = serving or {}
        self.name, self.version, self.reader, self.batcher, self.max_rows = name, version, reader, batcher, max_rows
        self.task, self.bundle = reader.task, reader.bundle

    async def predict(self, rows: Sequence[Any]) -> Answered:
        """Answer every row, in order.

        Raises:
            Busy: They would wait too long.
        """
        started = time.perf_counter()
        answers = await self._answers(rows)
        latency_ms = 1000 * (time.perf_counter() - started)
        ids = [uuid4().hex for _ in answers]
        now = time.time()
        body = [
            {"id": id_, **(one.values if isinstance(one, Answer) else {"error": one.error})}
            for id_, one in zip(ids, answers, strict=True)
        ]
        predictions = [
            Prediction(id_, now, self.name, self.version, one.values, one.scores, row, one.length, latency_ms)
            for id_, one, row in zip(ids, answers, rows, strict=True)
            if isinstance(one, Answer)
        ]
        return Answered({"model": {"name": self.name, "version": self.version}, "predictions": body}, predictions)

    async def evaluate(
        self, rows: Sequence[Any], *, by: Sequence[str] = (), slices: Literal["auto"] | None = None
    ) -> Evaluation:
        """Score the model on labelled rows; equal to ``pmray evaluate``.

        Args:
            rows: Objects with the task's fields, ``label``, and any others to slice by.
            by: Fields whose values are scored one by one.
            slices: ``auto`` looks for the slices with the most errors.

        Raises:
            DataError: A label is missing or unknown (the message names the row), or no row can be answered.
            Busy: They would wait too long.
        """
        for position, row in enumerate(rows):
            self._check_label(row, position)
        labels = [_texts(row[LABEL]) for row in rows]
        inputs = [{key: value for key, value in row.items() if key != LABEL} for row in rows]
        table = pa.table({"row_id": [str(position) for position in range(len(rows))], LABEL: labels})
        columns = _columns(inputs)
        roles = [
            role for role in self.task.inputs if role in columns.column_names and pa.types.is_string(columns[role].type)
        ]
        for role in roles:
            table = table.append_column(role, columns[role])
        return await self._evaluated(LabelledRows(table, columns, {role: role for role in roles}), inputs, by, slices)

    async def evaluate_file(
        self,
        file: Path,
        columns: Mapping[str, str],
        *,
        by: Sequence[str] = (),
        slices: Literal["auto"] | None = None,
    ) -> Evaluation:
        """Score the model on the rows of a file, as ``evaluate`` does; `columns` are role -> column name.

        Raises:
            DataError: The file cannot be read, or has labels that the model does not know.
            Busy: They would wait too long.
        """
        trained = self.bundle.settings.get("columns", {})
        rows = await asyncio.to_thread(known_rows, str(file), self.task, trained, columns)
        inputs = rows.table.select([name for name in rows.table.column_names if name not in ("row_id", LABEL)])
        sent = await asyncio.to_thread(lambda: [self.task.sent(row) for row in inputs.to_pylist()])
        return await self._evaluated(rows, sent, by, slices)

    async def _evaluated(
        self, rows: LabelledRows, inputs: Sequence[Any], by: Sequence[str], slices: Literal["auto"] | None
    ) -> Evaluation:
        answers: list[Answer | Refused] = []
        # A part at a time: what waits for the model is bounded, and others take turns with it.
        for start in range(0, len(inputs), self.max_rows):
            answers += await self._answers(inputs[start : start + self.max_rows], patient=start > 0)
        row_ids = rows.table["row_id"].to_pylist()
        good = [isinstance(one, Answer) for one in answers]
        refused = [
            {"row_id": row_id, "error": one.error}
            for row_id, one in zip(row_ids, answers, strict=True)
            if isinstance(one, Refused)
        ]
        if not any(good):
            raise DataError(f"no row could be answered; row {refused[0]['row_id']}: {refused[0]['error']}")
        answered = rows.taken(pa.array(good))
        scores = stacked([one.scores for one in answers if isinstance(one, Answer)])
        for row_id, label, row in zip(
            answered.table["row_id"].to_pylist(), answered.table[LABEL].to_pylist(), scores, strict=True
        ):
            if row.ndim > 1 and len(row) != len(label):
                raise DataError(f"row {row_id}: {len(label)} labels, but it has {len(row)} words")
        metric = str(self.bundle.settings["metric"])
        said = self.task.said(scores)
        predicted = Predicted(self.bundle.name, self.task, metric, answered, said, scores, refused, None)
        return await asyncio.to_thread(evaluate_predicted, predicted, by=by, slices=slices)

    async def _answers(self, rows: Sequence[Any], *, patient: bool = False) -> list[Answer | Refused]:
        if sum(map(_size, rows)) <= INLINE_CHARACTERS:
            read = self.reader.read(rows)
        else:
            read = await asyncio.to_thread(self.reader.read, rows)
        return self.reader.answers(read, await self.batcher.scores(read.inputs, patient=patient))

    def _check_label(self, row: Any, position: int) -> None:
        """Refuse a row without a label, or with one that the model does not know."""
        if not isinstance(row, Mapping):
            raise DataError(f"rows.{position}: a labelled row must be an object, but is {type(row).__name__}")
        value = row.get(LABEL)
        several = getattr(self.task, "multi_label", isinstance(value, list))
        if value is not None and isinstance(value, list) != several:
            wanted = "an array of labels" if several else "one label"
            raise DataError(f"rows.{position}.label: {wanted} is expected")
        labels = value if isinstance(value, list) else [value]
        unknown = [one for one in labels if not isinstance(one, str | int) or str(one) not in self.task.labels]
        if value is None or unknown:
            found = (
                "is missing"
                if value is None
                else f"{str(unknown[0])[:80]!r} is not one of: {', '.join(self.task.labels)}"
            )
            raise DataError(f"rows.{position}.label: {found}")


def _columns(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The fields that rows can be sliced by: one kind of value each, and nothing nested."""
    found = {}
    for name in sorted({key for row in rows for key in row} - {"row_id"}):
        # Fields of mixed kinds and numbers beyond 64 bits are for the task to refuse, row by row.
        with suppress(pa.ArrowException, OverflowError):
            column = pa.array([row.get(name) for row in rows])
            if not pa.types.is_nested(column.type) and not pa.types.is_null(column.type):
                found[name] = column
    return pa.table(found) if found else pa.table({"row_id": [""] * len(rows)}).select([])


def _texts(label: Any) -> Any:
    return [str(one) for one in label] if isinstance(label, list) else str(label)


def _size(row: Any) -> int:
    """About the number of characters of a row."""
    if not isinstance(row, Mapping):
        return 0
    return sum(
        len(value) if isinstance(value, str) else 8 * len(value) if isinstance(value, list) else 0
        for value in row.values()
    )
