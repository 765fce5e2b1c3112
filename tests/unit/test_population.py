"""Who is replaced by a variant of whom."""

import pytest

from pmray.selection.population import FACTORS, SHARE, Member, born, generations, turn
from pmray.spec import Recipe, Search, Spec

RUNGS = [30, 60]


def member(name, *scores, recipe=None, waits=True):
    curve = dict(zip((*RUNGS, 90), scores, strict=False))
    return Member(name, recipe or Recipe(), 90, curve, waits)


FIELD = [member(f"t{place}", 0.9 - 0.1 * place) for place in range(8)]


def test_the_worst_quarter_is_replaced_by_variants_of_the_best():
    found = turn(FIELD, RUNGS, seed=0)
    assert found.ending == ("t6", "t7")
    assert found.going == tuple(f"t{place}" for place in range(6))
    assert len(found.variants) == 2
    for one in found.variants:
        assert one.parent in ("t0", "t1") and one.rung == 30
        ((share, factor),) = one.recipe.lr_changes
        assert (share, factor in FACTORS) == (pytest.approx(1 / 3), True)
        assert born(one.recipe, 90) == 30
    assert len({(one.parent, one.recipe) for one in found.variants}) == 2


def test_the_same_trials_give_the_same_variants_whatever_their_order_and_other_seeds_others():
    first = turn(FIELD, RUNGS, seed=0)
    assert {(one.parent, one.recipe) for one in turn(FIELD[::-1], RUNGS, seed=0).variants} == {
        (one.parent, one.recipe) for one in first.variants
    }
    assert len({turn(FIELD, RUNGS, seed).variants for seed in range(10)}) > 1


def test_a_decided_rung_is_decided_alike_after_others_went_on_and_variants_came():
    """A sweep that was interrupted asks again, when some have come further than others."""
    first = turn(FIELD, RUNGS, seed=0)
    variants = [
        Member(f"v{place}", one.recipe, 90, {30: 0.9 - 0.1 * int(one.parent[1]), 60: 0.95}, True)
        for place, one in enumerate(first.variants)
    ]
    further = [
        member(one.trial, one.curve[30], 0.5 - 0.01 * place) if one.trial in first.going else one
        for place, one in enumerate(FIELD)
    ]
    found = turn([*further, *variants], RUNGS, seed=0)
    assert [one for one in found.variants if one.rung == 30] == list(first.variants)
    assert set(first.ending) <= set(found.ending)
    later = [one for one in found.variants if one.rung == 60]
    assert len(later) == int(SHARE * 8), "variants are rivals at the rungs after their birth"
    assert {one.parent for one in later} <= {"v0", "v1"}
    assert all(len(one.recipe.lr_changes) == 2 for one in later)
    assert found.going[:2] != ("t6", "t7")


def test_a_variant_that_had_to_begin_at_the_beginning_goes_on_to_where_it_was_born():
    recipe = Recipe(lr_changes=((2 / 3, 0.8),))
    late = Member("late", recipe, 90, {30: 0.0}, True)
    found = turn([*FIELD, late], RUNGS, seed=0)
    assert "late" in found.going and "late" not in found.ending
    assert found.ending == ("t6", "t7"), "and is no rival before"


def test_equals_are_not_replaced_and_few_are_left_alone():
    assert not turn([member(f"t{place}", 0.5) for place in range(8)], RUNGS, seed=0).variants
    found = turn(FIELD[:3], RUNGS, seed=0)
    assert (found.going, found.ending, found.variants) == (("t0", "t1", "t2"), (), ())


def test_one_that_has_ended_is_no_parent_and_not_replaced():
    over = Member("short", Recipe(), 30, {30: 1.0}, False)
    found = turn([*FIELD, over], RUNGS, seed=0)
    assert {one.parent for one in found.variants} <= {"t0"}
    assert "short" not in found.going + found.ending


def test_rungs_are_at_equal_distances_behind_the_warm_up():
    assert generations(1200, 3, warmup=0.0) == [300, 600, 900]
    assert generations(1200, 9, warmup=0.25)[0] == 360


def test_what_a_population_needs_is_said():
    with pytest.raises(ValueError, match="wait at rungs"):
        Search(algorithm="pbt", pause=False)
    with pytest.raises(ValueError, match="use pbt"):
        Search(algorithm="ray:pbt")
    spec = {"task": "text-classification", "data": {"train": "a"}, "candidates": ["a/b"], "resources": {"workers": 2}}
    with pytest.raises(ValueError, match="b has several"):
        Spec.model_validate({**spec, "search": {"algorithm": "pbt"}})
    changing = {"model": "a/b", "recipe": {"lr_changes": [[0.5, 2.0]]}}
    Spec.model_validate({**spec, "candidates": [changing]})
    with pytest.raises(ValueError, match="take them out of the recipe of b"):
        Spec.model_validate({**spec, "resources": {}, "candidates": [changing], "search": {"algorithm": "pbt"}})
    with pytest.raises(ValueError, match="rising shares"):
        Recipe(lr_changes=((0.5, 2.0), (0.5, 1.0)))
