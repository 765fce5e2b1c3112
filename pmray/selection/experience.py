"""How models did on earlier data: a file of past outcomes, which orders candidates and gives first recipes.

The file holds one JSON line a trial: what its data was like, who was tried with which recipe, and the score. Nothing of
the data itself is in it, and it is sent nowhere. Several runs may write it at once.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmray.errors import LedgerError
from pmray.selection.search import Arm, contains
from pmray.spec import Recipe
from pmray.training.model import Pretrained

PROXY = "experience"
"""Its column beside the proxies of ``pmray.selection.proxies``."""

RIDGE = 0.5
"""Weight of "a model is like the others", in data sets: what was seen on one data set alone counts two thirds."""


@dataclass(frozen=True)
class Signature:
    """What a data set is like, as far as that can say which models suit it."""

    task: str
    metric: str
    """Of the deciding score; others cannot be compared."""
    rows: int
    """Of training."""
    labels: int
    balance: float
    """Entropy of the labels over that of equally frequent ones, 0 to 1."""
    length: float
    """Mean words of a text (or words of a row); 0 where rows are neither."""


@dataclass(frozen=True)
class Experience:
    """What one trial gave, and on what."""

    key: str
    """Of the outcome in its ledger; the same outcome counts once."""
    data: str
    """Key of the data."""
    signature: Signature
    weights: str
    """Revision and kept layers: what a candidate is, whatever it is called."""
    model: str
    """Where its weights came from, for people."""
    recipe: Mapping[str, Any]
    score: float
    examples: int
    done: bool
    """Whether it went to its end."""


def weights_of(one: Pretrained) -> str:
    """Name a candidate by its weights: revision and kept layers."""
    return one.revision if one.candidate.layers is None else f"{one.revision}:{one.candidate.layers}"


def signature_of(train: pa.Table, labels: int, task: str, metric: str) -> Signature:
    """Describe training rows.

    Args:
        train: With ``label`` and, of texts, ``text`` or ``words``.
        labels: How many there are.
        task: Name of the task.
        metric: Name of the deciding metric.
    """
    column = train["label"]
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    counts = np.array(pc.value_counts(column).field("counts"), dtype=np.float64)
    shares = counts / counts.sum()
    balance = float(-(shares * np.log(shares)).sum() / math.log(max(2, len(shares))))
    length = 0.0
    if "text" in train.column_names:
        length = float(pc.mean(pc.add(pc.count_substring(train["text"], " "), 1)).as_py())
    elif "words" in train.column_names:
        length = float(pc.mean(pc.list_value_length(train["words"])).as_py())
    return Signature(task, metric, len(train), labels, round(balance, 3), round(length, 1))


def similarity(a: Signature, b: Signature) -> float:
    """How much scores on one data set say about the other: 0 for another task or metric, 1 for the same signature.

    A Gaussian of the distance between logarithms of rows, labels and lengths, and balances; ten times the rows, or
    three times the labels or the length, count as one standard deviation.

    >>> small = Signature("text-classification", "f1_macro", 600, 2, 1.0, 20.0)
    >>> large = Signature("text-classification", "f1_macro", 6000, 2, 1.0, 20.0)
    >>> similarity(small, small), round(similarity(small, large), 2)
    (1.0, 0.61)
    """
    if (a.task, a.metric) != (b.task, b.metric):
        return 0.0
    apart = (
        math.log10(a.rows / b.rows),
        math.log(a.labels / b.labels, 3),
        math.log((1 + a.length) / (1 + b.length), 3),
        (a.balance - b.balance) / 0.3,
    )
    return math.exp(-sum(one**2 for one in apart) / 2)


def standings(past: Iterable[Experience]) -> dict[str, tuple[Signature, dict[str, float]]]:
    """Data key -> its signature and the best score of each model on it."""
    best: dict[str, tuple[Signature, dict[str, float]]] = {}
    for one in past:
        _, scores = best.setdefault(one.data, (one.signature, {}))
        scores[one.weights] = max(one.score, scores.get(one.weights, one.score))
    return best


def expected(past: Iterable[Experience], now: Signature, weights: Sequence[str]) -> dict[str, float]:
    """How much better than usual each model can be expected to do, in points of the score.

    Data sets differ in how hard they are, and not all models were tried on all of them: so a score is taken as the sum
    of what the data set gives and what the model gives, fitted by least squares, where similar data sets count more and
    models of which little is known are drawn to the mean. Where all models were tried everywhere this orders them by
    their mean score, which did best in `pmray replay` (tests/bench/RESULTS.md).

    Args:
        past: Outcomes of earlier runs.
        now: The data at hand.
        weights: The models at hand.

    Returns:
        Model -> score; only models that are known. Empty where fewer than two are.
    """
    sets = [(scores, similarity(now, signature)) for signature, scores in standings(past).values() if len(scores) > 1]
    known = sorted({name for scores, alike in sets if alike > 0 for name in scores})
    if len(set(known) & set(weights)) < 2:
        return {}
    place = {name: number for number, name in enumerate(known)}
    lines, values, strength = [], [], []
    for number, (scores, alike) in enumerate(sets):
        for name, score in scores.items() if alike > 0 else ():
            line = np.zeros(len(known) + len(sets))
            line[place[name]] = line[len(known) + number] = 1
            lines.append(line)
            values.append(score)
            strength.append(alike)
    x, y, w = np.array(lines), np.array(values), np.array(strength)
    # Data sets are free to be as hard as they are; models are drawn together.
    drawn = np.diag([RIDGE] * len(known) + [1e-9] * len(sets))
    found = np.linalg.solve((x.T * w) @ x + drawn, (x.T * w) @ y)
    return {name: float(found[place[name]]) for name in weights if name in place}


def first_recipes(past: Iterable[Experience], now: Signature, arms: Mapping[str, Arm]) -> dict[str, Recipe]:
    """A recipe worth trying early, for each model with a past: the best one on the most similar data set.

    As Feurer, Springenberg & Hutter 2015 ("Initializing Bayesian hyperparameter optimization via meta-learning"). Only
    what is searched is taken over, from trials that went to their end; a recipe that is the default anyway, or lies
    outside the present space, is none.

    Args:
        past: Outcomes of earlier runs.
        now: The data at hand.
        arms: Weights -> the candidate's default recipe and space.

    Returns:
        Weights -> recipe.
    """
    best: dict[str, tuple[float, float, Recipe]] = {}
    for one in past:
        arm, alike = arms.get(one.weights), similarity(now, one.signature)
        if arm is None or not one.done or alike == 0:
            continue
        searched = {field: one.recipe[field] for field in arm.space if field in one.recipe}
        if len(searched) < len(arm.space) or not all(
            contains(arm.space[field], value) for field, value in searched.items()
        ):
            continue
        if one.weights not in best or (alike, one.score) > best[one.weights][:2]:
            best[one.weights] = (alike, one.score, arm.default.changed(searched))
    return {name: recipe for name, (_, _, recipe) in best.items() if recipe != arms[name].default}


def read_experience(path: Path) -> list[Experience]:
    """Read a store, oldest first, each outcome once; none where there is no file. A torn last line is dropped.

    Raises:
        LedgerError: A line cannot be read.
    """
    if not path.is_file():
        return []
    found: dict[str, Experience] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            one = Experience(**{**values, "signature": Signature(**values["signature"])})
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                continue
            raise LedgerError(
                f"{path}:{number} is not a line of experience ({error}); delete the line, or set "
                "`search.experience: off`."
            ) from None
        found[one.key] = one
    return list(found.values())


def add_experience(path: Path, new: Iterable[Experience]) -> int:
    """Add outcomes that a store does not know yet; returns how many there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grouped: dict[str, Experience] = {one.key: one for one in new}
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        known = {one.key for one in read_experience(path)}
        lines = [json.dumps(asdict(one), separators=(",", ":")) for one in grouped.values() if one.key not in known]
        file.seek(0)
        content = file.read()
        # Half a line, which a killed run has left.
        file.truncate(content.rfind(b"\n") + 1)
        file.write("".join(f"{line}\n" for line in lines).encode())
    return len(lines)


def tell(past: Iterable[Experience], now: Signature) -> str:
    """Say in words what a store knows that is of use here."""
    sets: dict[str, int] = defaultdict(int)
    for one in past:
        if similarity(now, one.signature) > 0:
            sets[one.data] += 1
    if not sets:
        return "experience: none yet with this task and score"
    return f"experience: {sum(sets.values())} trials on {len(sets)} data sets of this task and score"
