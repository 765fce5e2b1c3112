"""Confident learning finds labels that were flipped, and nothing where a model knows nothing."""

import numpy as np
import pyarrow as pa

from pmray import checking
from pmray.data.label_noise import label_issues
from pmray.tasks.baselines import out_of_fold
from pmray.tasks.text import TextClassification

ABOUT = {
    "sport": "ball goal team match win",
    "food": "soup bread salt oven taste",
    "law": "court judge trial case jury",
}


def rows(count, seed=0):
    draw = np.random.default_rng(seed)
    labels = draw.choice(list(ABOUT), count)
    texts = [" ".join(draw.choice(ABOUT[label].split(), 6)) + f" and {draw.integers(99)}" for label in labels]
    return texts, labels.tolist()


def table(texts, labels):
    ids = [f"train:{row}" for row in range(1, len(texts) + 1)]
    kind = pa.list_(pa.string()) if isinstance(labels[0], list) else pa.string()
    return pa.table({"row_id": ids, "text": texts, "label": pa.array(labels, kind)})


def test_flipped_labels_come_first():
    draw = np.random.default_rng(0)
    truth = draw.integers(3, size=300)
    probabilities = np.full((300, 3), 0.1)
    probabilities[np.arange(300), truth] = 0.8
    probabilities += draw.normal(0, 0.02, probabilities.shape)
    given, wrong = truth.copy(), draw.choice(300, 20, replace=False)
    given[wrong] = (truth[wrong] + 1) % 3
    found, looks = label_issues(probabilities, given)
    # A class that took in no wrong label has a higher bar, under which half of its own rows lie.
    assert len(found) >= 15
    assert {*found.tolist()} <= {*wrong.tolist()}
    assert looks.tolist() == truth[found].tolist()
    gaps = probabilities[found, looks] - probabilities[found, given[found]]
    assert (np.diff(gaps) <= 0).all()


def test_a_class_without_rows_is_never_what_a_row_looks_like():
    probabilities = np.array([[0.2, 0.1, 0.7], [0.6, 0.4, 0.0]])
    found, _ = label_issues(probabilities, np.array([0, 0]))
    assert found.tolist() == []


def test_each_of_several_labels_is_judged_alone():
    bits = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]])
    sure = np.where(bits, 0.9, 0.1)
    sure[4] = [0.95, 0.1]
    found, looks = label_issues(sure, bits)
    assert (found.tolist(), looks.tolist()) == ([4], [0])


def test_out_of_fold_scores_do_not_know_the_row():
    draw = np.random.default_rng(9)
    texts, _ = rows(300)
    guesses = table([f"{text} only{row}" for row, text in enumerate(texts)], draw.choice(["a", "b"], 300).tolist())
    task = TextClassification(labels=("a", "b"))
    scores = out_of_fold(task, guesses)
    assert scores.shape == (300, 2)
    assert np.allclose(scores.sum(1), 1)
    assert abs((scores.argmax(1) == task.targets(guesses)).mean() - 0.5) < 0.1
    assert "learns too little" in checking.check_label_noise(task, guesses)[0].message


def test_a_label_of_one_row_and_texts_without_words():
    task = TextClassification(labels=("a", "b", "c"))
    scores = out_of_fold(task, table(["+", "-", "+", "-", "+", "-", "?"], ["a", "b", "a", "b", "a", "b", "c"]))
    assert np.isfinite(scores).all()
    assert scores[:6].argmax(1).tolist() == [0, 1] * 3


def test_wrong_labels_are_named_with_what_they_look_like():
    texts, labels = rows(300)
    was, labels[41] = labels[41], next(label for label in ABOUT if label != labels[41])
    task = TextClassification(labels=tuple(sorted(ABOUT)))
    (finding,) = checking.check_label_noise(task, table(texts, labels))
    assert (finding.check, finding.severity, finding.examples[0]) == ("label noise", "info", "train:42")
    assert f"train:42 is labelled {labels[41]!r} and looks like {was!r}" in finding.message
    lists = [[label] for label in rows(300)[1]]
    lists[41] = []
    several = TextClassification(labels=tuple(sorted(ABOUT)), multi_label=True)
    (finding,) = checking.check_label_noise(several, table(texts, lists))
    assert finding.examples[0] == "train:42"
    assert f"train:42 lacks the label {was!r}" in finding.message
