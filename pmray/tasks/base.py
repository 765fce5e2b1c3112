"""What pmray needs to know about a kind of problem.

A task is one small class in one file. A ``Protocol`` names its members; what all tasks do whose rows have labels is in
``labels.py``. A task holds settings, never data: it travels to workers as a pickle of a few kilobytes and to disk as
JSON. ``pmray.testing.check_task`` tries every member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pmray.scoring.metrics import Metric
from pmray.spec import Data, Range, Recipe

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from pmray.data.check import Finding

Outcomes = NDArray[Any]
"""One line of numbers per example, shape (rows, k); what every metric is computed from."""


@dataclass(frozen=True)
class LossOptions:
    """How the loss departs from plain cross-entropy."""

    smoothing: float = 0.0
    """Share of the target's probability that is spread over all labels (Szegedy et al. 2016)."""
    weights: torch.Tensor | None = None
    """Weight of each label, (labels,); of label bits, that of having the label."""


PLAIN_LOSS = LossOptions()


class Objective(Protocol):
    """What a model can be trained for: all that a fit needs."""

    name: ClassVar[str]
    """The name in specs."""
    columns: ClassVar[Mapping[str, bool]]
    """Role -> whether it is required."""
    reader: ClassVar[str]
    """What ``processor`` opens, in messages: tokenizer, image processor."""
    encode_rows: ClassVar[int]
    """Rows that are encoded at a time, which bounds the memory it takes."""

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the logits."""
        ...

    @classmethod
    def scores(cls) -> frozenset[str]:
        """Names of all metrics that a spec may ask for, whatever the labels turn out to be."""
        ...

    @classmethod
    def from_data(cls, data: Data, train: pa.Table) -> Self:
        """Find the task's settings (labels, kind) in the training rows and the spec."""
        ...

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        ...

    def check(self, table: pa.Table, split: str) -> list[Finding]:
        """Say what is wrong with the rows of a split, before anything is paid for."""
        ...

    def default_recipe(self, family: str, parameters: int) -> Recipe:
        """Return the published recipe for a model family (``config.model_type``) and size."""
        ...

    def default_space(self, family: str, parameters: int) -> dict[str, Range]:
        """Return the hyper-parameters worth searching for a family and size."""
        ...

    def build(self, folder: str, config: Any, pad: int, **options: Any) -> torch.nn.Module:
        """Open the pre-trained body in `folder` with this configuration and put a new head on it."""
        ...

    def processor(self, folder: str) -> Any:
        """Open the tokenizer or other processor in `folder`."""
        ...

    def encode(self, table: pa.Table, processor: Any, max_length: int) -> pa.Table:
        """Turn rows into model inputs, with an int32 column ``length`` (tokens, pixels or samples). No labels."""
        ...

    def targets(self, table: pa.Table) -> NDArray[Any]:
        """Turn the label column into numbers: shape (rows,) or (rows, labels), or ragged (see ``scoring.ragged``)."""
        ...

    def collate(
        self, encoded: pa.Table, pad: int, random: np.random.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Make encoded rows a batch, padded to the longest of them; `random` is given where they may be augmented."""
        ...

    def loss(
        self, logits: torch.Tensor, targets: NDArray[Any], encoded: pa.Table, options: LossOptions = PLAIN_LOSS
    ) -> torch.Tensor:
        """Loss of each row, shape (rows,), float32."""
        ...

    def predict(self, logits: torch.Tensor, encoded: pa.Table) -> NDArray[Any]:
        """Turn logits into score vectors, shape (rows, labels), float32; ragged where targets are."""
        ...

    def outcome(self, scores: NDArray[Any], targets: NDArray[Any]) -> Outcomes:
        """One line of numbers per example, from its score vector and its label."""
        ...

    def score(self, metric: str, outcomes: Outcomes, weights: NDArray[Any]) -> NDArray[np.float64]:
        """One value of the metric for each line of weights, shape (draws, rows) -> (draws,)."""
        ...

    def default_score(self) -> str:
        """Name of the metric that decides when the spec names none."""
        ...

    def check_score(self, score: str) -> None:
        """Raise ``SpecError`` for a metric that does not fit these labels."""
        ...

    def tuned(self, scores: NDArray[Any], targets: NDArray[Any], metric: str) -> Self:
        """Return the task with decision thresholds fitted to validation rows for a metric; itself where it has none."""
        ...


class Task(Objective, Protocol):
    """A kind of problem, bound to the labels of one data set: what choosing, comparing and serving need besides."""

    head: ClassVar[str]
    """The ``transformers`` class that opens an exported model, such as ``AutoModelForSequenceClassification``."""
    baselines: ClassVar[Mapping[str, str]]
    """Name in tables -> kind of the models without a transformer that every sweep contains; see ``baselines``."""

    def features(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], encoded: pa.Table) -> Any:
        """What a frozen body sees of a batch: (rows, width), or (rows, poolings, width); ragged where targets are."""
        ...

    def paired_outcome(self, said: NDArray[Any], targets: NDArray[Any]) -> Outcomes:
        """As ``outcome``, from predictions in the form of ``targets`` instead of score vectors."""
        ...

    def metric(self, name: str) -> Metric:
        """Return the metric as a function of (outcomes, weights)."""
        ...

    def metrics(self) -> Sequence[str]:
        """Names of the metrics that are reported."""
        ...

    def class_metrics(self) -> Mapping[str, Mapping[str, Metric]]:
        """Label -> metric name -> metric of that label alone; empty where a task has no labels."""
        ...

    def right(self, outcomes: Outcomes) -> NDArray[np.bool_]:
        """Whether each row's prediction is right, shape (rows,)."""
        ...

    def said(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Predictions in the form of ``targets``."""
        ...

    def halves(self, outcomes: Outcomes) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Truth and prediction of each line where a row has one label, (rows, 1), or bits, (rows, labels); else None.

        What needs them (confusion, calibration, metrics of probabilities) is left out where there are none.
        """
        ...

    def shown(self, values: NDArray[Any]) -> list[str]:
        """Write targets or predictions for people."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Roles that a row needs for a prediction."""
        ...

    def sent(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row of a table as JSON can carry it to ``problem`` and ``rows``."""
        ...

    def row_schema(self) -> dict[str, Any]:
        """JSON Schema of a row as it is sent, without its label, with an example that can be answered."""
        ...

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Say why a row that was sent to an endpoint cannot be answered, or None."""
        ...

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Make rows that were sent, and have no problem, into a table that ``encode`` takes."""
        ...

    def answer(self, scores: NDArray[Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """One row's prediction as plain values, for an endpoint."""
        ...

    def scores_of(self, answer: Mapping[str, Any]) -> NDArray[np.float32]:
        """The scores behind an answer that came from an endpoint, as near as it tells them."""
        ...
