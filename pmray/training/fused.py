"""Several fits of one model in one process, whose steps and evaluations are one computation.

Recipes that differ in rates, decay and the like alone see the same rows in the same order, with the same dropout. So
one forward and one backward pass serve all of them, over stacked weights (``torch.func``; Wang et al. 2021,
"Horizontally Fused Training Array"); weights that none of them trains are there once, and what comes before the first
trained one is computed once for all. Everything else stays each fit's own: loss, optimizer, rungs, states, its end. A
fit is a coroutine here (greenlet), which waits in each step, and before each evaluation, until the others have come to
the same one; those that are furthest behind go first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from greenlet import greenlet
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call

from pmray.data.batches import Rows
from pmray.errors import OutOfMemory
from pmray.training.loop import Loop, add_gradients, has_batch_norm
from pmray.training.prediction import map_rows


class Stack:
    """Models of one architecture, their trained weights one behind the other in memory."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        """Move the weights of models into one place; the models go on using them there.

        Args:
            models: Alike but for the values of their trained weights.

        Raises:
            ValueError: They are not alike, or keep running means of a batch, which are not weights.
        """
        self.first = models[0]
        self.named = [dict(one.named_parameters()) for one in models]
        if has_batch_norm(self.first):
            raise ValueError("the model has batch norms")
        self.trained: dict[str, torch.Tensor] = {}
        for name, own in self.named[0].items():
            each = [named[name] for named in self.named]
            if own.requires_grad:
                whole = torch.stack([one.detach() for one in each])
                for one, part in zip(each, whole, strict=True):
                    one.data = part
                self.trained[name] = whole.requires_grad_()
            elif all(torch.equal(own, one) for one in each[1:]):
                for one in each[1:]:
                    one.data = own.data
            else:
                raise ValueError(f"{name} is not trained, and differs")

    def logits(self, inputs: dict[str, torch.Tensor]) -> Sequence[torch.Tensor]:
        """Each model's logits for a batch."""

        def forward(weights: dict[str, torch.Tensor]) -> torch.Tensor:
            found: torch.Tensor = functional_call(self.first, weights, kwargs=inputs).logits
            return found

        stacked: torch.Tensor = torch.vmap(forward, randomness="same")(self.trained)
        return stacked.unbind()

    def hand_out(self) -> None:
        """Add the gradients to those of each model."""
        for name, whole in self.trained.items():
            if whole.grad is not None:
                for named, part in zip(self.named, whole.grad, strict=True):
                    own = named[name]
                    own.grad = part if own.grad is None else own.grad + part
                whole.grad = None


class Member:
    """One of the fits; what its loop asks for gradients, for scores and for the time."""

    def __init__(self, job: Callable[[Member], None]) -> None:
        self.coroutine = greenlet(lambda: job(self))
        self.fused_steps = 0
        """Taken with others."""
        self.problem: str | None = None
        """Why steps are not taken with others any more, or None."""
        self.answer: float | NDArray[Any] | Exception | None = None
        self._spent = 0.0
        self._since: float | None = None

    def clock(self) -> float:
        """Seconds that this process has spent on the fit: of a step for several, its share."""
        return self._spent + (0.0 if self._since is None else time.perf_counter() - self._since)

    def add_gradients(self, loop: Loop, rows: Rows) -> float:
        """Wait for the others, and return the mean loss of a batch; raises what ``Loop.add_gradients`` raises."""
        found: float = self._wait(loop, rows)
        return found

    def scores(self, loop: Loop) -> NDArray[Any]:
        """Wait for the others, and return what ``Loop.scores`` returns; raises what it raises."""
        found: NDArray[Any] = self._wait(loop, None)
        return found

    def _wait(self, loop: Loop, rows: Rows | None) -> Any:
        assert self.coroutine.parent is not None
        return self.coroutine.parent.switch((loop, rows))

    def go_on(self) -> tuple[Loop, Rows | None] | None:
        """Let the fit run to where it waits next, for gradients of rows or for scores; None when it has ended."""
        # An error holds on to what it was raised over.
        answer, self.answer = self.answer, None
        self._since = time.perf_counter()
        try:
            if isinstance(answer, Exception):
                asked = self.coroutine.throw(answer)
            elif answer is None:
                asked = self.coroutine.switch()
            else:
                asked = self.coroutine.switch(answer)
        finally:
            self.spend(time.perf_counter() - self._since)
            self._since = None
        return None if self.coroutine.dead else asked

    def spend(self, seconds: float) -> None:
        """Count time as spent on the fit."""
        self._spent += seconds


def run_together(jobs: Sequence[Callable[[Member], None]]) -> None:
    """Carry out fits of one candidate in this process, taking their steps together where they can be.

    A fit may end before others, by itself or by what it raises inside; the others go on. Where the model or the memory
    does not allow steps for several, they are taken one after the other, and ``Member.problem`` says why.

    Args:
        jobs: Each carries a fit out and passes its ``Member`` on as ``loop.fit``'s `together`; none may raise.
    """
    members = [Member(job) for job in jobs]
    stacks: dict[tuple[int, ...], Stack] = {}
    waiting: list[Asking] = []
    going = members
    try:
        while going or waiting:
            waiting += [(one, asked) for one in going if (asked := one.go_on()) is not None]
            behind = min(map(_place, waiting), default=None)
            now = [one for one in waiting if _place(one) == behind]
            waiting = [one for one in waiting if _place(one) != behind]
            used: dict[tuple[int, ...], Stack] = {}
            for group in _alike(now):
                _answer(group, stacks, used)
            # Of those that are not whole any more the weights would stay in memory.
            stacks = used
            going = [member for member, _ in now]
    finally:
        for one in members:
            if not one.coroutine.dead:
                # An interrupt: each gives back what it holds.
                one.coroutine.throw()


Asking = tuple[Member, tuple[Loop, Rows | None]]
"""Who waits, and for what: gradients of rows, or scores of the validation rows."""


def _place(asking: Asking) -> tuple[int, bool]:
    """How far a fit has come: its optimizer steps, and, after those, whether it has no scores to wait for."""
    _, (loop, rows) = asking
    return loop.step, rows is not None


def _alike(asking: Sequence[Asking]) -> list[list[Asking]]:
    """Those that wait for the same, together."""
    groups: list[list[Asking]] = []
    for one in asking:
        member, (loop, rows) = one
        for group in groups:
            other, (first, others) = group[0]
            if (
                member.problem is None
                and other.problem is None
                and loop.micro == first.micro
                # All wait for gradients here, or all for scores.
                and (rows is None or others is None or np.array_equal(rows, others))
            ):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _answer(group: Sequence[Asking], stacks: dict[tuple[int, ...], Stack], used: dict[tuple[int, ...], Stack]) -> None:
    """Find each member's loss or scores, or what is raised in their place."""
    if len(group) > 1 and _answer_as_one(group, stacks, used):
        return
    for member, (loop, rows) in group:
        began = time.perf_counter()
        try:
            member.answer = loop.scores() if rows is None else loop.add_gradients(rows, len(rows))
        except Exception as error:  # noqa: BLE001  (raised where the fit has asked)
            member.answer = error
        member.spend(time.perf_counter() - began)


def _answer_as_one(
    group: Sequence[Asking], stacks: dict[tuple[int, ...], Stack], used: dict[tuple[int, ...], Stack]
) -> bool:
    """Whether one computation has given all of them an answer; otherwise they have no gradients, and know why."""
    loops = [loop for _, (loop, _) in group]
    rows, names = group[0][1][1], tuple(id(one) for one in loops)
    began = time.perf_counter()
    try:
        stack = used[names] = stacks.get(names) or Stack([one.model for one in loops])
        answers = _computed(loops, rows, stack)
    except OutOfMemory as error:
        if error.rows > 1:
            # All take the same rows again, in smaller passes.
            for member, _ in group:
                member.answer = error
            return True
        problem = str(error)
    except Exception as error:  # noqa: BLE001  (what is wrong with a fit itself shows again when it goes alone)
        problem = f"{type(error).__name__}: {error}"[:500]
    else:
        for (member, _), answer in zip(group, answers, strict=True):
            member.answer = answer
            member.fused_steps += rows is not None
            member.spend((time.perf_counter() - began) / len(group))
        return True
    used.pop(names, None)
    for member, (loop, _) in group:
        loop.optimizer.clear()
        member.problem = problem
    return False


def _computed(loops: Sequence[Loop], rows: Rows | None, stack: Stack) -> Sequence[float | NDArray[Any]]:
    """Each fit's loss over rows, with the gradients in its optimizer, or its score vectors of the validation rows."""
    if rows is not None:
        return add_gradients(loops, stack.logits, rows, len(rows), stack.hand_out)
    first = loops[0]

    def predict(model: nn.Module, batch: dict[str, torch.Tensor], encoded: pa.Table) -> NDArray[Any]:
        return np.stack([first.task.predict(logits, encoded) for logits in stack.logits(batch)], axis=1)

    positions = np.arange(len(first.validation))
    found = map_rows(first.model, first.task, first.validation, positions, predict, first.recipe)
    return [found[:, place] for place in range(len(loops))]
