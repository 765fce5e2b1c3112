"""Have inputs, predictions or confidence changed: two-sample tests against a reference, and how large the change is.

The reference is what the model said of validation rows when it was exported, or of the first rows it was asked.

| what | test | effect |
|---|---|---|
| length of the input | Kolmogorov-Smirnov | D, the largest distance of the distribution functions |
| words, in 60 buckets by hash | two proportions, 60 times (Bonferroni) | largest difference of the buckets' shares |
| predictions | chi-squared of homogeneity | total variation distance of the shares |
| confidence | Kolmogorov-Smirnov | D |

p-values are adjusted for being several (Holm 1979). Drift is an adjusted p below `P` **and** an effect of at least
`EFFECT`: of many rows every difference is significant, of few every effect is large.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pmray.live.records import WORD_BUCKETS
from pmray.scoring.paired import holm

P = 0.001
EFFECT = 0.1

MIN_ROWS = 50
"""Of both sides; of fewer, nothing is said."""

CATEGORIES = 20
"""The commonest predictions that are told apart; the others count together."""


@dataclass(frozen=True)
class Profile:
    """What is compared of some predictions; each of shape (rows,), or empty where it is not known."""

    lengths: NDArray[np.int64]
    words: NDArray[np.int64]
    """Bits, see ``records.words_of``."""
    predictions: Sequence[str]
    confidence: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.predictions)


@dataclass(frozen=True)
class Shift:
    """How one thing has changed."""

    what: str
    """``length``, ``words``, ``predictions`` or ``confidence``."""
    test: str
    effect: float
    """0 to 1; see the module."""
    p_value: float
    """Adjusted."""
    drifted: bool
    before: float
    now: float
    """Median length, share of the words' bucket or of the prediction that changed most, or mean confidence."""
    detail: str = ""
    """Which prediction changed most."""


def drift(reference: Profile, now: Profile, *, p: float = P, effect: float = EFFECT) -> list[Shift]:
    """Compare two sets of predictions; nothing of what either side does not know, or has too few rows of.

    Args:
        reference: As things were.
        now: As things are.
        p: Adjusted p-values below this ...
        effect: ... with an effect of at least this are called drift.
    """
    found = [
        shift
        for shift in (
            _samples("length", reference.lengths, now.lengths, np.median),
            _words(reference.words, now.words),
            _shares(reference.predictions, now.predictions),
            _samples("confidence", reference.confidence, now.confidence, np.mean),
        )
        if shift is not None
    ]
    adjusted = holm({one["what"]: one["p_value"] for one in found})
    return [
        Shift(**{**one, "p_value": sure}, drifted=sure < p and one["effect"] >= effect)
        for one in found
        for sure in [adjusted[one["what"]]]
    ]


def confidence_of(scores: NDArray[Any]) -> float:
    """How sure a model is of a row: the largest probability; of bits and of tags, the mean of their larger sides.

    Args:
        scores: (labels,), or (parts, labels).

    >>> confidence_of(np.array([0.2, 0.8])), confidence_of(np.array([[0.5, 0.5], [0.0, 1.0]]))
    (0.8, 0.75)
    """
    if scores.ndim > 1:
        return float(scores.max(axis=1).mean()) if len(scores) else 1.0
    several = abs(float(scores.sum()) - 1) > 0.01
    return float(np.maximum(scores, 1 - scores).mean() if several else scores.max())


def category_of(prediction: Any, parts: int | None = None) -> str:
    """What a prediction counts as: its label, its labels together, or of tags how many words are marked, up to 9.

    Args:
        prediction: As an endpoint answers it.
        parts: How many tags there are, where it is tags.

    >>> category_of("spam"), category_of(["b", "a"]), category_of(["O", "B-PER"], parts=2)
    ('spam', 'a|b', '1 marked')
    """
    if not isinstance(prediction, list):
        return str(prediction)
    if parts is None:
        return "|".join(sorted(map(str, prediction)))
    return f"{min(9, sum(tag != 'O' for tag in prediction))} marked"


def _samples(what: str, before: NDArray[Any], now: NDArray[Any], middle: Any) -> Mapping[str, Any] | None:
    if min(len(before), len(now)) < MIN_ROWS:
        return None
    found = stats.ks_2samp(before, now, method="asymp")
    return {
        "what": what,
        "test": "Kolmogorov-Smirnov",
        "effect": float(found.statistic),
        "p_value": float(found.pvalue),
        "before": float(middle(before)),
        "now": float(middle(now)),
    }


def _words(before: NDArray[np.int64], now: NDArray[np.int64]) -> Mapping[str, Any] | None:
    if min(len(before), len(now)) < MIN_ROWS:
        return None
    bits = 1 << np.arange(WORD_BUCKETS)
    shares = [((side[:, None] & bits) > 0).mean(axis=0) for side in (before, now)]
    n, m = len(before), len(now)
    together = (n * shares[0] + m * shares[1]) / (n + m)
    error = np.sqrt(together * (1 - together) * (1 / n + 1 / m))
    apart = np.abs(shares[1] - shares[0])
    z = np.divide(apart, error, out=np.zeros_like(apart), where=error > 0)
    most = int(apart.argmax())
    return {
        "what": "words",
        "test": "two proportions, 60 times",
        "effect": float(apart[most]),
        "p_value": float(min(1.0, WORD_BUCKETS * 2 * stats.norm.sf(z.max()))),
        "before": float(shares[0][most]),
        "now": float(shares[1][most]),
    }


def _shares(before: Sequence[str], now: Sequence[str]) -> Mapping[str, Any] | None:
    if min(len(before), len(now)) < MIN_ROWS:
        return None
    counts = [Counter(before), Counter(now)]
    common = [name for name, _ in (counts[0] + counts[1]).most_common(CATEGORIES)]
    table = np.array([[side[name] for name in common] for side in counts], np.float64)
    others = np.array([[len(before)], [len(now)]]) - table.sum(axis=1, keepdims=True)
    table = np.hstack([table, others])[:, np.append(np.ones(len(common), bool), others.sum() > 0)]
    shares = table / table.sum(axis=1, keepdims=True)
    most = int(np.abs(shares[1] - shares[0]).argmax())
    return {
        "what": "predictions",
        "test": "chi-squared",
        "effect": float(np.abs(shares[1] - shares[0]).sum() / 2),
        "p_value": float(stats.chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0,
        "before": float(shares[0][most]),
        "now": float(shares[1][most]),
        "detail": [*common, "others"][most],
    }
