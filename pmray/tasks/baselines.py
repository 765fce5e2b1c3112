"""Models without a transformer: what a data set gives for free, and what a transformer must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.scoring.ragged import flat, ragged
from pmray.tasks.base import Task

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

Said = tuple[NDArray[Any], list[NDArray[Any]]]
"""Score vectors for validation, and for each of the other tables; ragged where targets are."""


def fit_baseline(
    kind: str,
    task: Task,
    train: pa.Table,
    validation: pa.Table,
    others: Sequence[pa.Table],
    *,
    metric: str,
) -> Said:
    """Fit a baseline and return its score vectors, shape (rows, labels), for validation and for other tables.

    Args:
        kind: One of `KINDS`.
        task: Gives targets and score.
        train: Labelled rows.
        validation: Labelled rows.
        others: Rows whose labels are not looked at.
        metric: Name of the deciding metric.
    """
    return KINDS[kind](task, train, validation, others, metric)


def _majority(task: Task, train: pa.Table, validation: pa.Table, others: Sequence[pa.Table], metric: str) -> Said:
    """Say the label shares of train for every row."""
    targets = task.targets(train)
    shares = targets.mean(0) if targets.ndim == 2 else np.bincount(targets, minlength=len(task.labels)) / len(targets)
    first, *rest = (np.tile(shares, (len(table), 1)) for table in (validation, *others))
    return first, rest


def _tfidf(task: Task, train: pa.Table, validation: pa.Table, others: Sequence[pa.Table], metric: str) -> Said:
    """Logistic regression on TF-IDF of words and word pairs (of characters, where texts hold no words)."""
    from scipy.sparse import hstack

    fields = [field for field in ("text", "text_pair") if field in train.column_names]
    vectorizers = {field: _vectorizer(train[field].to_pylist()) for field in fields}

    def inputs(table: pa.Table) -> Any:
        return hstack([vectorizers[field].transform(table[field].to_pylist()) for field in fields]).tocsr()

    return _regression(task, train, validation, others, metric, inputs, (1.0, 10.0))


def _pixels(task: Task, train: pa.Table, validation: pa.Table, others: Sequence[pa.Table], metric: str) -> Said:
    """Logistic regression on the pixels of small copies of the images."""
    from pmray.data.images import thumbnails

    return _regression(task, train, validation, others, metric, thumbnails, (0.001, 0.01, 0.1))


def _regression(
    task: Task,
    train: pa.Table,
    validation: pa.Table,
    others: Sequence[pa.Table],
    metric: str,
    inputs: Callable[[pa.Table], Any],
    strengths: Sequence[float],
) -> Said:
    """Logistic regression whose regularisation is chosen on validation; of several labels a row, one for each."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    targets = task.targets(train)
    seen = targets.any(0) & ~targets.all(0) if targets.ndim == 2 else np.unique(targets)
    found = inputs(train)

    def scores(model: Any, table: pa.Table) -> NDArray[Any]:
        result = (
            np.tile(targets.mean(0), (len(table), 1)) if targets.ndim == 2 else np.zeros((len(table), len(task.labels)))
        )
        result[:, seen] = model.predict_proba(inputs(table))
        return result

    best: tuple[float, Any, NDArray[Any]] | None = None
    validation_targets = task.targets(validation)
    for c in strengths:
        logistic = LogisticRegression(C=c, max_iter=1000)
        model = OneVsRestClassifier(logistic) if targets.ndim == 2 else logistic
        model.fit(found, targets[:, seen] if targets.ndim == 2 else targets)
        said = scores(model, validation)
        outcomes = task.tuned(said, validation_targets, metric).outcome(said, validation_targets)
        value = float(task.score(metric, outcomes, np.ones((1, len(outcomes))))[0])
        if best is None or value > best[0]:
            best = value, model, said
    assert best is not None
    return best[2], [scores(best[1], table) for table in others]


def _word_lookup(task: Task, train: pa.Table, validation: pa.Table, others: Sequence[pa.Table], metric: str) -> Said:
    """Say of each word the tags it has in train; of a word that train lacks, what it says of its form.

    The form of a word is whether it begins with a capital, holds digits, or neither.
    """
    labels = len(task.labels)
    known: dict[str, NDArray[np.float64]] = {}
    for words, tags in zip(train["words"].to_pylist(), task.targets(train), strict=True):
        for word, tag in zip(words, tags, strict=True):
            for name in (word.strip(), _form(word)):
                known.setdefault(name, np.zeros(labels))[tag] += 1
    shares = {name: counts / counts.sum() for name, counts in known.items()}
    nothing = np.eye(labels)[0]

    def scores(table: pa.Table) -> NDArray[Any]:
        return ragged(
            [
                np.array([shares.get(word.strip(), shares.get(_form(word), nothing)) for word in words])
                for words in table["words"].to_pylist()
            ]
        )

    return scores(validation), [scores(table) for table in others]


def _one_tag(task: Task, train: pa.Table, validation: pa.Table, others: Sequence[pa.Table], metric: str) -> Said:
    """Say the tag shares of train for every word."""
    counts = np.bincount(flat(task.targets(train)), minlength=len(task.labels))
    first, *rest = (
        ragged([np.tile(counts / counts.sum(), (len(words), 1)) for words in table["words"].to_pylist()])
        for table in (validation, *others)
    )
    return first, rest


def _form(word: str) -> str:
    """A name for words that look alike, which no word has: words hold no tabs."""
    return "\tdigits" if any(sign.isdigit() for sign in word) else f"\tcapital {word[:1].isupper()}"


KINDS: dict[str, Callable[[Task, pa.Table, pa.Table, Sequence[pa.Table], str], Said]] = {
    "majority": _majority,
    "tfidf": _tfidf,
    "pixels": _pixels,
    "one tag": _one_tag,
    "word lookup": _word_lookup,
}
"""What the baselines of tasks are made with."""


def _vectorizer(texts: Sequence[str]) -> TfidfVectorizer:
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts)
    except ValueError:
        # Its words have at least two letters; signs, digits and some scripts have none.
        return TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True).fit(texts)


def out_of_fold(task: Task, train: pa.Table, *, folds: int = 3, seed: int = 0) -> NDArray[np.float64]:
    """What a logistic regression on TF-IDF of words says of rows that it was not fitted on, shape (rows, labels).

    Lighter than the baseline of the table (words that are in two rows, no pairs of words, one regularisation, one
    model for each label), since it is to find odd labels, not to win.

    Args:
        task: Gives the targets.
        train: Labelled rows, at least two for each fold.
        folds: Fits; each leaves one part of the rows out, with each label's share about the same.
        seed: Another seed makes other folds.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    targets = task.targets(train)
    columns = [train[field].to_pylist() for field in ("text", "text_pair") if field in train.column_names]
    try:
        # Words are counted without a look at labels, so folds may share them.
        inputs = hstack([TfidfVectorizer(sublinear_tf=True, min_df=2).fit_transform(texts) for texts in columns])
    except ValueError:
        inputs = hstack([_vectorizer(texts).transform(texts) for texts in columns])
    inputs = inputs.tocsr()
    order = np.random.default_rng(seed).permutation(len(train))
    if targets.ndim == 1:
        order = order[np.argsort(targets[order], kind="stable")]
    fold = np.empty(len(train), dtype=np.int64)
    fold[order] = np.arange(len(train)) % folds
    bits = targets if targets.ndim == 2 else targets[:, None] == np.arange(len(task.labels))
    scores = np.zeros(bits.shape)
    for number in range(folds):
        left, right = fold != number, fold == number
        # A label that all fitted rows or none of them have cannot be learned; its share is all that is known.
        seen = bits[left].any(0) & ~bits[left].all(0)
        scores[right] = bits[left].mean(0)
        if seen.any():
            model = OneVsRestClassifier(LogisticRegression(C=4.0, tol=1e-3, max_iter=1000))
            model.fit(inputs[left], bits[left][:, seen].astype(np.int8))
            said = model.predict_proba(inputs[right])
            scores[np.ix_(right, seen)] = said if said.ndim == 2 else said[:, None]
    return scores if targets.ndim == 2 else scores / np.maximum(scores.sum(1, keepdims=True), 1e-12)
