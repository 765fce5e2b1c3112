"""Fit on N workers with Ray Train: carries out works one after the other in one worker group."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue

from pmray.spec import Resources
from pmray.training.loop import Rung
from pmray.training.trial import Facts, Work, carry_out

FACTS = "facts.json"
"""Written when a fit is complete, so that a worker group that lost a worker does not repeat finished fits."""


def fit_groups(
    groups: Mapping[str, Sequence[Work]],
    resources: Mapping[str, Resources],
    *,
    at_a_time: int,
    scratch: Path,
    on_rung: Callable[[Work, Rung], None],
    on_end: Callable[[Work, Facts], None],
) -> None:
    """Carry out groups of works, each group in a Ray Train worker group of its own, several groups at a time.

    Args:
        groups: Group name -> works, such as the seeds of a finalist.
        resources: Group name -> workers and their resources.
        at_a_time: Groups that run at once.
        scratch: Folder for Ray Train's own files; removed by the caller.
        on_rung: Called in the driver when a work reaches a rung.
        on_end: Called in the driver when a work has ended, well or not.
    """
    works = {work.key: work for group in groups.values() for work in group}
    queue = Queue(actor_options={"num_cpus": 0})
    waiting = list(groups)
    running: dict[str, _Group] = {}
    ended: set[str] = set()

    def drain(timeout: float) -> None:
        try:
            key, news = queue.get(timeout=timeout)
        except Empty:
            return
        if not isinstance(news, Facts):
            on_rung(works[key], news)
        elif key not in ended:
            ended.add(key)
            on_end(works[key], news)

    while waiting or running:
        while waiting and len(running) < at_a_time:
            name = waiting.pop(0)
            running[name] = _Group(groups[name], resources[name], queue, name, scratch)
            running[name].start()
        drain(timeout=0.5)
        for name in [name for name, group in running.items() if not group.is_alive()]:
            group = running.pop(name)
            while not queue.empty():
                drain(timeout=0)
            for work in groups[name]:
                if work.key not in ended:
                    ended.add(work.key)
                    on_end(work, Facts(status="failed", error=group.error or "the worker group ended without a result"))
    queue.shutdown()


class _Group(Thread):
    """Waits for one worker group; a thread, since a Ray task would cost a process that only waits."""

    def __init__(self, works: Sequence[Work], resources: Resources, queue: Queue, name: str, scratch: Path) -> None:
        super().__init__(daemon=True)
        self.error: str | None = None
        self.trainer = TorchTrainer(
            _worker,
            train_loop_config={"works": works, "queue": queue},
            scaling_config=scaling(resources),
            # A lost worker or node can pass; what a trial itself did wrong comes back as facts.
            run_config=RunConfig(name=name, storage_path=str(scratch), failure_config=FailureConfig(max_failures=2)),
        )

    def run(self) -> None:
        """Train; what Ray Train raises is kept as text."""
        try:
            self.trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            self.error = str(error).strip()[-1000:]


def scaling(resources: Resources) -> ScalingConfig:
    """Ray Train's form of a candidate's resources."""
    per_worker = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    return ScalingConfig(
        num_workers=resources.workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=per_worker
    )


def _worker(config: dict[str, Any]) -> None:
    """Every worker of the group runs this; rank 0 speaks for all, since all hold the same scores."""
    queue: Queue = config["queue"]
    first = ray.train.get_context().get_world_rank() == 0
    for work in config["works"]:
        done = work.checkpoint / FACTS
        if done.is_file():
            facts = read_facts(done)
        else:
            facts = carry_out(work, partial(_send, queue, work.key) if first else _keep_silent)
            if first and facts.status == "done":
                done.write_text(json.dumps(asdict(facts)))
        if first:
            queue.put((work.key, facts))
        # A barrier: no worker begins the next fit, or looks for its file, before all have ended this one.
        ray.train.report({"status": facts.status})


def _send(queue: Queue, key: str, rung: Rung) -> None:
    queue.put((key, rung))


def _keep_silent(rung: Rung) -> None:
    """Rank 0 speaks for all."""


def read_facts(path: Path) -> Facts:
    """Read the facts of a finished fit."""
    values = json.loads(path.read_text())
    return Facts(**{**values, "curve": tuple((int(examples), float(score)) for examples, score in values["curve"])})
