"""Which part of a model a weight belongs to: embeddings, a layer, what follows the layers, or the head."""

from __future__ import annotations

import re

from torch import nn

from pmray.errors import TrialError

LAYER = re.compile(r"(?:^|\.)(?:layer|layers|h|block|blocks)\.(\d+)\.")
"""Layer number in a weight's name, in all families of the Hub that pmray was tried on."""


def layer_of(name: str) -> int:
    """Number of the layer that a weight belongs to, -1 where it belongs to none.

    >>> layer_of("bert.encoder.layer.11.output.dense.weight"), layer_of("bert.embeddings.LayerNorm.weight")
    (11, -1)
    """
    found = LAYER.search(name)
    return int(found[1]) if found else -1


def depths(model: nn.Module) -> dict[str, int]:
    """Name of each parameter -> its depth: 0 for what stands before the layers, 1 … N for these, N + 1 for the rest."""
    names = [name for name, _ in model.named_parameters()]
    layers = 1 + max((layer_of(name) for name in names), default=-1)
    first = next((place for place, name in enumerate(names) if layer_of(name) >= 0), 0)
    return {
        name: layer_of(name) + 1 if layer_of(name) >= 0 else (0 if place < first else layers + 1)
        for place, name in enumerate(names)
    }


def freeze(model: nn.Module, *, embeddings: bool = False, layers: int = 0, body: bool = False) -> None:
    """Leave weights as pre-trained.

    Args:
        model: A body with a head.
        embeddings: The token (or patch) embeddings.
        layers: The first so many layers, and all that stands before them.
        body: All but the head.

    Raises:
        TrialError: The model has fewer layers.
    """
    if embeddings:
        model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
    depth = depths(model)
    there = max(depth.values()) - 1
    if layers > there:
        raise TrialError(f"`freeze_layers: {layers}`, but the model has {there}")
    prefix = f"{model.base_model_prefix}."
    for name, one in model.named_parameters():
        if (layers and depth[name] <= layers) or (body and name.startswith(prefix)):
            one.requires_grad_(False)
