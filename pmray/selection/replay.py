"""What another way to choose would have found, and at which cost: recorded scores are played again, nothing is trained.

A run that let all trials go to their end (``search.stop: false``) has the learning curve of each: any rule of halving
can be tried on them in seconds. A matrix of scores, data sets by models, shows what knowing how models did elsewhere is
worth.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pmray.errors import DataError
from pmray.selection.experience import Experience, Signature, expected
from pmray.selection.halving import Reached, Standing, Stop, halve, next_stop, promoted, weighed_at
from pmray.selection.ledger import Outcome

ORDERS = 200
"""Random orders in which trials arrive, or models are tried."""

MASKS = 5
"""Random parts of a matrix that are taken as known."""

SLACK = 1.15
"""A recorded rung this much off counts as the one that a rule asks for."""


@dataclass(frozen=True)
class Curve:
    """A trial that went to its end."""

    trial: str
    candidate: str
    scores: Mapping[int, float]
    """Examples -> validation score at each rung, the end included."""

    @property
    def budget(self) -> int:
        """Examples of the whole trial."""
        return max(self.scores)

    @property
    def final(self) -> float:
        """Score at the end."""
        return self.scores[self.budget]


@dataclass(frozen=True)
class Replayed:
    """What a rule found, over many orders."""

    rule: str
    compute: float
    """Share of what trying everything costs."""
    regret: float
    """Mean of (best score there is - score of what was chosen)."""
    worst: float
    """Largest of them."""


Chosen = tuple[Sequence[int], Mapping[int, int]]
"""Curves that went to their end, and where the others were stopped."""


def curves_of(outcomes: Iterable[Outcome]) -> list[Curve]:
    """The trials of a sweep that went to their end."""
    return [
        Curve(one.key, one.candidate, dict(one.curve))
        for one in outcomes
        if one.stage == "sweep" and one.status == "done" and one.curve
    ]


def replay_halving(
    curves: Sequence[Curve], *, reductions: Sequence[float] = (2, 3, 4), seed: int = 0
) -> list[Replayed]:
    """Play rules of halving on recorded curves: none, stopping (ours, see ``halving.halve``), and promotion.

    Stopping decides about each trial as it arrives, one after the other; promotion (Jamieson & Talwalkar 2016,
    "Non-stochastic best arm identification") brings all to a rung first, pauses them, and resumes the best 1/reduction
    to the next. Every reduction is played from every recorded rung on, its later rungs each `reduction` times as far.

    Args:
        curves: At least two, of the same rungs.
        reductions: One in so many goes on.
        seed: Of the orders.

    Raises:
        DataError: There are fewer than two curves, or they have no rung in common before their end.
    """
    if len(curves) < 2:
        raise DataError(f"{len(curves)} trials went to their end; a replay needs two (`search.stop: false` stops none)")
    known = sorted(set.intersection(*(set(curve.scores) - {curve.budget} for curve in curves)))
    if not known:
        raise DataError("the trials have no rung in common; `search.rungs: 2` records two before the end")
    random = np.random.default_rng(seed)
    orders = [random.permutation(len(curves)) for _ in range(ORDERS)]
    rules: dict[str, Callable[[NDArray[np.int64]], Chosen]] = {"no halving": lambda order: (order.tolist(), {})}
    whole = max(curve.budget for curve in curves)
    for reduction in reductions:
        for rungs in ladders(known, whole, reduction):
            where = " and ".join(f"{rung / whole:.0%}" for rung in rungs)
            rules[f"stopping 1/{reduction:g} at {where}"] = partial(play_stopping, curves, rungs, reduction)
            rules[f"promotion 1/{reduction:g} at {where}"] = partial(play_promotion, curves, rungs, reduction)
    return [_over(name, orders, curves, play) for name, play in rules.items()]


def ladders(known: Sequence[int], whole: int, reduction: float) -> list[list[int]]:
    """Rungs from each recorded one on, each about `reduction` times the one before it, as far as they are recorded.

    >>> ladders([100, 150, 300, 600], 900, reduction=3)
    [[100, 300], [150], [300], [600]]
    """
    found = []
    for first in known:
        rungs = [first]
        while rungs[-1] * reduction < whole / SLACK:
            nearest = min(known, key=lambda rung: abs(np.log(rung / (rungs[-1] * reduction))))
            if nearest <= rungs[-1] or not 1 / SLACK <= nearest / (rungs[-1] * reduction) <= SLACK:
                break
            rungs.append(nearest)
        found.append(rungs)
    return found


def _over(
    rule: str, orders: Sequence[NDArray[np.int64]], curves: Sequence[Curve], play: Callable[[NDArray[np.int64]], Chosen]
) -> Replayed:
    best, whole = max(curve.final for curve in curves), sum(curve.budget for curve in curves)
    regrets, costs = [], []
    for order in orders:
        ended, stopped = play(order)
        regrets.append(best - max(curves[index].final for index in ended))
        costs.append((sum(curves[index].budget for index in ended) + sum(stopped.values())) / whole)
    return Replayed(rule, float(np.mean(costs)), float(np.mean(regrets)), float(np.max(regrets)))


def play_stopping(curves: Sequence[Curve], rungs: Sequence[int], reduction: float, order: NDArray[np.int64]) -> Chosen:
    """Decide about trials as they arrive, one after the other, as ``halving.halve`` does.

    Args:
        curves: All trials.
        rungs: Examples at which they are compared.
        reduction: One in so many goes on.
        order: In which they arrive.
    """
    standings: dict[int, list[Standing]] = {rung: [] for rung in rungs}
    ended: list[int] = []
    stopped: dict[int, int] = {}
    for index in order:
        curve = curves[index]
        for rung in rungs:
            standings[rung].append(Standing(curve.trial, curve.candidate, curve.scores[rung]))
            decision = halve(curve.trial, standings[rung], reduction=reduction, first_rung=rung == rungs[0])
            if isinstance(decision, Stop):
                stopped[index] = rung
                break
        else:
            ended.append(index)
    return ended, stopped


def play_promotion(
    curves: Sequence[Curve],
    rungs: Sequence[int],
    reduction: float,
    order: NDArray[np.int64],
    straight: Collection[int] = (),
    leaders: Collection[str] = (),
) -> Chosen:
    """Bring all trials to each rung before the best go on, as ``halving.promoted`` says.

    Args:
        curves: All trials.
        rungs: Examples at which they are compared.
        reduction: One in so many goes on.
        order: Those that take part.
        straight: Those that do not wait before the rung where candidates are weighed.
        leaders: Candidates of whom one trial at least goes to its end.
    """
    stops = {str(index): [*rungs, curves[index].budget] for index in order}
    at = {name: next_stop(0, stops[name], weighed_at(stops[name]) if int(name) in straight else 0) for name in stops}
    while True:
        trials = [
            Reached(
                name,
                curves[int(name)].candidate,
                {rung: curves[int(name)].scores[rung] for rung in stops[name] if rung <= reached},
                reached < curves[int(name)].budget,
            )
            for name, reached in at.items()
        ]
        going = promoted(trials, rungs, reduction=reduction, leaders=leaders)
        if not going:
            break
        for name in going:
            at[name] = next_stop(at[name], stops[name])
    ended = [int(name) for name, rung in at.items() if rung == curves[int(name)].budget]
    return ended, {int(name): rung for name, rung in at.items() if rung < curves[int(name)].budget}


def replay_matrix(scores: NDArray[np.float64], *, tried: Sequence[int] = (1, 2, 3, 5), seed: int = 0) -> list[Replayed]:
    """Choose few models to fine-tune on each data set in turn, knowing the others' scores on the other data sets.

    By their mean score or mean rank there, and as ``search.experience`` does, from all scores or from a quarter.

    Args:
        scores: Shape (data sets, models).
        tried: How many models are fine-tuned; the best of them is the choice.
        seed: Of the random choices.
    """
    sets, models = scores.shape
    random = np.random.default_rng(seed)
    best = scores.max(1)
    found = []
    masks = {
        "all": [np.ones(scores.shape, dtype=bool)],
        "a quarter": [random.random(scores.shape) < 0.25 for _ in range(MASKS)],
    }
    for count in (number for number in tried if number < models):
        drawn = [random.permutation(models)[:count] for _ in range(ORDERS)]
        chance = np.array([[best[data] - scores[data, few].max() for few in drawn] for data in range(sets)])
        found.append(Replayed(f"{count} at random", count / models, float(chance.mean()), float(chance.max())))
        for name, order in (("mean score", _mean_score), ("mean rank", _mean_rank)):
            regrets = [
                best[data] - scores[data, order(np.delete(scores, data, axis=0))[:count]].max() for data in range(sets)
            ]
            found.append(
                Replayed(
                    f"{count} by {name} elsewhere", count / models, float(np.mean(regrets)), float(np.max(regrets))
                )
            )
        for name, known in masks.items():
            regrets = [
                best[data] - scores[data, _by_experience(scores, data, mask)[:count]].max()
                for mask in known
                for data in range(sets)
            ]
            rule = f"{count} by experience, {name} of it"
            found.append(Replayed(rule, count / models, float(np.mean(regrets)), float(np.max(regrets))))
    return found


def _by_experience(scores: NDArray[np.float64], data: int, known: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Models in the order that ``experience.expected`` gives them, from some scores on the other data sets."""
    alike = Signature("", "", 1, 1, 1.0, 0.0)
    past = [
        Experience(f"{row} {model}", str(row), alike, str(model), "", {}, float(scores[row, model]), 1, True)
        for row, model in zip(*np.nonzero(known), strict=True)
        if row != data
    ]
    worth = expected(past, alike, [str(model) for model in range(scores.shape[1])])
    # Of a model that nobody has tried, the usual is expected.
    usual = float(np.mean(list(worth.values()))) if worth else 0.0
    return np.argsort([-worth.get(str(model), usual) for model in range(scores.shape[1])], kind="stable")


def _mean_score(elsewhere: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.argsort(-elsewhere.mean(0), kind="stable")


def _mean_rank(elsewhere: NDArray[np.float64]) -> NDArray[np.int64]:
    from scipy.stats import rankdata

    return np.argsort(rankdata(-elsewhere, axis=1).mean(0), kind="stable")


def read_matrix(path: Path) -> NDArray[np.float64]:
    """Read a table of scores: a line of model names, then a line of scores for each data set, between tabs.

    Raises:
        DataError: It is not such a table; says which line.
    """
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    width = len(lines[0].split("\t")) if lines else 0
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            cells = [float(cell) for cell in line.split("\t") if cell.strip()]
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}; a line of scores is numbers between tabs") from None
        if len(cells) != width:
            raise DataError(f"{path}:{number} has {len(cells)} scores, but the first line names {width} models")
        rows.append(cells)
    if len(rows) < 2 or width < 2:
        raise DataError(f"{path} holds {len(rows)} data sets x {width} models; a replay needs two of each")
    return np.array(rows)
