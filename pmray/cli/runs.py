"""The commands that look at what runs have left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pmray.cli.answers import Answer
from pmray.cli.options import DEFAULT_STORAGE, AsJson, Storage


def runs(storage: Storage = Path(DEFAULT_STORAGE), as_json: AsJson = False) -> Answer:
    """List runs, their state and their winners."""
    from pmray.report.plan import runs_table
    from pmray.run import list_runs

    found = list_runs(storage)
    return found, lambda console: console.print(runs_table(found))


def show(
    run: Annotated[str, typer.Argument(help="Name of a run, or its folder.", metavar="RUN")],
    storage: Storage = Path(DEFAULT_STORAGE),
    as_json: AsJson = False,
) -> Answer:
    """Tell one run: the verdict in words, its table, every trial and what became of it."""
    from pmray.report.plan import run_told
    from pmray.run import find_run, read_run

    found = read_run(find_run(run, storage))
    return found, lambda console: console.print(run_told(found))


def report(
    run: Annotated[str, typer.Argument(help="Name of a run, or its folder.", metavar="RUN")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: report.html in the run folder.", metavar="FILE")
    ] = None,
    without_rows: Annotated[
        bool, typer.Option("--without-rows", help="Show no texts and images, for readers who may not see the data.")
    ] = False,
    storage: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path(DEFAULT_STORAGE),
    as_json: AsJson = False,
) -> Answer:
    """Write the report of a run, decided or under way, as one HTML file that needs no network."""
    from pmray.reporting import write_report
    from pmray.run import find_run

    path = write_report(find_run(run, storage), output, show_rows=not without_rows)
    shown = {"report": path, "bytes": path.stat().st_size}
    return shown, lambda console: console.print(f"report: {path}", soft_wrap=True)


def leaderboard(
    runs: Annotated[list[str], typer.Argument(help="Names of runs, or their folders.", metavar="RUN...")],
    storage: Storage = Path(DEFAULT_STORAGE),
    as_json: AsJson = False,
) -> Answer:
    """Put the models of several runs into one table."""
    from pmray.report.plan import leaderboard_table
    from pmray.run import find_run
    from pmray.run import leaderboard as lines_of

    lines = lines_of([find_run(one, storage) for one in runs])
    return lines, lambda console: console.print(leaderboard_table(lines))


def replay(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Names or folders of runs whose trials went to their end (search.stop: false), or tables of scores "
            "(a line of model names, then one of numbers for each data set, between tabs).",
            metavar="RUN|TABLE...",
        ),
    ],
    storage: Storage = Path(DEFAULT_STORAGE),
    as_json: AsJson = False,
) -> Answer:
    """Play other rules of choosing on recorded scores: what they would have found, and at which cost."""
    from dataclasses import asdict

    from rich.console import Group

    from pmray.report.plan import replay_table
    from pmray.run import LEDGER, find_run
    from pmray.selection.ledger import read_ledger
    from pmray.selection.replay import curves_of, read_matrix, replay_halving, replay_matrix

    found = {}
    for source in sources:
        path = Path(source).expanduser()
        if path.is_file() and path.suffix != ".jsonl":
            replayed = replay_matrix(read_matrix(path))
        else:
            ledger = path if path.is_file() else find_run(source, storage) / LEDGER
            replayed = replay_halving(curves_of(read_ledger(ledger)))
        found[source] = [asdict(one) for one in replayed]
    return found, lambda console: console.print(Group(*(replay_table(*item) for item in found.items())))
