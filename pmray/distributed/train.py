"""Fit on N workers with Ray Train: carries out works, each in a worker group of its own."""

from __future__ import annotations

import json
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
        self.trainer = TorchTrainer(
            _worker,
            train_loop_config={"work": work, "queue": queue},
            scaling_config=scaling(resources),
            run_config=RunConfig(
                name=work.key,
                # Beside the states of other fits: they outlive this driver.
                storage_path=work.states or str(scratch),
                # A lost worker or node can pass; what a trial itself did wrong comes back as facts.
                failure_config=FailureConfig(max_failures=2),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )

    def run(self) -> None:
        """Train; what Ray Train raises is kept as facts."""
        try:
            self.trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            told = [str(one).strip() for one in getattr(error, "worker_failures", {}).values()]
            # Workers that lost another one tell of their connection to it; the cause is what that one tells.
            told.sort(key=lambda text: "torch/distributed" in text)
            reason = told[0] if told else str(error).strip()
            status = "infeasible" if f"{OutOfMemory.__name__}: " in reason else "failed"
            self.failure = Facts(status=status, error=reason[-1000:])


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
        facts = carry_out(work, report, _Checkpoints(work.state_seconds, first) if work.states else None)
        if first and facts.status == "done":
            done.write_text(json.dumps(asdict(facts)))
    if first:
        queue.put((work.key, facts))


class _Checkpoints:
    """Keeps the states of a fit with Ray Train, which brings them to any storage while the fit goes on."""

    def __init__(self, seconds: float, first: bool) -> None:
        self.seconds, self.first = seconds, first
        self.asked = 0
        self.warned = False
        self.problem: str | None = None

    def load(self) -> State | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            kept = StateFile(Path(folder) / STATE)
            state = kept.load()
        self.problem = kept.problem
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
                self.problem = f"no state could be kept ({error})"
        # All workers report, whoever has something.
        ray.train.report(
            {"state": True},
            checkpoint=checkpoint,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

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
