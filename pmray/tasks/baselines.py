"""Models without a transformer: what a data set gives for free, and what a transformer must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.tasks.base import Task

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

Kind = Literal["majority", "tfidf"]

BASELINES: dict[str, Kind] = {"majority class": "majority", "TF-IDF + logistic regression": "tfidf"}
"""Name in tables -> kind; every text sweep contains them."""


def fit_baseline(
    kind: Kind,
    task: Task,
    train: pa.Table,
    validation: pa.Table,
    others: Sequence[pa.Table],
    *,
    metric: str,
) -> tuple[NDArray[Any], list[NDArray[Any]]]:
    """Fit a baseline and return its score vectors, shape (rows, labels), for validation and for other tables.

    Args:
        kind: ``majority`` says the label shares of train for every row; ``tfidf`` is a logistic regression on TF-IDF of
            words and word pairs (of characters, where texts hold no words of two letters), its regularisation chosen on
            validation.
        task: Gives targets and score.
        train: Labelled rows.
        validation: Labelled rows.
        others: Rows whose labels are not looked at.
        metric: Name of the deciding metric.
    """
    targets = task.targets(train)
    if kind == "majority":
        shares = (
            targets.mean(0) if targets.ndim == 2 else np.bincount(targets, minlength=len(task.labels)) / len(targets)
        )
        return np.tile(shares, (len(validation), 1)), [np.tile(shares, (len(table), 1)) for table in others]

    from scipy.sparse import hstack
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    fields = [field for field in ("text", "text_pair") if field in train.column_names]
    vectorizers = {field: _vectorizer(train[field].to_pylist()) for field in fields}
    inputs = hstack([vectorizers[field].transform(train[field].to_pylist()) for field in fields]).tocsr()
    seen = targets.any(0) & ~targets.all(0) if targets.ndim == 2 else np.unique(targets)

    def scores(model: Any, table: pa.Table) -> NDArray[Any]:
        found = hstack([vectorizers[field].transform(table[field].to_pylist()) for field in fields]).tocsr()
        result = (
            np.tile(targets.mean(0), (len(table), 1)) if targets.ndim == 2 else np.zeros((len(table), len(task.labels)))
        )
        result[:, seen] = model.predict_proba(found)
        return result

    best: tuple[float, Any, NDArray[Any]] | None = None
    validation_targets = task.targets(validation)
    for c in (1.0, 10.0):
        logistic = LogisticRegression(C=c, max_iter=1000)
        model = OneVsRestClassifier(logistic) if targets.ndim == 2 else logistic
        model.fit(inputs, targets[:, seen] if targets.ndim == 2 else targets)
        said = scores(model, validation)
        outcomes = task.tuned(said, validation_targets).outcome(said, validation_targets)
        value = float(task.score(metric, outcomes, np.ones((1, len(outcomes))))[0])
        if best is None or value > best[0]:
            best = value, model, said
    assert best is not None
    return best[2], [scores(best[1], table) for table in others]


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
