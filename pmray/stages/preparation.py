"""What happens before compute is spent: load and check data, find candidates, settle recipes; and encoding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pmray import checking, plugins
from pmray.data.check import Finding
from pmray.data.encode import Shard, encode_splits, encoding_key
from pmray.data.load import Dataset, cached_data
from pmray.data.split import sample
from pmray.errors import CandidateUnavailable, NoVerdict, SpecError
from pmray.report.progress import steps
from pmray.selection.halving import compared_at
from pmray.selection.ledger import Outcome, Stage, outcome_key
from pmray.selection.population import generations
from pmray.selection.published import refuse_before_download
from pmray.selection.search import Arm
from pmray.spec import Candidate, Choice, Log, Recipe, Spec
from pmray.tasks.base import Task
from pmray.training.loop import rungs_of
from pmray.training.model import Pretrained, check_processor, check_rules, locate
from pmray.training.trial import Work, recipe_length

FEWEST_STEPS = 300
"""Optimizer steps of a default recipe, reached by more epochs where there are few rows."""
MOST_EPOCHS = 20


@dataclass(frozen=True)
class Prepared:
    """Checked data, sound candidates and their recipes; all that stages need, and nothing of Ray."""

    spec: Spec
    task: Task
    metric: str
    dataset: Dataset
    """``test`` has no labels: they stay sealed on disk."""
    findings: Sequence[Finding]
    cache: Path
    candidates: Sequence[Pretrained]
    unavailable: Mapping[str, str]
    """Candidate -> why it takes no part."""
    arms: Mapping[str, Arm]
    """Candidate -> default recipe and space."""
    rungs: Sequence[int]
    """Examples after which trials are compared, the same for all."""
    data_from_cache: bool
    encodings: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """(candidate, tokens of a row) -> key of the encoded data."""
    keep_states: bool = True
    """Whether fits under way keep their state."""
    packed: Mapping[str, int] = field(default_factory=dict)
    """Candidate -> training rows that its tokenizer packed the texts into, where a task packs them."""

    def pretrained(self, name: str) -> Pretrained:
        """The candidate of that name."""
        return next(one for one in self.candidates if one.name == name)

    def train_rows(self, name: str) -> int:
        """Rows of an epoch."""
        return self.packed.get(name, len(self.dataset.train))

    def key(self, stage: Stage, one: Pretrained, recipe: Mapping[str, object], seed: int, budget: int) -> str:
        """Key of an outcome; see ``outcome_key``."""
        identity = {"revision": one.revision, "layers": one.candidate.layers}
        settings = json.dumps([self.dataset.key, self.task.to_json(), self.metric], sort_keys=True)
        return outcome_key(stage, settings, identity, recipe, seed, budget)

    def work(
        self, stage: Stage, name: str, recipe: Recipe, seed: int, run: Path | None = None, *, states: Path | None = None
    ) -> Work:
        """Everything a worker must know for a trial.

        Args:
            stage: ``sweep`` or ``final``.
            name: Of the candidate.
            recipe: Its hyper-parameters.
            seed: Of the fit.
            run: Run folder to save weights and predictions to.
            states: Folder to keep states of the fit in.
        """
        one = self.pretrained(name)
        rows = self.train_rows(name)
        budget = rungs_of(recipe, rows, 0, 1)[-1]
        resources = self.spec.resources_of(one.candidate)
        early = [rung for rung in self.rungs if rung < budget] if stage == "sweep" else _epochs(recipe, rows, budget)
        return Work(
            # Only what was changed: keys then outlive new hyper-parameters.
            key=self.key(stage, one, recipe.model_dump(exclude_defaults=True), seed, budget),
            pretrained=one,
            recipe=recipe,
            seed=seed,
            task=self.task.to_json(),
            metric=self.metric,
            rungs=(*early, budget),
            cache=self.spec.location(self.cache),
            data=self.dataset.key,
            encoding=self.encodings[name, recipe_length(recipe, one)],
            run=None if run is None else self.spec.location(run),
            states=self.spec.location(states) if states and self.keep_states else None,
            state_seconds=self.spec.search.state_seconds,
            shard=resources.shard,
            checkpoint_activations=resources.checkpoint_activations,
        )

    def ranking_rows(self) -> NDArray[np.int64]:
        """Positions of the training rows on which candidates are ranked, a stratified sample."""
        train = self.dataset.train
        chosen = sample(train, self.spec.search.rank_rows, "label", self.spec.search.seed)["row_id"].to_pylist()
        place = {row_id: position for position, row_id in enumerate(train["row_id"].to_pylist())}
        return np.array(sorted(place[row_id] for row_id in chosen), dtype=np.int64)


def check_command(spec: Spec, *, labels: bool) -> None:
    """Refuse a spec of pre-training where models are chosen, and any other where they are pre-trained.

    Raises:
        SpecError: Says which command is meant.
    """
    has_labels = "label" in plugins.task_class(spec.task).columns
    if labels and not has_labels:
        raise SpecError(
            f"task {spec.task!r} has no labels to choose a model by: run it with `pmray pretrain`, and give the "
            "folder that this makes to another spec as a candidate."
        )
    if has_labels and not labels:
        raise SpecError(f"`pmray pretrain` needs `task: pretraining`, but the spec's task is {spec.task!r}.")


def prepare(spec: Spec, console: Console, *, strict: bool = False) -> Prepared:
    """Do everything that can fail cheaply before anything that is dear.

    Args:
        spec: The job.
        console: Progress and notes go here.
        strict: A candidate that cannot be had is an error, instead of a note.

    Raises:
        DataError: The data cannot be used; nothing was started.
        SpecError: The score does not fit the labels.
        CandidateUnavailable: With `strict`.
        NoVerdict: No candidate at all can be had.
    """
    kind = plugins.task_class(spec.task)
    cache = spec.cache
    with console.status("reading and checking data"):
        dataset, from_cache = cached_data(spec.data, kind.columns, cache)
        task: Task = kind.from_data(spec.data, dataset.train)
        metric = spec.score or task.default_score()
        task.check_score(metric)
        splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
        own = [finding for name, table in splits.items() for finding in task.check(table, name)]
    with console.status("looking for near-duplicates and wrong labels"):
        own += checking.findings_once(splits, task, dataset.key, cache)
    candidates, unavailable = _locate_all(spec, task, console, strict)
    rows = len(dataset.train)
    arms = {one.name: _arm(one, task, spec.candidate(one.name), rows) for one in candidates}
    own += checking.check_lengths(
        task, dataset.train, [(one, recipe_length(arms[one.name].default, one)) for one in candidates]
    )
    longest = max(rungs_of(arm.default, rows, 0, 1)[-1] for arm in arms.values())
    warmup = max(arm.default.warmup for arm in arms.values())
    batch = max(arm.default.batch_size for arm in arms.values())
    if spec.search.algorithm == "pbt":
        early = generations(longest, spec.search.rungs, warmup)
    else:
        early = compared_at(longest, spec.search.rungs, warmup, batch)
    rungs = [*early, longest]
    prepared = Prepared(
        spec=spec,
        task=task,
        metric=metric,
        dataset=dataset,
        findings=[*dataset.findings, *own],
        cache=cache,
        candidates=candidates,
        unavailable=unavailable,
        arms=arms,
        rungs=rungs,
        data_from_cache=from_cache,
    )
    keys = {
        (name, length): encoding_key(dataset.key, task, prepared.pretrained(name).processor, length)
        for name, arm in arms.items()
        for length in _lengths(arm, prepared.pretrained(name))
    }
    prepared = replace(prepared, encodings=keys)
    return prepared


Elsewhere = Callable[[Pretrained, str, int, Callable[[int], None], Sequence[Shard]], None]
"""Encodes shards on a cluster, given (candidate, key, length, progress, shards)."""


def encode_all(prepared: Prepared, console: Console, elsewhere: Elsewhere | None = None) -> int:
    """Encode the data for every tokenizer and length; returns the rows that were not in the cache.

    Args:
        prepared: The job.
        console: For progress.
        elsewhere: Does the work on a cluster; by default it is done here.
    """
    splits = {
        "train": prepared.dataset.train,
        "validation": prepared.dataset.validation,
        "test": prepared.dataset.test,
    }
    rows = sum(len(table) for table in splits.values())
    wanted = {key: (name, length) for (name, length), key in prepared.encodings.items()}
    done = 0
    with steps(console, "encoding", rows * len(wanted)) as advance:
        for key, (name, length) in wanted.items():
            one = prepared.pretrained(name)
            done += encode_splits(
                splits,
                prepared.task,
                partial(prepared.task.processor, one.folder),
                key=key,
                max_length=length,
                cache=prepared.cache,
                progress=advance,
                elsewhere=partial(elsewhere, one, key, length, advance) if elsewhere else None,
            )
    if done:
        console.print(f"encoded {rows} rows with {len(wanted)} tokenizer(s), once for all trials")
    else:
        console.print(f"encoded 0 rows: {rows} rows x {len(wanted)} tokenizer(s) are in the cache")
    return done


def unavailable_outcomes(prepared: Prepared) -> Iterator[Outcome]:
    """Ledger lines of the candidates that cannot be had; a new run looks again."""
    for name, reason in prepared.unavailable.items():
        key = outcome_key("sweep", prepared.dataset.key, {"model": prepared.spec.candidate(name).model}, {}, 0, 0)
        yield Outcome(key=key, stage="sweep", candidate=name, status="unavailable", error=reason, may_pass=True)


def _locate_all(spec: Spec, task: Task, console: Console, strict: bool) -> tuple[list[Pretrained], dict[str, str]]:
    found: list[Pretrained] = []
    missing: dict[str, str] = {}
    with steps(console, "finding candidates", len(spec.candidates)) as advance:
        for candidate in spec.candidates:
            try:
                refuse_before_download(candidate, spec.decide)
                one = locate(candidate)
                check_processor(task, one)
                check_rules(one, spec.decide)
                found.append(one)
            except CandidateUnavailable as error:
                if strict:
                    raise
                missing[candidate.name] = str(error)
            advance()
    for name, reason in missing.items():
        console.print(f"[magenta]unavailable[/] {name}: {reason}", markup=True)
    if not found:
        listed = "\n".join(f"  {reason}" for reason in missing.values())
        raise NoVerdict(f"no candidate can be had, so there is nothing to compare:\n{listed}")
    return found, missing


def _arm(one: Pretrained, task: Task, candidate: Candidate, rows: int) -> Arm:
    default = task.default_recipe(one.family, one.parameters).changed(candidate.recipe)
    faster = rate_factor(default) if "lr" not in candidate.recipe else 1.0
    default = default.changed({"lr": default.lr * faster})
    if "epochs" not in candidate.recipe and "label" in task.columns:
        default = with_enough_steps(default, rows)
    space = candidate.space or {
        field: Log(log=(values.log[0] * faster, values.log[1] * faster))
        if field == "lr" and isinstance(values, Log)
        else values
        for field, values in task.default_space(one.family, one.parameters).items()
        # What the user fixed is not searched.
        if field not in candidate.recipe
    }
    return Arm(one.name, default, space)


def rate_factor(recipe: Recipe) -> float:
    """By how much higher the learning rate is where few weights are trained, from nothing.

    Adapters start at zero and take about ten times the rate of whole models (Hu et al. 2021, "LoRA", appendix D); a
    head alone is a logistic regression, which a hundred times the rate only just brings to its end in as many steps.

    >>> rate_factor(Recipe()), rate_factor(Recipe(lora_rank=8)), rate_factor(Recipe(head_only=True))
    (1.0, 10.0, 100.0)
    """
    if recipe.head_only:
        return 100.0
    return 10.0 if recipe.lora_rank else 1.0


def _epochs(recipe: Recipe, rows: int, budget: int) -> list[int]:
    """Finalists are scored after every epoch, and keep their best."""
    return [rows * epoch for epoch in range(1, int(recipe.epochs) + 1) if rows * epoch < budget]


def with_enough_steps(recipe: Recipe, rows: int) -> Recipe:
    """A recipe with more epochs where `rows` training rows give it too few optimizer steps.

    Published recipes count epochs of large data. On a few hundred rows they end before the model has left the majority
    class; 20 epochs do well there (Mosbach et al. 2021, section 6; Zhang et al. 2021, "Revisiting few-sample BERT
    fine-tuning", section 6).

    >>> [with_enough_steps(Recipe(), rows).epochs for rows in (400, 1_000, 5_000)]
    [20.0, 10.0, 3.0]
    """
    epochs = min(MOST_EPOCHS, round(FEWEST_STEPS * recipe.batch_size / rows))
    return recipe.changed({"epochs": max(recipe.epochs, epochs)})


def _lengths(arm: Arm, one: Pretrained) -> set[int]:
    """Every length of rows that a trial of this candidate can ask for."""
    searched = arm.space.get("max_length")
    lengths = [arm.default.max_length]
    if isinstance(searched, Choice):
        lengths += [int(value) for value in searched.choice if isinstance(value, int | float)]
    return {recipe_length(arm.default.changed({"max_length": length}), one) for length in lengths}
