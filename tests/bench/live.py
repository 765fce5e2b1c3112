"""Does live watching decide rightly? 500 replays each of challengers, drift and broken promises.

Rows are drawn from a joint distribution of truth, champion and challenger; after every 50 labels somebody looks. All
replays are scored at once by the metrics, the jackknife and the confidence sequence that ``pmray watch`` uses, and the
look that ends a replay is decided by ``pmray.live.promotion.decide`` itself.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pmray.live.drift import Profile, drift
from pmray.live.promotion import Facts, Rules, decide
from pmray.live.sequential import TIGHTEST_AT, Anytime, anytime_interval, jackknife
from pmray.scoring.intervals import Interval
from pmray.scoring.metrics import f1

REPLAYS = 500
EVERY = 50
"""Labels from one look to the next."""
RULES = Rules()


@dataclass(frozen=True)
class World:
    """How two models answer rows of some classes."""

    classes: int = 2
    champion: float = 0.85
    """Share of rows it is right on."""
    gain: float = 0.0
    """By how much the challenger is right more often."""
    disagree: float = 0.12
    """Share of rows on which only one of them is right."""

    def lines(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Joint lines: (true, champion's), (true, challenger's), and their probabilities."""
        first, second = (self.disagree - self.gain) / 2, (self.disagree + self.gain) / 2
        both = self.champion - first
        wrong = 1 - both - first - second
        champion, challenger, likely = [], [], []
        for true in range(self.classes):
            for miss in range(1, self.classes):
                other = (true + miss) % self.classes
                share = 1 / self.classes / (self.classes - 1)
                for a, b, how in (
                    (true, true, both),
                    (true, other, first),
                    (other, true, second),
                    (other, other, wrong),
                ):
                    champion.append((true, a))
                    challenger.append((true, b))
                    likely.append(how * share)
        return np.array(champion), np.array(challenger), np.array(likely)


def replay(world: World, replays: int = REPLAYS, seed: int = 0, rules: Rules = RULES) -> tuple[Counter[str], float]:
    """Let challengers of a world run until they are decided: how often which way, and the mean number of labels."""
    champion, challenger, likely = world.lines()
    looks = np.arange(EVERY, rules.max_labels + 1, EVERY)
    drawn = np.random.default_rng(seed).multinomial(EVERY, likely, size=(replays, len(looks)))
    counts = drawn.cumsum(axis=1)[:, looks >= rules.min_labels].reshape(-1, len(likely))
    looks = looks[looks >= rules.min_labels]
    value, error = jackknife(f1, [challenger, champion], counts, np.array([1.0, -1.0]))
    rows = np.tile(looks, replays)
    low, high = anytime_interval(value, error, rows, rules.level, TIGHTEST_AT)
    over = (
        (low > 0)
        | (high < 0)
        | ((high < rules.smallest_gain) & (value > -rules.smallest_gain))
        | (rows == rules.max_labels)
    )
    ended, labels = Counter[str](), []
    for start in range(0, len(rows), len(looks)):
        at = start + int(over[start : start + len(looks)].argmax())
        found = Anytime(value[at], low[at], high[at], rules.level, int(rows[at]), error[at])
        ended[decide(Facts("1", "2", difference=found), rules).kind] += 1
        labels.append(int(rows[at]))
    return ended, float(np.mean(labels))


def replay_promise(
    true: float, promised: Interval, replays: int = REPLAYS, labels: int = 3_000, seed: int = 0
) -> float:
    """Share of replays in which a champion that is right on a share of the rows is ever rolled back."""
    lines = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    likely = np.array([true, 1 - true, 1 - true, true]) / 2
    looks = np.arange(EVERY, labels + 1, EVERY)
    counts = np.random.default_rng(seed).multinomial(EVERY, likely, size=(replays, len(looks))).cumsum(axis=1)
    counts, looks = counts[:, looks >= RULES.min_labels], looks[looks >= RULES.min_labels]
    value, error = jackknife(f1, [lines], counts.reshape(-1, 4), np.array([1.0]))
    rows = np.tile(looks, replays)
    low, high = anytime_interval(value, error, rows, RULES.level, TIGHTEST_AT)
    back = 0
    for start in range(0, len(rows), len(looks)):
        at = start + int((high[start : start + len(looks)] < promised.low).argmax())
        live = Anytime(value[at], low[at], high[at], RULES.level, int(rows[at]), error[at])
        back += decide(Facts("2", previous="1", live=live, promised=promised)).kind == "roll back"
    return back / replays


def replay_drift(
    change: float, replays: int = REPLAYS, rows: int = 500, reference: int = 1_000, seed: int = 0
) -> float:
    """Share of replays in which drift is called where inputs and answers have changed by some standard deviations."""
    rng = np.random.default_rng(seed)

    def profile(size: int, by: float) -> Profile:
        sure = 1 / (1 + np.exp(-np.abs(rng.normal(2 - by, 1.5, size))))
        bits = (rng.random((size, 60)) < 0.2 + 0.2 * by * (np.arange(60) < 6)) @ (1 << np.arange(60))
        labels = rng.choice(["a", "b", "c"], size, p=[0.5 - by / 4, 0.3, 0.2 + by / 4])
        lengths = np.exp(rng.normal(4 + by / 2, 0.5, size)).astype(np.int64)
        return Profile(lengths, bits, labels.tolist(), sure)

    return (
        sum(any(one.drifted for one in drift(profile(reference, 0), profile(rows, change))) for _ in range(replays))
        / replays
    )


def main() -> None:
    console = Console(width=140)
    started = time.perf_counter()
    table = Table(
        "challenger", "promoted", "kept", "rejected", "right", "labels (mean)", title=f"{REPLAYS} replays each"
    )
    for classes in (2, 3):
        for told, gain, right in (
            ("better by 3 points", 0.03, "promote"),
            ("equal", 0.0, "keep"),
            ("worse by 3 points", -0.03, "reject"),
        ):
            ended, labels = replay(World(classes=classes, gain=gain))
            shares = [ended[kind] / REPLAYS for kind in ("promote", "keep", "reject")]
            table.add_row(
                f"{classes} classes, {told}",
                *(f"{one:.1%}" for one in shares),
                f"{ended[right] / REPLAYS:.1%}",
                f"{labels:,.0f}",
            )
    console.print(table)
    promise = Interval(0.85, 0.83, 0.87, 0.95)
    for told, true in (("as promised", 0.85), ("at the promise's lower end", 0.83), ("6 points worse", 0.79)):
        console.print(f"champion {told}: rolled back in {replay_promise(true, promise):.1%}")
    for told, change in (("no drift", 0.0), ("half a standard deviation", 0.5)):
        console.print(f"{told}: called drift in {replay_drift(change):.1%}")
    console.print(f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
