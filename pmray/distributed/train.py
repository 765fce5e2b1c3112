"""Carry out works on the cluster: each on N workers with Ray Train, or on one in a process that is used again."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pmray import storage
from pmray.distributed.cluster import PLACE_SECONDS, elsewhere
from pmray.distributed.torch_group import NodeAddresses
from pmray.errors import OutOfMemory
from pmray.spec import Resources
from pmray.training.hardware import return_memory
from pmray.training.loop import Rung
from pmray.training.state import State, StateFile, write_state
from pmray.training.trial import FACTS, Facts, Work, carry_out

STATE = "state.pt"
"""Name of the file in a checkpoint."""

PLACE_ATTEMPTS = 20
"""How often workers look for a place: for five minutes, which is what new nodes of a cloud take."""

RESTARTS = 2
"""How often a work starts again after the loss of a worker."""

GIVE_UP_SECONDS = 10.0
"""How long the driver waits for what ends with it."""

FAILURES = FailureConfig(max_failures=RESTARTS, controller_failure_limit=PLACE_ATTEMPTS)
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
    """Carry out works, several at a time.

    A work of several workers gets a Ray Train worker group of its own. One of a single worker gets a process that has
    done others before: a group takes ten seconds to start, most of them for imports.

    Args:
        works: What to fit, in order.
        resources: Key of a work -> its workers and their resources.
        at_a_time: Works that are carried out at once.
        scratch: Folder for Ray Train's own files; removed by the caller.
        on_rung: Called in the driver when a work reaches a rung.
        on_end: Called in the driver when a work has ended, well or not.
    """
    # Beside this driver: another node may be lost, and the news with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    by_key = {work.key: work for work in works}
    waiting = list(works)
    running: dict[str, _Group | _Alone] = {}
    ended: set[str] = set()
    seats = _Seats()

    def drain(timeout: float) -> None:
        try:
            # With a time-out of zero a queue never has anything.
            key, news = queue.get(timeout=timeout) if timeout else queue.get_nowait()
        except Empty:
            return
        if not isinstance(news, Facts):
            on_rung(by_key[key], news)
        elif key not in ended:
            ended.add(key)
            on_end(by_key[key], news)

    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                work = waiting.pop(0)
                demand = resources[work.key]
                if demand.most > 1:
                    seats.close_idle()
                    running[work.key] = _Group(work, demand, queue, scratch)
                else:
                    running[work.key] = _Alone(work, demand, queue, seats)
                running[work.key].start()
            drain(timeout=0.5)
            for key in [key for key, group in running.items() if not group.is_alive()]:
                group = running.pop(key)
                while not queue.empty():
                    drain(timeout=0)
                if key not in ended:
                    ended.add(key)
                    on_end(by_key[key], group.failure)
    except BaseException:
        # Ray ends a process at once that asks it for something after it was shut down, as these threads would.
        for one in running.values():
            one.give_up()
        raise
    seats.close_idle()
    queue.shutdown()


class _Seats:
    """Processes for works of one worker, kept from one work to the next."""

    def __init__(self) -> None:
        self.idle: list[tuple[Resources, Any]] = []
        self.lock = Lock()

    def take(self, demand: Resources) -> Any:
        """A process with these resources; those that hold others without use give them back."""
        with self.lock:
            found = next((one for one in self.idle if one[0] == demand), None)
            if found is not None:
                self.idle.remove(found)
                return found[1]
        self.close_idle()
        return _Seat.options(  # type: ignore[attr-defined]
            num_cpus=demand.cpus_per_worker,
            num_gpus=demand.gpus_per_worker,
            max_restarts=-1,
            max_task_retries=RESTARTS,
            label_selector=elsewhere(),
        ).remote()

    def give_back(self, demand: Resources, seat: Any) -> None:
        """Keep a process for the next work."""
        with self.lock:
            self.idle.append((demand, seat))

    def close_idle(self) -> None:
        """End all processes that have nothing to do."""
        with self.lock:
            idle, self.idle = self.idle, []
        for _, seat in idle:
            ray.kill(seat)


@ray.remote
class _Seat:
    """A process that carries out one work after the other."""

    def ready(self) -> None:
        """Answer, which says that there was a place."""

    def fit(self, work: Work, queue: Queue) -> None:
        """Carry out a work; a process that died meanwhile is started again, and goes on from the latest state."""
        queue.put((work.key, _carried_out(work, partial(_send, queue, work.key), None, writes=True)))
        return_memory()


class _Alone(Thread):
    """Waits for a work of one worker."""

    def __init__(self, work: Work, demand: Resources, queue: Queue, seats: _Seats) -> None:
        super().__init__(daemon=True)
        self.work, self.demand, self.queue, self.seats = work, demand, queue, seats
        self.failure = Facts(status="failed", error="the worker ended without a result")
        """What came of the work where the worker did not tell it."""
        self.seat: Any = None

    def give_up(self) -> None:
        """End the process that carries the work out, and this thread."""
        if self.seat is not None:
            ray.kill(self.seat)
        self.join(GIVE_UP_SECONDS)

    def run(self) -> None:
        """Wait; what Ray raises is kept as facts."""
        self.seat = seat = self.seats.take(self.demand)
        try:
            ray.get(seat.ready.remote(), timeout=PLACE_ATTEMPTS * PLACE_SECONDS)
            ray.get(seat.fit.remote(self.work, self.queue))
        except ray.exceptions.GetTimeoutError:
            ray.kill(seat)
            self.failure = Facts(status="failed", error=_no_place(self.demand))
        except ray.exceptions.RayError as error:
            ray.kill(seat)
            self.failure = Facts(status="failed", error=str(error).strip()[-1000:])
        else:
            self.seats.give_back(self.demand, seat)


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
            torch_config=NodeAddresses(),
            scaling_config=scaling(resources),
            run_config=RunConfig(
                name=work.key,
                # Beside the states of other fits: they outlive this driver.
                storage_path=str(scratch) if storage.is_remote(work.states or "") else work.states or str(scratch),
                failure_config=FAILURES,
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )

    def give_up(self) -> None:
        """The group ends with the driver; nobody else can end it."""

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
        num_workers=resources.workers,
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker=per_worker,
        label_selector=elsewhere() or None,
    )


def _worker(config: dict[str, Any]) -> None:
    """Every worker of the group runs this; rank 0 speaks for all, since all hold the same scores."""
    work: Work = config["work"]
    queue: Queue = config["queue"]
    first = ray.train.get_context().get_world_rank() == 0
    report = partial(_send, queue, work.key) if first else _keep_silent
    keeper = None
    if work.states and not storage.is_remote(work.states):
        keeper = _Checkpoints(Path(work.states) / work.key, work.state_seconds, first)
    facts = _carried_out(work, report, keeper, writes=first)
    if first:
        queue.put((work.key, facts))


def _carried_out(work: Work, report: Callable[[Rung], None], keeper: _Checkpoints | None, *, writes: bool) -> Facts:
    """The facts of a work, which is not carried out twice where a worker was lost after its end."""
    done = work.checkpoint / FACTS
    if done.is_file():
        return read_facts(done)
    facts = carry_out(work, report, keeper)
    if writes and facts.status == "done":
        done.write_text(json.dumps(asdict(facts)))
        storage.push(work.run or "", f"predictions/{work.key}", f"checkpoints/{work.key}")
    return facts


class _Checkpoints:
    """Keeps the states of a fit with Ray Train, which has them brought to where all nodes see them meanwhile."""

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
