"""AdamW on a table of token embeddings, at the price of the rows that a batch has touched.

A step of a small encoder spent a seventh of its time on rows of tokens that were not in the batch: their gradients are
zero, but they are made, converted, measured and applied (see tests/bench/RESULTS.md). Untouched rows still move in
AdamW, by their old momentum. Here they stand still, and make up for the steps they have missed when their token comes
up again, and before the weights are read. With a step's rate a_k (bias corrections included) and
r = beta1 / sqrt(beta2), what a row with moments m and v has missed between the steps s and t is

    -(sum over k = s+1 ... t of a_k d_k r^(k-s)) m / (sqrt(v) + epsilon)

where d_k is what weight decay leaves of a step until t. This equals the dense steps but for epsilon, which these scale
from step to step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

HORIZON = 256
"""Missed steps that are added up; r^256 is under 1e-11."""


def lone_table(model: nn.Module) -> nn.Embedding | None:
    """The table of token embeddings, where it is trained and no other part of the model uses it; else None."""
    try:
        table: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    if type(table) is not nn.Embedding or not table.weight.requires_grad:
        return None
    if table.max_norm is not None or table.scale_grad_by_freq:
        return None
    users = sum(one is table.weight for module in model.modules() for one in module.parameters(recurse=False))
    return table if users == 1 else None


class EmbeddingRows:
    """The steps of one table; ``adamw`` holds its moments, so that its state looks like that of a dense one."""

    def __init__(self, table: nn.Embedding, master: nn.Parameter, adamw: torch.optim.AdamW) -> None:
        """Take a table over.

        Args:
            table: Its gradients become sparse.
            master: The table's weights in fp32; the weights themselves where they are fp32.
            adamw: Has `master` in one of its groups, and never sees a gradient of it.
        """
        self.table, self.master, self.adamw = table, master, adamw
        if not adamw.state[master]:
            adamw.state[master] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }
        self.step_of = torch.zeros(len(master), dtype=torch.int64)
        """Step that each row has reached."""
        self.rates = np.zeros(1)
        """Learning rate of each step; there is no step 0."""
        self.pieces: list[tuple[torch.Tensor, torch.Tensor]] = []
        table.sparse = True
        self.handle = table.register_forward_pre_hook(self._before)

    @property
    def group(self) -> dict[str, Any]:
        """Rate, decay and constants."""
        return next(group for group in self.adamw.param_groups if any(one is self.master for one in group["params"]))

    def release(self) -> None:
        """Let the table be as it was."""
        self.table.sparse = False
        self.handle.remove()

    def collect(self) -> None:
        """Take the gradients of a micro-batch."""
        gradient = self.table.weight.grad
        if gradient is not None:
            self.pieces.append((gradient._indices()[0], gradient._values().float()))
            self.table.weight.grad = None

    def clear(self) -> None:
        """Forget all gradients."""
        self.pieces = []
        self.table.weight.grad = None

    def merge(self) -> torch.Tensor | None:
        """Add the gradients of each row up; returns them, shape (rows touched, width), to be scaled in place."""
        if not self.pieces:
            return None
        rows, places = torch.unique(torch.cat([rows for rows, _ in self.pieces]), return_inverse=True)
        values = torch.cat([values for _, values in self.pieces])
        sums = torch.zeros(len(rows), values.shape[1]).index_add_(0, places, values)
        self.pieces = [(rows, sums)]
        return sums

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take a step with the gradients that ``merge`` made.

        Args:
            rate: Learning rate of this step.
        """
        self.rates = np.append(self.rates, rate)
        step = len(self.rates) - 1
        state = self.adamw.state[self.master]
        state["step"].fill_(step)
        if not self.pieces:
            return
        ((rows, gradient),) = self.pieces
        low, high = self.group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        means = mean[rows].lerp_(gradient, 1 - low)
        squares = square[rows].mul_(high).addcmul_(gradient, gradient, value=1 - high)
        mean[rows], square[rows] = means, squares
        weights = self.master[rows].mul_(1 - rate * self.group["weight_decay"])
        root = squares.sqrt_().div_((1 - high**step) ** 0.5).add_(self.group["eps"])
        self._write(rows, weights.addcdiv_(means, root, value=-rate / (1 - low**step)))
        self.step_of[rows] = step

    def state(self) -> dict[str, Any]:
        """How far each row is, beside what ``adamw`` holds; see ``load``."""
        return {"step_of": self.step_of.clone(), "rates": self.rates.tolist()}

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from what ``state`` gave, or without it from a dense step of ``adamw``, in whose place this goes on."""
        if state is None:
            step = int(self.adamw.state[self.master]["step"])
            state = {"step_of": torch.full((len(self.master),), step), "rates": [0.0] * (step + 1)}
        self.step_of, self.rates = state["step_of"], np.array(state["rates"])

    def flush(self) -> None:
        """Let all rows make up for what they have missed."""
        self._catch_up(torch.arange(len(self.master)))

    def _before(self, table: nn.Module, ids: tuple[torch.Tensor, ...]) -> None:
        if table.training:
            self._catch_up(torch.unique(ids[0]))

    @torch.no_grad()
    def _catch_up(self, rows: torch.Tensor) -> None:
        now = len(self.rates) - 1
        rows = rows[self.step_of[rows] < now]
        if not len(rows):
            return
        gaps, places = torch.unique(self.step_of[rows], return_inverse=True)
        shares, left = self._missed(gaps.numpy(), now)
        low, high = self.group["betas"]
        state = self.adamw.state[self.master]
        means, squares = state["exp_avg"][rows], state["exp_avg_sq"][rows]
        root = squares.sqrt().add_(self.group["eps"] * (1 - high**now) ** 0.5)
        moved = (means / root).mul_(torch.from_numpy(shares)[places, None])
        self._write(rows, self.master[rows].mul_(torch.from_numpy(left)[places, None]).sub_(moved))
        missed = (now - self.step_of[rows])[:, None].float()
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = means.mul_(low**missed), squares.mul_(high**missed)
        self.step_of[rows] = now

    def _missed(self, since: NDArray[np.int64], now: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """For rows that have reached a step: the factor of m / sqrt(v) up to now, and what weight decay leaves."""
        low, high = self.group["betas"]
        steps = np.arange(now + 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            # A decay by more than all of a weight gives NaN, and the loss then ends the fit.
            left = np.exp(np.cumsum(np.log1p(-self.rates * self.group["weight_decay"])))
        each = np.append(0.0, (self.rates / left * np.sqrt(1 - high**steps))[1:] / (1 - low ** steps[1:])) * left[now]
        index = since[:, None] + np.arange(1, HORIZON + 1)
        inside = index <= now
        shares = (each[np.where(inside, index, 0)] * inside) @ (low / high**0.5) ** np.arange(1, HORIZON + 1)
        return shares.astype(np.float32), (left[now] / left[since]).astype(np.float32)

    def _write(self, rows: torch.Tensor, weights: torch.Tensor) -> None:
        self.master[rows] = weights
        if self.table.weight is not self.master:
            self.table.weight[rows] = weights.to(self.table.weight.dtype)
