"""The model card: what the Hub reads, and what people need."""

import numpy as np
import pytest
from huggingface_hub import ModelCard

from pmray.report.card import CardFacts, model_card
from pmray.report.cost import Cost
from pmray.selection.verdict import Contender, decide
from pmray.spec import Decide
from pmray.tasks.text import TextClassification
from pmray.tasks.tokens import TokenClassification

TASK = TextClassification(labels=("no", "yes"), positive="yes")
FACTS = CardFacts(
    licence="apache-2.0",
    languages=("en",),
    sources=["tickets.csv"],
    hub_data=[],
    label_counts=[("no", 70), ("yes", 30)],
    warnings=["test: 2 rows also found in train; dropped"],
    cost=Cost(12, 0.5, 0.0),
)


def settings(**values):
    return {
        "name": "tickets",
        "task": TASK.to_json(),
        "metric": "f1_macro",
        "candidate": {"model": "google-bert/bert-base-uncased", "layers": None, "revision": "abc"},
        "columns": {"text": "message", "label": "topic"},
        "rows": {"train": 100, "validation": 20, "test": 60},
        "data": "d" * 16,
        "recipe": {"lr": 1e-4},
        "seed": 2,
        "validation_score": 0.8,
        "deployed_score": 0.81,
        "latency_ms": 9.5,
        "parameters": 110_000_000,
        "max_length": 128,
        "pmray_version": "0.1.0",
        **values,
    }


@pytest.fixture(scope="module")
def verdict():
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 60)
    contenders = [
        Contender(name, [np.stack([truth, np.where(draw.random(60) < skill, truth, 1 - truth)], 1)], baseline=baseline)
        for name, skill, baseline in (("bert", 0.9, False), ("tiny", 0.7, False), ("majority class", 0.5, True))
    ]
    return decide(contenders, TASK, "f1_macro", Decide(draws=100))


def test_the_hub_reads_task_base_licence_and_results_with_intervals(verdict):
    card = ModelCard(model_card(settings(), verdict, FACTS))
    data = card.data
    assert (data.license, data.language, data.base_model) == ("apache-2.0", ["en"], "google-bert/bert-base-uncased")
    assert (data.pipeline_tag, data.library_name, data.tags) == ("text-classification", "transformers", ["pmray"])
    first = data.eval_results[0]
    line = verdict.line("bert")
    assert (first.metric_type, first.metric_value) == ("f1", round(line.score.value, 4))
    assert first.metric_name == f"f1_macro (95% interval {line.score.low:.4f} to {line.score.high:.4f})"
    assert (first.dataset_name, first.dataset_split) == ("tickets.csv", "test")
    assert {one.metric_type for one in data.eval_results} >= {"f1", "accuracy", "matthews_correlation"}


def test_people_read_use_limits_data_scores_and_cost(verdict):
    text = model_card(settings(), verdict, FACTS)
    for heading in ("Intended use", "Limits", "Evaluation", "Data", "Training"):
        assert f"\n## {heading}\n" in text
    assert "among 2 finalists" in text
    assert "(`message`)" in text
    assert 'pipeline("text-classification", model="PATH/TO/THIS/FOLDER", top_k=None)' in text
    assert "| no | 70 |" in text
    assert "test: 2 rows also found in train" in text
    assert "12 fits, 0.50 core-hours" in text
    assert "majority class (baseline)" in text
    assert verdict.words[0] in text


def test_a_folder_of_this_machine_is_neither_base_model_nor_told(verdict):
    text = model_card(settings(candidate={"model": "/home/me/bert", "layers": 3, "revision": "abc"}), verdict, FACTS)
    assert "/home/me" not in text
    assert ModelCard(text).data.base_model is None
    assert "`bert`, its first 3 layers" in text


def test_a_single_fit_claims_no_test_score_and_an_unknown_licence_is_said():
    facts = FACTS._replace(licence=None, hub_data=["owner/tickets"], warnings=[])
    text = model_card(settings(), None, facts)
    data = ModelCard(text).data
    assert (data.eval_results, data.license, data.datasets) == (None, None, ["owner/tickets"])
    assert "an optimistic number" in text
    assert "find out before you pass this one on" in text
    assert "warned" not in text


def test_tags_are_told_by_their_types():
    task = TokenClassification(("O", "B-PER", "I-PER")).to_json()
    text = model_card(settings(task=task, columns={"words": "tokens"}), None, FACTS)
    assert "It answers with 1 labels: PER." in text
    assert 'aggregation_strategy="simple"' in text
