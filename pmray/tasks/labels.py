"""What tasks that give a row a label, or several, have in common: targets, predictions, decisions and metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pmray.errors import DataError, SpecError
from pmray.scoring import metrics
from pmray.scoring.calibration import best_thresholds
from pmray.scoring.metrics import Metric
from pmray.spec import Data
from pmray.tasks.base import PLAIN_LOSS, LossOptions, Outcomes

if TYPE_CHECKING:
    import pyarrow as pa
    import torch


OWN_THRESHOLD = 20
"""Validation rows that must have a label before it gets a threshold of its own."""


@dataclass(frozen=True)
class RowLabels:
    """The label half of a task whose rows have one label or a list of labels; what a row is, is the other half."""

    labels: tuple[str, ...]
    """In the order of the logits."""
    multi_label: bool = False
    """A row may have any number of labels; the label column holds lists."""
    positive: str | None = None
    """Binary tasks: the label whose own F1 is reported too."""
    thresholds: tuple[float, ...] = ()
    """Multi-label: smallest probability at which each label is said, in the order of `labels`; empty means 0.5."""

    name: ClassVar[str]

    @classmethod
    def scores(cls) -> frozenset[str]:
        """Names of all metrics that a spec may ask for, whatever the labels turn out to be."""
        return frozenset({*metrics.SINGLE_LABEL, *metrics.BINARY, *metrics.MULTI_LABEL})

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        values = {key: value for key, value in settings.items() if key != "task"}
        if (common := values.pop("threshold", None)) is not None:  # bundles of 0.1 had one for all labels
            values["thresholds"] = [common] * len(values["labels"]) if values["multi_label"] else ()
        tuples: dict[str, Any] = {key: tuple(values[key]) for key in ("labels", "thresholds") if key in values}
        return cls(**{**values, **tuples})

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return {"task": self.name, **asdict(self), "labels": list(self.labels), "thresholds": list(self.thresholds)}

    def default_score(self) -> str:
        """Macro F1; micro F1 for many labels, where most labels are rare and macro F1 is mostly noise."""
        return "f1_micro" if self.multi_label else "f1_macro"

    def metrics(self) -> Sequence[str]:
        """Names of the metrics that are reported."""
        if self.multi_label:
            return metrics.MULTI_LABEL
        return metrics.BINARY if self.positive else metrics.SINGLE_LABEL

    def check_score(self, score: str) -> None:
        """Raise ``SpecError`` where a metric does not fit these labels, such as ``f1_positive`` of six classes."""
        if score not in self.metrics():
            kind = "several labels a row" if self.multi_label else f"{len(self.labels)} labels"
            raise SpecError(f"score {score!r} does not fit data with {kind}; known: {', '.join(self.metrics())}.")

    def targets(self, table: pa.Table) -> NDArray[Any]:
        """Label numbers, shape (rows,) int64; or label bits, shape (rows, labels) int8."""
        index = {label: position for position, label in enumerate(self.labels)}
        values = table["label"].to_pylist()
        if not self.multi_label:
            return np.array([index[value] for value in values], dtype=np.int64)
        bits = np.zeros((len(values), len(self.labels)), dtype=np.int8)
        for row, names in enumerate(values):
            bits[row, [index[name] for name in names]] = 1
        return bits

    def loss(
        self, logits: torch.Tensor, targets: NDArray[Any], encoded: pa.Table, options: LossOptions = PLAIN_LOSS
    ) -> torch.Tensor:
        """Loss of each row, shape (rows,): cross-entropy, or the sum over labels of binary cross-entropies."""
        import torch
        from torch.nn import functional as F

        wanted = torch.from_numpy(targets).to(logits.device)
        if self.multi_label:
            # Half of the smoothed share goes to either side of a bit.
            bits = wanted.float() * (1 - options.smoothing) + options.smoothing / 2
            return F.binary_cross_entropy_with_logits(
                logits.float(), bits, pos_weight=options.weights, reduction="none"
            ).sum(1)
        return F.cross_entropy(
            logits.float(), wanted, options.weights, label_smoothing=options.smoothing, reduction="none"
        )

    def predict(self, logits: torch.Tensor, encoded: pa.Table) -> NDArray[np.float32]:
        """Probabilities, shape (rows, labels), float32."""
        probabilities = logits.float().sigmoid() if self.multi_label else logits.float().softmax(-1)
        result: NDArray[np.float32] = probabilities.cpu().numpy()
        return result

    def said(self, scores: NDArray[Any]) -> NDArray[Any]:
        """The prediction in the form of ``targets``: label numbers, or label bits."""
        if self.multi_label:
            return (scores >= np.array(self.thresholds or 0.5)).astype(np.int8)
        numbers: NDArray[np.int64] = scores.argmax(1)
        return numbers

    def tuned(self, scores: NDArray[Any], targets: NDArray[Any], metric: str) -> Self:
        """Return the task with each label's threshold fitted to these rows (validation, never test) for a metric.

        Metrics that average over labels want each label's own best threshold (Yang 2001, "A study of thresholding
        strategies for text categorization": SCut), but a label that fewer than `OWN_THRESHOLD` rows have gets the
        common one, for its own would be the luck of a few rows. For micro F1 the best rule is one threshold for all
        labels (Lipton, Elkan & Naryanaswamy 2014, "Optimal thresholding of classifiers to maximize F1 measure"): labels
        of which little can be learned are then hardly ever said.
        """
        if not self.multi_label:
            return self
        # One search for all labels, of micro F1: the labels' rows count together.
        common = best_thresholds(scores.reshape(-1, 1), targets.reshape(-1, 1))[0]
        if not metric.endswith(("_macro", "_weighted")):
            return replace(self, thresholds=(float(common),) * len(self.labels))
        own = best_thresholds(scores, targets)
        enough = targets.sum(axis=0) >= OWN_THRESHOLD
        return replace(self, thresholds=tuple(float(one) for one in np.where(enough, own, common)))

    def outcome(self, scores: NDArray[Any], targets: NDArray[Any]) -> Outcomes:
        """One line per example: (true, predicted), or the true bits followed by the predicted bits."""
        return self.paired_outcome(self.said(scores), targets)

    def paired_outcome(self, said: NDArray[Any], targets: NDArray[Any]) -> Outcomes:
        """As ``outcome``, from predictions instead of scores."""
        return np.concatenate([np.atleast_2d(targets.T).T, np.atleast_2d(said.T).T], axis=1).astype(np.int64)

    def score(self, metric: str, outcomes: Outcomes, weights: NDArray[Any]) -> NDArray[np.float64]:
        """One value of the metric for each line of weights, shape (draws, rows) -> (draws,)."""
        values: NDArray[np.float64] = self.metric(metric)(outcomes, weights)
        return values

    def metric(self, name: str) -> Metric:
        """Return the metric as a function of (outcomes, weights)."""
        if self.multi_label:
            return metrics.multi_label_metric(name)
        return metrics.single_label_metric(name, self.labels.index(self.positive) if self.positive else None)

    def class_metrics(self) -> dict[str, dict[str, Metric]]:
        """Label -> precision, recall and F1 of that label alone."""
        kinds = {"precision": metrics.precision, "recall": metrics.recall, "f1": metrics.f1}
        return {
            label: {name: partial(kind, positive=index, multi_label=self.multi_label) for name, kind in kinds.items()}
            for index, label in enumerate(self.labels)
        }

    def right(self, outcomes: Outcomes) -> NDArray[np.bool_]:
        """Whether each row's prediction is right, in all its labels."""
        true, said = np.split(outcomes, 2, axis=1)
        right: NDArray[np.bool_] = (true == said).all(axis=1)
        return right

    def halves(self, outcomes: Outcomes) -> tuple[NDArray[Any], NDArray[Any]]:
        """What is true and what was said, each (rows, 1) label numbers or (rows, labels) bits."""
        true, said = np.split(outcomes, 2, axis=1)
        return true, said

    def shown(self, values: NDArray[Any]) -> list[str]:
        """Write targets or predictions for people; several labels of a row are joined by ``|``.

        >>> RowLabels(("a", "b", "c"), multi_label=True).shown(np.array([[1, 0, 1], [0, 0, 0]]))
        ['a|c', '']
        """
        if values.ndim == 1:
            return [self.labels[int(number)] for number in values]
        return ["|".join(label for label, bit in zip(self.labels, row, strict=True) if bit) for row in values]

    def answer(self, scores: NDArray[Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """One row's prediction for people and machines: the label (or labels) and every label's probability."""
        said = self.said(scores[None])[0]
        shown = {label: round(float(score), 6) for label, score in zip(self.labels, scores, strict=True)}
        if self.multi_label:
            return {"labels": [label for label, bit in zip(self.labels, said, strict=True) if bit], "scores": shown}
        return {"label": self.labels[int(said)], "scores": shown}

    def scores_of(self, answer: Mapping[str, Any]) -> NDArray[np.float32]:
        """The score vector that ``answer`` made an answer of, rounded."""
        return np.array([answer["scores"][label] for label in self.labels], np.float32)


def labels_of(data: Data, train: pa.Table) -> dict[str, Any]:
    """Find labels, whether rows have several, and which of two is the positive one: the fields of ``RowLabels``.

    Raises:
        DataError: ``positive_label`` is not one of two labels.
    """
    import pyarrow as pa

    column = train["label"]
    multi_label = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    found = Counter((column.combine_chunks().flatten() if multi_label else column).to_pylist())
    labels = tuple(data.labels or sorted(found, key=_natural))
    positive = data.positive_label
    binary = len(labels) == 2 and not multi_label
    if positive is not None and (not binary or positive not in labels):
        raise DataError(
            f"data.positive_label is {positive!r}, but the labels are {list(labels)}; it must be one of exactly two"
        )
    if binary and positive is None:
        positive = min(labels, key=lambda label: (found[label], -labels.index(label)))
    return {"labels": labels, "multi_label": multi_label, "positive": positive}


def prepare_head(config: Any, labels: Sequence[str], *, multi_label: bool = False) -> None:
    """Write the labels into a model's configuration, where ``transformers`` looks for the size of the head."""
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "multi_label_classification" if multi_label else "single_label_classification"


def _natural(label: str) -> tuple[int, float, str]:
    """Sort "10" after "9"."""
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (0, number, label) if math.isfinite(number) else (1, 0.0, label)
