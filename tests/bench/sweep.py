"""The sweep against other ways to choose: ``python -m tests.bench.sweep [simulate|rank|peers]``.

``simulate`` plays ways of choosing on the fits that ``tests.bench.curves`` has recorded: the rules are pmray's own
functions, the scores and times are those of real fits, nothing is trained. ``rank`` measures pmray's ranking beside
TransformerRanker on the same rows and candidates (it must be installed: ``pip install transformer-ranker``). ``peers``
runs real searches: pmray, ``Trainer.hyperparameter_search`` with Ray and ASHA, and the documented pattern of Ray Train
in Ray Tune, with the same recipes on the same rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pmray.distributed.cluster import connected
from pmray.fitting import encode
from pmray.preparation import prepare
from pmray.selection.halving import Standing, Stop, halve
from pmray.selection.proxies import thin
from tests.bench.curves import DATA_SETS, SHARES, rank, read, spec_of
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


Fits = Sequence[dict[str, Any]]


def brute_force(fits: Fits, order: Sequence[int]) -> Choice:
    """Every candidate with every recipe to its end; the best validation score wins."""
    best = max(fits, key=lambda one: (one["score"], one["key"]))
    return Choice(best["test"], sum(one["train_seconds"] for one in fits), sum(one["curve"][-1][0] for one in fits))


def funnel(
    kept: Sequence[str], share: float, reduction: float, *, promotion: bool = False, trials: int | None = None
) -> Callable[[Fits, Sequence[int]], Choice]:
    """pmray's way, with the rungs from `share` of the longest fit on.

    Args:
        kept: Candidates that the ranking left.
        share: Of the whole fit at the first rung; each later one is `reduction` times as far.
        reduction: Of halving.
        promotion: Bring all to a rung first, and then the best on, in place of deciding as each arrives.
        trials: How many of the recipes are tried; all by default. Default recipes come first.
    """

    def play(fits: Fits, order: Sequence[int]) -> Choice:
        known = SHARES
        rungs, at = [], share
        while at < 0.95:
            rungs.append(min(range(len(known)), key=lambda index: abs(known[index] - at)))
            at *= reduction
        chosen = [index for index in order if fits[index]["candidate"] in kept]
        chosen.sort(key=lambda index: not fits[index]["default"])
        chosen = chosen[:trials]
        done, stopped = (_promote if promotion else _stop)(fits, chosen, rungs, reduction)
        best = max((fits[index] for index in done), key=lambda one: (one["score"], one["key"]))
        parts = dict.fromkeys(done, 1.0) | {index: known[rung] for index, rung in stopped.items()}
        return Choice(
            best["test"],
            sum(part * fits[index]["train_seconds"] for index, part in parts.items()),
            round(sum(part * fits[index]["curve"][-1][0] for index, part in parts.items())),
        )

    return play


def _stop(
    fits: Fits, chosen: Sequence[int], rungs: Sequence[int], reduction: float
) -> tuple[list[int], dict[int, int]]:
    standings: dict[int, list[Standing]] = {rung: [] for rung in rungs}
    done, stopped = [], {}
    for index in chosen:
        for rung in rungs:
            score = fits[index]["curve"][rung][1]
            standings[rung].append(Standing(str(index), fits[index]["candidate"], score))
            first = rung == rungs[0]
            if isinstance(halve(str(index), standings[rung], reduction=reduction, first_rung=first), Stop):
                stopped[index] = rung
                break
        else:
            done.append(index)
    return done, stopped


def _promote(
    fits: Fits, chosen: Sequence[int], rungs: Sequence[int], reduction: float
) -> tuple[list[int], dict[int, int]]:
    going, stopped = list(chosen), {}
    for rung in rungs:
        ranked = sorted(going, key=lambda index: -fits[index]["curve"][rung][1])
        keep = set(ranked[: max(1, int(np.ceil(len(ranked) / reduction)))])
        if rung == rungs[0]:
            first: dict[str, int] = {}
            for index in ranked:
                first.setdefault(fits[index]["candidate"], index)
            keep |= set(first.values())
        stopped |= {index: rung for index in going if index not in keep}
        going = [index for index in going if index in keep]
    return going, stopped


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
    record = [one for one in read() if one["status"] == "done"]
    for name in DATA_SETS:
        fits = [one for one in record if one["data"] == name]
        if not fits:
            continue
        ranked, rank_seconds = ranking(name, storage)
        everybody = [one.candidate for one in ranked]
        kept = [one.candidate for one in ranked if one.kept]
        ways: dict[str, Callable[[Fits, Sequence[int]], Choice]] = {"brute force": brute_force}
        for reduction, share in ((3, 1 / 9), (3, 1 / 4), (3, 1 / 3), (2, 1 / 4), (4, 1 / 4)):
            for promotion in (False, True):
                rule = f"{'promotion' if promotion else 'stopping'} 1/{reduction} from {share:.0%}"
                ways[rule] = funnel(everybody, share, reduction, promotion=promotion)
                ways[f"rank, {rule}"] = funnel(kept, share, reduction, promotion=promotion)
        ways["rank, stopping 1/3 from 25%, half the trials"] = funnel(kept, 1 / 4, 3, trials=len(fits) // 4)
        random = np.random.default_rng(0)
        orders = [random.permutation(len(fits)) for _ in range(ORDERS)]
        whole = brute_force(fits, orders[0])
        table = Table(
            title=f"{name}: {len(fits)} fits of {len(everybody)} candidates, {whole.seconds:.0f} s of training; the "
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
        console.print(table)


def main(*what: str) -> None:
    """Measure what is asked for, or all."""
    storage = Path(gettempdir()) / "pmray-bench"
    known = {"simulate": simulate, "rank": compare_ranking, "peers": compare_search}
    for name in what or known:
        known[name](storage)


if __name__ == "__main__":
    main(*sys.argv[1:])
