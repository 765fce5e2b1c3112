"""When a sweep knows enough: whether further trials could still change who the leading candidates are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pmray.selection.ledger import Outcome

FEWEST = 2
"""Trials of a leading candidate, its default recipe and another one, without which nobody knows what a search gives."""

SURE = 2.0
"""Standard errors of a difference that count as more than chance: 95 %."""


def error_of_difference(score: float, rows: int) -> float:
    """Standard error of the difference of two shares of right answers on so many rows, taken as independent.

    Two models on the same rows differ by less.

    >>> round(error_of_difference(0.8, rows=300), 3)
    0.033
    """
    share = min(max(score, 0.0), 1.0)
    return math.sqrt(2 * share * (1 - share) / rows)


def settled_leaders(
    outcomes: Iterable[Outcome], candidates: Sequence[str], rows: int, finalists: int, searched: int
) -> str | None:
    """Why no further trial is needed, in words; None while the leading group may still change.

    The leaders are those whose best score lies within chance of the best one. They are settled when they are few enough
    to be finalists, those that are searched at all have been, and every other candidate is further behind than chance
    and the search together have ever moved a score: the most that a recipe gained over the default of any candidate.
    Scores are compared at the last rung that a candidate reached, at which the leaders' scores are known too.

    This is a rule of thumb with stated assumptions, not a proof: a candidate could gain from the search what no other
    one has. Chance is two standard errors (``error_of_difference``).

    Args:
        outcomes: Trials so far; those without a score are passed over.
        candidates: All that take part.
        rows: Validation rows.
        finalists: How many candidates go on from the sweep.
        searched: How many get recipes beyond their default one.
    """
    curves: dict[str, list[dict[int, float]]] = defaultdict(list)
    for one in outcomes:
        if one.score is not None and one.curve:
            curves[one.candidate].append(dict(one.curve))
    if any(not curves.get(name) for name in candidates):
        return None
    ends = {name: max(max(curve.values()) for curve in curves[name]) for name in candidates}
    best = max(ends.values())
    chance = SURE * error_of_difference(best, rows)
    leaders = {name for name in candidates if best - ends[name] <= chance}
    others = [name for name in candidates if name not in leaders]
    # One that was stopped early is behind because it was stopped: compared where it stood.
    behind = {}
    for name in others:
        at = max(rung for curve in curves[name] for rung in curve)
        theirs = [max(score for rung, score in curve.items() if rung <= at) for leader in leaders
                  for curve in curves[leader] if min(curve) <= at]  # fmt: skip
        if not theirs:
            return None
        behind[name] = max(theirs) - max(score for curve in curves[name] for rung, score in curve.items() if rung <= at)
    gain = max((max(map(_top, found)) - _top(found[0]) for found in curves.values()), default=0.0)
    known = sum(len(curves[name]) >= FEWEST for name in leaders)
    if len(leaders) > finalists or known < min(searched, len(leaders)):
        return None
    if others and min(behind.values()) <= chance + gain:
        return None
    named = ", ".join(sorted(leaders))
    if not others:
        # Nobody is left who could join them; which of them wins is for the finalists' fits to say.
        return f"all candidates are within {100 * chance:.1f} points of each other and go on as finalists ({named})"
    return (
        f"{named} lead by {100 * min(behind.values()):.1f} points or more, and chance ({100 * chance:.1f}) and search "
        f"({100 * gain:.1f}) have not moved a score by as much"
    )


def _top(curve: dict[int, float]) -> float:
    return max(curve.values())
