"""Temperature and thresholds: fitted to what they are shown, and never worse there."""

import numpy as np
import pytest
from scipy.special import softmax

from pmray.scoring.calibration import best_thresholds, fit_temperature, rescaled
from pmray.scoring.probabilities import lines_of, probability_metrics


def told_too_surely(rows, factor, seed=0):
    """Class numbers drawn from probabilities, and the probabilities that a model says whose logits are too large."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, 4)) * 1.5
    honest = softmax(logits, axis=1)
    targets = (honest.cumsum(axis=1) < random.random((rows, 1))).sum(axis=1)
    return targets, softmax(logits * factor, axis=1), honest


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_factor_by_which_logits_are_too_large(factor):
    targets, sure, honest = told_too_surely(20_000, factor)
    found = fit_temperature(sure, targets)
    assert found == pytest.approx(factor, rel=0.05)
    np.testing.assert_allclose(rescaled(sure, found, multi_label=False), honest, atol=0.03)


def test_several_labels_a_row_have_one_temperature():
    random = np.random.default_rng(1)
    logits = random.normal(size=(8_000, 5))
    bits = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    assert fit_temperature(1 / (1 + np.exp(-2 * logits)), bits) == pytest.approx(2, rel=0.05)


def test_calibration_lowers_log_loss_and_calibration_error_and_keeps_every_prediction():
    targets, sure, _ = told_too_surely(3_000, 2.5)
    calm = rescaled(sure, fit_temperature(sure, targets), multi_label=False)
    assert (calm.argmax(1) == sure.argmax(1)).all()
    for name, metric in probability_metrics(4, multi_label=False).items():
        before, after = (metric(lines_of(targets, scores), np.ones((1, 3_000)))[0] for scores in (sure, calm))
        if name in ("log_loss", "brier", "ece"):
            assert after < before, name
        elif name == "roc_auc":
            assert after == pytest.approx(before, abs=0.02)


def test_scaling_back_gives_what_was_there():
    _, sure, _ = told_too_surely(50, 1.2)
    np.testing.assert_allclose(
        rescaled(rescaled(sure, 1.7, multi_label=False), 1 / 1.7, multi_label=False), sure, atol=1e-6
    )


@pytest.mark.parametrize("scores", [np.eye(3)[[0, 1, 2]], np.full((3, 3), 1 / 3)])
def test_certain_and_clueless_models_have_a_temperature_too(scores):
    found = fit_temperature(scores, np.array([0, 1, 2]))
    assert np.isfinite(rescaled(scores, found, multi_label=False)).all()
    assert fit_temperature(scores[:, ::-1], np.array([0, 1, 2])) >= 1


def test_a_label_that_nobody_has_keeps_the_middle():
    assert best_thresholds(np.array([[0.2], [0.7]]), np.array([[0], [0]])) == [0.5]
