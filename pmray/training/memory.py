"""How much of a GPU a fit takes: measured, with a step on its longest rows."""

from __future__ import annotations

import numpy as np
import torch

from pmray.data.encode import Encoded
from pmray.training import loop
from pmray.training.hardware import device_here
from pmray.training.trial import Work, open_fit

CONTEXT = 600 * 2**20
"""Bytes that a process takes of a GPU before its first tensor: CUDA's context and libraries."""


def gpu_memory(work: Work) -> tuple[int, int] | None:
    """Bytes of a GPU that a fit takes, and those that the GPU has; None without one.

    One step and one evaluation on the longest rows of an effective batch, in passes of at most
    ``recipe.max_batch_tokens``: no later step takes more.

    Args:
        work: The fit; nothing of it is kept.

    Raises:
        OutOfMemory: Not even one row fits.
    """
    device = device_here()
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    begin = open_fit(work)
    longest = np.sort(np.argsort(begin.train.lengths)[-work.recipe.batch_size :])
    rows = Encoded(begin.train.rows(longest), begin.train.lengths[longest], begin.train.pad)
    targets = begin.targets[longest]
    loop.fit(
        begin.model,
        begin.task,
        work.recipe,
        rows,
        targets,
        rows,
        targets,
        metric=work.metric,
        rungs=(len(rows),),
        seed=work.seed,
        name=work.pretrained.name,
    )
    return int(torch.cuda.max_memory_reserved(device)) + CONTEXT, int(
        torch.cuda.get_device_properties(device).total_memory
    )
