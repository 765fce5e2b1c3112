"""From texts without labels to adapted models, which other specs take as candidates."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from pmray.data.encode import open_encoded
from pmray.distributed.cluster import connected
from pmray.distributed.doctor import checked
from pmray.errors import NoVerdict
from pmray.report.console import failures_table
from pmray.report.progress import people
from pmray.run import Run, open_run
from pmray.selection.ledger import Outcome, latest
from pmray.spec import Spec
from pmray.stages.export import has_weights
from pmray.stages.fitting import encode, fit_works, prepare_run, share_models, within_disk
from pmray.stages.preparation import check_command
from pmray.tasks.pretraining import Pretraining
from pmray.training.trial import FACTS, checkpoint_folder, recipe_length


@dataclass(frozen=True)
class Adapted:
    """A model whose pre-training was continued."""

    candidate: str
    folder: Path
    """A plain ``transformers`` folder with its language-modelling head; another spec takes it as a candidate."""
    before: float
    """Perplexity of the test texts before."""
    perplexity: float
    """Perplexity of the test texts now."""
    curve: tuple[tuple[int, float], ...]
    """(packed rows seen, perplexity of the validation texts) after every epoch."""
    seconds: float
    examples_per_second: float
    """Packed rows."""


def pretrain(
    spec: Spec,
    *,
    seed: int = 0,
    address: str | None = None,
    strict: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> list[Adapted]:
    """Go on with the pre-training of every candidate on texts without labels; run again to continue.

    Args:
        spec: The job, of task ``pretraining``.
        seed: Seed of batch order, masks and dropout.
        address: Of a Ray cluster; by default this machine.
        strict: A candidate that cannot be had is an error.
        force: Leave out nodes of the cluster that are not fit for the run, in place of refusing.
        console: For progress; standard error by default.

    Returns:
        What came of each candidate, lowest perplexity first; perplexities of different tokenizers cannot be compared.

    Raises:
        SpecError: The task is another one, or a recipe has values that say nothing without labels.
        DataError: The texts cannot be used.
        NoVerdict: No candidate could be trained.
    """
    check_command(spec, labels=False)
    for candidate in spec.candidates:
        Pretraining().check_recipe(candidate.recipe)
    console = console or people()
    with open_run(spec) as run:
        prepared = prepare_run(spec, run, console, strict)
        with connected(address) as cluster:
            cluster = checked(spec, cluster, force=force)
            prepared = share_models(prepared, cluster, console)
            encode(prepared, cluster, console)
            packed = {}
            for one in prepared.candidates:
                key = prepared.encodings[one.name, recipe_length(prepared.arms[one.name].default, one)]
                packed[one.name] = len(open_encoded(prepared.cache, key, "train"))
            prepared = within_disk(replace(prepared, packed=packed), cluster, console)
            works = {
                name: prepared.work("final", name, arm.default, seed, run.folder, states=run.states)
                for name, arm in prepared.arms.items()
            }
            known = run.ledger.settled("final")
            left = [work for work in works.values() if not (work.key in known and _is_kept(run, known[work.key]))]
            if left:
                fit_works(prepared, run, left, console, title="pre-training")
        known = run.ledger.settled("final")
        done = [known[work.key] for work in works.values() if work.key in known and known[work.key].status == "done"]
        for outcome in done:
            _keep_adapted(run, outcome)
        if table := failures_table(list(latest(run.ledger.outcomes).values())):
            console.print(table)
        if not done:
            raise NoVerdict(f"no candidate could be trained; {run.ledger.path} says why.")
        return sorted((_adapted(run, outcome) for outcome in done), key=lambda one: one.perplexity)


def _adapted_folder(run: Run, candidate: str) -> Path:
    return run.folder / "pretrained" / candidate


def _is_kept(run: Run, outcome: Outcome) -> bool:
    """Whether the weights of a fit are there, moved or not."""
    try:
        facts = json.loads((_adapted_folder(run, outcome.candidate) / FACTS).read_text())
    except (OSError, ValueError):
        facts = {}
    return outcome.status != "done" or facts.get("key") == outcome.key or has_weights(run, outcome)


def _keep_adapted(run: Run, outcome: Outcome) -> None:
    """Move the weights to where people look for them, with what was measured, whole or not at all."""
    weights, folder = checkpoint_folder(run.folder, outcome.key), _adapted_folder(run, outcome.candidate)
    if weights.is_dir():
        (weights / FACTS).write_text(json.dumps(asdict(outcome), indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        weights.replace(folder)
        run.keep(f"pretrained/{outcome.candidate}")
        run.discard(weights)


def _adapted(run: Run, outcome: Outcome) -> Adapted:
    facts = outcome.facts
    return Adapted(
        candidate=outcome.candidate,
        folder=_adapted_folder(run, outcome.candidate),
        before=math.exp(-facts["test_score_before"]),
        perplexity=math.exp(-facts["test_score"]),
        curve=tuple((examples, math.exp(-score)) for examples, score in outcome.curve),
        seconds=outcome.seconds,
        examples_per_second=facts["examples_per_second"],
    )
