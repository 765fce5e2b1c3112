"""The one training loop, in plain torch: one process, or N of a process group that somebody else has started."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from pmray.data.batches import Rows, share, training_steps, within_budget
from pmray.data.encode import Encoded
from pmray.errors import Diverged, OutOfMemory
from pmray.spec import Recipe
from pmray.tasks.base import Task

EVALUATION_TOKENS = 16_384
"""Tokens in one forward pass without gradients."""


@dataclass(frozen=True)
class Rung:
    """How good the model was after some examples."""

    examples: int
    score: float
    seconds: float
    """Since the fit began."""


@dataclass(frozen=True)
class Fitted:
    """What a fit gave."""

    score: float
    """Best validation score; the model holds the weights that gave it."""
    curve: tuple[Rung, ...]
    examples: int
    """Seen in all."""
    train_seconds: float
    evaluate_seconds: float
    loss: float
    """Mean training loss of the last rung."""
    validation: NDArray[Any] = field(repr=False)
    """Score vectors of the validation rows with the best weights, shape (rows, labels), or ragged."""
    task: Task = field(repr=False)
    """With the thresholds that were tuned on validation."""


def rungs_of(recipe: Recipe, rows: int, rungs: int, reduction: float) -> list[int]:
    """Examples after which a fit is evaluated: `rungs` early ones and the end.

    >>> rungs_of(Recipe(epochs=3), 900, rungs=2, reduction=3)
    [300, 900, 2700]
    """
    total = max(1, round(recipe.epochs * rows))
    return [max(1, round(total / reduction**power)) for power in range(rungs, 0, -1)] + [total]


def fit(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    train: Encoded,
    targets: NDArray[Any],
    validation: Encoded,
    validation_targets: NDArray[Any],
    *,
    metric: str,
    rungs: Sequence[int],
    seed: int,
    report: Callable[[Rung], None] = lambda rung: None,
    name: str = "model",
) -> Fitted:
    """Fine-tune a model and leave it with the weights of its best rung.

    With an initialised ``torch.distributed`` process group all workers call this with the same arguments; each takes
    its share of every batch, and scores are computed from the stacked outcome lines of all.

    Args:
        model: Opened with its head; moved to the GPU when there is one.
        task: Gives loss, predictions and score.
        recipe: Hyper-parameters.
        train: Encoded training rows.
        targets: Their labels, as ``task.targets`` gives them.
        validation: Encoded rows that are scored at every rung.
        validation_targets: Their labels.
        metric: Name of the deciding metric.
        rungs: Examples after which the model is scored, rising; training ends at the last.
        seed: Seed of dropout and batch order (the head's seed is the caller's).
        report: Called at every rung by every worker; what it raises ends the fit.
        name: The model's name in errors.

    Raises:
        Diverged: The loss became NaN or infinite.
        OutOfMemory: A micro-batch did not fit.
    """
    rank, workers = _place()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(seed + rank)
    model.to(device)
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(model) if workers > 1 else model
    optimizer = _optimizer(model, recipe)
    per_epoch = math.ceil(len(train) / recipe.batch_size)
    total_steps = max(1, math.ceil(rungs[-1] / len(train) * per_epoch))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, total_steps, recipe))
    autocast = _autocast(recipe, device)

    started = time.perf_counter()
    evaluating = 0.0
    curve: list[Rung] = []
    best: tuple[float, dict[str, torch.Tensor] | None, NDArray[Any], Task] | None = None
    seen, step, epoch = 0, 0, 0
    losses: list[float] = []
    loss_mean = math.nan
    waiting = list(rungs)
    while waiting:
        for rows in training_steps(train.lengths, recipe.batch_size, seed=seed, epoch=epoch):
            wrapped.train()
            mine = share(rows, rank, workers)
            random = np.random.default_rng([seed, step, rank]) if recipe.augment else None
            loss = _step(
                wrapped, task, recipe, train, targets, mine, len(rows), workers, device, autocast, random, name
            )
            if not math.isfinite(loss):
                raise Diverged(step, loss, float(schedule.get_last_lr()[0]))
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss)
            seen, step = seen + len(rows), step + 1
            if seen < waiting[0]:
                continue
            while waiting and seen >= waiting[0]:
                rung_examples = waiting.pop(0)
            before = time.perf_counter()
            scores = predict(model, task, validation, recipe)
            tuned = task.tuned(scores, validation_targets, metric)
            outcomes = tuned.outcome(scores, validation_targets)
            score = float(task.score(metric, outcomes, np.ones((1, len(outcomes))))[0])
            if best is None or score > best[0]:
                # The last rung needs no copy: the model itself holds its weights.
                best = (score, _copy(model) if waiting else None, scores, tuned)
            evaluating += time.perf_counter() - before
            curve.append(Rung(rung_examples, score, time.perf_counter() - started))
            loss_mean, losses = float(np.mean(losses)), []
            report(curve[-1])
            if not waiting:
                break
        epoch += 1
    assert best is not None
    if best[1] is not None:
        model.load_state_dict(best[1])
    return Fitted(
        score=best[0],
        curve=tuple(curve),
        examples=seen,
        train_seconds=time.perf_counter() - started - evaluating,
        evaluate_seconds=evaluating,
        loss=loss_mean,
        validation=best[2],
        task=best[3],
    )


def predict(model: nn.Module, task: Task, rows: Encoded, recipe: Recipe | None = None) -> NDArray[Any]:
    """Score vectors of all rows, shape (rows, labels), float32 (or ragged), in the order of the rows.

    In a process group each worker predicts its share, and all get the whole. Without a recipe the arithmetic is fp32.
    """
    rank, workers = _place()
    mine = share(np.arange(len(rows)), rank, workers)
    # A worker without rows has nothing to say about how wide a score vector is.
    scores = map_rows(model, task, rows, mine, _logits_to_scores(task), recipe) if len(mine) else None
    if workers == 1 and scores is not None:
        return scores
    gathered: list[Any] = [None] * workers
    dist.all_gather_object(gathered, (mine, scores))
    parts = [(positions, part) for positions, part in gathered if part is not None]
    return np.concatenate([part for _, part in parts])[np.argsort(np.concatenate([where for where, _ in parts]))]


@torch.no_grad()
def map_rows(
    model: nn.Module,
    task: Task,
    rows: Encoded,
    positions: Rows,
    function: Callable[[nn.Module, dict[str, torch.Tensor], pa.Table], torch.Tensor | NDArray[Any]],
    recipe: Recipe | None,
) -> NDArray[Any]:
    """Apply ``function(model, batch, encoded)`` to rows in batches of similar length; one result a row, in order."""
    device = next(model.parameters()).device
    autocast = _autocast(recipe, device) if recipe else nullcontext()
    model.eval()
    done: list[Rows] = []
    results: list[NDArray[Any]] = []
    for part in within_budget(positions, rows.lengths, EVALUATION_TOKENS):
        encoded = rows.rows(part)
        batch = {key: value.to(device) for key, value in task.collate(encoded, rows.pad).items()}
        try:
            with autocast:
                result = function(model, batch, encoded)
        except (torch.OutOfMemoryError, MemoryError):
            raise OutOfMemory("the model", len(part), int(rows.lengths[part].max()), str(device)) from None
        done.append(part)
        results.append(result.float().cpu().numpy() if isinstance(result, torch.Tensor) else result)
    place = {int(position): index for index, position in enumerate(np.concatenate(done))}
    return np.concatenate(results)[[place[int(position)] for position in positions]]


@torch.no_grad()
def measure_latency(model: nn.Module, task: Task, rows: Encoded, count: int = 20) -> float:
    """Median milliseconds of a forward pass of one row, over `count` rows spread over the lengths."""
    device = next(model.parameters()).device
    model.eval()
    order = np.argsort(rows.lengths, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    times = []
    for position in [chosen[0], *chosen]:  # the first pass warms up and is not counted
        encoded = rows.rows(np.array([position]))
        batch = {key: value.to(device) for key, value in task.collate(encoded, rows.pad).items()}
        before = time.perf_counter()
        task.predict(model(**batch).logits, encoded)
        times.append(time.perf_counter() - before)
    return float(np.median(times[1:]) * 1000)


def rank() -> int:
    """This worker's number; 0 without a process group."""
    return _place()[0]


def bf16_is_fast() -> bool:
    """Whether this machine multiplies bf16 matrices in hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _logits_to_scores(task: Task) -> Callable[[nn.Module, dict[str, torch.Tensor], pa.Table], NDArray[Any]]:
    return lambda model, batch, encoded: task.predict(model(**batch).logits, encoded)


def _step(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    train: Encoded,
    targets: NDArray[Any],
    mine: Rows,
    batch_rows: int,
    workers: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
    random: np.random.Generator | None,
    name: str,
) -> float:
    """Gradients of one optimizer step; returns the mean loss over the rows of all workers."""
    # DDP waits for every worker in every step: one without rows passes a row that counts for nothing.
    weight = 1.0 if len(mine) else 0.0
    parts = list(within_budget(mine if len(mine) else np.array([0]), train.lengths, recipe.max_batch_tokens))
    total = torch.zeros((), device=device)
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        waits = nullcontext() if last or workers == 1 else model.no_sync()  # type: ignore[operator]
        try:
            with waits:
                encoded = train.rows(part)
                batch = {key: value.to(device) for key, value in task.collate(encoded, train.pad, random).items()}
                with autocast:
                    logits = model(**batch).logits
                losses = task.loss(logits, targets[part], encoded)
                # DDP averages over workers, so each one's sum is scaled up to make it the mean over all rows.
                loss = losses.sum() * weight * (workers / batch_rows)
                loss.backward()  # type: ignore[no-untyped-call]
        except (torch.OutOfMemoryError, MemoryError):
            raise OutOfMemory(name, len(part), int(train.lengths[part].max()), str(device)) from None
        total += loss.detach() / workers
    if workers > 1:
        dist.all_reduce(total)
    return float(total)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; biases and norms are not decayed (Devlin et al. 2019)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)


def _lr_factor(step: int, steps: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: a rise in the warm-up, then the schedule's fall to 0."""
    warmup = round(recipe.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = max(0.0, (steps - step) / max(1, steps - warmup))
    if recipe.schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    return left if recipe.schedule == "linear" else 1.0


def _autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    if recipe.precision == "fp32" or (recipe.precision == "auto" and not bf16_is_fast()):
        return nullcontext()
    # Weights change in every step: a cache of their casts would only hold memory.
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _place() -> tuple[int, int]:
    """Rank and number of workers."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
