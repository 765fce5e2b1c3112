"""What live traffic is compared with: the model's answers to validation rows, or to the first live ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.bundle import Bundle
from pmray.live.drift import Profile
from pmray.live.records import as_json, pack, said_in, texts_in, words_of
from pmray.live.score import profile
from pmray.live.store import Answered, Store
from pmray.tasks.base import Task

FIRST_ROWS = 500
"""Of a bundle without a reference, so many first live predictions become one."""


@dataclass(frozen=True)
class Reference:
    """Answers from a time when all was well."""

    profile: Profile
    origin: str
    """``validation``, or ``first live rows``."""
    until: float = 0.0
    """Live rows from here on may be compared with it, seconds since 1970."""


def reference_table(
    task: Task, rows: Sequence[Mapping[str, Any]], scores: NDArray[Any], lengths: NDArray[Any]
) -> pa.Table:
    """What a bundle keeps of validation rows: no text, only what ``pmray.live`` keeps of live ones.

    Args:
        task: Makes answers of scores.
        rows: As they would be sent.
        scores: Their score vectors, (rows, labels) or ragged.
        lengths: Tokens, pixels or samples, (rows,).
    """
    texts = [texts_in(row, task.inputs) for row in rows]
    return pa.table(
        {
            "length": pa.array(lengths, pa.int64()),
            "words": pa.array([words_of(some) if some else None for some in texts], pa.int64()),
            "prediction": [as_json(said_in(task.answer(score, row))) for row, score in zip(rows, scores, strict=True)],
            "scores": pa.array([pack(score) for score in scores], pa.binary()),
        }
    )


def reference_of(bundle: Bundle, store: Store, name: str, version: str) -> Reference | None:
    """The bundle's reference, or the first live rows of this version; None while there are too few."""
    table = bundle.reference()
    if table is not None:
        rows = [
            Answered("", version, 0.0, False, json.loads(row["prediction"]), row["scores"], row["length"], row["words"])
            for row in table.to_pylist()
        ]
        return Reference(profile(bundle.task, rows), "validation")
    first = store.first(name, version, FIRST_ROWS)
    if len(first) < FIRST_ROWS:
        return None
    return Reference(profile(bundle.task, first), "first live rows", float(np.nextafter(first[-1].time, np.inf)))
