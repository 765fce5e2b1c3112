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


BYTES_OF_A_PARAMETER = 16
"""Of a fit in memory: weight, gradient and the optimizer's two moments, of four bytes each."""


BYTES_OF_A_FROZEN_PARAMETER = 4
"""Where only adapters or a head are trained."""


def needed_memory(parameters: int, demand: Resources, *, frozen: bool = False) -> int:
    """Bytes that a worker of a fit takes at least, before activations.

    >>> needed_memory(10**9, Resources(workers=4, shard=True)) / 1e9
    4.0
    """
    each = BYTES_OF_A_FROZEN_PARAMETER if frozen else BYTES_OF_A_PARAMETER
    return each * parameters // (demand.fewest if demand.shard else 1)


def check_memory(name: str, parameters: int, demand: Resources, nodes: Sequence[Node], *, frozen: bool = False) -> None:
    """Refuse a fit for which no node has the memory; workers with GPUs take the GPU's, which Ray does not know.

    Raises:
        ClusterError: With the arithmetic.
    """
    if demand.gpus_per_worker:
        return
    need = needed_memory(parameters, demand, frozen=frozen)
    room = max((node.memory for node in nodes), default=0)
    if 0 < room < need:
        each = BYTES_OF_A_FROZEN_PARAMETER if frozen else BYTES_OF_A_PARAMETER
        divided = f" / {demand.fewest} workers" if demand.shard else ""
        raise ClusterError(
            f"candidate {name!r} takes at least {need / 1e9:.1f} GB a worker ({parameters / 1e6:.0f} M parameters x "
            f"{each} bytes{divided}), but the largest node has {room / 1e9:.1f} GB; use a smaller candidate, "
            "`recipe.lora_rank`, or `resources: {workers: N, shard: true}`."
        )


MOST_ON_A_GPU = 8
"""Trials that share a GPU at most: more take turns at its processors anyway."""


def gpu_share(needed: int, total: int) -> float:
    """The part of a GPU that a trial asks for: one over the trials that its memory holds, with a tenth left free.

    Args:
        needed: Bytes that a trial takes, as measured.
        total: Bytes of the GPU.

    >>> gpu_share(20 * 10**9, 80 * 10**9), gpu_share(60 * 10**9, 80 * 10**9), gpu_share(10**9, 80 * 10**9)
    (0.3333333333333333, 1.0, 0.125)
    """
    return 1 / min(MOST_ON_A_GPU, max(1, 9 * total // (10 * needed)))


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
