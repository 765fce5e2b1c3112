"""Models that pmray did not train: a classification head of anybody's, scored with the labels of the data.

Such a model names its labels its own way; ``match_labels`` and ``match_tags`` find those of the data in them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from pmray.bundle import Bundle
from pmray.data.annotations import OUTSIDE, prefix_and_type, scheme_of
from pmray.data.labelled import LabelledRows
from pmray.errors import CandidateUnavailable, DataError
from pmray.spec import Data
from pmray.tasks.images import ImageClassification
from pmray.tasks.text import TextClassification
from pmray.tasks.tokens import TokenClassification
from pmray.training.model import Pretrained, check_processor

MAX_LENGTH = 512
"""Tokens of a row, at most what the model takes."""

UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls labels that nobody named."""

Classifier = TextClassification | ImageClassification | TokenClassification

HEADS: Mapping[str, type[Classifier]] = {
    "ForSequenceClassification": TextClassification,
    "ForImageClassification": ImageClassification,
    "ForTokenClassification": TokenClassification,
}
"""How the name of a model's class ends -> the task that it does."""


def task_kind(model: str, pretrained: Pretrained) -> type[Classifier]:
    """The task of a model with a classification head.

    Raises:
        CandidateUnavailable: It has none.
    """
    heads = list(_config(pretrained).architectures or ())
    found = [kind for end, kind in HEADS.items() if any(head.endswith(end) for head in heads)]
    if not found:
        raise CandidateUnavailable(
            f"{model} has no classification head (its config.json says {', '.join(heads) or 'nothing of one'}, "
            f"expected {' or '.join(f'…{end}' for end in HEADS)}), so that it says nothing of labels; `pmray fit` "
            "gives it one"
        )
    return found[0]


def as_bundle(
    pretrained: Pretrained, kind: type[Classifier], rows: LabelledRows, labels: Sequence[str] | None
) -> tuple[Bundle, NDArray[np.int64] | None]:
    """Describe a model with a classification head as if it were a bundle, with the labels of the data.

    Args:
        pretrained: The model.
        kind: As ``task_kind`` told it.
        rows: The data.
        labels: What the user says that the outputs are, in order.

    Returns:
        The bundle; and for each of the model's outputs its number among the task's tags, None where they are the
        task's labels as they are.

    Raises:
        CandidateUnavailable: It lacks weights or is of no use for labels.
        DataError: Its labels are not those of the data.
    """
    model, config = pretrained.candidate.model, _config(pretrained)
    if config.problem_type == "regression" or config.num_labels == 1:
        raise CandidateUnavailable(f"{model} predicts one number (regression), not labels; it cannot be scored on them")
    _refuse_untrained_head(model, pretrained.folder, config, kind.head)
    found = [str(config.id2label[number]) for number in range(config.num_labels)]
    outputs = None
    if issubclass(kind, TokenClassification):
        names, outputs = match_tags(found, rows.labels, labels, model=model)
    else:
        problem = config.problem_type
        if problem is not None and (problem == "multi_label_classification") != rows.multi_label:
            says, has = ("any number of labels", "one") if not rows.multi_label else ("one label", "lists of them")
            raise DataError(
                f"{model} says {says} a row (problem_type {problem}), but the data has {has}; they do not fit"
            )
        names = match_labels(found, rows.labels, labels, model=model)
    task = kind.from_data(data_with(names), rows.table)
    check_processor(task, pretrained)
    settings = {
        "name": model,
        "task": task.to_json(),
        "metric": task.default_score(),
        "max_length": min(MAX_LENGTH, pretrained.max_positions or MAX_LENGTH),
    }
    return Bundle(Path(pretrained.folder), settings, task), outputs


class TagsOfData(torch.nn.Module):
    """A token classifier that says the tags of the task in place of its own; one it lacks is never said.

    Where several of its tags are one of the task's (B- and S- of BIOES), the highest logit counts, so that what it
    holds likeliest stays so.
    """

    outputs: torch.Tensor

    def __init__(self, model: torch.nn.Module, outputs: NDArray[np.int64], tags: int) -> None:
        super().__init__()
        self.model = model
        self.tags = tags
        self.register_buffer("outputs", torch.from_numpy(outputs))

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    def forward(self, **inputs: torch.Tensor) -> Any:
        """Run the model: logits (windows, tokens, own tags) -> (windows, tokens, tags)."""
        found = self.model(**inputs)
        logits = found.logits
        never = logits.new_full((*logits.shape[:-1], self.tags), torch.finfo(logits.dtype).min)
        found.logits = never.scatter_reduce(-1, self.outputs.expand(logits.shape), logits, "amax")
        return found


def match_labels(
    found: Sequence[str], expected: Sequence[str], given: Sequence[str] | None, *, model: str
) -> tuple[str, ...]:
    """Name a model's outputs as the data does, in the order of the outputs.

    Names are compared without regard to case. The model's own names count where they cover the labels of the data,
    else the given ones. Outputs that the data never has keep their name: saying one of them is wrong.

    Args:
        found: The model's own names.
        expected: Labels of the data.
        given: What the user says the outputs are, in order.
        model: For the message.

    Raises:
        DataError: Neither covers the labels of the data.

    >>> match_labels(["NEGATIVE", "POSITIVE"], ["positive", "negative"], None, model="m")
    ('negative', 'positive')
    >>> match_labels(["LABEL_0", "LABEL_1"], ["positive", "negative"], ["Negative", "Positive"], model="m")
    ('negative', 'positive')
    """
    for names in (found, given or ()):
        matched = as_in_data(names, expected)
        if set(expected) <= set(matched) and len(set(matched)) == len(found) == len(matched):
            return matched
    raise _no_match(found, expected, given, model)


def match_tags(
    found: Sequence[str], expected: Sequence[str], given: Sequence[str] | None, *, model: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Find the tags of the data among the outputs of a model that may write them in another scheme and order.

    As ``match_labels``, by the types of the tags. A model in IO says where a thing goes on, never where one begins, so
    that neighbours of one type are one span, and the strict metrics, which want a beginning, find nothing.

    Args:
        found: The model's own tags, in the order of its outputs: IO, BIO, BIOES or BILOU.
        expected: Tags of the data, BIO.
        given: What the user says the outputs are, in order.
        model: For the message.

    Returns:
        The types, and for each output its number among O, B- and I- of each type.

    Raises:
        DataError: Neither covers the types of the data.

    >>> types, outputs = match_tags(["I-per", "O", "B-per", "I-loc"], ["O", "B-PER", "I-PER"], None, model="m")
    >>> types, outputs.tolist()
    (('PER', 'loc'), [2, 0, 1, 4])
    """
    wanted = sorted({tag[2:] for tag in expected if tag != OUTSIDE})
    for names in (found, given or ()):
        scheme = scheme_of(set(names))
        parsed = [None if name == OUTSIDE else prefix_and_type(name, scheme) for name in names]
        complete = all(one or name == OUTSIDE for one, name in zip(parsed, names, strict=True))
        own = list(dict.fromkeys(one[1] for one in parsed if one))
        types = as_in_data(own, wanted)
        distinct = len(set(names)) == len(found) == len(names) and len(set(types)) == len(types)
        if complete and distinct and set(wanted) <= set(types):
            number = {kind: place for place, kind in enumerate(own)}
            outputs = [0 if one is None else 2 * number[one[1]] + (1 if one[0] in "BSU" else 2) for one in parsed]
            return types, np.array(outputs, dtype=np.int64)
    raise _no_match(found, expected, given, model)


def data_with(labels: Sequence[str]) -> Data:
    """Settings of data that has these labels, or types of spans, in this order.

    Raises:
        DataError: They cannot be labels.
    """
    try:
        return Data(train="evaluated", labels=list(labels))
    except ValidationError as error:
        raise DataError(f"labels {list(labels)} cannot be used: {error.errors()[0]['msg']}") from None


def as_in_data(names: Sequence[str], expected: Sequence[str]) -> tuple[str, ...]:
    """Write names as the data does where they differ in case alone, and in nothing else from exactly one label."""
    folded = Counter(label.casefold() for label in expected)
    by_fold = {label.casefold(): label for label in expected if folded[label.casefold()] == 1}
    return tuple(name if name in expected else by_fold.get(name.casefold(), name) for name in names)


def _no_match(found: Sequence[str], expected: Sequence[str], given: Sequence[str] | None, model: str) -> DataError:
    told, wanted = ", ".join(map(str, found)), ", ".join(expected)
    if given and len(given) != len(found):
        told_given = f"; the {len(given)} given labels ({', '.join(given)}) are not as many as its {len(found)} outputs"
    elif given:
        told_given = f"; the given labels ({', '.join(given)}) do not cover those of the data either, or repeat one"
    else:
        told_given = ""
    unnamed = all(UNNAMED.fullmatch(name) for name in found)
    why = "does not name its outputs" if unnamed else "has other labels than the data"
    return DataError(
        f"{model} {why}: found {told}; the data has {wanted}{told_given}. Name the outputs in their order, such as "
        f"`--labels {','.join(expected)}`, or give data with the model's labels"
    )


def _config(pretrained: Pretrained) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(pretrained.folder, trust_remote_code=False, local_files_only=True)


def _refuse_untrained_head(model: str, folder: str, config: Any, head: str) -> None:
    """Transformers fills weights that a file lacks with random numbers; of a head these would be scored as a model."""
    import transformers
    from safetensors import safe_open

    with torch.device("meta"):
        empty = getattr(transformers, head).from_config(config, trust_remote_code=False)
    body = f"{empty.base_model_prefix}."
    there: set[str] = set()
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            there.update(tensors.keys())
    if lacking := [name for name, _ in empty.named_parameters() if not name.startswith(body) and name not in there]:
        raise CandidateUnavailable(
            f"{model} lacks the weights of its head ({', '.join(lacking)}), which would be random; save all of "
            "it with `save_pretrained`"
        )
