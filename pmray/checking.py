"""Everything that can be said about data before it is paid for: of a spec's data, or of files without a spec.

The cheap checks are part of every load (``pmray.data.load.examine``). The dear ones, near-duplicates and label noise,
are here: they take seconds, so they are done once for each content, and left out of large data unless asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmray import plugins
from pmray.data.check import MIN_ROWS, NAMED, Finding, counted
from pmray.data.columns import find_column
from pmray.data.distributions import Column, check_columns, check_words, describe_columns, spread
from pmray.data.duplicates import check_near_duplicates
from pmray.data.encode import encode_table, processor_key
from pmray.data.label_noise import label_issues
from pmray.data.load import Examined, examine
from pmray.data.sources import read_source, split_files
from pmray.data.split import sample
from pmray.errors import CandidateUnavailable, DataError, UnknownName
from pmray.spec import Data, Source, Spec, digest
from pmray.tasks.base import Task
from pmray.tasks.baselines import out_of_fold

if TYPE_CHECKING:
    from pmray.training.model import Pretrained

CHECKS_VERSION = 1
"""Part of the key of kept findings: raise it when the same rows would give others."""

MANY_ROWS = 50_000
"""Rows of all splits above which near-duplicates and label noise are only looked for on request."""

MANY_CHARACTERS = 10_000_000
"""Characters of all splits above which they are only looked for on request."""

MANY_CELLS = 800_000
"""Training rows x labels above which label noise is only looked for on request."""

LENGTH_ROWS = 2000
"""Training rows whose tokens are counted."""

WHOLE = 1_000_000
"""Tokens to which a row is cut when its own length is to be known."""

CUT = 0.05
"""Share of cut rows from which that is a warning."""

SKILL = 0.4
"""Cohen's kappa below which agreement is fair at best (Landis & Koch 1977)."""

NOTHING = "not looked for"


@dataclass(frozen=True)
class Checked:
    """What was found in data."""

    source: str
    """Spec file, or the data."""
    task: str | None
    """The task it was read for; None where no task fits, and only what holds for any rows was checked."""
    roles: Mapping[str, str]
    """Role -> column."""
    rows: Mapping[str, int]
    """Split -> rows that can be used."""
    columns: tuple[Column, ...]
    """Of train, also those that no role uses."""
    findings: tuple[Finding, ...]
    """Errors first."""
    seconds: float = 0.0

    @property
    def errors(self) -> int:
        """Findings that would stop a run."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "errors": self.errors}


def check(
    target: Spec | Source, *, task: str | None = None, columns: Mapping[str, str] | None = None, full: bool = False
) -> Checked:
    """Check the data of a spec, or data without a spec; nothing is written, and no split is drawn of data alone.

    Args:
        target: A spec; or a file, glob, URL, ``hub:path`` or folder. Files whose names say train, validation (valid,
            val, dev) or test (eval) are these splits; without such names all is train.
        task: For data alone: the task to read it for; by default the first whose columns are all there.
        columns: For data alone: role -> column, as in a spec.
        full: Look for near-duplicates and label noise in large data too.

    Raises:
        DataError: The data cannot be read as a whole, or no check can read it.
        UnknownName: No such task, or it has no such role.
    """
    started = time.perf_counter()
    found = _check_spec(target, full) if isinstance(target, Spec) else _check_source(target, task, columns or {}, full)
    return replace(found, seconds=round(time.perf_counter() - started, 3))


def dear_findings(splits: Mapping[str, pa.Table], task: Task | None, *, full: bool = False) -> list[Finding]:
    """Look for near-duplicates, and in train for label noise, unless there are too many rows.

    Args:
        splits: Usable rows; labels of test are not looked at.
        task: Turns labels into targets; None where no task reads these rows.
        full: However many rows there are.
    """
    inputs = {
        split: table.drop_columns("label") if "label" in table.column_names else table
        for split, table in splits.items()
    }
    rows, characters = sum(map(len, splits.values())), sum(map(_characters, inputs.values()))
    findings: list[Finding] = []
    if not characters:
        return findings
    if not full and (rows > MANY_ROWS or characters > MANY_CHARACTERS):
        message = (
            f"near-duplicates and label noise were not looked for in {rows:,} rows of {characters / 1e6:.0f} million "
            f"characters (limits: {MANY_ROWS:,} and {MANY_CHARACTERS / 1e6:.0f} million); `pmray check --full` does it"
        )
        return [Finding("info", NOTHING, message, rows)]
    findings += check_near_duplicates(inputs)
    train = splits["train"]
    if task is None or "text" not in train.column_names or "label" not in train.column_names or len(train) < MIN_ROWS:
        return findings
    if not full and len(train) * len(task.labels) > MANY_CELLS:
        message = (
            f"label noise was not looked for in {len(train):,} rows x {len(task.labels)} labels (limit: "
            f"{MANY_CELLS:,}); `pmray check --full` does it"
        )
        return [*findings, Finding("info", NOTHING, message, len(train))]
    return findings + check_label_noise(task, train)


def findings_once(splits: Mapping[str, pa.Table], task: Task, data_key: str, cache: Path) -> list[Finding]:
    """``dear_findings``, kept in the cache: a run that goes on does not look again."""
    limits = [CHECKS_VERSION, MANY_ROWS, MANY_CHARACTERS, MANY_CELLS]
    path = cache / f"checks-{digest(json.dumps([limits, data_key, task.to_json()], sort_keys=True))}.json"
    try:
        known = json.loads(path.read_text())
        return [Finding(**{**one, "examples": tuple(one["examples"])}) for one in known]
    except (OSError, ValueError, TypeError, KeyError):
        # Not there, or not whole: looked for (again), and written whole.
        findings = dear_findings(splits, task)
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{time.time_ns()}")
    partial.write_text(json.dumps([asdict(finding) for finding in findings]))
    partial.replace(path)
    return findings


def check_label_noise(task: Task, train: pa.Table) -> list[Finding]:
    """Find training rows whose label a baseline without a transformer confidently contradicts.

    A baseline that has learned little contradicts labels without knowing better, so its skill is asked first: Cohen's
    kappa of its out-of-fold predictions; of several labels a row, each label's own.
    """
    targets, probabilities = task.targets(train), out_of_fold(task, train)
    several = targets.ndim == 2
    if several:
        skilled = np.array([_kappa(*pair) >= SKILL for pair in zip(targets.T, probabilities.T >= 0.5, strict=True)])
        probabilities, targets = probabilities[:, skilled], targets[:, skilled]
        known = f"{skilled.sum()} of {len(skilled)} labels, those with a kappa of {SKILL:g} or more"
        names = [name for name, chosen in zip(task.labels, skilled, strict=True) if chosen]
    else:
        right = probabilities.argmax(1)
        names = list(task.labels) if _kappa(targets, right) >= SKILL else []
        known = f"right on {(right == targets).mean():.0%}"
    if not names:
        message = (
            "train: label noise was not looked for, because TF-IDF + logistic regression learns too little here to "
            f"contradict labels (out of fold: Cohen's kappa under {SKILL:g})"
        )
        return [Finding("info", NOTHING, message, len(train))]
    rows, labels = label_issues(probabilities, targets)
    if not len(rows):
        return []
    ids = tuple(train["row_id"].take(pa.array(rows[:NAMED])).to_pylist())
    given, looks = train["label"][int(rows[0])].as_py(), names[labels[0]]
    if several:
        example = f"{ids[0]} {'has' if looks in given else 'lacks'} the label {looks!r}"
    else:
        example = f"{ids[0]} is labelled {given!r} and looks like {looks!r}"
    message = (
        f"train: {counted(len(rows))} may have a wrong label, or are hard (confident learning on TF-IDF + logistic "
        f"regression, out of fold, {known}); such as {example}; kept, worth a look in the order of "
        f"{', '.join(ids)}"
    )
    return [Finding("info", "label noise", message, len(rows), ids)]


def _kappa(targets: NDArray[Any], said: NDArray[Any]) -> float:
    """Cohen's kappa: agreement beyond what the shares of labels give by chance; 0 where one of them says one thing."""
    shares = [np.bincount(numbers.astype(np.int64), minlength=2) / len(numbers) for numbers in (targets, said)]
    width = max(map(len, shares))
    by_chance = float(np.prod([np.pad(share, (0, width - len(share))) for share in shares], axis=0).sum())
    return (float((targets == said).mean()) - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0


def check_lengths(task: Task, train: pa.Table, candidates: Iterable[tuple[Pretrained, int]]) -> list[Finding]:
    """Count tokens of a sample of the training rows, and say which share ``max_length`` cuts.

    Args:
        task: Encodes rows; those without a text column, or packed ones, are left alone.
        train: Training rows.
        candidates: Models with the ``max_length`` of their default recipe; those that encode alike are told together.
    """
    if "text" not in train.column_names or "label" not in task.columns or not len(train):
        return []
    groups: dict[tuple[str, int], list[Pretrained]] = {}
    for one, limit in candidates:
        groups.setdefault((processor_key(Path(one.folder)), limit), []).append(one)
    rows = sample(train, LENGTH_ROWS, "label" if "label" in train.column_names else None, seed=0)
    counts: dict[str, np.ndarray[Any, Any]] = {}
    findings = []
    for (processor, limit), models in groups.items():
        if processor not in counts:
            counts[processor] = encode_table(task, rows, task.processor(models[0].folder), WHOLE).lengths
        lengths = counts[processor]
        cut = lengths > limit
        share = float(cut.mean())
        ids = tuple(rows["row_id"].take(pa.array(np.flatnonzero(cut)[:NAMED])).to_pylist())
        whole = len(rows) == len(train)
        message = (
            f"train: {spread(lengths)} tokens of {', '.join(one.name for one in models)}; max_length {limit} cuts "
            f"{share:.1%} of the {'' if whole else 'sampled '}rows"
            + ("; a larger `recipe.max_length` keeps more" if share >= CUT else "")
        )
        findings.append(Finding("warning" if share >= CUT else "info", "length", message, int(cut.sum()), ids))
    return findings


def _check_spec(spec: Spec, full: bool) -> Checked:
    kind = plugins.task_class(spec.task)
    examined = examine(spec.data, kind.columns)
    roles = _used(kind.columns, spec.data.columns, examined)
    findings = list(examined.findings)
    if not any(finding.severity == "error" for finding in findings):
        task: Task = kind.from_data(spec.data, examined.splits["train"])
        findings += [one for split, table in examined.splits.items() for one in task.check(table, split)]
        findings += _candidate_lengths(spec, task, examined.splits["train"])
        findings += dear_findings(examined.splits, task, full=full)
    return _answer(spec.name, spec.task, roles, examined, findings)


def _candidate_lengths(spec: Spec, task: Task, train: pa.Table) -> list[Finding]:
    # Opens torch, which takes seconds; data alone is checked without it.
    from pmray.training.model import locate
    from pmray.training.trial import recipe_length

    found: list[tuple[Pretrained, int]] = []
    missing: list[Finding] = []
    for candidate in spec.candidates:
        try:
            one = locate(candidate)
        except CandidateUnavailable as error:
            message = f"{error}; its tokens were not counted"
            missing.append(Finding("warning", "candidate unavailable", message, 0))
            continue
        recipe = task.default_recipe(one.family, one.parameters).changed(candidate.recipe)
        found.append((one, recipe_length(recipe, one)))
    return [*missing, *(check_lengths(task, train, found) if found else check_words({"train": train}))]


def _check_source(source: Source, name: str | None, columns: Mapping[str, str], full: bool) -> Checked:
    splits, left_out = split_files(source)
    names = _column_types(splits["train"])
    if name is None:
        name, mapping = _fitting_task(names, columns)
    else:
        mapping = _columns_of(plugins.task_class(name).columns, names, columns)
    kind = plugins.task_class(name) if name else None
    for role in columns:
        if kind and role not in kind.columns:
            raise UnknownName("column role", role, kind.columns)
    _refuse_bytes(names, mapping, kind)
    roles = dict(kind.columns) if kind else dict.fromkeys(mapping, True)
    data = Data(columns=mapping, **splits)
    examined = examine(data, roles, only=tuple(splits))
    findings = [*left_out, *examined.findings]
    usable = not any(finding.check in ("too few rows", "single label") for finding in findings)
    task = kind.from_data(data, examined.splits["train"]) if kind and usable else None
    if task:
        findings += [one for split, table in examined.splits.items() for one in task.check(table, split)]
    findings += check_words(examined.splits)
    findings += dear_findings(examined.splits, task, full=full)
    shown = source if isinstance(source, str) else str(source)
    return _answer(shown, name, _used(roles, mapping, examined), examined, findings)


def _answer(
    source: str, task: str | None, roles: Mapping[str, str], examined: Examined, findings: Sequence[Finding]
) -> Checked:
    columns = describe_columns(examined.parts["train"])
    used = {column: role for role, column in roles.items()}
    # A text that is constant or id-like was found with the rows.
    unread = [column for column in columns if used.get(column.name) not in ("text", "text_pair")]
    order = {"error": 0, "warning": 1, "info": 2}
    return Checked(
        source=source,
        task=task,
        roles=roles,
        rows={split: len(table) for split, table in examined.splits.items()},
        columns=columns,
        findings=tuple(sorted([*findings, *check_columns(unread, used)], key=lambda one: order[one.severity])),
    )


def _used(roles: Mapping[str, bool], mapping: Mapping[str, str], examined: Examined) -> dict[str, str]:
    """The column of each role that was read."""
    names = examined.parts["train"][0].table.column_names
    read = [role for role in roles if role in examined.splits["train"].column_names]
    return {role: mapping.get(role) or find_column(role, names) or role for role in read}


def _column_types(source: Source) -> dict[str, pa.DataType]:
    """Names and types of the columns of train's first file."""
    return {field.name: field.type for field in read_source(source, "train", drop=True)[0].table.schema}


def _fitting_task(names: Mapping[str, pa.DataType], columns: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """The first task whose required columns are all there, and its columns; without one, the columns to look at."""
    for name in plugins.task_names():
        roles = plugins.task_class(name).columns
        if "label" not in roles:
            # Any text would do for pre-training; what brings no labels by chance is not meant for it.
            continue
        found = _columns_of(roles, names, columns)
        if all(role in found for role, required in roles.items() if required):
            return name, found
    text = columns.get("text") or find_column("text", names)
    label = columns.get("label") or find_column("label", names)
    texts = [name for name, kind in names.items() if pa.types.is_list(kind) and pa.types.is_string(kind.value_type)]
    if text:
        mapping = {"text": text}
    elif texts and not label:
        # Sentences in words; what else is in lists are tags of them, often written twice.
        mapping = {texts[0]: texts[0]}
    else:
        mapping = {name: name for name in names if name != label}
    mapping |= ({"label": label} if label else {}) | dict(columns)
    return None, mapping


def _columns_of(roles: Iterable[str], names: Iterable[str], columns: Mapping[str, str]) -> dict[str, str]:
    """The column of each role that was named or can be found; groups change what is a leak, so they must be named."""
    found = {role: columns.get(role) or (None if role == "group" else find_column(role, names)) for role in roles}
    return {role: column for role, column in found.items() if column}


def _refuse_bytes(names: Mapping[str, pa.DataType], mapping: Mapping[str, str], kind: Any) -> None:
    """Encoded images and sounds are for tasks that read them; to compare them as bytes would prove nothing."""
    binary = [name for name, found in names.items() if pa.types.is_binary(found) or pa.types.is_large_binary(found)]
    unread = [name for name in binary if kind is None or name not in mapping.values()]
    if unread:
        raise DataError(
            f"column {unread[0]!r} holds encoded bytes ({names[unread[0]]}), such as images or audio, which no task "
            f"reads that fits these columns; tasks: {', '.join(plugins.task_names())} (`--task NAME` picks one)"
        )


def _characters(table: pa.Table) -> int:
    columns = (table[name] for name in table.column_names if name not in ("row_id", "group"))
    flat = (pc.list_flatten(column) if pa.types.is_list(column.type) else column for column in columns)
    return sum(pc.sum(pc.utf8_length(column)).as_py() or 0 for column in flat if pa.types.is_string(column.type))
