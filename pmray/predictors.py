"""Whatever can say something about labelled rows, asked in one way.

* a bundle, by folder or by name in the registry
* an endpoint, by URL
* any model with a text-classification head: a ``save_pretrained`` or pipeline folder, ``package:NAME/folder``, Hub id
* predictions that somebody wrote to a file

What pmray did not train names its labels its own way; ``match_labels`` finds those of the data in them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from pmray.bundle import SETTINGS, Bundle, open_bundle
from pmray.data.columns import role_columns
from pmray.data.formats import FORMATS
from pmray.data.labelled import LabelledRows, read_labelled
from pmray.data.sources import read_source
from pmray.errors import CandidateUnavailable, DataError, EndpointError, UnknownName, first_problems
from pmray.registry import find
from pmray.scoring.ragged import stacked
from pmray.serving.scorer import Answer, Refused, Scorer
from pmray.spec import Candidate, Data, Source
from pmray.tasks.base import Task
from pmray.tasks.images import ImageClassification
from pmray.tasks.text import TextClassification
from pmray.training.model import Pretrained, check_processor, locate
from pmray.training.trial import open_task

CHUNK = 512
"""Rows in one request, or in one step of the progress bar."""

TIMEOUT_S = 120.0

LATENCY_ROWS = 50
"""Rows that are asked one by one to see how long one takes."""

MAX_LENGTH = 512
"""Tokens of a row for models that pmray did not train, at most what the model takes."""

UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls labels that nobody named."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]*[^\W\d][\w.-]*(@[\w./-]+)?")
"""``owner/model[@revision]``; ``name/2`` is version 2 of a registered model."""

Progress = Callable[[int, int], None]

Classifier = TextClassification | ImageClassification
"""Tasks of models that pmray did not train."""


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
        self.url = url.rstrip("/")
        self.client = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)
        facts = self._ask("GET", "/v1/model")
        try:
            self.settings: Mapping[str, Any] = facts["settings"]
            self.task = open_task(self.settings["task"])
            self.chunk = min(CHUNK, int(facts["max_rows"]))
        except (KeyError, TypeError):
            raise EndpointError(f"{self.url}/v1/model did not tell its task; is it a pmray endpoint?") from None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[Answer | Refused]:
        """Answer every row, in order."""
        found = self._ask("POST", "/v1/predict", {"rows": list(rows)})["predictions"]
        return [Refused(one["error"]) if one.get("error") else Answer(one, self.task.scores_of(one)) for one in found]

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
            rows = _known_rows(data, endpoint.task, endpoint.settings.get("columns", {}), given)
            return _ask(model, endpoint, endpoint.settings, rows, endpoint.chunk, latency_rows, progress)
    if _is_file(model):
        rows = _foreign_rows(data, given, TextClassification, inputs=False)
        return read_predictions(model, rows, labels)
    if _is_pretrained(model):
        pretrained = locate(Candidate(model=model))
        kind = _foreign_kind(model, pretrained)
        rows = _foreign_rows(data, given, kind, inputs=True)
        bundle = _as_bundle(pretrained, kind, rows, labels)
    else:
        bundle = open_bundle(resolve(model, registry)[0])
        rows = _known_rows(data, bundle.task, bundle.settings.get("columns", {}), given)
    source = model if _is_pretrained(model) else str(bundle.folder)
    return _ask(source, _scorer(bundle, model), bundle.settings, rows, CHUNK, latency_rows, progress)


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


def match_labels(
    found: Sequence[str], expected: Sequence[str], given: Sequence[str] | None, *, model: str
) -> tuple[str, ...]:
    """Name a model's outputs as the data does, in the order of the outputs.

    Names are compared without regard to case. The model's own names count where they cover the labels of the data,
    else the given ones. Outputs that the data never has keep their name: saying one of them is wrong.

    Args:
        found: The model's own names.
        expected: Labels of the data.
        given: What the user says the outputs are, in order.
        model: For the message.

    Raises:
        DataError: Neither covers the labels of the data.

    >>> match_labels(["NEGATIVE", "POSITIVE"], ["positive", "negative"], None, model="m")
    ('negative', 'positive')
    >>> match_labels(["LABEL_0", "LABEL_1"], ["positive", "negative"], ["Negative", "Positive"], model="m")
    ('negative', 'positive')
    """
    for names in (found, given or ()):
        matched = _as_in_data(names, expected)
        if set(expected) <= set(matched) and len(set(matched)) == len(found) == len(matched):
            return matched
    told, wanted = ", ".join(map(str, found)), ", ".join(expected)
    if given and len(given) != len(found):
        told_given = f"; the {len(given)} given labels ({', '.join(given)}) are not as many as its {len(found)} outputs"
    elif given:
        told_given = f"; the given labels ({', '.join(given)}) do not cover those of the data either, or repeat one"
    else:
        told_given = ""
    unnamed = all(UNNAMED.fullmatch(name) for name in found)
    why = "does not name its outputs" if unnamed else "has other labels than the data"
    raise DataError(
        f"{model} {why}: found {told}; the data has {wanted}{told_given}. Name the outputs in their order, such as "
        f"`--labels {','.join(expected)}`, or give data with the model's labels"
    )


def read_predictions(path: str, rows: LabelledRows, labels: Sequence[str] | None = None) -> Predicted:
    """Read predictions that somebody wrote, and put them in the order of the rows.

    Rows are found by a column ``row_id`` (as ``pmray evaluate --predictions`` writes it: ``<file>:<row>``); without
    one, the file has as many rows as the data, in its order. What is said is in a column ``prediction`` (for several
    labels a row, a list or ``a|b``), or in scores, the highest of which counts: one column for each label, called like
    the label or ``score: LABEL``; or a column ``scores`` with an object of label and score, or with a list in the order
    of `labels`. With both, ``prediction`` decides and the scores give calibration and confidence.

    Args:
        path: CSV, Parquet, or another kind that data may have.
        rows: What they are predictions of.
        labels: All labels that may be said, in the order of score lists; by default those of the data.

    Raises:
        DataError: They cannot be read, are of other rows, lack some, have some twice, or say unknown labels.
    """
    parts = read_source(path, "predictions", drop=False)
    try:
        table = pa.concat_tables([part.table for part in parts], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{path}: its files have columns of different kinds ({error}); write them one way") from None
    order = _order(path, table, rows)
    task = _task_of(rows, _as_in_data(labels, rows.labels) if labels else rows.labels, TextClassification)
    names = {column.casefold().removeprefix("score:").strip(): column for column in table.column_names}
    columns = {label: names[label.casefold()] for label in task.labels if label.casefold() in names}
    scores = None
    if "scores" in table.column_names:
        scores = _vectors(path, table["scores"], task, labels is not None)
    elif len(columns) == len(task.labels):
        scores = np.stack([_numbers(path, table[columns[label]]) for label in task.labels], axis=1)
    if "prediction" in table.column_names:
        predictions = role_columns(parts, {"label": True}, {"label": "prediction"})["label"]
        said = _label_numbers(path, predictions.to_pylist(), task, labels)
    elif scores is not None:
        said = task.said(scores)
    else:
        lacking = f" (of {len(columns)} labels found, of {len(task.labels)} expected)" if columns else ""
        raise DataError(
            f"{path} has neither a column 'prediction' nor scores of all labels{lacking}; found: "
            f"{', '.join(first_problems([repr(name) for name in table.column_names]))}; expected 'prediction', "
            f"'scores', or one column for each of: {', '.join(task.labels)}"
        )
    ordered = None if scores is None else scores[order].astype(np.float32)
    return Predicted(path, task, task.default_score(), rows, said[order], ordered, (), None)


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


FOREIGN: Mapping[str, type[Classifier]] = {
    "ForSequenceClassification": TextClassification,
    "ForImageClassification": ImageClassification,
}
"""How the name of a model's class ends -> the task that it does."""


def _foreign_kind(model: str, pretrained: Pretrained) -> type[Classifier]:
    """The task of a model with a classification head that pmray did not train."""
    heads = list(_config(pretrained).architectures or ())
    found = [kind for end, kind in FOREIGN.items() if any(head.endswith(end) for head in heads)]
    if not found:
        raise CandidateUnavailable(
            f"{model} has no classification head (its config.json says {', '.join(heads) or 'nothing of one'}, "
            f"expected {' or '.join(f'…{end}' for end in FOREIGN)}), so that it says nothing of labels; `pmray fit` "
            "gives it one"
        )
    return found[0]


def _config(pretrained: Pretrained) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(pretrained.folder, trust_remote_code=False, local_files_only=True)


def _as_bundle(
    pretrained: Pretrained,
    kind: type[Classifier],
    rows: LabelledRows,
    labels: Sequence[str] | None,
) -> Bundle:
    """Describe a model with a classification head as if it were a bundle, with the labels of the data."""
    model, config = pretrained.candidate.model, _config(pretrained)
    if config.problem_type == "regression" or config.num_labels == 1:
        raise CandidateUnavailable(f"{model} predicts one number (regression), not labels; it cannot be scored on them")
    _refuse_untrained_head(model, pretrained.folder, config, kind.head)
    problem = config.problem_type
    if problem is not None and (problem == "multi_label_classification") != rows.multi_label:
        says, has = ("any number of labels", "one") if not rows.multi_label else ("one label", "lists of them")
        raise DataError(f"{model} says {says} a row (problem_type {problem}), but the data has {has}; they do not fit")
    found = [str(config.id2label[number]) for number in range(config.num_labels)]
    task = _task_of(rows, match_labels(found, rows.labels, labels, model=model), kind)
    check_processor(task, pretrained)
    settings = {
        "name": model,
        "task": task.to_json(),
        "metric": task.default_score(),
        "max_length": min(MAX_LENGTH, pretrained.max_positions or MAX_LENGTH),
    }
    return Bundle(Path(pretrained.folder), settings, task)


def _refuse_untrained_head(model: str, folder: str, config: Any, head: str) -> None:
    """Transformers fills weights that a file lacks with random numbers; of a head these would be scored as a model."""
    import torch
    import transformers
    from safetensors import safe_open

    with torch.device("meta"):
        empty = getattr(transformers, head).from_config(config, trust_remote_code=False)
    body = f"{empty.base_model_prefix}."
    there: set[str] = set()
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            there.update(tensors.keys())
    if lacking := [name for name, _ in empty.named_parameters() if not name.startswith(body) and name not in there]:
        raise CandidateUnavailable(
            f"{model} lacks the weights of its head ({', '.join(lacking)}), which would be random; save all of "
            "it with `save_pretrained`"
        )


def _scorer(bundle: Bundle, model: str) -> Scorer:
    """Open a bundle's weights; decoders without a padding token of their own take the tokenizer's."""
    try:
        scorer = Scorer(bundle)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CandidateUnavailable(f"{model} cannot be opened ({reason}); are its files whole?") from None
    config: Any = scorer.model.config
    if scorer.task.reader == "tokenizer" and config.pad_token_id is None:
        config.pad_token_id = scorer.processor.pad_token_id
    return scorer


def _known_rows(data: Source, task: Task, trained: Mapping[str, str], given: Mapping[str, str]) -> LabelledRows:
    """Read rows for a model that knows its labels, and refuse others.

    Args:
        data: Labelled rows.
        task: The model's.
        trained: Role -> column that it was trained with. Groups are used where these rows have them too.
        given: Role -> column that the user names.
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
    roles = {role: needed and (inputs or role == "label") for role, needed in kind.columns.items()}
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


def _task_of(rows: LabelledRows, labels: Sequence[str], kind: type[Classifier]) -> Classifier:
    try:
        return kind.from_data(Data(train="evaluated", labels=list(labels)), rows.table)
    except ValidationError as error:
        raise DataError(f"labels {list(labels)} cannot be used: {error.errors()[0]['msg']}") from None


def _as_in_data(names: Sequence[str], expected: Sequence[str]) -> tuple[str, ...]:
    """Write names as the data does where they differ in case alone, and in nothing else from exactly one label."""
    folded = Counter(label.casefold() for label in expected)
    by_fold = {label.casefold(): label for label in expected if folded[label.casefold()] == 1}
    return tuple(name if name in expected else by_fold.get(name.casefold(), name) for name in names)


def _order(path: str, table: pa.Table, rows: LabelledRows) -> NDArray[np.int64]:
    """Position in the file of each row of the data, shape (rows,)."""
    wanted = rows.table["row_id"].to_pylist()
    if "row_id" not in table.column_names:
        if len(table) != len(wanted):
            raise DataError(
                f"{path} has {len(table)} predictions, but the data has {len(wanted)} rows; without a column 'row_id' "
                "there must be one for each row, in order"
            )
        _refuse_other_texts(path, table, rows)
        return np.arange(len(wanted))
    found = table["row_id"].cast(pa.string()).to_pylist()
    known = set(wanted)
    problems = {
        "has rows twice": [one for one, count in Counter(found).items() if count > 1],
        "predicts rows that the data does not have": [one for one in dict.fromkeys(found) if one not in known],
        "lacks rows": [one for one in wanted if one not in set(found)] if len(set(found) & known) < len(known) else [],
    }
    if told := [
        f"{path} {what}: {len(ids)}, such as {', '.join(repr(one) for one in ids[:3])}"
        for what, ids in problems.items()
        if ids
    ]:
        raise DataError(
            [
                *told,
                f"expected each of the {len(wanted)} rows once, from {wanted[0]!r} to {wanted[-1]!r}; repair the file, "
                "or leave out the column 'row_id' when it is in the order of the data",
            ]
        )
    place = {row_id: position for position, row_id in enumerate(found)}
    return np.array([place[row_id] for row_id in wanted], dtype=np.int64)


def _refuse_other_texts(path: str, table: pa.Table, rows: LabelledRows) -> None:
    """Where the file repeats the texts, they must be those of the data."""
    name = rows.names.get("text")
    if name is None or name not in table.column_names:
        return
    pairs = zip(table[name].to_pylist(), rows.table["text"].to_pylist(), strict=True)
    for number, (theirs, ours) in enumerate(pairs, start=1):
        if str(theirs) != ours:
            raise DataError(
                f"{path} predicts other rows: in row {number} its {name!r} is {str(theirs)[:60]!r}, but that of the "
                f"data is {str(ours)[:60]!r}; put it in the order of the data, or give it a column 'row_id'"
            )


def _label_numbers(path: str, values: Sequence[Any], task: Classifier, given: Sequence[str] | None) -> Any:
    """Predicted labels in the form of ``task.targets``."""
    bits = np.zeros((len(values), len(task.labels)), dtype=np.int8)
    problems = []
    for row, value in enumerate(values):
        if task.multi_label:
            names = value.split("|") if isinstance(value, str) else value or []
        else:
            names = value if isinstance(value, list) else [value] if value is not None else []
            if len(names) != 1:
                problems.append(f"{path}, row {row + 1}: expected one label, found {names or 'none'}")
                continue
        for name in _as_in_data([_named(one.strip(), given) for one in names], task.labels):
            if name in task.labels:
                bits[row, task.labels.index(name)] = 1
            else:
                problems.append(f"{path}, row {row + 1}: prediction {name!r} is no label of the data")
    if problems:
        hint = f"the labels are {', '.join(task.labels)}; one that the data happens to lack can be named by `--labels`"
        raise DataError([*first_problems(problems, 5), hint])
    return bits if task.multi_label else bits.argmax(1)


def _named(name: str, given: Sequence[str] | None) -> str:
    """What ``LABEL_1`` stands for."""
    number = int(name.removeprefix("LABEL_")) if given and UNNAMED.fullmatch(name) else -1
    return given[number] if given and 0 <= number < len(given) else name


def _vectors(path: str, column: pa.ChunkedArray, task: Task, in_order: bool) -> NDArray[np.float64]:
    """Score vectors from objects or lists, shape (rows, labels)."""
    scores = np.zeros((len(column), len(task.labels)))
    for row, value in enumerate(column.to_pylist()):
        where = f"{path}, row {row + 1}: `scores`"
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise DataError(f"{where} is {value[:60]!r}, expected an object or list of numbers in JSON") from None
        if isinstance(value, Mapping):
            named = dict(zip(_as_in_data(list(value), task.labels), value.values(), strict=True))
            if set(named) != set(task.labels):
                raise DataError(f"{where} has {', '.join(named)}; expected one of each of: {', '.join(task.labels)}")
            value = [named[label] for label in task.labels]
        elif not in_order:
            raise DataError(f"{where} is a list, whose order only `--labels` can tell, such as {','.join(task.labels)}")
        if not isinstance(value, list) or len(value) != len(task.labels):
            raise DataError(f"{where} is {str(value)[:60]}, expected {len(task.labels)} numbers")
        scores[row] = [_number(one, where) for one in value]
    return scores


def _numbers(path: str, column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.array([_number(value, f"{path}, row {row}: a score") for row, value in enumerate(column.to_pylist(), 1)])


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where} is {value!r}, expected a number")
    return number


def _pair(task: Task) -> bool:
    return bool(getattr(task, "pair", False))
