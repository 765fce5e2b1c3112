"""What is proposed next."""

import warnings

import numpy as np
import pytest

from pmray.selection.search import Arm, Search, Tried
from pmray.spec import Choice, Log, Recipe, Uniform

LR = {"lr": Log(log=(1e-5, 1e-2))}
GOOD, WEAK = Arm("good", Recipe(lr=1e-4), LR), Arm("weak", Recipe(lr=1e-4), LR)


def quality(proposal):
    """The good candidate is better everywhere; the best learning rate is 1e-3."""
    return (0.9 if proposal.candidate == "good" else 0.5) - 0.05 * abs(np.log10(proposal.recipe.lr) + 3)


def run(search, trials, score=quality):
    done = []
    for _ in range(trials):
        proposal = search.ask()
        search.tell(proposal.number, score(proposal))
        done.append(proposal)
    return done


def tried(proposals, score=quality):
    return [Tried(one.candidate, one.recipe, score(one)) for one in proposals]


def pairs(proposals):
    return [(one.candidate, one.recipe) for one in proposals]


def test_each_candidates_default_comes_first():
    assert pairs(run(Search([GOOD, WEAK]), 2)) == [("good", GOOD.default), ("weak", WEAK.default)]


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_nothing_is_proposed_twice_and_a_space_is_used_up(algorithm):
    space = {"batch_size": Choice(choice=[8, 16, 32]), "epochs": Choice(choice=[2, 3])}
    search, proposals = Search([Arm("only", Recipe(), space)], algorithm=algorithm), []
    while (proposal := search.ask()) is not None:
        search.tell(proposal.number, 0.5)
        proposals.append(proposal)
    assert len(set(pairs(proposals))) == len(proposals) == 6


def test_a_candidate_without_a_space_does_not_end_the_search_of_the_others():
    done = run(Search([Arm("good", Recipe(), {}), WEAK]), 20)
    assert [one.candidate for one in done].count("weak") == 19


def test_an_empty_space_is_the_default_alone():
    search = Search([Arm("fixed", Recipe(), {})])
    assert search.ask().recipe == Recipe()
    assert search.ask() is None


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_the_same_calls_with_the_same_seed_give_the_same_proposals(algorithm):
    def proposals(seed):
        return pairs(run(Search([GOOD, WEAK], algorithm=algorithm, seed=seed), 12))

    assert proposals(0) == proposals(0)
    assert proposals(0) != proposals(1)


@pytest.mark.parametrize("seed", range(3))
def test_the_better_candidate_gets_most_of_the_later_trials(seed):
    done = run(Search([WEAK, GOOD], seed=seed), 30)
    assert sum(one.candidate == "good" for one in done[10:]) > 12


@pytest.mark.parametrize("seed", range(3))
def test_recipes_get_better(seed):
    done = [quality(one) for one in run(Search([GOOD], seed=seed), 30)]
    assert np.mean(done[-10:]) > np.mean(done[1:6])


def test_random_search_does_not_learn():
    done = run(Search([WEAK, GOOD], algorithm="random"), 60)
    assert 18 <= sum(one.candidate == "good" for one in done) <= 42


def test_a_resumed_search_repeats_nothing():
    before = run(Search([GOOD, WEAK]), 8)
    after = run(Search([GOOD, WEAK], tried=tried(before)), 12)
    assert not set(pairs(before)) & set(pairs(after))


def test_a_resumed_search_first_proposes_the_defaults_that_are_left():
    before = run(Search([GOOD, WEAK]), 1)
    assert pairs(run(Search([GOOD, WEAK], tried=tried(before)), 1)) == [("weak", WEAK.default)]


def test_at_the_beginning_those_that_lead_take_turns_even_where_one_has_nothing_left():
    small = Arm("small", Recipe(lr=1e-4), {"lr": Choice(choice=[1e-4, 1e-3])})
    arms = [Arm(name, Recipe(lr=1e-4), {"lr": Log(log=(1e-5, 1e-3))}) for name in "abcde"] + [small]
    search = Search(arms)
    proposals = [search.ask() for _ in arms]
    proposals += [search.ask(["b", "d", "small"]) for _ in range(6)]
    assert [one.candidate for one in proposals[6:]] == ["b", "d", "small", "b", "d", "b"]
    assert len({(one.candidate, one.recipe) for one in proposals}) == 12


def test_a_resumed_search_has_learned():
    before = run(Search([GOOD, WEAK]), 20)
    after = run(Search([GOOD, WEAK], tried=tried(before)), 10)
    assert sum(one.candidate == "good" for one in after) > 6


def test_a_resumed_search_learns_from_recipes_of_an_integer_range():
    arm = Arm("a", Recipe(batch_size=16), {"batch_size": Uniform(uniform=(8, 32))})
    search = Search([arm], tried=[Tried("a", Recipe(batch_size=24), 0.7)])
    assert [trial.value for trial in search._study.trials] == [0.7]


def test_what_was_tried_outside_the_present_space_does_not_break_a_search():
    old = [
        Tried("gone", Recipe(), 0.9),
        Tried("good", Recipe(lr=0.5), 0.9),
        Tried("good", Recipe(lr=2e-4), None),
    ]
    assert pairs(run(Search([GOOD], tried=old), 1)) == [("good", GOOD.default)]


def test_failed_trials_teach_nothing_and_stop_nothing():
    done = run(Search([GOOD, WEAK]), 20, score=lambda one: None if one.candidate == "weak" else quality(one))
    assert len(set(pairs(done))) == 20


def test_a_search_goes_on_while_answers_are_outstanding():
    search = Search([GOOD, WEAK])
    open_ones = [search.ask() for _ in range(8)]
    for one in reversed(open_ones):
        search.tell(one.number, quality(one))
    assert len({one.number for one in open_ones}) == 8
    assert len(set(pairs(open_ones))) == 8


@pytest.mark.parametrize("values", [Uniform(uniform=(8, 32)), Log(log=(8, 32)), Choice(choice=[8, 16, 24, 32])])
def test_whole_numbers_stay_whole(values):
    for proposal in run(Search([Arm("a", Recipe(batch_size=8), {"batch_size": values})]), 3, score=lambda one: 0.5):
        assert isinstance(proposal.recipe.batch_size, int)
        assert 8 <= proposal.recipe.batch_size <= 32


def test_a_field_whose_default_is_none_can_be_searched():
    done = run(Search([Arm("a", Recipe(dropout=None), {"dropout": Uniform(uniform=(0, 0.3))})]), 4, lambda one: 0.5)
    assert [one.recipe.dropout is None for one in done] == [True, False, False, False]


def test_rounding_never_leaves_the_space():
    low, high = 1.2341e-5, 1.2349e-5
    done = run(Search([Arm("a", Recipe(), {"lr": Log(log=(low, high))})]), 2)
    assert low <= done[1].recipe.lr <= high


def test_numbers_are_short_enough_to_type():
    for proposal in run(Search([GOOD]), 5):
        assert float(f"{proposal.recipe.lr:.3g}") == proposal.recipe.lr


def test_optuna_keeps_quiet(capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(Search([GOOD, WEAK]), 6)
    assert capfd.readouterr() == ("", "")
    assert not caught


def test_a_grid_goes_through_all_recipes_of_all_candidates_in_turn():
    first = Arm("first", Recipe(lr=1e-4), {"lr": Log(log=(1e-5, 1e-2)), "batch_size": Choice(choice=[16, 32])})
    second = Arm("second", Recipe(), {"dropout": Uniform(uniform=(0, 0.3))})
    search, done = Search([first, second], algorithm="grid"), []
    while (proposal := search.ask()) is not None:
        search.tell(proposal.number, 0.5)
        done.append(proposal)
    assert [one.candidate for one in done[:5]] == ["first", "second"] * 2 + ["first"]
    assert {one.recipe.lr for one in done if one.candidate == "first"} == {1e-5, 1e-4, 1e-3, 1e-2}
    # Four rates x two batches, of which one is the default; four dropouts and the default.
    assert [sum(one.candidate == name for one in done) for name in ("first", "second")] == [8, 5]
    again = Search([first, second], algorithm="grid", tried=tried(done[:6]))
    assert pairs(run(again, 7)) == pairs(done[6:])


def test_recipes_that_were_good_elsewhere_come_right_after_the_defaults():
    known = [("weak", Recipe(lr=2e-3)), ("good", GOOD.default), ("gone", Recipe())]
    done = pairs(run(Search([GOOD, WEAK], first=known), 4))
    assert done[:3] == [("good", GOOD.default), ("weak", WEAK.default), ("weak", Recipe(lr=2e-3))]


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
def test_what_means_nothing_without_another_value_is_searched_only_there(algorithm):
    space = {"lora_alpha": Choice(choice=[8.0, 16.0, 32.0]), "lora_rank": Choice(choice=[0, 4, 8])}
    search, recipes = Search([Arm("a", Recipe(), space)], algorithm=algorithm), []
    while (proposal := search.ask()) is not None:
        search.tell(proposal.number, 0.5 + 0.01 * proposal.recipe.lora_rank)
        recipes.append(proposal.recipe)
    found = {(one.lora_rank, one.lora_alpha) for one in recipes}
    assert found == {(0, None), *((rank, alpha) for rank in (4, 8) for alpha in (8.0, 16.0, 32.0))}
    assert len(found) == len(recipes)
    resumed = Search([Arm("a", Recipe(), space)], tried=[Tried("a", Recipe(), 0.5), Tried("a", recipes[-1], 0.6)])
    assert len(resumed._study.trials) == 2


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
def test_only_those_that_lead_get_recipes_beyond_the_first(algorithm):
    space = {"batch_size": Choice(choice=[8, 16, 32])}
    search = Search([Arm(name, Recipe(), space) for name in "abc"], algorithm=algorithm)
    asked = []
    while (proposal := search.ask(["b"])) is not None:
        search.tell(proposal.number, 0.9 if proposal.candidate == "a" else 0.1)
        asked.append(proposal.candidate)
    assert asked == ["a", "b", "c", "b", "b"]
    assert search.ask() is not None, "there is more for the others"
    assert search.ask([]) is None


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
def test_what_is_to_be_like_something_differs_in_rates_alone(algorithm):
    space = {
        "lr": Log(log=(1e-5, 1e-2)),
        "batch_size": Choice(choice=[8, 16, 32]),
        "dropout": Uniform(uniform=(0, 0.3)),
    }
    search = Search([Arm(name, Recipe(batch_size=8, dropout=0.1), space) for name in "ab"], algorithm=algorithm)
    first = search.ask()
    assert search.ask(like=first) is None, "the other default comes first"
    search.ask()
    one = search.ask()
    others = [search.ask(like=one) for _ in range(3)]
    assert {other.candidate for other in others} == {one.candidate}
    assert {(other.recipe.batch_size, other.recipe.dropout) for other in others} == {
        (one.recipe.batch_size, one.recipe.dropout)
    }
    assert len({other.recipe.lr for other in [one, *others]}) == 4
    for place, other in enumerate([one, *others]):
        search.tell(other.number, place / 10)
    assert search.ask(leaders=["a" if one.candidate == "b" else "b"], like=one) is None


def test_nothing_is_like_a_recipe_outside_the_space():
    space = {"lr": Log(log=(1e-5, 1e-2)), "batch_size": Choice(choice=[8, 16])}
    search = Search([Arm("a", Recipe(batch_size=64), space)])
    assert search.ask(like=search.ask()) is None
