"""How well a frozen model suits the data, without fine-tuning: scores from features and labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmray.scoring.ragged import flat, is_ragged, like
from pmray.tasks.base import Task


@dataclass(frozen=True)
class Ranked:
    """A candidate's place before any fine-tuning."""

    candidate: str
    family: str
    parameters: int
    proxies: Mapping[str, float]
    """Proxy -> score; larger is better."""
    mean_rank: float
    kept: bool
    reason: str


def logme(features: NDArray[Any], targets: NDArray[Any]) -> float:
    """Log of the maximum evidence of linear models on the features, per row and label, averaged over labels.

    You et al. 2021, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning" (ICML), with the fixed
    point iteration of their algorithm 3 on the singular values.

    Args:
        features: Shape (rows, width), or ragged.
        targets: Class numbers, shape (rows,), label bits, shape (rows, labels), or ragged.
    """
    x = flat(features).astype(np.float64)
    y = _columns(flat(targets))
    rows, width = x.shape
    u, singular, _ = np.linalg.svd(x, full_matrices=False)
    squared = singular**2
    evidence = []
    for column in y.T:
        projected = (u.T @ column) ** 2
        outside = max(0.0, float(column @ column - projected.sum()))
        alpha, beta = 1.0, 1.0
        for _ in range(30):
            ratio = alpha / beta
            gamma = float((squared / (squared + ratio)).sum())
            m2 = float((squared * projected / (squared + ratio) ** 2).sum())
            residual = float((projected / (1 + squared / ratio) ** 2).sum()) + outside
            alpha, beta = gamma / (m2 + 1e-12), (rows - gamma) / (residual + 1e-12)
            if abs(alpha / beta - ratio) <= 1e-3 * ratio:
                break
        evidence.append(
            width / 2 * math.log(alpha)
            + rows / 2 * math.log(beta)
            - 0.5 * float(np.log(alpha + beta * squared).sum())
            - 0.5 * max(0, width - len(squared)) * math.log(alpha)
            - beta / 2 * residual
            - alpha / 2 * m2
            - rows / 2 * math.log(2 * math.pi)
        )
    return float(np.mean(evidence) / rows)


def linear_probe(features: NDArray[Any], targets: NDArray[Any], task: Task, metric: str, *, folds: int = 3) -> float:
    """The deciding metric of a logistic regression on the features, cross-validated.

    Args:
        features: Shape (rows, width), or ragged; the parts of a row are then probed one by one.
        targets: As ``task.targets`` gives them.
        task: Turns the probe's probabilities into a score.
        metric: Name of the deciding metric.
        folds: Parts of the cross-validation.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    logistic = LogisticRegression(C=0.1, max_iter=300)
    labels = len(task.labels)
    whole, features, targets = targets, flat(features), flat(targets)
    if targets.ndim == 2:
        # A label that all or none of a fold's rows have cannot be learned there: probe those that vary everywhere.
        splitter = KFold(folds, shuffle=True, random_state=0)
        varies = np.array([_varies(column, splitter) for column in targets.T])
        scores = np.tile(targets.mean(0), (len(targets), 1))
        if varies.any():
            probe = make_pipeline(StandardScaler(), OneVsRestClassifier(logistic))
            fitted = cross_val_predict(probe, features, targets[:, varies], cv=splitter, method="predict_proba")
            scores[:, varies] = fitted
    else:
        counts = np.bincount(targets, minlength=labels)
        rows = np.flatnonzero(counts[targets] >= folds)
        seen = np.unique(targets[rows])
        # Parts of a row that are too rare to be learned stay in it, and get what is most frequent.
        scores = np.tile(counts / len(targets), (len(targets), 1))
        probe = make_pipeline(StandardScaler(), logistic)
        splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
        fitted = cross_val_predict(probe, features[rows], targets[rows], cv=splitter, method="predict_proba")
        scores[rows] = 0
        scores[np.ix_(rows, seen)] = fitted
        if not is_ragged(whole):
            whole, scores = whole[rows], scores[rows]
    scores = like(scores, whole)
    outcomes = task.tuned(scores, whole, metric).outcome(scores, whole)
    return float(task.score(metric, outcomes, np.ones((1, len(outcomes))))[0])


def thin(
    scores: Mapping[str, Mapping[str, float]],
    families: Mapping[str, str],
    parameters: Mapping[str, int],
    *,
    keep: float,
) -> list[Ranked]:
    """Order candidates by the mean of their ranks over the proxies, and decide who is fine-tuned.

    Never fewer than three, and never the last of a family: in 6 % of the setups of Bassignana et al. 2022 a proxy had
    the wrong sign.

    Args:
        scores: Candidate -> proxy -> score.
        families: Candidate -> model family.
        parameters: Candidate -> size.
        keep: Share of the candidates to keep.
    """
    names = list(scores)
    proxies: Sequence[str] = list(next(iter(scores.values()))) if scores else []
    ranks = dict.fromkeys(names, 0.0)
    for proxy in proxies:
        for place, name in enumerate(sorted(names, key=lambda one, by=proxy: -scores[one][by]), start=1):  # type: ignore[misc]
            ranks[name] += place / len(proxies)
    order = sorted(names, key=lambda name: (ranks[name], parameters[name]))
    count = max(3, math.ceil(keep * len(order)))
    ranked = []
    represented: set[str] = set()
    for place, name in enumerate(order):
        family = families[name]
        if place < count:
            kept, reason = True, "kept"
        elif family not in represented:
            kept, reason = True, f"kept: the best of family {family}"
        else:
            kept, reason = False, f"dropped: place {place + 1} of {len(order)}"
        represented.add(family)
        ranked.append(Ranked(name, family, parameters[name], dict(scores[name]), ranks[name], kept, reason))
    return ranked


def _columns(targets: NDArray[Any]) -> NDArray[np.float64]:
    if targets.ndim == 2:
        return np.asarray(targets, dtype=np.float64)
    return np.asarray(targets[:, None] == np.unique(targets)[None, :], dtype=np.float64)


def _varies(column: NDArray[Any], splitter: Any) -> bool:
    return all(0 < column[rest].sum() < len(rest) for rest, _ in splitter.split(column))
