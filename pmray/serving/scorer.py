"""Rows in, answers out; a bad row gets its own error, never its neighbours'. No Ray, no HTTP.

A ``Reader`` turns rows into model inputs and scores into answers; ``Weights`` turn model inputs into scores. An
endpoint keeps them in two processes, a ``Scorer`` is both in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pmray.bundle import GOLDEN_TOLERANCE, Bundle
from pmray.data.encode import Encoded, encode_table
from pmray.scoring.ragged import flat
from pmray.training.prediction import predict
from pmray.training.trial import score_vectors


@dataclass(frozen=True)
class Answer:
    """What the model says of a row."""

    values: Mapping[str, Any]
    """``task.answer``: the label or labels, and every label's probability."""
    scores: NDArray[Any]
    """Score vector, shape (labels,), or one for each part of the row, shape (parts, labels)."""
    length: int = 0
    """Tokens (or pixels / 256) that the model read."""


@dataclass(frozen=True)
class Refused:
    """Why a row has no answer."""

    error: str


@dataclass(frozen=True)
class Read:
    """Rows of a request, ready for the model."""

    problems: Sequence[str | None]
    """For each row, why it cannot be answered, or None."""
    rows: Sequence[Mapping[str, Any]]
    """Those without a problem."""
    inputs: pa.Table
    """Model inputs of ``rows``, with their ``length``."""


class Reader:
    """What a bundle needs to read rows and to write answers: its task and its tokenizer or other processor."""

    def __init__(self, bundle: Bundle, processor: Any, *, max_characters: int | None = None) -> None:
        self.bundle, self.task, self.processor = bundle, bundle.task, processor
        self.max_characters = max_characters
        self.pad = int(getattr(processor, "pad_token_id", None) or 0)

    def problem(self, row: Any) -> str | None:
        """Say why a row cannot be answered, or None."""
        if not isinstance(row, Mapping):
            return f"a row must be an object with {_named(self.task.inputs)}, but is {_kind(row)}"
        if self.max_characters is not None:
            for role in self.task.inputs:
                size = _characters(row.get(role))
                # Images are bounded by the body and, decoded, by their pixels.
                if size > self.max_characters and self.task.reader == "tokenizer":
                    return f"`{role}` has {size} characters; this endpoint reads {self.max_characters} of a row"
        return self.task.problem(row)

    def read(self, rows: Sequence[Any]) -> Read:
        """Check rows and turn the good ones into model inputs."""
        problems = [self.problem(row) for row in rows]
        good = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
        table = self.task.rows(good)
        return Read(problems, good, self.task.encode(table, self.processor, self.bundle.max_length))

    def answers(self, read: Read, scores: NDArray[Any]) -> list[Answer | Refused]:
        """Answer every row that was read, in order."""
        lengths = read.inputs["length"].to_pylist()
        good = iter(zip(read.rows, scores, lengths, strict=True))
        answers: list[Answer | Refused] = []
        for problem in read.problems:
            if problem is not None:
                answers.append(Refused(problem))
            else:
                row, score, length = next(good)
                answers.append(Answer(self.task.answer(score, row), score, length))
        return answers


class Weights:
    """A bundle's model on a device, in one precision."""

    def __init__(self, bundle: Bundle, model: torch.nn.Module, pad: int) -> None:
        self.bundle, self.task, self.model, self.pad = bundle, bundle.task, model, pad

    def scores(self, inputs: pa.Table) -> NDArray[Any]:
        """Score vectors of model inputs, shape (rows, labels) or ragged, in their order."""
        if not len(inputs):
            return np.zeros((0, len(self.task.labels)), np.float32)
        return predict(self.model, self.task, Encoded(inputs, inputs["length"].to_numpy(), self.pad))


class Scorer:
    """A bundle, ready to answer in this process."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.task = bundle.task
        self.model, self.processor = bundle.open_model()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)
        self.reader = Reader(bundle, self.processor)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[Answer | Refused]:
        """Answer every row, in order."""
        read = self.reader.read(rows)
        return self.reader.answers(read, self._scores(read.inputs))

    def scores(self, table: pa.Table) -> NDArray[Any]:
        """Score vectors of rows that are all good, shape (rows, labels) or ragged, in their order."""
        parts = [self._scores(self._encoded(part)) for part in _slices(table)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.task.labels)), np.float32)

    def health(self) -> str | None:
        """Run the golden rows; None when all is as it was at export, else what differs."""
        golden = self.bundle.golden()
        return golden_problem(self.scores(golden), golden)

    def _encoded(self, table: pa.Table) -> pa.Table:
        return encode_table(self.task, table, self.processor, self.bundle.max_length).table

    def _scores(self, inputs: pa.Table) -> NDArray[Any]:
        # Not in the constructor: `predictors` puts another model in place.
        return Weights(self.bundle, self.model, self.reader.pad).scores(inputs)


def golden_problem(found: NDArray[Any], golden: pa.Table, tolerance: float = GOLDEN_TOLERANCE) -> str | None:
    """What differs between scores of golden rows and those at export, or None."""
    difference = golden_difference(found, golden)
    if isinstance(difference, str):
        return difference
    if not difference <= tolerance:
        return f"golden rows differ by up to {difference:.3f} from what they were at export"
    return None


def golden_difference(found: NDArray[Any], golden: pa.Table) -> float | str:
    """Largest difference of a score of the golden rows from that at export; or how the shapes differ."""
    scores, expected = flat(found), flat(score_vectors(golden["scores"]))
    if scores.shape != expected.shape:
        return f"golden rows give scores of shape {scores.shape}, but {expected.shape} is expected"
    return float(np.abs(scores - expected).max())


def _slices(table: pa.Table, rows: int = 4096) -> Iterator[pa.Table]:
    """Parts of a table, so that memory is bounded by the part."""
    for start in range(0, len(table), rows):
        yield table.slice(start, rows)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return sum(len(one) for one in value if isinstance(one, str)) if isinstance(value, list) else 0


def _named(roles: Sequence[str]) -> str:
    return " and ".join(f"`{role}`" for role in roles)


def _kind(value: Any) -> str:
    """What JSON calls a value.

    >>> _kind(None), _kind([1]), _kind("a"), _kind(1.5)
    ('null', 'an array', 'text', 'a number')
    """
    kinds = {type(None): "null", bool: "true or false", str: "text", list: "an array", dict: "an object"}
    return kinds.get(type(value), "a number")
