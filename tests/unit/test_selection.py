"""Who is worth trying, what to try next, who goes on."""

import numpy as np
import pytest

from pmray.selection.halving import Continue, Standing, Stop, finalists, halve
from pmray.selection.ledger import Outcome
from pmray.selection.proxies import linear_probe, logme, thin
from pmray.selection.search import Arm, Search, Tried
from pmray.spec import Choice, Log, Recipe, Uniform
from pmray.tasks.text import TextClassification

ARMS = [
    Arm("small", Recipe(lr=1e-4), {"lr": Log(log=(1e-5, 1e-3)), "batch_size": Choice(choice=[16, 32])}),
    Arm("large", Recipe(lr=3e-5), {"lr": Log(log=(1e-5, 1e-4)), "warmup": Uniform(uniform=(0.0, 0.2))}),
]


def standings(*scores: float) -> list[Standing]:
    return [Standing(f"t{index}", f"candidate {index}", score) for index, score in enumerate(scores)]


def test_nobody_is_stopped_before_enough_have_arrived():
    assert halve("t1", standings(0.9, 0.1), reduction=3, first_rung=False) == Continue("t1")


def test_the_best_third_goes_on_and_the_others_hear_why():
    field = standings(0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    decisions = [halve(one.trial, field, reduction=3, first_rung=False) for one in field]
    assert [isinstance(one, Continue) for one in decisions] == [True, True, False, False, False, False]
    assert decisions[2] == Stop("t2", "place 3 of 6; the best 2 go on")


def test_the_best_of_each_candidate_passes_the_first_rung_only():
    field = standings(0.9, 0.8, 0.1)
    assert isinstance(halve("t2", field, reduction=3, first_rung=True), Continue)
    assert isinstance(halve("t2", field, reduction=3, first_rung=False), Stop)


def outcome(candidate: str, score: float | None, examples: int = 900, status: str = "done") -> Outcome:
    return Outcome(key=candidate, stage="sweep", candidate=candidate, status=status, score=score, examples=examples)


def test_finalists_are_the_best_recipe_of_each_of_the_best_candidates():
    outcomes = [
        outcome("a", 0.7),
        outcome("a", 0.8),
        outcome("b", 0.75),
        outcome("c", 0.9, 100, "stopped"),
        outcome("d", None, 0, "failed"),
    ]
    assert [(one.candidate, one.score) for one in finalists(outcomes, 2)] == [("a", 0.8), ("b", 0.75)]
    assert [one.candidate for one in finalists(outcomes, 9)] == ["a", "b", "c"]


def test_default_recipes_come_first_and_nothing_is_proposed_twice():
    search = Search(ARMS, seed=1)
    proposals = []
    for _ in range(20):
        proposals.append(search.ask())
        search.tell(proposals[-1].number, 0.5)
    assert [(one.candidate, one.recipe) for one in proposals[:2]] == [(arm.candidate, arm.default) for arm in ARMS]
    assert len({(one.candidate, one.recipe) for one in proposals}) == 20
    for one in proposals:
        assert isinstance(one.recipe.batch_size, int)
        assert 1e-5 <= one.recipe.lr <= (1e-3 if one.candidate == "small" else 1e-4)


def test_the_same_seed_proposes_the_same():
    def proposals(seed):
        search = Search(ARMS, seed=seed)
        told = []
        for _ in range(12):
            one = search.ask()
            search.tell(one.number, one.recipe.lr)
            told.append((one.candidate, one.recipe))
        return told

    assert proposals(3) == proposals(3) != proposals(4)


def test_the_search_learns_which_candidate_deserves_trials():
    search = Search(ARMS, seed=0)
    asked = []
    for _ in range(40):
        one = search.ask()
        asked.append(one.candidate)
        search.tell(one.number, (0.9 if one.candidate == "small" else 0.5) - abs(np.log10(one.recipe.lr) + 4) / 10)
    assert asked[15:].count("small") > 15


def test_a_search_that_goes_on_does_not_repeat_what_was_tried():
    tried = [Tried(arm.candidate, arm.default, 0.5) for arm in ARMS] + [Tried("gone", Recipe(), 0.9)]
    search = Search(ARMS, tried=tried)
    for _ in range(10):
        one = search.ask()
        assert (one.candidate, one.recipe) not in {(old.candidate, old.recipe) for old in tried}
        search.tell(one.number, None)


def test_a_space_that_is_used_up_ends_the_search():
    search = Search([Arm("a", Recipe(), {"batch_size": Choice(choice=[16, 32])})])
    assert {search.ask().recipe.batch_size, search.ask().recipe.batch_size} == {16, 32}
    assert search.ask() is None


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
