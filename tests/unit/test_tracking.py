"""A run in MLflow: nested, with curves, data and files; the model as MLflow opens it."""

import json
from dataclasses import replace

import pytest

from pmray.bundle import open_bundle
from pmray.errors import RegistryError
from pmray.registry import register
from pmray.run import LEDGER, read_json
from pmray.selection.ledger import latest, read_ledger
from pmray.tracking import Split, Story, describe_model, track
from tests.made_run import made_run
from tests.tiny import tiny_bundle


def story(spec, **values):
    outcomes = list(latest(read_ledger(spec.folder / LEDGER)).values())
    split = Split("training", "made training", "rows.csv", 60, {"text": "string"})
    files = [spec.folder / name for name in ("spec.yaml", LEDGER, "missing.html")]
    verdict = read_json(spec.folder / "verdict.json")
    return Story("made", "f1_macro", outcomes, {"task": spec.task}, verdict, "d1", [split], files)._replace(**values)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run written twice, first before it was decided; gives client, URI, story, ids."""
    from mlflow.tracking import MlflowClient

    root = tmp_path_factory.mktemp("tracking")
    spec = made_run(root / "made")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    whole = story(spec)
    before = [one for one in whole.outcomes if one.stage not in ("final", "test")]
    first = track(whole._replace(outcomes=before, verdict=None), uri)
    ids = track(whole, uri)
    assert first.items() <= ids.items()
    return MlflowClient(tracking_uri=uri), uri, whole, ids


def runs_of(client):
    experiment = client.get_experiment_by_name("made")
    return {one.info.run_id: one for one in client.search_runs([experiment.experiment_id], max_results=500)}


def test_trials_lie_in_candidates_and_candidates_in_the_sweep(place):
    client, _, whole, ids = place
    runs = runs_of(client)
    parents = {one.info.run_id: one.data.tags.get("mlflow.parentRunId") for one in runs.values()}
    (top,) = [run for run, parent in parents.items() if parent is None]
    candidates = {one.candidate for one in whole.outcomes if one.candidate}
    children = {runs[run].info.run_name for run, parent in parents.items() if parent == top}
    assert children == candidates
    written = [one for one in whole.outcomes if one.stage in ("sweep", "final", "baseline")]
    assert set(ids) == {one.key for one in written}
    assert len(runs) == 1 + len(candidates) + len(written)
    for one in written:
        assert runs[parents[ids[one.key]]].info.run_name == one.candidate


def test_a_trial_has_its_curve_by_examples_its_recipe_its_times_and_its_end(place):
    client, _, whole, ids = place
    done = next(one for one in whole.outcomes if one.stage == "sweep" and len(one.curve) > 1)
    history = client.get_metric_history(ids[done.key], "validation_f1_macro")
    assert [(one.step, one.value) for one in history] == list(done.curve)
    run = runs_of(client)[ids[done.key]]
    assert run.data.params["lr"] == str(done.recipe["lr"])
    assert run.data.metrics["best"] == done.score
    assert run.data.metrics["best_low"] == pytest.approx(done.score - 0.05)
    assert run.info.end_time - run.info.start_time == pytest.approx(1000 * done.seconds, abs=2)
    ends = {one.status: runs_of(client)[ids[one.key]].info.status for one in whole.outcomes if one.stage == "sweep"}
    assert ends == {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "unavailable": "FAILED"}
    failed = next(one for one in whole.outcomes if one.status == "failed")
    assert "it broke" in runs_of(client)[ids[failed.key]].data.tags["pmray.error"]


def test_the_sweep_has_the_verdict_the_data_and_the_files(place):
    client, _, whole, _ = place
    top = next(one for one in runs_of(client).values() if "mlflow.parentRunId" not in one.data.tags)
    assert whole.verdict["words"][0] in top.data.tags["mlflow.note.content"]
    winner = next(line for line in whole.verdict["lines"] if line["name"] == whole.verdict["winner"])
    assert top.data.metrics["test_f1_macro"] == pytest.approx(winner["metrics"]["f1_macro"]["value"])
    (data,) = top.inputs.dataset_inputs
    assert (data.dataset.digest, data.tags[0].value) == ("d1", "training")
    assert json.loads(data.dataset.profile) == {"num_rows": 60}
    assert {one.path for one in client.list_artifacts(top.info.run_id)} == {"spec.yaml", LEDGER}


def test_writing_it_again_changes_nothing_and_a_fresh_run_is_another(place):
    client, uri, whole, ids = place
    before = len(runs_of(client))
    assert track(whole, uri) == ids
    assert len(runs_of(client)) == before


def test_a_trial_that_went_on_goes_on_in_mlflow(place):
    client, uri, whole, ids = place
    stopped = next(one for one in whole.outcomes if one.status == "stopped")
    longer = replace(stopped, status="done", examples=180, curve=(*stopped.curve, (180, 0.9)))
    others = [one for one in whole.outcomes if one.key != stopped.key]
    assert track(whole._replace(outcomes=[*others, longer]), uri) == ids
    history = client.get_metric_history(ids[stopped.key], "validation_f1_macro")
    assert [(one.step, one.value) for one in history] == list(longer.curve)
    assert client.get_run(ids[stopped.key]).info.status == "FINISHED"


def test_a_spec_that_changed_keeps_what_was_first_and_tells_what_is_now(place):
    client, uri, whole, _ = place
    track(whole._replace(params={"task": "another", "search.trials": 9}), uri)
    top = next(one for one in runs_of(client).values() if "mlflow.parentRunId" not in one.data.tags)
    assert top.data.params == {"task": "text-classification", "search.trials": "9"}
    assert top.data.tags["now: task"] == "another"


def test_a_version_belongs_to_the_trial_that_made_it_and_opens_by_pyfunc(place, tmp_path):
    import mlflow
    import pandas as pd

    from pmray.serving.scorer import Scorer

    _, uri, whole, ids = place
    bundle = open_bundle(tiny_bundle(tmp_path / "bundle"))
    describe_model(bundle)
    made_by = ids[next(one.key for one in whole.outcomes if one.stage == "final")]
    version = register(bundle, uri, metrics={}, params={}, run_id=made_by)
    client = place[0]
    assert client.get_model_version(version.name, version.version).run_id == made_by
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    assert [one.name for one in model.metadata.signature.inputs] == ["text"]
    rows = pd.DataFrame({"text": ["good phone", "bad phone"]}, index=[5, 6])
    answers = model.predict(rows)
    expected = [one.values for one in Scorer(bundle)(rows.to_dict("records"))]
    assert answers["label"].tolist() == [one["label"] for one in expected]
    assert answers.index.tolist() == [5, 6]
    example = json.loads((bundle.folder / "input_example.json").read_text())
    assert example["columns"] == ["text"]


def test_a_store_that_cannot_be_opened_is_named(place, tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database, and long enough to be told so" * 100)
    with pytest.raises(RegistryError, match=r"mlflow\.db cannot be opened"):
        track(place[2], f"sqlite:///{tmp_path / 'mlflow.db'}")
