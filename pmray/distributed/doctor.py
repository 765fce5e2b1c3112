"""Ask every node of a cluster about itself, and hold the answers together; ``pmray.diagnosis`` says what is wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pmray import storage
from pmray.diagnosis import MUST_AGREE, SHOULD_AGREE, Diagnosis, NodeFacts, Problem, diagnose
from pmray.distributed import probe as probes
from pmray.distributed.cluster import AVOIDED, QUIET, Capacity, avoided_nodes, capacity, connected
from pmray.errors import ClusterError, RegistryError
from pmray.spec import Spec

# A node with another pmray, or none, can be asked all the same.
cloudpickle.register_pickle_by_value(probes)

PROBE_SECONDS = 60.0
MOST_PEERS = 32
"""Nodes that each node tries to reach; enough to find a closed port, and no flood on a large cluster."""


def doctor(address: str | None = None, *, spec: Spec | None = None) -> Diagnosis:
    """Look at every node of a cluster: versions, memory, disk, clocks, ports, and what a spec needs.

    Args:
        address: Of the cluster; by default ``RAY_ADDRESS``, or this machine alone.
        spec: Its storage, registry and models are tried from every node.

    Raises:
        ClusterError: The cluster cannot be reached.
    """
    with connected(address, short=True) as cluster:
        return examine(spec, cluster)


def examine(spec: Spec | None, cluster: Capacity, *, deep: bool = True) -> Diagnosis:
    """Probe the connected cluster.

    Args:
        spec: What a run needs.
        cluster: What is connected.
        deep: Also models, registry, GPUs and ports, not only versions, disk and storage.
    """
    location = None if spec is None else spec.location(spec.folder.parent)
    ask: dict[str, Any] = {
        "packages": [*MUST_AGREE, *SHOULD_AGREE],
        "storage": location,
        "mark": f".doctor-{uuid4().hex[:8]}",
        "said": uuid4().hex,
        "models": {one.name: one.model for one in spec.candidates} if spec and deep else {},
        "hosts": {},
        "gpus": False,
    }
    with _marked(ask) as problem:
        if problem is not None:
            return Diagnosis("", (), (problem,))
        driver = probes.probe(ask)
        nodes = _ask_nodes(cluster, ask, deep, {} if spec is None or not deep else _services(spec))
    problems = diagnose(nodes, driver)
    if spec is not None and deep and (refused := _registry_problem(spec)):
        problems.insert(0, refused)
    return Diagnosis(ray.get_runtime_context().gcs_address, tuple(nodes), tuple(problems))


def checked(spec: Spec, cluster: Capacity, *, force: bool = False) -> Capacity:
    """Refuse a cluster of several nodes on which a run would fail half-way or give other numbers.

    Args:
        spec: The run.
        cluster: What is connected.
        force: Leave out the nodes with errors, in place of refusing.

    Returns:
        What there is to use.

    Raises:
        ClusterError: Lists what is wrong, with the fixes.
    """
    if cluster.nodes == 1 and not storage.is_remote(spec.storage):
        return cluster
    found = examine(spec, cluster, deep=False)
    if not found.errors:
        return cluster
    elsewhere = [one for one in found.errors if not one.node]
    told = "\n".join(f"  {one.where}: {one.what}; {one.fix}" for one in found.errors[:10])
    if elsewhere or not force:
        raise ClusterError(f"the cluster is not fit for this run (`pmray doctor` says more):\n{told}")
    good = [one for one in cluster.each if one.id not in found.bad_nodes]
    if not good:
        raise ClusterError(f"every node has errors, so --force leaves none:\n{told}")
    return _leave_out(found.bad_nodes)


def _leave_out(nodes: Sequence[str]) -> Capacity:
    """Have nothing of this run placed on these nodes: connect anew, since workers inherit what is set at that time."""
    os.environ[AVOIDED] = ",".join(sorted({*avoided_nodes(), *nodes}))
    context = ray.get_runtime_context()
    address, namespace = context.gcs_address, context.namespace
    ray.shutdown()
    ray.init(address=address, namespace=namespace, runtime_env={"env_vars": {AVOIDED: os.environ[AVOIDED]}}, **QUIET)
    return capacity()


def _ask_nodes(
    cluster: Capacity, ask: Mapping[str, Any], deep: bool, services: Mapping[str, tuple[str, int]]
) -> list[NodeFacts]:
    """Send one probe to every node, all at the same time."""
    alive = {one["NodeID"]: one for one in ray.nodes() if one["Alive"]}
    here = ray.get_runtime_context().get_node_id()
    remote = ray.remote(num_cpus=0, max_retries=0)(probes.probe)
    sent: dict[Any, tuple[str, float]] = {}
    for node in cluster.each:
        peers = [one for key, one in alive.items() if key != node.id][:MOST_PEERS]
        hosts = {
            f"port of {one['NodeManagerAddress']}": (one["NodeManagerAddress"], one["ObjectManagerPort"])
            for one in peers
            if deep
        }
        question = {**ask, "hosts": {**hosts, **services}, "gpus": deep and node.gpus > 0}
        place = NodeAffinitySchedulingStrategy(node.id, soft=False)
        sent[remote.options(scheduling_strategy=place).remote(question)] = (node.id, time.time())
    answers: dict[str, tuple[Any, str | None, float]] = {}
    left = list(sent)
    until = time.monotonic() + PROBE_SECONDS
    while left and (seconds := until - time.monotonic()) > 0:
        done, left = ray.wait(left, num_returns=1, timeout=seconds)
        for one in done:
            node_id, asked = sent[one]
            came = time.time()
            try:
                told = ray.get(one)
            except ray.exceptions.RayError as error:
                answers[node_id] = (None, " ".join(str(error).split())[-300:], 0.0)
            else:
                # The probe looked at its clock at some time between these two.
                early, late = told["time"] - came, told["time"] - asked
                answers[node_id] = (told, None, late if late < 0 else max(early, 0.0))
    for one in left:
        ray.cancel(one, force=True)
    return [
        NodeFacts(
            node.id,
            node.address,
            node.cpus,
            node.gpus,
            *answers.get(node.id, (None, f"none within {PROBE_SECONDS:.0f} s", 0.0)),
            driver=node.id == here,
        )
        for node in cluster.each
    ]


@contextmanager
def _marked(ask: Mapping[str, Any]) -> Iterator[Problem | None]:
    """Write something into the storage for the block, that other nodes are to find; or say why that cannot be."""
    location = ask["storage"]
    if location is None:
        yield None
        return
    file = storage.local(location) / ask["mark"] / "driver"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(ask["said"])
        storage.push(location, ask["mark"])
    except OSError as error:
        told = " ".join(str(error).split())[:300]
        yield Problem("error", "driver", f"storage: {location} cannot be written to ({told})",
                      "check the path or bucket, and the credentials of this process")  # fmt: skip
        return
    try:
        yield None
    finally:
        storage.delete(location, ask["mark"])


def _services(spec: Spec) -> dict[str, tuple[str, int]]:
    """Servers that every node must reach: the registry, where it is one."""
    found = urlsplit(spec.registry_uri)
    if not found.hostname:
        return {}
    ports = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
    port = found.port or ports.get(found.scheme.partition("+")[0], 443)
    return {"registry": (found.hostname, port)}


def _registry_problem(spec: Spec) -> Problem | None:
    from pmray.registry import reach

    try:
        reach(spec.registry_uri)
    except RegistryError as error:
        return Problem("error", "driver", str(error), "check `registry`, its server and its credentials")
    return None
