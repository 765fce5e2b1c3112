"""Who goes on: successive halving by examples seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pmray.selection.ledger import Outcome


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
