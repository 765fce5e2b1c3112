"""The reports in small: of an evaluation, and of a comparison."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from pmray.report.html import Line, Section, filled, interval_axis, page, scaled, section, signed, three
from pmray.report.row_facts import Matrix
from pmray.report.sections import calibration, classes, slice_lines, worst
from pmray.report.svg import Axis
from pmray.selection.verdict import show


def evaluation_page(found: Any) -> str:
    """The report of an evaluation.

    Args:
        found: A ``pmray.evaluation.evaluate.Evaluation``.
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
    table = [(line[0], *three(line[1])) for line in lines]
    context = {**scaled(axis, lines), "table": table, "told": "; ".join(told)}
    sections = [section("metrics", "Metrics", "metrics", context)]
    cells = None
    if found.confusion is not None:
        names = tuple(found.labels)
        cells = Matrix("rows", names, names, found.confusion, tuple((place, place) for place in range(len(names))))
    sections.append(classes(cells, found.per_class))
    if found.calibration is not None:
        sections.append(section("calibration", "Calibration", "calibration", calibration(found.calibration, None)))
    for column, slices in found.slices.items():
        title = f"By {column}"
        context = {**slice_lines(slices), "title": title}
        sections.append(section(f"by-{len(sections)}", title, "slices_by", context))
    if found.worst_slices is not None and found.worst_slices.slices:
        sections.append(section("slices", "Worst slices", "slices", worst(found.worst_slices)))
    if found.mistakes:
        pictures = found.pictures or [""] * len(found.mistakes)
        shown = [
            {**vars(one), "said": {"said": one.said}, "picture": picture}
            for one, picture in zip(found.mistakes, pictures, strict=True)
        ]
        sections.append(section("mistakes", "Most confident errors", "mistakes_list", shown))
    groups = f" in {found.groups} groups" if found.groups else ""
    lead = f"{found.metric} {show(found.score)} on {found.rows} rows{groups}."
    return page(f"Evaluation of {found.source}", sections, Markup("<p class=lead>{}</p>").format(lead))


def comparison_page(found: Any) -> str:
    """The report of a comparison.

    Args:
        found: A ``pmray.evaluation.compare.Compared``.
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
    axis = interval_axis([line[1] for line in lines])
    table = [(line[0], *three(line[1])) for line in lines]
    context = {**scaled(axis, lines), "table": table, "told": "Members of a group cannot be told apart from its best."}
    sections = [section("scores", "Scores", "metrics", context)]
    pairs = [
        {
            "first": one.first,
            "second": one.second,
            "both": one.both_right,
            "only_first": one.first_right,
            "only_second": one.second_right,
            "neither": one.both_wrong,
            "examples": (),
            "told": f"{signed(one.paired)}, p = {one.adjusted_p:.2g}; McNemar p = {one.mcnemar_p:.2g}, Holm-corrected",
        }
        for one in found.comparisons
    ]
    body = Markup("").join(
        Markup("<h3>{} and {}</h3><p>{}: {}</p>{}").format(
            one["first"], one["second"], f"difference of {found.metric}", one["told"], filled("disagreement", one)
        )
        for one in pairs
    )
    sections.append(Section("pairs", "Pairs", body))
    if found.examples:
        shown = [{**vars(one), "confidence": None, "picture": ""} for one in found.examples]
        title = f"Where they disagree: {found.disagreements} of {found.rows} rows"
        sections.append(section("disagreements", title, "mistakes_list", shown))
    lead = f"{found.lines[0].name} scores most: {found.metric} {show(found.lines[0].score)} on {found.rows} rows."
    return page("Comparison", sections, Markup("<p class=lead>{}</p>").format(lead))
