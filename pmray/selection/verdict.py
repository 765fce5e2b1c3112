"""Who wins, how sure that is, and the words that explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmray.errors import NoVerdict
from pmray.scoring.intervals import Interval, bootstrap_seeds, selection_corrected
from pmray.scoring.metrics import Metric
from pmray.scoring.paired import (
    Paired,
    approximate_randomisation,
    groups,
    holm,
    mcnemar,
    minimum_detectable_difference,
    paired_bootstrap,
)
from pmray.spec import Decide
from pmray.tasks.base import Outcomes, Task

SIMILAR_COST = 1.1
"""Costs within ten percent of the cheapest count as equal: a shared machine measures latency no better than that."""

SECONDARY_DRAWS = 1000
"""Bootstrap draws for metrics that decide nothing."""


FEW_ROWS_A_CLASS = 10
"""Test rows a class under which an interval of a mean over classes promises too much (tests/bench/coverage.py)."""


@dataclass(frozen=True)
class Contender:
    """A model (or baseline) with its predictions on the test rows."""

    name: str
    outcomes: Sequence[Outcomes]
    """One array a seed, of the same rows in the same order."""
    baseline: bool = False
    search_score: float | None = None
    """Validation score with which it won its place among the finalists."""
    default_score: float | None = None
    """Validation score of its default recipe, as far as that went."""
    search_gain: float | None = None
    """Validation score of its recipe minus that of the default one, at equal examples seen."""
    validation_score: float | None = None
    """Mean validation score of its fits."""
    latency_ms: float = 0.0
    parameters: int = 0
    training_seconds: float = 0.0
    """Mean of its fits."""
    memory_bytes: int = 0
    """Weights and one row, as the ranking measured it; 0 where it did not."""


@dataclass(frozen=True)
class Line:
    """A contender's line in the table."""

    name: str
    baseline: bool
    group: int
    """1 is the top group; members of a group cannot be told apart from its best."""
    score: Interval
    metrics: Mapping[str, Interval]
    seeds: int
    search_score: float | None
    default_score: float | None
    search_gain: float | None
    validation_score: float | None
    latency_ms: float
    parameters: int
    training_seconds: float
    memory_bytes: int
    pareto: bool
    """Whether no other model is at least as good in score and all costs, and better in one; baselines have none."""


@dataclass(frozen=True)
class Comparison:
    """Two contenders on the same rows; `first` has the higher score."""

    first: str
    second: str
    paired: Paired
    adjusted_p: float
    """Of the paired bootstrap, after Holm's correction for all pairs."""
    mcnemar_p: float
    """Exact test of equal accuracy, first fits of both, uncorrected; it takes every row for itself."""
    randomisation_p: float
    """Approximate randomisation of the deciding metric, uncorrected: a second opinion, which decides nothing."""


@dataclass(frozen=True)
class Verdict:
    """The winner and everything that speaks for and against it."""

    winner: str
    metric: str
    rows: int
    clusters: int | None
    """Groups of rows that intervals and tests drew as wholes; None where every row stands for itself."""
    level: float
    lines: tuple[Line, ...]
    """Best first."""
    comparisons: tuple[Comparison, ...]
    groups: tuple[tuple[str, ...], ...]
    corrected: Interval
    """The winner's score without the luck of having been picked on the same rows."""
    optimism_gap: float | None
    """Score during the search minus score on the test rows."""
    smallest_visible_difference: float
    """What a paired test on this many rows would probably see, for accuracy."""
    per_class: Mapping[str, Mapping[str, Interval]]
    """Label -> metric -> interval, of the winner."""
    words: tuple[str, ...]

    def line(self, name: str) -> Line:
        """The line of that contender."""
        return next(line for line in self.lines if line.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain values."""
        return asdict(self)


def decide(
    contenders: Sequence[Contender],
    task: Task,
    metric: str,
    rules: Decide,
    clusters: NDArray[Any] | None = None,
    searched: Sequence[float] = (),
) -> Verdict:
    """Compare contenders on the same test rows and name the winner.

    All pairs are compared with a paired bootstrap, which knows of other rows and other seeds, with Holm's correction.
    Approximate randomisation and McNemar's test are shown beside it; on simulated equal models they call a tie about
    equally often (tests/bench/coverage.py). Among the models of the top group, those that cannot be told apart from the
    best, the cheapest wins. Baselines are compared but cannot win: they are not bundles.

    Args:
        contenders: Models and baselines; all have the same rows.
        task: Gives metrics.
        metric: Name of the one that decides.
        rules: Significance level, limits and what counts as cheap.
        clusters: Group of each row, (rows,), when rows of one group are alike; see `resampled`.
        searched: Validation scores of the search's trials, in their order, for what more of them would bring.

    Raises:
        NoVerdict: No model, or none within the limits.
    """
    if not any(not one.baseline for one in contenders):
        raise NoVerdict("no candidate finished, so there is nothing to decide; the ledger says why each one failed.")
    level = 1 - rules.alpha
    scored = task.metric(metric)

    def interval(of: Metric, one: Contender, draws: int) -> Interval:
        return bootstrap_seeds(of, one.outcomes, draws=draws, level=level, clusters=clusters)

    intervals = {one.name: interval(scored, one, rules.draws) for one in contenders}
    ordered = sorted(contenders, key=lambda one: -intervals[one.name].value)
    compared = _compare(ordered, task, metric, rules, clusters)
    adjusted = {frozenset((one.first, one.second)): one.adjusted_p for one in compared}
    grouped = groups([one.name for one in ordered], adjusted, rules.alpha)
    front = pareto(
        {
            one.name: (intervals[one.name].value, *(-value for value in _costs(one)))
            for one in contenders
            if not one.baseline
        }
    )
    lines = tuple(
        Line(
            name=one.name,
            baseline=one.baseline,
            group=next(number for number, members in enumerate(grouped, start=1) if one.name in members),
            score=intervals[one.name],
            metrics={name: interval(task.metric(name), one, SECONDARY_DRAWS) for name in task.metrics()},
            seeds=len(one.outcomes),
            search_score=one.search_score,
            default_score=one.default_score,
            search_gain=one.search_gain,
            validation_score=one.validation_score,
            latency_ms=one.latency_ms,
            parameters=one.parameters,
            training_seconds=one.training_seconds,
            memory_bytes=one.memory_bytes,
            pareto=one.name in front,
        )
        for one in ordered
    )
    winner = _winner(lines, rules)
    chosen = next(one for one in contenders if one.name == winner.name)
    models = {one.name: one.outcomes for one in contenders if not one.baseline}
    gap = None if winner.search_score is None else winner.search_score - winner.score.value
    rows = len(chosen.outcomes[0])
    visible = minimum_detectable_difference(rows, winner.metrics.get("accuracy", winner.score).value, level=level)
    groups_drawn = None if clusters is None else len(np.unique(clusters))
    return Verdict(
        winner=winner.name,
        metric=metric,
        rows=rows,
        clusters=groups_drawn,
        level=level,
        lines=lines,
        comparisons=tuple(compared),
        groups=tuple(tuple(members) for members in grouped),
        corrected=selection_corrected(scored, models, draws=rules.draws, level=level, clusters=clusters),
        optimism_gap=gap,
        smallest_visible_difference=visible,
        per_class={
            label: {name: interval(function, chosen, SECONDARY_DRAWS) for name, function in functions.items()}
            for label, functions in task.class_metrics().items()
        },
        words=tuple(
            _words(
                winner,
                lines,
                compared,
                grouped,
                metric,
                rows,
                gap,
                visible,
                rules,
                groups_drawn,
                len(task.class_metrics()),
                searched,
            )
        ),
    )


def _compare(
    ordered: Sequence[Contender], task: Task, metric: str, rules: Decide, clusters: NDArray[Any] | None
) -> list[Comparison]:
    """All pairs of models, and each model with the best baseline."""
    best_baseline = next((one.name for one in ordered if one.baseline), None)
    scored = task.metric(metric)
    pairs = {
        (a.name, b.name): paired_bootstrap(
            scored, a.outcomes, b.outcomes, draws=rules.draws, level=1 - rules.alpha, clusters=clusters
        )
        for a, b in combinations(ordered, 2)
    }
    # Weaker baselines are shown, but asking about them too would cost the tests that matter their power.
    fits = {one.name: one.outcomes for one in ordered}
    swapped = {
        (a, b): approximate_randomisation(
            scored, *_as_many_fits(fits[a], fits[b]), draws=rules.draws, clusters=clusters
        )
        for a, b in pairs
    }
    asked = {
        pair: paired.p_value
        for pair, paired in pairs.items()
        if all(name == best_baseline or not _is_baseline(ordered, name) for name in pair)
    }
    adjusted = holm(asked)
    rights = {one.name: task.right(one.outcomes[0]) for one in ordered}
    return [
        Comparison(
            first=a,
            second=b,
            paired=paired,
            adjusted_p=adjusted.get((a, b), paired.p_value),
            mcnemar_p=mcnemar(rights[a], rights[b]),
            randomisation_p=swapped[a, b],
        )
        for (a, b), paired in pairs.items()
    ]


def _as_many_fits(a: Sequence[Outcomes], b: Sequence[Outcomes]) -> tuple[list[Outcomes], list[Outcomes]]:
    """Pair up fits: a single fit meets every one of the other model's, surplus fits stay out."""
    number = max(len(a), len(b)) if 1 in (len(a), len(b)) else min(len(a), len(b))
    first, second = (list(fits) * number if len(fits) == 1 else list(fits[:number]) for fits in (a, b))
    return first, second


def _is_baseline(contenders: Sequence[Contender], name: str) -> bool:
    return next(one.baseline for one in contenders if one.name == name)


def _costs(one: Contender) -> tuple[float, ...]:
    return (one.latency_ms, one.memory_bytes, one.parameters, one.training_seconds)


def pareto(values: Mapping[str, Sequence[float]]) -> set[str]:
    """Who is not beaten: nobody else is at least as good in everything and better in something.

    Args:
        values: Name -> numbers of which more is better, of one length.

    >>> sorted(pareto({"good": (0.9, -20), "fast": (0.8, -5), "neither": (0.8, -20)}))
    ['fast', 'good']
    """

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        pairs = list(zip(a, b, strict=True))
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    return {name for name, mine in values.items() if not any(beats(theirs, mine) for theirs in values.values())}


def cost(line: Line, rules: Decide) -> float:
    """What makes a model cheap: ms per row, parameters, or seconds of training; nothing when only the score counts."""
    costs = {"latency": line.latency_ms, "parameters": line.parameters, "training": line.training_seconds, "score": 0.0}
    return float(costs[rules.prefer])


def _winner(lines: Sequence[Line], rules: Decide) -> Line:
    models = [line for line in lines if not line.baseline]
    in_time = [line for line in models if not rules.max_latency_ms or line.latency_ms <= rules.max_latency_ms]
    if not in_time:
        fastest = min(models, key=lambda line: line.latency_ms)
        raise NoVerdict(
            f"no finalist answers within decide.max_latency_ms = {rules.max_latency_ms:g}: the fastest, "
            f"{fastest.name}, takes {fastest.latency_ms:.1f} ms; allow more, or add "
            "smaller candidates (such as `layers: 3`)."
        )
    allowed = [line for line in in_time if not rules.max_memory or line.memory_bytes <= rules.max_memory]
    if not allowed:
        smallest = min(in_time, key=lambda line: line.memory_bytes)
        raise NoVerdict(
            f"no finalist stays below decide.max_memory = {rules.max_memory or 0:,} bytes: the smallest, "
            f"{smallest.name}, takes {smallest.memory_bytes:,}; allow more, or add smaller candidates."
        )
    top = min(line.group for line in allowed)
    group = [line for line in allowed if line.group == top]
    cheapest = min(cost(line, rules) for line in group)
    return next(line for line in group if cost(line, rules) <= SIMILAR_COST * cheapest)


def _words(
    winner: Line,
    lines: Sequence[Line],
    compared: Sequence[Comparison],
    grouped: Sequence[Sequence[str]],
    metric: str,
    rows: int,
    gap: float | None,
    visible: float,
    rules: Decide,
    clusters: int | None,
    classes: int,
    searched: Sequence[float],
) -> list[str]:
    level = f"{1 - rules.alpha:.0%}"
    seeds = f"mean of {winner.seeds} seeds" if winner.seeds > 1 else "one seed"
    words = [
        f"{winner.name} wins: {metric} {show(winner.score)} ({level} interval) on {rows} sealed test rows, {seeds}."
    ]
    baselines = {line.name for line in lines if line.baseline}
    peers = [name for name in grouped[winner.group - 1] if name != winner.name and name not in baselines]
    models = [line for line in lines if not line.baseline]
    if peers:
        best = next(line for line in lines if line.name in (winner.name, *peers))
        words.append(f"It cannot be told apart from {_and(peers)} at this number of rows: a tie, not a victory.")
        if best.name != winner.name:
            found = _between(compared, best.name, winner.name)
            words.append(
                f"{best.name} scored {100 * found.paired.difference:.1f} points more (p = {found.adjusted_p:.2g} after "
                f"Holm's correction); {winner.name} was preferred for its lower {_cost_name(rules)}: "
                f"{_show_cost(winner, rules)} against {_show_cost(best, rules)}."
            )
    runner_up = next((line for line in models if line.name != winner.name and line.name not in peers), None)
    if runner_up:
        found = _between(compared, winner.name, runner_up.name)
        sign = 1 if found.first == winner.name else -1
        low, high = sorted((sign * found.paired.low, sign * found.paired.high))
        ahead = "ahead of" if sign > 0 else "behind"
        words.append(
            f"It is {100 * abs(found.paired.difference):.1f} points {ahead} {runner_up.name} "
            f"({100 * low:+.1f} to {100 * high:+.1f}, p = {found.adjusted_p:.2g})."
        )
    baseline = next((line for line in lines if line.baseline), None)
    if baseline:
        found = _between(compared, winner.name, baseline.name)
        gain = winner.score.value - baseline.score.value
        surely = found.adjusted_p < rules.alpha
        if surely and gain > 0:
            told = f"buys {100 * gain:.1f} points over it (p = {found.adjusted_p:.2g})"
        elif surely:
            told = f"is {100 * -gain:.1f} points worse (p = {found.adjusted_p:.2g}): use the baseline"
        else:
            told = f"buys nothing that these rows can show ({100 * gain:+.1f} points, p = {found.adjusted_p:.2g})"
        words.append(f"{baseline.name} scores {show(baseline.score)}; the pre-trained model {told}.")
    if gap is not None:
        words.append(
            f"The search promised {winner.search_score:.3f} on validation, {100 * abs(gap):.1f} points "
            f"{'more' if gap > 0 else 'less'} than the test shows."
        )
    if winner.search_gain is not None and winner.default_score is not None:
        words.append(
            f"The search added {100 * winner.search_gain:.1f} points on validation to the default recipe's "
            f"{winner.default_score:.3f} at equal examples seen, part of which is the luck of the best of several."
            if winner.search_gain > 0
            else "The search found no better recipe than the default one."
        )
    if clusters is not None:
        words.append(
            f"Rows of one group are alike: intervals and tests drew the {clusters} groups, not single rows. McNemar's "
            "test and the smallest visible difference do not know groups."
        )
    words += _what_more_would_tell(winner, peers, models, compared, rows, searched)
    words.append(f"With {rows} rows, differences over about {100 * visible:.1f} points in accuracy can be seen.")
    if metric.endswith("_macro") and rows < FEW_ROWS_A_CLASS * classes:
        words.append(
            f"{rows} rows of {classes} classes are few: {metric} itself is then biased, and its 95% interval holds the "
            "true score less often than it says (91 to 93% of the time with three rows a class); give more test rows."
        )
    return words


def _what_more_would_tell(
    winner: Line,
    peers: Sequence[str],
    models: Sequence[Line],
    compared: Sequence[Comparison],
    rows: int,
    searched: Sequence[float],
) -> list[str]:
    """What else could be had: cheaper models that are not beaten, more test rows, more trials."""
    words = []
    front = [f"{line.name} ({line.score.value:.3f}, {line.latency_ms:.1f} ms)" for line in models if line.pareto]
    if len(models) > 1:
        words.append(f"Not beaten in score, latency, memory, parameters and training time at once: {_and(front)}.")
    if peers:
        nearest = next(line for line in models if line.name in peers)
        found = _between(compared, winner.name, nearest.name)
        wanted = rows_to_tell(rows, found.paired.difference, found.paired.low, found.paired.high)
        words.append(
            f"If the {100 * abs(found.paired.difference):.1f} points between it and {nearest.name} are real, about "
            f"{wanted:,} test rows would show them four times out of five."
            if wanted is not None
            else f"No number of test rows in reach would tell it from {nearest.name}."
        )
    if len(searched) > 1:
        place = int(np.argmax(searched)) + 1
        since = len(searched) - place
        words.append(
            f"The best validation score came with trial {place} of {len(searched)}"
            + (
                "; it may rise with more trials."
                if since < max(2, len(searched) / 4)
                else f"; the {since} after it found nothing better, so that more would hardly help."
            )
        )
    return words


def gain_over_default(chosen: Mapping[int, float], default: Mapping[int, float]) -> tuple[float | None, float | None]:
    """The default recipe's best score, and how much better the chosen one did, as far as both went.

    Args:
        chosen: Examples -> validation score of the chosen recipe's trial.
        default: The same of the default recipe's.

    >>> gain_over_default({100: 0.5, 300: 0.75, 900: 0.9}, {100: 0.25, 300: 0.5})
    (0.5, 0.25)
    >>> gain_over_default({100: 0.5}, {})
    (None, None)
    """
    common = set(chosen) & set(default)
    if not common:
        return None, None
    best, ours = (
        max(score for examples, score in curve.items() if examples <= max(common)) for curve in (default, chosen)
    )
    return best, ours - best


def rows_to_tell(rows: int, difference: float, low: float, high: float) -> int | None:
    """Test rows with which a paired interval would leave out zero four times out of five, if the difference is real.

    An interval narrows with the square root of the rows: n ((z_alpha + z_0.8) / z_alpha)^2 (half width / difference)^2,
    for 95 % intervals. Seeds do not become more with rows, so it is a little less than what it takes.

    Args:
        rows: There are.
        difference: Found.
        low: Of its interval.
        high: Of its interval.

    Returns:
        None where it is more than a thousand times the rows.

    >>> rows_to_tell(1_000, 0.01, -0.01, 0.03), rows_to_tell(1_000, 0.0001, -0.02, 0.02)
    (8200, None)
    """
    if abs(difference) < 1e-9:
        return None
    wanted = rows * ((1.96 + 0.84) / 1.96) ** 2 * ((high - low) / 2 / difference) ** 2
    return None if wanted > 1_000 * rows else int(round(max(wanted, rows), -2) or rows)


def show(interval: Interval) -> str:
    """Write a score with its interval.

    >>> show(Interval(0.8123, 0.79, 0.83, 0.95))
    '0.812 [0.790, 0.830]'
    """
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _between(compared: Sequence[Comparison], a: str, b: str) -> Comparison:
    return next(one for one in compared if {one.first, one.second} == {a, b})


def _cost_name(rules: Decide) -> str:
    return {"latency": "latency", "parameters": "size", "training": "training time", "score": "cost"}[rules.prefer]


def _show_cost(line: Line, rules: Decide) -> str:
    if rules.prefer == "parameters":
        return f"{line.parameters / 1e6:.1f} M parameters"
    return f"{line.training_seconds:.0f} s" if rules.prefer == "training" else f"{line.latency_ms:.1f} ms a row"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
