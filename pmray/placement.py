"""Which trials find room on which nodes: arithmetic, and no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pmray.errors import ClusterError
from pmray.spec import Resources


@dataclass(frozen=True)
class Node:
    """What one machine of a cluster offers."""

    id: str
    address: str
    cpus: float
    gpus: float
    memory: int = 0
    """Bytes that Ray hands out; 0 where it is not known."""


def workers_on(node: Node, demand: Resources) -> int:
    """Workers of a trial that a node has room for.

    >>> workers_on(Node("a", "a", cpus=4, gpus=1), Resources(cpus_per_worker=1.5))
    2
    """
    by_gpus = node.gpus / demand.gpus_per_worker if demand.gpus_per_worker else float("inf")
    return int(min(node.cpus / demand.cpus_per_worker, by_gpus) + 1e-9)


def places(name: str, demand: Resources, nodes: Sequence[Node]) -> int:
    """Trials of a candidate that the nodes hold at once; workers of one trial may be spread over nodes.

    Args:
        name: Of the candidate, for messages.
        demand: What one trial gets.
        nodes: What there is.

    Raises:
        ClusterError: Not even one fits; says why, with the arithmetic.
    """
    workers = sum(workers_on(node, demand) for node in nodes)
    if workers >= demand.fewest:
        return workers // demand.fewest
    for kind, each, of_nodes in (
        ("CPUs", demand.cpus_per_worker, [node.cpus for node in nodes]),
        ("GPUs", demand.gpus_per_worker, [node.gpus for node in nodes]),
    ):
        if demand.fewest * each > sum(of_nodes):
            raise ClusterError(
                f"candidate {name!r} asks for {demand.fewest} workers x {each:g} {kind} = {demand.fewest * each:g}, "
                f"but the cluster has {sum(of_nodes):g} on {len(nodes)} node(s); lower `resources`, or connect to a "
                "larger cluster."
            )
    asked = f"{demand.cpus_per_worker:g} CPUs" + (
        f" and {demand.gpus_per_worker:g} GPUs" if demand.gpus_per_worker else ""
    )
    room = ", ".join(f"{node.address}: {workers_on(node, demand)}" for node in nodes[:8])
    raise ClusterError(
        f"candidate {name!r} asks for {demand.fewest} workers of {asked} each, and a worker cannot be spread over "
        f"nodes: there is room for {workers} ({room}{' …' if len(nodes) > 8 else ''}); lower "
        "`resources.cpus_per_worker` or `workers`, or connect to larger nodes."
    )
