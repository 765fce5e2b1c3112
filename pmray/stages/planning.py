"""What a spec will do, how long that may take and how much disk it needs, without doing it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from pmray.data.encode import encode_table
from pmray.distributed.cluster import Capacity, at_a_time, connected
from pmray.placement import Node, check_memory, needed_memory, places
from pmray.report.progress import people
from pmray.selection.budget import states_at_a_time
from pmray.spec import Log, Range, Spec, Uniform
from pmray.stages import preparation
from pmray.stages.preparation import Prepared
from pmray.training.hardware import fastest_precision
from pmray.training.model import Pretrained
from pmray.training.trial import recipe_length

SHARE_OF_PRODUCTS = 0.3
"""Part of a fine-tuning step that is matrix products; measured on encoders of 10 to 100 M parameters on CPUs."""

SAMPLE = 200
"""Training rows that are tokenized to know their mean length."""


@dataclass(frozen=True)
class PlannedCandidate:
    """A candidate's part in the plan."""

    name: str
    model: str
    family: str
    parameters: int
    recipe: dict[str, Any]
    """The default recipe, which is tried first."""
    space: dict[str, str]
    workers: int
    cpus: float
    gpus: float
    tokens: float
    """Mean of a training row."""
    seconds: float
    """Of one full trial, roughly."""
    places: int
    """Trials of this candidate that the cluster holds at once."""
    memory_bytes: int
    """Of one of its workers at least, before activations."""


@dataclass(frozen=True)
class Plan:
    """What will run."""

    name: str
    task: str
    metric: str
    labels: tuple[str, ...]
    rows: dict[str, int]
    candidates: tuple[PlannedCandidate, ...]
    unavailable: dict[str, str]
    rungs: tuple[int, ...]
    """Examples after which trials are compared."""
    trials: int
    finalists: int
    seeds: int
    at_a_time: int
    cpus: float
    gpus: float
    examples: int
    """Seen in training, over all trials and fits, if halving stops none."""
    disk_bytes: int
    """At most at one time: encoded data, states of trials that wait at a rung, finalists' weights, bundle."""
    seconds: float
    """Roughly and at most: halving stops trials early."""


def plan(spec: Spec, *, address: str | None = None, console: Console | None = None) -> Plan:
    """Check data and candidates, and reckon what the sweep will cost. Nothing is encoded or trained.

    Args:
        spec: The job.
        address: Of a Ray cluster; by default this machine, and Ray is not started.
        console: For progress.

    Raises:
        DataError: The data cannot be used.
        ClusterError: A candidate asks for more than there is.
    """
    preparation.check_command(spec, labels=True)
    console = console or people()
    prepared = preparation.prepare(spec, console)
    if address:
        with connected(address, short=True) as cluster:
            pass
    else:
        cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cluster = Capacity(cpus, gpus, 1, (Node("", "this machine", cpus, gpus, memory),))
    resources = {one.name: spec.resources_of(one.candidate) for one in prepared.candidates}
    parallel = at_a_time(resources, cluster, spec.search.concurrency)
    rate = _products_per_second()
    for one in prepared.candidates:
        frozen = _mostly_frozen(prepared, one)
        check_memory(one.name, one.parameters, resources[one.name], cluster.each, frozen=frozen)
    planned = tuple(_planned(prepared, one, rate, cluster) for one in prepared.candidates)
    slowest = sorted((one.seconds for one in planned), reverse=True)
    finalists = min(spec.search.finalists, len(planned))
    # Trials are spread over candidates; finalists may be the slowest ones.
    sweep_seconds = spec.search.trials * sum(slowest) / len(slowest)
    fits = finalists * spec.search.seeds
    final_seconds = spec.search.seeds * sum(slowest[:finalists])
    largest = max(one.parameters for one in planned)
    # Of trials that wait at a rung: weights, the best of them so far, and the optimizer's two moments.
    waits = spec.search.pause and spec.search.stop and spec.search.rungs
    states = 16 * largest * states_at_a_time(spec.search, len(planned)) if waits else 0
    rows = {name: len(getattr(prepared.dataset, name)) for name in ("train", "validation", "test")}
    weights = sum(sorted((4 * one.parameters for one in planned), reverse=True)[:finalists]) * spec.search.seeds
    encoded = (
        len(set(prepared.encodings.values())) * sum(rows.values()) * 8 * int(max(one.tokens for one in planned) + 4)
    )
    return Plan(
        name=spec.name,
        task=spec.task,
        metric=prepared.metric,
        labels=prepared.task.labels,
        rows=rows,
        candidates=planned,
        unavailable=dict(prepared.unavailable),
        rungs=tuple(prepared.rungs),
        trials=spec.search.trials,
        finalists=finalists,
        seeds=spec.search.seeds,
        at_a_time=parallel,
        cpus=cluster.cpus,
        gpus=cluster.gpus,
        examples=round((spec.search.trials + fits) * prepared.rungs[-1]),
        disk_bytes=weights + encoded + 4 * largest + states,
        seconds=(sweep_seconds + final_seconds) / parallel,
    )


def _planned(prepared: Prepared, one: Pretrained, rate: float, cluster: Capacity) -> PlannedCandidate:
    arm, resources = prepared.arms[one.name], prepared.spec.resources_of(one.candidate)
    tokens = _mean_tokens(prepared, one)
    # A step multiplies every weight of the layers two times forward and four times backward (Kaplan et al. 2020).
    operations = 6 * one.layer_parameters * tokens * arm.default.epochs * len(prepared.dataset.train)
    workers = resources.fewest * max(1.0, resources.cpus_per_worker)
    return PlannedCandidate(
        name=one.name,
        model=one.candidate.model,
        family=one.family,
        parameters=one.parameters,
        recipe=arm.default.model_dump(),
        space={field: show_range(values) for field, values in arm.space.items()},
        workers=resources.fewest,
        cpus=resources.cpus_per_worker,
        gpus=resources.gpus_per_worker,
        tokens=round(tokens, 1),
        seconds=operations / (rate * SHARE_OF_PRODUCTS * workers),
        places=places(one.name, resources, cluster.each),
        memory_bytes=needed_memory(one.parameters, resources, frozen=_mostly_frozen(prepared, one)),
    )


def _mostly_frozen(prepared: Prepared, one: Pretrained) -> bool:
    recipe = prepared.arms[one.name].default
    return bool(recipe.lora_rank or recipe.head_only)


def _mean_tokens(prepared: Prepared, one: Pretrained) -> float:
    rows = prepared.dataset.train.slice(0, SAMPLE)
    length = recipe_length(prepared.arms[one.name].default, one)
    return float(encode_table(prepared.task, rows, prepared.task.processor(one.folder), length).lengths.mean())


def _products_per_second() -> float:
    """Operations per second of matrix products of a small encoder's shape, on one core (or the GPU)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.bfloat16 if fastest_precision() == "bf16" else torch.float32
    a, b = torch.randn(768, 384, device=device, dtype=kind), torch.randn(384, 1536, device=device, dtype=kind)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(3):
            a @ b
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < 0.2:
            (a @ b).sum().item()
            count += 1
        return 2 * 768 * 384 * 1536 * count / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)


def show_range(values: Range) -> str:
    """Write a search range as in a spec.

    >>> show_range(Log(log=(1e-5, 1e-4)))
    'log 1e-05 to 0.0001'
    """
    if isinstance(values, Log):
        return f"log {values.log[0]:g} to {values.log[1]:g}"
    if isinstance(values, Uniform):
        return f"{values.uniform[0]:g} to {values.uniform[1]:g}"
    return " | ".join(str(value) for value in values.choice)
