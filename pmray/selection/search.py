"""What to try next: each candidate's default recipe first, then recipes that Optuna proposes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from pmray.spec import Choice, Log, Range, Recipe, Uniform

ATTEMPTS = 50
"""Proposals that are drawn before the spaces count as used up."""

GRID_POINTS = 4
"""Values that a grid takes of a range without steps, ends included."""

NEEDS = {"lora_alpha": "lora_rank"}
"""Hyper-parameters that mean something only where another one is not zero, and are searched only there."""


MAY_DIFFER = frozenset(
    {
        "lr",
        "epochs",
        "warmup",
        "schedule",
        "lr_changes",
        "weight_decay",
        "clip",
        "layer_decay",
        "label_smoothing",
        "class_weights",
        "patience",
    }
)
"""Hyper-parameters in which trials may differ whose steps are one computation (``training.fused``): the others decide
which rows a step sees, which values are dropped, or which weights there are."""


def alike(one: Recipe, other: Recipe) -> bool:
    """Whether fits of two recipes can take their steps together.

    >>> alike(Recipe(lr=1e-5), Recipe(lr=1e-4, epochs=2)), alike(Recipe(batch_size=16), Recipe(batch_size=32))
    (True, False)
    """
    return one.model_dump(exclude=set(MAY_DIFFER)) == other.model_dump(exclude=set(MAY_DIFFER))


@dataclass(frozen=True)
class Arm:
    """A candidate as the search sees it."""

    candidate: str
    default: Recipe
    space: Mapping[str, Range]


@dataclass(frozen=True)
class Proposal:
    """Something to try."""

    number: int
    candidate: str
    recipe: Recipe


@dataclass(frozen=True)
class Tried:
    """Something that was tried before, perhaps by an earlier run."""

    candidate: str
    recipe: Recipe
    score: float | None


class Asking(Protocol):
    """What proposes recipes and learns from their scores."""

    def ask(self, leaders: Collection[str] | None = None, like: Proposal | None = None) -> Proposal | None:
        """Return what to try next; None when there is nothing new.

        Args:
            leaders: Candidates for which recipes beyond the first ones are asked; all by default.
            like: Only what can take its steps together with this; None, too, while there are first ones to try.
        """
        ...

    def tell(self, number: int, score: float | None) -> None:
        """Learn a proposal's score; None when it failed."""
        ...

    def learn(self, one: Tried) -> None:
        """Learn the score of something that went on after its score was told, or that an earlier run had begun."""
        ...


class Search:
    """Proposes (candidate, recipe) pairs and learns from their scores.

    The candidate is one categorical dimension; each has its own space below it, so Optuna's TPE (Bergstra et al. 2011)
    learns both which models deserve trials and which recipes suit them. It begins with random recipes, for which the
    candidates take turns. The same sequence of calls with the same seed gives the same proposals.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        *,
        algorithm: str = "tpe",
        seed: int = 0,
        tried: Sequence[Tried] = (),
        first: Sequence[tuple[str, Recipe]] = (),
    ) -> None:
        """Begin, or go on.

        Args:
            arms: Candidates with their spaces.
            algorithm: How recipes are proposed after the first ones: tpe, random, or grid, whose candidates take turns.
            seed: Of all chance.
            tried: What earlier runs know.
            first: (candidate, recipe) pairs to try right after the default recipes.
        """
        self._arms = {arm.candidate: arm for arm in arms}
        self._proposed = {(one.candidate, one.recipe) for one in tried}
        self._open: dict[int, Proposal] = {}
        self._running: dict[int, optuna.Trial] = {}
        self._count = 0
        self._chance = Random(seed + len(tried))
        startup = 2 * len(arms)
        # So many proposals, those of earlier runs included, are random.
        self._learns_after = math.inf if algorithm == "random" else startup
        with Quiet():
            # Past trials change what is proposed next, so they also move the seed on.
            self._study = optuna.create_study(
                direction="maximize", sampler=_sampler(algorithm, seed + len(tried), startup=startup)
            )
            for one in tried:
                self._record(one)
        self._first = [(arm.candidate, arm.default) for arm in arms] + [one for one in first if one[0] in self._arms]
        self._grid = _grid(arms) if algorithm == "grid" else None

    def ask(self, leaders: Collection[str] | None = None, like: Proposal | None = None) -> Proposal | None:
        """Return what to try next; None when nothing new was found in the spaces, however often they were asked."""
        arms = [arm for arm in self._arms.values() if leaders is None or arm.candidate in leaders]
        self._first = [one for one in self._first if one not in self._proposed]
        if self._first:
            # What is tried beside one candidate's default must not keep another's waiting.
            return self._propose(*self._first.pop(0)) if like is None else None
        fixed: dict[str, Any] = {}
        if like is not None:
            arms = [arm for arm in arms if arm.candidate == like.candidate]
            space = self._arms[like.candidate].space
            fixed = {field: getattr(like.recipe, field) for field in space if field not in MAY_DIFFER}
            if not all(contains(space[field], value) for field, value in fixed.items()):
                return None

        def new(candidate: str, recipe: Recipe) -> bool:
            asked = any(arm.candidate == candidate for arm in arms) and (like is None or alike(recipe, like.recipe))
            return asked and (candidate, recipe) not in self._proposed

        if self._grid is not None:
            point = next((one for one in self._grid if new(*one)), None)
            return self._propose(*point) if point else None
        # Before anything is learned candidates take turns: chance would leave one with hardly a recipe.
        learns = len(self._proposed) >= self._learns_after
        turns = [arms] if learns else [[arm] for arm in sorted(arms, key=self._times)]
        return next((found for among in turns if (found := self._draw_new(among, fixed, new))), None)

    def _times(self, arm: Arm) -> int:
        """How often a candidate was proposed, by earlier runs too."""
        return sum(candidate == arm.candidate for candidate, _ in self._proposed)

    def _draw_new(
        self, arms: Sequence[Arm], fixed: Mapping[str, Any], new: Callable[[str, Recipe], bool]
    ) -> Proposal | None:
        """Propose a recipe of one of these that has these values and is new; None where none was found."""
        for _ in range(ATTEMPTS if arms else 0):
            with Quiet():
                if len(arms) == 1:
                    name = arms[0].candidate
                    given = {f"{name}: {field}": value for field, value in fixed.items()}
                    self._study.enqueue_trial({"candidate": name, **given})
                trial = self._study.ask()
                arm = self._arms[trial.suggest_categorical("candidate", list(self._arms))]
                recipe = self._recipe(arm, trial)
                if not new(arm.candidate, recipe):
                    self._study.tell(trial, state=TrialState.FAIL)
                    continue
            proposal = self._propose(arm.candidate, recipe)
            self._running[proposal.number] = trial
            return proposal
        # TPE comes back to what was good; in a small space chance finds what is left.
        for _ in range(4 * ATTEMPTS if arms else 0):
            arm = self._chance.choice(arms)
            drawn = {field: _draw(values, self._chance) for field, values in arm.space.items()}
            recipe = readable_recipe(arm, {**drawn, **fixed})
            if new(arm.candidate, recipe):
                return self._propose(arm.candidate, recipe)
        return None

    def tell(self, number: int, score: float | None) -> None:
        """Learn a proposal's score; None when it failed."""
        proposal = self._open.pop(number)
        with Quiet():
            trial = self._running.pop(number, None)
            if trial is None:
                self._record(Tried(proposal.candidate, proposal.recipe, score))
            elif score is None:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._study.tell(trial, score)

    def learn(self, one: Tried) -> None:
        """Learn the score of something that went on after its score was told, or that an earlier run had begun."""
        with Quiet():
            self._record(one)

    def _propose(self, candidate: str, recipe: Recipe) -> Proposal:
        self._proposed.add((candidate, recipe))
        proposal = Proposal(self._count, candidate, recipe)
        self._open[self._count] = proposal
        self._count += 1
        return proposal

    def _recipe(self, arm: Arm, trial: optuna.Trial) -> Recipe:
        values: dict[str, Any] = {}
        for field in _in_order(arm.space):
            if _means_something(field, arm, values):
                values[field] = _readable(
                    field, _suggest(trial, f"{arm.candidate}: {field}", arm.space[field]), arm.space[field]
                )
        return arm.default.changed(values)

    def _record(self, one: Tried) -> None:
        """Put a score into the study, where the recipe lies in the candidate's present space."""
        arm = self._arms.get(one.candidate)
        if arm is None or one.score is None:
            return
        params: dict[str, Any] = {"candidate": one.candidate}
        distributions: dict[str, BaseDistribution] = {"candidate": CategoricalDistribution(list(self._arms))}
        for field, values in arm.space.items():
            name, value = f"{arm.candidate}: {field}", getattr(one.recipe, field)
            if not _means_something(field, arm, one.recipe.model_dump()):
                continue
            if not contains(values, value):
                return
            params[name], distributions[name] = value, _distribution(values)
        self._study.add_trial(create_trial(params=params, distributions=distributions, value=one.score))


def contains(values: Range, value: Any) -> bool:
    """Whether a value lies in a range.

    >>> contains(Choice(choice=[16, 32]), 24), contains(Uniform(uniform=(16, 32)), 24)
    (False, True)
    """
    distribution = _distribution(values)
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return value is not None and bool(distribution.low <= value <= distribution.high)


def _in_order(space: Mapping[str, Range]) -> list[str]:
    """Fields, those that others need first."""
    return sorted(space, key=lambda field: field in NEEDS)


def _means_something(field: str, arm: Arm, values: Mapping[str, Any]) -> bool:
    needed = NEEDS.get(field)
    return needed is None or bool(values.get(needed, getattr(arm.default, needed)))


def readable_recipe(arm: Arm, values: Mapping[str, Any]) -> Recipe:
    """The candidate's default recipe with proposed values, rounded so that people can read them."""
    return _changed(arm, {field: _readable(field, value, arm.space[field]) for field, value in values.items()})


def _changed(arm: Arm, values: Mapping[str, Any]) -> Recipe:
    """The candidate's default recipe with these values, but for those that would mean nothing."""
    return arm.default.changed({field: one for field, one in values.items() if _means_something(field, arm, values)})


def _grid(arms: Sequence[Arm]) -> list[tuple[str, Recipe]]:
    """All recipes of a grid over each candidate's space; the candidates take turns."""
    lists = []
    for arm in arms:
        points = [[_readable(field, one, values) for one in _points(values)] for field, values in arm.space.items()]
        recipes = [_changed(arm, dict(zip(arm.space, chosen, strict=True))) for chosen in product(*points)]
        lists.append([(arm.candidate, recipe) for recipe in dict.fromkeys(recipes)])
    longest = max(map(len, lists), default=0)
    return [one[place] for place in range(longest) for one in lists if place < len(one)]


def _points(values: Range) -> list[Any]:
    """Evenly spaced values of a range, on its scale."""
    if isinstance(values, Choice):
        return list(values.choice)
    low, high = values.log if isinstance(values, Log) else values.uniform
    shares = [number / (GRID_POINTS - 1) for number in range(GRID_POINTS)]
    if isinstance(values, Log):
        return [low * (high / low) ** share for share in shares]
    return [low + (high - low) * share for share in shares]


def _suggest(trial: optuna.Trial, name: str, values: Range) -> Any:
    if isinstance(values, Choice):
        return trial.suggest_categorical(name, values.choice)
    low, high = values.log if isinstance(values, Log) else values.uniform
    return trial.suggest_float(name, low, high, log=isinstance(values, Log))


def _distribution(values: Range) -> CategoricalDistribution | FloatDistribution:
    if isinstance(values, Choice):
        return CategoricalDistribution(values.choice)
    low, high = values.log if isinstance(values, Log) else values.uniform
    return FloatDistribution(low, high, log=isinstance(values, Log))


def _draw(values: Range, chance: Random) -> Any:
    if isinstance(values, Choice):
        return chance.choice(values.choice)
    if isinstance(values, Uniform):
        return chance.uniform(*values.uniform)
    return math.exp(chance.uniform(math.log(values.log[0]), math.log(values.log[1])))


def _readable(field: str, value: Any, values: Range) -> Any:
    """Round to three digits, which people can read and type again, unless that leaves the range; whole where asked."""
    if not isinstance(value, float):
        return value
    if Recipe.model_fields[field].annotation is int:
        return round(value)
    rounded = float(f"{value:.3g}")
    if isinstance(values, Choice):
        return value
    low, high = values.log if isinstance(values, Log) else values.uniform
    return rounded if low <= rounded <= high else value


def _sampler(algorithm: str, seed: int, startup: int) -> optuna.samplers.BaseSampler:
    if algorithm in ("random", "grid"):
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
    )


class Quiet:
    """Optuna's notes on features it calls experimental, and one line a trial, are noise in a sweep."""

    def __enter__(self) -> None:
        self._level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)

    def __exit__(self, *raised: object) -> None:
        self._warnings.__exit__(None, None, None)
        optuna.logging.set_verbosity(self._level)
