"""Brute force, recorded: every candidate with every recipe, to its end, on several data sets.

``python -m tests.bench.curves [DATA_SET...]`` goes on where it was interrupted. For each data set, and for each
repetition with other seeds, it writes a ledger into ``fits/`` beside this file: of each fit the
validation score after every so many examples, the score on the test rows, and what it took. ``tests.bench.sweep`` plays
ways of choosing on them, so that none needs training of its own, and so does ``pmray replay tests/bench/fits/*.jsonl``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from sklearn.metrics import f1_score

from pmray.demo.story import WEIGHTS
from pmray.distributed.cluster import connected
from pmray.distributed.rank import rank_candidates
from pmray.distributed.train import fit_all
from pmray.selection.ledger import Ledger, Outcome, outcome_of, read_ledger
from pmray.selection.search import Search
from pmray.spec import Recipe, Spec
from pmray.spec_file import spec_from
from pmray.stages.fitting import encode
from pmray.stages.preparation import Prepared, prepare
from pmray.training.trial import Facts, Work, predictions_folder, read_predictions, recipe_length

SHARED = Path(os.environ.get("PMRAY_SHARED", "../shared"))
RECORD = Path(__file__).parent / "fits"
DATA_SETS = ("sst2", "trec6", "sms_spam", "ag_news", "imdb")
ROWS = {"train": 600, "validation": 300, "test": 1000}
RECIPES = 8
"""Of each candidate: the default one, and random ones from its space."""
REPETITIONS = 3
"""Of all fits, with other seeds."""
BLOCK = 4
"""Recipes whose seeds are neighbours: so many were recorded at first, and the seeds of those stay what they were."""
SHARES = (1 / 9, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3)
"""Of a whole fit, after which it is scored: rungs of any reduction from 1.5 to 9."""


def spec_of(name: str, storage: Path, rows: Mapping[str, int] = ROWS, /, **changes: Any) -> Spec:
    """A bench data set, so many rows of each split, with seven candidates of three families' weights."""
    folder = storage / "data" / name
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in rows.items():
        if not (folder / f"{split}.parquet").is_file():
            table = pq.read_table(SHARED / "data" / "text_classification" / name / f"{split}.parquet")
            chosen = np.sort(np.random.default_rng(0).permutation(len(table))[:count])
            table = table.take(chosen).select(["text", "label_name"]).rename_columns(["text", "label"])
            pq.write_table(table, folder / f"{split}.parquet")
    recipe = {"epochs": 4, "max_length": 64}
    three, stories = (str(SHARED / "models" / one) for one in ("paraphrase-minilm-l3-v2", "stories260k-llama"))
    candidates = [
        {"name": "minilm-l6", "model": WEIGHTS},
        {"name": "minilm-l6-4", "model": WEIGHTS, "layers": 4},
        {"name": "minilm-l6-2", "model": WEIGHTS, "layers": 2},
        {"name": "minilm-l3", "model": three},
        {"name": "minilm-l3-2", "model": three, "layers": 2},
        {"name": "stories", "model": stories},
        {"name": "stories-3", "model": stories, "layers": 3},
    ]
    spec: dict[str, Any] = {
        "name": name,
        "task": "text-classification",
        "data": {split: str(folder / f"{split}.parquet") for split in rows},
        "candidates": [{**one, "recipe": recipe} for one in candidates],
        "score": "f1_macro",
        "storage": str(storage / "runs"),
    }
    return spec_from({**spec, **changes})


def works_of(prepared: Prepared, repetition: int, folder: Path) -> Iterator[Work]:
    """Fits of all candidates, first those with the default recipes."""
    searches = {
        name: Search([arm], algorithm="random", seed=100 * place)
        for place, (name, arm) in enumerate(prepared.arms.items())
    }
    for number in range(RECIPES):
        block, place = divmod(number, BLOCK)
        for name, search in searches.items():
            seed = place + BLOCK * (repetition + REPETITIONS * block)
            work = prepared.work("final", name, search.ask().recipe, seed, folder)
            yield replace(work, rungs=(*(round(share * work.budget) for share in SHARES), work.budget))


def rank(prepared: Prepared) -> dict[str, dict[str, Any]]:
    """Proxies and seconds of every candidate."""
    rows, found = prepared.ranking_rows(), {}
    rank_candidates(
        prepared.candidates,
        {one.name: prepared.spec.resources for one in prepared.candidates},
        prepared.task.to_json(),
        prepared.metric,
        prepared.spec.location(prepared.cache),
        {
            one.name: prepared.encodings[one.name, recipe_length(prepared.arms[one.name].default, one)]
            for one in prepared.candidates
        },
        rows,
        prepared.task.targets(prepared.dataset.train)[rows],
        lambda one, scores, cost, error, seconds: found.update(
            {one.name: {"proxies": scores, "rank_seconds": seconds}}
        ),
    )
    return found


def record(name: str, repetition: int, storage: Path, console: Console) -> None:
    """Carry out fits of a data set that are not recorded yet."""
    spec = spec_of(name, storage)
    known = {one.key for one in read(name, repetition)}
    prepared = prepare(spec, console)
    truth = _truth(prepared)
    works = list(works_of(prepared, repetition, spec.folder))
    defaults = {work.key for work in works[: len(prepared.arms)]}
    left = [work for work in works if work.key not in known]
    if not left:
        return
    with connected() as cluster:
        encode(prepared, cluster, console)

        def ended(work: Work, facts: Facts) -> None:
            outcome = outcome_of(work, facts, "sweep")
            told = {
                name: outcome.facts[name] for name in ("family", "budget", "train_seconds") if name in outcome.facts
            }
            if facts.status == "done":
                told["test"] = _tested(work, spec.folder, truth)
            told["default"] = work.key in defaults
            Ledger(file_of(name, repetition)).append(replace(outcome, facts=told))
            console.print(f"{name}: {work.pretrained.name} {facts.status} {facts.score} {facts.seconds:.0f} s")

        _fit(prepared, left, ended)


def fit_anew(chosen: Outcome, spec: Spec, seeds: Sequence[int], console: Console) -> float:
    """Mean score on the test rows of fits with the candidate and the recipe of another one, and these seeds."""
    prepared = prepare(spec, console)
    truth, found = _truth(prepared), []
    recipe = Recipe(**chosen.recipe)
    works = [prepared.work("final", chosen.candidate, recipe, seed, spec.folder) for seed in seeds]
    with connected() as cluster:
        encode(prepared, cluster, console)
        _fit(prepared, works, lambda work, facts: found.append(_tested(work, spec.folder, truth)))
    return float(np.mean(found))


def _fit(prepared: Prepared, works: Sequence[Work], ended: Callable[[Work, Facts], None]) -> None:
    """Carry out fits, two at a time; their weights are not kept."""

    def drop(work: Work, facts: Facts) -> None:
        ended(work, facts)
        shutil.rmtree(work.checkpoint, ignore_errors=True)

    resources = {work.key: prepared.spec.resources for work in works}
    scratch = prepared.spec.folder / ".ray"
    fit_all(works, resources, at_a_time=2, scratch=scratch, on_rung=lambda *_: None, on_end=drop)


def _truth(prepared: Prepared) -> NDArray[Any]:
    return prepared.task.targets(pq.read_table(prepared.spec.data.test))


def _tested(work: Work, folder: Path, truth: NDArray[Any]) -> float:
    """Macro F1 of a fit on the test rows."""
    _, scores = read_predictions(predictions_folder(folder, work.key) / "test.parquet")
    return float(f1_score(truth, scores.argmax(1), average="macro"))


def file_of(name: str, repetition: int) -> Path:
    """Where the fits of a data set are recorded."""
    return RECORD / (f"{name}-{repetition}.jsonl" if repetition else f"{name}.jsonl")


def read(name: str, repetition: int = 0) -> list[Outcome]:
    """The fits of a data set that are recorded."""
    file = file_of(name, repetition)
    return [one for one in read_ledger(file) if one.status == "done"] if file.is_file() else []


def main(*names: str) -> None:
    """Record what is not recorded yet."""
    storage, console = Path(gettempdir()) / "pmray-bench", Console(stderr=True, highlight=False)
    for repetition in range(REPETITIONS):
        for name in names or DATA_SETS:
            record(name, repetition, storage, console)
    console.print("all fits are recorded")


if __name__ == "__main__":
    main(*sys.argv[1:])
