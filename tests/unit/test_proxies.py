"""Ranking frozen candidates: who is worth fine-tuning."""

import numpy as np
import pytest

from pmray.selection.proxies import linear_probe, logme, thin
from pmray.tasks.text import TextClassification


def test_logme_prefers_features_that_tell_the_classes_apart():
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 300)
    noise = random.normal(size=(300, 20))
    scores = [logme(noise + strength * np.eye(20)[targets], targets) for strength in (0, 1, 3)]
    assert scores == sorted(scores)
    assert scores[2] - scores[0] > 0.1


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
