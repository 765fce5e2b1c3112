"""The report of a run: reads its folder, and writes one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pmray.data.encode import read_arrow
from pmray.data.load import read_sealed
from pmray.errors import DataError
from pmray.report.html import write_page
from pmray.report.row_facts import Predictions, RowFacts, row_facts
from pmray.report.run_page import RunFacts, run_page
from pmray.run import FINDINGS, LEDGER, REPORT, VERDICT, read_json
from pmray.selection.ledger import Outcome, latest, read_ledger
from pmray.spec import CACHE
from pmray.training.trial import open_task, predictions_folder, read_predictions


def write_report(run: str | Path, path: str | Path | None = None, *, show_rows: bool = True) -> Path:
    """Write what a run found as one HTML file that needs neither network nor scripts.

    A run that is not decided is told as far as it has come; its test labels stay sealed.

    Args:
        run: The run folder.
        path: Of the report; by default ``report.html`` in the run folder.
        show_rows: Whether texts and images of test rows are shown. Without them the report can be shared where the
            data cannot.

    Raises:
        LedgerError: A file of the run cannot be read.
        DataError: `path` cannot be written.
    """
    folder = Path(run)
    page = run_page(run_facts(folder, show_rows=show_rows))
    return write_page(Path(path) if path else folder / REPORT, page)


def run_facts(folder: Path, *, show_rows: bool = True) -> RunFacts:
    """Read all that a report is made from.

    Raises:
        LedgerError: A file of the run cannot be read.
    """
    outcomes = list(latest(read_ledger(folder / LEDGER)).values())
    verdict = read_json(folder / VERDICT)
    spec_file = folder / "spec.yaml"
    spec_text = spec_file.read_text() if spec_file.is_file() else ""
    rows, why = None, ""
    if verdict:
        try:
            rows = _row_facts(folder, outcomes, verdict, show_rows)
        except (DataError, OSError) as error:
            why = f"Predictions or rows are gone, so nothing can be said row by row ({error})."
    return RunFacts(
        name=folder.name,
        folder=str(folder),
        outcomes=outcomes,
        verdict=verdict,
        findings=read_json(folder / FINDINGS) or [],
        environment=read_json(folder / "environment.json") or {},
        spec=yaml.safe_load(spec_text) or {},
        spec_text=spec_text,
        rows=rows,
        without_rows=why,
    )


def _row_facts(folder: Path, outcomes: list[Outcome], verdict: dict[str, Any], show_rows: bool) -> RowFacts:
    """Facts of the rows on which the verdict stands."""
    opened = next(one for one in reversed(outcomes) if one.stage == "test")
    cache, data = folder.parent / CACHE, opened.facts["data"]
    labels = read_sealed(cache, data)
    table = read_arrow(cache / f"data-{data}" / "test.arrow")
    models = [line["name"] for line in verdict["lines"] if not line["baseline"]]
    fits = [one for one in outcomes if one.key in opened.facts["fits"]]
    best = _predictions(folder, fits, verdict["winner"])
    others = [name for name in models if name != verdict["winner"]]
    other = _predictions(folder, fits, others[0]) if others else None
    return row_facts(best, other, labels, table, verdict["metric"], show_rows=show_rows)


def _predictions(folder: Path, fits: list[Outcome], name: str) -> Predictions:
    """What the exported fit of a model, its best on validation, says of the test rows."""
    best = max((one for one in fits if one.candidate == name), key=lambda one: (one.score or 0.0, -one.seed))
    _, scores = read_predictions(predictions_folder(folder, best.key) / "test.parquet")
    return Predictions(name, open_task(best.facts["task"]), scores)
