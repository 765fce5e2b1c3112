"""Fit on N workers with Ray Train: carries out works, each in a worker group of its own."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue

from pmray.errors import OutOfMemory
from pmray.spec import Resources
from pmray.training.loop import Rung
from pmray.training.state import State, StateFile, write_state
from pmray.training.trial import FACTS, Facts, Work, carry_out

STATE = "state.pt"
"""Name of the file in a checkpoint."""

PLACE_ATTEMPTS = 20
"""How often a worker group looks for a place: for five minutes, which is what new nodes of a cloud take."""

FAILURES = FailureConfig(max_failures=2, controller_failure_limit=PLACE_ATTEMPTS)
"""A lost worker or node can pass; what a trial itself did wrong comes back as facts."""

QUESTIONS = 20
"""Steps between two questions whether a node will be taken away: a question is a round trip of all workers."""


def fit_all(
    works: Sequence[Work],
    resources: Mapping[str, Resources],
    *,
    at_a_time: int,
    scratch: Path,
    on_rung: Callable[[Work, Rung], None],
    on_end: Callable[[Work, Facts], None],
) -> None:
    """Carry out works, each in a Ray Train worker group of its own, several at a time.

    Args:
        works: What to fit, in order.
        resources: Key of a work -> its workers and their resources.
        at_a_time: Worker groups that run at once.
        scratch: Folder for Ray Train's own files; removed by the caller.
        on_rung: Called in the driver when a work reaches a rung.
        on_end: Called in the driver when a work has ended, well or not.
    """
    queue = Queue(actor_options={"num_cpus": 0})
    by_key = {work.key: work for work in works}
    waiting = list(works)
    running: dict[str, _Group] = {}
    ended: set[str] = set()

    def drain(timeout: float) -> None:
        try:
            key, news = queue.get(timeout=timeout)
        except Empty:
            return
        if not isinstance(news, Facts):
            on_rung(by_key[key], news)
        elif key not in ended:
            ended.add(key)
            on_end(by_key[key], news)

    while waiting or running:
        while waiting and len(running) < at_a_time:
            work = waiting.pop(0)
            running[work.key] = _Group(work, resources[work.key], queue, scratch)
            running[work.key].start()
        drain(timeout=0.5)
        for key in [key for key, group in running.items() if not group.is_alive()]:
            group = running.pop(key)
            while not queue.empty():
                drain(timeout=0)
            if key not in ended:
                ended.add(key)
                on_end(by_key[key], group.failure)
    queue.shutdown()


class _Group(Thread):
    """Waits for one worker group; a thread, since a Ray task would cost a process that only waits."""

    def __init__(self, work: Work, resources: Resources, queue: Queue, scratch: Path) -> None:
        super().__init__(daemon=True)
        self.failure = Facts(status="failed", error="the worker group ended without a result")
        """What came of the work where no worker told it."""
        self.resources = resources
        self.trainer = TorchTrainer(
            _worker,
            train_loop_config={"work": work, "queue": queue},
            scaling_config=scaling(resources),
            run_config=RunConfig(
                name=work.key,
                # Beside the states of other fits: they outlive this driver.
                storage_path=work.states or str(scratch),
                failure_config=FAILURES,
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )

    def run(self) -> None:
        """Train; what Ray Train raises is kept as facts."""
        try:
            self.trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            self.failure = failure_of(error, self.resources)


def failure_of(error: Exception, resources: Resources) -> Facts:
    """What came of a work whose worker group ended with an error of Ray Train."""
    told = [str(one).strip() for one in getattr(error, "worker_failures", {}).values()]
    # Workers that lost another one tell of their connection to it; the cause is what that one tells.
    told.sort(key=lambda text: "torch/distributed" in text)
    reason = told[0] if told else str(error).strip()
    if "WorkerGroupStartupTimeout" in type(getattr(error, "controller_failure", None)).__name__:
        reason = _no_place(resources)
    return Facts(status="infeasible" if f"{OutOfMemory.__name__}: " in reason else "failed", error=reason[-1000:])


def _no_place(resources: Resources) -> str:
    """The arithmetic of a worker group that found no place: asked, free, total."""
    free, total = ray.available_resources(), ray.cluster_resources()
    asked = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    sums = "; ".join(
        f"{resources.fewest} workers x {each:g} {kind} = {resources.fewest * each:g}, free {free.get(kind, 0):g} of "
        f"{total.get(kind, 0):g}"
        for kind, each in asked.items()
        if each
    )
    return f"no place for the workers: {sums}; wait for what else runs on this cluster, or lower `resources`"


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
    work: Work = config["work"]
    queue: Queue = config["queue"]
    first = ray.train.get_context().get_world_rank() == 0
    done = work.checkpoint / FACTS
    if done.is_file():
        facts = read_facts(done)
    else:
        report = partial(_send, queue, work.key) if first else _keep_silent
        keeper = _Checkpoints(Path(work.states) / work.key, work.state_seconds, first) if work.states else None
        facts = carry_out(work, report, keeper)
        if first and facts.status == "done":
            done.write_text(json.dumps(asdict(facts)))
    if first:
        queue.put((work.key, facts))


class _Checkpoints:
    """Keeps the states of a fit with Ray Train, which brings them to any storage while the fit goes on."""

    def __init__(self, folder: Path, seconds: float, first: bool) -> None:
        self.folder, self.seconds, self.first = folder, seconds, first
        self.asked = 0
        self.warned = False
        self.problem: str | None = None

    def load(self) -> State | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        kept = StateFile(Path(checkpoint.path) / STATE)
        state, self.problem = kept.load(), kept.problem
        return state

    def save(self, state: State) -> None:
        checkpoint = None
        if self.first:
            folder = Path(tempfile.mkdtemp(prefix="pmray-state-"))
            try:
                write_state(folder / STATE, state)
                checkpoint = ray.train.Checkpoint.from_directory(str(folder))
            except (OSError, RuntimeError) as error:
                shutil.rmtree(folder, ignore_errors=True)
                self._give_up(folder, error)
        # All workers report, whoever has something.
        ray.train.report(
            {"state": True},
            checkpoint=checkpoint,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            # Ray Train's own ends the fit when the storage is full.
            checkpoint_upload_fn=self._bring,
            delete_local_checkpoint_after_upload=True,
        )

    def _bring(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Copy a state to where all nodes see it, whole or not at all."""
        there, partial = self.folder / name, self.folder / f".{name}"
        try:
            shutil.copytree(checkpoint.path, partial)
            partial.replace(there)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            self._give_up(self.folder, error)
        return ray.train.Checkpoint.from_directory(str(there))

    def _give_up(self, folder: Path, error: Exception) -> None:
        self.problem = f"no state could be kept in {folder} ({error})"
        self.seconds = math.inf

    def urgent(self) -> bool:
        """Whether a node is about to be taken away; said once."""
        self.asked += 1
        if self.warned or self.asked % QUESTIONS:
            return False
        self.warned = ray.train.get_preemption_info() is not None
        return self.warned


def _send(queue: Queue, key: str, rung: Rung) -> None:
    queue.put((key, rung))


def _keep_silent(rung: Rung) -> None:
    """Rank 0 speaks for all."""


def read_facts(path: Path) -> Facts:
    """Read the facts of a finished fit."""
    values = json.loads(path.read_text())
    return Facts(**{**values, "curve": tuple((int(examples), float(score)) for examples, score in values["curve"])})
