"""Plots of a search, drawn from ``search_facts``; each is one inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from scipy.stats import binomtest

from pmray.evaluation.reliability import Reliability
from pmray.report.search_facts import CostPoint, Curve, Effect, Ranking
from pmray.report.svg import Axis, Plot, number, span
from pmray.selection.verdict import show

Styles = Mapping[str, tuple[int, str]]
"""Model -> its shape and colour class, the same in all plots; see ``svg.series``."""

FEW_PREDICTIONS = 10
"""Predictions of a bin below which its share says nothing, and its mark is hollow."""
FEW_VALUES = 4
"""Values of a hyper-parameter that stand side by side, not on a scale."""


def cost_plot(
    points: Sequence[CostPoint], styles: Styles, cost: str, score: str, baseline: float | None = None
) -> Markup:
    """Score against cost, with the Pareto frontier and the best baseline.

    Args:
        points: Cheapest first.
        styles: Of the models.
        cost: What the cost is, with its unit.
        score: Name of the metric.
        baseline: Its score.
    """
    costs = [one.cost for one in points]
    x = span(cost, costs, log=min(costs) > 0 and max(costs) > 5 * min(costs), pad=0.12)
    values = [value for one in points for value in (one.score.low, one.score.high)]
    y = span(score, values if baseline is None else [*values, baseline])
    best = max(points, key=lambda one: one.score.value)
    plot = Plot(f"{score} against {cost}: {len(points)} points, the best is {best.name} with {show(best.score)}", x, y)
    if baseline is not None:
        plot.line([(x.low, baseline), (x.high, baseline)], "rule", f"best baseline: {baseline:.3f}")
    front = [(one.cost, one.score.value) for one in points if one.best]
    # A step: what is bought by more cost comes only at the next point.
    steps = [front[0]]
    for at, value in front[1:]:
        steps += [(at, steps[-1][1]), (at, value)]
    plot.line([*steps, (x.high, steps[-1][1])], "front", "nothing cheaper scores more")
    for one in points:
        shape, style = styles[one.name]
        if one.score.low < one.score.high:
            plot.bar(one.cost, one.score.low, one.score.high, style)
        told = f"{one.name}: {show(one.score)}, {number(one.cost)} {cost}"
        plot.mark(one.cost, one.score.value, shape, style, told)
    return plot.svg()


def trial_plot(trials: Sequence[tuple[str, float, float, str]], styles: Styles, cost: str, score: str) -> Markup:
    """All trials: score against cost.

    Args:
        trials: (candidate, cost, score, words), each.
        styles: Of the candidates.
        cost: What the cost is, with its unit.
        score: Name of the metric.
    """
    costs = [one[1] for one in trials]
    x = span(cost, costs, log=min(costs) > 0 and max(costs) > 5 * min(costs))
    names = ", ".join(dict.fromkeys(one[0] for one in trials))
    y = span(score, [one[2] for one in trials])
    plot = Plot(f"{score} against {cost} of {len(trials)} trials of {names}", x, y)
    for candidate, at, value, told in trials:
        shape, style = styles[candidate]
        plot.mark(at, value, shape, f"{style} open", told)
    return plot.svg()


def curve_plot(name: str, curves: Sequence[Curve], style: str, x: Axis, y: Axis) -> Markup:
    """Learning curves of a candidate's trials; those that were stopped fade and end in a cross."""
    stopped = sum(one.status == "stopped" for one in curves)
    best = max(value for one in curves for _, value in one.points)
    plot = Plot(f"Learning curves of {name}: {len(curves)} trials, {stopped} stopped early, best {best:.3f}", x, y)
    # The finished ones lie on top.
    for one in sorted(curves, key=lambda curve: curve.status != "stopped"):
        faded = " faded" if one.status == "stopped" else ""
        told = f"{one.detail}: {one.status}, {one.points[-1][1]:.3f} after {one.points[-1][0]} examples"
        plot.line(one.points, f"{style}{faded}", told)
        for point in one.points[:-1]:
            plot.mark(*point, 0, f"{style} open{faded}", told)
        plot.mark(*one.points[-1], 4 if faded else 0, f"{style}{faded}", told)
    return plot.svg()


def ranking_plot(found: Ranking, styles: Styles, score: str) -> Markup:
    """Mean rank before fine-tuning against the score after it."""
    points = [(one.mean_rank, one.score, one.candidate) for one in found.places if one.score is not None]
    # The best rank is on the right, so that agreement goes up.
    ranks = [-rank for rank, _, _ in points]
    plot = Plot(
        f"Mean rank before fine-tuning against {score} after it, for {len(points)} candidates",
        span("mean rank of the proxies (1 is best, on the right)", ranks, pad=0.12),
        span(score, [value for _, value, _ in points], pad=0.12),
    )
    for rank, value, name in points:
        plot.mark(-rank, value, *styles[name], f"{name}: mean rank {rank:.1f}, {score} {value:.3f}")
    return plot.svg()


def effect_plot(candidate: str, effect: Effect, score: str) -> Markup:
    """Scores of trials by the value of a hyper-parameter."""
    values = [value for value, _, _ in effect.points]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    kinds: list[Any] = sorted(set(values), key=None if numeric else str)
    numeric = numeric and len(kinds) > FEW_VALUES
    x = span(effect.parameter, values, log=effect.log) if numeric else Axis(effect.parameter, -0.5, len(kinds) - 0.5)
    y = span(score, [value for _, value, _ in effect.points])
    names = () if numeric else tuple(map(str, kinds))
    plot = Plot(f"{score} of {candidate} by {effect.parameter}, {len(values)} trials", x, y, names=names)
    for value, reached, recipe in effect.points:
        told = f"{effect.parameter} {value}: {reached:.3f} ({recipe})"
        plot.mark(value if numeric else kinds.index(value), reached, 0, "s0 open", told)
    return plot.svg()


def reliability_plot(found: Reliability) -> Markup:
    """Share right against confidence, with 95 % intervals; the dashed line is where they agree."""
    full = [one for one in found.bins if one.count >= FEW_PREDICTIONS]
    low = min([one.confidence for one in found.bins] + [one.right for one in full])
    start = max(0.0, min(0.45, low - 0.05))
    plot = Plot(
        f"Share right against confidence in {len(found.bins)} bins; expected calibration error {found.ece:.3f}",
        Axis("confidence", start, 1.02),
        Axis("share right", start, 1.02),
    )
    plot.line([(start, start), (1.0, 1.0)], "rule", "calibrated")
    plot.line([(one.confidence, one.right) for one in full], "s0")
    for one in found.bins:
        share = binomtest(round(one.count * one.right), one.count).proportion_ci(method="wilson")
        plot.bar(one.confidence, max(start, share.low), share.high, "s0" if one in full else "s0 faded")
        told = f"{one.count} predictions: confidence {one.confidence:.3f}, right {one.right:.3f}"
        plot.mark(one.confidence, max(start, one.right), 0, "s0" if one in full else "s0 open faded", told)
    return plot.svg()
