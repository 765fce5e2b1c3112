"""Searchers of Ray Tune stand in for our own search."""

import numpy as np
import pytest
from ray import cloudpickle, tune

from pmray.distributed.searchers import TuneSearch, search_of
from pmray.distributed.tune import _trial
from pmray.errors import SpecError
from pmray.selection.search import Arm, Search, Tried
from pmray.spec import Choice, Log, Recipe, Resources, Spec
from pmray.spec import Search as SearchSpec

SPACE = {"lr": Log(log=(1e-5, 1e-2)), "batch_size": Choice(choice=[16, 32])}
ARMS = [Arm("a", Recipe(lr=1e-4), SPACE), Arm("b", Recipe(lr=1e-4), SPACE), Arm("fixed", Recipe(), {})]


def run(search, trials):
    done = []
    for _ in range(trials):
        proposal = search.ask()
        search.tell(proposal.number, -abs(np.log10(proposal.recipe.lr) + 3))
        done.append((proposal.candidate, proposal.recipe))
    return done


@pytest.mark.parametrize("name", ["optuna", "hyperopt"])
def test_a_searcher_of_ray_tune_proposes_recipes(name):
    pytest.importorskip(name)
    known = [("b", Recipe(lr=2e-3)), ("gone", Recipe())]
    done = run(search_of(SearchSpec(algorithm=f"ray:{name}"), ARMS, (), known), 104)
    assert done[:4] == [("a", Recipe(lr=1e-4)), ("b", Recipe(lr=1e-4)), ("fixed", Recipe()), ("b", Recipe(lr=2e-3))]
    assert all(45 < [candidate for candidate, _ in done].count(one) < 60 for one in "ab")
    assert len(set(done)) == len(done)
    assert {recipe.batch_size for _, recipe in done} == {16, 32}
    off = [abs(np.log10(recipe.lr) + 3) for _, recipe in done]
    assert name != "optuna" or np.mean(off[-20:]) < np.mean(off[4:24]), "it learns"


def test_a_searcher_is_asked_for_those_that_lead():
    search = TuneSearch(ARMS, algorithm="optuna")
    first = [search.ask(["b"]).candidate for _ in range(8)]
    assert first == ["a", "b", "fixed", *"bbbbb"]
    assert search.ask(["fixed"]) is None


def test_a_resumed_searcher_repeats_nothing():
    done = run(TuneSearch(ARMS, algorithm="optuna"), 9)
    tried = [Tried(candidate, recipe, 0.5) for candidate, recipe in done]
    again = run(TuneSearch(ARMS, algorithm="optuna", tried=[*tried, Tried("a", Recipe(lr=0.9), None)]), 6)
    assert not set(done) & set(again)


def test_where_no_searcher_has_anything_new_the_search_ends():
    search = TuneSearch([Arm("a", Recipe(), {"batch_size": Choice(choice=[16, 32])})], algorithm="optuna")
    assert len(run(search, 2)) == 2
    assert search.ask() is None


def test_what_cannot_be_used_is_told():
    with pytest.raises(SpecError, match="ray:nosuch cannot be used"):
        search_of(SearchSpec(algorithm="ray:nosuch"), ARMS, (), ())
    with pytest.raises(SpecError, match="proposes nothing by itself"):
        search_of(SearchSpec(algorithm="ray:random"), ARMS, (), ())
    assert isinstance(search_of(SearchSpec(), ARMS, (), ()), Search)
    with pytest.raises(ValueError, match="Did you mean 'random'"):
        Spec(task="text-classification", data={"train": "x"}, candidates=["a/b"], search={"algorithm": "randum"})


def test_what_travels_to_a_process_of_trials_is_small(ray_cluster):
    trainable = tune.with_parameters(_trial, nested={"a": Resources(workers=2)}, scratch="folder")
    assert len(cloudpickle.dumps(trainable)) < 100_000
