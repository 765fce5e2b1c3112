"""Several fits of one model in one process, whose steps are one computation.

Recipes that differ in rates, decay and the like alone see the same rows in the same order, with the same dropout. So
one forward and one backward pass serve all of them, over stacked weights (``torch.func``; Wang et al. 2021,
"Horizontally Fused Training Array"); weights that none of them trains are there once, and what comes before the first
trained one is computed once for all. Everything else stays each fit's own: loss, optimizer, rungs, states, its end. A
fit is a coroutine here (greenlet), which waits in each step until all others that are under way have come to one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from greenlet import greenlet
from torch import nn
from torch.func import functional_call

from pmray.data.batches import Rows
from pmray.errors import OutOfMemory
from pmray.training.loop import Loop, add_gradients, has_batch_norm


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
    """One of the fits; what its loop asks for gradients and for the time."""

    def __init__(self, job: Callable[[Member], None]) -> None:
        self.coroutine = greenlet(lambda: job(self))
        self.fused_steps = 0
        """Taken with others."""
        self.problem: str | None = None
        """Why steps are not taken with others any more, or None."""
        self.answer: float | Exception | None = None
        self._spent = 0.0
        self._since: float | None = None

    def clock(self) -> float:
        """Seconds that this process has spent on the fit: of a step for several, its share."""
        return self._spent + (0.0 if self._since is None else time.perf_counter() - self._since)

    def add_gradients(self, loop: Loop, rows: Rows) -> float:
        """Wait for the others, and return the mean loss of a batch; raises what ``Loop.add_gradients`` raises."""
        assert self.coroutine.parent is not None
        found: float = self.coroutine.parent.switch((loop, rows))
        return found

    def go_on(self) -> tuple[Loop, Rows] | None:
        """Let the fit run to its next step; None when it has ended."""
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
    try:
        while members:
            asking = [(one, asked) for one in members if (asked := one.go_on()) is not None]
            members = [one for one, _ in asking]
            used: dict[tuple[int, ...], Stack] = {}
            for group in _alike(asking):
                _answer(group, stacks, used)
            # Of those that are not whole any more the weights would stay in memory.
            stacks = used
    finally:
        for one in members:
            if not one.coroutine.dead:
                # An interrupt: each gives back what it holds.
                one.coroutine.throw()


Asking = tuple[Member, tuple[Loop, Rows]]


def _alike(asking: Sequence[Asking]) -> list[list[Asking]]:
    """Those that have come to the same step and rows, together: an interrupted fit may have gone on from another."""
    groups: list[list[Asking]] = []
    for one in asking:
        member, (loop, rows) = one
        for group in groups:
            other, (first, others) = group[0]
            if (
                member.problem is None
                and other.problem is None
                and (loop.step, loop.micro) == (first.step, first.micro)
                and np.array_equal(rows, others)
            ):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _answer(group: Sequence[Asking], stacks: dict[tuple[int, ...], Stack], used: dict[tuple[int, ...], Stack]) -> None:
    """Find each member's loss, or what is raised in its place."""
    if len(group) > 1 and _answer_as_one(group, stacks, used):
        return
    for member, (loop, rows) in group:
        began = time.perf_counter()
        try:
            member.answer = loop.add_gradients(rows, len(rows))
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
        losses = add_gradients(loops, stack.logits, rows, len(rows), stack.hand_out)
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
        for (member, _), loss in zip(group, losses, strict=True):
            member.answer = loss
            member.fused_steps += 1
            member.spend((time.perf_counter() - began) / len(group))
        return True
    used.pop(names, None)
    for member, (loop, _) in group:
        loop.optimizer.clear()
        member.problem = problem
    return False
