"""Budgets end a sweep, and say which."""

import pytest

from pmray.selection.budget import Spent
from pmray.selection.ledger import Outcome
from pmray.spec import Resources, Search


def trial(candidate="bert", examples=100, seconds=10.0, status="done", key=None):
    key = key or f"{candidate} {status}"
    return Outcome(key=key, stage="sweep", candidate=candidate, status=status, examples=examples, seconds=seconds)


RESOURCES = {"bert": Resources(workers=2, gpus_per_worker=0.5), "gpt": Resources()}


def test_failed_trials_and_those_of_earlier_runs_count():
    spent = Spent.of([trial(), trial(status="failed", examples=50), trial("gpt"), trial("gone")], RESOURCES)
    assert (spent.examples, spent.gpu_seconds) == (350, 20.0)
    # One that has gone on counts as it is now.
    spent.add(trial(examples=300, seconds=30.0), RESOURCES)
    assert (spent.examples, spent.gpu_seconds) == (550, 40.0)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({}, None),
        ({"examples": 101}, None),
        ({"examples": "0.1k"}, "100 examples were seen, and search.examples = 100"),
        ({"gpu_hours": 10 / 3600}, "0.00 GPU-hours were used"),
        ({"gpu_hours": 11 / 3600}, None),
        ({"hours": 1}, "search.hours = 1 are over"),
        ({"hours": 1.01}, None),
    ],
)
def test_the_budget_that_is_used_up_is_named(budget, said):
    found = Spent.of([trial()], RESOURCES).reached(Search(**budget), 3600)
    assert found is None if said is None else said in found


def test_what_a_variant_has_from_its_parent_is_counted_once_and_a_rate_that_the_user_changes_in_full():
    recipe, facts = {"lr_changes": [[0.25, 0.8]]}, {"budget": 1200}
    variant = Outcome("v", "sweep", "bert", "done", recipe=recipe, examples=1200, facts=facts)
    assert Spent.of([variant], RESOURCES, variants=True).examples == 900
    assert Spent.of([variant], RESOURCES).examples == 1200
