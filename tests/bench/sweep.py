"""The sweep against other ways to choose: ``python -m tests.bench.sweep [simulate|measure|rank|peers]``.

``simulate`` plays ways of choosing on the fits that ``tests.bench.curves`` has recorded: the rules are pmray's own
functions, the scores and times are those of real fits, nothing is trained. ``measure`` runs pmray's sweep itself on the
data sets of some recordings (``measure 14 trec6-1 sst2-1``: 14 trials each). ``rank`` measures pmray's ranking beside
TransformerRanker on the same rows and candidates (it must be installed: ``pip install transformer-ranker``). ``peers``
runs real searches: pmray, ``Trainer.hyperparameter_search`` with Ray and ASHA, and the documented pattern of Ray Train
in Ray Tune, with the same recipes on the same rows.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pmray.distributed.cluster import connected
from pmray.selection.halving import Reached, leading, weighed_at
from pmray.selection.ledger import Outcome, latest
from pmray.selection.proxies import thin
from pmray.selection.replay import Curve, play_promotion, play_stopping
from pmray.spec import Search
from pmray.stages.fitting import encode
from pmray.stages.preparation import prepare
from pmray.stages.workflow import sweep
from tests.bench.curves import DATA_SETS, REPETITIONS, ROWS, SHARES, file_of, fit_anew, rank, read, spec_of
from tests.bench.sweep_peers import compare_ranking, compare_search

ORDERS = 300
"""Orders in which recipes are proposed; the same for all ways."""

SEEDS = 2
"""Fits by which the choice of a real sweep is scored."""

RUNGS = (1 / 4, 1 / 3, 2 / 3)
"""Shares of a whole fit, at which trials are compared: of those that are recorded, the nearest to pmray's own."""

NOTES = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Choice:
    """What a way chose, and at which cost."""

    test: float
    seconds: float
    """Of training, evaluations left out."""
    examples: int


Fits = Sequence[Outcome]


def brute_force(fits: Fits) -> Choice:
    """Every candidate with every recipe to its end; the best validation score wins."""
    best = max(fits, key=_by_score)
    return Choice(
        best.facts["test"], sum(one.facts["train_seconds"] for one in fits), sum(one.examples for one in fits)
    )


def _by_score(one: Outcome) -> tuple[float, str]:
    assert one.score is not None
    return one.score, one.key


def funnel(
    kept: Sequence[str],
    shares: Sequence[float],
    *,
    pause: bool = True,
    reduction: float = 3,
    leaders: int | None = None,
    trials: int | None = None,
) -> Callable[[Fits, Sequence[int]], Choice]:
    """pmray's way.

    Args:
        kept: Candidates that the ranking left.
        shares: Of a whole fit, at which trials are compared.
        pause: Bring all to a rung first, and then the best on, in place of deciding as each arrives.
        reduction: Of halving.
        leaders: Candidates that get more than their default recipes, after a third of their way; all by default.
        trials: How many of the recipes are tried; all by default. Default recipes come first, then candidates take
            turns.
    """

    def play(fits: Fits, order: Sequence[int]) -> Choice:
        left = [index for index in order if fits[index].candidate in kept]
        left.sort(key=lambda index: not fits[index].facts["default"])
        lead: Collection[str] = kept
        straight: set[int] = set()
        if leaders is not None:
            defaults = [index for index in left if fits[index].facts["default"]]
            lead, straight = _leading([fits[index] for index in defaults], shares, leaders), set(defaults)
        able = [index for index in left if index in straight or fits[index].candidate in lead]
        # Candidates take turns, as they do in a search as long as its recipes are random.
        chosen = sorted(able, key=partial(_turn, able, fits))[: trials or len(able)]
        curves = [Curve(str(index), fits[index].candidate, dict(fits[index].curve)) for index in chosen]
        rungs = [fits[chosen[0]].curve[SHARES.index(share)][0] for share in shares]
        places = np.arange(len(chosen))
        if pause:
            on = {place for place, index in enumerate(chosen) if index in straight}
            ended, stopped = play_promotion(curves, rungs, reduction, places, on, () if leaders is None else lead)
        else:
            ended, stopped = play_stopping(curves, rungs, reduction, places)
        best = max((fits[chosen[place]] for place in ended), key=_by_score)
        seen = {chosen[place]: curves[place].budget for place in ended}
        seen |= {chosen[place]: rung for place, rung in stopped.items()}
        return Choice(
            best.facts["test"],
            sum(count / fits[index].examples * fits[index].facts["train_seconds"] for index, count in seen.items()),
            sum(seen.values()),
        )

    return play


def _turn(indices: Sequence[int], fits: Fits, index: int) -> int:
    """How many fits of its candidate come before one."""
    mine = [one for one in indices if fits[one].candidate == fits[index].candidate]
    return mine.index(index)


def _leading(fits: Fits, shares: Sequence[float], leaders: int) -> Collection[str]:
    """Candidates that get further recipes, after their default ones have come to where they are weighed."""
    rung = weighed_at([*(fits[0].curve[SHARES.index(share)][0] for share in shares), fits[0].examples])
    trials = [Reached(one.key, one.candidate, dict(one.curve), False) for one in fits]
    return leading(trials, [one.candidate for one in fits], leaders, rung, rows=ROWS["validation"])


def ranking(name: str, storage: Path) -> tuple[list[Any], float]:
    """pmray's ranking of a data set's candidates, measured now, and its seconds."""
    spec = spec_of(name, storage)
    prepared = prepare(spec, NOTES)
    with connected() as cluster:
        encode(prepared, cluster, NOTES)
        found = rank(prepared)
    ranked = thin(
        {name: one["proxies"] for name, one in found.items()},
        {one.name: one.family for one in prepared.candidates},
        {one.name: one.parameters for one in prepared.candidates},
        keep=spec.search.keep_after_rank,
    )
    return ranked, sum(one["rank_seconds"] for one in found.values())


@dataclass(frozen=True)
class Simulated:
    """What a way finds over many orders, beside brute force."""

    seconds: float
    """Of brute force's, the ranking included."""
    examples: float
    test: float
    regret: float
    """Points of test F1."""
    worst: float
    near: float
    """Share of the orders in which it is at most half a point."""


def recordings() -> dict[str, tuple[str, int]]:
    """Name of each recording -> data set and repetition; those in which all candidates have as many fits."""
    every = {(name, repetition): read(name, repetition) for name in DATA_SETS for repetition in range(REPETITIONS)}
    return {
        file_of(*which).stem: which
        for which, fits in every.items()
        if len(set(Counter(one.candidate for one in fits).values())) == 1
    }


def simulate(storage: Path) -> None:
    """Regret and compute of ways of choosing, on recorded fits: of each recording, and the mean of those alike."""
    console = Console(width=140)
    every: dict[int, dict[str, list[Simulated]]] = {}
    known = recordings().values()
    for name in DATA_SETS:
        ranked, rank_seconds = ranking(name, storage)
        kept = [one.candidate for one in ranked if one.kept]
        for repetition in (number for data, number in known if data == name):
            fits = read(name, repetition)
            found = {
                way: _simulated(fits, play, rank_seconds if way.startswith("rank") else 0.0)
                for way, play in _ways([one.candidate for one in ranked], kept).items()
            }
            title = (
                f"{name}, seeds {repetition}: {len(fits)} fits of {len(ranked)} candidates, "
                f"{brute_force(fits).seconds:.0f} s; the ranking ({rank_seconds:.0f} s) keeps {', '.join(kept)}"
            )
            console.print(_table(title, found))
            for way, one in found.items():
                every.setdefault(len(fits), {}).setdefault(way, []).append(one)
    for count, ways in every.items():
        means = {way: Simulated(*np.mean([astuple(one) for one in each], axis=0)) for way, each in ways.items()}
        console.print(_table(f"mean of the {len(ways['brute force'])} recordings with {count} fits", means))


def _ways(everybody: Sequence[str], kept: Sequence[str]) -> dict[str, Callable[[Fits, Sequence[int]], Choice]]:
    """Ways of choosing; those whose name begins with "rank" know what the ranking kept."""
    ways: dict[str, Callable[[Fits, Sequence[int]], Choice]] = {"brute force": lambda fits, order: brute_force(fits)}
    for who, names in (("", everybody), ("rank, ", kept)):
        ways[f"{who}stopping"] = funnel(names, RUNGS, pause=False)
        ways[f"{who}waiting"] = funnel(names, RUNGS)
    for trials in (12, 14, Search().trials, None):
        for leaders in (1, 2, 3):
            way = f"rank, waiting, {leaders} leader(s), {trials or 'all'} trials"
            ways[way] = funnel(kept, RUNGS, leaders=leaders, trials=trials)
    return ways


def _simulated(fits: Fits, play: Callable[[Fits, Sequence[int]], Choice], extra: float) -> Simulated:
    """Choose in many orders."""
    random = np.random.default_rng(0)
    found = [play(fits, random.permutation(len(fits))) for _ in range(ORDERS)]
    whole = brute_force(fits)
    regrets = [100 * (whole.test - one.test) for one in found]
    return Simulated(
        float(np.mean([one.seconds for one in found]) + extra) / whole.seconds,
        float(np.mean([one.examples for one in found])) / whole.examples,
        float(np.mean([one.test for one in found])),
        float(np.mean(regrets)),
        max(regrets),
        float(np.mean([one <= 0.5 for one in regrets])),
    )


def _table(title: str, found: Mapping[str, Simulated]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("way", "time", "examples", "test F1", "regret", "worst", "within 0.5 points"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, one in found.items():
        cells = (f"{one.test:.3f}", f"{one.regret:+.2f}", f"{one.worst:+.2f}", f"{one.near:.0%}")
        table.add_row(way, f"{one.seconds:.0%}", f"{one.examples:.0%}", *cells)
    return table


def measure(storage: Path, *names: str, trials: int) -> None:
    """Sweeps by pmray, as it is by default but for the number of trials, beside brute force as it was recorded.

    Seconds are those of the ranking, and of each trial its examples times what one took its candidate when it was
    recorded. The best model is fitted anew with other seeds before it is scored on the test rows; that is not counted.
    Brute force's choice is the fit that was recorded, and the same model and recipe fitted anew in the same way: of
    many fits, the one that is best on the validation rows has a good seed too.
    """
    console = Console(width=140)
    table = Table(title=f"pmray's sweep, {trials} trials, beside brute force")
    for heading in ("recording", "fits", "time", "examples", "its choice", "test F1"):
        table.add_column(heading, justify="right")
    for heading in ("brute force's", "regret", "fitted anew", "regret"):
        table.add_column(heading, justify="right")
    found: list[tuple[float, ...]] = []
    known = recordings()
    for recording in names or known:
        name, repetition = known[recording]
        fits = read(name, repetition)
        whole = brute_force(fits)
        search = {"trials": trials, "seed": repetition, "finalists": 1, "seeds": SEEDS}
        spec = spec_of(name, storage, name=f"{recording}-sweep", search=search)
        swept = sweep(spec, fresh=True, console=NOTES)
        outcomes = latest(swept.outcomes).values()
        tried = [one for one in outcomes if one.stage == "sweep"]
        seconds = sum(one.seconds for one in outcomes if one.stage == "rank")
        for one in tried:
            mine = [fit for fit in fits if fit.candidate == one.candidate]
            pace = sum(fit.facts["train_seconds"] for fit in mine) / sum(fit.examples for fit in mine)
            seconds += one.examples * pace
        chosen = next(one for one in swept.verdict.lines if not one.baseline)
        test = chosen.score.value
        best = max(fits, key=_by_score)
        anew = fit_anew(best, spec, [repetition + 1 + index for index in range(SEEDS)], NOTES)
        examples = sum(one.examples for one in tried) / whole.examples
        regret, regret_anew = 100 * (whole.test - test), 100 * (anew - test)
        found.append((seconds / whole.seconds, examples, test, whole.test, regret, anew, regret_anew))
        table.add_row(recording, str(len(fits)), *_cells(found[-1], chosen.name))
        console.print(recording, *_cells(found[-1], f"{chosen.name} ({best.candidate})"))
    table.add_section()
    table.add_row("mean", "", *_cells(tuple(np.mean(found, axis=0)), ""))
    console.print(table)


def _cells(found: tuple[float, ...], choice: str) -> tuple[str, ...]:
    seconds, examples, test, theirs, regret, anew, regret_anew = found
    return (
        *(f"{seconds:.0%}", f"{examples:.0%}", choice, f"{test:.3f}"),
        *(f"{theirs:.3f}", f"{regret:+.2f}", f"{anew:.3f}", f"{regret_anew:+.2f}"),
    )


def main(*what: str) -> None:
    """Measure what is asked for, or all.

    ``measure`` may be followed by a number of trials and by recordings; ``peers`` by training rows and by those that
    are to run.
    """
    storage = Path(gettempdir()) / "pmray-bench"
    names = [one for one in what[1:] if not one.isdigit()]
    number = next((int(one) for one in what[1:] if one.isdigit()), None)
    if what[:1] == ("measure",):
        measure(storage, *names, trials=number or Search().trials)
    elif what[:1] == ("peers",):
        compare_search(storage, *names, rows=number or ROWS["train"])
    elif what:
        {"simulate": simulate, "rank": compare_ranking}[what[0]](storage)
    else:
        simulate(storage)
        measure(storage, trials=Search().trials)
        compare_ranking(storage)
        compare_search(storage)


if __name__ == "__main__":
    main(*sys.argv[1:])
