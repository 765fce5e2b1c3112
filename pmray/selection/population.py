"""Population based training: at each rung variants of the best trials take the place of the worst.

Jaderberg et al. 2017, "Population Based Training of Neural Networks": truncation selection, and factors on the learning
rate. In two points ours differs. A variant is a recipe of its own, which says from where on its rate was another: so it
can be fitted again from the start, with other seeds, and has its place in the ledger like any other; going on from a
copy of its parent's state only saves the part that both share. And only the learning rate is varied, since everything
else that a recipe says holds for a whole fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from pmray.spec import Recipe

SHARE = 0.25
"""Of the trials at a rung, which are replaced, and by variants of as many."""

FACTORS = (0.8, 1.25)
"""On the learning rate of a variant."""


def born(recipe: Recipe, budget: int) -> int:
    """Examples after which a variant went its own way; 0 of a trial that is no variant.

    >>> born(Recipe(), 1200), born(Recipe(lr_changes=((0.25, 0.8), (0.5, 1.25))), 1200)
    (0, 600)
    """
    return round(recipe.lr_changes[-1][0] * budget) if recipe.lr_changes else 0


def generations(longest: int, count: int, warmup: float) -> list[int]:
    """Rungs before the end, at equal distances, but none within the warm-up, where no rate has been tried yet.

    Args:
        longest: Examples of the longest trial.
        count: Rungs.
        warmup: Share of a trial in which its learning rate rises.

    >>> generations(1200, 3, warmup=0.1), generations(1200, 3, warmup=0.3)
    ([300, 600, 900], [600, 900])
    """
    shares = [place / (count + 1) for place in range(1, count + 1)]
    return [max(1, round(share * longest)) for share in shares if share > warmup]


@dataclass(frozen=True)
class Member:
    """A trial of the population."""

    trial: str
    recipe: Recipe
    budget: int
    """Examples of its whole fit."""
    curve: Mapping[int, float]
    """Examples -> score at each rung, those before its birth included."""
    waits: bool
    """Whether it stopped at its last rung and could go on from there."""

    @property
    def born(self) -> int:
        """Examples after which it went its own way."""
        return born(self.recipe, self.budget)


@dataclass(frozen=True)
class Variant:
    """A trial to begin where another one is."""

    parent: str
    rung: int
    recipe: Recipe


@dataclass(frozen=True)
class Turn:
    """What becomes of those that wait."""

    going: tuple[str, ...]
    ending: tuple[str, ...]
    variants: tuple[Variant, ...]


def turn(members: Sequence[Member], rungs: Sequence[int], seed: int) -> Turn:
    """Decide about all that wait, once everybody has arrived.

    The same members give the same answer, so that a sweep that was interrupted makes the same variants again; those
    that are there already are for the caller to know.

    Args:
        members: All trials that have a score, those that have ended included.
        rungs: Examples at which trials are compared, rising, without the end.
        seed: Of the choice of parents and factors.

    >>> field = [Member(name, Recipe(), 90, {30: score}, True) for name, score in zip("abcd", (0.9, 0.8, 0.7, 0.1))]
    >>> found = turn(field, [30, 60], seed=0)
    >>> found.going, found.ending, [(one.parent, one.rung) for one in found.variants]
    (('a', 'b', 'c'), ('d',), [('a', 30)])
    """
    going: list[str] = []
    ending: list[str] = []
    variants: list[Variant] = []
    for rung in rungs:
        waiting = [one for one in members if one.waits and max(one.curve) == rung]
        if not waiting:
            continue
        # A variant is no rival of those among whom its parent won.
        rivals = sorted(
            (one for one in members if rung in one.curve and one.born < rung),
            key=lambda one: (one.curve[rung], one.trial),
            reverse=True,
        )
        count = int(SHARE * len(rivals))
        best = [one for one in rivals[:count] if one.budget > rung]
        worst = {one.trial for one in rivals[len(rivals) - count :] if one.curve[rung] < rivals[0].curve[rung]}
        made = [Variant(one.trial, rung, _varied(one, rung, factor)) for one in best for factor in FACTORS]
        Random(f"{seed} {rung}").shuffle(made)
        variants += made[: len(worst)]
        going += [one.trial for one in waiting if one.trial not in worst]
        ending += [one.trial for one in waiting if one.trial in worst]
    return Turn(tuple(going), tuple(ending), tuple(variants))


def _varied(one: Member, rung: int, factor: float) -> Recipe:
    return one.recipe.changed({"lr_changes": (*one.recipe.lr_changes, (rung / one.budget, factor))})
