"""No mistake in a spec hides another, and each is told once, where it is."""

import copy

import pytest

from pmray.errors import SpecError
from pmray.spec_file import spec_from

MINIMAL = {"task": "text-classification", "data": {"train": "train.csv"}, "candidates": [{"model": "a/bert"}]}


def mistakes(values, *overrides):
    with pytest.raises(SpecError) as caught:
        spec_from(copy.deepcopy(values), overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"score": "f1_marco"}, "score: Unknown score 'f1_marco'. Did you mean 'f1_macro'?"),
        ({"data": {"train": "a", "columns": {"txt": "a"}}}, "data.columns"),
    ],
)
def test_a_wrong_score_or_role_is_told_with_its_place_beside_other_mistakes(changes, told):
    found = mistakes({**MINIMAL, **changes, "name": "no spaces please"})
    assert len(found) == 2
    assert any(line.startswith(told) for line in found)


def test_all_mistakes_of_a_recipe_are_told():
    recipe = {"lr": 3, "epocs": 2, "batch": 8}
    assert len(mistakes({**MINIMAL, "candidates": [{"model": "a/bert", "recipe": recipe}]})) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"train": 5}}, "data.train"),
        ({"data": {"train": {"hub": {"path": "a", "paht": "b"}}}}, "did you mean `path`"),
        ({"data": {"train": "a", "validation": ["a", 1]}}, "data.validation"),
        ({"data": {"train": "a", "test": True}}, "data.test"),
        ({"serve": {"replicas": "many"}}, "serve.replicas"),
    ],
)
def test_a_value_of_no_allowed_kind_is_one_mistake(changes, words):
    (line,) = mistakes({**MINIMAL, **changes})
    assert words in line


def test_a_mistake_is_blamed_on_the_override_that_made_it_and_on_no_other():
    assert mistakes(MINIMAL, "serach.trials=4") == ["--set: serach: no such key; did you mean `search`?"]
    innocent = {**MINIMAL, "search": {"trials": 2, "trials_": 3}}
    assert mistakes(innocent, "search.trials=4") == ["search.trials_: no such key; did you mean `trials`?"]


def test_overrides_leave_the_callers_dictionary_alone():
    values = copy.deepcopy({**MINIMAL, "search": {"trials": 2}})
    before = copy.deepcopy(values)
    assert spec_from(values, ["search.trials=4", "candidates.0.layers=1"]).search.trials == 4
    assert values == before
