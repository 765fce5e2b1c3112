"""Rows in, answers out; a bad row gets its own error, never its neighbours'. No Ray, no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pmray.bundle import GOLDEN_TOLERANCE, Bundle
from pmray.data.encode import encode_table
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


@dataclass(frozen=True)
class Refused:
    """Why a row has no answer."""

    error: str


class Scorer:
    """A bundle, ready to answer."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.task = bundle.task
        self.model, self.processor = bundle.open_model()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[Answer | Refused]:
        """Answer every row, in order."""
        problems = [self.task.problem(row) for row in rows]
        good = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
        scores = iter(self.scores(self.task.rows(good)))
        answers: list[Answer | Refused] = []
        for row, problem in zip(rows, problems, strict=True):
            if problem is not None:
                answers.append(Refused(problem))
            else:
                score = next(scores)
                answers.append(Answer(self.task.answer(score, row), score))
        return answers

    def scores(self, table: pa.Table) -> NDArray[Any]:
        """Score vectors of rows that are all good, shape (rows, labels) or ragged, in their order."""
        parts = [self._scores(part) for part in _slices(table)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.task.labels)), np.float32)

    def _scores(self, table: pa.Table) -> NDArray[Any]:
        rows = encode_table(self.task, table, self.processor, self.bundle.max_length)
        return predict(self.model, self.task, rows)

    def health(self) -> str | None:
        """Run the golden rows; None when all is as it was at export, else what differs."""
        golden = self.bundle.golden()
        found, expected = flat(self.scores(golden)), flat(score_vectors(golden["scores"]))
        if found.shape != expected.shape:
            return f"golden rows give scores of shape {found.shape}, but {expected.shape} is expected"
        worst = float(np.abs(found - expected).max())
        if not worst <= GOLDEN_TOLERANCE:
            return f"golden rows differ by up to {worst:.3f} from what they were at export"
        return None


def _slices(table: pa.Table, rows: int = 4096) -> Iterator[pa.Table]:
    """Parts of a table, so that memory is bounded by the part."""
    for start in range(0, len(table), rows):
        yield table.slice(start, rows)
