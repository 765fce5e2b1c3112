"""Live traffic that never was: predictions with scores, and labels."""

import numpy as np

from pmray.live.records import Feedback, Prediction
from pmray.tasks.text import TextClassification

LABELS = ("negative", "positive")
TASK = TextClassification(labels=LABELS, positive="negative")


def scores_of(count: int, seed: int = 0, sharpness: float = 2.0) -> np.ndarray:
    """Probabilities of two labels, (rows, 2)."""
    logits = np.random.default_rng(seed).normal(0, sharpness, count)
    positive = 1 / (1 + np.exp(-logits))
    return np.stack([1 - positive, positive], axis=1).astype(np.float32)


def labels_of(scores: np.ndarray, seed: int = 1) -> list[str]:
    """Labels that the probabilities mean: a calibrated model's."""
    drawn = np.random.default_rng(seed).random(len(scores)) < scores[:, 1]
    return [LABELS[int(one)] for one in drawn]


def traffic(
    scores: np.ndarray, *, version: str = "1", name: str = "tiny", start: float = 0.0, step: float = 1.0, **more
) -> list[Prediction]:
    """One prediction a row, `step` seconds apart; ids are row numbers."""
    return [
        Prediction(
            id=f"row{number}",
            time=start + step * number,
            name=name,
            version=version,
            prediction=LABELS[int(row.argmax())],
            scores=row,
            input_hash="0" * 16,
            **{"length": 20 + number % 10, "words": 1 << number % 7, "latency_ms": 5.0, **more},
        )
        for number, row in enumerate(scores)
    ]


def feedback(labels: list[str], time: float = 1.0) -> list[Feedback]:
    return [Feedback(f"row{number}", label, time) for number, label in enumerate(labels)]
