"""Dropout on a CPU from cheap random bytes.

torch draws a dropout mask on the CPU number by number, which took an eighth of a training step of a small encoder (see
tests/bench/RESULTS.md). Here one random byte decides about a value, and the generator is started anew for each
optimizer step from (seed, step, rank), so that an interrupted fit drops the same values again without keeping a state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn


class Chance:
    """Random bytes that depend on where they are asked for alone."""

    def __init__(self) -> None:
        self.bits = np.random.SFC64(0)

    def begin(self, *place: int) -> None:
        """Start anew for a place, such as (seed, step, rank)."""
        self.bits = np.random.SFC64(np.random.SeedSequence(place))

    def draw(self, count: int) -> torch.Tensor:
        """The next `count` bytes, shape (count,), uint8."""
        words: np.ndarray[Any, Any] = self.bits.random_raw((count + 7) // 8)
        return torch.from_numpy(words.view(np.uint8)[:count])


class CheapDropout(nn.Module):
    """Sets values to 0 with a probability rounded to a 256th, and scales the others so that the mean stays."""

    def __init__(self, p: float, chance: Chance) -> None:
        super().__init__()
        self.p, self.chance = p, chance
        self.dropped = round(p * 256)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Drop values while training, shape kept."""
        if not self.training or not self.dropped:
            return values
        kept = self.chance.draw(values.numel()).view(values.shape) >= self.dropped
        return values * kept.to(values.dtype).mul_(256 / (256 - self.dropped))


def make_dropout_cheap(model: nn.Module, chance: Chance) -> Callable[[], None]:
    """Put ``CheapDropout`` in the place of all ``nn.Dropout`` of a model; returns what puts these back."""
    replaced: list[tuple[nn.Module, str, nn.Dropout]] = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Dropout and 0 < child.p < 1
    ]
    for parent, name, child in replaced:
        setattr(parent, name, CheapDropout(child.p, chance))

    def put_back() -> None:
        for parent, name, child in replaced:
            setattr(parent, name, child)

    return put_back
