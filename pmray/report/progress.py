"""What a run shows at work: live tables in a terminal, a line a trial in a log, an event a line for machines."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import StringIO
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pmray.selection.ledger import Outcome

STATUS_STYLE = {"done": "green", "stopped": "yellow", "failed": "red", "infeasible": "red", "unavailable": "magenta"}
LOG_WIDTH = 160
"""A log file has no width; rich would cut tables to 80 columns."""
STAGES = ("data", "encode", "rank", "sweep", "finalists", "decide")
SHOWN = 12
"""Most trials under way that are listed."""


class Events(Console):
    """Standard error for machines: one JSON object a line, each with ``event`` and ``time``; what others print in words
    becomes the event ``note``.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True, force_terminal=False, width=LOG_WIDTH)

    def print(self, *objects: Any, **options: Any) -> None:
        """Tell words as a note."""
        told = Console(file=StringIO(), width=LOG_WIDTH, highlight=False)
        told.print(*objects, **options)
        if text := told.file.getvalue().strip():  # type: ignore[attr-defined]
            self.event("note", text=text)

    def event(self, kind: str, **values: Any) -> None:
        """Write an event."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.file.write(json.dumps({"event": kind, "time": now, **values}, default=str) + "\n")
        self.file.flush()


def people(*, answer: bool = False, events: bool = False, quiet: bool = False) -> Console:
    """The console for notes and progress: standard error, which leaves standard output to the answer.

    Args:
        answer: Standard output instead.
        events: One JSON object a line instead of words.
        quiet: Nothing at all.
    """
    if events and not quiet:
        return Events()
    console = Console(stderr=not answer, highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


def tell(console: Console, kind: str, **values: Any) -> None:
    """Write an event, where somebody reads events."""
    if isinstance(console, Events):
        console.event(kind, **values)


@contextmanager
def steps(console: Console, title: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a progress bar for a block, and yield a function that moves it on by some units."""
    tell(console, "stage_started", stage=title, total=total)
    with _bar(console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda units=1: progress.advance(task, units)
    tell(console, "stage_ended", stage=title)


@contextmanager
def counted(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar for a block, and yield a function of (done, total) that sets it."""
    with _bar(console) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _bar(console: Console) -> Progress:
    shown = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *shown, console=console, transient=True)


@dataclass
class _Row:
    candidate: str
    detail: str
    budget: int
    started: float
    examples: int = 0
    score: float | None = None
    status: str = "running"
    seconds: float = 0.0
    interval: tuple[float, float] | None = None
    """Of the score, where the trial went to its end."""

    def told(self) -> str:
        """The score with its interval."""
        if self.score is None:
            return ""
        return f"{self.score:.3f}" + (" [{:.3f}, {:.3f}]".format(*self.interval) if self.interval else "")


@dataclass
class TrialBoard:
    """Trials under way: the best of each candidate so far, what runs now, speed, time left, and what is used up."""

    console: Console
    title: str
    """The stage."""
    metric: str
    total: int
    examples: int
    """Of all trials together if none stops early: what the time left is reckoned from."""
    budgets: Callable[[], Sequence[tuple[str, float, float]]] = lambda: ()
    """Gives (name, used, most) of each budget."""
    rows: dict[str, _Row] = field(default_factory=dict)
    ended: int = 0
    _seen: int = 0
    _spared: int = 0
    _began: float = field(default_factory=time.time)
    _live: Live | None = None

    def __enter__(self) -> TrialBoard:
        tell(self.console, "stage_started", stage=self.title, total=self.total, examples=self.examples)
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._live:
            self._live.stop()
        tell(
            self.console,
            "stage_ended",
            stage=self.title,
            trials=Counter(one.status for one in self.rows.values()),
        )

    def start(self, key: str, candidate: str, detail: str, budget: int) -> None:
        """A trial has started, started anew, or goes on after it had been stopped."""
        before = self.rows.get(key)
        self.rows[key] = row = _Row(candidate, detail, budget, time.time())
        if before is not None:
            row.examples, row.score = before.examples, before.score
            if before.status != "running":
                self.ended -= 1
                self._spared -= before.budget - before.examples
        elif len(self.rows) > self.total:
            # A variant of another trial, or one that goes on from an earlier run, comes on top of what was planned.
            self.total += 1
            self.examples += budget
        told = {"candidate": candidate, "recipe": detail, "budget": budget}
        tell(self.console, "trial_started", stage=self.title, key=key, **told)

    def rung(self, key: str, examples: int, score: float) -> None:
        """A trial has reached a rung."""
        row = self.rows[key]
        self._seen += examples - row.examples
        row.examples, row.score = examples, max(score, row.score or score)
        told = {"candidate": row.candidate, "examples": examples, "score": score}
        tell(self.console, "rung", stage=self.title, key=key, **told, **self._pace())

    def end(self, key: str, outcome: Outcome) -> None:
        """A trial has ended; where nobody watches a terminal, its line is printed."""
        row = self.rows.setdefault(key, _Row(outcome.candidate, "", outcome.examples, time.time()))
        row.status, row.score, row.seconds = outcome.status, outcome.score, outcome.seconds
        if low_high := outcome.facts.get("interval"):
            row.interval = (float(low_high[0]), float(low_high[1]))
        self.ended += 1
        self._spared += row.budget - row.examples
        best = self._best()
        if isinstance(self.console, Events):
            self.console.event(
                "trial_ended",
                stage=self.title,
                key=key,
                candidate=row.candidate,
                recipe=row.detail,
                status=row.status,
                score=row.score,
                interval=row.interval,
                examples=outcome.examples,
                seconds=outcome.seconds,
                error=outcome.error,
                ended=self.ended,
                total=self.total,
                best=None if best is None else {"candidate": best.candidate, "score": best.score},
                budgets={name: {"used": used, "most": most} for name, used, most in self.budgets()},
                **self._pace(),
            )
        elif self._live is None:
            score = "" if row.score is None else f"{self.metric} {row.told()}, "
            ahead = f"; best so far {best.candidate} {best.told()}" if best and best is not row else ""
            self.console.print(
                f"{self.title} {self.ended}/{self.total}: {row.candidate} ({row.detail}) {row.status}, {score}"
                f"{outcome.examples} examples, {outcome.seconds:.0f} s{ahead}"
                + (f"\n  {outcome.error.splitlines()[-1]}" if outcome.error else ""),
                markup=False,
            )

    def render(self) -> RenderableType:
        """What a terminal shows now."""
        parts: list[RenderableType] = [self._stages(), self._counts(), self._candidates()]
        running = [row for row in self.rows.values() if row.status == "running"]
        if running:
            parts.append(self._running(running))
        if told := [f"{name} {_amount(used)} of {_amount(most)}" for name, used, most in self.budgets()]:
            parts.append(Text(f"budget: {', '.join(told)}"))
        parts.append(Text(self._left(), style="dim"))
        return Group(*parts)

    def _stages(self) -> Text:
        if self.title not in STAGES:
            return Text(self.title, style="bold")
        here = STAGES.index(self.title)
        shown = [
            Text(stage, style="green" if place < here else "bold reverse" if place == here else "dim")
            for place, stage in enumerate(STAGES)
        ]
        return Text(" > ", style="dim").join(shown)

    def _counts(self) -> Text:
        counts = Counter(row.status for row in self.rows.values())
        told = Text(f"{self.ended} of {self.total} ended: ")
        for number, status in enumerate(("running", *STATUS_STYLE)):
            # Those that matter always, the others where there are any.
            if counts[status] or number < 4:
                told.append(f"{counts[status]} {status}  ", style=STATUS_STYLE.get(status, "cyan"))
        return told

    def _candidates(self) -> Table:
        table = Table(title="best so far, on validation", title_justify="left")
        for heading in ("candidate", "trials", self.metric, "recipe"):
            table.add_column(heading, justify="right" if heading == "trials" else "left")
        by_candidate: dict[str, list[_Row]] = {}
        for row in self.rows.values():
            by_candidate.setdefault(row.candidate, []).append(row)
        best = self._best()
        lines = [(max(rows, key=_rank), len(rows)) for rows in by_candidate.values()]
        for top, trials in sorted(lines, key=lambda line: _rank(line[0]), reverse=True):
            style = "bold green" if top is best else ""
            detail = "" if top.score is None else top.detail
            table.add_row(Text(top.candidate), str(trials), Text(top.told()), Text(detail), style=style)
        return table

    def _running(self, running: Sequence[_Row]) -> Table:
        table = Table(title="running", title_justify="left")
        for heading in ("candidate", "recipe", "examples seen", self.metric, "time"):
            table.add_column(heading, justify="left" if heading in ("candidate", "recipe") else "right")
        for row in sorted(running, key=lambda row: -row.started)[:SHOWN]:
            score = "" if row.score is None else f"{row.score:.3f}"
            seen, seconds = f"{row.examples}/{row.budget}", f"{time.time() - row.started:.0f} s"
            table.add_row(Text(row.candidate), Text(row.detail), seen, score, seconds)
        return table

    def _best(self) -> _Row | None:
        return max((row for row in self.rows.values() if row.score is not None), key=_rank, default=None)

    def _pace(self) -> dict[str, float | None]:
        """Seconds so far, examples per second and the most seconds left; None before the first rung."""
        elapsed = time.time() - self._began
        if not self._seen:
            return {"elapsed": round(elapsed, 1), "examples_per_second": None, "seconds_left": None}
        left = elapsed / max(self._seen + self._spared, 1) * max(0, self.examples - self._seen - self._spared)
        pace = self._seen / max(elapsed, 1e-9)
        return {"elapsed": round(elapsed, 1), "examples_per_second": round(pace, 1), "seconds_left": round(left, 1)}

    def _left(self) -> str:
        pace = self._pace()
        if pace["seconds_left"] is None:
            return f"{pace['elapsed']:.0f} s so far"
        speed = f"{pace['examples_per_second']:.0f} examples/s"
        return f"{speed}, {pace['elapsed']:.0f} s so far, at most about {pace['seconds_left']:.0f} s left"


def _rank(row: _Row) -> tuple[bool, float]:
    """Best last; those without a score first."""
    return row.score is not None, row.score or 0.0


def _amount(value: float) -> str:
    """A number as people read it.

    >>> _amount(0.0123), _amount(130.0), _amount(20_000)
    ('0.012', '130', '20,000')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
