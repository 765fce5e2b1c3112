"""Whatever can say something about labelled rows, asked in one way.

* a bundle, by folder or by name in the registry
* an endpoint, by URL
* any model with a classification head (of texts, of tokens, of images): a ``save_pretrained`` or pipeline folder,
  ``package:NAME/folder``, Hub id; see ``pmray.evaluation.foreign_models``
* predictions that somebody wrote to a file; see ``pmray.evaluation.prediction_files``
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.bundle import SETTINGS, Bundle, open_bundle
from pmray.client import Client
from pmray.data.formats import FORMATS
from pmray.data.labelled import LabelledRows, read_labelled
from pmray.data.sources import read_source
from pmray.errors import CandidateUnavailable, DataError, EndpointError, UnknownName, first_problems
from pmray.evaluation.foreign_models import Classifier, TagsOfData, as_bundle, task_kind
from pmray.evaluation.prediction_files import read_predictions, task_kind_of
from pmray.registry import find
from pmray.scoring.ragged import stacked
from pmray.serving.scorer import Answer, Refused, Scorer
from pmray.spec import Candidate, Source
from pmray.tasks.base import Task
from pmray.training.model import locate
from pmray.training.trial import open_task

CHUNK = 512
"""Rows in one request, or in one step of the progress bar."""

TIMEOUT_S = 120.0

RETRY_S = 10.0
"""For so long an endpoint may be busy or away."""

LATENCY_ROWS = 50
"""Rows that are asked one by one to see how long one takes."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]*[^\W\d][\w.-]*(@[\w./-]+)?")
"""``owner/model[@revision]``; ``name/2`` is version 2 of a registered model."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Speed:
    """How fast a model answered here."""

    rows_per_second: float
    """All rows, many at a time, tokenizing included; through an endpoint, one request after the other."""
    p50_ms: float | None
    """Median of rows asked one by one."""
    p95_ms: float | None
    single_rows: int
    """So many."""


@dataclass(frozen=True)
class Predicted:
    """What a model says of labelled rows."""

    source: str
    """Bundle folder, URL, model or file."""
    task: Task
    metric: str
    """The one that decided when the model was chosen; the task's default where pmray did not choose it."""
    rows: LabelledRows
    """Those that were answered."""
    said: NDArray[Any]
    """In the form of ``task.targets``."""
    scores: NDArray[Any] | None
    """Score vectors, shape (rows, labels) or ragged; None where a file has predictions alone."""
    refused: Sequence[Mapping[str, str]]
    """``row_id`` and ``error`` of rows that could not be answered."""
    speed: Speed | None
    """None for predictions from a file."""


class Endpoint:
    """A served model that answers rows over HTTP as a ``Scorer`` does in this process."""

    def __init__(self, url: str) -> None:
        # A wrong address should be told at once; a right one may be busy later.
        self.client = Client(url, timeout_s=TIMEOUT_S, retry_s=1.0)
        facts = self.client.facts()
        self.client.retry_s = RETRY_S
        try:
            self.settings: Mapping[str, Any] = facts["settings"]
            self.task = open_task(self.settings["task"])
            self.chunk = min(CHUNK, int(facts["max_rows"]))
        except (KeyError, TypeError):
            raise EndpointError(f"{url}/v1/model did not tell its task; is it a pmray endpoint?") from None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[Answer | Refused]:
        """Answer every row, in order."""
        found = self.client.ask("POST", "/v1/predict", json={"rows": list(rows)})["predictions"]
        return [Refused(one["error"]) if one.get("error") else Answer(one, self.task.scores_of(one)) for one in found]


def predict(
    model: str,
    data: Source,
    *,
    registry: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
    latency_rows: int = LATENCY_ROWS,
    progress: Progress = lambda done, total: None,
) -> Predicted:
    """Ask a model for what it says of labelled rows.

    Args:
        model: Bundle folder, ``NAME[@alias]`` in the registry, URL of an endpoint, folder or Hub id of a model with a
            classification head, or file of predictions; see ``read_predictions``.
        data: Labelled rows, as in a spec.
        registry: MLflow tracking URI, for names.
        columns: Role -> column name; by default those that a bundle was trained with.
        labels: Names of the model's outputs in order, for models that call them ``LABEL_0``; for predictions, all
            labels that may occur. Not used for bundles and endpoints, which know theirs.
        latency_rows: Rows to ask one by one; 0 asks none.
        progress: Called with (rows done, rows).

    Raises:
        DataError: The rows cannot be read, have labels that the model does not know, or none could be answered.
        CandidateUnavailable: The model is none that can be opened.
        RegistryError: There is no such model.
        EndpointError: The endpoint cannot be reached.
    """
    given = columns or {}
    if model.startswith(("http://", "https://")):
        endpoint = Endpoint(model)
        with closing(endpoint.client):
            rows = known_rows(data, endpoint.task, endpoint.settings.get("columns", {}), given)
            return _ask(model, endpoint, endpoint.settings, rows, endpoint.chunk, latency_rows, progress)
    if _is_file(model):
        columns = read_source(data, "test", drop=False)[0].table.column_names
        rows = _foreign_rows(data, given, task_kind_of(columns, given), inputs=False)
        written = read_predictions(model, rows, labels)
        return Predicted(
            model, written.task, written.task.default_score(), rows, written.said, written.scores, (), None
        )
    outputs = None
    if _is_pretrained(model):
        pretrained = locate(Candidate(model=model))
        kind = task_kind(model, pretrained)
        rows = _foreign_rows(data, given, kind, inputs=True)
        bundle, outputs = as_bundle(pretrained, kind, rows, labels)
    else:
        bundle = open_bundle(resolve(model, registry)[0])
        rows = known_rows(data, bundle.task, bundle.settings.get("columns", {}), given)
    source = model if _is_pretrained(model) else str(bundle.folder)
    return _ask(source, _scorer(bundle, model, outputs), bundle.settings, rows, CHUNK, latency_rows, progress)


def trained_columns(model: str, registry: str | None) -> Mapping[str, str] | None:
    """Role -> column that a bundle or endpoint was trained with; None for what pmray did not train."""
    if model.startswith(("http://", "https://")):
        endpoint = Endpoint(model)
        with closing(endpoint.client):
            return dict(endpoint.settings.get("columns", {}))
    if _is_file(model) or _is_pretrained(model):
        return None
    return dict(open_bundle(resolve(model, registry)[0]).settings.get("columns", {}))


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


def _ask(
    source: str,
    answers: Scorer | Endpoint,
    settings: Mapping[str, Any],
    rows: LabelledRows,
    chunk: int,
    latency_rows: int,
    progress: Progress,
) -> Predicted:
    inputs = rows.table.select([name for name in rows.table.column_names if name not in ("row_id", "label")])
    replies: list[Answer | Refused] = []
    started = perf_counter()
    for start in range(0, len(inputs), chunk):
        replies += answers([answers.task.sent(row) for row in inputs.slice(start, chunk).to_pylist()])
        progress(len(replies), len(inputs))
    seconds = perf_counter() - started
    answered = np.array([isinstance(one, Answer) for one in replies], dtype=bool)
    if not answered.any():
        first = next(one.error for one in replies if isinstance(one, Refused))
        raise DataError(f"none of the {len(rows)} rows could be answered: {first}")
    refused = [
        {"row_id": row_id, "error": one.error}
        for row_id, one in zip(rows.table["row_id"].to_pylist(), replies, strict=True)
        if isinstance(one, Refused)
    ]
    scores = stacked([one.scores for one in replies if isinstance(one, Answer)])
    single = _single_rows(answers, inputs.filter(pa.array(answered)), latency_rows)
    p50, p95 = (float(value) for value in np.quantile(single, [0.5, 0.95])) if single else (None, None)
    return Predicted(
        source=source,
        task=answers.task,
        metric=str(settings["metric"]),
        rows=rows.taken(pa.array(answered)),
        said=answers.task.said(scores),
        scores=scores,
        refused=refused,
        speed=Speed(len(inputs) / seconds, p50, p95, len(single)),
    )


def _single_rows(answers: Scorer | Endpoint, inputs: pa.Table, count: int) -> list[float]:
    """Milliseconds of rows asked one by one, taken evenly from all, after one that is not counted."""
    count = min(count, len(inputs))
    if not count:
        return []
    rows = inputs.take(np.linspace(0, len(inputs) - 1, count).astype(np.int64)).to_pylist()
    asked = [answers.task.sent(row) for row in rows]
    answers(asked[:1])
    taken = []
    for row in asked:
        started = perf_counter()
        answers([row])
        taken.append((perf_counter() - started) * 1e3)
    return taken


def _is_file(model: str) -> bool:
    path = Path(model).expanduser()
    return path.is_file() or (not path.is_dir() and path.suffix.lower() in FORMATS)


def _is_pretrained(model: str) -> bool:
    """Whether a model is one that pmray did not make: a folder without ``pmray.json``, a package, or on the Hub."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return not (folder / SETTINGS).is_file() and (folder / "config.json").is_file()
    return model.startswith("package:") or HUB_ID.fullmatch(model) is not None


def _scorer(bundle: Bundle, model: str, outputs: NDArray[np.int64] | None) -> Scorer:
    """Open a bundle's weights, and say the task's tags for its outputs where these are others.

    Decoders without a padding token of their own take the tokenizer's.
    """
    try:
        scorer = Scorer(bundle)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CandidateUnavailable(f"{model} cannot be opened ({reason}); are its files whole?") from None
    config: Any = scorer.model.config
    if scorer.task.reader == "tokenizer" and config.pad_token_id is None:
        config.pad_token_id = scorer.processor.pad_token_id
    if outputs is not None:
        scorer.model = TagsOfData(scorer.model, outputs, len(bundle.task.labels)).to(scorer.device)
    return scorer


def known_rows(data: Source, task: Task, trained: Mapping[str, str], given: Mapping[str, str]) -> LabelledRows:
    """Read rows for a model that knows its labels, and refuse others.

    Args:
        data: Labelled rows.
        task: The model's.
        trained: Role -> column that it was trained with. Groups are used where these rows have them too.
        given: Role -> column that the user names.

    Raises:
        DataError: The rows cannot be read, or have labels that the model does not know.
    """
    wanted = ("group", *(["text_pair"] if _pair(task) else []))
    roles = {role: needed for role, needed in task.columns.items() if needed or role in wanted}
    columns = {role: name for role, name in {**trained, **given}.items() if role in roles}
    group = {} if "group" in given else {"group": columns.pop("group")} if "group" in columns else {}
    rows = read_labelled(data, roles, columns, optional=group)
    several = getattr(task, "multi_label", rows.multi_label)
    if several != rows.multi_label:
        says, has = ("any number of labels", "one") if several else ("one label", "lists of them")
        raise DataError(
            f"the model says {says} a row, but the data has {has} in column {rows.names['label']!r}; "
            "`--column label=NAME` names another"
        )
    _check_labels(rows, task.labels)
    return rows


def _foreign_rows(data: Source, columns: Mapping[str, str], kind: type[Classifier], *, inputs: bool) -> LabelledRows:
    """Read rows for a model that takes its labels from the data; `inputs` says whether it needs more than these."""
    # Tags belong to words.
    roles = {role: needed and (inputs or role in ("label", "words")) for role, needed in kind.columns.items()}
    for role in columns:
        if role not in roles:
            raise UnknownName("column role", role, roles)
    rows = read_labelled(data, roles, columns, optional={"text": "text"} if "text" in roles else None)
    _check_labels(rows, None)
    return rows


def _check_labels(rows: LabelledRows, known: Sequence[str] | None) -> None:
    """Refuse rows without a label, or with one that is not known."""
    problems = []
    for row_id, label in zip(rows.table["row_id"].to_pylist(), rows.table["label"].to_pylist(), strict=True):
        if label is None:
            problems.append(f"{row_id}: no label")
        elif known and (unknown := ({label} if isinstance(label, str) else set(label)) - set(known)):
            problems.append(f"{row_id}: label {min(unknown)!r} is not one of the model's: {', '.join(known)}")
    if problems:
        hint = [] if len(problems) < len(rows) else ["is it another column? `--column label=NAME` names it"]
        raise DataError([*first_problems(problems, 5), *hint])


def _pair(task: Task) -> bool:
    return bool(getattr(task, "pair", False))
