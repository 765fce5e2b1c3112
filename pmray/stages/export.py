"""The winner's weights become a bundle: a folder that stands alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pmray.bundle import GOLDEN_ROWS, REFERENCE, REFERENCE_ROWS, SETTINGS, Bundle, open_bundle, write_settings
from pmray.data.encode import encode_table, read_arrow
from pmray.live.reference import reference_table
from pmray.report.card import CardFacts, model_card
from pmray.report.cost import cost_of
from pmray.run import Run, environment
from pmray.selection.ledger import Outcome, latest
from pmray.selection.verdict import Verdict
from pmray.spec import HubSource, Recipe
from pmray.stages.preparation import Prepared
from pmray.training.prediction import predict
from pmray.training.trial import FACTS, checkpoint_folder, open_task, recipe_length, score_column


def is_exported(run: Run, fit: Outcome) -> bool:
    """Whether the run's bundle holds the weights of this fit."""
    return (run.bundle / SETTINGS).is_file() and open_bundle(run.bundle).settings["key"] == fit.key


def has_weights(run: Run, fit: Outcome) -> bool:
    """Whether the weights of this fit are on disk, as a checkpoint or as the bundle."""
    return (checkpoint_folder(run.folder, fit.key) / FACTS).is_file() or is_exported(run, fit)


def export(
    prepared: Prepared,
    run: Run,
    fit: Outcome,
    folder: Path,
    *,
    verdict: Verdict | None = None,
    deployed_score: float | None = None,
) -> Path:
    """Put a fit's weights, settings, golden rows and card into a folder, replacing what it held.

    Args:
        prepared: The job.
        run: Holds the checkpoint.
        fit: A fit whose weights were saved.
        folder: Of the bundle; it is there whole or not at all.
        verdict: What was decided, when the fit is a winner.
        deployed_score: The fit's own score on the test rows, which an endpoint must reach again.

    Returns:
        `folder`.
    """
    one = prepared.pretrained(fit.candidate)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint_folder(run.folder, fit.key), partial, ignore=shutil.ignore_patterns(FACTS))
    line = verdict.line(verdict.winner) if verdict else None
    task = open_task(fit.facts["task"])
    settings = {
        "name": prepared.spec.name,
        "key": fit.key,
        "task": task.to_json(),
        "metric": prepared.metric,
        "score": asdict(line.score) if line else None,
        "corrected_score": asdict(verdict.corrected) if verdict else None,
        "deployed_score": deployed_score,
        "validation_score": fit.score,
        "latency_ms": fit.facts.get("latency_ms"),
        "temperature": fit.facts.get("temperature"),
        "parameters": fit.facts.get("parameters"),
        "max_length": recipe_length(Recipe(**fit.recipe), one),
        "candidate": {"model": one.candidate.model, "layers": one.candidate.layers, "revision": one.revision},
        "recipe": dict(fit.recipe),
        "seed": fit.seed,
        "columns": dict(prepared.spec.data.columns),
        "data": prepared.dataset.key,
        "rows": {
            "train": len(prepared.dataset.train),
            "validation": len(prepared.dataset.validation),
            "test": len(prepared.dataset.test),
        },
        "pmray_version": environment()["versions"]["pmray"],
    }
    (partial / SETTINGS).write_text(json.dumps(settings, default=float))
    bundle = open_bundle(partial)
    golden, reference = _samples(prepared, bundle)
    pq.write_table(reference, partial / REFERENCE)
    card = model_card(settings, verdict, _card_facts(prepared, run, fit.candidate))
    write_settings(partial, settings, golden, card)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(folder)
    run.keep(folder.relative_to(run.folder).as_posix())
    return folder


def _card_facts(prepared: Prepared, run: Run, name: str) -> CardFacts:
    """What a card tells of base model, data and cost."""
    one, data = prepared.pretrained(name), prepared.spec.data
    given = data.train if isinstance(data.train, list) else [data.train]
    hub = [source.hub.path for source in given if isinstance(source, HubSource)]
    hub += [source.removeprefix("hub:") for source in given if isinstance(source, str) and source.startswith("hub:")]
    files = [Path(source).name for source in given if isinstance(source, str) and not source.startswith("hub:")]
    column = prepared.dataset.train["label"].combine_chunks()
    labels = (column if pa.types.is_string(column.type) else column.flatten()).to_pylist()
    return CardFacts(
        licence=one.licence,
        languages=one.languages,
        sources=[*hub, *files],
        hub_data=hub,
        label_counts=Counter(labels).most_common(),
        warnings=[finding.message for finding in prepared.findings if finding.severity == "warning"],
        cost=cost_of(
            latest(run.ledger.outcomes).values(),
            {candidate.name: prepared.spec.resources_of(candidate) for candidate in prepared.spec.candidates},
        ),
    )


def _samples(prepared: Prepared, bundle: Bundle) -> tuple[pa.Table, pa.Table]:
    """Golden rows, which are a few validation rows over all lengths with the score vectors that the exported weights
    give; and the reference, which is what those say of more of them.
    """
    table = read_arrow(prepared.cache / f"data-{prepared.dataset.key}" / "validation.arrow")
    model, processor = bundle.open_model()
    some = np.linspace(0, len(table) - 1, min(REFERENCE_ROWS, len(table))).astype(int)
    table = table.take(pa.array(some))
    encoded = encode_table(bundle.task, table, processor, bundle.max_length)
    scores = predict(model, bundle.task, encoded)
    spread = np.linspace(0, len(table) - 1, min(GOLDEN_ROWS, len(table))).astype(int)
    chosen = np.argsort(encoded.lengths, kind="stable")[spread]
    roles = [role for role in table.column_names if role not in ("label", "group")]
    golden = table.select(roles).take(pa.array(chosen)).append_column("scores", score_column(scores[chosen]))
    rows = [bundle.task.sent(row) for row in table.select(roles).to_pylist()]
    return golden, reference_table(bundle.task, rows, scores, encoded.lengths)
