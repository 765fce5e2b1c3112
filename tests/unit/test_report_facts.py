"""What a report tells, before it is drawn."""

import numpy as np
import pyarrow as pa
import pytest

from pmray.report.cost import cost_of, resources_of
from pmray.report.row_facts import Predictions, calibration, matrix, row_facts, shown
from pmray.report.search_facts import curves, effects, failures, frontier, importances, ranking, usage
from pmray.report.svg import Axis, Plot, number, series, span, ticks
from pmray.scoring.intervals import Interval
from pmray.scoring.ragged import ragged
from pmray.selection.ledger import Outcome
from pmray.spec import Resources
from pmray.tasks.text import TextClassification
from pmray.tasks.tokens import TokenClassification


def trial(candidate="bert", score=0.5, status="done", **values):
    values = {"recipe": {"lr": 1e-4, "batch_size": 16}, "curve": ((10, score),), "seconds": 3600.0, **values}
    return Outcome(key="k", stage="sweep", candidate=candidate, status=status, score=score, **values)


def test_curves_name_recipes_by_what_differs_and_put_the_best_candidate_first():
    found = curves(
        [
            trial("bert", 0.4, curve=((10, 0.3), (30, 0.4))),
            trial("bert", 0.2, "stopped", recipe={"lr": 1e-3, "batch_size": 16}),
            trial("llama", 0.7, curve=()),
            trial("gpt2", None, "failed", error="broke"),
        ]
    )
    assert list(found) == ["llama", "bert"]
    assert [(one.detail, one.status) for one in found["bert"]] == [("default recipe", "done"), ("lr=0.001", "stopped")]
    assert found["bert"][0].points == ((10, 0.3), (30, 0.4))
    assert found["llama"][0].points == ((0, 0.7),)


def test_a_point_is_on_the_frontier_when_nothing_cheaper_scores_as_much():
    points = [(name, cost, Interval(score, score, score, 0.95)) for name, cost, score in [
        ("dear", 9, 0.6), ("cheap", 1, 0.6), ("worse", 5, 0.5), ("best", 9, 0.7)
    ]]  # fmt: skip
    assert {one.name: one.best for one in frontier(points)} == {
        "cheap": True, "worse": False, "best": True, "dear": False
    }  # fmt: skip


def test_importance_goes_to_the_parameter_that_makes_the_score():
    draw = np.random.default_rng(0)
    recipes = [
        {"lr": float(10 ** draw.uniform(-5, -3)), "batch_size": int(draw.choice([16, 32])), "schedule": "linear"}
        for _ in range(40)
    ]
    found = importances(recipes, [np.log10(one["lr"]) for one in recipes])
    assert list(found) == ["lr", "batch_size"]
    assert found["lr"] > 0.9
    assert sum(found.values()) == pytest.approx(1)


def test_importance_of_equal_scores_or_equal_recipes_is_not_told():
    assert importances([{"lr": 1e-4}, {"lr": 1e-3}], [0.5, 0.5]) == {}
    assert importances([{"lr": 1e-4}, {"lr": 1e-4}], [0.5, 0.6]) == {}


def test_effects_compare_trials_at_a_rung_that_enough_of_them_reached():
    trials = [
        trial(
            "bert", 0.1 * n, recipe={"lr": 10.0**-n, "batch_size": 16}, curve=((10, 0.1 * n), (30, 0.9))[: 1 + (n < 3)]
        )
        for n in range(1, 7)
    ]
    (found, few) = effects([*trials, trial("llama")])
    assert (found.candidate, found.trials, found.examples) == ("bert", 6, 10)
    assert [(one.parameter, one.log, len(one.points)) for one in found.effects] == [("lr", True, 6)]
    assert (few.candidate, few.effects) == ("llama", ())


def test_ranking_stands_beside_the_best_scores_at_the_last_common_rung():
    ranked = [
        Outcome("r", "rank", name, "done", facts={"proxies": {"LogME": value, "probe": value}})
        for name, value in (("bert", 0.2), ("llama", 0.3), ("idle", 0.1))
    ]
    tuned = [
        trial("bert", curve=((10, 0.3), (30, 0.6))),
        trial("llama", curve=((10, 0.5),)),
        trial("bert", curve=((10, 0.4),)),
    ]
    found = ranking([*ranked, *tuned], None)
    assert [(one.candidate, one.mean_rank, one.tuned, one.score) for one in found.places] == [
        ("llama", 1.0, True, 0.5), ("bert", 2.0, True, 0.4), ("idle", 3.0, False, None)
    ]  # fmt: skip
    assert (found.examples, found.spearman) == (10, None)
    assert ranking(tuned, None) is None


def test_failures_keep_recipe_and_reason_and_stages_add_up():
    outcomes = [
        trial(),
        trial(status="infeasible", score=None, recipe={"lr": 1.0, "batch_size": 16}, error=" too large "),
    ]
    (found,) = failures(outcomes)
    assert (found.candidate, found.status, found.detail, found.error) == ("bert", "infeasible", "lr=1.0", "too large")
    assert [tuple(one) for one in usage(outcomes)] == [("sweep", 2, 0, 7200.0)]


def test_compute_is_time_by_the_workers_of_each_candidate():
    spec = {"candidates": [{"name": "llama", "resources": {"workers": 2, "gpus_per_worker": 1}}, {"name": "bert"}]}
    found = cost_of([trial("bert"), trial("llama"), trial("llama", None, "failed")], resources_of(spec))
    assert (found.fits, found.core_hours, found.gpu_hours) == (2, 5.0, 4.0)
    assert resources_of(spec)["bert"] == Resources()


TEXT = TextClassification(labels=("a", "b", "c"))


def test_a_matrix_of_single_labels_is_the_confusion_matrix():
    scores = np.eye(3)[[0, 1, 1, 2]]
    found = matrix(TEXT, scores, np.array([0, 1, 2, 2]))
    assert found.cells == ((1, 0, 0), (0, 1, 0), (0, 1, 1))
    assert (found.unit, found.true, found.right) == ("rows", ("a", "b", "c"), ((0, 0), (1, 1), (2, 2)))


def test_a_matrix_of_several_labels_counts_each_label():
    task = TextClassification(labels=("a", "b"), multi_label=True)
    found = matrix(task, np.array([[0.9, 0.9], [0.1, 0.2], [0.2, 0.8]]), np.array([[1, 0], [1, 0], [0, 1]]))
    assert found.said == ("said and true", "missed", "said but false")
    assert found.cells == ((1, 1, 0), (1, 0, 1))


TAGS = TokenClassification(("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))


def test_a_matrix_of_spans_tells_wrong_types_wrong_ends_misses_and_inventions():
    true = ragged([np.array([1, 2, 0, 3]), np.array([0, 0, 1]), np.array([1, 0])])
    said = [np.array([3, 4, 0, 3]), np.array([1, 0, 0]), np.array([1, 2])]
    scores = ragged([np.eye(5)[row] for row in said])
    found = matrix(TAGS, scores, true)
    assert found.said == ("PER", "LOC", "other ends", "missed")
    assert dict(zip(found.true, found.cells, strict=True)) == {
        "PER": (0, 1, 1, 1),
        "LOC": (0, 1, 0, 0),
        "nothing": (1, 0, 0, 0),
    }


def test_spans_are_shown_by_the_words_they_mark():
    table = pa.table({"words": [["Anna ", "Ek ", "in ", "Oslo"], ["no"]]})
    values = ragged([np.array([1, 2, 0, 3]), np.array([0])])
    assert shown(TAGS, values, table, np.array([0, 1])) == ["PER: Anna Ek; LOC: Oslo", ""]


def test_calibration_is_of_words_where_a_row_has_words():
    scores = ragged([np.array([[0.9, 0.1, 0, 0, 0], [0.2, 0.8, 0, 0, 0]])])
    found = calibration(TAGS, scores, ragged([np.array([0, 0])]))
    assert sum(one.count for one in found.bins) == 2
    assert calibration(TEXT, np.array([[2.0, -1.0, 0.0]]), np.array([0])) is None


def test_rows_tell_the_surest_errors_and_where_two_models_differ():
    truth = pa.table({"row_id": [f"t:{n}" for n in range(4)], "label": ["a", "a", "b", "c"]})
    table = pa.table({"row_id": truth["row_id"], "text": ["one", "two", "three", "four"]})
    best = Predictions("best", TEXT, np.array([[0.1, 0.9, 0], [0.4, 0.6, 0], [0, 1, 0], [0, 0, 1]], np.float32))
    other = Predictions("other", TEXT, np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]], np.float32))
    found = row_facts(best, other, truth, table, "f1_macro")
    assert [(one.row_id, one.true, one.said, one.inputs) for one in found.mistakes] == [
        ("t:0", "a", {"best": "b"}, {"text": "one"}),
        ("t:1", "a", {"best": "b"}, {"text": "two"}),
    ]
    assert found.mistakes[0].confidence == pytest.approx(0.9)
    told = found.disagreement
    assert (told.both, told.only_first, told.only_second, told.neither) == (1, 1, 1, 1)
    assert [one.row_id for one in told.examples] == ["t:3", "t:0"]
    assert found.slices is None
    hidden = row_facts(best, other, truth, table, "f1_macro", show_rows=False)
    assert (hidden.wrong, hidden.mistakes, hidden.disagreement.examples) == (2, (), ())


def test_axes_hold_their_values_and_ticks_are_round():
    axis = span("lr", [1e-5, 1e-3], log=True)
    assert axis.low < 1e-5 < 1e-3 < axis.high
    assert ticks(axis) == pytest.approx([1e-5, 1e-4, 1e-3])
    assert ticks(span("", [0.5, 0.5])) != []
    assert [number(value) for value in (0, 1500, 2_500_000, -0.25, 1e-4)] == ["0", "1.5k", "2.5M", "-0.25", "0.0001"]


def test_a_plot_escapes_words_and_neighbouring_series_differ_in_shape_and_colour():
    plot = Plot("a <b>", Axis("x", 0, 1), Axis("y", 0, 1))
    plot.mark(0.5, 0.5, *series(0), "<script>")
    drawn = plot.svg()
    assert 'aria-label="a &lt;b&gt;"' in drawn
    assert "<title>&lt;script&gt;</title>" in drawn
    assert len({series(place) for place in range(30)}) == 30
