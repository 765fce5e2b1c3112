"""The report of a run: its sections, from facts that others have computed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from pmray.evaluation.slices import MIN_ROWS
from pmray.report.cost import cost_of, resources_of
from pmray.report.html import Section, interval_axis, or_dash, page, section, signed, size, three
from pmray.report.plan import duration
from pmray.report.plots import cost_plot, curve_plot, effect_plot, ranking_plot, trial_plot
from pmray.report.row_facts import RowFacts
from pmray.report.search_facts import (
    FEW_TRIALS,
    Effects,
    curves,
    effects,
    failures,
    frontier,
    ranking,
    standings,
    trials_of,
    usage,
)
from pmray.report.sections import calibration, classes, worst
from pmray.report.svg import Axis, key, number, series, span
from pmray.scoring.intervals import Interval
from pmray.selection.ledger import Outcome
from pmray.selection.verdict import show


class RunFacts(NamedTuple):
    """Everything that a report of a run is made from, as plain values."""

    name: str
    folder: str
    outcomes: Sequence[Outcome]
    """The latest of each key."""
    verdict: Mapping[str, Any] | None
    """As in ``verdict.json``; None for a run that is not decided."""
    findings: Sequence[Mapping[str, Any]]
    environment: Mapping[str, Any]
    spec: Mapping[str, Any]
    spec_text: str
    rows: RowFacts | None
    without_rows: str = ""
    """Why there are no facts of rows."""


def run_page(facts: RunFacts) -> str:
    """The report of a run."""
    sections = [_verdict(facts)] if facts.verdict else []
    sections += [one for make in (_leaderboard, _costs, _curves, _ranking, _effects) if (one := make(facts))]
    sections += [*_of_rows(facts), _findings(facts), _failures(facts), _environment(facts)]
    return page(facts.name, sections, _run_header(facts))


def _run_header(facts: RunFacts) -> Markup:
    verdict = facts.verdict
    tiles: list[tuple[str, str, str]] = []
    if verdict:
        best = next(one for one in standings(verdict) if one.winner)
        corrected = Interval(**verdict["corrected"])
        tiles = [
            ("winner", best.name, ""),
            (verdict["metric"], f"{best.score.value:.3f}", f"{best.score.low:.3f} to {best.score.high:.3f}"),
            ("corrected for the choice", f"{corrected.value:.3f}", f"{corrected.low:.3f} to {corrected.high:.3f}"),
            ("sealed test rows", f"{verdict['rows']:,}", ""),
            ("a row takes", f"{best.latency_ms:.1f} ms", "one at a time"),
            ("size", size(best.parameters), "parameters"),
        ]
    else:
        done = [one for trials in trials_of(facts.outcomes).values() for one in trials]
        opened = any(one.stage == "test" for one in facts.outcomes)
        rows = "the test rows were opened" if opened else "no test row was opened"
        tiles = [("state", "not decided", rows), ("trials with a score", str(len(done)), "")]
        if done:
            best_trial = max(done, key=lambda one: one.score or 0.0)
            tiles.append(("best on validation", f"{best_trial.score:.3f}", best_trial.candidate))
    cost = cost_of(facts.outcomes, resources_of(facts.spec))
    gpus = f", {cost.gpu_hours:.2f} GPU-hours" if cost.gpu_hours else ""
    tiles.append(("compute", f"{cost.core_hours:.2g} h", f"of a core, {cost.fits} fits{gpus}"))
    inside = Markup("").join(
        Markup("<div{}><dt>{}</dt><dd>{}{}</dd></div>").format(
            Markup(" class=wide") if len(value) > 12 else "",
            name,
            value,
            Markup(" <small>{}</small>").format(told) if told else "",
        )
        for name, value, told in tiles
    )
    when = facts.environment.get("time", "")
    task = facts.spec.get("task", "")
    return Markup("<p class=muted>{} · {}</p><dl class=tiles>{}</dl>").format(task, when, inside)


def _verdict(facts: RunFacts) -> Section:
    verdict = facts.verdict or {}
    context = {
        "words": verdict["words"],
        "corrected": Interval(**verdict["corrected"]),
        "metric": verdict["metric"],
        "opened": verdict.get("test_opened", 1),
    }
    return section("verdict", "Verdict", "verdict", context)


def _leaderboard(facts: RunFacts) -> Section | None:
    if not (verdict := facts.verdict):
        return None
    lines = standings(verdict)
    others = [name for name in lines[0].metrics if name != verdict["metric"]][:5]
    baselines = [one.score.value for one in lines if one.baseline]
    headings = (
        "model",
        verdict["metric"],
        "low",
        "high",
        *others,
        "validation",
        "ms/row",
        "parameters",
        "training",
        "p",
    )
    context = {
        "level": verdict["level"],
        "metric": verdict["metric"],
        "rows": verdict["rows"],
        "axis": interval_axis([one.score for one in lines]),
        "rule": max(baselines, default=None),
        "groups": [(number, list(members)) for number, members in groupby(lines, key=lambda one: one.group)],
        "headings": headings,
        "table": [
            (
                one.name,
                *three(one.score),
                *(f"{one.metrics[name].value:.3f}" for name in others),
                or_dash(one.validation_score, "{:.3f}"),
                or_dash(one.latency_ms, "{:.1f}"),
                size(one.parameters),
                "-" if one.training_seconds is None else duration(one.training_seconds),
                or_dash(one.p_value, "{:.2g}"),
            )
            for one in lines
        ],
        "pairs": [
            (
                f"{one['first']}, {one['second']}",
                signed(_Difference(**{name: one["paired"][name] for name in _Difference._fields})),
                f"{one['adjusted_p']:.2g}",
                f"{one['mcnemar_p']:.2g}",
            )
            for one in verdict["comparisons"]
        ],
    }
    return section("leaderboard", "Leaderboard", "leaderboard", context)


class _Difference(NamedTuple):
    difference: float
    low: float
    high: float


def _costs(facts: RunFacts) -> Section | None:
    """Score against cost: finalists on test rows, all trials on validation rows."""
    figures: list[Any] = []
    tables: list[Any] = []
    styles = _styles(facts)
    if verdict := facts.verdict:
        lines = standings(verdict)
        baselines = [one.score.value for one in lines if one.baseline]
        metric = verdict["metric"]
        for title, cost, of in (
            ("Test score against latency", "ms a row", "latency_ms"),
            ("Test score against size", "parameters", "parameters"),
        ):
            points = frontier((one.name, getattr(one, of), one.score) for one in lines if not one.baseline)
            legend = [(key(*styles[one.name]), one.name) for one in points]
            if baselines:
                legend.append((Markup("<span aria-hidden=true>- - </span>"), "best baseline"))
            figures.append((title, cost_plot(points, styles, cost, metric, max(baselines, default=None)), legend))
            rows = [(one.name, number(one.cost), show(one.score), "yes" if one.best else "no") for one in points]
            tables.append((title, ("model", cost, metric, "on the frontier"), rows, (1, 2)))
    trials = [one for those in trials_of(facts.outcomes).values() for one in those if one.seconds > 0]
    if trials:
        metric = f"{_metric(facts)}, validation"
        drawn = [
            (
                one.candidate,
                one.seconds,
                one.score or 0.0,
                f"{one.candidate}: {one.score:.3f}, {one.status}, {one.seconds:.0f} s",
            )
            for one in trials
        ]
        legend = [(key(*styles[name]), name) for name in dict.fromkeys(one.candidate for one in trials)]
        figures.append(("All trials of the sweep", trial_plot(drawn, styles, "seconds of the trial", metric), legend))
        rows = [(one.candidate, one.status, f"{one.score:.3f}", duration(one.seconds)) for one in trials]
        tables.append(("Trials", ("candidate", "state", metric, "time"), rows, (2, 3)))
    if not figures:
        return None
    intro = "What more compute buys. The dotted line joins what nothing cheaper equals (Pareto)."
    return _plots("cost", "Score against cost", intro, figures, tables)


def _curves(facts: RunFacts) -> Section | None:
    found = curves(facts.outcomes)
    if not found:
        return None
    points = [point for lines in found.values() for one in lines for point in one.points]
    x = Axis("examples seen in training", 0, 1.06 * max(examples for examples, _ in points))
    y = span(f"{_metric(facts)}, validation", [score for _, score in points])
    styles = _styles(facts)
    figures: list[Any] = [(name, curve_plot(name, lines, styles[name][1], x, y), []) for name, lines in found.items()]
    rows = [
        (name, one.detail, one.status, " ".join(f"{examples}: {score:.3f}" for examples, score in one.points))
        for name, lines in found.items()
        for one in lines
    ]
    intro = (
        "Every line is a trial, every mark a rung at which trials were compared. Trials that were stopped fade, and "
        "end in a cross."
    )
    table = ("Learning curves", ("candidate", "recipe", "state", "examples: score"), rows, ())
    return _plots("curves", "Learning curves", intro, figures, [table])


def _ranking(facts: RunFacts) -> Section | None:
    found = ranking(facts.outcomes, (facts.verdict or {}).get("ranking"))
    if found is None:
        return None
    metric = _metric(facts)
    at = f"{metric} at {found.examples} examples" if found.examples else metric
    scored = [one for one in found.places if one.score is not None]
    figures: list[Any] = []
    if len(scored) > 1:
        styles = _styles(facts)
        legend = [(key(*styles[one.candidate]), one.candidate) for one in scored]
        figures.append(("Before and after fine-tuning", ranking_plot(found, styles, at), legend))
    if found.spearman is None:
        intro = (
            "The order of the candidates before any fine-tuning. Fewer than three were fine-tuned, so agreement says "
            "nothing."
        )
    else:
        intro = (
            f"The order before fine-tuning against the best scores after it: Spearman {found.spearman:.2f}, weighted "
            f"Kendall tau {found.weighted_tau:.2f} (1 is the same order, 0 none, -1 the opposite)."
        )
    proxies = list(found.places[0].proxies)
    rows = [
        (
            one.candidate,
            f"{one.mean_rank:.1f}",
            *(f"{one.proxies[proxy]:.3f}" for proxy in proxies),
            or_dash(one.score, "{:.3f}") if one.tuned else "not fine-tuned",
        )
        for one in found.places
    ]
    headings = ("candidate", "mean rank", *proxies, at)
    return _plots(
        "ranking", "Ranking against fine-tuning", intro, figures, [("Ranking", headings, rows, range(1, len(headings)))]
    )


def _effects(facts: RunFacts) -> Section | None:
    order = list(_styles(facts))
    by_candidate = sorted(effects(facts.outcomes), key=lambda one: order.index(one.candidate))
    found = [_effect(one, _metric(facts)) for one in by_candidate]
    return section("parameters", "Hyper-parameters", "effects", found) if found else None


def _effect(one: Effects, metric: str) -> dict[str, Any]:
    if not one.effects:
        few = f"{one.trials} trials reached a common rung with different recipes: too few to tell."
        return {"candidate": one.candidate, "told": few, "figures": []}
    told = f"{one.trials} trials, compared after {one.examples} examples"
    if one.trials < FEW_TRIALS:
        told += "; so few give a hint, not a finding"
    details = one.effects[0].points
    return {
        "candidate": one.candidate,
        "told": f"{told}.",
        "shares": [(effect.parameter, effect.importance) for effect in one.effects],
        "figures": [(effect.parameter, effect_plot(one.candidate, effect, metric)) for effect in one.effects[:6]],
        "headings": ("trial", *(effect.parameter for effect in one.effects), metric),
        "table": [
            (details[place][2], *(str(effect.points[place][0]) for effect in one.effects), f"{details[place][1]:.3f}")
            for place in range(len(details))
        ],
    }


def _of_rows(facts: RunFacts) -> list[Section]:
    """Sections about single rows and classes."""
    verdict, rows = facts.verdict, facts.rows
    if not verdict:
        return []
    per_class = {
        label: {name: Interval(**score) for name, score in scores.items()}
        for label, scores in verdict["per_class"].items()
    }
    sections = [classes(rows.matrix if rows else None, per_class)]
    if rows is None:
        told = Markup("<p>{}</p>").format(facts.without_rows)
        return [*sections, Section("rows", "Row by row", told)]
    changes = (verdict.get("calibration") or {}).get(verdict["winner"])
    if rows.calibration or changes:
        sections.append(section("calibration", "Calibration", "calibration", calibration(rows.calibration, changes)))
    if rows.slices and rows.slices.slices:
        sections.append(section("slices", "Worst slices", "slices", worst(rows.slices)))
    else:
        few = f"No slice of these {rows.rows} rows has the {MIN_ROWS} rows that it takes to say something about it."
        sections.append(Section("slices", "Worst slices", Markup("<p>{}</p>").format(few)))
    sections.append(section("mistakes", "Most confident errors", "mistakes", rows))
    if rows.disagreement:
        sections.append(section("disagreement", "Winner and runner-up", "runner_up", rows.disagreement))
    return sections


def _findings(facts: RunFacts) -> Section:
    return section("data", "Data checks", "findings", facts.findings)


def _failures(facts: RunFacts) -> Section:
    return section("failures", "Failures", "failures", failures(facts.outcomes))


def _environment(facts: RunFacts) -> Section:
    environment, spec = facts.environment, facts.spec
    versions = environment.get("versions", {})
    pins = " ".join(f"'{name}=={number}'" for name, number in versions.items() if number[:1].isdigit())
    spec_file = shlex.quote(str(Path(facts.folder) / "spec.yaml"))
    command = f"pip install {pins}\npmray sweep {spec_file} --fresh"
    finals = [one for one in facts.outcomes if one.stage == "final"]
    test = next((one for one in reversed(facts.outcomes) if one.stage == "test"), None)
    revisions = {one.candidate: one.facts["revision"] for one in facts.outcomes if "revision" in one.facts}
    data = test.facts.get("data") if test else None
    known = [
        ("seed of the search", (spec.get("search") or {}).get("seed", 0)),
        ("seed of the splits", (spec.get("data") or {}).get("seed", 0)),
        ("seeds of the finalists", ", ".join(map(str, sorted({one.seed for one in finals}))) or "none yet"),
        ("key of the data", data or "not opened yet"),
        ("test rows opened", test.time if test else "no"),
        *((f"revision of {name}", revision) for name, revision in revisions.items()),
        *((f"fit of {one.candidate}, seed {one.seed}", one.key) for one in finals),
    ]
    shown = [(name, value) for name, value in environment.items() if name != "versions" and value is not None]
    context = {
        "command": command,
        "usage": [
            (one.stage, one.trials, f"{one.examples:,}" if one.examples else "-", duration(one.seconds))
            for one in usage(facts.outcomes)
        ],
        "energy": cost_of(facts.outcomes, resources_of(spec)).told() + ".",
        "facts": known,
        "environment": [*shown, *versions.items()],
        "spec": facts.spec_text,
    }
    return section("environment", "How to repeat it", "environment", context)


def _styles(facts: RunFacts) -> dict[str, tuple[int, str]]:
    """Shape and colour of every candidate, the same in all plots; the best first."""
    decided = [one.name for one in standings(facts.verdict) if not one.baseline] if facts.verdict else []
    names = dict.fromkeys([*decided, *curves(facts.outcomes), *(one.candidate for one in facts.outcomes)])
    return {name: series(place) for place, name in enumerate(names)}


def _metric(facts: RunFacts) -> str:
    """Name of the deciding metric, where it is known."""
    return str((facts.verdict or {}).get("metric") or facts.spec.get("score") or "score")


def _plots(name: str, title: str, intro: str, figures: Sequence[Any], tables: Sequence[Any]) -> Section:
    return section(name, title, "plots", {"intro": intro, "figures": figures, "tables": tables, "legend": None})
