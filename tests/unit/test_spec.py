import pytest
import yaml

from pmray.errors import SpecError
from pmray.spec import Candidate, Recipe
from pmray.spec_file import load_spec, spec_from

GOOD = {
    "name": "good",
    "task": "text-classification",
    "data": {"train": "train.csv"},
    "candidates": ["google-bert/bert-base-uncased", {"model": "package:tiny/model", "layers": 3}],
}

BAD = """\
taks: text-classification
task: text-clasification
data:
  train: train.csv
  validation: 1.5
candidates:
  - {model: bert, lr: 3e-5}
search: {trails: 4}
decide: {prefer: latencyy}
"""


def test_every_mistake_is_reported_at_once_with_its_line_and_the_nearest_name(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    with pytest.raises(SpecError) as raised:
        load_spec(path)
    message = str(raised.value)
    assert message.startswith(f"{path} cannot be used (6 mistakes); nothing was started.")
    for expected in (
        "line 1: taks: no such key; did you mean `task`?",
        "line 2: task: Unknown task 'text-clasification'. Did you mean 'text-classification'?",
        "line 5: data.validation: a fraction must lie between 0 and 1, but got 1.5",
        "line 7: candidates.0.lr: no such key; a fixed value goes under `recipe: {lr: ...}`",
        "line 8: search.trails: no such key; did you mean `trials`?",
        "line 9: decide.prefer: must be 'latency', 'parameters', 'training' or 'score', but got 'latencyy'",
    ):
        assert expected in message


def test_file_and_object_are_the_same_thing(tmp_path):
    spec = spec_from({**GOOD, "search": {"trials": 3}, "decide": {"max_parameters": "400M"}})
    path = tmp_path / "spec.yaml"
    path.write_text(spec.to_yaml())
    assert load_spec(path) == spec
    assert spec.decide.max_parameters == 400_000_000


def test_the_name_comes_from_the_file_where_none_is_given(tmp_path):
    path = tmp_path / "my reviews.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in GOOD.items() if key != "name"}))
    assert load_spec(path).name == "my-reviews"


def test_set_overrides_any_key():
    spec = spec_from(GOOD, ["search.trials=4", "candidates.1.layers=2", "data.columns.text=message"])
    assert (spec.search.trials, spec.candidates[1].layers, spec.data.columns) == (4, 2, {"text": "message"})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.trials", "needs key=value"),
        ("search.trials=0", "--set: search.trials"),
        ("candidates.7.layers=2", "not a position between 0 and 1"),
        ("task.name=x", "task: must be text"),
        ("candidates.0.layers=2", "`candidates.0` is text"),
        ("search.trials=[1", "is not YAML"),
    ],
)
def test_a_bad_override_is_named(override, message):
    with pytest.raises(SpecError, match=message.replace("[", r"\[")):
        spec_from(GOOD, [override])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": []}, "at least 1 item"),
        ({"candidates": ["a/bert", "b/bert"]}, "two candidates are called 'bert'"),
        ({"candidates": [{"model": "bert", "space": {"seed": {"choice": [1]}}}]}, "the seed is not a hyper-parameter"),
        (
            {"candidates": [{"model": "bert", "recipe": {"lerning_rate": 1}}]},
            "recipe.lerning_rate: no such key; did you mean `lr`?",
        ),
        ({"candidates": [{"model": "bert", "recipe": {"lr": -1}}]}, "greater than 0"),
        ({"candidates": [{"model": "bert", "space": {"lr": {"log": [1e-4, 1e-5]}}}]}, "0 < low < high must hold"),
        ({"candidates": [{"model": "bert", "space": {"lr": [1e-4, 1e-5]}}]}, "must be {log:"),
        ({"candidates": [{"model": "bert", "space": {"max_length": {"uniform": [8, 64]}}}]}, "needs {choice: [...]}"),
        ({"storage": "ftp://host/runs"}, "must be a folder, s3://, gs:// or abfs://"),
        ({"storage": "s3://bucket/runs"}, "an object store cannot hold the default registry"),
        ({"score": "f1_makro"}, "Did you mean 'f1_macro'"),
        ({"data": {"train": "a.csv", "columns": {"texts": "message"}}}, "Did you mean 'text'"),
        ({"data": {"train": "a.csv", "validation": 0.5, "test": 0.45}}, "leave at least 10 %"),
        ({"name": "a/b"}, "use letters"),
    ],
)
def test_a_wrong_value_says_what_is_right(change, message):
    with pytest.raises(SpecError) as raised:
        spec_from({**GOOD, **change})
    assert message in str(raised.value)


def test_a_key_given_twice_is_an_error_since_yaml_would_drop_the_first(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("task: text-classification\ntask: other\n")
    with pytest.raises(SpecError, match="line 2: `task` is given twice"):
        load_spec(path)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "\tx: 1"])
def test_what_is_not_a_spec_is_said_in_one_sentence(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"odd\.yaml"):
        load_spec(path)
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path / "missing.yaml")


def test_names_of_candidates_are_what_people_call_them():
    assert Candidate.model_validate("google-bert/bert-base-uncased@abc").name == "bert-base-uncased"
    assert Candidate.model_validate({"model": "package:tiny/model", "layers": 3}).name == "tiny-3-layers"


def test_a_changed_recipe_is_checked_and_equal_values_are_equal_recipes():
    assert Recipe().changed({"epochs": 3}) == Recipe(epochs=3.0)
    with pytest.raises(ValueError, match="greater than 0"):
        Recipe().changed({"lr": 0})
