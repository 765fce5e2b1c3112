"""Connect to a Ray cluster, or start one on this machine, and know what it holds."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from pmray.distributed.address import Address, Kind, address_of, for_driver, knock, unreachable
from pmray.errors import ClusterError
from pmray.placement import Node, places
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


AVOIDED = "PMRAY_AVOIDED_NODES"
"""Ids of nodes that nothing of this run is placed on; the run's workers inherit it."""


@dataclass(frozen=True)
class Capacity:
    """What a cluster holds in all."""

    cpus: float
    gpus: float
    nodes: int
    each: tuple[Node, ...] = ()
    """The nodes one by one; without them only the totals are known."""


@contextmanager
def connected(address: str | None = None, *, short: bool = False) -> Iterator[Capacity]:
    """Connect to a cluster for a block; a cluster that was started for the block ends with it.

    Args:
        address: ``host:port`` or ``auto``; by default ``RAY_ADDRESS``, or else a cluster of this machine's cores.
        short: The block only looks at the cluster, for which ``ray://host:port`` will do.

    Raises:
        ClusterError: The cluster cannot be reached, or refuses this process's token.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    ours = not ray.is_initialized()
    if ours:
        found = for_driver(address_of(address), short=short)
        in_main_thread = threading.current_thread() is threading.main_thread()
        on_term = signal.getsignal(signal.SIGTERM)
        if found.kind is Kind.here:
            start_here(include_dashboard=False)
        else:
            join(found)
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


def join(address: Address) -> None:
    """Connect this process to a running cluster.

    Raises:
        ClusterError: One sentence that says why it cannot.
    """
    knock(address)
    avoided = {"runtime_env": {"env_vars": {AVOIDED: value}}} if (value := os.environ.get(AVOIDED)) else {}
    try:
        ray.init(address=address.value, **QUIET, **avoided)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        told = " ".join(str(error).split())[:300]
        raise ClusterError(unreachable(address, f" ({told})")) from None


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
    """What the connected cluster holds, without the nodes that are avoided."""
    avoided = avoided_nodes()
    each = tuple(
        Node(
            id=one["NodeID"],
            address=one["NodeManagerAddress"],
            cpus=one["Resources"].get("CPU", 0.0),
            gpus=one["Resources"].get("GPU", 0.0),
            memory=int(one["Resources"].get("memory", 0)),
        )
        for one in ray.nodes()
        if one["Alive"] and one["NodeID"] not in avoided
    )
    return Capacity(sum(one.cpus for one in each), sum(one.gpus for one in each), len(each), each)


def avoided_nodes() -> tuple[str, ...]:
    """Ids of the nodes that this run leaves out."""
    return tuple(one for one in os.environ.get(AVOIDED, "").split(",") if one)


def elsewhere(without: Iterable[str] = ()) -> dict[str, str]:
    """Label selector of all nodes but those `without` and those that this run leaves out; empty where there is none."""
    avoided = sorted({*avoided_nodes(), *without})
    return {"ray.io/node-id": f"!in({','.join(avoided)})"} if avoided else {}


def at_a_time(demands: Mapping[str, Resources], cluster: Capacity, limit: int | None = None) -> int:
    """How many trials of these candidates the cluster holds at once, whichever they are.

    Args:
        demands: Candidate -> what one trial gets.
        cluster: What there is.
        limit: Largest answer.

    Raises:
        ClusterError: A candidate asks for more than there is; says which, with the arithmetic.
    """
    nodes = cluster.each or (Node("", "this machine", cluster.cpus, cluster.gpus),)
    fits = min(places(name, one, nodes) for name, one in demands.items())
    return max(1, min(fits, limit or fits))
