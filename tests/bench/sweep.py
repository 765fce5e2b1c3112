"""The sweep against other ways to choose: ``python -m tests.bench.sweep [simulate|rank|peers]``.

``simulate`` plays ways of choosing on the fits that ``tests.bench.curves`` has recorded: the rules are pmray's own
functions, the scores and times are those of real fits, nothing is trained. ``rank`` measures pmray's ranking beside
TransformerRanker on the same rows and candidates (it must be installed: ``pip install transformer-ranker``). ``peers``
runs real searches: pmray, ``Trainer.hyperparameter_search`` with Ray and ASHA, and the documented pattern of Ray Train
in Ray Tune, with the same recipes on the same rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pmray.distributed.cluster import connected
from pmray.selection.halving import Reached, leading, weighed_at
from pmray.selection.ledger import Outcome
from pmray.selection.proxies import thin
from pmray.selection.replay import Curve, play_promotion, play_stopping
from pmray.stages.fitting import encode
from pmray.stages.preparation import prepare
from tests.bench.curves import DATA_SETS, RECIPES, REPETITIONS, ROWS, SHARES, rank, read, spec_of
from tests.bench.sweep_peers import compare_ranking, compare_search

ORDERS = 300
"""Orders in which recipes are proposed; the same for all ways."""

NOTES = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Choice:
    """What a way chose, and at which cost."""

    test: float
    seconds: float
    """Of training and evaluation."""
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
        trials: How many of the recipes are tried; all by default. Default recipes come first.
    """

    def play(fits: Fits, order: Sequence[int]) -> Choice:
        left = [index for index in order if fits[index].candidate in kept]
        left.sort(key=lambda index: not fits[index].facts["default"])
        lead, straight = kept, set()
        if leaders is not None:
            defaults = [index for index in left if fits[index].facts["default"]]
            lead, straight = _leading([fits[index] for index in defaults], shares, leaders), set(defaults)
        able = [index for index in left if index in straight or fits[index].candidate in lead]
        chosen = able[: trials or len(able)]
        curves = [Curve(str(index), fits[index].candidate, dict(fits[index].curve)) for index in chosen]
        rungs = [fits[chosen[0]].curve[SHARES.index(share)][0] for share in shares]
        places = np.arange(len(chosen))
        if pause:
            on = {place for place, index in enumerate(chosen) if index in straight}
            ended, stopped = play_promotion(curves, rungs, reduction, places, on)
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


def _leading(fits: Fits, shares: Sequence[float], leaders: int) -> Collection[str]:
    """Candidates that get further recipes, after their default ones have come to where they are weighed."""
    rung = weighed_at([*(fits[0].curve[SHARES.index(share)][0] for share in shares), fits[0].examples])
    trials = [Reached(one.key, one.candidate, dict(one.curve), False) for one in fits]
    return leading(trials, [one.candidate for one in fits], leaders, rung)


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


def simulate(storage: Path) -> None:
    """Regret and compute of ways of choosing, on recorded fits."""
    console = Console(width=140)
    for name in DATA_SETS:
        ranked, rank_seconds = ranking(name, storage)
        for repetition in range(REPETITIONS):
            if len(fits := read(name, repetition)) == RECIPES * len(ranked):
                console.print(_simulated(f"{name}, seeds {repetition}", fits, ranked, rank_seconds))


def _simulated(title: str, fits: Fits, ranked: Sequence[Any], rank_seconds: float) -> Table:
    """All ways of choosing on these fits."""
    everybody = [one.candidate for one in ranked]
    kept = [one.candidate for one in ranked if one.kept]
    ways: dict[str, Callable[[Fits, Sequence[int]], Choice]] = {"brute force": lambda fits, order: brute_force(fits)}
    early, late, more = (1 / 9, 1 / 3), (1 / 4, 1 / 3), (1 / 4, 1 / 3, 2 / 3)
    for who, names in (("", everybody), ("rank, ", kept)):
        for rule, pause in (("stopping", False), ("waiting", True)):
            for shares in (early, late, more):
                ways[f"{who}{rule} at {_at(shares)}"] = funnel(names, shares, pause=pause)
    for shares in (late, more):
        for reduction in (3, 4):
            for leaders in (1, 2, 3):
                way = f"rank, waiting at {_at(shares)}, 1/{reduction} goes on, {leaders} leaders"
                ways[way] = funnel(kept, shares, reduction=reduction, leaders=leaders)
    random = np.random.default_rng(0)
    orders = [random.permutation(len(fits)) for _ in range(ORDERS)]
    whole = brute_force(fits)
    table = Table(
        title=f"{title}: {len(fits)} fits of {len(everybody)} candidates, {whole.seconds:.0f} s of training; the "
        f"ranking ({rank_seconds:.0f} s, counted) keeps {', '.join(kept)}",
        title_justify="left",
    )
    for heading in ("way", "time", "examples", "test F1", "regret", "worst", "within 0.5 points"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, play in ways.items():
        found = [play(fits, order) for order in orders]
        regrets = [100 * (whole.test - one.test) for one in found]
        extra = rank_seconds if way.startswith("rank") else 0.0
        table.add_row(
            way,
            f"{(np.mean([one.seconds for one in found]) + extra) / whole.seconds:.0%}",
            f"{np.mean([one.examples for one in found]) / whole.examples:.0%}",
            f"{np.mean([one.test for one in found]):.3f}",
            f"{np.mean(regrets):+.2f}",
            f"{max(regrets):+.2f}",
            f"{np.mean([one <= 0.5 for one in regrets]):.0%}",
        )
    return table


def _at(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def main(*what: str) -> None:
    """Measure what is asked for, or all; ``peers`` may be followed by training rows and by those that are to run."""
    storage = Path(gettempdir()) / "pmray-bench"
    known = {"simulate": simulate, "rank": compare_ranking, "peers": compare_search}
    if what[:1] == ("peers",):
        ways = [one for one in what[1:] if not one.isdigit()]
        compare_search(storage, *ways, rows=max((int(one) for one in what[1:] if one.isdigit()), default=ROWS["train"]))
        return
    for name in what or known:
        known[name](storage)


if __name__ == "__main__":
    main(*sys.argv[1:])
