"""Sections that reports of runs and of evaluations share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pmray.report.html import Line, Section, scaled, section
from pmray.report.plots import reliability_plot
from pmray.report.row_facts import Matrix
from pmray.report.svg import Axis
from pmray.scoring.intervals import Interval
from pmray.selection.verdict import show

MOST_CLASSES = 20
"""Classes of a matrix that is still read; of more, the most frequent confusions and the worst classes are shown."""


def classes(found: Matrix | None, per_class: Mapping[str, Mapping[str, Interval]]) -> Section:
    """Confusion matrix and F1 of every class; of many classes the most frequent confusions and the worst."""
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
        **scaled(Axis("", 0.0, 1.0), lines),
        "table": [
            (label, *(show(one[name]) for name in ("precision", "recall", "f1"))) for label, one in per_class.items()
        ],
    }
    return section("classes", "Classes and confusion", "classes", context)


def calibration(found: Any, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the macro ``calibration`` needs.

    Args:
        found: A ``pmray.evaluation.reliability.Reliability``, or None.
        changes: Measure -> before and after, as ``verdict.json`` has it.
    """
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


def worst(found: Any) -> dict[str, Any]:
    """What the macro ``slices`` needs, of a ``pmray.evaluation.slices.WorstSlices``."""
    return {
        "significant": found.significant,
        "tested": found.tested,
        "alpha": found.alpha,
        **slice_lines(found.slices),
    }


def slice_lines(slices: Sequence[Any]) -> dict[str, Any]:
    """Lines and table of slices, each a ``pmray.evaluation.slices.Slice``."""
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
    return {**scaled(axis, lines), "table": table}
