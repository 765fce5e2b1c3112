"""Two models on the same rows: is one better, and if not, who belongs together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pmray.scoring.intervals import CELLS, TIE, corrected, resampled, seed_shares, shared_lines, stretch
from pmray.scoring.metrics import Metric, Outcomes

K = TypeVar("K")


@dataclass(frozen=True)
class Paired:
    """How much better one model is than another on the same rows."""

    difference: float
    """Score of the first minus score of the second."""
    low: float
    """Lower end of the interval of the difference."""
    high: float
    """Upper end."""
    p_value: float
    """Two-sided, before any correction for many comparisons; see `holm`."""
    test: str
    """Which test gave the p-value."""


def mcnemar(correct_a: NDArray[Any], correct_b: NDArray[Any]) -> float:
    """Exact McNemar test of equal accuracy, two-sided p-value (McNemar 1947, Psychometrika 12).

    Only the rows on which exactly one model is right say anything; under equal accuracy each of them goes either way
    like a fair coin.

    Args:
        correct_a: Whether the first model is right, bool, (rows,).
        correct_b: The same for the second model on the same rows.

    >>> a, b = np.zeros(100, bool), np.zeros(100, bool)
    >>> a[:13], b[13:45] = True, True
    >>> round(mcnemar(a, b), 4)
    0.0066
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_bootstrap(
    metric: Metric,
    a_by_seed: Sequence[Outcomes],
    b_by_seed: Sequence[Outcomes],
    *,
    draws: int = 1_000,
    seed: int = 0,
    level: float = 0.95,
    clusters: NDArray[Any] | None = None,
) -> Paired:
    """Compare two models, each the mean over its seeds' fits, on the same resamples of the same rows.

    Seeds are resampled too: together when both models have equally many (fits of one seed saw the same batches; a
    paired resample is right whether or not that matters), else separately. The p-value is twice the smaller share of
    draws on either side of no difference, a tie counting on both sides, and one added above and below so that it is
    never zero (Davison & Hinkley 1997, Bootstrap Methods, 4.11): with 1,000 draws it is at least 0.002.

    Args:
        metric: The score.
        a_by_seed: One (rows, k) array per seed of the first model.
        b_by_seed: The same for the second model; the same rows in the same order.
        draws: Resamples.
        seed: Of the resamples.
        level: Coverage of the interval, which is corrected as in `bootstrap`.
        clusters: Group of each row, (rows,); whole groups are drawn.
    """
    row_rng, seed_rng = np.random.default_rng(seed).spawn(2)
    found = resampled(metric, [*a_by_seed, *b_by_seed], draws, row_rng, clusters)
    seeds_a, seeds_b = len(a_by_seed), len(b_by_seed)
    shares_a = seed_shares(seeds_a, draws, seed_rng)
    shares_b = shares_a if seeds_a == seeds_b else seed_shares(seeds_b, draws, seed_rng)
    difference = float(found.scores[:seeds_a].mean() - found.scores[seeds_a:].mean())
    drawn = (found.drawn[:, :seeds_a] * shares_a).sum(axis=1) - (found.drawn[:, seeds_a:] * shares_b).sum(axis=1)
    without = found.without[:, :seeds_a].mean(axis=1) - found.without[:, seeds_a:].mean(axis=1)
    # Not moved, unlike the interval's: draws that say "no difference" must stay a tie.
    spread = difference + (drawn - difference) * stretch(drawn, without, found.times)
    smaller = min((spread <= TIE).sum(), (spread >= -TIE).sum())
    interval = corrected(difference, drawn, without, found.times, level)
    p_value = min(1.0, 2 * float(1 + smaller) / (1 + draws))
    return Paired(difference, interval.low, interval.high, p_value, test="paired bootstrap")


def approximate_randomisation(
    metric: Metric,
    a_by_seed: Sequence[Outcomes],
    b_by_seed: Sequence[Outcomes],
    *,
    draws: int = 1_000,
    seed: int = 0,
    clusters: NDArray[Any] | None = None,
) -> float:
    """Test whether two models could swap their predictions unnoticed; two-sided p-value (Noreen 1989; Yeh 2000).

    If the models are alike, any row's two predictions may as well have come the other way round. Each draw tosses a
    coin for every row (for every group, with `clusters`), swaps the two models' lines where it shows heads, and takes
    the difference of the scores again. The p-value is the share of draws that differ at least as much as the models
    do, one added above and below (Davison & Hinkley 1997, 4.11). It assumes less than the bootstrap, but it gives no
    interval, and it knows nothing of other seeds: it speaks of these fits.

    Of rows on which both models give the same lines, only how many were swapped counts: Binomial(count, 1/2).

    Args:
        metric: The score.
        a_by_seed: One (rows, k) array per seed of the first model.
        b_by_seed: The same for the second model, equally many; fit i of one swaps rows with fit i of the other.
        draws: Coin-toss rounds.
        seed: Of the coins.
        clusters: Group of each row, (rows,).

    Raises:
        ValueError: The models have different numbers of fits, or of rows.

    >>> from pmray.scoring.metrics import accuracy
    >>> right, wrong = np.array([[0, 0]] * 60), np.array([[0, 1]] * 10 + [[0, 0]] * 50)
    >>> approximate_randomisation(accuracy, [right], [wrong]) < 0.01
    True
    """
    if len(a_by_seed) != len(b_by_seed):
        raise ValueError(
            f"models that swap predictions need equally many fits; found {len(a_by_seed)} and {len(b_by_seed)}."
        )
    runs, rows, members = shared_lines([*a_by_seed, *b_by_seed], clusters)
    fits = list(zip(runs[: len(a_by_seed)], runs[len(a_by_seed) :], strict=True))
    rng = np.random.default_rng(seed)

    def difference(swapped: NDArray[np.int64]) -> NDArray[np.float64]:
        kept = rows - swapped
        there, back = np.hstack([kept, swapped]), np.hstack([swapped, kept])
        differences = [metric(both, there) - metric(both, back) for both in map(np.concatenate, fits)]
        mean: NDArray[np.float64] = np.mean(differences, axis=0)
        return mean

    observed = abs(float(difference(np.zeros((1, len(rows)), np.int64))[0]))
    step, extreme = max(1, CELLS // (2 * len(rows))), 0
    for done in range(0, draws, step):
        chunk = min(step, draws - done)
        if members is None:
            swapped = rng.binomial(rows, 0.5, size=(chunk, len(rows)))
        else:
            swapped = rng.integers(2, size=(chunk, int(members.max()) + 1))[:, members] * rows
        extreme += int((np.abs(difference(swapped)) >= observed - TIE).sum())
    return (1 + extreme) / (1 + draws)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Adjust p-values for being many (Holm 1979, Scandinavian Journal of Statistics 6).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below the one before it. Rejecting
    what is below alpha then makes any false rejection at most alpha likely, however the tests depend on each other.

    >>> holm({"x": 0.04, "y": 0.01, "z": 0.03})
    {'x': 0.06, 'y': 0.03, 'z': 0.06}
    """
    adjusted, floor = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = floor
    return {name: adjusted[name] for name in p_values}


def groups(
    names_best_first: Sequence[str], adjusted_p: Mapping[frozenset[str], float], alpha: float
) -> list[list[str]]:
    """Put models together that cannot be told apart, best group first.

    The best model left takes with it all those left that do not differ from it (adjusted p at least `alpha`); repeat
    with the rest. Every model is in one group, and each group is "the best, and those we cannot call worse". Being
    indistinguishable does not carry over: two members compared with their best may still differ from each other, and
    one may equal the head of the next group.

    Args:
        names_best_first: Models by falling score.
        adjusted_p: Pair of names, in no order -> adjusted p-value, for all pairs.
        alpha: Level below which two models differ.

    >>> p = {frozenset("ab"): 0.7, frozenset("ac"): 0.001, frozenset("bc"): 0.2}
    >>> groups(["a", "b", "c"], p, alpha=0.05)
    [['a', 'b'], ['c']]
    """
    found, left = [], list(names_best_first)
    while left:
        best, *others = left
        together = [best, *(name for name in others if adjusted_p[frozenset((best, name))] >= alpha)]
        found.append(together)
        left = [name for name in others if name not in together]
    return found


def minimum_detectable_difference(
    n: int, score: float, level: float = 0.95, power: float = 0.8, discordant: float | None = None
) -> float:
    """Smallest difference in accuracy that a paired test on n rows will probably see.

    Connor's sample size of McNemar's test (1987, Biometrics 43), solved for the difference d, with psi the share of
    rows on which exactly one model is right, z_a of the two-sided level and z_b of the power::

        n d^2 = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2
        d = sqrt(psi) (z_a sqrt(n) + z_b sqrt(n + z_b^2 - z_a^2)) / (n + z_b^2)

    The difference cannot exceed psi; where the formula says so, the answer is the d that solves it with psi = d: all
    those rows speak for the same model. For scores that are not shares of rows, as macro F1, it is a rough guide.

    Args:
        n: Rows.
        score: Accuracy of both models, about; used only when `discordant` is not given.
        level: One minus the chance to see a difference where there is none.
        power: Chance to see the difference.
        discordant: psi, when it has been observed; None takes 2 score (1 - score), that of models whose mistakes have
            nothing to do with each other. Real models share mistakes, so that this errs on the large side.

    >>> round(minimum_detectable_difference(1_000, 0.9), 3)
    0.038
    """
    psi = 2 * score * (1 - score) if discordant is None else discordant
    z_a, z_b = stats.norm.ppf((1 + level) / 2), stats.norm.ppf(power)
    total = n + z_b**2
    formula = math.sqrt(psi) * (z_a * math.sqrt(n) + z_b * math.sqrt(max(0.0, total - z_a**2))) / total
    # psi = d: a quadratic in u = sqrt(1 - d), namely total u^2 + 2 z_a z_b u + z_a^2 - n = 0.
    root = math.sqrt(max(0.0, (z_a * z_b) ** 2 + total * (n - z_a**2)))
    one_sided = 1 - max(0.0, (root - z_a * z_b) / total) ** 2
    return float(min(1.0, max(formula, one_sided)))
