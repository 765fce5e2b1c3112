"""Models without a transformer."""

import numpy as np
import pyarrow as pa
import pytest

from pmray.tasks.baselines import fit_baseline
from pmray.tasks.text import TextClassification
from tests.tiny import tiny_rows

TASK = TextClassification(labels=("negative", "positive"))


def table(count, seed):
    return pa.Table.from_pylist(tiny_rows(count, seed))


TRAIN, VALIDATION, TEST = table(200, 0), table(60, 1), table(80, 2)


def fitted(kind, task=TASK, train=TRAIN, validation=VALIDATION, others=(TEST,), metric="f1_macro"):
    return fit_baseline(kind, task, train, validation, others, metric=metric)


def test_the_majority_class_says_the_shares_of_train():
    validation, (test,) = fitted("majority")
    share = TRAIN["label"].to_pylist().count("positive") / 200
    assert validation.shape == (60, 2)
    assert test == pytest.approx(np.tile([1 - share, share], (80, 1)))


def test_words_are_enough_for_labels_that_words_tell():
    validation, (test,) = fitted("tfidf")
    assert test.sum(1) == pytest.approx(np.ones(80))
    assert (test.argmax(1) == TASK.targets(TEST)).mean() > 0.85
    assert (validation.argmax(1) == TASK.targets(VALIDATION)).mean() > 0.85


@pytest.mark.parametrize("kind", TextClassification.baselines.values())
def test_the_labels_of_other_tables_are_not_looked_at(kind):
    _, (with_labels, without) = fitted(kind, others=(TEST, TEST.drop_columns(["label"])))
    assert np.array_equal(with_labels, without)


@pytest.mark.parametrize("kind", TextClassification.baselines.values())
def test_a_label_that_train_never_shows_gets_no_probability(kind):
    task = TextClassification(labels=("negative", "never", "positive"))
    _, (test,) = fitted(kind, task=task)
    assert test.shape == (80, 3)
    assert (test[:, 1] == 0).all()
    assert test.sum(1) == pytest.approx(np.ones(80))


@pytest.mark.parametrize("kind", TextClassification.baselines.values())
def test_many_labels_a_row_work_even_where_a_label_never_varies(kind):
    task = TextClassification(labels=("always", "bad", "good", "never"), multi_label=True)

    def several(rows):
        labels = [["always", {"negative": "bad", "positive": "good"}[label]] for label in rows["label"].to_pylist()]
        return pa.table({"text": rows["text"], "label": labels})

    parts = {"train": several(TRAIN), "validation": several(VALIDATION), "others": (several(TEST),)}
    _, (test,) = fitted(kind, task=task, metric="f1_micro", **parts)
    assert (test[:, 0] == 1).all()
    assert (test[:, 3] == 0).all()
    assert ((test >= 0) & (test <= 1)).all()


def test_both_texts_of_a_pair_are_read():
    task = TextClassification(labels=("no", "yes"), pair=True)
    words = ["alpha", "beta", "gamma", "delta"] * 20
    pairs = pa.table(
        {
            "text": words,
            "text_pair": [f"x{n} {'yes' if n % 3 else 'no'}" for n in range(80)],
            "label": ["yes" if n % 3 else "no" for n in range(80)],
        }
    )
    _, (test,) = fitted("tfidf", task=task, train=pairs, validation=pairs, others=(pairs,))
    assert (test.argmax(1) == task.targets(pairs)).all()


@pytest.mark.parametrize("texts", [["the", "a"] * 20, ["!", "?"] * 20, ["I", "a"] * 20])
def test_texts_without_usable_words_do_not_end_the_run(texts):
    rows = pa.table({"text": texts, "label": ["negative", "positive"] * 20})
    _, (test,) = fitted("tfidf", train=rows, validation=rows, others=(rows,))
    assert np.isfinite(test).all()
