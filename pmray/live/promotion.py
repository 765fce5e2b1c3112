"""Champion or challenger: facts in, decision out. ``pmray.live.watch`` gathers facts and carries out decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pmray.errors import SpecError, UnknownName
from pmray.live.sequential import Anytime
from pmray.scoring.intervals import Interval

Kind = Literal["wait", "promote", "reject", "keep", "roll back", "alert"]


@dataclass(frozen=True)
class Rules:
    """What a challenger must show, and what a champion must not."""

    level: float = 0.95
    """Of the intervals that are looked at again and again; a challenger that is no better is promoted with at most half
    of the rest's probability."""
    min_labels: int = 100
    """Labelled rows that both answered, before anything is decided."""
    max_labels: int = 10_000
    """After so many the challenger has had its chance."""
    smallest_gain: float = 0.01
    """A challenger that is better by no more than this ends as a tie; the champion stays."""
    max_class_drop: float = 0.05
    """F1 of no label may fall by more."""
    class_labels: int = 30
    """Rows that must have a label before its F1 is judged."""
    max_latency_ratio: float = 1.5
    """p95 of the challenger's forward passes over the champion's."""
    max_p95_ms: float | None = None
    max_memory_ratio: float = 1.5
    failed_checks: int = 3
    """Health checks that fail in a row before a version is called ill."""


@dataclass(frozen=True)
class ClassDrop:
    """How much worse a challenger is at one label."""

    drop: float
    """F1 of the champion minus that of the challenger."""
    rows: int
    """With the label."""


@dataclass(frozen=True)
class Health:
    """What was seen of a served version."""

    failed_in_a_row: int = 0
    problem: str | None = None
    p95_ms: float | None = None
    memory_mb: float | None = None
    """Of the weights."""


@dataclass(frozen=True)
class Facts:
    """All that a decision is made from."""

    champion: str
    challenger: str | None = None
    previous: str | None = None
    """Version that was champion before."""
    difference: Anytime | None = None
    """Challenger minus champion, on labelled rows that both answered; None while these are too few."""
    class_drops: Mapping[str, ClassDrop] = field(default_factory=dict)
    health: Mapping[str, Health] = field(default_factory=dict)
    """By version."""
    promised: Interval | None = None
    """The champion's score on its test rows."""
    live: Anytime | None = None
    """The champion's, on all its labelled rows."""
    previous_live: Anytime | None = None
    """That of the version before, on its own."""


@dataclass(frozen=True)
class Decision:
    """What is to be done, and why."""

    kind: Kind
    """``promote`` the challenger; ``reject`` it, being worse or ill; ``keep`` the champion, as the challenger is no
    better; ``roll back`` to the version before; ``alert`` people, as nothing can be rolled back to; or ``wait``."""
    reasons: Sequence[str]
    numbers: Mapping[str, Any]


def rules_from(changes: Mapping[str, Any]) -> Rules:
    """The default rules with some of them changed.

    Raises:
        SpecError: There is no such rule, or its value makes no sense.

    >>> rules_from({"min_labels": 500}).min_labels
    500
    """
    known = {one.name: one.type for one in fields(Rules)}
    for name, value in changes.items():
        if name not in known:
            raise UnknownName("rule", name, known)
        whole = known[name] == "int"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value < 0:
            raise SpecError(f"rule {name} must be a {'whole ' if whole else ''}number, not negative, but is {value!r}")
    if not 0 < changes.get("level", Rules.level) < 1:
        raise SpecError(f"rule level must be between 0 and 1, such as 0.95, but is {changes['level']!r}")
    return Rules(**changes)


def decide(facts: Facts, rules: Rules | None = None) -> Decision:
    """Decide between champion and challenger, and whether the champion may stay at all.

    Args:
        facts: Of this moment; intervals that stay valid when this is called again and again.
        rules: The defaults, unless given.

    >>> better = Anytime(value=0.05, low=0.01, high=0.09, level=0.95, rows=400, error=0.01)
    >>> decide(Facts("1", "2", difference=better)).kind
    'promote'
    """
    rules = rules or Rules()
    found = [one for rule in (_ill_champion, _broken_promise, _challenger) if (one := rule(facts, rules))]
    kind, reasons = min(found, key=lambda one: _ORDER.index(one[0])) if found else _NOTHING
    return Decision(kind, reasons, {"facts": asdict(facts), "rules": asdict(rules)})


Found = tuple[Kind, list[str]] | None

_ORDER: tuple[Kind, ...] = ("roll back", "promote", "reject", "keep", "alert", "wait")
"""What goes first where several rules have something to say: what changes something, then what people must see."""

_NOTHING: tuple[Kind, list[str]] = ("wait", ["no challenger, and nothing wrong with the champion"])


def _ill_champion(facts: Facts, rules: Rules) -> Found:
    health = facts.health.get(facts.champion, Health())
    if health.failed_in_a_row < rules.failed_checks:
        return None
    why = f"version {facts.champion} failed {health.failed_in_a_row} health checks in a row ({health.problem})"
    return _back(facts, why)


def _broken_promise(facts: Facts, rules: Rules) -> Found:
    live, promised = facts.live, facts.promised
    if live is None or promised is None or live.rows < rules.min_labels or live.high >= promised.low:
        return None
    why = (
        f"live score {live.value:.3f} of version {facts.champion} ({live.low:.3f} to {live.high:.3f} on {live.rows} "
        f"labels) is below the promised {promised.value:.3f} ({promised.low:.3f} to {promised.high:.3f})"
    )
    before = facts.previous_live
    if before is not None and before.value <= live.value:
        # Not the model has changed for the worse but what it is asked.
        told = f"but version {facts.previous} did no better ({before.value:.3f} on {before.rows} labels)"
        return "alert", [why, told]
    return _back(facts, why)


def _back(facts: Facts, why: str) -> Found:
    if facts.previous is None:
        return "alert", [why, "there is no earlier version to go back to"]
    return "roll back", [why]


def _challenger(facts: Facts, rules: Rules) -> Found:
    if facts.challenger is None:
        return None
    health = facts.health.get(facts.challenger, Health())
    if health.failed_in_a_row >= rules.failed_checks:
        told = f"failed {health.failed_in_a_row} health checks in a row ({health.problem})"
        return "reject", [f"version {facts.challenger} {told}"]
    found = facts.difference
    if found is None or found.rows < rules.min_labels:
        rows = 0 if found is None else found.rows
        return "wait", [f"{rows} labelled rows that both answered; a decision takes at least {rules.min_labels}"]
    told = f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}) on {found.rows} labels"
    if found.high < 0:
        return "reject", [f"version {facts.challenger} is worse by {told}"]
    if found.low > 0:
        better = f"version {facts.challenger} is better by {told}"
        failed = _gates(facts, rules)
        if not failed:
            return "promote", [better]
        if found.rows >= rules.max_labels:
            return "reject", [better, *failed]
        return "wait", [better, *failed]
    if found.high < rules.smallest_gain and found.value > -rules.smallest_gain:
        return "keep", [f"version {facts.challenger} is no better: {told}; {rules.smallest_gain} would count"]
    if found.rows >= rules.max_labels:
        return "keep", [f"{rules.max_labels} labels do not tell version {facts.challenger} from the champion: {told}"]
    return "wait", [f"not yet to be told apart: {told}"]


def _gates(facts: Facts, rules: Rules) -> list[str]:
    """What forbids to promote a challenger that is better."""
    failed = [
        f"F1 of {label} falls by {one.drop:.3f} on {one.rows} rows, over {rules.max_class_drop}"
        for label, one in facts.class_drops.items()
        if one.rows >= rules.class_labels and one.drop > rules.max_class_drop
    ]
    old, new = (facts.health.get(str(version), Health()) for version in (facts.champion, facts.challenger))
    if new.problem is not None:
        failed.append(f"its last health check failed ({new.problem})")
    if rules.max_p95_ms is not None and (new.p95_ms or 0) > rules.max_p95_ms:
        failed.append(f"p95 is {new.p95_ms:.1f} ms, over {rules.max_p95_ms:.1f}")
    for what, first, second, most in (
        ("p95", old.p95_ms, new.p95_ms, rules.max_latency_ratio),
        ("memory", old.memory_mb, new.memory_mb, rules.max_memory_ratio),
    ):
        if first and second and second > most * first:
            failed.append(f"{what} is {second / first:.2f} times the champion's, over {most}")
    return failed
