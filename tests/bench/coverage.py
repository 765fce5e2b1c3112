"""Whether the statistics keep their word: ``python -m tests.bench.coverage [SIMULATIONS]``.

Three tables: how often the 95 % interval holds the true score, how often models that are equal by construction are
called a tie (and McNemar's test where an unpaired test is blind), and what 1,000 draws of macro F1 cost.

Rows are drawn from a known joint distribution of (true, predicted) classes, so the true score is the metric on that
distribution itself, with its cells as rows and their probabilities as weights.
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from pmray.scoring.intervals import bootstrap
from pmray.scoring.metrics import accuracy, f1
from pmray.scoring.paired import approximate_randomisation, mcnemar, paired_bootstrap

SIZES, CLASSES = (200, 1_000, 5_000), (2, 6, 77)
METRICS = {"macro F1": f1, "accuracy": accuracy}
RIGHT = 0.8
"""Share of the rows of each class that the simulated model gets right, on average over classes."""
ALPHA = 0.05
TIES = 500
TIE_ROWS = 1_000


def population(classes: int, rng: np.random.Generator) -> np.ndarray:
    """Joint probabilities of (true, predicted), shape (classes, classes): uneven classes, some harder than others."""
    shares = rng.dirichlet(np.full(classes, 5.0))
    right = rng.beta(8 * RIGHT, 8 * (1 - RIGHT), size=classes)
    wrong = rng.dirichlet(np.ones(classes - 1), size=classes)
    joint = np.zeros((classes, classes))
    joint[~np.eye(classes, dtype=bool)] = (wrong * (1 - right)[:, None]).ravel()
    return shares[:, None] * (joint + np.diag(right))


def coverage(simulations: int) -> Table:
    """Share of the intervals that hold the true score."""
    error = 100 * math.sqrt(0.95 * 0.05 / simulations)
    table = Table(
        title=f"Coverage of the 95 % interval, {simulations} simulations (standard error {error:.1f} points)",
        title_justify="left",
    )
    for heading in ("score", "rows", *(f"{classes} classes" for classes in CLASSES)):
        table.add_column(heading, justify="right" if heading != "score" else "left")
    for name, metric in METRICS.items():
        for rows in SIZES:
            cells = []
            for classes in CLASSES:
                rng = np.random.default_rng([rows, classes])
                joint = population(classes, rng)
                lines = np.argwhere(joint >= 0)
                truth = float(metric(lines, joint.reshape(1, -1))[0])
                held = 0
                for simulation in range(simulations):
                    drawn = np.repeat(lines, rng.multinomial(rows, joint.ravel() / joint.sum()), axis=0)
                    found = bootstrap(metric, drawn, seed=simulation)
                    held += found.low <= truth <= found.high
                share = held / simulations
                cells.append(f"{100 * share:.1f} %" + ("" if 0.93 <= share <= 0.97 else " (missed)"))
            table.add_row(name, f"{rows:,}", *cells)
    table.caption = "The aim is 93 to 97 %."
    return table


def ties() -> Table:
    """How often equal models are a tie, and McNemar's example."""
    table = Table(title=f"Equal models, {TIES} simulations of {TIE_ROWS} rows; McNemar's example", title_justify="left")
    table.add_column("what")
    table.add_column("found", justify="right")
    for classes in (2, 20):
        rng = np.random.default_rng(classes)
        joint = population(classes, rng)
        given_true = joint / joint.sum(axis=1, keepdims=True)
        tied = np.zeros(2, int)
        for simulation in range(TIES):
            true = rng.choice(classes, size=TIE_ROWS, p=joint.sum(axis=1) / joint.sum())
            a, b = (
                np.stack([true, (given_true[true].cumsum(axis=1) < rng.random((TIE_ROWS, 1))).sum(axis=1)], axis=1)
                for _ in range(2)
            )
            a, b = (np.minimum(lines, classes - 1) for lines in (a, b))
            p_values = (
                paired_bootstrap(f1, [a], [b], seed=simulation).p_value,
                approximate_randomisation(f1, [a], [b], seed=simulation),
            )
            tied += np.array(p_values) >= ALPHA
        for test, count in zip(("paired bootstrap", "randomisation"), tied, strict=True):
            aim = " (aim: at least 95 %)" if test == "paired bootstrap" else ""
            table.add_row(f"a tie by macro F1 of {classes} classes, {test}{aim}", f"{100 * count / TIES:.1f} %")
    a, b = np.zeros(220, bool), np.zeros(220, bool)
    a[:13], b[13:45], a[45:185], b[45:185] = True, True, True, True
    pooled = (a.mean() + b.mean()) / 2
    z = (b.mean() - a.mean()) / math.sqrt(2 * pooled * (1 - pooled) / len(a))
    table.add_row("220 rows, 13 against 32 discordant: McNemar's p (aim: below 0.01)", f"{mcnemar(a, b):.4f}")
    table.add_row("the same rows: p of an unpaired z-test (above 0.01)", f"{2 * stats.norm.sf(abs(z)):.4f}")
    return table


def speed() -> Table:
    """Seconds of 1,000 draws of macro F1 on 100,000 rows of 20 classes; best of three, as others share the machine."""
    lines = np.random.default_rng(0).integers(20, size=(100_000, 2))
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        bootstrap(f1, lines, draws=1_000)
        seconds.append(time.perf_counter() - started)
    table = Table(title="1,000 draws of macro F1, 100,000 rows, 20 classes", title_justify="left")
    table.add_column("seconds (aim: under 1)", justify="right")
    table.add_row(f"{min(seconds):.2f}")
    return table


def main(simulations: int = 1_000) -> None:
    console = Console(highlight=False, width=110)
    for table in (speed(), ties(), coverage(simulations)):
        console.print(table)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
