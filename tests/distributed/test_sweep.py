"""The whole story on a real local Ray cluster, with models so small that a fit takes a second."""

import json
import threading
import time
from io import StringIO

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from ray.train import FailureConfig
from rich.console import Console

import pmray
from pmray.bundle import open_bundle
from pmray.data.images import decode, to_base64
from pmray.distributed import train
from pmray.distributed.cluster import AVOIDED, avoided_nodes, capacity
from pmray.errors import ClusterError, NoVerdict
from pmray.registry import find
from pmray.selection.ledger import latest, read_ledger
from pmray.serving.scorer import Scorer
from pmray.spec import Recipe
from pmray.stages import workflow
from pmray.stages.fitting import encode
from pmray.stages.preparation import prepare
from pmray.training import loop
from pmray.training.trial import carry_out, read_predictions
from tests.tiny import RECIPE, WORDS, tiny_image_model, tiny_images, tiny_model, tiny_spec, tiny_tagged, write_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def swept(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("sweep")
    damaged = tiny_model(folder / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    spec = tiny_spec(folder)
    spec["candidates"].append({"model": str(damaged), "name": "damaged"})
    spec["search"]["experience"] = "on"
    return pmray.sweep(pmray.spec_from(spec)), pmray.spec_from(spec)


def test_a_learnable_problem_is_learned_and_the_baselines_are_in_the_table(swept):
    verdict = swept[0].verdict
    assert verdict.line("bert").score.value > 0.8
    assert {line.name for line in verdict.lines if line.baseline} == {"majority class", "TF-IDF + logistic regression"}
    assert verdict.winner in {"bert", "llama"}


def test_a_damaged_candidate_is_an_outcome_and_not_the_end(swept):
    outcomes = [one for one in swept[0].outcomes if one.candidate == "damaged"]
    assert [one.status for one in outcomes] == ["unavailable"]
    assert "model.safetensors is damaged" in outcomes[0].error


def test_trial_zero_of_every_candidate_is_its_default_recipe(swept):
    first = {}
    for one in swept[0].outcomes:
        if one.stage == "sweep" and one.status in ("done", "stopped"):
            first.setdefault(one.candidate, []).append(one.recipe["lr"])
    assert all(3e-3 in rates for rates in first.values())


def test_the_verdict_is_written_with_everything_that_was_decided(swept):
    written = json.loads((swept[0].folder / "verdict.json").read_text())
    assert written["winner"] == swept[0].verdict.winner
    assert written["test_opened"] == 1
    assert written["calibration"][written["winner"]]["log_loss"]["after"] < 1
    assert {"f1_macro", "accuracy", "precision_macro", "recall_macro", "f1_positive"} <= set(
        written["lines"][0]["metrics"]
    )


def test_predictions_are_kept_and_weights_of_losers_are_not(swept):
    finals = [one for one in swept[0].outcomes if one.stage == "final" and one.status == "done"]
    ids, scores = read_predictions(swept[0].folder / "predictions" / finals[0].key / "test.parquet")
    assert len(ids) == len(scores) == 80
    assert not (swept[0].folder / "checkpoints").exists()
    assert not (swept[0].folder / ".ray").exists()


def test_the_bundle_answers_as_its_golden_rows_say_and_as_transformers_does(swept):
    from transformers import pipeline

    scorer = Scorer(open_bundle(swept[0].bundle))
    assert scorer.health() is None
    texts = [row["text"] for row in pq.read_table(swept[1].data.test).to_pylist()]
    alone = pipeline("text-classification", model=str(swept[0].bundle), top_k=None)(texts)
    ours = [answer.values["scores"] for answer in scorer([{"text": text} for text in texts])]
    for theirs, mine in zip(alone, ours, strict=True):
        assert {one["label"]: one["score"] for one in theirs} == pytest.approx(mine, abs=1e-4)


def test_a_sweep_ends_with_a_report_a_card_and_runs_in_mlflow(swept):
    from huggingface_hub import ModelCard
    from mlflow.tracking import MlflowClient

    result, spec = swept
    assert result.report == result.folder / "report.html"
    assert '<section id="leaderboard"' in result.report.read_text()
    card = ModelCard.load(result.bundle / "README.md")
    assert card.data.eval_results[0].metric_value == round(result.verdict.line(result.verdict.winner).score.value, 4)
    client = MlflowClient(tracking_uri=spec.registry_uri)
    made_by = client.get_run(client.get_model_version(result.version.name, result.version.version).run_id)
    assert made_by.data.params["candidate"] == result.verdict.winner
    candidate = client.get_run(made_by.data.tags["mlflow.parentRunId"])
    whole = candidate.data.tags["mlflow.parentRunId"]
    assert {"report.html", "ledger.jsonl", "verdict.json"} <= {one.path for one in client.list_artifacts(whole)}
    assert "signature" in (result.bundle / "MLmodel").read_text()


def test_a_version_keeps_files_of_its_own_and_what_the_model_said_of_validation_rows(swept):
    result, spec = swept
    version = find("tiny", spec.registry_uri)
    assert version.folder.parent == result.folder.parent / "registered" / "tiny"
    assert (version.folder / "model.safetensors").samefile(result.bundle / "model.safetensors")
    reference = open_bundle(version.folder).reference()
    assert reference.column_names == ["length", "words", "prediction", "scores"]
    assert len(reference) == 60
    assert set(reference["prediction"].to_pylist()) <= {'"negative"', '"positive"'}


def test_running_again_repeats_nothing_and_says_the_same(swept):
    result, spec = swept
    before = read_ledger(result.folder / "ledger.jsonl")
    again = pmray.sweep(spec)
    assert len(read_ledger(result.folder / "ledger.jsonl")) == len(before)
    assert again.verdict.to_json() == result.verdict.to_json()
    assert str(again.version) == str(result.version)


def test_more_trials_continue_the_run(swept):
    result, spec = swept
    before = {one.key for one in read_ledger(result.folder / "ledger.jsonl")}
    more = pmray.spec_from(spec, ["search.trials=5"])
    new = [one for one in pmray.sweep(more).outcomes if one.key not in before]
    # A trial that waited at a rung has a line each time it stopped.
    assert len({one.key for one in new if one.stage == "sweep"}) == 1


def test_two_workers_fit_like_one_sharded_or_not(tmp_path):
    spec = tiny_spec(tmp_path)
    candidate = {**spec["candidates"][0], "recipe": {**RECIPE, "epochs": 4, "precision": "fp32"}}
    ways = {
        "one": {},
        "two": {"workers": 2},
        "sharded": {"workers": 2, "shard": True, "checkpoint_activations": True},
    }
    scores, predictions, bundles = {}, {}, {}
    for name, resources in ways.items():
        one = {**spec, "name": name, "candidates": [{**candidate, "resources": resources}]}
        # Later ones find what the cluster has encoded for the first.
        one["encode"] = {"cluster_rows": 1}
        bundles[name] = pmray.fit(pmray.spec_from(one), "bert", seed=3)
        final = next(one for one in read_ledger(tmp_path / "runs" / name / "ledger.jsonl") if one.stage == "final")
        scores[name] = final.score
        predictions[name] = read_predictions(tmp_path / "runs" / name / "predictions" / final.key / "test.parquet")
    for name in ("two", "sharded"):
        assert abs(scores["one"] - scores[name]) <= 0.01
        assert predictions["one"][0] == predictions[name][0]
        np.testing.assert_allclose(predictions["one"][1], predictions[name][1], atol=0.02)
    rows = [{"text": text} for text in pq.read_table(tmp_path / "test.parquet")["text"].to_pylist()]
    told = np.stack([answer.scores for answer in Scorer(open_bundle(bundles["sharded"]))(rows)])
    np.testing.assert_allclose(told, predictions["sharded"][1], atol=1e-4)


def test_a_candidate_with_two_workers_takes_part_in_the_sweep(tmp_path):
    spec = tiny_spec(tmp_path, search={"trials": 1, "finalists": 1, "seeds": 1, "rank_rows": 60})
    spec["candidates"] = [{**spec["candidates"][0], "resources": {"workers": 2}}]
    outcomes = pmray.sweep(pmray.spec_from(spec)).outcomes
    assert [one.status for one in outcomes if one.stage == "sweep"].count("done") >= 1
    assert all(one.facts["parameters"] for one in outcomes if one.stage == "final")


def test_a_plan_that_cannot_fit_is_refused_with_the_arithmetic(tmp_path):
    spec = tiny_spec(tmp_path, resources={"workers": 64, "cpus_per_worker": 2})
    started = time.monotonic()
    with pytest.raises(ClusterError, match="64 workers x 2 CPUs = 128"):
        pmray.sweep(pmray.spec_from(spec))
    assert time.monotonic() - started < 30


def test_no_candidate_at_all_is_said_before_ray_does_anything(tmp_path):
    spec = tiny_spec(tmp_path, candidates=[str(tmp_path / "nowhere" / "model")])
    with pytest.raises(NoVerdict, match="no such folder"):
        pmray.sweep(pmray.spec_from(spec))


def test_what_a_run_found_orders_the_candidates_of_the_next(swept):
    result, spec = swept
    trials = [one for one in result.outcomes if one.stage == "sweep" and one.score is not None]
    lines = [json.loads(line) for line in spec.experience.read_text().splitlines()]
    assert {one["key"] for one in lines} >= {one.key for one in trials}
    later = pmray.spec_from(spec, ["name=later", "data.max_train_rows=120", "decide.max_memory=1G"])
    ranked = pmray.rank(later)
    assert all("experience" in one.proxies and one.cost.latency_ms > 0 for one in ranked)
    # It is written down: what is found meanwhile changes nothing.
    spec.experience.unlink()
    assert pmray.rank(later) == ranked
    with pytest.raises(NoVerdict, match=r"no candidate is within the limits.*\n  \w+: \d+ MB, over decide.max_memory"):
        pmray.rank(pmray.spec_from(later, ["decide.max_memory=1k"]))


def test_rank_alone_orders_candidates(tmp_path):
    ranked = pmray.rank(pmray.spec_from(tiny_spec(tmp_path)))
    assert {one.candidate for one in ranked} == {"bert", "llama"}
    assert all(one.kept for one in ranked)


def test_what_tune_ships_for_a_trial_is_small():
    import cloudpickle

    from pmray.distributed.tune import _trial

    assert len(cloudpickle.dumps(_trial)) < 100_000


def driver_of(keys, reduction=float("inf"), candidates=("bert",), leaders=None, rungs=(10, 30)):
    """What Tune talks to, with trials of these keys and nothing behind them; the first of each candidate is default."""
    from types import SimpleNamespace

    from pmray.distributed.proposals import Proposals
    from pmray.distributed.tune import _News
    from pmray.selection.halving import Leaders

    proposed = [
        SimpleNamespace(number=number, key=key, candidate=candidates[number % len(candidates)])
        for number, key in enumerate(keys)
    ]
    asked = iter([*proposed, None])
    search = SimpleNamespace(told=[], tell=lambda *told: search.told.append(told), among=[])
    search.ask = lambda among=None, like=None: (search.among.append(among), next(asked, None))[1]
    search.learn = lambda tried: search.told.append((tried.candidate, tried.score))

    def make_work(proposal):
        recipe = "default" if proposal.number < len(candidates) else proposal.number
        pretrained = SimpleNamespace(name=proposal.candidate)
        return SimpleNamespace(key=proposal.key, pretrained=pretrained, rungs=rungs, budget=rungs[-1], recipe=recipe)

    proposals = Proposals(
        search,
        make_work,
        trials=len(keys),
        enough=lambda: False,
        reduction=reduction,
        leaders=Leaders(leaders or len(candidates), rungs[-2], dict.fromkeys(candidates, "default"), rows=10**6),
    )
    ended = []
    resources = dict.fromkeys(candidates, pmray.Spec.model_fields["resources"].default)
    news = _News(proposals, resources, lambda work: None, lambda work, rung: None, lambda *end: ended.append(end))
    return search, proposals, news, ended


def only(config):
    """The one (work, goal) that a trial of Tune's is to carry out."""
    (found,) = config["works"]
    return found


def test_a_trial_whose_worker_died_before_it_began_is_handed_out_again():
    from types import SimpleNamespace

    from ray.tune.search import Searcher

    search, proposals, news, ended = driver_of(["a work"])
    work = only(proposals.suggest("first"))[0]
    assert proposals.suggest("too early") is None
    for number in range(2):
        news.on_trial_error(0, [], SimpleNamespace(trial_id="first" if number == 0 else "again"))
        assert not ended
        assert only(proposals.suggest("again"))[0] is work
    # It never starts: so be it.
    news.on_trial_error(0, [], SimpleNamespace(trial_id="again"))
    assert [(facts.status, may_pass) for _, facts, may_pass in ended] == [("failed", True)]
    assert ended[0][1].error.startswith("the trial's worker process died before the trial began")
    assert len(ended[0][1].measured["retried_after"]) == 2
    assert proposals.suggest("third") == Searcher.FINISHED
    assert search.told == [(0, None)]


def test_a_host_that_fails_what_others_run_gets_no_more_trials(monkeypatch):
    from types import SimpleNamespace

    from pmray.distributed.tune import Host
    from pmray.training.trial import Facts

    monkeypatch.setenv(AVOIDED, "")
    nodes = [
        {"NodeID": one, "NodeManagerAddress": one, "Alive": True, "Resources": {"CPU": 2.0}} for one in ("bad", "good")
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    _, proposals, news, ended = driver_of([f"t{number}" for number in range(5)])

    def run(name):
        config = proposals.suggest(name)
        host = "good" if "bad" in config["without"] else "bad"
        trial = SimpleNamespace(trial_id=name)
        news.on_trial_start(0, [], trial)
        news.on_trial_result(0, [], trial, {"host": Host(host, host)})
        facts = Facts(status="done", score=0.5)
        if host == "bad":
            facts = Facts(status="failed", error='  File "x.py"\nRuntimeError: the driver of this GPU is too old')
        news.on_trial_result(0, [], trial, {"key": only(config)[0].key, "facts": facts})
        news.on_trial_complete(0, [], trial)
        return host

    ran = [run(f"trial-{number}") for number in range(8)]
    assert ran == ["bad", "good"] * 3 + ["good"] * 2
    assert [facts.status for _, facts, _ in ended] == ["done"] * 5
    assert "too old" in ended[0][1].measured["retried_after"][0]
    assert proposals.avoid == {"bad"}
    assert avoided_nodes() == ("bad",), "finalists' fits stay away from it too"


def end_part(news, name, status, curve):
    """Let a trial end, or wait; one without a score has failed."""
    from types import SimpleNamespace

    from pmray.distributed.tune import Host
    from pmray.training.trial import Facts

    trial = SimpleNamespace(trial_id=name)
    (work,) = news.proposals.running_in(name)
    news.on_trial_start(0, [], trial)
    news.on_trial_result(0, [], trial, {"host": Host("n", "n")})
    examples, score = curve[-1] if curve else (0, None)
    error = None if curve else "loss is nan; use a lower lr"
    facts = Facts(status, score, examples, tuple(curve), 1.0, error=error)
    news.on_trial_result(0, [], trial, {"key": work.key, "facts": facts})
    news.on_trial_complete(0, [], trial)


def test_default_recipes_go_to_the_last_rung_and_those_that_lead_there_get_more():
    names = ("early", "late", "weak")
    search, proposals, news, _ = driver_of([*"abcde"], reduction=3, candidates=names, leaders=1, rungs=(10, 30, 90))
    goals = [only(proposals.suggest(one))[1] for one in "abc"]
    assert goals == [30, 30, 30], "none waits before"
    assert proposals.suggest("d") is not None and search.among[-1] == set(names), "a free worker is not kept waiting"
    end_part(news, "a", "stopped", [(10, 0.9), (30, 0.9)])
    end_part(news, "b", "stopped", [(10, 0.1), (30, 0.95)])
    end_part(news, "c", "stopped", [(10, 0.5), (30, 0.6)])
    assert only(proposals.suggest("e"))[1] == 10
    assert search.among[-1] == {"late"}


def test_the_best_trial_of_each_that_leads_goes_to_its_end_behind_those_of_a_faster_one():
    from ray.tune.search import Searcher

    names = ("fast", "slow", "weak")
    _, proposals, news, _ = driver_of([*"abcde"], reduction=3, candidates=names, leaders=2, rungs=(10, 30, 90))
    curves = {"a": [(10, 0.7), (30, 0.9)], "b": [(10, 0.1), (30, 0.8)], "c": [(10, 0.1), (30, 0.5)]}
    curves |= {"d": [(10, 0.8)], "e": [(10, 0.1)]}
    for name, curve in curves.items():
        assert only(proposals.suggest(name))[1] == curve[-1][0]
        end_part(news, name, "stopped", curve)
    on = {name: only(proposals.suggest(name)) for name in ("d on", "e on")}
    assert {(work.key, goal) for work, goal in on.values()} == {("d", 30), ("e", 30)}
    for name, (work, _) in on.items():
        end_part(news, name, "stopped", [(30, {"d": 0.95, "e": 0.2}[work.key])])
    # Two places of five, a and d; b has none, but is the best of its own.
    last = {name: only(proposals.suggest(name)) for name in ("first", "second", "third")}
    assert {(work.key, goal) for work, goal in last.values()} == {("a", 90), ("d", 90), ("b", 90)}
    assert proposals.suggest("none") is None
    for name in last:
        end_part(news, name, "done", [(90, 0.9)])
    assert proposals.suggest("end") == Searcher.FINISHED


def test_trials_wait_at_a_rung_until_all_have_arrived_and_the_best_go_on():
    from ray.tune.search import Searcher

    search, proposals, news, ended = driver_of(["a", "b", "c", "d"], reduction=3)
    scores = {"a": 0.5, "b": 0.7, "c": 0.6, "d": 0.7}

    def end(name, status, examples, score):
        end_part(news, name, status, [(examples, score)] if examples else [])

    for name, score in scores.items():
        assert only(proposals.suggest(name))[1] == 10
        if name == "d":
            on = [only(proposals.suggest("again-b"))]
            assert proposals.suggest("early") is None, "d is under way; whatever it brings, b goes on, and c may not"
        end(name, "stopped", 10, score)
    # Of equal scores both go on, and nothing else.
    on.append(only(proposals.suggest("again-d")))
    assert [(work.key, goal) for work, goal in on] == [("b", 30), ("d", 30)]
    assert proposals.suggest("none") is None
    end("again-b", "done", 30, 0.9)
    end("again-d", "failed", 0, None)
    assert proposals.suggest("end") == Searcher.FINISHED
    whole = {work.key: facts for work, facts, _ in ended}
    assert whole["b"].curve == ((10, 0.7), (30, 0.9)) and whole["b"].seconds == 2.0
    assert (whole["a"].status, whole["d"].status) == ("stopped", "failed")
    assert search.told == [(0, 0.5), (1, 0.7), (2, 0.6), (3, 0.7), ("bert", 0.9), ("bert", 0.7)]


def test_a_fit_that_waited_gives_what_it_would_have_given(tmp_path):
    """With and without waiting at rungs, trials that went to their end have the same curve, bit for bit."""
    spec = tiny_spec(tmp_path, search={"trials": 5, "finalists": 1, "seeds": 1, "rank_rows": 60, "algorithm": "random"})
    whole = pmray.sweep(pmray.spec_from({**spec, "name": "whole"}, ["search.stop=false"])).outcomes
    swept = pmray.sweep(pmray.spec_from({**spec, "name": "waits"}))
    trials = [one for one in latest(swept.outcomes).values() if one.stage == "sweep"]
    went_on = {one.key: one for one in trials if one.status == "done"}
    assert 1 <= len(went_on) < 5
    assert all(one.facts["resumed_at"] > 0 for one in went_on.values())
    curves = {one.key: one.curve for one in whole if one.stage == "sweep"}
    assert [one.curve for one in trials] == [curves[one.key][: len(one.curve)] for one in trials]
    assert sum(len(one.curve) > 1 for one in trials) > len(went_on), "others have gone on too, not as far"
    states = list((swept.folder / "states").glob("*")) if (swept.folder / "states").is_dir() else []
    assert not states, "what waited in vain is deleted"
    before = len(read_ledger(swept.folder / "ledger.jsonl"))
    pmray.sweep(pmray.spec_from({**spec, "name": "waits"}))
    assert len(read_ledger(swept.folder / "ledger.jsonl")) == before


def test_a_trial_that_was_interrupted_on_its_way_to_a_later_rung_tells_its_whole_curve(tmp_path, monkeypatch):
    from dataclasses import replace

    from pmray.distributed.tune import _until

    class Killed(BaseException):
        pass

    spec, console = pmray.spec_from(tiny_spec(tmp_path)), Console(file=StringIO())
    prepared = prepare(spec, console)
    encode(prepared, capacity(), console)
    work = prepared.work("sweep", "bert", prepared.arms["bert"].default, 0, states=tmp_path / "states")
    # A state after every step.
    work = replace(work, state_seconds=1e-9)
    monkeypatch.setattr(loop, "KEEPING", 0.0)
    rungs, goal = [], work.rungs[1]

    def kill(rung):
        rungs.append(rung.examples)
        if rung.examples == goal:
            raise Killed

    with pytest.raises(Killed):
        _until(work, goal, kill, None)
    rungs.clear()
    facts = _until(work, goal, lambda rung: rungs.append(rung.examples), None)
    assert rungs == [goal], "the first one was behind it"
    assert (facts.status, [examples for examples, _ in facts.curve]) == ("stopped", list(work.rungs[:2]))
    whole = carry_out(replace(work, states=None, key="whole"))
    assert facts.curve == whole.curve[:2]


def test_fused_trials_whose_process_died_are_handed_out_alone_but_for_those_that_had_ended():
    from types import SimpleNamespace

    from pmray.distributed.proposals import Proposals
    from pmray.distributed.tune import _News
    from pmray.selection.halving import Leaders
    from pmray.selection.search import Arm, Search
    from pmray.spec import Choice, Log
    from pmray.training.trial import Facts

    space = {"lr": Log(log=(1e-5, 1e-3)), "batch_size": Choice(choice=[8, 16])}
    arms = [Arm("a", Recipe(batch_size=8), space), Arm("b", Recipe(batch_size=8), space)]

    def make_work(one):
        key = f"{one.candidate} {one.recipe.batch_size} {one.recipe.lr:g}"
        pretrained = SimpleNamespace(name=one.candidate)
        return SimpleNamespace(key=key, pretrained=pretrained, rungs=(10, 30), budget=30, recipe=one.recipe)

    proposals = Proposals(
        Search(arms),
        make_work,
        trials=9,
        enough=lambda: False,
        reduction=3,
        leaders=Leaders(2, 10, {arm.candidate: arm.default for arm in arms}, rows=10**6),
        fused={"a": 3, "b": 1},
    )
    ended = []
    resources = dict.fromkeys("ab", pmray.Spec.model_fields["resources"].default)
    news = _News(proposals, resources, lambda work: None, lambda work, rung: None, lambda *end: ended.append(end))
    # The default of b comes before what goes with that of a.
    handed = {name: proposals.suggest(name)["works"] for name in "xyz"}
    assert [len(one) for one in handed.values()][:2] == [1, 1]
    while len(handed["z"]) == 1:
        handed["z"] = proposals.suggest("z")["works"]
    mates = [work for work, _ in handed["z"]]
    assert 2 <= len(mates) <= 3
    assert {(work.pretrained.name, work.recipe.batch_size) for work in mates} == {("a", mates[0].recipe.batch_size)}
    # One has ended when the process dies under the others.
    trial = SimpleNamespace(trial_id="z")
    news.on_trial_start(0, [], trial)
    first, *others = mates
    news.on_trial_result(0, [], trial, {"key": first.key, "facts": Facts("done", 0.5, 30, ((10, 0.4), (30, 0.5)))})
    assert not ended
    news.on_trial_error(0, [], trial)
    assert [(work.key, facts.status) for work, facts, _ in ended] == [(first.key, "done")]
    again = [only(proposals.suggest(f"again-{number}"))[0].key for number in range(len(others))]
    assert sorted(again) == sorted(work.key for work in others)
    assert len(ended) == 1


def test_a_fused_sweep_finds_what_its_trials_find_alone(tmp_path, monkeypatch):
    from pmray.distributed.proposals import Proposals

    suggest, sizes = Proposals.suggest, []

    def noted(self, trial_id):
        config = suggest(self, trial_id)
        if isinstance(config, dict):
            sizes.append(len(config["works"]))
        return config

    monkeypatch.setattr(Proposals, "suggest", noted)
    spec = tiny_spec(tmp_path)
    recipe = {**spec["candidates"][0]["recipe"], "head_only": True}
    space = {"lr": {"choice": [1e-4, 1e-3, 1e-2]}}
    spec["candidates"] = [{**spec["candidates"][0], "recipe": recipe, "space": space}]
    spec["search"] |= {"trials": 4, "algorithm": "grid", "finalists": 1, "fuse": 3}
    spec = pmray.spec_from(spec)
    swept = [one for one in latest(pmray.sweep(spec).outcomes).values() if one.stage == "sweep"]
    assert len(swept) == 4
    assert sizes[:2] == [3, 1]
    assert not [one.facts["fused_problem"] for one in swept if one.facts.get("fused_problem")]
    prepared = prepare(spec, Console(file=StringIO()))
    for one in swept:
        alone = carry_out(prepared.work("sweep", one.candidate, Recipe(**one.recipe), spec.search.seed))
        expected = dict(alone.curve)
        assert one.curve and all(score == pytest.approx(expected[examples], abs=0.02) for examples, score in one.curve)


def test_a_recipe_that_was_changed_since_is_tried_although_all_trials_are_used_up(swept):
    result, spec = swept
    before = {one.key for one in read_ledger(result.folder / "ledger.jsonl")}
    changed = pmray.spec_from(spec, ["search.trials=5", "candidates.0.recipe.epochs=6"])
    new = [one for one in pmray.sweep(changed).outcomes if one.key not in before and one.stage == "sweep"]
    # A trial that waited at a rung has a line for that too.
    tried = {one.key: (one.candidate, one.recipe["epochs"]) for one in new if one.status != "unavailable"}
    assert list(tried.values()) == [("bert", 6.0)]


def test_an_interrupted_fit_leaves_no_thread_that_asks_ray_for_something(tmp_path, ray_cluster):
    """Ray ends a process that asks it for something after it was shut down, before anything can be said."""
    spec, console = pmray.spec_from(tiny_spec(tmp_path)), Console(file=StringIO())
    prepared = prepare(spec, console)
    encode(prepared, capacity(), console)
    recipes = {name: arm.default.changed({"epochs": 50}) for name, arm in prepared.arms.items()}
    works = [prepared.work("final", name, recipe, 0) for name, recipe in recipes.items()]

    def interrupted(*_):
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        train.fit_all(
            works,
            {work.key: spec.resources for work in works},
            at_a_time=2,
            scratch=tmp_path / "scratch",
            on_rung=interrupted,
            on_end=interrupted,
        )
    assert not [one for one in set(threading.enumerate()) - before if type(one).__module__ == "pmray.distributed.train"]


@pytest.mark.parametrize("kind", ["tokens", "images"])
def test_other_tasks_too_go_from_a_spec_to_an_endpoint(tmp_path, kind):
    from transformers import pipeline

    make = tiny_tagged if kind == "tokens" else tiny_images
    files = {split: str(write_rows(tmp_path / f"{split}.parquet", make(count, seed=seed)))
             for seed, (split, count) in enumerate({"train": 120, "validation": 30, "test": 40}.items())}  # fmt: skip
    model = tiny_model(tmp_path / "tiny") if kind == "tokens" else tiny_image_model(tmp_path / "tiny")
    recipe = {**RECIPE, "lr": 5e-3, "epochs": 20} if kind == "tokens" else {"lr": 2e-3, "epochs": 5, "batch_size": 10}
    spec = {
        "name": kind,
        "task": "token-classification" if kind == "tokens" else "image-classification",
        "data": files,
        "candidates": [{"model": str(model), "recipe": recipe}],
        "search": {"trials": 1, "finalists": 1, "seeds": 1, "rank_rows": 60},
        "decide": {"draws": 200},
        "storage": str(tmp_path / "runs"),
    }
    swept = pmray.sweep(pmray.Spec.model_validate(spec))
    verdict = swept.verdict
    assert verdict.winner == "tiny"
    assert verdict.line("tiny").score.value > 0.4
    assert len([line for line in verdict.lines if line.baseline]) == 2
    offline = pmray.evaluate(str(swept.bundle), files["test"], errors=3)
    assert offline.score.value == pytest.approx(verdict.line("tiny").score.value, abs=1e-9)
    with pmray.deploy(str(swept.bundle), serve_spec=pmray.Serve(port=0, cpus=0.5, precision="fp32")) as deployed:
        online = pmray.evaluate(deployed.url, files["test"])
        labelled = make(5, seed=9)
        if kind == "images":
            labelled = [{**row, "image": to_base64(row["image"])} for row in labelled]
        route = httpx.post(f"{deployed.url}/v1/evaluate", json={"rows": labelled}, timeout=60)
    assert online.score == offline.score
    assert np.array_equal(online.outcomes, offline.outcomes)
    assert route.status_code == 200, route.text
    assert route.json()["rows"] == 5
    alone = pipeline(spec["task"], model=str(swept.bundle))
    if kind == "images":
        rows = pq.read_table(files["test"]).to_pylist()
        told = [max(alone(decode(row["image"])), key=lambda one: one["score"])["label"] for row in rows]
        assert told == list(offline.said)
    else:
        assert {one["entity"] for one in alone("the phone is good")} <= {"B-good", "I-good", "B-bad", "I-bad"}


@pytest.mark.slow
def test_pre_training_lowers_perplexity_and_gives_a_candidate(tmp_path):
    spec = tiny_spec(tmp_path)
    recipe = {"lr": 3e-3, "epochs": 8, "batch_size": 4, "max_length": 32, "precision": "fp32"}
    candidates = [
        {**spec["candidates"][0], "recipe": recipe, "resources": {"workers": 2}},
        {"model": str(tiny_model(tmp_path / "gpt2", "gpt2")), "recipe": recipe},
    ]
    shared = {"storage": spec["storage"], "candidates": [{**one, "space": {}} for one in candidates]}
    texts = pmray.spec_from(
        {**shared, "task": "pretraining", "name": "texts", "data": {"train": spec["data"]["train"]}}
    )
    adapted = {one.candidate: one for one in pmray.pretrain(texts)}
    assert all(one.perplexity < 0.8 * one.before for one in adapted.values())
    assert all(len(one.curve) == 8 for one in adapted.values())
    again = {one.candidate: one for one in pmray.pretrain(texts)}
    assert again == adapted, "what is done is not done again"
    from transformers import pipeline

    guesses = pipeline("fill-mask", model=str(adapted["bert"].folder))("the phone [MASK] good")
    assert guesses[0]["token_str"] in {"is", "was", "works", "the"} | set(WORDS)
    chosen = {**spec, "name": "after", "candidates": [{"model": str(adapted["bert"].folder), "recipe": RECIPE}]}
    assert pmray.fit(pmray.spec_from(chosen), "bert").is_dir()
    with pytest.raises(pmray.SpecError, match="run it with `pmray pretrain`"):
        pmray.sweep(texts)
    with pytest.raises(pmray.SpecError, match="needs `task: pretraining`"):
        pmray.pretrain(pmray.spec_from(chosen))


def test_workers_without_a_place_end_with_the_arithmetic(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "FAILURES", FailureConfig(controller_failure_limit=1))
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    spec = tiny_spec(tmp_path)
    spec["candidates"] = [{**spec["candidates"][0], "resources": {"workers": 2}}]
    hog = ray.util.placement_group([{"CPU": 1}])
    ray.get(hog.ready())
    try:
        with pytest.raises(NoVerdict, match=r"no place for the workers: 2 workers x 1 CPU = 2, free 1 of 2"):
            pmray.fit(pmray.spec_from(spec), "bert")
    finally:
        ray.util.remove_placement_group(hog)


def test_a_run_stays_within_its_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "_tidy", lambda run: None)
    spec = tiny_spec(tmp_path, search={"trials": 1, "finalists": 1, "seeds": 2, "rank_rows": 60, "rungs": 0})
    spec["candidates"] = spec["candidates"][:1]
    with pytest.raises(pmray.SpecError, match=r"weights of 1 finalists and 2 fits under way take 0.0\d+ GB"):
        pmray.sweep(pmray.spec_from({**spec, "search": {**spec["search"], "max_disk": "10k"}}))
    said = Console(file=StringIO(), width=200)
    spec["search"]["max_disk"] = "500k"
    swept = pmray.sweep(pmray.spec_from(spec), console=said)
    assert "states of fits are not kept" in said.file.getvalue()
    best = max((one for one in swept.outcomes if one.stage == "final"), key=lambda one: (one.score, -one.seed))
    # The other seed's weights went when it had lost, not in the end.
    assert [folder.name for folder in (swept.folder / "checkpoints").iterdir()] == [best.key]


def test_recipes_are_asked_for_those_that_lead_and_again_when_others_may():
    from ray.tune.search import Searcher

    search, proposals, news, _ = driver_of(["bert", "gpt"], candidates=("bert", "gpt"), leaders=1)
    proposals.left = 5
    assert proposals.suggest("first") and proposals.suggest("second")
    assert proposals.suggest("early") is None
    assert proposals.suggest("early") is None
    assert search.among == [None, *[{"bert", "gpt"}] * 2], "nobody has a score: all lead, and are not asked for twice"
    end_part(news, "first", "done", [(10, 0.7), (30, 0.8)])
    assert proposals.suggest("early") is None
    end_part(news, "second", "done", [(10, 0.9), (30, 0.9)])
    assert proposals.suggest("late") == Searcher.FINISHED
    assert search.among[3:] == [{"bert"}, {"gpt"}]
