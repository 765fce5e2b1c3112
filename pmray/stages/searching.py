"""The sweep's trials: how many are left of them, which recipes come next, and when it is enough."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence

from rich.console import Console

from pmray.distributed.cluster import Capacity, at_a_time
from pmray.distributed.proposals import Population
from pmray.distributed.searchers import search_of
from pmray.distributed.tune import run_trials
from pmray.errors import SpecError
from pmray.report.progress import TrialBoard
from pmray.run import Run
from pmray.selection.budget import Spent, states_at_a_time
from pmray.selection.certainty import settled_leaders
from pmray.selection.experience import first_recipes, weights_of
from pmray.selection.failures import IN_A_ROW
from pmray.selection.halving import Leaders, Reached, out_of_reach, weighed_at
from pmray.selection.ledger import outcome_of
from pmray.selection.reuse import reuse_told
from pmray.selection.search import Tried
from pmray.spec import Recipe
from pmray.stages.fitting import described
from pmray.stages.preparation import Prepared
from pmray.stages.ranking import current_trials, experience_of, signature
from pmray.training.state import copy_state
from pmray.training.trial import Facts, Work


def tell_reuse(prepared: Prepared, run: Run, console: Console) -> None:
    """Say what of an earlier run of this folder a changed spec cannot use."""
    names = [one.name for one in prepared.candidates]
    told = reuse_told(
        run.ledger.settled("sweep").values(),
        {one.key for one in current_trials(prepared, run, names)},
        data=prepared.dataset.key,
        metric=prepared.metric,
        revisions={one.name: one.revision for one in prepared.candidates},
    )
    if told:
        console.print(f"[yellow]{told}[/]")


def search(prepared: Prepared, run: Run, kept: Sequence[str], cluster: Capacity, console: Console) -> None:
    """Run what is left of the sweep's trials."""
    spec = prepared.spec
    arms = [prepared.arms[name] for name in kept]
    tried = _tried(prepared, run, kept)
    by_population = spec.search.algorithm == "pbt"
    # Variants take the place of others.
    left = spec.search.trials - sum(not (by_population and one.recipe.lr_changes) for one in tried)
    if spec.search.trials >= len(kept):
        # A candidate or a recipe that has been added to the spec since then is tried in any case.
        known = {(one.candidate, one.recipe) for one in tried}
        left = max(left, sum((arm.candidate, arm.default) not in known for arm in arms))
    if left <= 0:
        console.print(f"sweep: all {len(tried)} trials are in the ledger")
    elif tried:
        console.print(f"sweep: {len(tried)} trials are in the ledger, {left} to go")
    left = max(0, left)
    if spec.search.trials < len(kept):
        console.print(
            f"[yellow]search.trials = {spec.search.trials} is less than {len(kept)} candidates: some are not tried[/]"
        )
    resources = {name: spec.resources_of(spec.candidate(name)) for name in kept}
    parallel = at_a_time(resources, cluster, spec.search.concurrency)
    by_weights = {weights_of(prepared.pretrained(arm.candidate)): arm for arm in arms}
    proven = first_recipes(experience_of(prepared, None), signature(prepared), by_weights)
    # A population finds changes of the rate itself, and tells variants by them.
    fresh = {"lr_changes": ()} if by_population else {}
    first = [(by_weights[weights].candidate, recipe.changed(fresh)) for weights, recipe in proven.items()]
    search = search_of(spec.search, arms, tried, first)
    spent = Spent.of(run.ledger.settled("sweep").values(), resources, variants=by_population)
    known_trials = current_trials(prepared, run, kept)
    ended_trials = {one.key: one for one in known_trials}
    pause = _may_pause(prepared, len(kept), console)
    fuse = spec.search.fuse
    if fuse > 1 and spec.search.stop and spec.search.rungs and not pause:
        console.print("[yellow]trials are not fused: they do not wait at rungs, and one could not be stopped alone[/]")
        fuse = 1
    states = spec.location(run.states)
    population = (
        Population(spec.search.seed, lambda old, new: copy_state(states, old, new), run.discard_state)
        if by_population
        else None
    )
    without_state: set[str] = set()
    told: set[str] = set()
    """Candidates whose trials cannot be fused."""
    started = time.time()

    def over() -> str | None:
        """Which budget is used up, in words, or None."""
        return spent.reached(spec.search, time.time() - started)

    def enough() -> str | None:
        """Why no further trial is started, in words, or None."""
        if (reason := over()) or not spec.search.until_sure:
            return reason
        validation = len(prepared.dataset.validation)
        return settled_leaders(
            ended_trials.values(), kept, validation, spec.search.finalists, leaders_of(prepared, kept).count
        )

    if left and (reason := enough()):
        # By an earlier run of this folder.
        console.print(f"[yellow]no further trial is started: {reason}[/]")
        left = 0
    board = TrialBoard(
        console,
        "sweep",
        prepared.metric,
        left,
        left * prepared.rungs[-1],
        budgets=lambda: spent.used(spec.search, time.time() - started),
    )
    with board:

        def ended(work: Work, facts: Facts, may_pass: bool) -> None:
            outcome = outcome_of(work, facts, "sweep", may_pass=may_pass)
            run.ledger.append(outcome)
            spent.add(outcome, resources)
            ended_trials[outcome.key] = outcome
            if outcome.status != "stopped":
                run.discard_state(work.key)
            drop_states(outcome.candidate)
            board.end(work.key, outcome)
            if (problem := facts.measured.get("fused_problem")) and outcome.candidate not in told:
                told.add(outcome.candidate)
                console.print(f"[yellow]trials of {outcome.candidate} take their steps one by one: {problem}[/]")

        def drop_states(candidate: str) -> None:
            """Delete states that a trial has put out of reach: its own, or those of others of its candidate."""
            if population:
                return
            reached = [
                Reached(one.key, one.candidate, dict(one.curve), one.status == "stopped")
                for one in ended_trials.values()
                if one.curve
            ]
            total = max(spec.search.trials, len(reached))
            mine = [one for one in reached if one.candidate == candidate and one.waits]
            for one in mine:
                lost = out_of_reach(one, reached, total, spec.search.reduction)
                if lost and one.trial not in without_state:
                    without_state.add(one.trial)
                    run.discard_state(one.trial)

        run_trials(
            search,
            lambda proposal: prepared.work(
                "sweep", proposal.candidate, proposal.recipe, spec.search.seed, states=run.states
            ),
            resources,
            trials=left,
            at_a_time=parallel,
            reduction=spec.search.reduction if spec.search.stop else math.inf,
            leaders=leaders_of(prepared, kept),
            enough=lambda: enough() is not None,
            scratch=run.scratch,
            on_start=lambda work: board.start(work.key, *described(prepared, work)),
            on_rung=lambda work, rung: board.rung(work.key, rung.examples, rung.score),
            on_end=ended,
            earlier=known_trials,
            over=lambda: over() is not None,
            pause=pause,
            population=population,
            fuse=fuse,
            on_avoid=lambda host: console.print(
                f"[yellow]{host} gets no more trials: it failed {IN_A_ROW} in a row that others ran well[/]"
            ),
        )
    for key in ended_trials:
        run.discard_state(key)
    reason = enough()
    if reason and board.ended < left:
        console.print(f"[yellow]the sweep ended early: {reason}[/]")


def leaders_of(prepared: Prepared, kept: Sequence[str]) -> Leaders:
    """How many candidates get more than their default recipes, and how they are found."""
    search = prepared.spec.search
    # A population begins with random recipes of all: it has no other way to them.
    count = len(kept) if search.algorithm == "pbt" else search.leaders
    defaults = {name: prepared.arms[name].default for name in kept}
    return Leaders(count, weighed_at(prepared.rungs), defaults, len(prepared.dataset.validation))


def _may_pause(prepared: Prepared, candidates: int, console: Console) -> bool:
    """Whether trials wait at their rungs: the spec says so, and the states of all of them find room on the disk."""
    search = prepared.spec.search
    population = search.algorithm == "pbt"
    if population and not prepared.keep_states:
        raise SpecError("search.algorithm: pbt needs states of its trials, and there is no room to keep any; use tpe")
    if not (search.pause and search.stop and prepared.keep_states and search.rungs):
        return False
    largest = max(one.parameters for one in prepared.candidates)
    # Weights, their best so far, and the optimizer's two moments, in fp32.
    count = states_at_a_time(search, candidates)
    states = 16 * largest * count
    free = shutil.disk_usage(prepared.cache).free
    room = min(free // 2, free if search.max_disk is None else search.max_disk)
    if states > room and population:
        raise SpecError(
            f"search.algorithm: pbt keeps the states of {search.trials} trials and their variants, {states / 1e9:.1f} "
            f"GB, and there are {room / 1e9:.1f} GB for them; use fewer trials, or tpe"
        )
    if states > room:
        console.print(
            f"[yellow]trials do not wait at rungs: the states of {count} would take {states / 1e9:.1f} GB, and "
            f"there are {room / 1e9:.1f} GB for them; each is decided about as it arrives[/]"
        )
    return states <= room


def _tried(prepared: Prepared, run: Run, kept: Sequence[str]) -> list[Tried]:
    """Trials of these candidates on this data that the ledger has settled."""
    return [Tried(one.candidate, Recipe(**one.recipe), one.score) for one in current_trials(prepared, run, kept)]
