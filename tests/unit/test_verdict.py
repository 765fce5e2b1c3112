import json

import numpy as np
import pytest

from pmray.errors import NoVerdict
from pmray.selection.verdict import Contender, decide, rows_to_tell
from pmray.spec import Decide
from pmray.tasks.text import TextClassification

TASK = TextClassification(labels=("negative", "positive"), positive="positive")
TRUE = np.random.default_rng(0).integers(0, 2, 600)


def contender(name: str, accuracy: float, *, seed: int = 1, fits: int = 2, **values) -> Contender:
    outcomes = []
    for fit in range(fits):
        wrong = np.random.default_rng([seed, fit]).random(len(TRUE)) > accuracy
        outcomes.append(np.stack([TRUE, np.where(wrong, 1 - TRUE, TRUE)], axis=1))
    return Contender(name, outcomes, **{"search_score": accuracy, "latency_ms": 10.0, "parameters": 10, **values})


def decided(*contenders: Contender, **rules):
    return decide(contenders, TASK, "f1_macro", Decide(draws=500, **rules))


def test_models_that_cannot_be_told_apart_are_a_tie_and_the_cheapest_wins():
    verdict = decided(contender("large", 0.86, latency_ms=30), contender("small", 0.855, seed=2, latency_ms=10))
    assert verdict.winner == "small"
    assert len(verdict.groups) == 1
    assert any("a tie, not a victory" in one for one in verdict.words)
    assert decided(contender("large", 0.86), contender("small", 0.855, seed=2), prefer="score").winner == "large"


def test_a_clearly_better_model_wins_whatever_it_costs():
    verdict = decided(contender("good", 0.95, latency_ms=99), contender("bad", 0.6, seed=2, latency_ms=1))
    assert verdict.winner == "good"
    assert verdict.groups == (("good",), ("bad",))
    assert verdict.comparisons[0].adjusted_p < 0.05
    assert verdict.comparisons[0].mcnemar_p < 0.001
    assert verdict.line("good").score.low > verdict.line("bad").score.high


def test_a_transformer_that_buys_nothing_is_told_so():
    same = contender("baseline", 0.86, seed=3, fits=1, baseline=True)
    assert any("buys nothing" in one for one in decided(contender("model", 0.86), same).words)
    better = contender("baseline", 0.97, seed=3, fits=1, baseline=True)
    verdict = decided(contender("model", 0.7), better)
    assert verdict.winner == "model"
    assert any("use the baseline" in one for one in verdict.words)


def test_a_limit_that_nobody_keeps_is_no_verdict_and_says_who_comes_nearest():
    with pytest.raises(NoVerdict, match=r"the fastest, a, takes 10\.0 ms"):
        decided(contender("a", 0.9), contender("b", 0.8, latency_ms=20), max_latency_ms=5)
    assert decided(contender("slow", 0.95, latency_ms=20), contender("fast", 0.6), max_latency_ms=15).winner == "fast"
    with pytest.raises(NoVerdict, match="no candidate finished"):
        decided(contender("b", 0.8, baseline=True))


def test_the_verdict_gives_every_number_and_is_json():
    verdict = decided(contender("a", 0.9, search_score=0.93), contender("b", 0.8, seed=2))
    written = json.loads(json.dumps(verdict.to_json(), default=float))
    assert written["optimism_gap"] == pytest.approx(0.93 - verdict.line("a").score.value)
    assert set(written["per_class"]) == {"negative", "positive"}
    assert set(written["lines"][0]["metrics"]) == set(TASK.metrics())
    assert verdict.corrected.low < verdict.corrected.value < verdict.corrected.high


def test_groups_of_rows_are_drawn_as_wholes_and_the_verdict_says_so():
    # Twenty rows a document, all right or all wrong together: thirty documents, not six hundred rows.
    documents = np.repeat(np.arange(30), 20)
    true = np.random.default_rng(0).integers(0, 2, 600)

    def by_document(name: str, wrong: int) -> Contender:
        return Contender(name, [np.stack([true, np.where(documents < wrong, 1 - true, true)], axis=1)])

    models = by_document("a", 3), by_document("b", 7)
    plain = decide(models, TASK, "f1_macro", Decide(draws=500))
    grouped = decide(models, TASK, "f1_macro", Decide(draws=500), documents)
    width, plain_width = (one.line("a").score.high - one.line("a").score.low for one in (grouped, plain))
    assert width > 3 * plain_width
    assert (plain.clusters, grouped.clusters) == (None, 30)
    assert any("the 30 groups" in one for one in grouped.words)
    (told,), (blind,) = grouped.comparisons, plain.comparisons
    assert told.randomisation_p > 0.05 > blind.randomisation_p


def test_few_rows_a_class_are_said_to_make_a_bad_interval():
    classes = 77
    true = np.random.default_rng(0).integers(0, classes, 200)
    task = TextClassification(labels=tuple(map(str, range(classes))))
    one = Contender("model", [np.stack([true, true], axis=1)], latency_ms=1, parameters=1, search_score=1.0)
    told = decide([one], task, "f1_macro", Decide(draws=200)).words
    assert any("200 rows of 77 classes are few" in word for word in told)
    assert not any("are few" in word for word in decide([one], task, "accuracy", Decide(draws=200)).words)


@pytest.mark.parametrize(
    ("default", "said"),
    [
        (None, None),
        (0.91, "The search added 2.0 points on validation to the default recipe's 0.910"),
        (0.93, "The search found no better recipe than the default one."),
    ],
)
def test_the_words_say_what_the_search_added(default, said):
    gain = None if default is None else 0.93 - default
    words = " ".join(decided(contender("a", 0.9, default_score=default, search_gain=gain)).words)
    assert ("default" in words) == (said is not None)
    assert said is None or said in words


def test_memory_too_is_a_limit():
    large, small = contender("large", 0.95, memory_bytes=10**9), contender("small", 0.6, memory_bytes=10**6)
    assert decided(large, small, max_memory="2M").winner == "small"
    with pytest.raises(NoVerdict, match=r"the smallest, small, takes 1,000,000"):
        decided(large, small, max_memory="10k")


def test_who_is_beaten_in_everything_is_not_on_the_front():
    verdict = decided(
        contender("good", 0.95, latency_ms=20),
        contender("fast", 0.7, seed=2, latency_ms=5),
        contender("worst", 0.6, seed=3, latency_ms=25),
        contender("base", 0.5, seed=4, baseline=True, latency_ms=0),
    )
    assert {line.name for line in verdict.lines if line.pareto} == {"good", "fast"}
    said = next(one for one in verdict.words if one.startswith("Not beaten"))
    assert "good (0.9" in said and "fast (0.7" in said and "worst" not in said and "base" not in said


def test_it_is_said_what_more_rows_and_trials_would_tell():
    tied = contender("a", 0.86), contender("b", 0.84, seed=2)
    words = decide(tied, TASK, "f1_macro", Decide(draws=500), searched=[0.7, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]).words
    assert any("test rows would show them four times out of five" in one for one in words)
    assert any("came with trial 2 of 8; the 6 after it found nothing better" in one for one in words)
    words = decide(tied, TASK, "f1_macro", Decide(draws=500), searched=[0.7, 0.8, 0.8, 0.9]).words
    assert any("trial 4 of 4; it may rise with more trials" in one for one in words)


def test_the_rows_that_are_asked_for_do_show_the_difference():
    """Eight in ten simulated comparisons of that many rows leave out zero."""
    random = np.random.default_rng(0)

    def interval(rows):
        differences = random.choice([1, 0, -1], rows, p=[0.09, 0.84, 0.07])
        middle, half = differences.mean(), 1.96 * differences.std() / np.sqrt(rows)
        return middle, middle - half, middle + half

    half = 1.96 * np.sqrt(0.16 - 0.02**2) / np.sqrt(500)
    wanted = rows_to_tell(500, 0.02, 0.02 - half, 0.02 + half)
    shown = np.mean([interval(wanted)[1] > 0 for _ in range(500)])
    assert 0.74 < shown < 0.86
