"""What is wrong with a cluster, from what its nodes said: facts in, problems with their fixes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

MUST_AGREE = ("pmray", "ray", "torch", "transformers")
"""Packages that must have the driver's version everywhere: another one gives other numbers, or cannot be talked to."""

SHOULD_AGREE = ("tokenizers", "safetensors", "datasets", "numpy", "pyarrow", "huggingface-hub")
"""Packages whose version is told where it differs."""

SKEW_WARNING, SKEW_ERROR = 5.0, 300.0
"""Seconds between clocks; object stores refuse requests that are 15 minutes off."""

GIGABYTE = 2**30
MEMORY_WARNING, MEMORY_ERROR = 2 * GIGABYTE, GIGABYTE // 4
DISK_WARNING, DISK_ERROR = 5 * GIGABYTE, GIGABYTE // 4

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class NodeFacts:
    """One node: what Ray says of it, and what its probe said."""

    id: str
    address: str
    cpus: float
    gpus: float
    told: Mapping[str, Any] | None
    """The probe's answer; None where there is none."""
    error: str | None = None
    """Why there is none."""
    skew: float = 0.0
    """Seconds that the node's clock is ahead of the driver's."""
    driver: bool = False
    """Whether the driver runs there."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, and what to do."""

    level: Level
    where: str
    """Address of the node, or ``driver``."""
    what: str
    fix: str
    node: str = ""
    """Id of the node; empty for the driver."""


@dataclass(frozen=True)
class Diagnosis:
    """What ``pmray doctor`` found."""

    address: str
    nodes: tuple[NodeFacts, ...]
    problems: tuple[Problem, ...] = field(default=())

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Problems for which a run will fail, or give other numbers."""
        return tuple(one for one in self.problems if one.level == "error")

    @property
    def bad_nodes(self) -> tuple[str, ...]:
        """Ids of the nodes with errors."""
        return tuple(sorted({one.node for one in self.errors if one.node}))


def diagnose(nodes: Sequence[NodeFacts], driver: Mapping[str, Any]) -> list[Problem]:
    """Hold every node against the driver.

    Args:
        nodes: What they said.
        driver: The same probe's answer in the driver's own process.
    """
    found = _own(driver, "driver", "")
    for node in nodes:
        if node.told is None:
            found.append(
                Problem(
                    "error",
                    node.address,
                    f"no answer ({node.error})",
                    "look at the node's logs (/tmp/ray/session_latest/logs/raylet.err); end it with `ray stop`, and "
                    "join it again",
                    node.id,
                )
            )
            continue
        found += _versions(node, driver)
        # Where the driver runs, its own answer has told the rest.
        found += _own(node.told, node.address, node.id) if not node.driver else []
        if abs(node.skew) > SKEW_WARNING:
            level: Level = "error" if abs(node.skew) > SKEW_ERROR else "warning"
            told = f"its clock is {abs(node.skew):.0f} s {'ahead' if node.skew > 0 else 'behind'}"
            found.append(Problem(level, node.address, told, "synchronise it: `chronyc makestep`", node.id))
    return sorted(found, key=lambda one: (one.level != "error", one.where))


def _versions(node: NodeFacts, driver: Mapping[str, Any]) -> list[Problem]:
    told = node.told or {}
    found = []
    if told["python"] != driver["python"]:
        found.append(
            Problem(
                "error",
                node.address,
                f"Python {told['python']}, but the driver has {driver['python']}",
                f"install Python {driver['python']} there, or use one image for all nodes",
                node.id,
            )
        )
    for package in (*MUST_AGREE, *SHOULD_AGREE):
        here, there = driver["versions"].get(package), told["versions"].get(package)
        # "+cpu" and "+cu128" are one version: nodes may have GPUs or none.
        if str(here).partition("+")[0] == str(there).partition("+")[0]:
            continue
        must = package in MUST_AGREE
        found.append(
            Problem(
                "error" if must else "warning",
                node.address,
                f"{package} {there or 'is not installed'}, but the driver has {here or 'none'}",
                f"pip install '{package}=={here}' there" + (", or leave the node out with --force" if must else ""),
                node.id,
            )
        )
    return found


FIXES = {
    "storage": "mount the same folder at the same path on every node, or use s3://, gs:// or abfs:// as `storage`",
    "registry": "check `registry` and the network between the two",
    "cuda": "install the torch build for the node's driver, or start the node with --num-gpus 0",
    "driver": "install the NVIDIA driver, or start the node with --num-gpus 0",
    "model": "give `model` as a Hub id or a folder that every node sees, or install the package there",
    "port": "open this port between the nodes; cluster/README.md lists them",
}


def _own(told: Mapping[str, Any], where: str, node: str) -> list[Problem]:
    """What is wrong on a machine whatever others have."""
    found = []
    for subject, what in told["problems"].items():
        fix = FIXES[next((kind for kind in FIXES if subject.startswith(kind)), "port")]
        found.append(Problem("error", where, f"{subject}: {what}", fix, node))
    room = (
        ("memory", "memory_free", MEMORY_WARNING, MEMORY_ERROR, "end what else runs there, or use a larger node"),
        ("temporary files", "temporary_free", DISK_WARNING, DISK_ERROR, "start Ray with --temp-dir on a larger disk"),
        ("storage", "disk_free", DISK_WARNING, DISK_ERROR, "`pmray runs` lists what is there to delete"),
    )
    for name, key, warning, error, fix in room:
        free = told.get(key)
        if free is not None and free < warning:
            level: Level = "error" if free < error else "warning"
            found.append(Problem(level, where, f"{name}: {free / 1e9:.2f} GB free", fix, node))
    return found
