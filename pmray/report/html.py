"""Pages as one HTML file: templates, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pmray.errors import DataError
from pmray.report.plan import duration
from pmray.report.search_facts import Standing
from pmray.report.svg import Axis, number, span, ticks
from pmray.scoring.intervals import Interval
from pmray.selection.verdict import show


class Section(NamedTuple):
    """A part of a page."""

    id: str
    title: str
    body: Markup


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


def page(title: str, sections: Sequence[Section], header: Markup) -> str:
    """A whole page, with what stands under its title."""
    template = _templates().from_string(
        "{% extends 'base.html.j2' %}"
        "{% block header %}<small>pmray</small><h1>{{ title }}</h1>{{ header }}{% endblock %}"
    )
    return template.render(title=title, sections=sections, header=header, pmray_version=version("pmray"))


def section(name: str, title: str, macro: str, context: object) -> Section:
    """A section that a macro of ``sections.html.j2`` writes."""
    return Section(name, title, filled(macro, context))


def filled(macro: str, context: object) -> Markup:
    """What a macro of ``sections.html.j2`` makes of its argument."""
    template = _templates().get_template("sections.html.j2")
    return Markup(getattr(template.module, macro)(context))  # the template escapes what it is given


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("pmray.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters |= {
        "percent": lambda value, axis: f"{_percent(value, axis):.2f}",
        "width": lambda score, axis: f"{_percent(score.high, axis) - _percent(score.low, axis):.2f}",
        "interval": show,
        "number": number,
        "ticks": ticks,
        "costs": _costs_told,
    }
    return templates


def _percent(value: float, axis: Axis) -> float:
    return 100 * min(1.0, max(0.0, (value - axis.low) / (axis.high - axis.low)))


def _costs_told(one: Standing) -> str:
    told = []
    if not one.baseline:
        told += [
            f"{one.latency_ms:.1f} ms/row",
            f"{size(one.parameters)} parameters",
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


def scaled(axis: Axis, lines: Sequence[Line]) -> dict[str, Any]:
    """Lines with the axis on which they are drawn."""
    return {"axis": axis, "lines": lines}


def interval_axis(scores: Sequence[Interval]) -> Axis:
    """An axis that holds all intervals, and does not leave 0 to 1 where they do not."""
    axis = span("", [value for one in scores for value in (one.low, one.high)])
    return axis._replace(low=max(0.0, axis.low), high=axis.high if axis.high > 1.1 else min(1.0, axis.high))


def three(score: Interval) -> tuple[str, str, str]:
    """Value, low and high end."""
    return f"{score.value:.3f}", f"{score.low:.3f}", f"{score.high:.3f}"


def signed(paired: Any) -> str:
    """A difference with its interval."""
    return f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"


def size(parameters: int | None) -> str:
    """A number of parameters."""
    return "-" if parameters is None else number(parameters)


def or_dash(value: float | None, form: str) -> str:
    """A number in some form, or a dash."""
    return "-" if value is None else form.format(value)
