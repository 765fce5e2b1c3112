"""Tables of plans and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table


def plan_table(plan: Any) -> RenderableType:
    """What will run, for people.

    Args:
        plan: A ``pmray.planning.Plan``.
    """
    candidates = Table(title=f"Plan of {plan.name}: {plan.task} by {plan.metric}", title_justify="left")
    for heading in (
        "candidate",
        "family",
        "parameters",
        "tokens/row",
        "default recipe",
        "search",
        "workers x CPUs, GPUs",
        "a trial",
    ):
        candidates.add_column(
            heading, overflow="fold", justify="right" if heading in ("parameters", "a trial") else "left"
        )
    for one in plan.candidates:
        recipe = one.recipe
        candidates.add_row(
            one.name,
            one.family,
            f"{one.parameters / 1e6:.1f} M",
            f"{one.tokens:g}",
            f"lr {recipe['lr']:g}, {recipe['epochs']:g} epochs, batch {recipe['batch_size']}",
            "; ".join(f"{field}: {values}" for field, values in one.space.items()),
            f"{one.workers} x {one.cpus:g} CPUs" + (f", {one.gpus:g} GPUs" if one.gpus else ""),
            f"about {duration(one.seconds)}",
        )
    for name, why in plan.unavailable.items():
        candidates.add_row(name, "", "", "", f"unavailable: {why}", "", "", "", style="magenta")
    rows = ", ".join(f"{count} {name}" for name, count in plan.rows.items())
    fits = plan.finalists * plan.seeds
    rungs = " > ".join(map(str, plan.rungs))
    steps = Table(show_header=False)
    for step, what in {
        "data": f"{rows}; labels {', '.join(plan.labels[:12])}{' …' if len(plan.labels) > 12 else ''}",
        "sweep": f"{plan.trials} trials, {plan.at_a_time} at a time, compared after {rungs} examples",
        "finalists": f"{plan.finalists} models x {plan.seeds} seeds = {fits} fits",
        "examples": f"at most {plan.examples:,} seen in training; halving stops trials early",
        "cluster": f"{plan.cpus:g} CPUs, {plan.gpus:g} GPUs",
        "disk": f"at most about {plan.disk_bytes / 1e6:.0f} MB at a time",
        "time": f"at most about {duration(plan.seconds)} (rough: from the speed of this machine's matrix products)",
    }.items():
        steps.add_row(step, what)
    return Group(candidates, steps)


def runs_table(runs: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Run folders, newest first."""
    if not runs:
        return "no runs here yet; `pmray sweep SPEC` makes one"
    table = Table(title="Runs", title_justify="left")
    for heading in ("name", "state", "winner", "score", "trials", "failed", "changed"):
        table.add_column(heading, justify="right" if heading in ("score", "trials", "failed") else "left")
    for one in runs:
        score = "" if one["score"] is None else f"{one['metric']} {one['score']:.3f}"
        table.add_row(
            one["name"],
            one["state"],
            one["winner"] or "",
            score,
            str(one["trials"]),
            str(one["failed"]),
            one["changed"],
        )
    return table


def duration(seconds: float) -> str:
    """Write a time as a person reads it.

    >>> duration(40), duration(400), duration(9000)
    ('40 s', '7 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
