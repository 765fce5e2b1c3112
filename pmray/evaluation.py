"""Score and compare models on labelled rows: bundles, registered versions and endpoints, with the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pmray.bundle import SETTINGS, open_bundle
from pmray.data.load import load_labelled
from pmray.errors import DataError, EndpointError
from pmray.registry import find
from pmray.scoring.intervals import Interval, bootstrap
from pmray.scoring.metrics import confusion
from pmray.scoring.paired import Paired, groups, holm, paired_bootstrap
from pmray.serving.scorer import Answer, Refused, Scorer
from pmray.spec import Source
from pmray.tasks.base import Outcomes, Task
from pmray.training.trial import open_task

CHUNK = 512
"""Rows in one request, or in one step of the progress bar."""

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Evaluation:
    """A model's scores on labelled rows."""

    source: str
    """Bundle folder or URL."""
    rows: int
    """Scored; refused ones are not counted."""
    metric: str
    """The one that decided when the model was chosen."""
    score: Interval
    metrics: Mapping[str, Interval]
    per_class: Mapping[str, Mapping[str, Interval]]
    confusion: list[list[int]] | None
    """Rows by true (down) and predicted (across) label; None where a row has several labels."""
    labels: tuple[str, ...]
    refused: Sequence[Mapping[str, str]]
    """``row_id`` and ``error`` of rows that could not be answered."""
    row_ids: Sequence[str] = field(repr=False)
    scores: NDArray[np.float32] = field(repr=False)
    """Score vectors, shape (rows, labels)."""
    outcomes: Outcomes = field(repr=False)
    task: Task = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain values, without the rows."""
        hidden = ("row_ids", "scores", "outcomes", "task")
        return {key: _plain(value) for key, value in vars(self).items() if key not in hidden}


@dataclass(frozen=True)
class Scored:
    """A model's line in a comparison."""

    name: str
    score: Interval


@dataclass(frozen=True)
class Pair:
    """Two models on the same rows; `first` has the higher score."""

    first: str
    second: str
    paired: Paired
    adjusted_p: float
    """After Holm's correction for all pairs."""


@dataclass(frozen=True)
class Compared:
    """Models on the same rows."""

    metric: str
    rows: int
    lines: tuple[Scored, ...]
    """Best first."""
    comparisons: tuple[Pair, ...]
    groups: list[list[str]]
    """Members of a group cannot be told apart from its best."""
    disagreements: int
    """Rows on which not all models say the same."""
    examples: Sequence[str]
    """Row ids of the first few of them."""

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain values."""
        return asdict(self)


class Endpoint:
    """A served model that answers rows over HTTP as a ``Scorer`` does in this process."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.client = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)
        facts = self._ask("GET", "/v1/model")
        self.settings: Mapping[str, Any] = facts["settings"]
        self.task = open_task(self.settings["task"])
        self.chunk = min(CHUNK, int(facts["max_rows"]))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[Answer | Refused]:
        """Answer every row, in order."""
        found = self._ask("POST", "/v1/predict", {"rows": list(rows)})["predictions"]
        return [
            Refused(one["error"])
            if one.get("error")
            else Answer(one, np.array([one["scores"][label] for label in self.task.labels], np.float32))
            for one in found
        ]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        try:
            response = self.client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise EndpointError(f"{self.url} does not answer ({error}); is `pmray serve` running there?") from None
        if response.is_error:
            raise EndpointError(f"{self.url}{path} answered {response.status_code}: {response.text[:300]}")
        try:
            return response.json()
        except ValueError:
            raise EndpointError(f"{self.url}{path} did not answer with JSON; is it a pmray endpoint?") from None


def evaluate(
    model: str,
    data: Source,
    *,
    registry: str | None = None,
    columns: Mapping[str, str] | None = None,
    draws: int = 1000,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a model on labelled rows.

    Args:
        model: Bundle folder, ``NAME[@alias]`` in the registry, or URL of an endpoint.
        data: Labelled rows, as in a spec.
        registry: MLflow tracking URI, for names.
        columns: Role -> column name; by default those the model was trained with.
        draws: Bootstrap draws.
        progress: Called with (rows done, rows).

    Raises:
        DataError: The rows cannot be read, have labels that the model does not know, or none could be answered.
        RegistryError: There is no such model.
        EndpointError: The endpoint cannot be reached.
    """
    answers, settings, source = _open(model, registry)
    task = answers.task
    table = _labelled(data, task, {**settings.get("columns", {}), **(columns or {})})
    replies: list[Answer | Refused] = []
    for rows in _chunks(table, answers.chunk if isinstance(answers, Endpoint) else CHUNK):
        replies += answers(rows)
        progress(len(replies), len(table))
    if isinstance(answers, Endpoint):
        answers.client.close()
    answered = np.array([isinstance(one, Answer) for one in replies], dtype=bool)
    if not answered.any():
        first = next((one.error for one in replies if isinstance(one, Refused)), "there are no rows")
        raise DataError(f"none of the {len(table)} rows could be answered: {first}")
    refused = [
        {"row_id": row_id, "error": one.error}
        for row_id, one in zip(table["row_id"].to_pylist(), replies, strict=True)
        if isinstance(one, Refused)
    ]
    scores = np.stack([one.scores for one in replies if isinstance(one, Answer)])
    return evaluate_scores(
        task,
        str(settings["metric"]),
        table.filter(pa.array(answered)),
        scores,
        source=source,
        refused=refused,
        draws=draws,
    )


def evaluate_scores(
    task: Task,
    metric: str,
    table: pa.Table,
    scores: NDArray[np.float32],
    *,
    source: str,
    refused: Sequence[Mapping[str, str]] = (),
    draws: int = 1000,
) -> Evaluation:
    """Score predictions that are already there.

    Args:
        task: Gives metrics.
        metric: Name of the deciding one.
        table: ``row_id`` and ``label``.
        scores: Score vectors of the same rows, shape (rows, labels).
        source: Where they come from.
        refused: Rows that are not in the table.
        draws: Bootstrap draws.
    """
    outcomes = task.outcome(scores, task.targets(table))
    metrics = {name: bootstrap(task.metric(name), outcomes, draws=draws) for name in task.metrics()}
    return Evaluation(
        source=source,
        rows=len(table),
        metric=metric,
        score=metrics[metric],
        metrics=metrics,
        per_class={
            label: {name: bootstrap(function, outcomes, draws=draws) for name, function in functions.items()}
            for label, functions in task.class_metrics().items()
        },
        confusion=confusion(outcomes, len(task.labels)).tolist() if outcomes.shape[1] == 2 else None,
        labels=task.labels,
        refused=list(refused),
        row_ids=table["row_id"].to_pylist(),
        scores=scores,
        outcomes=outcomes,
        task=task,
    )


def compare(
    models: Sequence[str],
    data: Source,
    *,
    registry: str | None = None,
    columns: Mapping[str, str] | None = None,
    alpha: float = 0.05,
    draws: int = 2000,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Compared:
    """Compare models on the same labelled rows with paired tests.

    Args:
        models: Two or more; see ``evaluate``.
        data: Labelled rows.
        registry: MLflow tracking URI, for names.
        columns: Role -> column name; by default those of the first model.
        alpha: Significance level after Holm's correction.
        draws: Bootstrap draws.
        progress: Called with (rows done, rows), anew for each model.

    Raises:
        DataError: The models have different labels.
    """
    found = [
        evaluate(model, data, registry=registry, columns=columns, draws=draws, progress=progress) for model in models
    ]
    names = [name if models.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(models, start=1)]
    first = found[0]
    for name, one in zip(names, found, strict=True):
        if one.labels != first.labels:
            raise DataError(f"{names[0]} has the labels {list(first.labels)}, but {name} has {list(one.labels)}")
    # A row that one model refused is left out for all: the same rows, or no comparison.
    common = set(first.row_ids).intersection(*(one.row_ids for one in found))
    lines = {
        name: one.outcomes[[row_id in common for row_id in one.row_ids]] for name, one in zip(names, found, strict=True)
    }
    metric = first.task.metric(first.metric)
    scored = sorted(
        (Scored(name, bootstrap(metric, outcomes, draws=draws)) for name, outcomes in lines.items()),
        key=lambda line: -line.score.value,
    )
    pairs = {
        (a.name, b.name): paired_bootstrap(metric, [lines[a.name]], [lines[b.name]], draws=draws, level=1 - alpha)
        for a, b in combinations(scored, 2)
    }
    adjusted = holm({pair: paired.p_value for pair, paired in pairs.items()})
    said = np.stack([np.split(outcomes, 2, axis=1)[1] for outcomes in lines.values()])
    differ = (said != said[0]).any(axis=(0, 2))
    shared_ids = [row_id for row_id in first.row_ids if row_id in common]
    return Compared(
        metric=first.metric,
        rows=len(common),
        lines=tuple(scored),
        comparisons=tuple(Pair(a, b, paired, adjusted[a, b]) for (a, b), paired in pairs.items()),
        groups=groups([line.name for line in scored], {frozenset(pair): p for pair, p in adjusted.items()}, alpha),
        disagreements=int(differ.sum()),
        examples=[shared_ids[position] for position in np.flatnonzero(differ)[:10]],
    )


def save_predictions(found: Evaluation, path: Path) -> None:
    """Write one line a row, as Parquet or CSV by the file's suffix: its id, its label(s), what was said, all scores."""
    true, said = np.split(found.outcomes, 2, axis=1)

    def shown(bits: NDArray[Any]) -> list[str]:
        if bits.shape[1] == 1:
            return [found.labels[int(number)] for number in bits[:, 0]]
        return ["|".join(label for label, bit in zip(found.labels, row, strict=True) if bit) for row in bits]

    columns = {"row_id": list(found.row_ids), "label": shown(true), "prediction": shown(said)}
    columns |= {f"score: {label}": found.scores[:, index].tolist() for index, label in enumerate(found.labels)}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(pa.table(columns), path)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        raise DataError(f"{path}: predictions are written as .parquet or .csv, not {path.suffix or 'without suffix'}")


def _open(model: str, registry: str | None) -> tuple[Scorer | Endpoint, Mapping[str, Any], str]:
    if model.startswith(("http://", "https://")):
        endpoint = Endpoint(model)
        return endpoint, endpoint.settings, model
    folder, _ = resolve(model, registry)
    bundle = open_bundle(folder)
    return Scorer(bundle), bundle.settings, str(folder)


def resolve(model: str, registry: str | None) -> tuple[Path, str]:
    """Folder and version of a bundle that is given as a folder (version ``-``) or by its name in the registry.

    Raises:
        DataError: The folder is not a bundle.
        RegistryError: There is no such model.
    """
    folder = Path(model).expanduser()
    if (folder / SETTINGS).is_file() or registry is None or folder.is_dir():
        return open_bundle(folder).folder, "-"
    found = find(model, registry)
    return found.folder, found.version


def _labelled(data: Source, task: Task, columns: Mapping[str, str]) -> pa.Table:
    """Read the rows, and refuse labels that the model cannot say."""
    roles = {role: needed for role, needed in task.columns.items() if needed or (role == "text_pair" and _pair(task))}
    table = load_labelled(data, roles, {role: name for role, name in columns.items() if role in roles})
    known = set(task.labels)
    problems = []
    for row_id, label in zip(table["row_id"].to_pylist(), table["label"].to_pylist(), strict=True):
        if label is None:
            problems.append(f"{row_id}: no label")
        elif unknown := ({label} if isinstance(label, str) else set(label)) - known:
            problems.append(
                f"{row_id}: label {sorted(unknown)[0]!r} is not one of the model's: {', '.join(task.labels)}"
            )
    if problems:
        more = [f"… and {len(problems) - 5} more rows"] if len(problems) > 5 else []
        hint = [] if len(problems) < len(table) else ["is it another column? `--column label=NAME` names it"]
        raise DataError([*problems[:5], *more, *hint])
    return table


def _pair(task: Task) -> bool:
    return bool(getattr(task, "pair", False))


def _chunks(table: pa.Table, size: int) -> Iterator[list[dict[str, Any]]]:
    inputs = table.select([name for name in table.column_names if name not in ("row_id", "label")])
    for start in range(0, len(table), size):
        yield inputs.slice(start, size).to_pylist()


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
