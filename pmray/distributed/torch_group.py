"""Torch's process group of a trial's workers: each talks over the network card that Ray reaches its node by."""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"
"""What tells gloo its network card; a user's own setting is kept. NCCL finds a card that is not the loopback itself."""


def use_interface_of_node() -> None:
    """Tell gloo in this process to use the card that has the address of this node.

    Gloo otherwise takes the address of the host's name, which Debian and others map to 127.0.1.1: workers of other
    nodes are then told to connect to themselves.
    """
    found = interface_with(ray.util.get_node_ip_address())
    if found:
        os.environ.setdefault(INTERFACE, found)


def interface_with(address: str) -> str | None:
    """Name of the network card that has an IP address; None where none has, as behind address translation."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None


class NodeAddresses(TorchConfig):
    """Ray Train's process group of torch, between the addresses of the nodes."""

    @property
    def backend_cls(self) -> Any:
        """What starts and ends the process group."""
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # the class is only known when this runs
    """Ray Train's own, preceded by the choice of the network card."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Called by Ray Train when all workers have begun.

        Workers that do not find each other give their place back here: Ray Train (2.60) forgets a group that fails at
        this point, and its CPUs and GPUs stay taken until the whole job ends.
        """
        try:
            worker_group.execute(use_interface_of_node)
            super().on_start(worker_group, backend_config)
        except Exception:
            worker_group.abort()
            raise
