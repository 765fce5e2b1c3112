"""What an additional one-worker trial costs beyond its own training and evaluation: ``python -m tests.bench``.

Eight tiny trials run one after the other in one Tune run. For every trial after the first (whose actor has to start),
the time from the end of the trial before to its own end is split into training and evaluation, opening the model and
the data, and the rest, which is Tune's, Ray's and ours.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from pmray.demo.story import DATA, WEIGHTS
from pmray.distributed.cluster import connected
from pmray.distributed.tune import run_trials
from pmray.selection.search import Search
from pmray.spec import Spec
from pmray.spec_file import spec_from
from pmray.stages.fitting import encode
from pmray.stages.preparation import prepare
from pmray.stages.searching import leaders_of

TRIALS = 8
LIMIT = 0.3
"""Seconds an additional trial may cost."""


def spec_of(storage: Path) -> Spec:
    return spec_from(
        {
            "name": "bench",
            "task": "text-classification",
            "data": {
                "train": str(DATA / "reviews_train.parquet"),
                "validation": 0.2,
                "test": str(DATA / "reviews_test.parquet"),
            },
            "candidates": [{"model": WEIGHTS, "name": "tiny", "layers": 1, "recipe": {"epochs": 0.05}}],
            "search": {"trials": TRIALS, "rungs": 0},
            "storage": str(storage),
        }
    )


def measure(spec: Spec, console: Console) -> tuple[float, list[tuple[float, float, float]]]:
    """Wall seconds of the Tune run; for each trial: seconds since the one before, of its work, and of opening."""
    prepared = prepare(spec, console)
    ends: list[float] = []
    parts: list[tuple[float, float]] = []

    def ended(work, facts, may_pass) -> None:
        if facts.status != "done":
            raise RuntimeError(f"a trial of the bench did not finish: {facts.error}")
        ends.append(time.perf_counter())
        parts.append((facts.measured["train_seconds"] + facts.measured["evaluate_seconds"], facts.seconds))

    with connected() as cluster:
        encode(prepared, cluster, console)
        started = time.perf_counter()
        run_trials(
            Search(list(prepared.arms.values())),
            lambda proposal: prepared.work("sweep", proposal.candidate, proposal.recipe, spec.search.seed),
            {"tiny": spec.resources},
            trials=TRIALS,
            at_a_time=1,
            reduction=spec.search.reduction,
            leaders=leaders_of(prepared, list(prepared.arms)),
            enough=lambda: False,
            scratch=spec.folder / ".ray",
            on_start=lambda work: None,
            on_rung=lambda work, rung: None,
            on_end=ended,
        )
        wall = time.perf_counter() - started
    gaps = [end - before for before, end in zip([started, *ends], ends, strict=False)]
    return wall, [(gap, busy, whole - busy) for gap, (busy, whole) in zip(gaps, parts, strict=True)]


def main() -> None:
    console = Console(highlight=False)
    with TemporaryDirectory() as storage:
        wall, trials = measure(spec_of(Path(storage)), Console(stderr=True, highlight=False))
    table = Table(
        title=f"Seconds of a trial of one worker; {len(trials)} trials one after the other, {wall:.1f} s in all",
        title_justify="left",
    )
    for heading in ("", "training and evaluation", "opening model and data", "Tune, Ray, pmray", "beyond its own work"):
        table.add_column(heading, justify="left" if not heading else "right")
    later = trials[1:]
    for name, pick in {
        "first": lambda column: column[0],
        "later: median": lambda column: median(column[1:]),
        "later: mean": lambda column: mean(column[1:]),
        "later: worst": lambda column: max(column[1:]),
    }.items():
        columns = [
            [busy for _, busy, _ in trials],
            [opening for _, _, opening in trials],
            [gap - busy - opening for gap, busy, opening in trials],
            [gap - busy for gap, busy, _ in trials],
        ]
        table.add_row(name, *(f"{pick(column):.2f}" for column in columns))
    extra = mean(gap - busy for gap, busy, _ in later)
    met = "met" if extra < LIMIT else "MISSED"
    table.caption = f"An additional trial costs {extra:.2f} s beyond its own work; the aim is under {LIMIT} s: {met}."
    console.print(table)


if __name__ == "__main__":
    main()
