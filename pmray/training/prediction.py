"""Score vectors of many rows, and how long one takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from pmray.data.batches import Rows, share, within_budget
from pmray.data.encode import Encoded
from pmray.errors import OutOfMemory
from pmray.spec import Recipe
from pmray.tasks.base import Objective
from pmray.training import sharding
from pmray.training.first_token import first_token_only
from pmray.training.hardware import autocast, is_out_of_memory, memory_told, on_device, place, precision_of

EVALUATION_TOKENS = 16_384
"""Tokens in one forward pass without gradients."""

CPU_TOKENS = 1_024
"""The same on a CPU, where a pass costs little beside the padding that it saves: 64 sentences of SST-2 take MiniLM-L6
13.6 ms of CPU time a row in one pass, and 8.9 in passes of so many tokens (in bf16 6.9 and 4.6)."""


def predict(model: nn.Module, task: Objective, rows: Encoded, recipe: Recipe | None = None) -> NDArray[Any]:
    """Score vectors of all rows, shape (rows, labels), float32 (or ragged), in the order of the rows.

    In a process group each worker predicts its share, and all get the whole. Without a recipe the arithmetic is fp32.
    """
    rank, workers = place()
    mine = share(np.arange(len(rows)), rank, workers)
    passes = 0
    if sharding.is_sharded(model):
        # Every pass needs all workers: who has fewer rows fills up.
        shares = [share(np.arange(len(rows)), one, workers) for one in range(workers)]
        passes = max(len(list(within_budget(one, rows.lengths, _tokens(model)))) for one in shares)
    # A worker without rows has nothing to say about how wide a score vector is.
    scores = None
    if len(mine) or passes:
        with first_token_only(model):
            scores = map_rows(model, task, rows, mine, logits_to_scores(task), recipe, passes=passes)
    if workers == 1 and scores is not None:
        return scores
    gathered: list[Any] = [None] * workers
    dist.all_gather_object(gathered, (mine, scores))
    parts = [(positions, part) for positions, part in gathered if part is not None and len(positions)]
    return np.concatenate([part for _, part in parts])[np.argsort(np.concatenate([where for where, _ in parts]))]


@torch.no_grad()
def map_rows(
    model: nn.Module,
    task: Objective,
    rows: Encoded,
    positions: Rows,
    function: Callable[[nn.Module, dict[str, torch.Tensor], pa.Table], torch.Tensor | NDArray[Any]],
    recipe: Recipe | None,
    *,
    passes: int = 0,
) -> NDArray[Any]:
    """Apply ``function(model, batch, encoded)`` to rows in batches of similar length; one result a row, in order.

    Args:
        model: Its device and precision count, where it is in bf16.
        task: Makes the batches.
        rows: Encoded rows.
        positions: Those that are wanted, shape (rows,).
        function: What to do with a batch.
        recipe: Gives the precision; None means that of the weights.
        passes: Forward passes to make at least, with results of no account.

    Raises:
        OutOfMemory: Not even one row fits.
    """
    first = next(model.parameters())
    device, low = first.device, first.dtype == torch.bfloat16
    arithmetic = autocast(precision_of(recipe, device), device) if recipe and not low else nullcontext()
    model.eval()
    waiting = list(within_budget(positions, rows.lengths, _tokens(model)))
    waiting += [np.array([0])] * (passes - len(waiting))
    done: list[Rows] = []
    results: list[NDArray[Any]] = []
    while waiting:
        part = waiting.pop(0)
        encoded = rows.rows(part)
        batch = on_device(task.collate(encoded, rows.pad), device, torch.bfloat16 if low else None)
        try:
            with arithmetic:
                result = function(model, batch, encoded)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1 or passes:
                told = memory_told(model, device)
                raise OutOfMemory("the model", len(part), int(rows.lengths[part].max()), str(device), told) from None
            smaller = len(part) * int(rows.lengths[part].max()) // 2
            waiting = list(within_budget(np.concatenate([part, *waiting]), rows.lengths, smaller))
            continue
        done.append(part)
        results.append(result.float().cpu().numpy() if isinstance(result, torch.Tensor) else result)
    index = {int(position): number for number, position in enumerate(np.concatenate(done))}
    return np.concatenate(results)[[index[int(position)] for position in positions]]


@torch.no_grad()
def measure_latency(model: nn.Module, task: Objective, rows: Encoded, count: int = 20) -> float:
    """Median milliseconds of a forward pass of one row, over `count` rows spread over the lengths."""
    device = next(model.parameters()).device
    model.eval()
    order = np.argsort(rows.lengths, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    times = []
    for position in [chosen[0], *chosen]:  # the first pass warms up and is not counted
        encoded = rows.rows(np.array([position]))
        batch = on_device(task.collate(encoded, rows.pad), device)
        before = time.perf_counter()
        with first_token_only(model):
            task.predict(model(**batch).logits, encoded)
        times.append(time.perf_counter() - before)
    return float(np.median(times[1:]) * 1000)


def logits_to_scores(task: Objective) -> Callable[[nn.Module, dict[str, torch.Tensor], pa.Table], NDArray[Any]]:
    """What ``map_rows`` does to predict."""
    return lambda model, batch, encoded: task.predict(model(**batch).logits, encoded)


def _tokens(model: nn.Module) -> int:
    on_cpu = next(model.parameters()).device.type == "cpu"
    return min(EVALUATION_TOKENS, CPU_TOKENS) if on_cpu else EVALUATION_TOKENS
