"""Tables of plans and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from pmray.report.console import recipe_text


def plan_table(plan: Any) -> RenderableType:
    """What will run, for people.

    Args:
        plan: A ``pmray.stages.planning.Plan``.
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
        "at once",
        "memory",
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
            str(one.places),
            f"{one.memory_bytes / 1e9:.1f} GB",
            f"about {duration(one.seconds)}",
        )
    for name, why in plan.unavailable.items():
        candidates.add_row(name, "", "", "", f"unavailable: {why}", "", "", "", "", "", style="magenta")
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


def run_told(run: Mapping[str, Any]) -> RenderableType:
    """One run: the verdict in words, its lines, all trials.

    Args:
        run: What ``pmray.run.read_run`` gave.
    """
    parts: list[RenderableType] = [f"{run['name']}: {run['state']} ({run['folder']})"]
    verdict = run["verdict"]
    if verdict:
        parts += [*verdict["words"], leaderboard_table(run["lines"], runs=False)]
    trials = Table(title="Trials", title_justify="left")
    for heading in ("stage", "candidate", "recipe", "seed", "state", "score", "examples", "time", "error"):
        right = heading in ("seed", "score", "examples", "time")
        trials.add_column(heading, justify="right" if right else "left", overflow="fold")
    defaults: dict[str, Mapping[str, Any]] = {}
    for one in run["trials"]:
        recipe = ""
        if one["stage"] in ("sweep", "final"):
            # The first of a candidate is its default recipe.
            recipe = recipe_text(one["recipe"], defaults.setdefault(one["candidate"], one["recipe"]))
        trials.add_row(
            one["stage"],
            one["candidate"],
            recipe,
            str(one["seed"]),
            one["status"],
            "" if one["score"] is None else f"{one['score']:.3f}",
            str(one["examples"] or ""),
            duration(one["seconds"]),
            one["error"].strip().splitlines()[-1] if one["error"] else "",
        )
    return Group(*parts, trials)


def leaderboard_table(lines: Sequence[Mapping[str, Any]], *, runs: bool = True) -> RenderableType:
    """Models of one run or of several, best first.

    Args:
        lines: What ``pmray.run.leaderboard`` gave.
        runs: Whether to name the runs.
    """
    if not lines:
        return "no decided run among these; `pmray sweep SPEC` decides one"
    table = Table(title="Leaderboard" if runs else "Verdict", title_justify="left")
    for heading in (*(("run", "test rows") if runs else ()), "model", "score", "ms/row", "parameters", "training"):
        table.add_column(heading, justify="left" if heading in ("run", "model", "test rows") else "right")
    for one in lines:
        own = (one["run"], f"{one['rows']} ({(one['data'] or '?')[:6]})") if runs else ()
        table.add_row(
            *own,
            one["model"],
            f"{one['metric']} {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]",
            "" if one["baseline"] else f"{one['latency_ms']:.1f}",
            "" if one["baseline"] else f"{one['parameters'] / 1e6:.1f} M",
            duration(one["training_seconds"]),
            style="bold green" if one["winner"] else "dim" if one["baseline"] else "",
        )
    if len({(one["metric"], one["data"]) for one in lines}) > 1:
        return Group(table, "[yellow]other metrics or other test rows: such scores cannot be compared[/]")
    return table


def replay_table(source: str, replayed: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What other rules would have found.

    Args:
        source: What was replayed.
        replayed: Each a ``pmray.selection.replay.Replayed`` as plain values.
    """
    table = Table(title=f"Replay of {source}", title_justify="left")
    for heading in ("rule", "compute", "regret", "worst"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for one in replayed:
        table.add_row(
            one["rule"],
            f"{one['compute']:.0%}",
            f"{100 * one['regret']:.2f} points",
            f"{100 * one['worst']:.1f} points",
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
