"""Tables of clusters and jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pmray.diagnosis import MUST_AGREE, Diagnosis, NodeFacts
from pmray.report.plan import duration

STYLE = {"error": "red", "warning": "yellow"}
JOB_STYLE = {"SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow", "RUNNING": "cyan"}


def doctor_table(found: Diagnosis) -> RenderableType:
    """One line a node, then one line a problem with its fix."""
    nodes = Table(title=f"Cluster {found.address}", title_justify="left")
    for heading in ("node", "CPUs", "GPUs", "Python", *MUST_AGREE, "CUDA, driver", "memory free", "disk free", "clock"):
        nodes.add_column(heading, overflow="fold")
    for node in found.nodes:
        bad = node.id in found.bad_nodes
        nodes.add_row(*_node(node), style="red" if bad else None)
    if not found.problems:
        return Group(nodes, Text(f"no problems on {len(found.nodes)} node(s)", style="green"))
    problems = Table(title="Problems", title_justify="left")
    for heading in ("", "where", "what", "what to do"):
        problems.add_column(heading, overflow="fold")
    for one in found.problems:
        problems.add_row(Text(one.level, style=STYLE[one.level]), one.where, one.what, one.fix)
    return Group(nodes, problems)


def _node(node: NodeFacts) -> list[str]:
    name = f"{node.address} (driver)" if node.driver else node.address
    size = [f"{node.cpus:g}", f"{node.gpus:g}"]
    if node.told is None:
        return [name, *size, "no answer"]
    told: Mapping[str, Any] = node.told
    gpu = f"{told.get('cuda') or '-'}, {told.get('driver') or '-'}" if node.gpus else "-"
    versions = [told["versions"].get(package) or "none" for package in MUST_AGREE]
    memory = f"{told['memory_free'] / 1e9:.1f} of {told['memory'] / 1e9:.0f} GB" if "memory" in told else "?"
    disk = told.get("disk_free", told["temporary_free"])
    return [name, *size, told["python"], *versions, gpu, memory, f"{disk / 1e9:.0f} GB", f"{node.skew:+.1f} s"]


def jobs_table(jobs: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One line a job, the newest first."""
    table = Table()
    for heading in ("job", "command", "run", "status", "started", "took"):
        table.add_column(heading, overflow="fold")
    for one in jobs:
        started = datetime.fromtimestamp(one["started"], UTC).strftime("%Y-%m-%d %H:%M") if one["started"] else ""
        took = duration(one["seconds"]) if one["seconds"] is not None else ""
        status = Text(one["status"], style=JOB_STYLE.get(one["status"], ""))
        table.add_row(one["id"], one["command"], one["run"], status, started, took)
    return table
