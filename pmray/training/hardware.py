"""What this process runs on: its place among the workers, its device, its fastest precision, its memory."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pmray.errors import TrialError
from pmray.spec import Recipe


def place() -> tuple[int, int]:
    """Rank and number of workers of the process group; (0, 1) without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def device_here() -> torch.device:
    """This process's GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def on_device(
    made: Mapping[str, torch.Tensor], device: torch.device, floating: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """A batch on a device; numbers that are not whole in the precision of the weights."""
    return {name: value.to(device, floating if value.is_floating_point() else None) for name, value in made.items()}


def precision_of(recipe: Recipe, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp16``: what the recipe says, or what is fastest here.

    Raises:
        TrialError: fp16 is asked for on a CPU.
    """
    if recipe.precision == "fp16" and device.type == "cpu":
        raise TrialError("`precision: fp16` needs a GPU; use `auto`, which takes the fastest that keeps its range")
    return fastest_precision() if recipe.precision == "auto" else recipe.precision


@cache
def fastest_precision() -> str:
    """The fastest of bf16 and fp32 in matrix products of an encoder's shape; fp16 on GPUs that only emulate bf16.

    Hardware that emulates bf16 is not asked. One that has it is, since some has it and is slower with it; bf16 must win
    clearly, so that a busy moment does not change the choice.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")):
        return "fp32"
    seconds = {kind: min(_product_seconds(kind) for _ in range(5)) for kind in (torch.float32, torch.bfloat16)}
    return "bf16" if seconds[torch.bfloat16] < 0.9 * seconds[torch.float32] else "fp32"


def _product_seconds(kind: torch.dtype) -> float:
    a, b = torch.ones(768, 384, dtype=kind), torch.ones(384, 1536, dtype=kind)
    started = time.perf_counter()
    for _ in range(3):
        a @ b
    return time.perf_counter() - started


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Arithmetic of the forward pass of fp32 weights."""
    if precision == "fp32":
        return nullcontext()
    kind = torch.bfloat16 if precision == "bf16" else torch.float16
    # Weights change in every step: a cache of their casts would only hold memory.
    return torch.autocast(device.type, dtype=kind, cache_enabled=False)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's CPU allocator says so in a ``RuntimeError``."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def memory_told(model: nn.Module, device: torch.device) -> str:
    """What the weights and their training take, and what there is, in words."""
    weights = sum(one.numel() for one in model.parameters())
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    # fp32: the weights; of the trained ones their gradients and AdamW's two moments.
    need = (4 * weights + 12 * trained) / 2**30
    if device.type == "cuda":
        free, there = torch.cuda.mem_get_info(device)
        return f"{need:.1f} GiB for weights and optimizer, {there / 2**30:.1f} GiB there, {free / 2**30:.1f} GiB free"
    return f"{need:.1f} GiB for weights and optimizer, before activations"


def return_memory() -> None:
    """Give memory that nothing uses any more back to the system and to others on the GPU.

    A process that carries out one trial after the other would hold what the largest took, several times over: glibc
    keeps what is freed, torch keeps it on the GPU (tests/bench/RESULTS.md).
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
