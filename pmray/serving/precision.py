"""Which weights to serve with: the fastest precision whose golden rows come out as they were at export."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic

from pmray.bundle import Bundle
from pmray.errors import EndpointError
from pmray.serving.scorer import Weights, golden_difference

INT8 = "int8"
"""Linear layers with weights of eight bits, their inputs rounded as they come; the rest is fp32. CPU only."""

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
        precision: ``auto``, ``fp32``, ``bf16`` or ``int8``.
        max_difference: Of a score of the golden rows from what it was at export.

    Raises:
        EndpointError: The golden rows differ by more, whatever the precision: the bundle is damaged. Or int8 is asked
            for on a GPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = bundle.open_model()
    weights = Weights(bundle, model.to(device), int(getattr(processor, "pad_token_id", None) or 0))
    golden = bundle.golden()
    inputs = bundle.task.encode(golden, processor, bundle.max_length)
    wanted = _worth_trying(device) if precision == "auto" else [precision]
    if wanted == [INT8] and device.type != "cpu":
        raise EndpointError("serve.precision: int8 is for CPUs, and this node has a GPU; use bf16 or auto")
    models = {kind: _converted(weights.model, kind) for kind in wanted}
    tried = []
    for kind, weights.model in models.items():
        tried.append(_tried(weights, kind, inputs, golden))
    chosen = choose(tried, max_difference)
    if chosen is None:
        told = ", ".join(f"{one.difference:.3f} in {one.precision}" for one in tried)
        raise EndpointError(
            f"golden rows of {bundle.folder} differ by up to {told} from what they were at export; {max_difference:g} "
            "is allowed (serve.max_difference)"
        )
    weights.model = models[chosen]
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


def _worth_trying(device: torch.device) -> list[str]:
    """Precisions that the hardware computes in; emulated, bf16 is slow, and not worth the time to find out."""
    if device.type == "cuda":
        return ["fp32", "bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["fp32"]
    found = torch.cpu.get_capabilities()
    kinds = ["fp32"]
    if found.get("amx_bf16") or found.get("avx512_bf16"):
        kinds.append("bf16")
    if found.get("amx_int8") or found.get("avx512_vnni"):
        kinds.append(INT8)
    return kinds


def _converted(model: nn.Module, kind: str) -> nn.Module:
    """A copy of a model in a precision; fp32 is the model itself."""
    if kind == "fp32":
        return model
    if kind == INT8:
        with warnings.catch_warnings():
            # torchao is to take its place, which is as fast only when compiled for every shape.
            warnings.simplefilter("ignore")
            quantized: nn.Module = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
        return quantized
    return copy.deepcopy(model).to(torch.bfloat16)
