"""Ranking frozen candidates: who is worth fine-tuning."""

import numpy as np
import pytest

from pmray.scoring.ragged import ragged
from pmray.selection.proxies import (
    HEAD_PROXIES,
    PROXIES,
    Cost,
    Limits,
    Ranked,
    agreement,
    concordance,
    h_score,
    judge,
    leep,
    linear_probe,
    logme,
    nce,
    nearest_neighbours,
    thin,
)
from pmray.tasks.text import TextClassification


@pytest.mark.parametrize("proxy", [logme, h_score])
@pytest.mark.parametrize("kind", ["classes", "bits", "ragged"])
def test_proxies_prefer_features_that_tell_the_classes_apart(proxy, kind):
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 300)
    noise = random.normal(size=(300, 20))
    scores = []
    for strength in (0, 1, 3):
        features, said = noise + strength * np.eye(20)[targets], targets
        if kind == "bits":
            said = np.eye(3, dtype=np.int8)[targets]
        elif kind == "ragged":
            features, said = ragged(np.split(features, 30)), ragged(np.split(targets, 30))
        scores.append(proxy(features, said))
    assert scores == sorted(scores)
    assert scores[2] - scores[0] > 0.1


def test_h_score_is_that_of_its_definition_where_rows_are_many():
    random = np.random.default_rng(2)
    targets = random.integers(0, 4, 20_000)
    x = random.normal(size=(20_000, 6)) + 2 * np.eye(6)[targets]
    x -= x.mean(0)
    means = np.stack([x[targets == label].mean(0) for label in range(4)])[targets]
    plain = np.trace(np.linalg.inv(np.cov(x.T, bias=True)) @ np.cov(means.T, bias=True))
    assert h_score(x, targets) == pytest.approx(plain, rel=0.01)
    assert h_score(random.normal(size=(30, 100)), targets[:30]) < 3, "fewer rows than columns can be judged too"


@pytest.mark.parametrize("multi_label", [False, True])
def test_neighbours_score_like_the_task(multi_label):
    random = np.random.default_rng(0)
    classes = random.integers(0, 3, 240)
    targets = np.eye(3, dtype=np.int8)[classes] if multi_label else classes
    task = TextClassification(labels=("a", "b", "c"), multi_label=multi_label)
    apart = random.normal(size=(240, 8)) + 6 * np.eye(8)[classes]
    assert nearest_neighbours(apart, targets, task, task.default_score()) > 0.95
    assert nearest_neighbours(random.normal(size=(240, 8)), targets, task, task.default_score()) < 0.65


def test_parts_of_the_same_row_are_no_neighbours():
    from pmray.tasks.tokens import TokenClassification

    random = np.random.default_rng(0)
    # Parts of a row are equal to each other, and say nothing about those of others.
    numbers = random.integers(0, 2, 60)
    features = ragged([np.repeat(random.normal(size=(1, 8)), 4, axis=0) for _ in numbers])
    targets = ragged([np.full(4, number) for number in numbers])
    task = TokenClassification.from_json({"task": "token-classification", "labels": ["O", "B-X"]})
    told = nearest_neighbours(features, targets, task, "word_accuracy")
    assert told < 0.75


def test_the_agreement_is_that_of_the_last_common_rung():
    ranked = [Ranked(name, "bert", 1, {}, place, True, "") for place, name in enumerate("abcd", start=1)]
    curves = {
        "a": [{10: 0.5, 30: 0.9}, {10: 0.6}],
        "b": [{10: 0.55, 30: 0.8}],
        "c": [{10: 0.4}],
        "d": [],
    }
    found = agreement(ranked, curves)
    assert (found.candidates, found.examples, found.spearman) == (3, 10, 1.0)
    assert found.weighted_tau == pytest.approx(1.0)
    curves["c"] = [{10: 0.99}]
    assert agreement(ranked, curves).spearman == -0.5
    assert agreement(ranked[:2], curves) is None


def test_proxies_that_disagree_widen_the_funnel():
    names = "abcdefgh"
    agree = {name: {"one": -place, "two": -place, "three": -place} for place, name in enumerate(names)}
    differ = {name: {**agree[name], "two": place} for place, name in enumerate(names)}
    families, sizes = dict.fromkeys(names, "bert"), dict.fromkeys(names, 1)
    kept = [sum(one.kept for one in thin(scores, families, sizes, keep=0.4)) for scores in (agree, differ)]
    assert kept == [4, 8]
    assert concordance([list(range(8)), list(range(8)), list(range(8))[::-1]]) == pytest.approx(1 / 9)


def test_logme_is_the_largest_evidence_of_a_linear_model():
    from scipy.optimize import minimize

    random = np.random.default_rng(1)
    x = random.normal(size=(40, 5))
    y = (x[:, 0] + 0.5 * random.normal(size=40) > 0).astype(int)

    def negative_evidence(logs, column):
        # The marginal likelihood of y = x w + noise, directly: a Gaussian with this covariance.
        alpha, beta = np.exp(logs)
        covariance = np.eye(40) / beta + x @ x.T / alpha
        return 0.5 * (column @ np.linalg.solve(covariance, column) + np.linalg.slogdet(2 * np.pi * covariance)[1])

    best = [-minimize(negative_evidence, [0, 0], args=((y == label).astype(float),)).fun / 40 for label in (0, 1)]
    assert logme(x, y) == pytest.approx(np.mean(best), abs=2e-3)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_linear_probe_scores_like_the_task(multi_label):
    random = np.random.default_rng(0)
    classes = random.integers(0, 3, 240)
    classes[0] = 3  # a class with a single row, which no fold can learn
    targets = np.eye(4, dtype=np.int8)[classes] if multi_label else classes
    task = TextClassification(labels=("a", "b", "c", "d"), multi_label=multi_label)
    features = random.normal(size=(240, 8)) + 4 * np.eye(8)[classes]
    assert linear_probe(features, targets, task, task.default_score()) > 0.9
    assert linear_probe(random.normal(size=(240, 8)), targets, task, task.default_score()) < 0.65


def test_thinning_never_drops_below_three_nor_the_last_of_a_family():
    scores = {name: {"LogME": -place, "probe": -place} for place, name in enumerate("abcdef")}
    families = {**dict.fromkeys("abcde", "bert"), "f": "gpt2"}
    ranked = thin(scores, families, dict.fromkeys("abcdef", 1), keep=0.1)
    assert [one.candidate for one in ranked if one.kept] == ["a", "b", "c", "f"]
    assert [one.mean_rank for one in ranked] == [1, 2, 3, 4, 5, 6]


def test_what_a_models_own_head_says_tells_how_near_its_labels_are():
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 600)
    scores = []
    for sure in (0.34, 0.6, 0.98):
        said = np.where(random.random(600) < sure, targets, random.integers(0, 3, 600))
        source = 0.1 * np.ones((600, 5)) / 5 + 0.9 * np.eye(5)[said]
        scores.append((leep(source, targets), nce(source, targets)))
    assert scores == sorted(scores)
    # A head that always says the same knows no more than the shares of the labels: minus their entropy.
    same = np.tile([1.0, 0.0], (600, 1))
    shares = np.bincount(targets) / 600
    assert leep(same, targets) == pytest.approx((shares * np.log(shares)).sum(), abs=1e-6)
    assert nce(same, targets) == pytest.approx((shares * np.log(shares)).sum(), abs=1e-6)
    pieces = ragged(np.split(source, 60)), ragged(np.split(targets, 60))
    assert leep(*pieces) == pytest.approx(leep(source, targets))
    assert nce(source, np.eye(3, dtype=np.int8)[targets]) > nce(same, np.eye(3, dtype=np.int8)[targets])


def test_of_several_ways_to_pool_the_best_counts():
    random = np.random.default_rng(0)
    targets = random.integers(0, 2, 200)
    good = random.normal(size=(200, 6)) + 3 * np.eye(6)[targets]
    both = np.stack([random.normal(size=(200, 6)), good], axis=1)
    task = TextClassification(labels=("a", "b"))
    assert judge(both, targets, task, "f1_macro") == judge(good, targets, task, "f1_macro")
    assert set(judge(good, targets, task, "f1_macro", np.eye(2)[targets])) == {*PROXIES, *HEAD_PROXIES}


def thinned(scores, **settings):
    return {
        one.candidate: one for one in thin(scores, dict.fromkeys(scores, "f"), dict.fromkeys(scores, 1), **settings)
    }


def test_a_proxy_that_knows_some_candidates_neither_helps_nor_harms_the_others():
    scores = {name: {"LogME": float(-place)} for place, name in enumerate("abcde")}
    scores["b"]["LEEP"], scores["d"]["LEEP"] = -2.0, -1.0
    found = thinned(scores, keep=1)
    assert [found[name].mean_rank for name in "ace"] == [2.0, 3.0, 4.0]
    assert found["d"].mean_rank < 4 and found["b"].mean_rank > 2
    scores["d"].pop("LEEP")
    assert thinned(scores, keep=1)["b"].mean_rank == 2, "one candidate alone has no rank"


def test_who_is_over_a_limit_is_dropped_whatever_its_place():
    scores = {name: {"LogME": float(-place)} for place, name in enumerate("abcd")}
    costs = {name: Cost(10.0 * (place + 1), 10**6 * (4 - place)) for place, name in enumerate("abcd")}
    found = thinned(scores, keep=0.5, costs=costs, limits=Limits(latency_ms=25, memory_bytes=3_000_000))
    assert found["a"].reason == "dropped: 4 MB, over decide.max_memory = 3 MB"
    assert found["d"].reason == "dropped: 40.0 ms a row, over decide.max_latency_ms = 25"
    assert found["c"].kept, "30 ms may be the fault of what else runs"
    assert not any(one.kept for one in thinned(scores, keep=1, costs=costs, limits=Limits(memory_bytes=1)).values())
