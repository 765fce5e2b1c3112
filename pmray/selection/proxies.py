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

MOST_PARTS = 5_000
"""Parts of ragged rows that are compared with each other."""


@dataclass(frozen=True)
class Cost:
    """What it takes to predict one row."""

    latency_ms: float
    memory_bytes: int


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
    cost: Cost | None = None
    """Of a row at a time, as the ranking measured it."""


PROXIES = ("LogME", "H-score", "neighbours", "linear probe")
"""What ``judge`` gives of every candidate."""

HEAD_PROXIES = ("LEEP", "NCE")
"""What it gives besides of one that comes with a classification head."""


def judge(
    features: NDArray[Any], targets: NDArray[Any], task: Task, metric: str, source: NDArray[Any] | None = None
) -> dict[str, float]:
    """All proxies of a candidate, from one forward pass over the rows; larger is better.

    Args:
        features: Shape (rows, width), (rows, ways to pool, width), or ragged. Of several ways to pool the one counts
            that LogME likes most.
        targets: As ``task.targets`` gives them.
        task: Turns predictions into scores.
        metric: Name of the deciding metric.
        source: What the candidate's own head says, where it has one; see ``leep``.
    """
    if not is_ragged(features) and features.ndim == 3:
        features = max((features[:, way] for way in range(features.shape[1])), key=lambda one: logme(one, targets))
    scores = (
        logme(features, targets),
        h_score(features, targets),
        nearest_neighbours(features, targets, task, metric),
        linear_probe(features, targets, task, metric),
    )
    found = dict(zip(PROXIES, scores, strict=True))
    if source is not None:
        found |= dict(zip(HEAD_PROXIES, (leep(source, targets), nce(source, targets)), strict=True))
    return found


def leep(source: NDArray[Any], targets: NDArray[Any]) -> float:
    """Log expected empirical prediction: mean log likelihood of the labels, given what the model's own head says.

    Nguyen, Hassner, Seeger & Archambeau 2020, "LEEP: A new measure to evaluate transferability of learned
    representations" (ICML), equation 2. Of several labels a row each is a problem of its own, and the mean counts.

    Args:
        source: Probabilities of the labels the model was trained for, shape (rows, source labels), or ragged.
        targets: Class numbers, shape (rows,), label bits, shape (rows, labels), or ragged.
    """
    theta = flat(source).astype(np.float64)
    scores = []
    for column in _classes(targets):
        joint = np.zeros((column.max() + 1, theta.shape[1]))
        np.add.at(joint, column, theta)
        given = joint / (joint.sum(0) + 1e-12)
        likelihood = (given[column] * theta).sum(1)
        scores.append(float(np.log(likelihood + 1e-12).mean()))
    return float(np.mean(scores))


def nce(source: NDArray[Any], targets: NDArray[Any]) -> float:
    """Negative conditional entropy of the labels, given the label that the model's own head says.

    Tran, Nguyen & Hassner 2019, "Transferability and hardness of supervised classification tasks" (ICCV).

    Args:
        source: As for ``leep``.
        targets: As for ``leep``.
    """
    said = flat(source).argmax(1)
    scores = []
    for column in _classes(targets):
        joint = np.zeros((column.max() + 1, said.max() + 1))
        np.add.at(joint, (column, said), 1 / len(said))
        given = joint / np.maximum(joint.sum(0), 1e-12)
        scores.append(float((joint * np.log(np.where(joint > 0, given, 1))).sum()))
    return float(np.mean(scores))


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


def h_score(features: NDArray[Any], targets: NDArray[Any]) -> float:
    """Variance between classes of the whitened features: how far apart the class means lie, averaged over labels.

    Bao et al. 2019, "An information-theoretic approach to transferability in task transfer learning" (ICIP), with the
    shrunken covariance of Ibrahim, Ponomareva & Mazumder 2021, "Newer is not always better" (section 4.1): few rows
    with wide features have a covariance that cannot be inverted.

    Args:
        features: Shape (rows, width), or ragged.
        targets: Class numbers, shape (rows,), label bits, shape (rows, labels), or ragged.
    """
    from sklearn.covariance import ledoit_wolf

    x = flat(features).astype(np.float64)
    x = x - x.mean(0)
    covariance, shrinkage = ledoit_wolf(x, assume_centered=True)
    kinds = flat(targets)
    columns = kinds.T if kinds.ndim == 2 else [kinds]
    scores = []
    for column in columns:
        classes, numbers, counts = np.unique(column, return_inverse=True, return_counts=True)
        means = np.zeros((len(classes), x.shape[1]))
        np.add.at(means, numbers, x)
        means /= counts[:, None]
        between = np.linalg.solve(covariance, means.T).T
        scores.append((1 - shrinkage) * float(((counts / len(x))[:, None] * means * between).sum()))
    return float(np.mean(scores))


def nearest_neighbours(
    features: NDArray[Any], targets: NDArray[Any], task: Task, metric: str, *, neighbours: int = 10
) -> float:
    """The deciding metric of what the nearest other rows say (cosine), each row left out in turn.

    Renggli et al. 2022, "Which model to transfer? Finding the needle in the growing haystack" (CVPR), found it to agree
    with fine-tuning where a linear probe does not, and the other way round.

    Args:
        features: Shape (rows, width), or ragged; of a ragged row's parts, only those of other rows are neighbours.
        targets: As ``task.targets`` gives them.
        task: Turns shares of neighbours into a score.
        metric: Name of the deciding metric.
        neighbours: How many are asked.
    """
    if is_ragged(targets):
        # Parts are many, and each is compared with all.
        few = int(np.searchsorted(np.cumsum([len(row) for row in targets]), MOST_PARTS)) + 1
        features, targets = features[:few], targets[:few]
    x, y = flat(features).astype(np.float32), flat(targets)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-12
    row = np.repeat(np.arange(len(targets)), [len(one) for one in targets]) if is_ragged(targets) else np.arange(len(x))
    votes = y.astype(np.float32) if y.ndim == 2 else np.eye(len(task.labels), dtype=np.float32)[y]
    count = min(neighbours, len(x) - 1)
    shares = np.empty((len(x), votes.shape[1]), np.float32)
    for start in range(0, len(x), 1_000):
        near = x[start : start + 1_000] @ x.T
        near[row[start : start + 1_000, None] == row[None]] = -2
        chosen = np.argpartition(-near, count - 1, axis=1)[:, :count]
        shares[start : start + 1_000] = votes[chosen].mean(1)
    scores = like(shares, targets)
    outcomes = task.tuned(scores, targets, metric).outcome(scores, targets)
    return float(task.score(metric, outcomes, np.ones((1, len(outcomes))))[0])


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


@dataclass(frozen=True)
class Limits:
    """What a candidate may take; None allows all."""

    latency_ms: float | None = None
    memory_bytes: int | None = None

    def broken(self, cost: Cost) -> str | None:
        """Which limit a candidate is over by more than a busy machine explains, in words, or None."""
        if self.latency_ms is not None and cost.latency_ms > BUSY * self.latency_ms:
            return f"{cost.latency_ms:.1f} ms a row, over decide.max_latency_ms = {self.latency_ms:g}"
        if self.memory_bytes is not None and cost.memory_bytes > self.memory_bytes:
            taken, allowed = cost.memory_bytes / 1e6, self.memory_bytes / 1e6
            return f"{taken:.0f} MB, over decide.max_memory = {allowed:.0f} MB"
        return None


BUSY = 1.5
"""A latency this many times over the limit is no matter of what else ran while ranking filled all cores. In the end,
finalists are held against the limit itself."""


def thin(
    scores: Mapping[str, Mapping[str, float]],
    families: Mapping[str, str],
    parameters: Mapping[str, int],
    *,
    keep: float,
    costs: Mapping[str, Cost] | None = None,
    limits: Limits | None = None,
) -> list[Ranked]:
    """Order candidates by the mean of their ranks over the proxies, and decide who is fine-tuned.

    Never fewer than three, and never the last of a family: in 6 % of the setups of Bassignana et al. 2022 a proxy had
    the wrong sign. The less the proxies agree, the more are kept: all where they agree no more than by chance. Who is
    over a limit is not kept in any case.

    A proxy that knows some candidates only, such as LEEP, ranks these among themselves; the others get their mean rank
    from it, which neither helps nor harms them.

    Args:
        scores: Candidate -> proxy -> score.
        families: Candidate -> model family.
        parameters: Candidate -> size.
        keep: Share of the candidates to keep.
        costs: Candidate -> what a prediction takes.
        limits: What it may take.
    """
    names = list(scores)
    order_of = list(dict.fromkeys(proxy for one in scores.values() for proxy in one))
    # A proxy that knows one candidate says nothing.
    proxies = [one for one in order_of if sum(one in scores[name] for name in names) > 1 or len(names) == 1]
    ranks = dict.fromkeys(names, 0.0)
    for proxy in proxies:
        known = [name for name in names if proxy in scores[name]]
        # Places among those that are known, spread over all places.
        spread = len(names) / len(known)
        for name in names:
            ranks[name] += (len(names) + 1) / 2 / len(proxies) if name not in known else 0.0
        for place, name in enumerate(sorted(known, key=lambda one, by=proxy: -scores[one][by])):  # type: ignore[misc]
            ranks[name] += ((place + 0.5) * spread + 0.5) / len(proxies)
    order = sorted(names, key=lambda name: (ranks[name], parameters[name]))
    broken = {name: limits.broken(costs[name]) for name in names if name in costs} if limits and costs else {}
    allowed = [name for name in order if not broken.get(name)]
    whole = [proxy for proxy in proxies if all(proxy in scores[name] for name in names)]
    agreed = concordance([[scores[name][proxy] for name in names] for proxy in whole])
    count = max(3, math.ceil((keep + (1 - keep) * (1 - agreed)) * len(allowed)))
    ranked = []
    represented: set[str] = set()
    for name in order:
        family, place = families[name], allowed.index(name) if name in allowed else -1
        if place < 0:
            kept, reason = False, f"dropped: {broken[name]}"
        elif place < count:
            kept, reason = True, "kept"
        elif family not in represented:
            kept, reason = True, f"kept: the best of family {family}"
        else:
            kept, reason = False, f"dropped: place {place + 1} of {len(allowed)}"
        if place >= 0:
            represented.add(family)
        cost = costs.get(name) if costs else None
        ranked.append(Ranked(name, family, parameters[name], dict(scores[name]), ranks[name], kept, reason, cost))
    return ranked


def concordance(scores: Sequence[Sequence[float]]) -> float:
    """Kendall's coefficient of concordance W of several orders: 1 where all are the same, about 0 by chance.

    Kendall & Babington Smith 1939, "The problem of m rankings". Of fewer than two orders or three candidates it is 1.

    Args:
        scores: Of each proxy its scores of the candidates, in one order of candidates.

    >>> concordance([[3, 2, 1], [9, 5, 4]]), concordance([[3, 2, 1], [1, 2, 3]])
    (1.0, 0.0)
    """
    from scipy.stats import rankdata

    if len(scores) < 2 or len(scores[0]) < 3:
        return 1.0
    sums = np.sum([rankdata(one) for one in scores], axis=0)
    judges, candidates = len(scores), len(scores[0])
    return float(12 * ((sums - sums.mean()) ** 2).sum() / (judges**2 * (candidates**3 - candidates)))


@dataclass(frozen=True)
class Agreement:
    """How well an order before fine-tuning agreed with scores after it; both in [-1, 1]."""

    candidates: int
    examples: int
    """At which scores were compared, the same for all."""
    spearman: float
    weighted_tau: float
    """Kendall's tau that weighs the top of the order more (Vigna 2015)."""


def agreement(ranked: Sequence[Ranked], curves: Mapping[str, Sequence[Mapping[int, float]]]) -> Agreement | None:
    """Compare the mean rank of candidates with their best scores at the last rung that all of them reached.

    Args:
        ranked: Before fine-tuning.
        curves: Candidate -> of each of its trials examples -> score.

    Returns:
        None where fewer than three candidates have reached a common rung.
    """
    from scipy.stats import spearmanr, weightedtau

    known = [one for one in ranked if any(curves.get(one.candidate, ()))]
    rungs = [{rung for curve in curves[one.candidate] for rung in curve} for one in known]
    common = set.intersection(*rungs) if rungs else set()
    if len(known) < 3 or not common:
        return None
    at = max(common)
    reached = [max(curve[at] for curve in curves[one.candidate] if at in curve) for one in known]
    before = [-one.mean_rank for one in known]
    if len(set(reached)) == 1 or len(set(before)) == 1:
        return None
    return Agreement(
        candidates=len(known),
        examples=at,
        spearman=float(spearmanr(before, reached).statistic),
        weighted_tau=float(weightedtau(before, reached, rank=None).statistic),
    )


def _classes(targets: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Class numbers from 0 on, one array for each label where a row has several."""
    kinds = flat(targets)
    columns = kinds.T if kinds.ndim == 2 else [kinds]
    return [np.unique(column, return_inverse=True)[1] for column in columns]


def _columns(targets: NDArray[Any]) -> NDArray[np.float64]:
    if targets.ndim == 2:
        return np.asarray(targets, dtype=np.float64)
    return np.asarray(targets[:, None] == np.unique(targets)[None, :], dtype=np.float64)


def _varies(column: NDArray[Any], splitter: Any) -> bool:
    return all(0 < column[rest].sum() < len(rest) for rest, _ in splitter.split(column))
