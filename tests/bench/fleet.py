"""What a driver spends on a large fleet: ``python -m tests.bench.fleet [TRIALS [NODES]]``.

A simulation by events: trials take random times on so many nodes, and everything that pmray's driver does about them is
the real code, in the order in which `pmray sweep` does it: proposals by ``selection.search``, stops by
``selection.halving``, the outcome's key, a line of the ledger on the disk (fsync included), and the budget. What Ray's
own driver does for a trial is not in it; ``trial_overhead`` measures that.
"""

from __future__ import annotations

import heapq
import random
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from pmray.selection.budget import Spent
from pmray.selection.halving import Standing, Stop, finalists, halve
from pmray.selection.ledger import Ledger, outcome_key, outcome_of, read_ledger
from pmray.selection.search import Arm, Search
from pmray.spec import Candidate, Log, Recipe, Resources, Uniform
from pmray.spec import Search as SearchSpec
from pmray.training.model import Pretrained
from pmray.training.trial import Facts, Work

CANDIDATES, RUNGS, REDUCTION = 20, (1000, 3000, 9000), 3.0


def pretrained(name: str) -> Pretrained:
    return Pretrained(Candidate(model=name), "/models", name, "bert", 10**8, 10**8, 12, "p", 512)


def work_of(number: int, name: str, recipe: Recipe) -> Work:
    values = recipe.model_dump(exclude_defaults=True)
    key = outcome_key("sweep", "data", {"revision": name, "layers": None}, values, 0, RUNGS[-1])
    return Work(key, pretrained(name), recipe, 0, {}, "f1_macro", RUNGS, "cache", "data", "encoding")


def simulate(trials: int, nodes: int, algorithm: str, folder: Path, limit: float) -> list[dict[str, Any]]:
    """Run trials on nodes; one line a power of ten (and at the end) of what an outcome cost the driver until then."""
    draw = random.Random(0)
    space = {"lr": Log(log=(1e-6, 1e-3)), "epochs": Uniform(uniform=(1, 5)), "weight_decay": Log(log=(1e-4, 0.3))}
    arms = [Arm(f"model-{number}", Recipe(), space) for number in range(CANDIDATES)]
    spent_on: dict[str, float] = defaultdict(float)
    search = Search(arms, algorithm=algorithm, seed=0)
    ledger = Ledger(folder / f"{algorithm}-{trials}.jsonl")
    resources = {arm.candidate: Resources() for arm in arms}
    budget = Spent.of((), resources)
    standings: dict[int, dict[str, Standing]] = {}
    events: list[tuple[float, int, int, Any, Work]] = []
    curves: dict[int, list[tuple[int, float]]] = {}
    handed, ended, clock, lines = 0, 0, 0.0, []
    began = time.perf_counter()

    def timed(what: str, call: Any) -> Any:
        # Processor time tells the same on a busy machine; what the ledger waits for is the disk.
        clock_of = time.perf_counter if what == "ledger" else time.process_time
        started = clock_of()
        result = call()
        spent_on[what] += clock_of() - started
        return result

    def start() -> None:
        nonlocal handed
        proposal = timed("propose", search.ask)
        work = timed("key", lambda: work_of(proposal.number, proposal.candidate, proposal.recipe))
        curves[proposal.number] = []
        heapq.heappush(events, (clock + draw.uniform(20, 60), proposal.number, 0, proposal, work))
        handed += 1

    while handed < min(nodes, trials):
        start()
    while events and time.perf_counter() - began < limit:
        clock, number, rung, proposal, work = heapq.heappop(events)
        score = draw.gauss(0.7, 0.1) + 0.02 * rung
        curves[number].append((RUNGS[rung], score))
        name = work.pretrained.name
        field = standings.setdefault(RUNGS[rung], {})
        field[str(number)] = Standing(str(number), name, score)
        last = rung == len(RUNGS) - 1
        if not last:
            decision = timed(
                "halve",
                lambda: halve(str(number), list(field.values()), reduction=REDUCTION, first_rung=rung == 0),  # noqa: B023
            )
            if not isinstance(decision, Stop):
                heapq.heappush(events, (clock + draw.uniform(20, 60), number, rung + 1, proposal, work))
                continue
        facts = Facts("done" if last else "stopped", score, RUNGS[rung], tuple(curves.pop(number)), 60.0,
                      {"host": f"node-{number % nodes}", "parameters": 10**8})  # fmt: skip
        outcome = outcome_of(work, facts, "sweep")
        timed("ledger", lambda: ledger.append(outcome))  # noqa: B023
        timed("learn", lambda: search.tell(number, score))  # noqa: B023
        timed("budget", lambda: (budget.add(outcome, resources), budget.reached(SearchSpec(), clock)))  # noqa: B023
        ended += 1
        if handed < trials:
            start()
        if ended in (100, 1000, 2000, 5000) or not events:
            lines.append(_line(algorithm, ended, spent_on, ledger.path, clock))
    if not lines or lines[-1]["outcomes"] != ended:
        lines.append(_line(algorithm, ended, spent_on, ledger.path, clock))
    started = time.perf_counter()
    read = read_ledger(ledger.path)
    finalists(read, 3)
    lines[-1]["resume_s"] = time.perf_counter() - started
    return lines


def _line(algorithm: str, ended: int, spent_on: dict[str, float], path: Path, clock: float) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        "outcomes": ended,
        **{f"{what}_ms": 1000 * seconds / ended for what, seconds in spent_on.items()},
        "all_ms": 1000 * sum(spent_on.values()) / ended,
        "ledger_mb": path.stat().st_size / 1e6,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "fleet_s": clock,
    }


def main(trials: int = 10_000, nodes: int = 1_000) -> None:
    console = Console(width=160)
    table = Table(
        title=f"The driver's processor time an outcome (mean so far; ledger: elapsed), {trials} trials on {nodes} nodes"
    )
    parts = ("propose", "key", "halve", "ledger", "learn", "budget", "all")
    for heading in ("proposals", "outcomes", *(f"{part} ms" for part in parts), "ledger MB", "memory MB", "resume s"):
        table.add_column(heading, justify="right")
    with TemporaryDirectory() as folder:
        # A proposal of TPE looks at all trials before it: it is stopped where it has told enough.
        for algorithm, limit in (("random", 600.0), ("tpe", 60.0)):
            for line in simulate(trials, nodes, algorithm, Path(folder), limit):
                costs = [f"{line[f'{part}_ms']:.2f}" for part in parts]
                resume = f"{line['resume_s']:.1f}" if "resume_s" in line else ""
                sizes = [f"{line['ledger_mb']:.1f}", f"{line['rss_mb']:.0f}", resume]
                table.add_row(algorithm, str(line["outcomes"]), *costs, *sizes)
    console.print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
