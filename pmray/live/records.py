"""What the live store keeps: predictions, the labels that arrive for them, decisions, health checks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What an id may be; uuid4 in hex is what pmray gives."""

WORD_BUCKETS = 60
"""Words are told apart by so many buckets: a set of them fits into the 63 bits of a database's integer."""

WORDS = 32
"""Words of a row that are looked at: of more, every bucket would hold one."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one version said about one row."""

    id: str
    """Of the row; champion and challenger share it, and so does the label."""
    time: float
    """When the row came, seconds since 1970."""
    name: str
    version: str
    prediction: Any
    """Label, labels or tags, as plain values."""
    scores: NDArray[Any] | None
    """Score vector, shape (labels,), or one for each part of the row, (parts, labels)."""
    input_hash: str
    """See `hash_of`."""
    length: int
    """What the model read: tokens, or pixels / 256."""
    served: bool = True
    """Whether this was the reply; a challenger's shadow prediction was not."""
    words: int | None = None
    """See `words_of`."""
    latency_ms: float | None = None
    """How long the model took for the row's batch."""
    inputs: Mapping[str, Any] | None = None
    """The row itself, redacted, where keeping it was asked for."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """A label for a row that was predicted."""

    id: str
    label: Any
    """As in labelled data: a text, or a list of texts."""
    time: float
    """When the label was given, which decides between contradictory ones; the time of arrival unless it is told."""


Outcome = Literal["stored", "duplicate", "changed", "older"]


@dataclass(frozen=True, slots=True)
class Received:
    """What became of a label."""

    id: str
    outcome: Outcome
    """``duplicate`` is the label that the row has; ``changed`` replaced another; ``older`` contradicts a newer one."""
    matched: bool
    """Whether a prediction of that id is in the store; False may only mean that it is still on its way."""


@dataclass(frozen=True, slots=True)
class Label:
    """The label of a row that counts."""

    label: str
    """JSON."""
    time: float
    received: float
    changes: int
    """How often it was replaced by a different one."""


@dataclass(frozen=True)
class Check:
    """One look at a served version."""

    name: str
    version: str
    time: float
    problem: str | None
    """None where the golden rows gave what they should."""


@dataclass(frozen=True)
class Record:
    """A decision about champion and challenger, with its numbers."""

    name: str
    kind: str
    """``promote``, ``reject``, ``keep``, ``roll back``; see ``pmray.live.promotion``."""
    time: float
    champion: str | None
    """Version before the decision."""
    challenger: str | None
    reasons: Sequence[str]
    numbers: Mapping[str, Any] = field(default_factory=dict)


def settle(
    known: Mapping[str, Label], arrived: Sequence[Feedback], now: float
) -> tuple[list[Outcome], dict[str, Label], list[Feedback]]:
    """Decide what arriving labels change.

    A label that a row already has changes nothing, so a client may send it again. Of different labels the one with the
    later time counts, of equal times the one that arrived last. So a late retry does not undo a correction.

    Args:
        known: Id -> the label that counts so far.
        arrived: In the order of arrival; an id may come several times.
        now: Time of arrival.

    Returns:
        What became of each; the labels to write, by id; and the different ones for the history.

    >>> first, late = Feedback("a", "spam", 5.0), Feedback("a", "ham", 3.0)
    >>> settle({}, [first, first, late], now=9.0)[0]
    ['stored', 'duplicate', 'older']
    """
    current, outcomes, written, history = dict(known), [], {}, []
    for one in arrived:
        text = as_json(one.label)
        before = current.get(one.id)
        outcome: Outcome
        if before is None:
            outcome, label = "stored", Label(text, one.time, now, 0)
        elif text == before.label:
            # The same again, later: a contradiction from in between is older than this.
            outcome, label = "duplicate", Label(text, max(one.time, before.time), before.received, before.changes)
        elif one.time < before.time:
            outcome, label = "older", before
        else:
            outcome, label = "changed", Label(text, one.time, now, before.changes + 1)
        if outcome != "duplicate":
            history.append(one)
        if label != before:
            current[one.id] = written[one.id] = label
        outcomes.append(outcome)
    return outcomes, written, history


def as_json(value: Any) -> str:
    """Plain values as text in one spelling, ASCII only: no database minds a lone surrogate or a NUL in it."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, default=_plain)


def hash_of(row: Mapping[str, Any]) -> str:
    """Sixteen hex digits of SHA-256 of a row's fields: tells equal rows; a guess at a row can be confirmed by it."""
    return sha256(as_json(row).encode()).hexdigest()[:16]


def words_of(texts: Iterable[str]) -> int:
    """The buckets that the first words of some texts fall into, as the bits of one number of 60 bits.

    What is kept says whether the vocabulary of many rows has changed, and next to nothing about a single one.

    >>> words_of(["Good phone"]) == words_of(["good", "PHONE"])
    True
    """
    bits = 0
    words = (word for text in texts for word in text.lower().split())
    for _, word in zip(range(WORDS), words, strict=False):
        bits |= 1 << crc32(word.encode("utf-8", "surrogatepass")) % WORD_BUCKETS
    return bits


def texts_in(row: Mapping[str, Any], roles: Iterable[str]) -> list[str]:
    """The texts of a row that was sent: of some fields those that are texts, or lists of words; never images."""
    found: list[str] = []
    for role in roles:
        value = row.get(role)
        if isinstance(value, str) and role != "image":
            found.append(value)
        elif isinstance(value, list):
            found += [one for one in value if isinstance(one, str)]
    return found


def said_in(answer: Mapping[str, Any]) -> Any:
    """What an answer of ``task.answer`` says in the form of a label: a label, labels, or tags; else all of it.

    >>> said_in({"label": "spam", "scores": {"spam": 0.9, "ham": 0.1}})
    'spam'
    """
    return next((answer[key] for key in ("label", "labels", "tags") if key in answer), dict(answer))


def pack(scores: NDArray[Any] | None) -> bytes | None:
    """Scores as bytes: how many parts (0 for a vector) as uint32, then float32, all little-endian."""
    if scores is None:
        return None
    parts = np.array([scores.shape[0] if scores.ndim > 1 else 0], "<u4")
    return parts.tobytes() + np.ascontiguousarray(scores, "<f4").tobytes()


def unpack(packed: bytes | None, labels: int) -> NDArray[np.float32] | None:
    """What `pack` wrote: shape (labels,) or (parts, labels); None without scores, or where they are of other labels."""
    if packed is None:
        return None
    parts, values = int(np.frombuffer(packed[:4], "<u4")[0]), np.frombuffer(packed[4:], "<f4").astype(np.float32)
    if len(values) != labels * max(1, parts):
        return None
    return values.reshape(parts, labels) if parts else values


def _plain(value: object) -> object:
    return float(value) if hasattr(value, "__float__") else str(value)
