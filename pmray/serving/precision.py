"""Which weights to serve with: the fastest precision whose golden rows come out as they were at export."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pmray.bundle import Bundle
from pmray.errors import EndpointError
from pmray.serving.scorer import Weights, golden_difference

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}

ROWS = 32
"""Rows of the batch that is timed."""

ROUNDS = 3


@dataclass(frozen=True)
class Tried:
    """One precision, measured."""

    precision: str
    difference: float
    """Largest one of a score of the golden rows from what it was at export."""
    rows_per_second: float
    """Of a batch, the fastest of a few."""


@dataclass(frozen=True)
class Chosen:
    """A bundle's weights in one precision, and why."""

    weights: Weights
    precision: str
    tried: Sequence[Tried]

    @property
    def rows_per_second(self) -> float:
        """Of a batch, on this machine."""
        return next(one.rows_per_second for one in self.tried if one.precision == self.precision)

    def to_json(self) -> dict[str, Any]:
        """What was measured, as plain values."""
        return {"precision": self.precision, "measured": [asdict(one) for one in self.tried]}


def choose(tried: Sequence[Tried], max_difference: float) -> str | None:
    """The fastest of those that differ little enough, or None; fp32 when another is not clearly faster.

    >>> choose([Tried("fp32", 0.0, 70.0), Tried("bf16", 0.004, 140.0)], 0.01)
    'bf16'
    >>> choose([Tried("fp32", 0.0, 70.0), Tried("bf16", 0.02, 140.0)], 0.01)
    'fp32'
    """
    good = [one for one in tried if one.difference <= max_difference]
    if not good:
        return None
    best = max(good, key=lambda one: one.rows_per_second)
    plain = next((one for one in good if one.precision == "fp32"), best)
    return best.precision if best.rows_per_second > 1.1 * plain.rows_per_second else plain.precision


def open_weights(bundle: Bundle, precision: str, max_difference: float) -> Chosen:
    """Open a bundle's weights in the precision that suits this machine, warm, with what was measured.

    Args:
        bundle: What to open.
        precision: ``auto`` or one of `KINDS`.
        max_difference: Of a score of the golden rows from what it was at export.

    Raises:
        EndpointError: The golden rows differ by more, whatever the precision: the bundle is damaged.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = bundle.open_model()
    weights = Weights(bundle, model.to(device), int(getattr(processor, "pad_token_id", None) or 0))
    golden = bundle.golden()
    inputs = bundle.task.encode(golden, processor, bundle.max_length)
    wanted = list(KINDS) if precision == "auto" and _has_bf16() else ["fp32" if precision == "auto" else precision]
    tried = []
    for kind in wanted:
        weights.model.to(KINDS[kind])
        tried.append(_tried(weights, kind, inputs, golden))
    chosen = choose(tried, max_difference)
    if chosen is None:
        told = ", ".join(f"{one.difference:.3f} in {one.precision}" for one in tried)
        raise EndpointError(
            f"golden rows of {bundle.folder} differ by up to {told} from what they were at export; {max_difference:g} "
            "is allowed (serve.max_difference)"
        )
    if KINDS[chosen] != next(weights.model.parameters()).dtype:
        # What went through bf16 has lost digits: read it again.
        weights.model = bundle.open_model()[0].to(device)
        weights.model.to(KINDS[chosen])
    return Chosen(weights, chosen, tried)


def _tried(weights: Weights, kind: str, inputs: pa.Table, golden: pa.Table) -> Tried:
    difference = golden_difference(weights.scores(inputs), golden)
    if isinstance(difference, str):
        raise EndpointError(f"{weights.bundle.folder}: {difference}")
    batch = inputs.take(np.arange(ROWS) % len(inputs))
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        weights.scores(batch)
        seconds.append(time.perf_counter() - started)
    return Tried(kind, difference, ROWS / min(seconds))


def _has_bf16() -> bool:
    """Whether the hardware computes in bf16; emulated, it is slow, and not worth the time to find out."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
