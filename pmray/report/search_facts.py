"""What a search has to tell, computed from its ledger and verdict: small tuples that ``run_page`` draws.

Nothing here reads a file or draws a line.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pmray.report.console import recipe_text
from pmray.scoring.intervals import Interval
from pmray.selection.ledger import Outcome

ENOUGH_TRIALS = 5
"""Trials of a candidate under which nothing is said about its hyper-parameters."""
FEW_TRIALS = 15
"""Trials under which importances are called a hint."""
ABSENT = ("failed", "infeasible", "unavailable")
"""States of what has no result."""


class Standing(NamedTuple):
    """A line of the leaderboard."""

    name: str
    winner: bool
    baseline: bool
    group: int
    score: Interval
    metrics: Mapping[str, Interval]
    seeds: int
    validation_score: float | None
    latency_ms: float | None
    """None for baselines, as the other costs."""
    parameters: int | None
    training_seconds: float | None
    p_value: float | None
    """Against the winner, Holm-corrected; None for the winner."""


class CostPoint(NamedTuple):
    """Something with a score and a cost."""

    name: str
    cost: float
    score: Interval
    best: bool
    """Whether nothing cheaper scores as much (Pareto)."""


class Curve(NamedTuple):
    """A trial's way through the rungs."""

    detail: str
    """How its recipe differs from the candidate's default."""
    status: str
    points: tuple[tuple[int, float], ...]
    """(examples, score)."""


class Place(NamedTuple):
    """A candidate before and after fine-tuning."""

    candidate: str
    proxies: Mapping[str, float]
    mean_rank: float
    tuned: bool
    score: float | None
    """The best at ``examples``, of the trials that came there."""


class Ranking(NamedTuple):
    """The rank stage against what fine-tuning found."""

    places: tuple[Place, ...]
    """By mean rank, best first."""
    examples: int | None
    """At which scores are compared; None where no two candidates share a rung."""
    spearman: float | None
    weighted_tau: float | None


class Effect(NamedTuple):
    """A hyper-parameter and the scores of the trials with its values."""

    parameter: str
    importance: float
    """Its share of the variance of the score, by fANOVA; the shares of a candidate add up to 1."""
    points: tuple[tuple[Any, float, str], ...]
    """(value, score, recipe) of each trial."""
    log: bool


class Effects(NamedTuple):
    """What a candidate's trials tell about its hyper-parameters."""

    candidate: str
    trials: int
    """That reached ``examples``; others are left out."""
    examples: int
    effects: tuple[Effect, ...]
    """Most important first; empty where there are too few trials."""


class Failure(NamedTuple):
    """Something without a result."""

    candidate: str
    stage: str
    status: str
    detail: str
    error: str


class Usage(NamedTuple):
    """What a stage cost."""

    stage: str
    trials: int
    examples: int
    seconds: float
    """Of all trials together, however many ran at a time."""


def standings(verdict: Mapping[str, Any]) -> tuple[Standing, ...]:
    """The leaderboard of a verdict (as ``verdict.json`` has it), best first."""
    p_values = {
        frozenset((one["first"], one["second"])): float(one["adjusted_p"]) for one in verdict.get("comparisons", ())
    }

    def line(one: Mapping[str, Any]) -> Standing:
        baseline = bool(one["baseline"])
        return Standing(
            name=one["name"],
            winner=one["name"] == verdict["winner"],
            baseline=baseline,
            group=one["group"],
            score=Interval(**one["score"]),
            metrics={name: Interval(**values) for name, values in one["metrics"].items()},
            seeds=one["seeds"],
            validation_score=one["validation_score"],
            latency_ms=None if baseline else one["latency_ms"],
            parameters=None if baseline else one["parameters"],
            training_seconds=None if baseline else one["training_seconds"],
            p_value=p_values.get(frozenset((one["name"], verdict["winner"]))),
        )

    return tuple(line(one) for one in verdict["lines"])


def frontier(points: Iterable[tuple[str, float, Interval]]) -> tuple[CostPoint, ...]:
    """Mark the points that nothing cheaper equals, cheapest first.

    >>> def at(score): return Interval(score, score, score, 0.95)
    >>> [one.name for one in frontier([("a", 1, at(0.5)), ("b", 2, at(0.4)), ("c", 3, at(0.6))]) if one.best]
    ['a', 'c']
    """
    found, best = [], -np.inf
    for name, cost, score in sorted(points, key=lambda one: (one[1], -one[2].value)):
        found.append(CostPoint(name, cost, score, score.value > best))
        best = max(best, score.value)
    return tuple(found)


def trials_of(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Trials of the sweep that gave a score, by candidate, in the order in which they ended."""
    found: dict[str, list[Outcome]] = {}
    for one in outcomes:
        if one.stage == "sweep" and one.status in ("done", "stopped") and one.score is not None:
            found.setdefault(one.candidate, []).append(one)
    return found


def curves(outcomes: Iterable[Outcome]) -> dict[str, tuple[Curve, ...]]:
    """Learning curves by candidate, the candidate with the best score first."""
    by_candidate = trials_of(outcomes)
    ordered = sorted(by_candidate, key=lambda name: -max(one.score or 0.0 for one in by_candidate[name]))
    found = {}
    for name in ordered:
        trials = by_candidate[name]
        default = trials[0].recipe
        found[name] = tuple(
            Curve(recipe_text(one.recipe, default), one.status, one.curve or ((one.examples, one.score or 0.0),))
            for one in trials
        )
    return found


def ranking(outcomes: Iterable[Outcome], agreed: Mapping[str, Any] | None) -> Ranking | None:
    """The order before fine-tuning beside the scores after it; None where nothing was ranked.

    Args:
        outcomes: Of a run, the latest of each key.
        agreed: ``ranking`` of ``verdict.json``.
    """
    from scipy.stats import rankdata

    every = list(outcomes)
    ranked = {one.candidate: one.facts["proxies"] for one in every if one.stage == "rank" and one.status == "done"}
    if not ranked:
        return None
    names = list(ranked)
    # A candidate that a proxy could not judge is ranked by those that judged all.
    proxies = [proxy for proxy in ranked[names[0]] if all(proxy in ranked[name] for name in names)]
    ranks = np.mean([rankdata([-ranked[name][proxy] for name in names], method="ordinal") for proxy in proxies], axis=0)
    tuned = trials_of(every)
    reached = {name: {rung for one in tuned.get(name, ()) for rung, _ in one.curve} for name in names}
    common = set.intersection(*(rungs for rungs in reached.values() if rungs)) if any(reached.values()) else set()
    at = max(common, default=None)

    def best(name: str) -> float | None:
        scores = [score for one in tuned.get(name, ()) for rung, score in one.curve if rung == at]
        return max(scores, default=None)

    places = [
        Place(name, {proxy: ranked[name][proxy] for proxy in proxies}, float(rank), name in tuned, best(name))
        for name, rank in zip(names, ranks, strict=True)
    ]
    return Ranking(
        tuple(sorted(places, key=lambda one: one.mean_rank)),
        at,
        agreed["spearman"] if agreed else None,
        agreed["weighted_tau"] if agreed else None,
    )


def effects(outcomes: Iterable[Outcome]) -> tuple[Effects, ...]:
    """Importance and effect of each candidate's hyper-parameters, at equal examples seen.

    Importances are fANOVA's (Hutter, Hoos & Leyton-Brown 2014, "An efficient approach for assessing hyperparameter
    importance", ICML), as Optuna computes them. Trials are compared at the latest rung that at least half of them, and
    at least `ENOUGH_TRIALS`, have reached: scores after other numbers of examples would tell of halving instead.
    """
    found = []
    for name, trials in trials_of(outcomes).items():
        reached: dict[int, list[tuple[Outcome, float]]] = {}
        for one in trials:
            for rung, score in one.curve:
                reached.setdefault(rung, []).append((one, score))
        enough = max(ENOUGH_TRIALS, len(trials) / 2)
        rungs = [rung for rung, those in reached.items() if len(those) >= enough]
        if not rungs:
            found.append(Effects(name, len(trials), 0, ()))
            continue
        at = max(rungs)
        recipes = [one.recipe for one, _ in reached[at]]
        scores = [score for _, score in reached[at]]
        details = [recipe_text(recipe, trials[0].recipe) for recipe in recipes]
        shares = importances(recipes, scores)
        found.append(
            Effects(
                name,
                len(scores),
                at,
                tuple(
                    Effect(
                        parameter,
                        share,
                        tuple(
                            (recipe[parameter], score, detail)
                            for recipe, score, detail in zip(recipes, scores, details, strict=True)
                        ),
                        _is_log([recipe[parameter] for recipe in recipes]),
                    )
                    for parameter, share in shares.items()
                ),
            )
        )
    return tuple(found)


def importances(recipes: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, float]:
    """Share of the variance of the score that each hyper-parameter explains (fANOVA), largest first.

    Hyper-parameters that all recipes share are left out; so are all where every score is the same.

    Args:
        recipes: One a trial.
        scores: Of the same trials.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    # Changes of the rate along the way come from how trials did; they are no choice that could explain it.
    fixed = [key for key in recipes[0] if key != "lr_changes"]
    varied = [key for key in fixed if len({str(recipe.get(key)) for recipe in recipes}) > 1]
    if not varied or len(set(scores)) == 1:
        return {}
    distributions: dict[str, Any] = {}
    for key in varied:
        values = [recipe[key] for recipe in recipes]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            distributions[key] = FloatDistribution(min(values), max(values), log=_is_log(values))
        else:
            distributions[key] = CategoricalDistribution(sorted(set(values), key=str))
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(direction="maximize")
            for recipe, score in zip(recipes, scores, strict=True):
                params = {key: recipe[key] for key in varied}
                study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=score))
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    finally:
        optuna.logging.set_verbosity(level)


def _is_log(values: Sequence[Any]) -> bool:
    """Whether numbers span so much that they were drawn from a logarithmic range, or are best seen on one."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) == len(values) and min(numbers) > 0 and max(numbers) >= 4 * min(numbers)


def failures(outcomes: Iterable[Outcome]) -> tuple[Failure, ...]:
    """Trials and candidates without a result, with what is known about why."""
    every = list(outcomes)
    default: dict[str, Mapping[str, Any]] = {}
    for one in every:
        if one.recipe:
            default.setdefault(one.candidate, one.recipe)
    return tuple(
        Failure(
            one.candidate,
            one.stage,
            one.status,
            recipe_text(one.recipe, default[one.candidate]) if one.recipe else "",
            (one.error or "").strip(),
        )
        for one in every
        if one.status in ABSENT
    )


def usage(outcomes: Iterable[Outcome]) -> tuple[Usage, ...]:
    """What each stage cost."""
    every = list(outcomes)
    names = {"baseline": "baselines", "rank": "ranking", "sweep": "sweep", "final": "finalists"}
    found = []
    for stage, told in names.items():
        mine = [one for one in every if one.stage == stage and one.status != "unavailable"]
        if mine:
            found.append(Usage(told, len(mine), sum(one.examples for one in mine), sum(one.seconds for one in mine)))
    return tuple(found)
