"""How to compute what is served: the fastest runtime and precision that leave the golden rows as they were."""

from __future__ import annotations

import copy
import logging
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
from pmray.data.encode import Encoded
from pmray.errors import EndpointError
from pmray.serving import onnx_runtime
from pmray.serving.scorer import Weights, golden_difference

Way = tuple[str, str]
"""Runtime (``torch``, ``onnx``) and precision."""

INT8 = "int8"
"""Linear layers with weights of eight bits, their inputs rounded as they come; the rest is fp32. CPU only."""

ROWS = 32
"""Rows of the batch that is timed."""

ROUNDS = 3

CLEARLY = 1.1
"""What another way than fp32 in torch must be faster by."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tried:
    """One way, measured."""

    runtime: str
    precision: str
    difference: float
    """Largest one of a score of the golden rows from what it was at export."""
    rows_per_second: float
    """Of a batch, the fastest of a few."""
    latency_ms: float
    """Of one row, the median of a few of all lengths."""

    @property
    def speed(self) -> float:
        """Rows per second, the geometric mean of many at a time and one at a time: an endpoint meets both."""
        return float(np.sqrt(self.rows_per_second * 1e3 / self.latency_ms))


@dataclass(frozen=True)
class Chosen:
    """A bundle's weights as they are served, and why."""

    weights: Weights
    best: Tried
    tried: Sequence[Tried]

    @property
    def precision(self) -> str:
        """Of the weights."""
        return self.best.precision

    @property
    def rows_per_second(self) -> float:
        """Of a batch, on this machine."""
        return self.best.rows_per_second

    def to_json(self) -> dict[str, Any]:
        """What was measured, as plain values."""
        return {
            "runtime": self.best.runtime,
            "precision": self.best.precision,
            "measured": [asdict(one) for one in self.tried],
        }


def choose(tried: Sequence[Tried], max_difference: float) -> Tried | None:
    """The fastest of those that differ little enough, or None; fp32 in torch when another is not clearly faster.

    >>> plain = Tried("torch", "fp32", 0.0, 70.0, 20.0)
    >>> choose([plain, Tried("torch", "bf16", 0.004, 140.0, 10.0)], 0.01).precision
    'bf16'
    >>> choose([plain, Tried("torch", "bf16", 0.02, 140.0, 10.0)], 0.01).precision
    'fp32'
    """
    good = [one for one in tried if one.difference <= max_difference]
    if not good:
        return None
    best = max(good, key=lambda one: one.speed)
    plain = next((one for one in good if (one.runtime, one.precision) == ("torch", "fp32")), best)
    return best if best.speed > CLEARLY * plain.speed else plain


def open_weights(bundle: Bundle, precision: str, max_difference: float, runtime: str = "auto") -> Chosen:
    """Open a bundle's weights in the runtime and precision that suit this machine, warm, with what was measured.

    Args:
        bundle: What to open.
        precision: ``auto``, ``fp32``, ``bf16`` or ``int8``.
        max_difference: Of a score of the golden rows from what it was at export.
        runtime: ``auto``, ``torch`` or ``onnx``; ``auto`` leaves ONNX Runtime out for models of over two gigabytes.

    Raises:
        EndpointError: The golden rows differ by more, whatever the way: the bundle is damaged. Or what is asked for is
            for CPUs and this node has a GPU, is not installed, or cannot carry this model out.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ways = _ways(runtime, precision, device)
    model, processor = bundle.open_model()
    if runtime == "auto" and onnx_runtime.is_large(model):
        ways = [way for way in ways if way[0] == "torch"]
    weights = Weights(bundle, model.to(device), int(getattr(processor, "pad_token_id", None) or 0))
    golden = bundle.golden()
    inputs = bundle.task.encode(golden, processor, bundle.max_length)
    models: dict[Way, nn.Module] = {way: _in_torch(model, way[1]) for way in ways if way[0] == "torch"}
    if len(models) < len(ways):
        try:
            made = onnx_runtime.converted(bundle, model, _example(weights, inputs))
            models |= {way: made[way[1]] for way in ways if way[0] == "onnx"}
        except EndpointError as error:
            if not models:
                raise
            log.warning("%s", error)
    tried = {}
    for way, weights.model in models.items():
        tried[way] = _tried(weights, way, inputs, golden)
    best = choose(list(tried.values()), max_difference)
    if best is None:
        told = ", ".join(f"{one.difference:.3f} in {one.precision} ({one.runtime})" for one in tried.values())
        raise EndpointError(
            f"golden rows of {bundle.folder} differ by up to {told} from what they were at export; {max_difference:g} "
            "is allowed (serve.max_difference)"
        )
    weights.model = models[best.runtime, best.precision]
    return Chosen(weights, best, list(tried.values()))


def _ways(runtime: str, precision: str, device: torch.device) -> list[Way]:
    """What to try, of what is asked for."""
    if device.type != "cpu" and precision == INT8:
        raise EndpointError("serve.precision: int8 is for CPUs, and this node has a GPU; use bf16 or auto")
    if runtime == "onnx":
        if device.type != "cpu":
            raise EndpointError("serve.runtime: onnx is for CPUs, and this node has a GPU; use torch or auto")
        if missing := onnx_runtime.missing():
            raise EndpointError(f"serve.runtime: onnx needs {', '.join(missing)}: pip install 'pmray[onnx]'")
    in_torch = _worth_trying(device) if precision == "auto" else [precision]
    in_onnx = [one for one in onnx_runtime.FILES if precision in ("auto", one)]
    if device.type != "cpu" or onnx_runtime.missing():
        in_onnx = []
    ways = [("torch", one) for one in in_torch] + [("onnx", one) for one in in_onnx]
    return [way for way in ways if runtime in ("auto", way[0])]


def _tried(weights: Weights, way: Way, inputs: pa.Table, golden: pa.Table) -> Tried:
    difference = golden_difference(weights.scores(inputs), golden)
    if isinstance(difference, str):
        raise EndpointError(f"{weights.bundle.folder}: {difference}")
    batch = inputs.take(np.arange(ROWS) % len(inputs))
    together = [_seconds(weights, batch) for _ in range(ROUNDS)]
    alone = [_seconds(weights, inputs.slice(row, 1)) for row in range(len(inputs))]
    return Tried(*way, difference, ROWS / min(together), 1e3 * float(np.median(alone)))


def _seconds(weights: Weights, inputs: pa.Table) -> float:
    started = time.perf_counter()
    weights.scores(inputs)
    return time.perf_counter() - started


def _example(weights: Weights, inputs: pa.Table) -> dict[str, torch.Tensor]:
    """A batch of two rows, one of them padded where lengths differ."""
    lengths = inputs["length"].to_numpy()
    rows = Encoded(inputs, lengths, weights.pad).rows(np.array([lengths.argmax(), lengths.argmin()]))
    return weights.task.collate(rows, weights.pad)


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


def _in_torch(model: nn.Module, kind: str) -> nn.Module:
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
