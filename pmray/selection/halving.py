"""Who goes on: successive halving by examples seen."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pmray.selection.certainty import error_of_difference
from pmray.selection.ledger import Outcome
from pmray.spec import Recipe


@dataclass(frozen=True)
class Standing:
    """A trial's score at a rung."""

    trial: str
    candidate: str
    score: float


@dataclass(frozen=True)
class Continue:
    """Let the trial run to its next rung."""

    trial: str


@dataclass(frozen=True)
class Stop:
    """End the trial here."""

    trial: str
    reason: str


def halve(trial: str, standings: Sequence[Standing], *, reduction: float, first_rung: bool) -> Continue | Stop:
    """Decide about a trial that has just reached a rung, from all that have reached it so far.

    The stopping rule of ASHA (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning"): the best
    1/reduction of the trials seen at the rung go on, all compared at equal examples seen. Three differences, because
    models and not only recipes are compared: nobody is stopped before `reduction` trials have arrived (ASHA stops the
    second to arrive when it is behind the first); at the first rung the best trial of each candidate goes on, since
    models learn at different speeds; and equal scores share the better place, since early on many trials still say the
    majority class for every row.

    Args:
        trial: The trial that has arrived; one of `standings`.
        standings: Everyone who has reached this rung, the trial included.
        reduction: One in this many goes on.
        first_rung: Whether each candidate's best is protected.

    >>> field = [Standing("a", "bert", 0.9), Standing("b", "bert", 0.8), Standing("c", "gpt", 0.5)]
    >>> halve("b", field, reduction=3, first_rung=True)
    Stop(trial='b', reason='place 2 of 3; the best 1 go on')
    >>> halve("c", field, reduction=3, first_rung=True)
    Continue(trial='c')
    >>> halve("b", field[:2], reduction=3, first_rung=True)
    Continue(trial='b')
    """
    arrived = next(one for one in standings if one.trial == trial)
    better = [one for one in standings if one.score > arrived.score]
    place, places = len(better) + 1, math.ceil(len(standings) / reduction)
    if place <= places or len(standings) < reduction:
        return Continue(trial)
    if first_rung and all(one.candidate != arrived.candidate for one in better):
        return Continue(trial)
    return Stop(trial, f"place {place} of {len(standings)}; the best {places} go on")


@dataclass(frozen=True)
class Reached:
    """How far a trial has come."""

    trial: str
    candidate: str
    curve: Mapping[int, float]
    """Examples -> score at each rung."""
    waits: bool
    """Whether it stopped at its last rung and could go on from there."""


def promoted(
    trials: Sequence[Reached],
    rungs: Sequence[int],
    *,
    reduction: float,
    leaders: Collection[str] = (),
    running: Collection[str] = (),
    new: int = 0,
) -> list[str]:
    """Who goes on from the rung where it waits, as soon as that is certain.

    Successive halving (Jamieson & Talwalkar 2016, "Non-stochastic best arm identification"): of all that have reached a
    rung the best 1/reduction go on, compared at equal examples seen, and equal scores share the better place. Models
    learn at different speeds, so at the first rung the best trial of each candidate goes on too, and the best one of
    each leader goes to the end: several trials of one that learns fast would leave no place to one that ends higher.
    Before everybody has arrived, those go on whose place no score of the others can take, so that no worker is idle for
    the last of them. Asked again after they have gone on, it names those of the next rung, and in the end nobody.

    Args:
        trials: All of the sweep that have a score, those that have ended included.
        rungs: Examples at which trials are compared, rising, without the end.
        reduction: One in this many goes on.
        leaders: Candidates that lead (``leading``).
        running: Trials that are on their way from where they waited.
        new: Trials that may still come and have no score yet.

    >>> field = [Reached("a", "bert", {9: 0.9}, True), Reached("b", "bert", {9: 0.8}, True)]
    >>> promoted([*field, Reached("c", "gpt", {9: 0.5}, True)], [9, 27], reduction=3)
    ['a', 'c']
    >>> promoted(field, [9, 27], reduction=3, new=1), promoted(field, [9, 27], reduction=1.5, new=1)
    ([], ['a'])
    >>> later = [Reached("a", "bert", {9: 0.9, 27: 0.9}, True), Reached("c", "gpt", {9: 0.5, 27: 0.7}, True)]
    >>> promoted(later, [9, 27], reduction=3), promoted(later, [9, 27], reduction=3, leaders=["bert", "gpt"])
    (['a'], ['a', 'c'])
    """
    going: list[str] = []
    settled = True
    for rung in rungs:
        here = [one for one in trials if rung in one.curve]
        coming = new + sum(
            one.trial in running or one.trial in going or (one.waits and not settled)
            for one in trials
            if rung not in one.curve
        )
        settled = coming == 0
        places = math.ceil((len(here) + coming) / reduction)
        scores = sorted(one.curve[rung] for one in here)
        best: dict[str, float] = {}
        for one in here:
            best[one.candidate] = max(one.curve[rung], best.get(one.candidate, -math.inf))
        for one in here:
            score = one.curve[rung]
            better = len(scores) - bisect_right(scores, score)
            protected = settled and score == best[one.candidate] and (rung == rungs[0] or one.candidate in leaders)
            # Each that comes may be better, and adds less than a place.
            if (
                one.waits
                and one.trial not in running
                and max(one.curve) == rung
                and (better + coming < places or protected)
            ):
                going.append(one.trial)
    return going


def leading(
    trials: Iterable[Reached], candidates: Collection[str], count: int, rung: int, *, rows: int
) -> frozenset[str]:
    """Candidates that lead, by their best trial at a rung: only they get recipes beyond the default.

    Halving of the candidates, as it were, before that of their trials; at a late rung, to which each candidate's
    default recipe goes without a stop, since some learn late (tests/bench/RESULTS.md).

    Args:
        trials: All of the sweep that have a score, at their rungs.
        candidates: All there are; all lead while fewer than `count` of them have come to the rung.
        count: Those with so many better ones do not lead. Better is who is so by more than a standard error of the
            difference; the others share the place.
        rung: Examples at which they are compared. A trial that ended before counts with its last score.
        rows: Validation rows that gave the scores.

    >>> field = [Reached("a", "bert", {9: 0.9, 27: 0.9}, True), Reached("b", "gpt", {9: 0.5, 27: 0.95}, True)]
    >>> [sorted(leading(field, ["bert", "gpt"], 1, rung=27, rows=rows)) for rows in (300, 30)]
    [['gpt'], ['bert', 'gpt']]
    >>> sorted(leading(field[:1], ["bert", "gpt"], 2, rung=27, rows=300))
    ['bert', 'gpt']
    """
    best: dict[str, float] = {}
    for one in trials:
        last = rung if rung in one.curve else max(one.curve)
        if last == rung or (last < rung and not one.waits):
            best[one.candidate] = max(one.curve[last], best.get(one.candidate, -math.inf))
    if len(best) < count:
        return frozenset(candidates)
    return frozenset(
        name
        for name, score in best.items()
        if sum(other - score > error_of_difference(other, rows) for other in best.values()) < count
    )


@dataclass(frozen=True)
class Leaders:
    """How many candidates get more than their default recipes, and where those that do are found."""

    count: int
    rung: int
    """Examples at which candidates are compared (``leading``)."""
    defaults: Mapping[str, Recipe]
    """Candidate -> its default recipe."""
    rows: int
    """Validation rows that give the scores."""

    def straight_to(self, candidate: str, recipe: Recipe) -> int:
        """Examples before which a trial waits for nobody: default recipes, by which candidates are compared.

        >>> rule = Leaders(1, rung=27, defaults={"bert": Recipe(), "gpt": Recipe()}, rows=300)
        >>> [rule.straight_to("bert", recipe) for recipe in (Recipe(), Recipe(lr=1e-4))]
        [27, 0]
        """
        return self.rung if self.count < len(self.defaults) and recipe == self.defaults[candidate] else 0


def next_stop(seen: int, rungs: Sequence[int], straight_to: int = 0) -> int:
    """Examples at which a trial waits next; its end where it waits no more.

    Args:
        seen: Examples it has seen.
        rungs: Its own, rising, its end included.
        straight_to: It waits nowhere before that.

    >>> [next_stop(seen, [9, 27, 81]) for seen in (0, 9, 27, 81)], next_stop(0, [9, 27, 81], straight_to=27)
    ([9, 27, 81, 81], 27)
    """
    return next((rung for rung in rungs if rung > seen and rung >= straight_to), rungs[-1])


def out_of_reach(one: Reached, trials: Sequence[Reached], total: int, reduction: float) -> bool:
    """Whether a trial that waits cannot be among those that go on, whoever is still to arrive: its state can go.

    Args:
        one: The trial.
        trials: All that have reached a rung so far.
        total: How many trials there will be at most.
        reduction: One in this many goes on.

    >>> field = [Reached(name, "bert", {9: score}, True) for name, score in (("a", 0.9), ("b", 0.8), ("c", 0.7))]
    >>> [out_of_reach(one, field, total=6, reduction=3) for one in field]
    [False, False, True]
    """
    rung = max(one.curve)
    better = [other for other in trials if other.curve.get(rung, -math.inf) > one.curve[rung]]
    # The best of its candidate may be that of a leader.
    return len(better) >= math.ceil(total / reduction) and any(other.candidate == one.candidate for other in better)


def most_waiting(trials: int, candidates: int, reduction: float) -> int:
    """How many trials wait at most that are not out of reach, but for equal scores: places, and one a candidate."""
    return min(trials, math.ceil(trials / reduction) + candidates)


FEWEST_STEPS = 18
"""Optimizer steps before the first rung, where that leaves it at most a third of the way (``compared_at``)."""

SPACING = 3
"""Each rung is so many times as far as the one before it."""

LAST_RUNG = 2 / 3
"""Share of the way at which those that have come beyond a third are compared once more: places hardly change later."""


def compared_at(longest: int, count: int, warmup: float, batch: int = 1) -> list[int]:
    """Rungs before the end: at 1/3, 1/9 … of the longest trial, but none too early, and at 2/3 of it.

    Within twice the warm-up most scores are those of the majority class, and halving would pick by chance: in recorded
    fits it lost a point of F1 that later rungs did not. So it would after a few optimizer steps, whatever their share
    of the whole: in 504 recorded fits of 75 steps, the rank correlation of places with those in the end was 0.1 after 8
    of them, 0.25 after 12, 0.5 after 19 and 0.7 after 25 (tests/bench/RESULTS.md).

    Args:
        longest: Examples of the longest trial.
        count: Rungs in the first third; 0 for none at all.
        warmup: Share of a trial in which its learning rate rises.
        batch: Examples of an optimizer step.

    >>> compared_at(2700, 2, warmup=0.0), compared_at(2700, 2, warmup=0.1), compared_at(1200, 2, 0.1, batch=32)
    ([300, 900, 1800], [540, 900, 1800], [400, 800])
    """
    if not count:
        return []
    earliest = min(max(2 * warmup, FEWEST_STEPS * batch / longest), 1 / SPACING)
    shares = [max(earliest, SPACING**-power) for power in range(count, 0, -1)] + [LAST_RUNG]
    # Two rungs close to each other are one: the second would ask the same question again.
    apart = [share for place, share in enumerate(shares) if all(later > 1.25 * share for later in shares[place + 1 :])]
    return [max(1, round(share * longest)) for share in apart]


def weighed_at(rungs: Sequence[int]) -> int:
    """The rung at which candidates are weighed by their default recipes: the last one in the first half of the way.

    Args:
        rungs: Rising, the end included; the first one counts where there is none so early.

    >>> weighed_at([300, 900, 1800, 2700]), weighed_at([2700])
    (900, 2700)
    """
    return max((rung for rung in rungs if 2 * rung <= rungs[-1]), default=rungs[0])


def finalists(outcomes: Iterable[Outcome], count: int) -> list[Outcome]:
    """The best recipe of each of the best candidates, best first.

    A trial that went to its end comes before one that was stopped: scores are compared at equal examples seen. Of equal
    scores the lower key comes first, so that the order in which trials ended decides nothing.

    Args:
        outcomes: Of the sweep; those without a score are passed over.
        count: How many candidates.
    """
    scored = [one for one in outcomes if one.score is not None and one.status in ("done", "stopped")]
    # Scores of stopped trials are compared at the rung they reached, the furthest first.
    ranked = sorted(
        sorted(scored, key=lambda one: one.key),
        key=lambda one: (one.status == "done", one.examples if one.status == "stopped" else 0, one.score),
        reverse=True,
    )
    best: dict[str, Outcome] = {}
    for one in ranked:
        best.setdefault(one.candidate, one)
    return list(best.values())[:count]
