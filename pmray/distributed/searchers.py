"""Ray Tune's searchers in place of our own search: one a candidate, which take turns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ray import tune
from ray.tune.search import Searcher, create_searcher

from pmray.errors import SpecError
from pmray.selection.search import ATTEMPTS, Arm, Asking, Proposal, Quiet, Search, Tried, readable_recipe
from pmray.spec import Choice, Log, Range, Recipe
from pmray.spec import Search as SearchSpec

SCORE = "score"


class TuneSearch:
    """Asks a searcher of Ray Tune for the recipes of each candidate; used as ``selection.search.Search`` is.

    These searchers know one flat space: so each candidate has its own, and those that lead take turns. Default recipes
    come first, and after them those that did well elsewhere.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        *,
        algorithm: str,
        seed: int = 0,
        tried: Sequence[Tried] = (),
        first: Sequence[tuple[str, Recipe]] = (),
    ) -> None:
        """Begin, or go on; see ``selection.search.Search``.

        Raises:
            SpecError: Ray Tune has no such searcher, or its package is not installed.
        """
        self._arms = {arm.candidate: arm for arm in arms}
        self._proposed = {(one.candidate, one.recipe) for one in tried}
        self._first = [(arm.candidate, arm.default) for arm in arms] + [one for one in first if one[0] in self._arms]
        self._searchers = {
            arm.candidate: _searcher(algorithm, arm, seed + len(tried) + place)
            for place, arm in enumerate(arms)
            if arm.space
        }
        for one in tried:
            if one.score is not None and one.candidate in self._searchers:
                self._add(one.candidate, one.recipe, one.score)
        self._turns = list(self._searchers)
        self._open: dict[int, tuple[str, Recipe, str | None]] = {}
        self._count = self._asked = 0

    def ask(self, leaders: Collection[str] | None = None, like: Proposal | None = None) -> Proposal | None:
        """Return what to try next; None when no searcher proposes anything new. None of them can be told values."""
        if like is not None:
            return None
        while self._first:
            candidate, recipe = self._first.pop(0)
            if (candidate, recipe) not in self._proposed:
                return self._propose(candidate, recipe, None)
        for _ in range(ATTEMPTS * len(self._turns)):
            candidate = self._turns.pop(0)
            self._turns.append(candidate)
            if leaders is not None and candidate not in leaders:
                continue
            self._asked += 1
            searcher, asked = self._searchers[candidate], str(self._asked)
            values = searcher.suggest(asked)
            if not isinstance(values, dict):
                continue
            recipe = readable_recipe(self._arms[candidate], values)
            if (candidate, recipe) not in self._proposed:
                return self._propose(candidate, recipe, asked)
            searcher.on_trial_complete(asked, error=True)
        return None

    def tell(self, number: int, score: float | None) -> None:
        """Learn a proposal's score; None when it failed."""
        candidate, recipe, asked = self._open.pop(number)
        if asked is None:
            if score is not None and candidate in self._searchers:
                self._add(candidate, recipe, score)
        elif score is None:
            self._searchers[candidate].on_trial_complete(asked, error=True)
        else:
            self._searchers[candidate].on_trial_complete(asked, {SCORE: score})

    def learn(self, one: Tried) -> None:
        """Learn the score of something that went on after its score was told, or that an earlier run had begun."""
        if one.score is not None and one.candidate in self._searchers:
            self._add(one.candidate, one.recipe, one.score)

    def _propose(self, candidate: str, recipe: Recipe, asked: str | None) -> Proposal:
        self._proposed.add((candidate, recipe))
        proposal = Proposal(self._count, candidate, recipe)
        self._open[self._count] = (candidate, recipe, asked)
        self._count += 1
        return proposal

    def _add(self, candidate: str, recipe: Recipe, score: float) -> None:
        """Tell a searcher of what it has not proposed, where it can take that."""
        values = {field: getattr(recipe, field) for field in self._arms[candidate].space}
        try:
            self._searchers[candidate].add_evaluated_point(values, score)
        except (NotImplementedError, ValueError):
            # Not all can, and none takes what lies outside its space.
            return


def check_algorithm(asked: SearchSpec) -> None:
    """Make a searcher, so that one that is not there is found before anything is paid for.

    Raises:
        SpecError: It is not there.
    """
    search_of(asked, [Arm("any", Recipe(), {"lr": Log(log=(1e-5, 1e-3))})], (), ())


def search_of(
    asked: SearchSpec, arms: Sequence[Arm], tried: Sequence[Tried], first: Sequence[tuple[str, Recipe]]
) -> Asking:
    """The search that a spec asks for.

    Raises:
        SpecError: It asks for a searcher of Ray Tune that is not there.
    """
    ours, _, theirs = asked.algorithm.partition("ray:")
    if theirs:
        return TuneSearch(arms, algorithm=theirs, seed=asked.seed, tried=tried, first=first)
    # A population begins with random recipes.
    return Search(arms, algorithm="random" if ours == "pbt" else ours, seed=asked.seed, tried=tried, first=first)


def _searcher(algorithm: str, arm: Arm, seed: int) -> Searcher:
    space = {field: _domain(values) for field, values in arm.space.items()}
    try:
        with Quiet():
            made = create_searcher(algorithm, seed=seed, random_state_seed=seed)
    except (ValueError, ImportError, AssertionError) as error:
        raise SpecError(f"search.algorithm: ray:{algorithm} cannot be used ({' '.join(str(error).split())})") from None
    if not isinstance(made, Searcher):
        raise SpecError(f"search.algorithm: ray:{algorithm} proposes nothing by itself; use `random` or `grid`")
    with Quiet():
        made.set_search_properties(SCORE, "max", space)
    return made


def _domain(values: Range) -> Any:
    if isinstance(values, Choice):
        return tune.choice(list(values.choice))
    if isinstance(values, Log):
        return tune.loguniform(*values.log)
    return tune.uniform(*values.uniform)
