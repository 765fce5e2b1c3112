"""Models that do not fit into one worker: weights, gradients and optimizer states sharded over the process group.

FSDP2 (``torch.distributed.fsdp.fully_shard``; Zhao et al. 2023, "PyTorch FSDP", VLDB 16): each layer is gathered when
it is needed and freed again, computes in bf16 where that is fast, and keeps its fp32 weights in shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, *, low_precision: bool) -> None:
    """Shard a model's layers, and what is around them, over all workers of the process group.

    Args:
        model: On the CPU or this worker's GPU; its layers are the members of its ``nn.ModuleList``.
        low_precision: Compute in bf16, with gradients reduced in fp32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if low_precision
        else MixedPrecisionPolicy()
    )
    for layers in _layer_lists(model):
        for layer in layers:
            fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def checkpoint_activations(model: nn.Module) -> None:
    """Compute the activations inside each layer again in the backward pass, in place of keeping them."""
    # transformers gave it a new name in its fifth version.
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def is_sharded(model: nn.Module) -> bool:
    """Whether ``shard`` was called for a model."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """All weights of a model; of a sharded one gathered to rank 0, where all workers must call, and empty elsewhere."""
    if not is_sharded(model):
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def gathered(value: Any, *, keep: bool) -> Any:
    """A state with whole tensors in place of shards, in nested dictionaries and lists; all workers call this alike.

    Args:
        value: Holds sharded tensors, others, and plain values.
        keep: Whether this worker wants the result; another one gets None for each tensor, and spares the memory.
    """
    if isinstance(value, Mapping):
        return {key: gathered(one, keep=keep) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [gathered(one, keep=keep) for one in value]
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return whole.cpu() if keep else None
    return value


def sharded_like(whole: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """This worker's shard of a tensor that all workers hold whole, cut as `example` is; as it is where that is not."""
    if not isinstance(example, DTensor) or whole.shape != example.shape:
        return whole
    here = whole.to(example.device, example.dtype)
    return distribute_tensor(here, example.device_mesh, example.placements, src_data_rank=None)


def _layer_lists(model: nn.Module) -> list[nn.ModuleList]:
    """The lists of layers, without lists inside of layers."""
    found: list[nn.ModuleList] = []
    for module in model.modules():
        inside = any(module is inner for one in found for inner in one.modules())
        if isinstance(module, nn.ModuleList) and not inside:
            found.append(module)
    return found
