"""Everything pmray raises on purpose.

* PmrayError
  x SpecError               the spec is wrong; nothing was started
    + UnknownName           a task, metric, candidate or key that does not exist
  x DataError               the data cannot be used as asked
  x CandidateUnavailable    a pre-trained model cannot be had; the sweep goes on without it
  x TrialError              one trial cannot go on; the sweep does
    + OutOfMemory
    + Diverged
  x LedgerError             the record of a run cannot be read
  x RegistryError           a registered model or alias does not exist, or the registry cannot be reached
  x ClusterError            the Ray cluster cannot do what the plan asks
  x EndpointError           a served model refused, or cannot be reached
  x LiveStoreError          predictions and labels cannot be kept or read
  x NoVerdict               the run ended, but nothing can be decided from its outcomes

Messages follow one pattern: what was asked, what was found, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PmrayError(Exception):
    """Base of all errors that pmray raises on purpose."""


class SpecError(PmrayError, ValueError):
    """The spec is wrong. Also a ``ValueError``, so that pydantic collects it with the other mistakes."""


class UnknownName(SpecError):
    """A name that does not exist; the message proposes the nearest that does."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        hint = nearest(name, self.known)
        proposal = f" Did you mean {hint!r}?" if hint else ""
        super().__init__(f"Unknown {kind} {name!r}.{proposal} Known: {', '.join(self.known)}.")

    def __reduce__(self) -> tuple[type, tuple[str, str, list[str]]]:
        return type(self), (self.kind, self.name, self.known)


class DataError(PmrayError):
    """The data cannot be used as asked. All problems found are listed, not only the first."""

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        return type(self), (self.problems,)


class CandidateUnavailable(PmrayError):
    """A pre-trained model cannot be had: no network, wrong name, missing or damaged files."""


class TrialError(PmrayError):
    """One trial cannot go on; the sweep does."""


class OutOfMemory(TrialError):
    """Not even one row fits (``rows`` is 1), or a forward pass of several rows does not."""

    def __init__(self, model: str, rows: int, tokens: int, device: str, told: str = "") -> None:
        self.model, self.rows, self.tokens, self.device, self.told = model, rows, tokens, device, told
        super().__init__(
            f"{model} ran out of memory on {device} with a micro-batch of {rows} rows x {tokens} tokens"
            + (f" ({told})" if told else "")
            + "; lower `recipe.max_length`, use a smaller candidate or `recipe.lora_rank`, or shard it over several "
            "workers (`resources: {workers: N, shard: true}`)."
        )

    def __reduce__(self) -> tuple[type, tuple[str, int, int, str, str]]:
        return type(self), (self.model, self.rows, self.tokens, self.device, self.told)


class Diverged(TrialError):
    """The loss became NaN or infinite, or ran away."""

    def __init__(self, step: int, value: float, lr: float, what: str = "loss", risen: bool = False) -> None:
        self.step, self.value, self.lr, self.what, self.risen = step, value, lr, what, risen
        super().__init__(
            f"{what} {'rose to' if risen else 'is'} {value:g} at step {step} with lr {lr:g}; use a lower lr or more "
            "warm-up."
        )

    def __reduce__(self) -> tuple[type, tuple[int, float, float, str, bool]]:
        return type(self), (self.step, self.value, self.lr, self.what, self.risen)


class LedgerError(PmrayError):
    """The record of a run cannot be read."""


class RegistryError(PmrayError):
    """A registered model or alias does not exist, or the registry cannot be reached."""


class ClusterError(PmrayError):
    """The Ray cluster cannot do what the plan asks."""


class EndpointError(PmrayError):
    """A served model refused the request, or cannot be reached."""


class LiveStoreError(PmrayError):
    """The store of predictions and labels cannot be reached, or holds what this version cannot read."""


class NoVerdict(PmrayError):
    """The run ended, but nothing can be decided from its outcomes."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest in spelling, else one that begins with it, or None when nothing is close.

    >>> nearest("lerning_rate", ["learning_rate", "epochs"])
    'learning_rate'
    >>> nearest("f1", ["accuracy", "f1_macro"])
    'f1_macro'
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return next(iter(close or [one for one in known if name and one.startswith(name)]), None)


def first_problems(problems: Sequence[str], count: int = 10) -> list[str]:
    """Return the first of many problems, and how many more there are."""
    more = len(problems) - count
    return [*problems[:count], f"… and {more} more"] if more > 0 else list(problems)
