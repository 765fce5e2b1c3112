"""The one training loop, in plain torch: one process, or N of a process group that somebody else has started."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from pmray.data.batches import Rows, share, training_steps, within_budget
from pmray.data.encode import Encoded
from pmray.errors import Diverged, OutOfMemory, TrialError
from pmray.scoring.ragged import flat, like
from pmray.spec import Recipe
from pmray.tasks.base import LossOptions, Objective
from pmray.training import sharding
from pmray.training.dropout import Chance, make_dropout_cheap
from pmray.training.first_token import first_token_only
from pmray.training.hardware import (
    autocast,
    device_here,
    is_out_of_memory,
    memory_told,
    on_device,
    place,
    precision_of,
)
from pmray.training.optimizer import Optimizer, change_factor, rate_factor
from pmray.training.prediction import predict
from pmray.training.state import State

RISEN = 3.0
"""A mean training loss this many times that of the first steps is one that has run away."""
FIRST_STEPS = 10
FORM = 2
"""Of the states that a fit keeps; those of another form are as good as none."""
KEEPING = 20.0
"""A fit trains at least this many times as long as keeping its states takes."""


@dataclass(frozen=True)
class Rung:
    """How good the model was after some examples."""

    examples: int
    score: float
    seconds: float
    """Since the fit began, without what an interruption cost."""


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
    micro_batch_tokens: int
    """Tokens of one forward pass that fitted into memory."""
    resumed_at: int
    """Examples that an interrupted fit had seen when this one went on; 0 for one from the beginning."""
    precision: str
    """What was chosen: ``fp32``, ``bf16`` or ``fp16``."""
    validation: NDArray[Any] = field(repr=False)
    """Score vectors of the validation rows with the best weights, shape (rows, labels), or ragged."""
    task: Objective = field(repr=False)
    """With the thresholds that were tuned on validation."""


class Keeper(Protocol):
    """Where states of a fit go, and where that of an interrupted one comes from; all workers call it alike."""

    @property
    def seconds(self) -> float:
        """Between two states."""
        ...

    def load(self) -> State | None:
        """The latest state of an interrupted fit, or None."""
        ...

    def save(self, state: State) -> None:
        """Keep a state; only that of rank 0 holds the tensors of a sharded model."""
        ...

    def urgent(self) -> bool:
        """Whether this process will soon be ended, so that a state is wanted now."""
        ...


class Together(Protocol):
    """Makes a fit's steps and evaluations one computation with those of others in this process; ``training.fused``."""

    def clock(self) -> float:
        """Seconds that this process has spent on the fit."""
        ...

    def add_gradients(self, loop: Loop, rows: Rows) -> float:
        """Add the gradients of a batch up, and return its mean loss; raises what ``Loop.add_gradients`` raises."""
        ...

    def scores(self, loop: Loop) -> NDArray[Any]:
        """Score vectors of the validation rows; raises what ``Loop.scores`` raises."""
        ...


def rungs_of(recipe: Recipe, rows: int, rungs: int, reduction: float) -> list[int]:
    """Examples after which a fit is evaluated: `rungs` early ones and the end.

    >>> rungs_of(Recipe(epochs=3), 900, rungs=2, reduction=3)
    [300, 900, 2700]
    """
    total = max(1, round(recipe.epochs * rows))
    return [max(1, round(total / reduction**power)) for power in range(rungs, 0, -1)] + [total]


def fit(
    model: nn.Module,
    task: Objective,
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
    keeper: Keeper | None = None,
    micro_batch_tokens: int | None = None,
    together: Together | None = None,
) -> Fitted:
    """Fine-tune a model and leave it with the weights of its best rung, in fp32.

    With an initialised ``torch.distributed`` process group all workers call this with the same arguments; each takes
    its share of every batch, and scores are computed from the stacked outcome lines of all. A model that
    ``sharding.shard`` has sharded stays so.

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
        keeper: Keeps states of the fit, and gives that of one that was interrupted.
        micro_batch_tokens: Tokens of one forward pass that were found to fit before; at most what the recipe says.
        together: Computes gradients and scores for several fits of this process; one worker only.

    Raises:
        Diverged: The loss became NaN or infinite, or ran away.
        OutOfMemory: Not even one row fits.
        TrialError: The recipe cannot be carried out with this model or on this device.
    """
    loop = Loop(
        model, task, recipe, train, targets, validation, validation_targets, metric, rungs, seed, name, keeper, together
    )
    loop.micro = min(loop.micro, micro_batch_tokens or loop.micro)
    return loop.run(report)


@dataclass
class _Best:
    """The best rung so far."""

    score: float
    weights: dict[str, torch.Tensor] | None
    """None while the model itself holds them."""
    scores: NDArray[Any]
    task: Objective


class Loop:
    """A fit under way; made by ``fit``."""

    def __init__(
        self,
        model: nn.Module,
        task: Objective,
        recipe: Recipe,
        train: Encoded,
        targets: NDArray[Any],
        validation: Encoded,
        validation_targets: NDArray[Any],
        metric: str,
        rungs: Sequence[int],
        seed: int,
        name: str,
        keeper: Keeper | None,
        together: Together | None = None,
    ) -> None:
        self.rank, self.workers = place()
        self.device = device_here()
        self.model, self.task, self.recipe, self.seed, self.name = model, task, recipe, seed, name
        self.train, self.targets = train, targets
        self.validation, self.validation_targets = validation, validation_targets
        self.metric, self.waiting, self.budget, self.keeper = metric, list(rungs), rungs[-1], keeper
        self.together, self.clock = together, together.clock if together else time.perf_counter
        self.sharded = sharding.is_sharded(model)
        model.to(self.device)
        self.precision = precision_of(recipe, self.device)
        # Sharded weights bring their own low precision; norms over a batch need fp32 sums.
        self.low = self.precision == "bf16" and not self.sharded and not has_batch_norm(model)
        self.frozen: dict[int, torch.Tensor] = {}
        """Weights that are not trained, as they were before they were rounded."""
        if self.low:
            before = {id(one): one.detach().clone() for one in model.parameters() if not one.requires_grad}
            model.to(torch.bfloat16)
            self.frozen = before
        self.chance = Chance()
        self.put_dropout_back = make_dropout_cheap(model, self.chance) if self.device.type == "cpu" else lambda: None
        # A GPU has the whole table stepped sooner than its touched rows are found; several workers sum whole gradients,
        # and several fits compute them.
        alone = self.workers == 1 and not self.sharded and self.device.type == "cpu" and together is None
        self.optimizer = Optimizer(model, recipe, rows_alone=alone)
        self.options = loss_options(recipe, targets, len(task.labels), self.device)
        self.scale = 2.0**16 if self.precision == "fp16" else 1.0
        self.good_steps = 0
        self.micro = recipe.max_batch_tokens
        per_epoch = math.ceil(len(train) / recipe.batch_size)
        self.steps = max(1, math.ceil(rungs[-1] / len(train) * per_epoch))
        self.curve: list[Rung] = []
        self.best: _Best | None = None
        self.seen = self.step = self.epoch = self.batch = 0
        """Examples and optimizer steps taken; the epoch, and the batches of it that are behind."""
        self.losses: list[float] = []
        self.first_losses: list[float] = []
        self.loss = math.nan
        self.without_gain = 0
        self.evaluating = 0.0
        self.resumed_at = 0
        self.before = 0.0
        """Seconds of an earlier process."""
        self.started, self.kept = self.clock(), time.perf_counter()
        self.keeping = 0.0
        """Seconds that the latest state took to be kept."""

    def run(self, report: Callable[[Rung], None]) -> Fitted:
        """Train to the last rung; see ``fit``."""
        with first_token_only(self.model):
            try:
                return self._run(report)
            finally:
                # However it ends: hooks tie model and optimizer into a cycle, which Python would find late, and a
                # process that carries out many trials would hold the weights of all.
                self.optimizer.release()
                self.put_dropout_back()

    def _run(self, report: Callable[[Rung], None]) -> Fitted:
        state = self.keeper.load() if self.keeper else None
        if state is not None and state.get("form") == FORM:
            self._restore(state)
        while self.waiting:
            steps = training_steps(
                self.train.lengths,
                self.recipe.batch_size,
                seed=self.seed,
                epoch=self.epoch,
                weights=_row_weights(self.recipe, self.targets),
            )
            for rows in steps[self.batch :]:
                self._train(rows)
                if self.seen >= self.waiting[0]:
                    self._evaluate()
                    report(self.curve[-1])
                    if self.recipe.patience and self.without_gain >= self.recipe.patience:
                        self.waiting = []
                    if not self.waiting:
                        break
                self._keep()
            self.epoch, self.batch = self.epoch + 1, 0
        return self._fitted()

    def _seconds(self) -> float:
        return self.before + self.clock() - self.started

    def _train(self, rows: Rows) -> None:
        """One optimizer step."""
        loss = self._gradients(rows)
        factor = rate_factor(self.step, self.steps, self.recipe) * change_factor(self.seen, self.budget, self.recipe)
        if not math.isfinite(loss):
            raise Diverged(self.step, loss, self.recipe.lr * factor)
        norm = self.optimizer.step(factor, self.recipe.clip, self.scale)
        if self.precision == "fp16":
            self._rescale(math.isfinite(norm))
        elif not math.isfinite(norm):
            raise Diverged(self.step, norm, self.recipe.lr * factor, what="the gradients' norm")
        self.losses.append(loss)
        if len(self.first_losses) < FIRST_STEPS:
            self.first_losses.append(loss)
        self.seen, self.step, self.batch = self.seen + len(rows), self.step + 1, self.batch + 1

    def _rescale(self, finite: bool) -> None:
        """Halve the scale of an fp16 loss whose gradients overflowed, and double it after many that did not."""
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good_steps % 2_000 == 0:
            self.scale *= 2

    def _gradients(self, rows: Rows) -> float:
        """Mean loss of a batch over all workers, with the gradients in the optimizer; smaller passes where it must."""
        mine = share(rows, self.rank, self.workers)
        while True:
            failed: OutOfMemory | None = None
            loss = 0.0
            try:
                loss = self.together.add_gradients(self, rows) if self.together else self.add_gradients(mine, len(rows))
            except OutOfMemory as error:
                if self.sharded:
                    raise
                failed = error
            loss, worst = self._exchange(loss, 0 if failed is None else 1 if failed.rows > 1 else 2)
            if not worst:
                break
            # The same rows again, for all workers: the sum of the gradients must hold each row once.
            self.optimizer.clear()
            if worst == 2:
                raise failed or OutOfMemory(self.name, 1, int(self.train.lengths[rows].max()), "another worker", "")
            self._smaller(failed)
        if self.workers > 1 and not self.sharded:
            self.optimizer.sum_over_workers()
        return loss

    def _smaller(self, failed: OutOfMemory | None) -> None:
        """Halve the tokens of a forward pass."""
        if failed is not None:
            self.micro = min(self.micro, failed.rows * failed.tokens)
        self.micro = max(1, self.micro // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def add_gradients(self, mine: Rows, batch_rows: int) -> float:
        """Add the gradients of this worker's rows of a batch up; returns their share of the loss."""
        return add_gradients([self], lambda inputs: [self.model(**inputs).logits], mine, batch_rows)[0]

    def parts(self, mine: Rows) -> Iterable[tuple[Rows, float]]:
        """Forward passes of this worker's rows, each with its weight."""
        parts = [(part, 1.0) for part in within_budget(mine, self.train.lengths, self.micro)]
        if self.sharded:
            # Every pass of a sharded model needs all workers: who has fewer fills up with a row that does not count.
            count = torch.tensor(len(parts))
            dist.all_reduce(count, op=dist.ReduceOp.MAX)
            parts += [(np.array([0]), 0.0)] * (int(count) - len(parts))
        return parts

    def _exchange(self, loss: float, failure: int) -> tuple[float, int]:
        """The loss over all workers, and the worst that happened to one."""
        if self.workers == 1:
            return loss, failure
        told = torch.tensor([loss], dtype=torch.float64, device=self.device)
        worst = torch.tensor([failure], device=self.device)
        dist.all_reduce(told)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        return float(told), int(worst)

    def _evaluate(self) -> None:
        while self.waiting and self.seen >= self.waiting[0]:
            examples = self.waiting.pop(0)
        before = self.clock()
        self.loss, self.losses = float(np.mean(self.losses)), []
        first = float(np.mean(self.first_losses))
        if len(self.first_losses) == FIRST_STEPS and self.loss > RISEN * first:
            raise Diverged(
                self.step, self.loss, self.recipe.lr, what=f"the mean loss (at first {first:.3g})", risen=True
            )
        self._share_buffers()
        self.optimizer.flush()
        scores, tuned, score = self._scored(self.together.scores(self) if self.together else self.scores())
        if self.best is None or score > self.best.score:
            # The last rung needs no copy: the model itself holds its weights.
            self.best = _Best(score, self._weights() if self.waiting else None, scores, tuned)
            self.without_gain = 0
        else:
            self.without_gain += 1
        self.evaluating += self.clock() - before
        self.curve.append(Rung(examples, score, self._seconds()))

    def scores(self) -> NDArray[Any]:
        """Score vectors of the validation rows; see ``predict``."""
        return predict(self.model, self.task, self.validation, self.recipe)

    def _scored(self, scores: NDArray[Any]) -> tuple[NDArray[Any], Objective, float]:
        tuned = self.task.tuned(scores, self.validation_targets, self.metric)
        outcomes = tuned.outcome(scores, self.validation_targets)
        return scores, tuned, float(self.task.score(self.metric, outcomes, np.ones((1, len(outcomes))))[0])

    def _share_buffers(self) -> None:
        """Running means of batch norms are each worker's own; predictions need one for all."""
        if self.workers > 1:
            for one in self.model.buffers():
                if one.is_floating_point():
                    dist.all_reduce(one)
                    one /= self.workers

    def _fitted(self) -> Fitted:
        assert self.best is not None
        weights = self.best.weights or self._weights()
        if self.low:
            self.model.to(torch.float32)
        self.model.load_state_dict(weights)
        return Fitted(
            score=self.best.score,
            curve=tuple(self.curve),
            examples=self.seen,
            train_seconds=self._seconds() - self.evaluating,
            evaluate_seconds=self.evaluating,
            loss=self.loss,
            micro_batch_tokens=self.micro,
            resumed_at=self.resumed_at,
            precision=self.precision,
            validation=self.best.scores,
            task=self.best.task,
        )

    def _weights(self) -> dict[str, torch.Tensor]:
        """A copy of all weights in full precision; each worker's part of sharded ones."""
        full = {**self.frozen, **self.optimizer.full_precision()}
        # By identity, not by name: tied weights have several.
        values = {name: full.get(id(one), one) for name, one in self.model.state_dict(keep_vars=True).items()}
        # Sharded weights stay on their device: a copy of a part is small.
        return {
            name: one.detach().clone() if self.sharded else one.detach().cpu().clone() for name, one in values.items()
        }

    def _keep(self) -> None:
        """Keep a state when it is time, or when this process is about to be ended."""
        if self.keeper is None:
            return
        # Asked in every step by all workers alike.
        urgent = self.keeper.urgent()
        pause = max(self.keeper.seconds, KEEPING * self.keeping)
        now = urgent or (self.rank == 0 and time.perf_counter() - self.kept >= pause)
        if self.workers > 1:
            # All workers keep the same step, or none.
            told = torch.tensor([int(now)], device=self.device)
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
            now = bool(told)
        if now:
            before = time.perf_counter()
            self.keeper.save(self._state())
            self.kept = time.perf_counter()
            self.keeping = self.kept - before

    def _state(self) -> State:
        assert self.waiting
        return {
            "weights": self._whole(self._weights()),
            "optimizer": self._whole(self.optimizer.state()),
            "counts": [self.seen, self.step, self.epoch, self.batch, self.without_gain, self.good_steps, self.micro],
            "numbers": [self.scale, self.loss, self.evaluating, self._seconds()],
            "losses": self.losses,
            "first_losses": self.first_losses,
            "waiting": self.waiting,
            "curve": [(rung.examples, rung.score, rung.seconds) for rung in self.curve],
            "best": None if self.best is None else self._best_state(self.best),
            "form": FORM,
        }

    def _best_state(self, best: _Best) -> State:
        """The best rung so far; its scores too, which would take an evaluation to make again."""
        return {
            "score": best.score,
            "weights": self._whole(best.weights),
            "scores": torch.from_numpy(flat(best.scores)),
        }

    def _whole(self, values: Any) -> Any:
        """Whole tensors of sharded ones, at rank 0, so that any number of workers can go on from them."""
        return sharding.gathered(values, keep=self.rank == 0) if self.sharded else values

    def _restore(self, state: State) -> None:
        self.seen, self.step, self.epoch, self.batch, self.without_gain, self.good_steps, self.micro = state["counts"]
        self.resumed_at = self.seen
        self.scale, self.loss, self.evaluating, self.before = state["numbers"]
        self.losses, self.first_losses, self.waiting = state["losses"], state["first_losses"], state["waiting"]
        self.curve = [Rung(*rung) for rung in state["curve"]]
        if (best := state["best"]) is not None:
            self._take(best["weights"])
            scores = like(best["scores"].numpy(), self.validation_targets)
            tuned = self.task.tuned(scores, self.validation_targets, self.metric)
            self.best = _Best(best["score"], self._weights(), scores, tuned)
        self._take(state["weights"])
        self.optimizer.load(state["optimizer"])

    def _take(self, weights: Mapping[str, torch.Tensor]) -> None:
        own = self.model.state_dict()
        self.model.load_state_dict({name: sharding.sharded_like(one, own[name]) for name, one in weights.items()})
        full = {id(one): weights[name] for name, one in self.model.state_dict(keep_vars=True).items()}
        self.frozen = {one: full[one] for one in self.frozen}
        self.optimizer.take(full)

    def on_device(self, made: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Model inputs where the model is, in its precision."""
        return on_device(made, self.device, torch.bfloat16 if self.low else None)

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Of forward passes."""
        return nullcontext() if self.low else autocast(self.precision, self.device)


def add_gradients(
    loops: Sequence[Loop],
    forward: Callable[[dict[str, torch.Tensor]], Sequence[torch.Tensor]],
    mine: Rows,
    batch_rows: int,
    hand_out: Callable[[], None] = lambda: None,
) -> list[float]:
    """Add the gradients of a worker's rows of a batch up, forward pass by forward pass, in the optimizers.

    Args:
        loops: Whose gradients: one fit, or several that are alike and have come to the same step.
        forward: Gives each one's logits for a batch of model inputs.
        mine: The worker's rows.
        batch_rows: Rows of the whole batch.
        hand_out: Called after each backward pass: each model then has its gradients.

    Returns:
        The rows' share of each one's loss.

    Raises:
        OutOfMemory: A pass did not fit; the optimizers hold the gradients of those before it.
    """
    first = loops[0]
    here = (first.seed, first.step, first.rank)
    random = np.random.default_rng(here) if first.recipe.augment else None
    # All chance in a step hangs on its place, so that a fit that goes on later needs no generator's state.
    first.chance.begin(*here)
    torch.manual_seed(int(np.random.SeedSequence(here).generate_state(1)[0]))
    first.model.train()
    totals = torch.zeros(len(loops), device=first.device)
    for part, weight in first.parts(mine):
        try:
            encoded = first.train.rows(part)
            inputs = first.on_device(first.task.collate(encoded, first.train.pad, random))
            with first.arithmetic():
                answers = forward(inputs)
            # Each worker's part of the mean over all rows; a row that only fills up counts for nothing.
            losses = [
                one.task.loss(logits, one.targets[part], encoded, one.options).sum() * (weight / batch_rows)
                for one, logits in zip(loops, answers, strict=True)
            ]
            # Sharded gradients are averaged over the workers, others summed.
            scaled = [
                loss * one.scale * (one.workers if one.sharded else 1) for one, loss in zip(loops, losses, strict=True)
            ]
            torch.stack(scaled).sum().backward()  # type: ignore[no-untyped-call]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                first.name,
                len(part),
                int(first.train.lengths[part].max()),
                str(first.device),
                memory_told(first.model, first.device),
            ) from None
        hand_out()
        for one in loops:
            one.optimizer.collect()
        totals += torch.stack([loss.detach() for loss in losses])
    found: list[float] = totals.tolist()
    return found


def loss_options(recipe: Recipe, targets: NDArray[Any], labels: int, device: torch.device) -> LossOptions:
    """Label smoothing and class weights of a recipe, for these training labels.

    ``class_weights: balanced`` weighs a label by rows / (labels x rows that have it), as scikit-learn does; where a row
    has several labels, the rows that have a label count as much together as those that lack it.
    """
    weights = None
    if recipe.class_weights == "balanced":
        said = flat(targets)
        if said.ndim == 2:
            have = said.sum(axis=0)
            found = (len(said) - have) / np.maximum(1, have)
        else:
            have = np.bincount(said, minlength=labels)
            found = np.where(have > 0, len(said) / (np.count_nonzero(have) * np.maximum(1, have)), 1.0)
        weights = torch.from_numpy(found.astype(np.float32)).to(device)
    return LossOptions(recipe.label_smoothing, weights)


def _row_weights(recipe: Recipe, targets: NDArray[Any]) -> NDArray[np.float64] | None:
    """How often a row is drawn in an epoch, so that all labels come equally often; None for each row once."""
    if recipe.sampling == "natural":
        return None
    if targets.ndim != 1 or targets.dtype == object:
        raise TrialError("`sampling: balanced` needs rows with one label each; use `class_weights: balanced`")
    counts = np.bincount(targets)
    weights = 1.0 / counts[targets]
    each: NDArray[np.float64] = weights / weights.sum()
    return each


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model keeps running means of what it has seen."""
    return any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in model.modules())
