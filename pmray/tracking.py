"""A run in MLflow, so that its pages alone tell the story: sweep > candidate > trial, with curves, data and files.

Everything is taken from the ledger and may be written any number of times: what MLflow has already stays as it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pmray.bundle import Bundle
from pmray.errors import RegistryError
from pmray.registry import open_client
from pmray.run import FINDINGS, LEDGER, REPORT, VERDICT, Run, read_json
from pmray.selection.ledger import Outcome, latest
from pmray.spec import digest
from pmray.stages.preparation import Prepared

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SWEEP, KEY, EXAMPLES = "pmray.sweep", "pmray.key", "pmray.examples"
"""Tags by which runs are found again, and which say how far a trial had come when it was written."""
STATES = {"done": "FINISHED", "stopped": "KILLED"}
"""State of an outcome -> status of its MLflow run; all others have failed."""
LONGEST = 5_000
"""Characters of a tag."""
MEASURED = ("loss", "train_seconds", "examples_per_second", "latency_ms", "parameters", "temperature")
"""Facts of a trial that are numbers worth a chart."""
MLMODEL = "MLmodel"
FILES = ("spec.yaml", "environment.json", LEDGER, FINDINGS, VERDICT)


class Split(NamedTuple):
    """Rows that a run used."""

    context: str
    """``training``, ``validation`` or ``test``."""
    name: str
    source: str
    rows: int
    columns: Mapping[str, str]
    """Column -> type."""


class Story(NamedTuple):
    """What MLflow is told of a run."""

    name: str
    """Of the run; names the experiment."""
    metric: str
    outcomes: Sequence[Outcome]
    """The latest of each key, oldest first."""
    params: Mapping[str, Any]
    """Of the sweep as a whole."""
    verdict: Mapping[str, Any] | None
    data: str
    """Key of the data."""
    splits: Sequence[Split]
    files: Sequence[Path]
    """Artefacts of the sweep."""


def story_of(prepared: Prepared, run: Run) -> Story:
    """What MLflow is told of a run, decided or not."""
    spec, data = prepared.spec, prepared.dataset
    tables = {"training": data.train, "validation": data.validation, "test": data.test}
    sources = {"training": spec.data.train, "validation": spec.data.validation, "test": spec.data.test}
    splits = [
        Split(
            context,
            f"{spec.name} {context}",
            str(sources[context]) if not isinstance(sources[context], float) else f"{sources[context]:g} of train",
            len(table),
            dict.fromkeys(table.column_names, "string"),
        )
        for context, table in tables.items()
    ]
    params = {
        "task": spec.task,
        "metric": prepared.metric,
        "data": data.key,
        **{f"search.{name}": value for name, value in spec.search.model_dump(exclude_none=True).items()},
        **{f"decide.{name}": value for name, value in spec.decide.model_dump(exclude_none=True).items()},
    }
    return Story(
        name=spec.name,
        metric=prepared.metric,
        outcomes=list(latest(run.ledger.outcomes).values()),
        params=params,
        verdict=read_json(run.folder / VERDICT),
        data=data.key,
        splits=splits,
        files=[run.folder / name for name in (*FILES, REPORT)],
    )


def track(story: Story, uri: str) -> dict[str, str]:
    """Write a run to MLflow.

    Args:
        story: What to write.
        uri: MLflow tracking URI.

    Returns:
        Key of an outcome -> id of its MLflow run.

    Raises:
        RegistryError: MLflow cannot be reached, or refuses.
    """
    from mlflow.exceptions import MlflowException

    client = open_client(uri)
    try:
        return _write(story, client, uri)
    except (MlflowException, OSError) as error:
        told = getattr(error, "message", str(error))
        raise RegistryError(f"{uri} refused the runs of {story.name!r}: {told}") from None


def _write(story: Story, client: MlflowClient, uri: str) -> dict[str, str]:
    experiment = _experiment(client, story.name, uri)
    # A run that goes on has the same first line; one that began anew has another.
    first = story.outcomes[0]
    sweep = digest(f"{first.key} {first.time}")
    known, told = _known(client, experiment, sweep)

    def run(key: str, name: str, parent: str | None, began: int, **tags: str) -> str:
        if key not in known:
            named = {SWEEP: sweep, KEY: key, **tags} | ({"mlflow.parentRunId": parent} if parent else {})
            known[key] = client.create_run(experiment, began, named, name).info.run_id
        return known[key]

    began = min(_times(one)[0] for one in story.outcomes)
    ended = max(_times(one)[1] for one in story.outcomes)
    whole = run(sweep, story.name, None, began, **{"pmray.stage": "sweep"})
    written = {}
    for candidate, outcomes in _by_candidate(story.outcomes).items():
        start, end = min(_times(one)[0] for one in outcomes), max(_times(one)[1] for one in outcomes)
        one = run(f"{sweep} {candidate}", candidate, whole, start, **{"pmray.stage": "candidate"})
        for number, outcome in enumerate(outcomes, start=1):
            if outcome.stage == "rank":
                continue
            name = f"{candidate}, seed {outcome.seed}" if outcome.stage == "final" else f"{candidate}, {number}"
            written[outcome.key] = run(outcome.key, name, one, _times(outcome)[0], **{"pmray.stage": outcome.stage})
            before = told.get(outcome.key)
            if before != outcome.examples:
                _write_trial(
                    client, written[outcome.key], outcome, story.metric, after=-1 if before is None else before
                )
        _write_candidate(client, one, candidate, outcomes, story)
        client.set_terminated(one, "FINISHED" if any(_ended_well(o) for o in outcomes) else "FAILED", end)
    _write_sweep(client, whole, story)
    client.set_terminated(whole, "FINISHED" if story.verdict else "KILLED", ended)
    return written


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    # A database file has no folder of its own for artefacts, and MLflow would take the present directory.
    place = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / name if uri.startswith("sqlite:///") else None
    # Else its pages open among those for prompts and traces.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(name, place.absolute().as_uri() if place else None, tags=kind))


def _known(client: MlflowClient, experiment: str, sweep: str) -> tuple[dict[str, str], dict[str, int]]:
    """Key -> id of the runs that MLflow has, and key -> examples of the trials among them that are written."""
    found: dict[str, str] = {}
    told: dict[str, int] = {}
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{SWEEP}` = '{sweep}'", max_results=1000, page_token=token)
        found |= {one.data.tags[KEY]: one.info.run_id for one in page}
        told |= {one.data.tags[KEY]: int(one.data.tags[EXAMPLES]) for one in page if EXAMPLES in one.data.tags}
        if not (token := page.token):
            return found, told


def _by_candidate(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for one in outcomes:
        if one.stage in ("rank", "sweep", "final", "baseline"):
            found.setdefault(one.candidate, []).append(one)
    return found


def _ended_well(outcome: Outcome) -> bool:
    return outcome.status in STATES


def _times(outcome: Outcome) -> tuple[int, int]:
    """Beginning and end, in milliseconds since 1970."""
    end = datetime.fromisoformat(outcome.time).timestamp()
    return int(1000 * (end - outcome.seconds)), int(1000 * end)


def _write_trial(client: MlflowClient, run: str, outcome: Outcome, metric: str, *, after: int) -> None:
    """Write a trial, of one that went on only what came after so many examples."""
    from mlflow.entities import Metric, Param, RunTag

    start, end = _times(outcome)
    examples = max((seen for seen, _ in outcome.curve), default=0)
    metrics = [
        # When a rung was reached is not recorded: examples are seen at an even pace.
        Metric(f"validation_{metric}", score, start + (end - start) * seen // max(1, examples), seen)
        for seen, score in outcome.curve
        if seen > after
    ]
    if outcome.score is not None:
        metrics.append(Metric("best", outcome.score, end, 0))
    if interval := outcome.facts.get("interval"):
        metrics += [
            Metric(f"best_{side}", value, end, 0) for side, value in zip(("low", "high"), interval, strict=True)
        ]
    measured = _numbers({name: outcome.facts.get(name) for name in MEASURED})
    metrics += [Metric(name, value, end, 0) for name, value in measured.items()]
    metrics.append(Metric("seconds", outcome.seconds, end, 0))
    params = {"candidate": outcome.candidate, "seed": outcome.seed, **outcome.recipe}
    tags = {"pmray.status": outcome.status, "host": outcome.facts.get("host"), "pmray.error": outcome.error}
    tags[EXAMPLES] = str(outcome.examples)
    client.log_batch(
        run,
        metrics,
        [Param(name, str(value)) for name, value in params.items()],
        [RunTag(name, str(value)[:LONGEST]) for name, value in tags.items() if value],
    )
    client.set_terminated(run, STATES.get(outcome.status, "FAILED"), end)


def _write_candidate(client: MlflowClient, run: str, name: str, outcomes: Sequence[Outcome], story: Story) -> None:
    """The best score, what the rank stage said, and the test scores of a finalist."""
    from mlflow.entities import Metric

    end = max(_times(one)[1] for one in outcomes)
    metrics = {}
    if scores := [one.score for one in outcomes if one.score is not None]:
        metrics["best"] = max(scores)
    metrics["trials"] = float(sum(one.stage == "sweep" for one in outcomes))
    for one in outcomes:
        if one.stage == "rank":
            metrics |= {
                f"rank_{_plain(proxy)}": value for proxy, value in _numbers(one.facts.get("proxies", {})).items()
            }
    lines = story.verdict["lines"] if story.verdict else ()
    if line := next((line for line in lines if line["name"] == name), None):
        metrics |= _test_metrics(line, story.metric)
        metrics |= {"group": float(line["group"])}
    facts: dict[str, Any] = {}
    for one in outcomes:
        facts |= {key: one.facts[key] for key in ("family", "revision") if key in one.facts}
    client.log_batch(run, [Metric(key, value, end, 0) for key, value in metrics.items()])
    _add_params(client, run, {"candidate": name, **facts})


def _write_sweep(client: MlflowClient, run: str, story: Story) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

    _add_params(client, run, story.params)
    if verdict := story.verdict:
        end = max(_times(one)[1] for one in story.outcomes)
        line = next(line for line in verdict["lines"] if line["name"] == verdict["winner"])
        corrected = {f"corrected_{side}": verdict["corrected"][side] for side in ("value", "low", "high")}
        metrics = {**_test_metrics(line, story.metric), **corrected}
        client.log_batch(run, [Metric(key, float(value), end, 0) for key, value in metrics.items()])
        client.set_tag(run, "winner", verdict["winner"])
        # MLflow shows this as the description of a run.
        client.set_tag(run, "mlflow.note.content", "\n\n".join(verdict["words"])[:LONGEST])
    inputs = []
    for split in story.splits:
        schema = {"mlflow_colspec": [{"name": name, "type": kind} for name, kind in split.columns.items()]}
        dataset = Dataset(
            name=split.name,
            digest=story.data,
            source_type="local",
            source=json.dumps({"uri": split.source}),
            schema=json.dumps(schema),
            profile=json.dumps({"num_rows": split.rows}),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split.context)]))
    client.log_inputs(run, inputs)
    for file in story.files:
        if file.is_file():
            client.log_artifact(run, str(file))


def _add_params(client: MlflowClient, run: str, params: Mapping[str, Any]) -> None:
    """Write parameters; those that have changed since, as a spec may, become tags, for MLflow keeps the first value."""
    from mlflow.entities import Param, RunTag

    known = client.get_run(run).data.params
    told = {name: str(value)[:LONGEST] for name, value in params.items()}
    new = [Param(name, value) for name, value in told.items() if name not in known]
    changed = [RunTag(f"now: {name}", value) for name, value in told.items() if known.get(name, value) != value]
    client.log_batch(run, params=new, tags=changed)


def _test_metrics(line: Mapping[str, Any], metric: str) -> dict[str, float]:
    found = {f"test_{name}": float(score["value"]) for name, score in line["metrics"].items()}
    return found | {f"test_{metric}_{side}": float(line["score"][side]) for side in ("low", "high")}


def _numbers(facts: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in facts.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _plain(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w./-]+", "_", name)


def describe_model(bundle: Bundle) -> tuple[str, ...]:
    """Add MLflow's description to a bundle: signature, input example, and how ``mlflow.pyfunc`` opens it.

    Then ``mlflow.pyfunc.load_model("models:/NAME@champion").predict(rows)`` answers as the endpoint does.

    Returns:
        Names of the files.
    """
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model, infer_signature

    golden = bundle.golden().to_pylist()
    scores = [np.array(row.pop("scores"), np.float32) for row in golden]
    sent = pd.DataFrame([dict(bundle.task.sent(row)) for row in golden])[list(bundle.task.inputs)]
    answers = pd.DataFrame([bundle.task.answer(*one) for one in zip(scores, golden, strict=True)])
    example = "input_example.json"
    (bundle.folder / example).write_text(sent.head(2).to_json(orient="split", index=False))
    model = Model(
        signature=infer_signature(sent, answers),
        saved_input_example_info={"artifact_path": example, "type": "dataframe", "pandas_orient": "split"},
    )
    pyfunc.add_to_model(model, loader_module="pmray.mlflow_model")
    model.save(str(bundle.folder / MLMODEL))
    return MLMODEL, example
