"""The whole idea in one file and one process, without Ray: what a cluster must agree with.

python jobs/mini.py SPEC [KEY=VALUE ...]      such as jobs/specs/reviews.yaml search.trials=3

It ranks, tries recipes, re-fits the finalists with several seeds, opens the test rows and decides, as ``pmray.sweep``
does. It keeps no record, has no halving (every trial runs to its end), and exports nothing. With OMP_NUM_THREADS=1 its
sums are rounded as in a trial of one CPU.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

from pmray.data.load import read_sealed
from pmray.data.split import group_numbers
from pmray.errors import NoVerdict, PmrayError
from pmray.report.console import rank_table, verdict_panel
from pmray.report.progress import people
from pmray.selection.features import look
from pmray.selection.halving import Reached, finalists, leading, weighed_at
from pmray.selection.ledger import Outcome, Stage, outcome_of
from pmray.selection.proxies import Ranked, judge, thin
from pmray.selection.search import Search
from pmray.selection.verdict import Contender, Verdict, decide
from pmray.spec import Recipe, Spec
from pmray.spec_file import load_spec
from pmray.stages.preparation import Prepared, encode_all, prepare
from pmray.tasks.base import Outcomes
from pmray.tasks.baselines import fit_baseline
from pmray.training import trial

console = people()


def sweep(spec: Spec) -> tuple[list[Outcome], Verdict]:
    """Outcomes of all trials and of the finalists' fits, and who won."""
    prepared = prepare(spec, console)
    encode_all(prepared, console)
    ranked = rank(prepared)
    trials = search(prepared, [one.candidate for one in ranked if one.kept])
    chosen = finalists(trials, spec.search.finalists)
    if not chosen:
        raise NoVerdict(f"no trial gave a score: {[one.error for one in trials]}")
    with TemporaryDirectory() as folder:
        fits = [
            run(prepared, "final", one.candidate, Recipe(**one.recipe), spec.search.seed + 1 + seed, Path(folder))
            for one in chosen
            for seed in range(spec.search.seeds)
        ]
        return [*trials, *fits], open_test_rows(prepared, chosen, fits, Path(folder))


def rank(prepared: Prepared) -> list[Ranked]:
    """How well do the frozen features of each candidate suit a sample of the training rows?"""
    rows = prepared.ranking_rows()
    targets = prepared.task.targets(prepared.dataset.train)[rows]
    scores: dict[str, Mapping[str, float]] = {}
    for one in prepared.candidates:
        encoding = prepared.encodings[one.name, trial.recipe_length(prepared.arms[one.name].default, one)]
        seen = look(one, prepared.task.to_json(), prepared.cache, encoding, rows)
        scores[one.name] = judge(seen.features, targets, prepared.task, prepared.metric, seen.source)
    families = {one.name: one.family for one in prepared.candidates}
    sizes = {one.name: one.parameters for one in prepared.candidates}
    ranked = thin(scores, families, sizes, keep=prepared.spec.search.keep_after_rank)
    console.print(rank_table(ranked))
    return ranked


def search(prepared: Prepared, kept: Sequence[str]) -> list[Outcome]:
    """Try each candidate's default recipe, then for those that lead recipes that earlier scores speak for."""
    settings = prepared.spec.search
    asking = Search([prepared.arms[name] for name in kept], algorithm=settings.algorithm, seed=settings.seed)
    rows = len(prepared.dataset.validation)
    outcomes: list[Outcome] = []
    for _ in range(settings.trials):
        reached = [Reached(one.key, one.candidate, dict(one.curve), False) for one in outcomes if one.curve]
        proposal = asking.ask(leading(reached, kept, settings.leaders, weighed_at(prepared.rungs), rows=rows))
        if proposal is None:
            break
        outcomes.append(run(prepared, "sweep", proposal.candidate, proposal.recipe, settings.seed))
        asking.tell(proposal.number, outcomes[-1].score)
    return outcomes


def run(prepared: Prepared, stage: Stage, name: str, recipe: Recipe, seed: int, folder: Path | None = None) -> Outcome:
    """Carry out one trial; with a folder, its predictions and weights are kept there."""
    work = prepared.work(stage, name, recipe, seed, folder)
    outcome = outcome_of(work, trial.carry_out(work), stage)
    console.print(f"{stage} {name} lr {recipe.lr:g} seed {seed}: {outcome.error or outcome.score}", markup=False)
    return outcome


def open_test_rows(prepared: Prepared, chosen: Sequence[Outcome], fits: Sequence[Outcome], folder: Path) -> Verdict:
    """Compare finalists and baselines on rows that nobody has used before."""
    task, data = prepared.task, prepared.dataset
    labels = read_sealed(prepared.cache, data.key)

    def tested(fit: Outcome) -> Outcomes:
        _, scores = trial.read_predictions(trial.predictions_folder(folder, fit.key) / "test.parquet")
        # This task has the threshold that the fit tuned on validation.
        return trial.open_task(fit.facts["task"]).outcome(scores, task.targets(labels))

    contenders = []
    for one in chosen:
        mine = [fit for fit in fits if fit.candidate == one.candidate and fit.status == "done"]
        if mine:
            contenders.append(
                Contender(
                    name=one.candidate,
                    outcomes=[tested(fit) for fit in mine],
                    search_score=one.score,
                    validation_score=mean(fit.score for fit in mine if fit.score is not None),
                    latency_ms=median(fit.facts["latency_ms"] for fit in mine),
                    parameters=mine[0].facts["parameters"],
                    training_seconds=mean(fit.facts["train_seconds"] for fit in mine),
                )
            )
    for name, kind in prepared.task.baselines.items():
        own, (said,) = fit_baseline(kind, task, data.train, data.validation, [data.test], metric=prepared.metric)
        tuned = task.tuned(own, task.targets(data.validation), prepared.metric)
        contenders.append(Contender(name=name, outcomes=[tuned.outcome(said, task.targets(labels))], baseline=True))
    return decide(contenders, task, prepared.metric, prepared.spec.decide, group_numbers(data.test))


if __name__ == "__main__":
    try:
        console.print(verdict_panel(sweep(load_spec(sys.argv[1], sys.argv[2:]))[1]))
    except PmrayError as error:
        sys.exit(f"error: {error}")
