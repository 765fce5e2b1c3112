"""What a frozen candidate sees in rows, from one forward pass, and what it takes to look: time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from pmray import storage
from pmray.data.encode import Encoded, open_encoded
from pmray.scoring.ragged import is_ragged, ragged
from pmray.spec import Recipe
from pmray.tasks.base import Task
from pmray.tasks.pretrained import open_head
from pmray.training.model import Pretrained, on_this_node, open_model, quiet_transformers
from pmray.training.prediction import map_rows, measure_latency
from pmray.training.trial import open_task


@dataclass(frozen=True)
class Frozen:
    """What a frozen model gave."""

    features: NDArray[Any]
    """Shape (rows, width), (rows, ways to pool, width), or ragged; in the order of the rows asked for."""
    source: NDArray[Any] | None
    """Probabilities that its own classification head gives to the labels it was trained for, shape (rows, labels) or
    ragged; None where it has no such head."""
    latency_ms: float
    """Median of a forward pass of one row."""
    memory_bytes: int
    """Weights, and the most that a forward pass of one row took beside them."""


def look(
    pretrained: Pretrained, settings: Mapping[str, Any], cache: str | Path, encoding: str, rows: NDArray[np.int64]
) -> Frozen:
    """Open a candidate as it is and show it some training rows, once.

    Args:
        pretrained: Who.
        settings: ``task.to_json()``.
        cache: Folder (or URL) of encoded data.
        encoding: Key of the candidate's encoded data.
        rows: Positions of training rows.
    """
    task = open_task(settings)
    train = open_encoded(storage.fetched(str(cache), f"encoded-{encoding}"), encoding, "train")
    torch.manual_seed(0)
    here = on_this_node(pretrained)
    model = _with_own_head(here, task, train.pad)
    own = model is not None
    model = model or open_model(here, task, pad=train.pad)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    latency, memory = _cost(model, task, train)
    width = 0

    def see(model: nn.Module, batch: dict[str, torch.Tensor], encoded: pa.Table) -> torch.Tensor | NDArray[Any]:
        nonlocal width
        if not own:
            plain: torch.Tensor | NDArray[Any] = task.features(model, batch, encoded)
            return plain
        captured: list[Any] = []
        handle = model.base_model.register_forward_hook(lambda *ran: captured.append(ran[2]))  # type: ignore[union-attr]
        try:
            logits = model(**batch, output_hidden_states=True).logits
        finally:
            handle.remove()
        # The task asks the body once more for what it has just said.
        seen = task.features(SimpleNamespace(base_model=lambda **_: captured[0]), batch, encoded)  # type: ignore[arg-type]
        if isinstance(seen, np.ndarray):
            said = task.predict(logits, encoded)
            width = said[0].shape[1]
            return ragged([np.concatenate(both, axis=1) for both in zip(seen, said, strict=True)])
        said = logits.float().softmax(-1)
        width = said.shape[-1]
        if seen.ndim == 3:
            said = said[:, None].expand(-1, seen.shape[1], -1)
        return torch.cat([seen, said], dim=-1)

    found = map_rows(model, task, train, rows, see, Recipe())
    if not own:
        return Frozen(found, None, latency, memory)
    if is_ragged(found):
        return Frozen(
            ragged([row[:, :-width] for row in found]), ragged([row[:, -width:] for row in found]), latency, memory
        )
    source = found[..., -width:]
    return Frozen(found[..., :-width], source[:, 0] if source.ndim == 3 else source, latency, memory)


def _with_own_head(pretrained: Pretrained, task: Task, pad: int) -> nn.Module | None:
    """The model with the classification head it comes with; None where it has none of the task's kind.

    A head stands on the last layer, so a model that is cut has lost its own.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(pretrained.folder, trust_remote_code=False, local_files_only=True)
    kind = task.head.removeprefix("AutoModel")
    if pretrained.candidate.layers or not any(name.endswith(kind) for name in config.architectures or ()):
        return None
    if config.num_labels < 2 or getattr(config, "problem_type", None) not in (None, "single_label_classification"):
        return None
    if getattr(config, "pad_token_id", pad) is None:
        config.pad_token_id = pad
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    with quiet_transformers():
        return open_head(
            task.head, pretrained.folder, config=config, dtype=torch.float32, attn_implementation=attention
        )


def _cost(model: nn.Module, task: Task, rows: Encoded) -> tuple[float, int]:
    """Milliseconds and bytes of one row at a time."""
    weights = sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        latency = measure_latency(model, task, rows)
        return latency, int(torch.cuda.max_memory_allocated())
    with suppress(OSError):
        # Linux then counts the peak of this process anew.
        Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    latency = measure_latency(model, task, rows)
    return latency, weights + max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    """Bytes of this process's memory, by a field of Linux; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)
