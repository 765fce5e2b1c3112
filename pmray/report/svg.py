"""Plots as inline SVG. Colours and fonts are the page's (CSS classes), so plots follow dark, light and print.

A plot is 360 units wide, and shown between one and one and a quarter times that: its text stays readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40
SHAPES = 5
COLOURS = 6


class Axis(NamedTuple):
    """What runs along a side of a plot."""

    label: str
    low: float
    high: float
    log: bool = False


def span(label: str, values: Iterable[float], *, log: bool = False, pad: float = 0.06) -> Axis:
    """An axis that holds all values, with some room around them."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    if log:
        low, high = math.log(low), math.log(high)
    room = pad * (high - low) or pad * abs(high) or pad
    low, high = low - room, high + room
    return Axis(label, math.exp(low), math.exp(high), True) if log else Axis(label, low, high)


def ticks(axis: Axis, most: int = 6) -> list[float]:
    """Round numbers on an axis.

    >>> ticks(Axis("", 0.0, 1.0)), ticks(Axis("", 8, 1200, log=True))
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [10.0, 100.0, 1000.0])
    """
    if axis.log:
        first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
        for steps in ((1,), (1, 3), (1, 2, 5)):
            marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            inside = [mark for mark in marks if axis.low <= mark <= axis.high]
            if len(inside) >= 3:
                return inside
        axis = Axis("", axis.low, axis.high)
    rough = (axis.high - axis.low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
    start = math.ceil(axis.low / step - 1e-9)
    return [round(number * step, 12) for number in range(start, math.floor(axis.high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Write a number short enough for an axis.

    >>> number(1500.0), number(0.25), number(3e-05), number(2e6)
    ('1.5k', '0.25', '3e-5', '2M')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    if value and abs(value) < 1e-2:
        return f"{value:.2g}".replace("e-0", "e-")
    return f"{value:.3g}"


@dataclass
class Plot:
    """A plot under way; ``svg`` gives it as markup."""

    name: str
    """Says what it shows to whoever cannot see it."""
    x: Axis
    y: Axis
    height: int = HEIGHT
    names: tuple[str, ...] = ()
    """What stands at 0, 1, 2 … of the x-axis in place of numbers."""
    parts: list[Markup] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies."""
        return (
            round(LEFT + _share(self.x, x) * (WIDTH - LEFT - RIGHT), 1),
            round(self.height - BOTTOM - _share(self.y, y) * (self.height - TOP - BOTTOM), 1),
        )

    def line(self, points: Sequence[tuple[float, float]], style: str, told: str = "") -> None:
        """Join points."""
        where = " ".join(f"{x},{y}" for x, y in (self.at(*point) for point in points))
        self.parts.append(
            Markup('<polyline class="line {}" points="{}">{}</polyline>').format(style, where, _title(told))
        )

    def bar(self, x: float, low: float, high: float, style: str) -> None:
        """An interval, upright."""
        (left, bottom), (_, top) = self.at(x, low), self.at(x, high)
        self.parts.append(
            Markup('<path class="bar {}" d="M{} {}h8m-4 0V{}m-4 0h8"/>').format(style, round(left - 4, 1), bottom, top)
        )

    def mark(self, x: float, y: float, shape: int, style: str, told: str = "") -> None:
        """A point; its shape says what its colour says."""
        self.parts.append(marker(*self.at(x, y), shape, style, told))

    def svg(self) -> Markup:
        """The whole plot, with axes and its name for screen readers."""
        bottom, right = self.height - BOTTOM, WIDTH - RIGHT
        label = '<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>'
        axes = [Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(LEFT, TOP, bottom, right)]
        marks = {float(place): name for place, name in enumerate(self.names)} or {
            tick: number(abs(tick)) for tick in ticks(self.x)
        }
        for tick, words in marks.items():
            place = self.at(tick, self.y.low)[0]
            axes.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(place, TOP, bottom))
            axes.append(Markup(label).format(place, bottom + 14, "middle", words))
        for tick in ticks(self.y):
            place = self.at(self.x.low, tick)[1]
            axes.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, place, right))
            axes.append(Markup(label).format(LEFT - 5, place + 4, "end", number(tick)))
        labels = Markup(
            '<text x="{}" y="{}" text-anchor="middle">{}</text>'
            '<text transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text>'
        ).format((LEFT + right) / 2, self.height - 6, self.x.label, (TOP + bottom) / 2, self.y.label)
        inside = Markup("").join([*axes, labels, *self.parts])
        return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            WIDTH, self.height, self.name, inside
        )


def marker(x: float, y: float, shape: int, style: str, told: str = "", size: float = 4.5) -> Markup:
    """A mark: circle, square, triangle, diamond or cross."""
    shape %= SHAPES
    title = _title(told)
    if shape == 0:
        return Markup('<circle class="mark {}" cx="{}" cy="{}" r="{}">{}</circle>').format(style, x, y, size, title)
    paths = {
        1: f"M{x - size} {y - size}h{2 * size}v{2 * size}h{-2 * size}z",
        2: f"M{x} {y - 1.3 * size}l{1.3 * size} {2.3 * size}h{-2.6 * size}z",
        3: f"M{x} {y - 1.4 * size}l{1.4 * size} {1.4 * size}l{-1.4 * size} {1.4 * size}l{-1.4 * size} {-1.4 * size}z",
        4: f"M{x - size} {y - size}l{2 * size} {2 * size}m0 {-2 * size}l{-2 * size} {2 * size}",
    }
    return Markup('<path class="mark {}" d="{}">{}</path>').format(style, paths[shape], title)


def key(shape: int, style: str) -> Markup:
    """A mark for a legend."""
    return Markup('<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true">{}</svg>').format(
        marker(0, 0, shape, style, size=5)
    )


def series(place: int) -> tuple[int, str]:
    """Shape and style of a series: neighbours differ in both."""
    return place % SHAPES, f"s{place % COLOURS}"


def _share(axis: Axis, value: float) -> float:
    """How far along its axis a value lies, 0 to 1 inside."""
    if axis.log:
        return (math.log(value) - math.log(axis.low)) / (math.log(axis.high) - math.log(axis.low))
    return (value - axis.low) / (axis.high - axis.low)


def _title(words: str) -> Markup:
    return Markup("<title>{}</title>").format(words) if words else escape("")
