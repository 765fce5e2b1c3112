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
