"""Connect to a Ray cluster, or start one on this machine, and know what it holds."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from pmray.errors import ClusterError
from pmray.spec import Resources

PLACE_SECONDS = 15
"""How long workers look for a place at a time; see ``train.PLACE_ATTEMPTS``."""

SETTINGS = {
    # pmray writes its own ledger; Tune's CSV, JSON and TensorBoard files would repeat it.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C then raises KeyboardInterrupt, and the way out is ours: nothing stays behind.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # pmray draws its own progress.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    # After the loss of a node Ray Train first counts on it still, and must find out soon.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(PLACE_SECONDS),
    # Only when it is asked, by default every two seconds, does a worker group say that it has ended or kept a state.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Relative paths mean the folder where the user is.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(frozen=True)
class Capacity:
    """What a cluster holds in all."""

    cpus: float
    gpus: float
    nodes: int


@contextmanager
def connected(address: str | None = None) -> Iterator[Capacity]:
    """Connect to a cluster for a block; a cluster that was started for the block ends with it.

    Args:
        address: ``host:port``, ``ray://host:port`` or ``auto``; by default ``RAY_ADDRESS``, or else a cluster of this
            machine's cores.

    Raises:
        ClusterError: The cluster cannot be reached.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    ours = not ray.is_initialized()
    if ours:
        address = address or os.environ.get("RAY_ADDRESS")
        in_main_thread = threading.current_thread() is threading.main_thread()
        on_term = signal.getsignal(signal.SIGTERM)
        if address:
            try:
                ray.init(address=address, **QUIET)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ClusterError(
                    f"no Ray cluster answers at {address!r} ({error}); start one with `ray start --head`, or leave the "
                    "address out to use this machine."
                ) from None
        else:
            start_here(include_dashboard=False)
        if in_main_thread:
            # Ray puts a handler of its own in place, which ends the process without the way out below.
            signal.signal(signal.SIGTERM, on_term)
    # Tune and Train log each step of theirs at INFO and WARNING.
    for logger in ("ray.tune", "ray.train", "ray.data"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        yield capacity()
    finally:
        if ours:
            ray.shutdown()


def start_here(**options: Any) -> None:
    """Start a cluster on this machine; a busy one may need a second attempt.

    Ray gives its agents 15 seconds to start and its node 30; other work on the same cores can take that long.

    Args:
        options: Of ``ray.init``.

    Raises:
        ClusterError: It does not start.
    """
    for attempt in (1, 2, 3):
        try:
            ray.init(address="local", **QUIET, **options)
            return
        except Exception as error:
            # A bare one is what Ray raises when its processes did not come up in time.
            if type(error) is not Exception and not isinstance(error, ConnectionError | RuntimeError | ValueError):
                raise
            ray.shutdown()
            if attempt == 3:
                raise ClusterError(
                    f"Ray does not start on this machine ({' '.join(str(error).split())}); is it short of memory or "
                    "very busy? Its logs are in /tmp/ray/session_latest/logs."
                ) from None


def capacity() -> Capacity:
    """What the connected cluster holds in all."""
    total = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return Capacity(total.get("CPU", 0.0), total.get("GPU", 0.0), nodes)


def at_a_time(demands: Mapping[str, Resources], cluster: Capacity, limit: int | None = None) -> int:
    """How many trials of these candidates the cluster holds at once, whichever they are.

    Args:
        demands: Candidate -> what one trial gets.
        cluster: What there is.
        limit: Largest answer.

    Raises:
        ClusterError: A candidate asks for more than there is; says which, with the arithmetic.
    """
    for name, one in demands.items():
        for kind, asked, total in (
            ("CPUs", one.fewest * one.cpus_per_worker, cluster.cpus),
            ("GPUs", one.fewest * one.gpus_per_worker, cluster.gpus),
        ):
            if asked > total:
                each = one.cpus_per_worker if kind == "CPUs" else one.gpus_per_worker
                raise ClusterError(
                    f"candidate {name!r} asks for {one.fewest} workers x {each:g} {kind} = {asked:g}, but the cluster "
                    f"has {total:g} on {cluster.nodes} node(s); lower `resources`, or connect to a larger cluster."
                )
    fits = min(
        min(
            cluster.cpus // (one.fewest * one.cpus_per_worker),
            cluster.gpus // (one.fewest * one.gpus_per_worker) if one.gpus_per_worker else float("inf"),
        )
        for one in demands.values()
    )
    return max(1, min(int(fits), limit or int(fits)))
