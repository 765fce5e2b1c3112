"""The page of an endpoint for people: one HTML document with its style and charts in it, made on the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pmray.live.score import Window
from pmray.live.sequential import Anytime
from pmray.live.status import Status
from pmray.scoring.intervals import Interval

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 26
"""Margins of the chart, in its own units."""

BAR = 320
"""Width of the bar that shows champion against challenger."""


@dataclass(frozen=True)
class Mark:
    """A window in the chart: where its value and the ends of its interval are drawn."""

    x: float
    y: float
    low: float
    high: float
    told: str
    """For whoever points at it."""


@dataclass(frozen=True)
class Chart:
    """Shapes of the live score over time."""

    scores: Sequence[Mark]
    estimates: Sequence[Mark]
    band: tuple[float, float, float] | None
    """Of the promise: upper end, its value, lower end."""
    grid: Sequence[tuple[float, str]]
    """Heights of the lines, and what they mean."""
    times: Sequence[tuple[float, str]]


def score_chart(windows: Sequence[Window], promised: Interval | None) -> Chart | None:
    """Place the scores of windows, with their intervals, and the promise; None while no window has either."""
    shown = [one for one in windows if one.score or one.estimate]
    if not shown:
        return None
    intervals = [one for window in shown for one in (window.score, window.estimate and window.estimate.score) if one]
    ends = [*intervals, *([promised] if promised else [])]
    low, high = min(one.low for one in ends), max(one.high for one in ends)
    low, high = max(0.0, low - 0.02), min(1.0, high + 0.02)
    first, last = shown[0].start, shown[-1].end

    def across(time: float) -> float:
        return LEFT + (time - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / max(1e-9, high - low) * (HEIGHT - TOP - BOTTOM)

    def mark(window: Window, score: Interval, kind: str, aside: float) -> Mark:
        x = across((window.start + window.end) / 2) + aside
        rows = f"{window.labelled} labels" if kind == "live" else f"{window.predictions} predictions, no labels"
        told = f"{moment(window.start)}: {kind} {score.value:.3f} ({score.low:.3f} to {score.high:.3f}), {rows}"
        return Mark(x, up(score.value), up(score.low), up(score.high), told)

    lines = [low + (high - low) * part / 4 for part in range(5)]
    step = max(1, len(shown) // 6)
    return Chart(
        scores=[mark(one, one.score, "live", -3) for one in shown if one.score],
        estimates=[mark(one, one.estimate.score, "estimate", 3) for one in shown if one.estimate],
        band=(up(promised.high), up(promised.value), up(promised.low)) if promised else None,
        grid=[(up(value), f"{value:.2f}") for value in lines],
        times=[(across(one.start), moment(one.start)[5:]) for one in shown[::step]],
    )


def difference_bar(difference: Anytime | Interval | None) -> dict[str, float] | None:
    """Place an interval of a difference on a bar from -x to x."""
    if difference is None:
        return None
    reach = max(0.02, 1.15 * max(abs(difference.low), abs(difference.high)))

    def across(value: float) -> float:
        return BAR / 2 * (1 + value / reach)

    return {
        "low": across(difference.low),
        "value": across(difference.value),
        "high": across(difference.high),
        "reach": reach,
    }


def moment(time: float) -> str:
    """A time for people, UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M")


def span(seconds: float) -> str:
    """How long, in one unit.

    >>> span(42), span(5_400), span(200_000)
    ('42 s', '90 min', '56 h')
    """
    for size, unit, most in ((1, "s", 120), (60, "min", 7_200), (3_600, "h", 259_200)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def render(
    found: Status | None,
    *,
    facts: Mapping[str, Any],
    example: str,
    serving: Mapping[str, str],
    nonce: str,
    problem: str | None = None,
) -> str:
    """Make the page.

    Args:
        found: What is known of the model; None where there is no live store, or it cannot be read.
        facts: ``name``, ``version`` and the bundle's ``settings``.
        example: A row as JSON, for the box to try.
        serving: What the endpoint tells of itself, such as latency and batch fill, in words.
        nonce: Of the one script that the page may run (Content-Security-Policy).
        problem: Why there is nothing to show.
    """
    page: str = _template().render(
        found=found,
        facts=facts,
        example=example,
        serving=serving,
        nonce=nonce,
        problem=problem,
        chart=score_chart(found.windows, found.promised) if found else None,
        bar=difference_bar(found.pairing.difference) if found and found.pairing else None,
        size={
            "width": WIDTH,
            "height": HEIGHT,
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "bottom": HEIGHT - BOTTOM,
            "bar": BAR,
        },
    )
    return page


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("pmray.live", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": moment, "span": span}
    return environment.get_template("page.html")
