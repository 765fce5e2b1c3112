"""Heads that read the first token alone: the last layer then need not compute the others behind its attention.

A classifier of the BERT or ViT kind looks at the vector of ``[CLS]`` only, and what follows the last layer's attention
(its output projection, feed-forward part and norms: three quarters of a layer's weights) works on each token by itself.
Cutting the others off there leaves the logits and all gradients as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pmray.training.layers import layer_of

CUT_BEFORE = {
    "BertForSequenceClassification": "attention.output",
    "CamembertForSequenceClassification": "attention.output",
    "DeiTForImageClassification": "layernorm_after",
    "DistilBertForSequenceClassification": "sa_layer_norm",
    "ElectraForSequenceClassification": "attention.output",
    "RobertaForSequenceClassification": "attention.output",
    "ViTForImageClassification": "layernorm_after",
    "XLMRobertaForSequenceClassification": "attention.output",
}
"""Class of a model -> the part of its last layer from which on each token goes its own way.

A residual connection around that part still adds all tokens of an image to the first one's; those behind the first then
hold numbers that mean nothing, and nobody reads them.
"""


@contextmanager
def first_token_only(model: nn.Module) -> Iterator[None]:
    """Leave out, for a block, what the model's head does not read; does nothing to models that read more.

    Args:
        model: Maps tokens to logits; its hidden states are not whole inside the block.
    """
    part = _last_part(model)
    if part is None:
        yield
        return
    handle = part.register_forward_pre_hook(_cut)
    try:
        yield
    finally:
        handle.remove()


def _cut(part: nn.Module, states: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hidden states of the first token, shape (rows, 1, width)."""
    return tuple(one[:, :1] if isinstance(one, torch.Tensor) else one for one in states)


def _last_part(model: nn.Module) -> nn.Module | None:
    """The part of the last layer before which to cut."""
    inner = getattr(model, "get_base_model", lambda: model)()  # below adapters
    part = CUT_BEFORE.get(type(inner).__name__.removeprefix("FSDP"))
    if part is None:
        return None
    found = [(layer_of(name), one) for name, one in inner.named_modules() if name.endswith(f".{part}")]
    return max(found, key=lambda one: one[0])[1] if found else None
