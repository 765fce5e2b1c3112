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


ATTENTION = "cheap_dropout"
"""Name of the attention below among those of transformers."""

FAMILIES = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})
"""Families whose eager attention drops by the ``nn.Dropout`` of its module, and is otherwise the one below."""


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The eager attention of transformers, with the cheap dropout of its module.

    Args:
        module: Has a ``dropout``.
        query: Shape (rows, heads, tokens, width); so are `key` and `value`.
        key: See `query`.
        value: See `query`.
        attention_mask: Is added to the scores, (rows, 1, tokens, tokens); None where no row is padded.
        scaling: Of the scores.

    Returns:
        The output, (rows, tokens, heads, width), and the weights.
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = module.dropout(nn.functional.softmax(scores, dim=-1))  # type: ignore[operator]
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def make_dropout_cheap(model: nn.Module, chance: Chance) -> Callable[[], None]:
    """Put ``CheapDropout`` in the place of all ``nn.Dropout`` of a model, and into its attention where that is known.

    Returns:
        What puts these back.
    """
    replaced: list[tuple[nn.Module, str, nn.Dropout]] = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Dropout and 0 < child.p < 1
    ]
    for parent, name, child in replaced:
        setattr(parent, name, CheapDropout(child.p, chance))
    config: Any = getattr(model, "config", None)
    within = getattr(config, "model_type", None) in FAMILIES and config._attn_implementation == "eager"
    if within:
        _name_attention()
        model.set_attn_implementation(ATTENTION)  # type: ignore[operator]

    def put_back() -> None:
        if within:
            model.set_attn_implementation("eager")  # type: ignore[operator]
        for parent, name, child in replaced:
            setattr(parent, name, child)

    return put_back


def _name_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
