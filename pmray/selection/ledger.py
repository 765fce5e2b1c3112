"""The append-only record of every outcome of a run: the only source of truth for resume, report and decision."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pmray.errors import LedgerError
from pmray.spec import digest

if TYPE_CHECKING:
    from pmray.training.trial import Facts, Work

CODE_VERSION = 2
"""Part of every key: raise it when the same recipe and seed would give another result."""

Stage = Literal["baseline", "rank", "sweep", "final", "test"]
Status = Literal["done", "stopped", "failed", "infeasible", "unavailable"]


@dataclass(frozen=True)
class Outcome:
    """What a trial gave: a score and its cost, or the reason why there is none."""

    key: str
    """Names what was asked (see ``outcome_key``), never where or by how many it was done."""
    stage: Stage
    candidate: str
    status: Status
    score: float | None = None
    """The deciding metric on validation rows."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    examples: int = 0
    """Seen in training."""
    curve: tuple[tuple[int, float], ...] = ()
    """(examples, score) at every rung."""
    seconds: float = 0.0
    """Wall time of the trial, opening the model included."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else was measured: family, parameters, latency_ms, host …"""
    error: str | None = None
    may_pass: bool = False
    """The cause of a failure can be gone next time (a worker died, no network), so a new run tries again."""
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    v: int = 1
    """Version of this record's form."""

    @property
    def settled(self) -> bool:
        """Whether a new run need not repeat it."""
        return not self.may_pass


def outcome_key(
    stage: Stage, data: str, candidate: Mapping[str, Any], recipe: Mapping[str, Any], seed: int, budget: int
) -> str:
    """Name a piece of work by what produces its result: data, weights, recipe, seed, budget and code version.

    Args:
        stage: The kind of work.
        data: Key of the data (see ``pmray.data.load.data_key``).
        candidate: Revision and kept layers; not the name, which users may change.
        recipe: All hyper-parameters.
        seed: Seed of the fit.
        budget: Examples after which it ends.
    """
    return digest(json.dumps([stage, data, candidate, recipe, seed, budget, CODE_VERSION], sort_keys=True))


class Ledger:
    """A file of one JSON line an outcome. One process writes; any may read."""

    def __init__(self, path: Path, on_append: Callable[[], None] = lambda: None) -> None:
        """Open or begin a ledger.

        Args:
            path: The file.
            on_append: Called after each line, before ``append`` returns; brings the file to where others read it.
        """
        self.path, self.on_append = path, on_append
        self.outcomes = read_ledger(path)
        self._whole = False

    def append(self, outcome: Outcome) -> None:
        """Add an outcome; when this returns it is on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(outcome), separators=(",", ":"), default=float) + "\n"
        self._drop_torn_line()
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.outcomes.append(outcome)
        self.on_append()

    def settled(self, stage: Stage) -> dict[str, Outcome]:
        """Outcomes of a stage that need not be repeated, by key; the latest of each."""
        return {one.key: one for one in self.outcomes if one.stage == stage and one.settled}

    def _drop_torn_line(self) -> None:
        """A crash left half a line: take it away, or close it off where all but its line break was written.

        Only before the first line of this process: nobody else writes.
        """
        if self._whole:
            return
        self._whole = True
        content = self.path.read_bytes() if self.path.exists() else b""
        _, _, piece = content.rpartition(b"\n")
        if not piece:
            return
        try:
            json.loads(piece)
        except ValueError:
            os.truncate(self.path, len(content) - len(piece))
        else:
            with self.path.open("ab") as file:
                file.write(b"\n")


def read_ledger(path: Path) -> list[Outcome]:
    """Read all outcomes, oldest first; a torn last line (the writer was killed) is dropped.

    Raises:
        LedgerError: An earlier line cannot be read, or the file is of a later pmray.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    outcomes = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            outcomes.append(_outcome(json.loads(line)))
        except ValueError as error:
            if _is_torn(lines, number):
                continue
            raise LedgerError(f"{path}:{number} is not JSON ({error}); restore the file or delete it.") from None
        except (KeyError, TypeError) as error:
            raise LedgerError(
                f"{path}:{number} is not an outcome ({error}); was it written by a later pmray?"
            ) from None
    return outcomes


def latest(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """The last outcome of each key."""
    return {outcome.key: outcome for outcome in outcomes}


def _is_torn(lines: list[bytes], number: int) -> bool:
    """Only what follows the last line break can be torn: ``Ledger`` takes such a piece away before it writes."""
    return number == len(lines)


def _outcome(record: dict[str, Any]) -> Outcome:
    if record["v"] != 1:
        raise KeyError(f"record version {record['v']}")
    known = {item.name for item in fields(Outcome)}
    values = {key: value for key, value in record.items() if key in known}
    values["curve"] = tuple((int(examples), float(score)) for examples, score in values.get("curve", ()))
    return Outcome(**values)


def outcome_of(work: Work, facts: Facts, stage: Stage, *, may_pass: bool = False) -> Outcome:
    """The ledger's form of what a work gave."""
    return Outcome(
        key=work.key,
        stage=stage,
        candidate=work.pretrained.name,
        status=facts.status,  # type: ignore[arg-type]
        score=facts.score,
        recipe=work.recipe.model_dump(mode="json"),
        seed=work.seed,
        examples=facts.examples,
        curve=facts.curve,
        seconds=round(facts.seconds, 3),
        facts={
            **facts.measured,
            "family": work.pretrained.family,
            "budget": work.budget,
            # What the key hides: a run of another spec says by these why it cannot use an outcome.
            "data": work.data,
            "score": work.metric,
            "revision": work.pretrained.revision,
        },
        error=facts.error,
        may_pass=may_pass,
    )
