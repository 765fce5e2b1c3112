"""Reports as one HTML file: the sections of a run, of an evaluation, of a comparison."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pmray.errors import DataError
from pmray.report.cost import cost_of, resources_of
from pmray.report.plan import duration
from pmray.report.plots import cost_plot, curve_plot, effect_plot, ranking_plot, reliability_plot, trial_plot
from pmray.report.row_facts import Matrix, RowFacts
from pmray.report.search_facts import (
    FEW_TRIALS,
    Effects,
    Standing,
    curves,
    effects,
    failures,
    frontier,
    ranking,
    standings,
    trials_of,
    usage,
)
from pmray.report.svg import Axis, key, number, series, span, ticks
from pmray.scoring.intervals import Interval
from pmray.selection.ledger import Outcome
from pmray.selection.verdict import show
from pmray.slices import MIN_ROWS

MOST_CLASSES = 20
"""Classes of a matrix that is still read; of more, the most frequent confusions and the worst classes are shown."""


class Section(NamedTuple):
    """A part of a page."""

    id: str
    title: str
    body: Markup


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
    return _page(facts.name, sections, _run_header(facts))


def evaluation_page(found: Any) -> str:
    """The report of an evaluation.

    Args:
        found: A ``pmray.evaluation.Evaluation``.
    """
    lines: list[Line] = [
        (name, score, "the deciding metric" if name == found.metric else "", None)
        for name, score in found.metrics.items()
    ]
    axis = Axis("", 0.0, max(1.0, *(line[1].high for line in lines)))
    told = []
    if found.speed:
        told.append(f"{found.speed.rows_per_second:,.0f} rows/s many at a time")
        if found.speed.p50_ms is not None:
            told.append(f"{found.speed.p50_ms:.1f} ms a row asked alone (p95 {found.speed.p95_ms:.1f})")
    if found.refused:
        told.append(f"{len(found.refused)} rows were refused and not counted")
    table = [(line[0], *_three(line[1])) for line in lines]
    context = {**_scaled(axis, lines), "table": table, "told": "; ".join(told)}
    sections = [_section("metrics", "Metrics", "metrics", context)]
    cells = None
    if found.confusion is not None:
        names = tuple(found.labels)
        cells = Matrix("rows", names, names, found.confusion, tuple((place, place) for place in range(len(names))))
    sections.append(_classes(cells, found.per_class))
    if found.calibration is not None:
        sections.append(_section("calibration", "Calibration", "calibration", _calibration(found.calibration, None)))
    for column, slices in found.slices.items():
        title = f"By {column}"
        context = {**_slice_lines(slices), "title": title}
        sections.append(_section(f"by-{len(sections)}", title, "slices_by", context))
    if found.worst_slices is not None and found.worst_slices.slices:
        sections.append(_section("slices", "Worst slices", "slices", _worst(found.worst_slices)))
    if found.mistakes:
        pictures = found.pictures or [""] * len(found.mistakes)
        shown = [
            {**vars(one), "said": {"said": one.said}, "picture": picture}
            for one, picture in zip(found.mistakes, pictures, strict=True)
        ]
        sections.append(_section("mistakes", "Most confident errors", "mistakes_list", shown))
    groups = f" in {found.groups} groups" if found.groups else ""
    lead = f"{found.metric} {show(found.score)} on {found.rows} rows{groups}."
    return _page(f"Evaluation of {found.source}", sections, Markup("<p class=lead>{}</p>").format(lead))


def comparison_page(found: Any) -> str:
    """The report of a comparison.

    Args:
        found: A ``pmray.comparison.Compared``.
    """
    group = {name: place for place, members in enumerate(found.groups, start=1) for name in reversed(members)}
    lines: list[Line] = [
        (
            line.name,
            line.score,
            f"group {group[line.name]}" + (f"; {line.speed.rows_per_second:,.0f} rows/s" if line.speed else ""),
            None,
        )
        for line in found.lines
    ]
    axis = _interval_axis([line[1] for line in lines])
    table = [(line[0], *_three(line[1])) for line in lines]
    context = {**_scaled(axis, lines), "table": table, "told": "Members of a group cannot be told apart from its best."}
    sections = [_section("scores", "Scores", "metrics", context)]
    pairs = [
        {
            "first": one.first,
            "second": one.second,
            "both": one.both_right,
            "only_first": one.first_right,
            "only_second": one.second_right,
            "neither": one.both_wrong,
            "examples": (),
            "told": f"{_signed(one.paired)}, p = {one.adjusted_p:.2g}; McNemar p = {one.mcnemar_p:.2g}, Holm-corrected",
        }
        for one in found.comparisons
    ]
    body = Markup("").join(
        Markup("<h3>{} and {}</h3><p>{}: {}</p>{}").format(
            one["first"], one["second"], f"difference of {found.metric}", one["told"], _macro("disagreement", one)
        )
        for one in pairs
    )
    sections.append(Section("pairs", "Pairs", body))
    if found.examples:
        shown = [{**vars(one), "confidence": None, "picture": ""} for one in found.examples]
        title = f"Where they disagree: {found.disagreements} of {found.rows} rows"
        sections.append(_section("disagreements", title, "mistakes_list", shown))
    lead = f"{found.lines[0].name} scores most: {found.metric} {show(found.lines[0].score)} on {found.rows} rows."
    return _page("Comparison", sections, Markup("<p class=lead>{}</p>").format(lead))


def write_page(path: Path, page: str) -> Path:
    """Write a page whole or not at all.

    Raises:
        DataError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"the report cannot be written to {path} ({error}); name another file") from None
    return path


def _page(title: str, sections: Sequence[Section], header: Markup) -> str:
    template = _environment_of_templates().from_string(
        "{% extends 'base.html.j2' %}"
        "{% block header %}<small>pmray</small><h1>{{ title }}</h1>{{ header }}{% endblock %}"
    )
    return template.render(title=title, sections=sections, header=header, pmray_version=version("pmray"))


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
            ("size", _size(best.parameters), "parameters"),
        ]
    else:
        done = [one for trials in trials_of(facts.outcomes).values() for one in trials]
        tiles = [("state", "not decided", "no test row was opened"), ("trials with a score", str(len(done)), "")]
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
    return _section("verdict", "Verdict", "verdict", context)


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
        "axis": _interval_axis([one.score for one in lines]),
        "rule": max(baselines, default=None),
        "groups": [(number, list(members)) for number, members in groupby(lines, key=lambda one: one.group)],
        "headings": headings,
        "table": [
            (
                one.name,
                *_three(one.score),
                *(f"{one.metrics[name].value:.3f}" for name in others),
                _or_dash(one.validation_score, "{:.3f}"),
                _or_dash(one.latency_ms, "{:.1f}"),
                _size(one.parameters),
                "-" if one.training_seconds is None else duration(one.training_seconds),
                _or_dash(one.p_value, "{:.2g}"),
            )
            for one in lines
        ],
        "pairs": [
            (
                f"{one['first']}, {one['second']}",
                _signed(_Difference(**{name: one["paired"][name] for name in _Difference._fields})),
                f"{one['adjusted_p']:.2g}",
                f"{one['mcnemar_p']:.2g}",
            )
            for one in verdict["comparisons"]
        ],
    }
    return _section("leaderboard", "Leaderboard", "leaderboard", context)


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
            _or_dash(one.score, "{:.3f}") if one.tuned else "not fine-tuned",
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
    return _section("parameters", "Hyper-parameters", "effects", found) if found else None


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
    sections = [_classes(rows.matrix if rows else None, per_class)]
    if rows is None:
        told = Markup("<p>{}</p>").format(facts.without_rows)
        return [*sections, Section("rows", "Row by row", told)]
    changes = (verdict.get("calibration") or {}).get(verdict["winner"])
    if rows.calibration or changes:
        sections.append(_section("calibration", "Calibration", "calibration", _calibration(rows.calibration, changes)))
    if rows.slices and rows.slices.slices:
        sections.append(_section("slices", "Worst slices", "slices", _worst(rows.slices)))
    else:
        few = f"No slice of these {rows.rows} rows has the {MIN_ROWS} rows that it takes to say something about it."
        sections.append(Section("slices", "Worst slices", Markup("<p>{}</p>").format(few)))
    sections.append(_section("mistakes", "Most confident errors", "mistakes", rows))
    if rows.disagreement:
        sections.append(_section("disagreement", "Winner and runner-up", "runner_up", rows.disagreement))
    return sections


def _classes(found: Matrix | None, per_class: Mapping[str, Mapping[str, Interval]]) -> Section:
    lines: list[Line] = [(label, scores["f1"], "", None) for label, scores in per_class.items()]
    more = len(lines) > MOST_CLASSES
    if more:
        lines = sorted(lines, key=lambda line: line[1].value)[:MOST_CLASSES]
    shown, confusions = None, []
    if found and len(found.said) <= MOST_CLASSES + 2:
        right = set(found.right)
        shown = {
            "unit": found.unit,
            "said": found.said,
            "lines": [
                (
                    found.true[row],
                    [
                        (count, round(50 * count / max(1, sum(line))), (row, column) in right)
                        for column, count in enumerate(line)
                    ],
                )
                for row, line in enumerate(found.cells)
            ],
        }
    elif found:
        wrong = [
            (count, found.true[row], found.said[column])
            for row, line in enumerate(found.cells)
            for column, count in enumerate(line)
            if count and (row, column) not in found.right
        ]
        confusions = [(true, said, count) for count, true, said in sorted(wrong, reverse=True)[:MOST_CLASSES]]
    context = {
        "matrix": shown,
        "confusions": confusions,
        "unit": found.unit if found else "",
        "more": more,
        **_scaled(Axis("", 0.0, 1.0), lines),
        "table": [
            (label, *(show(one[name]) for name in ("precision", "recall", "f1"))) for label, one in per_class.items()
        ],
    }
    return _section("classes", "Classes and confusion", "classes", context)


def _calibration(found: Any, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    context: dict[str, Any] = {"reliability": None, "changes": []}
    if found:
        table = [
            (f"{one.low:.1f} to {one.high:.1f}", f"{one.count:,}", f"{one.confidence:.3f}", f"{one.right:.3f}")
            for one in found.bins
        ]
        numbers = {name: getattr(found, name) for name in ("ece", "mce", "overconfidence")}
        context |= {"reliability": {**numbers, "table": table}, "plot": reliability_plot(found)}
    for name, values in (changes or {}).items():
        if isinstance(values, Mapping):
            context["changes"].append((name, f"{values['before']:.4f}", f"{values['after']:.4f}"))
    return context


def _worst(found: Any) -> dict[str, Any]:
    return {
        "significant": found.significant,
        "tested": found.tested,
        "alpha": found.alpha,
        **_slice_lines(found.slices),
    }


def _slice_lines(slices: Sequence[Any]) -> dict[str, Any]:
    lines: list[Line] = [
        (
            f"{one.column}: {one.value}",
            one.errors,
            f"{one.rows} rows; elsewhere {one.errors_elsewhere:.1%}; adjusted p {one.p_value:.2g}",
            one.errors_elsewhere,
        )
        for one in slices
    ]
    axis = Axis("", 0.0, min(1.0, 1.05 * max(max(one.errors.high, one.errors_elsewhere) for one in slices)))
    table = [
        (name, one.rows, show(one.errors), f"{one.errors_elsewhere:.3f}", show(one.score), f"{one.p_value:.2g}")
        for (name, *_), one in zip(lines, slices, strict=True)
    ]
    return {**_scaled(axis, lines), "table": table}


def _findings(facts: RunFacts) -> Section:
    return _section("data", "Data checks", "findings", facts.findings)


def _failures(facts: RunFacts) -> Section:
    return _section("failures", "Failures", "failures", failures(facts.outcomes))


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
    return _section("environment", "How to repeat it", "environment", context)


def _styles(facts: RunFacts) -> dict[str, tuple[int, str]]:
    """Shape and colour of every candidate, the same in all plots; the best first."""
    decided = [one.name for one in standings(facts.verdict) if not one.baseline] if facts.verdict else []
    names = dict.fromkeys([*decided, *curves(facts.outcomes), *(one.candidate for one in facts.outcomes)])
    return {name: series(place) for place, name in enumerate(names)}


def _metric(facts: RunFacts) -> str:
    """Name of the deciding metric, where it is known."""
    return str((facts.verdict or {}).get("metric") or facts.spec.get("score") or "score")


def _plots(name: str, title: str, intro: str, figures: Sequence[Any], tables: Sequence[Any]) -> Section:
    return _section(name, title, "plots", {"intro": intro, "figures": figures, "tables": tables, "legend": None})


def _section(name: str, title: str, macro: str, context: object) -> Section:
    return Section(name, title, _macro(macro, context))


def _macro(name: str, context: object) -> Markup:
    template = _environment_of_templates().get_template("sections.html.j2")
    return Markup(getattr(template.module, name)(context))  # the template escapes what it is given


def _environment_of_templates() -> Environment:
    global _templates
    if _templates is None:
        _templates = Environment(
            loader=PackageLoader("pmray.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        _templates.filters |= {
            "percent": lambda value, axis: f"{_percent(value, axis):.2f}",
            "width": lambda score, axis: f"{_percent(score.high, axis) - _percent(score.low, axis):.2f}",
            "interval": show,
            "number": number,
            "ticks": ticks,
            "costs": _costs_told,
        }
    return _templates


_templates: Environment | None = None


def _percent(value: float, axis: Axis) -> float:
    return 100 * min(1.0, max(0.0, (value - axis.low) / (axis.high - axis.low)))


def _costs_told(one: Standing) -> str:
    told = []
    if not one.baseline:
        told += [
            f"{one.latency_ms:.1f} ms/row",
            f"{_size(one.parameters)} parameters",
            f"{duration(one.training_seconds or 0.0)} training",
            f"{one.seeds} seeds",
        ]
    if one.validation_score is not None:
        told.append(f"validation {one.validation_score:.3f}")
    if one.p_value is not None:
        told.append(f"p {one.p_value:.2g} against the winner")
    return " · ".join(told)


Line = tuple[str, Interval, str, float | None]
"""Name, score, words below, and a number to compare with."""


def _scaled(axis: Axis, lines: Sequence[Line]) -> dict[str, Any]:
    return {"axis": axis, "lines": lines}


def _interval_axis(scores: Sequence[Interval]) -> Axis:
    axis = span("", [value for one in scores for value in (one.low, one.high)])
    return axis._replace(low=max(0.0, axis.low), high=axis.high if axis.high > 1.1 else min(1.0, axis.high))


def _three(score: Interval) -> tuple[str, str, str]:
    return f"{score.value:.3f}", f"{score.low:.3f}", f"{score.high:.3f}"


def _signed(paired: Any) -> str:
    return f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"


def _size(parameters: int | None) -> str:
    return "-" if parameters is None else number(parameters)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
