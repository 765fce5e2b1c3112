"""The command line: one message and a code, never a traceback; JSON where a machine may read."""

import json
import subprocess
import sys
import types

import pytest
import yaml

from pmray.cli import app, main
from pmray.errors import NoVerdict
from pmray.spec_file import load_spec
from tests.tiny import tiny_bundle

SPEC = {"task": "text-classification", "data": {"train": "train.csv"}, "candidates": ["a/bert"]}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line in this process; gives (exit code, standard output, standard error)."""
    import signal

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pmray", *map(str, arguments)])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "image-classification"])
def test_init_prints_a_spec_that_can_be_loaded(run, tmp_path, task):
    code, out, _ = run("init", task)
    assert code == 0
    (tmp_path / "mine.yaml").write_text(out)
    spec = load_spec(tmp_path / "mine.yaml")
    assert (spec.name, spec.task, len(spec.candidates)) == ("mine", task, 3)


def test_init_of_an_unknown_task_proposes_the_nearest(run):
    code, out, err = run("init", "text-clasification")
    assert (code, out) == (1, "")
    assert err.startswith("error: Unknown task 'text-clasification'. Did you mean 'text-classification'?")


@pytest.mark.parametrize("verb", ["sweep"])
def test_a_bad_spec_is_one_message_and_starts_nothing(spec, verb, tmp_path):
    spec.write_text("task: text-clasification\nserach: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pmray", verb, spec], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {spec} cannot be used (4 mistakes); nothing was started.\n")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["spec.yaml"]


@pytest.fixture
def workflow(monkeypatch):
    """Stands for ``pmray.stages.workflow``, which needs Ray."""
    module = types.ModuleType("pmray.stages.workflow")
    monkeypatch.setitem(sys.modules, "pmray.stages.workflow", module)
    return module


def test_a_run_without_a_verdict_exits_with_3(run, spec, workflow):
    def sweep(spec, **_):
        raise NoVerdict("no candidate finished")

    workflow.sweep = sweep
    assert run("sweep", spec) == (3, "", "error: no candidate finished\n")


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(run, spec, workflow):
    def sweep(spec, **_):
        raise KeyboardInterrupt

    workflow.sweep = sweep
    code, out, err = run("sweep", spec)
    assert (code, out) == (130, "")
    assert "the same command continues" in err


def test_options_reach_the_workflow(run, spec, workflow):
    asked = []
    workflow.sweep = lambda spec, **options: (
        asked.append((spec.search.trials, spec.candidates[0].layers, options)) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        app(
            ["sweep", str(spec), "--set", "search.trials=4", "--set", "candidates.0={model: a/b, layers: 2}", "--fresh"]
        )
    [(trials, finalists, options)] = asked
    assert (trials, finalists) == (4, 2)
    assert {"address": None, "fresh": True, "strict": False, "force": False}.items() <= options.items()


def test_recipes_are_read_as_yaml(run, spec, workflow, tmp_path):
    asked, bundle = [], tiny_bundle(tmp_path / "bundle")
    settings = json.loads((bundle / "pmray.json").read_text())
    (bundle / "pmray.json").write_text(json.dumps({**settings, "validation_score": 0.5}))
    workflow.fit = lambda spec, candidate, **options: asked.append((candidate, options)) or bundle
    code, out, _ = run("fit", spec, "--candidate", "bert", "--recipe", "lr=0.001", "--recipe", "dropout=null", "--json")
    assert (code, json.loads(out)["validation_score"]) == (0, 0.5)
    [(candidate, options)] = asked
    assert (candidate, options["recipe"], options["seed"]) == ("bert", {"lr": 0.001, "dropout": None}, 0)


def test_rank_as_json_can_be_parsed(run, spec, workflow):
    from pmray.selection.proxies import Ranked

    workflow.rank = lambda spec, **_: [Ranked("bert", "bert", 10, {"LogME": 0.5}, 1.0, True, "kept")]
    code, out, _ = run("rank", spec, "--json")
    assert (code, json.loads(out)[0]["proxies"]) == (0, {"LogME": 0.5})
    code, out, err = run("rank", spec, "--quiet")
    assert (code, "0.500" in out, err) == (0, True, "")


def test_runs_as_json_are_a_list(run, tmp_path):
    code, out, _ = run("runs", "--storage", tmp_path, "--json")
    assert (code, json.loads(out)) == (0, [])


@pytest.mark.parametrize(
    "arguments", [["runs"], ["show", "job"], ["report", "job"], ["leaderboard", "job"], ["replay", "job"]]
)
def test_runs_are_looked_for_in_the_folder_runs(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    if arguments == ["runs"]:
        assert (code, "no runs here yet" in out) == (0, True)
    else:
        assert code == 1 and err.startswith("error: ") and "job" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-verb"],
        ["sweep"],
        ["compare", "one", "data.csv"],
        ["fit", "x.yaml", "--candidate", "a", "--recipe", "lr"],
    ],
)
def test_wrong_usage_exits_with_2(run, spec, workflow, arguments):
    workflow.fit = None
    code, out, err = run(*(str(spec) if one == "x.yaml" else one for one in arguments))
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_a_recipe_that_is_not_yaml_is_wrong_usage(run, spec, workflow):
    workflow.fit = None
    code, _, err = run("fit", spec, "--candidate", "a", "--recipe", "lr={")
    assert code in (1, 2)
    assert "lr={" in err


@pytest.fixture
def said(tmp_path):
    """Labelled rows, and two files of predictions of them."""
    rows = [{"text": f"row {n}", "label": "ab"[n % 2], "site": "xy"[n % 3 > 0]} for n in range(90)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, wrong in (("good", 10), ("bad", 3)):
        values = [("ab"[n % 2] if n % wrong else "ba"[n % 2]).upper() for n in range(90)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["prediction", *values, ""]))
    return tmp_path / "rows.jsonl", tmp_path / "good.csv", tmp_path / "bad.csv"


def test_evaluate_shows_slices_and_errors_of_a_file(run, said):
    data, good, _ = said
    asked = ["evaluate", good, data, "--by", "site", "--slices", "auto", "--errors", "2", "--min-slice-rows", "20"]
    code, out, _ = run(*asked)
    assert code == 0
    for part in ("confusion", "by site", "site = x", "worst slices of", "most confident errors", "rows.jsonl:1 "):
        assert part in out
    code, out, _ = run(*asked, "--json")
    found = json.loads(out)
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(0.9)
    assert [one["row_id"] for one in found["mistakes"]] == ["rows.jsonl:1", "rows.jsonl:11"]
    assert {one["rows"] for one in found["slices"]["site"]} == {30, 60}
    assert (found["calibration"], found["speed"]) == (None, None)


def test_compare_shows_pairs_and_disagreements(run, said):
    data, good, bad = said
    code, out, _ = run("compare", good, bad, data, "--examples", "3")
    assert code == 0
    assert "they disagree on 33 of 90 rows" in out
    assert "only first right" in out and "where they disagree" in out
    found = json.loads(run("compare", good, bad, data, "--examples", "3", "--json")[1])
    pair = found["comparisons"][0]
    assert (pair["both_right"], pair["first_right"], pair["second_right"], pair["both_wrong"]) == (54, 27, 6, 3)
    assert len(found["examples"]) == 3 and len(found["groups"]) == 2


def test_an_unknown_column_is_one_message(run, said):
    data, good, _ = said
    code, out, err = run("evaluate", good, data, "--by", "sit")
    assert (code, out) == (1, "")
    assert "the data has no column 'sit'" in err and "did you mean 'site'?" in err


def test_labels_name_what_a_file_calls_label_0(run, said, tmp_path):
    (tmp_path / "raw.csv").write_text("\n".join(["prediction", *(f"LABEL_{n % 2}" for n in range(90)), ""]))
    code, out, _ = run("evaluate", tmp_path / "raw.csv", said[0], "--labels", "a, b", "--json")
    assert (code, json.loads(out)["score"]["value"]) == (0, 1)
    code, out, err = run("evaluate", tmp_path / "raw.csv", said[0])
    assert (code, out) == (1, "")
    assert "row 1: prediction 'LABEL_0' is no label of the data" in err


def test_an_unknown_slice_search_is_wrong_usage(run, said):
    assert run("evaluate", said[1], said[0], "--slices", "best")[0] == 2
