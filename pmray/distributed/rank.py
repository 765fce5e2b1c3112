"""Rank candidates on a Ray cluster, without fine-tuning them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from pmray.distributed.cluster import elsewhere
from pmray.selection import proxies
from pmray.selection.features import look
from pmray.spec import Resources
from pmray.training.hardware import return_memory
from pmray.training.model import Pretrained
from pmray.training.trial import open_task


def rank_candidates(
    candidates: Sequence[Pretrained],
    resources: Mapping[str, Resources],
    settings: Mapping[str, Any],
    metric: str,
    cache: str,
    encodings: Mapping[str, str],
    rows: NDArray[np.int64],
    targets: NDArray[Any],
    on_end: Callable[[Pretrained, dict[str, float] | None, proxies.Cost | None, str | None, float], None],
) -> None:
    """Score frozen candidates on the same training rows, in parallel.

    Args:
        candidates: Who.
        resources: Candidate -> CPUs and GPUs of its task.
        settings: ``task.to_json()``.
        metric: Name of the deciding metric.
        cache: Folder (or URL) of encoded data.
        encodings: Candidate -> key of its encoded data.
        rows: Positions of the training rows.
        targets: Their labels.
        on_end: Called with (candidate, proxies, cost of a row, error, seconds) as each one ends.
    """
    shared = ray.put((rows, targets))
    running = {}
    for one in candidates:
        demand = resources[one.name]
        task = _rank_one.options(
            num_cpus=demand.cpus_per_worker, num_gpus=demand.gpus_per_worker, label_selector=elsewhere()
        )
        running[task.remote(one, settings, metric, cache, encodings[one.name], shared)] = one
    while running:
        done, _ = ray.wait(list(running), num_returns=1)
        one = running.pop(done[0])
        try:
            scores, cost, seconds = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            on_end(one, None, None, f"{type(error.cause).__name__}: {error.cause}".strip()[-500:], 0.0)
        except ray.exceptions.RayError as error:
            on_end(one, None, None, f"{type(error).__name__}: {str(error).strip()[:300]}", 0.0)
        else:
            on_end(one, scores, cost, None, seconds)


@ray.remote(max_retries=1)
def _rank_one(
    one: Pretrained,
    settings: Mapping[str, Any],
    metric: str,
    cache: str,
    encoding: str,
    shared: tuple[NDArray[np.int64], NDArray[Any]],
) -> tuple[dict[str, float], proxies.Cost, float]:
    started = time.perf_counter()
    rows, targets = shared
    seen = look(one, settings, cache, encoding, rows)
    scores = proxies.judge(seen.features, targets, open_task(settings), metric, seen.source)
    cost = proxies.Cost(seen.latency_ms, seen.memory_bytes)
    # Ray keeps this process for other tasks.
    del seen
    return_memory()
    return scores, cost, time.perf_counter() - started
