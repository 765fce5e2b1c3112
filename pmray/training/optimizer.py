"""What moves the weights: AdamW by groups of parameters, its rate over time, and fp32 copies of bf16 weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from pmray.spec import Recipe
from pmray.training.embedding_rows import EmbeddingRows, lone_table
from pmray.training.layers import depths
from pmray.training.sharding import sharded_like

BUCKET_BYTES = 64 << 20
"""Gradients that are summed over workers at a time."""


class Optimizer:
    """AdamW over the trained parameters of a model (Loshchilov & Hutter 2019).

    Weights in bf16 have fp32 copies, the masters, which collect the gradients and take the steps (Micikevicius et al.
    2018, "Mixed precision training"): a step is often smaller than what bf16 can add to a weight.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, *, rows_alone: bool = False) -> None:
        """Take a model's trained weights over.

        Args:
            model: In the precision and on the device that it is trained in.
            recipe: Gives rates and decay.
            rows_alone: Step only those rows of the token embeddings that a batch touches; one worker, on a CPU.
        """
        named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
        self.weights = [one for _, one in named]
        self.masters = [
            one if one.dtype == torch.float32 else nn.Parameter(one.detach().float()) for one in self.weights
        ]
        self.adamw = torch.optim.AdamW(
            _groups([name for name, _ in named], self.masters, recipe, depths(model)), fused=True
        )
        self.rates = [float(group["lr"]) for group in self.adamw.param_groups]
        self.table = lone_table(model)
        self.rows = self._rows() if rows_alone else None
        table = None if self.rows is None else self.rows.table.weight
        self.low = [
            (own, one)
            for own, one in zip(self.weights, self.masters, strict=True)
            if own is not one and own is not table
        ]

    def _rows(self) -> EmbeddingRows | None:
        if self.table is None:
            return None
        place = next(place for place, one in enumerate(self.weights) if one is self.table.weight)
        return EmbeddingRows(self.table, self.masters[place], self.adamw)

    def flush(self) -> None:
        """Bring all weights up to date, before they are read."""
        if self.rows is not None:
            self.rows.flush()

    def release(self) -> None:
        """Let the model be as it was."""
        if self.rows is not None:
            self.rows.release()

    def collect(self) -> None:
        """Add the gradients of bf16 weights to those of their masters, in fp32; after each micro-batch."""
        if self.rows is not None:
            self.rows.collect()
        for own, master in self.low:
            if own.grad is not None:
                master.grad = own.grad.float() if master.grad is None else master.grad.add_(own.grad)
                own.grad = None

    def clear(self) -> None:
        """Forget all gradients."""
        for one in (*self.weights, *self.masters):
            one.grad = None
        if self.rows is not None:
            self.rows.clear()

    def sum_over_workers(self) -> None:
        """Sum the gradients of all workers of the process group, bucket by bucket."""
        bucket: list[torch.Tensor] = []
        size = 0
        for one in self.masters:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
            bucket.append(one.grad)
            size += one.grad.numel() * one.grad.element_size()
            if size >= BUCKET_BYTES:
                _all_reduce(bucket)
                bucket, size = [], 0
        if bucket:
            _all_reduce(bucket)

    def step(self, factor: float, clip: float, scale: float = 1.0) -> float:
        """Clip the gradients to a norm, take a step, and forget them.

        Args:
            factor: Share of each group's peak learning rate.
            clip: Largest norm of all gradients together.
            scale: What the loss was multiplied by (fp16).

        Returns:
            The norm before clipping; where it is not finite, no step was taken.
        """
        gradients = [one.grad for one in self.masters if one.grad is not None]
        if self.rows is not None and (touched := self.rows.merge()) is not None:
            gradients.append(touched)
        if scale != 1.0:
            torch._foreach_mul_(gradients, 1 / scale)
        total = nn.utils.get_total_norm(gradients)
        # Of sharded weights each worker holds a part of the sum.
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if math.isfinite(norm):
            if norm > clip:
                torch._foreach_mul_(gradients, clip / (norm + 1e-6))
            for group, rate in zip(self.adamw.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            self.adamw.step()
            if self.rows is not None:
                self.rows.step(self.rows.group["lr"])
            self._write_low()
        self.clear()
        return norm

    def full_precision(self) -> dict[int, torch.Tensor]:
        """``id`` of each weight that has a master -> the master's value."""
        pairs = self.low if self.rows is None else [*self.low, (self.rows.table.weight, self.rows.master)]
        return {id(own): master.detach() for own, master in pairs if own is not master}

    def take(self, values: Mapping[int, torch.Tensor]) -> None:
        """Set the masters by the ``id`` of their weights, and from them the weights."""
        with torch.no_grad():
            for own, master in self.low:
                master.copy_(values[id(own)])
            if self.rows is not None:
                self.rows.master.copy_(values[id(self.rows.table.weight)])
        self._write_low()

    def state(self) -> dict[str, Any]:
        """What a later process needs to go on; see ``load``."""
        return {**self.adamw.state_dict(), "rows": None if self.rows is None else self.rows.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave, with the same parameters, sharded in another way or not at all."""
        parameters = [one for group in self.adamw.param_groups for one in group["params"]]
        moments = {
            number: {name: sharded_like(one, parameters[number]) for name, one in values.items()}
            for number, values in state["state"].items()
        }
        self.adamw.load_state_dict({"param_groups": state["param_groups"], "state": moments})
        if self.rows is not None:
            self.rows.load(state["rows"])
        elif state["rows"] is not None and (rows := self._rows()) is not None:
            # One worker kept the state, several go on.
            rows.load(state["rows"])
            rows.flush()
            rows.release()

    def _write_low(self) -> None:
        if self.low:
            with torch.no_grad():
                torch._foreach_copy_([own for own, _ in self.low], [master for _, master in self.low])


def rate_factor(step: int, steps: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: a rise in the warm-up, then the schedule's fall to 0."""
    warmup = round(recipe.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = max(0.0, (steps - step) / max(1, steps - warmup))
    if recipe.schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    return left if recipe.schedule == "linear" else 1.0


def change_factor(seen: int, budget: int, recipe: Recipe) -> float:
    """What the recipe's ``lr_changes`` make of the learning rate after so many examples of a whole fit.

    >>> [change_factor(seen, 1200, Recipe(lr_changes=((0.25, 0.8), (0.5, 1.25)))) for seen in (299, 300, 600)]
    [1.0, 0.8, 1.0]
    """
    return math.prod((factor for share, factor in recipe.lr_changes if seen >= round(share * budget)), start=1.0)


def _groups(
    names: list[str], parameters: list[nn.Parameter], recipe: Recipe, depth: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Groups of one rate and decay each: biases and norms are not decayed (Devlin et al. 2019).

    With ``layer_decay`` the rate falls by that factor from layer to layer, from the head down to the embeddings
    (Howard & Ruder 2018; Clark et al. 2020, ELECTRA).
    """
    top = max(depth.values(), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, one in zip(names, parameters, strict=True):
        rate = recipe.lr * recipe.layer_decay ** (top - depth[name])
        groups.setdefault((rate, recipe.weight_decay if one.ndim > 1 else 0.0), []).append(one)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def _all_reduce(tensors: list[torch.Tensor]) -> None:
    flat = torch.cat([one.reshape(-1) for one in tensors])
    dist.all_reduce(flat)
    for one, part in zip(tensors, torch.split(flat, [one.numel() for one in tensors]), strict=True):
        one.copy_(part.view_as(one))
