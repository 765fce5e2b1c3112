"""Span metrics equal seqeval's, on whatever tags there are."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2

from pmray.errors import UnknownName
from pmray.scoring.spans import SPAN, all_right, span_metric, span_outcomes, span_score

LABELS = ["O", "B-a", "I-a", "B-b", "I-b", "B-c", "I-c"]

said = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@st.composite
def sentences(draw):
    """Truth in sound BIO, predictions of any kind."""
    rows = []
    for tags in draw(st.lists(said, min_size=1, max_size=6)):
        sound, before = [], 0
        for tag in tags:
            # An I goes on with what was before it, or else it is a B.
            sound.append(tag - 1 if tag and tag % 2 == 0 and (before + 1) // 2 != tag // 2 else tag)
            before = sound[-1]
        rows.append((sound, draw(st.lists(st.integers(0, 6), min_size=len(tags), max_size=len(tags)))))
    return rows


def names(rows):
    return [[LABELS[tag] for tag in row] for row in rows]


def value(metric, outcomes):
    return float(metric(outcomes, np.ones((1, len(outcomes))))[0])


@settings(max_examples=300, deadline=None)
@given(sentences())
def test_all_metrics_equal_those_of_seqeval(rows):
    true, predicted = names([one for one, _ in rows]), names([one for _, one in rows])
    outcomes = span_outcomes([np.array(one) for one, _ in rows], [np.array(one) for _, one in rows], 3)
    strict = {"mode": "strict", "scheme": IOB2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "span_f1": seqeval.f1_score(true, predicted),
            "span_precision": seqeval.precision_score(true, predicted),
            "span_recall": seqeval.recall_score(true, predicted),
            "span_f1_weighted": seqeval.f1_score(true, predicted, average="weighted"),
            "word_accuracy": seqeval.accuracy_score(true, predicted),
        }
        if any(tag != "O" for row in [*true, *predicted] for tag in row):  # else seqeval divides by nothing
            expected["span_f1_macro"] = seqeval.f1_score(true, predicted, average="macro")
        if any(tag[0] == "B" for row in true for tag in row) or any(tag[0] == "B" for row in predicted for tag in row):
            expected |= {
                "span_f1_strict": seqeval.f1_score(true, predicted, **strict),
                "span_precision_strict": seqeval.precision_score(true, predicted, **strict),
                "span_recall_strict": seqeval.recall_score(true, predicted, **strict),
            }
        report = seqeval.classification_report(true, predicted, output_dict=True, zero_division=0)
    for name, wanted in expected.items():
        assert value(span_metric(name), outcomes) == pytest.approx(wanted, abs=1e-9), name
    for number, kind in enumerate("abc"):
        if kind in report:
            for of, theirs in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
                ours = float(span_score(outcomes, np.ones((1, len(rows))), of=of, kind=number)[0])
                assert ours == pytest.approx(float(report[kind][theirs]), abs=1e-9)
    assert all_right(outcomes).tolist() == [
        get_entities(a) == get_entities(b) for a, b in zip(true, predicted, strict=True)
    ]


def test_weights_are_copies_of_rows():
    random = np.random.default_rng(0)
    rows = [(random.integers(0, 7, 6), random.integers(0, 7, 6)) for _ in range(20)]
    outcomes = span_outcomes([a for a, _ in rows], [b for _, b in rows], 3)
    times = random.integers(0, 4, 20)
    for name in SPAN:
        copied = value(span_metric(name), np.repeat(outcomes, times, axis=0))
        assert float(span_metric(name)(outcomes, times[None])[0]) == pytest.approx(copied, abs=1e-12)


def test_nothing_to_find_and_nothing_said_is_zero():
    outcomes = span_outcomes([np.zeros(3, int)], [np.zeros(3, int)], 2)
    assert [value(span_metric(name), outcomes) for name in SPAN] == [0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert all_right(outcomes).all()


def test_an_unknown_metric_is_named():
    with pytest.raises(UnknownName, match="span_f1"):
        span_metric("spanf1")
