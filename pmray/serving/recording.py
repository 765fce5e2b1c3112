"""What is told of every prediction to whoever keeps score; the endpoint itself keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """One answer that was given."""

    id: str
    """32 hex digits; feedback names it later."""
    time: float
    """Seconds since 1970, UTC."""
    model: str
    """Name of the model, as the endpoint serves it."""
    version: str
    """In the registry; ``-`` for a bundle that was given as a folder."""
    answer: Mapping[str, Any]
    """``task.answer``: label or labels and scores; tags and entities."""
    scores: NDArray[np.float32]
    """Score vector, shape (labels,), or one for each part of the row, shape (parts, labels)."""
    row: Mapping[str, Any]
    """As it was sent."""
    length: int
    """Tokens (or pixels / 256) that the model read."""
    latency_ms: float
    """From the request's rows to their answers, waiting included."""


class Recorder(Protocol):
    """Takes predictions after their reply was sent. Must return at once: it runs in the endpoint's event loop."""

    def record(self, predictions: list[Prediction]) -> None:
        """Take the answered rows of one request, in their order; refused rows are not among them."""
        ...

    async def close(self) -> None:
        """Write down what was taken; the endpoint ends."""
        ...
