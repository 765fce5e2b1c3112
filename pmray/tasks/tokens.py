"""Token classification, such as named entities: a tag for every word, scored by whole spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pmray.errors import SpecError
from pmray.scoring.metrics import Metric
from pmray.scoring.ragged import ragged
from pmray.scoring.spans import SPAN, all_right, span_metric, span_outcomes, span_score, spans_of
from pmray.spec import Choice, Data, Log, Range, Recipe
from pmray.tasks.base import PLAIN_LOSS, LossOptions, Outcomes
from pmray.tasks.labels import prepare_head
from pmray.tasks.pretrained import layer_mean, open_head, open_tokenizer

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from pmray.data.check import Finding


@dataclass(frozen=True)
class TokenClassification:
    """Rows are words and as many BIO tags (see ``pmray.data.annotations``); the score is micro F1 of spans."""

    labels: tuple[str, ...]
    """``O``, then B- and I- of each type: tag 2 k + 1 begins a span of type k, 2 k + 2 goes on."""

    name: ClassVar[str] = "token-classification"
    columns: ClassVar[Mapping[str, bool]] = {"words": True, "label": True, "group": False}
    head: ClassVar[str] = "AutoModelForTokenClassification"
    reader: ClassVar[str] = "tokenizer"
    encode_rows: ClassVar[int] = 5_000
    baselines: ClassVar[Mapping[str, str]] = {"tag shares": "one tag", "tags of the word in train": "word lookup"}

    @property
    def types(self) -> tuple[str, ...]:
        """Types of spans."""
        return tuple(label[2:] for label in self.labels[1::2])

    @classmethod
    def scores(cls) -> frozenset[str]:
        """Names of all metrics that a spec may ask for."""
        return frozenset(SPAN)

    @classmethod
    def from_data(cls, data: Data, train: pa.Table) -> Self:
        """Find the types of spans in the training rows, or take those that the spec lists."""
        tags = set(train["label"].combine_chunks().flatten().to_pylist())
        types = data.labels or sorted({tag[2:] for tag in tags if tag and tag[1:2] == "-"})
        return cls(("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")))

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        return cls(tuple(settings["labels"]))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return {"task": self.name, "labels": list(self.labels)}

    def default_score(self) -> str:
        """Micro F1 of spans, as in the CoNLL shared tasks."""
        return "span_f1"

    def metrics(self) -> Sequence[str]:
        """Names of the metrics that are reported."""
        return SPAN

    def check_score(self, score: str) -> None:
        """Raise ``SpecError`` for a metric that is not one of spans."""
        if score not in SPAN:
            raise SpecError(f"score {score!r} does not fit spans; known: {', '.join(SPAN)}.")

    def check(self, table: pa.Table, split: str) -> list[Finding]:
        """Say how many rows have nothing marked; tags themselves were checked when the rows were loaded."""
        from pmray.data.check import NAMED, Finding, named

        if "label" not in table.column_names or not len(table):
            return []
        empty = [place for place, tags in enumerate(table["label"].to_pylist()) if set(tags) <= {"O"}]
        if not empty:
            return []
        ids = tuple(table["row_id"].take(empty[:NAMED]).to_pylist())
        share = len(empty) / len(table)
        message = f"{split}: nothing is marked in {len(empty)} rows ({share:.0%}){named(ids, len(empty))}; kept"
        return [Finding("info", "nothing marked", message, len(empty), ids)]

    def default_recipe(self, family: str, parameters: int) -> Recipe:
        """Return the published recipe for a model of this size.

        Base models: Devlin et al. 2019, section 5.4 and appendix A.3 (5e-5); smaller ones bear more (Turc et al. 2019,
        up to 3e-4); large ones 2e-5 (Liu et al. 2019). Decoders under 5 M have no published value.
        """
        if parameters < 5e6:
            return Recipe(lr=2e-3, weight_decay=0.0)
        if parameters < 5e7:
            return Recipe(lr=3e-4, batch_size=16)
        return Recipe(lr=5e-5 if parameters < 2e8 else 2e-5)

    def default_space(self, family: str, parameters: int) -> dict[str, Range]:
        """Learning rate a factor of four around the default, and two batch sizes."""
        lr = self.default_recipe(family, parameters).lr
        return {"lr": Log(log=(lr / 4, lr * 4)), "batch_size": Choice(choice=[16, 32])}

    def processor(self, folder: str) -> Any:
        """Open the tokenizer in `folder`.

        Raises:
            ValueError: It cannot tell where in the text a token comes from.
        """
        tokenizer = open_tokenizer(folder)
        if not tokenizer.is_fast:
            raise ValueError("it cannot tell where in a text its tokens are; a tokenizer.json is needed")
        return tokenizer

    def build(self, folder: str, config: Any, pad: int, **options: Any) -> torch.nn.Module:
        """Open the pre-trained body and put a new head on it."""
        prepare_head(config, self.labels)
        if config.pad_token_id is None:
            config.pad_token_id = pad
        return open_head(self.head, folder, config=config, ignore_mismatched_sizes=True, **options)

    def encode(self, table: pa.Table, processor: Any, max_length: int) -> pa.Table:
        """Turn words into tokens, long rows into windows of `max_length` that overlap by a quarter.

        A word is read at its first token, in the window in which that token is furthest from the edges. Columns:
        ``input_ids`` (all windows, one after the other), ``windows`` (tokens of each), ``places`` (for each word, its
        token among all of the row; a word without a token is read at the first one) and ``length``.
        """
        import pyarrow as pa

        rows = table["words"].to_pylist()
        ids: list[NDArray[Any]] = []
        windows: list[list[int]] = []
        places: list[NDArray[np.int64]] = []
        if rows:
            encoded = processor(
                ["".join(words) for words in rows],
                truncation=True,
                max_length=max_length,
                stride=max_length // 4,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                return_attention_mask=False,
            )
            owner = np.asarray(encoded["overflow_to_sample_mapping"])
            bounds = np.searchsorted(owner, np.arange(len(rows) + 1))
            for row, words in enumerate(rows):
                mine = range(bounds[row], bounds[row + 1])
                sizes = [len(encoded["input_ids"][window]) for window in mine]
                together = np.concatenate([encoded["input_ids"][window] for window in mine]).astype(np.int64)
                if not len(together):
                    together, sizes = np.array([processor.pad_token_id or 0]), [1]
                offsets = np.concatenate([np.reshape(encoded["offset_mapping"][window], (-1, 2)) for window in mine])
                special = np.concatenate([encoded["special_tokens_mask"][window] for window in mine]).astype(bool)
                ids.append(together)
                windows.append(sizes)
                places.append(_places(words, offsets, special, sizes))

        def lists(values: Sequence[Any]) -> pa.Array:
            ends = np.cumsum([0, *map(len, values)])
            flat = (
                np.concatenate([np.asarray(value, np.int32) for value in values]) if values else np.zeros(0, np.int32)
            )
            return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat, pa.int32()))

        return pa.table(
            {
                "input_ids": lists(ids),
                "windows": lists(windows),
                "places": lists(places),
                "length": pa.array([len(row) for row in ids], pa.int32()),
            }
        )

    def collate(
        self, encoded: pa.Table, pad: int, random: np.random.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Put all windows of all rows into one batch, padded to the longest; a row has one or more."""
        import torch

        mask = _mask(encoded)
        padded = np.full(mask.shape, pad, dtype=np.int64)
        padded[mask] = encoded["input_ids"].combine_chunks().flatten().to_numpy()
        return {"input_ids": torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask.astype(np.int64))}

    def targets(self, table: pa.Table) -> NDArray[Any]:
        """Tag numbers of each word: ragged, int64."""
        number = {label: position for position, label in enumerate(self.labels)}
        return ragged([np.array([number[tag] for tag in tags], np.int64) for tags in table["label"].to_pylist()])

    def loss(
        self, logits: torch.Tensor, targets: NDArray[Any], encoded: pa.Table, options: LossOptions = PLAIN_LOSS
    ) -> torch.Tensor:
        """Mean cross-entropy of the words of each row, shape (rows,)."""
        import torch
        from torch.nn import functional as F

        wanted = torch.from_numpy(np.concatenate(list(targets))).to(logits.device)
        each = F.cross_entropy(
            self._words(logits, encoded).float(),
            wanted,
            options.weights,
            label_smoothing=options.smoothing,
            reduction="none",
        )
        counts = [len(row) for row in targets]
        parts = torch.split(each, counts)
        return torch.stack([part.sum() / max(1, len(part)) for part in parts])

    def predict(self, logits: torch.Tensor, encoded: pa.Table) -> NDArray[Any]:
        """Probabilities of each word's tags: ragged, each (words, labels), float32."""
        probabilities = self._words(logits, encoded).float().softmax(-1).cpu().numpy()
        return _by_row(probabilities, encoded)

    def features(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], encoded: pa.Table) -> NDArray[Any]:
        """Mean over layers of the hidden state at each word's first token: ragged, each (words, width)."""
        return _by_row(self._words(layer_mean(model, batch), encoded).cpu().numpy(), encoded)

    def said(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Tag numbers of each word: ragged."""
        return ragged([row.argmax(1) for row in scores])

    def tuned(self, scores: NDArray[Any], targets: NDArray[Any], metric: str) -> Self:
        """Return the task itself: the likeliest tag is said, without thresholds."""
        return self

    def outcome(self, scores: NDArray[Any], targets: NDArray[Any]) -> Outcomes:
        """Counts of spans of each row; see ``span_outcomes``."""
        return self.paired_outcome(self.said(scores), targets)

    def paired_outcome(self, said: NDArray[Any], targets: NDArray[Any]) -> Outcomes:
        """As ``outcome``, from tags instead of scores."""
        return span_outcomes(list(targets), list(said), len(self.types))

    def score(self, metric: str, outcomes: Outcomes, weights: NDArray[Any]) -> NDArray[np.float64]:
        """One value of the metric for each line of weights, shape (draws, rows) -> (draws,)."""
        values: NDArray[np.float64] = self.metric(metric)(outcomes, weights)
        return values

    def metric(self, name: str) -> Metric:
        """Return the metric as a function of (outcomes, weights)."""
        return span_metric(name)

    def class_metrics(self) -> dict[str, dict[str, Metric]]:
        """Type -> precision, recall and F1 of the spans of that type."""
        return {
            kind: {of: partial(span_score, of=of, kind=number) for of in ("precision", "recall", "f1")}
            for number, kind in enumerate(self.types)
        }

    def right(self, outcomes: Outcomes) -> NDArray[np.bool_]:
        """Whether all spans of a row are right."""
        return all_right(outcomes)

    def halves(self, outcomes: Outcomes) -> None:
        """None: a row has many tags."""

    def shown(self, values: NDArray[Any]) -> list[str]:
        """Tags with spaces between them."""
        return [" ".join(self.labels[int(tag)] for tag in row) for row in values]

    @property
    def inputs(self) -> tuple[str, ...]:
        """``words``: a text, or a list of words."""
        return ("words",)

    def sent(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Words, and which of them a space follows."""
        words = row["words"]
        return {"words": [word.rstrip() for word in words], "space_after": [word != word.rstrip() for word in words]}

    def row_schema(self) -> dict[str, Any]:
        """JSON Schema of a row as it is sent."""
        words = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}}]}
        return {
            "type": "object",
            "properties": {"words": words, "space_after": {"type": "array", "items": {"type": "boolean"}}},
            "required": ["words"],
            "examples": [{"words": ["Ada", "Lovelace", "was", "born", "in", "London", "."]}],
        }

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Say why a row cannot be answered, or None."""
        words, spaces = row.get("words"), row.get("space_after")
        if words is None:
            return "`words` is missing; a row needs a text, or a list of words"
        if isinstance(words, str):
            return None if words.strip() else "`words` is empty"
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            return f"`words` must be a text or a list of texts, but is {type(words).__name__}"
        if not any(word.strip() for word in words):
            return "`words` is empty"
        if spaces is not None and not (isinstance(spaces, list) and len(spaces) == len(words)):
            return "`space_after` must say true or false for each word"
        return None

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Make rows that were sent, and have no problem, into a table that ``encode`` takes."""
        import pyarrow as pa

        return pa.table({"words": pa.array([_words_of(row) for row in rows], pa.list_(pa.string()))})

    def answer(self, scores: NDArray[Any], row: Mapping[str, Any]) -> dict[str, Any]:
        """Tags of all words, and what they mark: type, text, first and last character, and how sure the model is."""
        words = _words_of(row)
        tags = scores.argmax(1)
        ends = np.cumsum([len(word) for word in words])
        text = "".join(words)
        entities = []
        for kind, first, after in sorted(spans_of(tags), key=lambda span: span[1]):
            start, end = int(ends[first] - len(words[first])), int(ends[after - 1])
            marked = text[start:end]
            sure = float(scores[np.arange(first, after), tags[first:after]].mean())
            entities.append(
                {
                    "type": self.types[kind],
                    "text": marked.strip(),
                    "start": start + len(marked) - len(marked.lstrip()),
                    "end": end - len(marked) + len(marked.rstrip()),
                    "words": [first, after],
                    "score": round(sure, 6),
                }
            )
        return {"tags": [self.labels[tag] for tag in tags], "entities": entities}

    def scores_of(self, answer: Mapping[str, Any]) -> NDArray[np.float32]:
        """1 for each tag that was said: an answer does not tell all probabilities."""
        numbers = [self.labels.index(tag) for tag in answer["tags"]]
        return np.eye(len(self.labels), dtype=np.float32)[numbers]

    def _words(self, values: torch.Tensor, encoded: pa.Table) -> torch.Tensor:
        """What stands at the first token of each word: (windows, tokens, width) -> (words of all rows, width)."""
        import torch

        mask = torch.from_numpy(_mask(encoded)).to(values.device)
        lengths = encoded["length"].to_numpy().astype(np.int64)
        before = np.repeat(np.cumsum(lengths) - lengths, _word_counts(encoded))
        where = before + encoded["places"].combine_chunks().flatten().to_numpy()
        return values[mask][torch.from_numpy(where).to(values.device)]


def _words_of(row: Mapping[str, Any]) -> list[str]:
    """Words of a row that was sent, each with the white space after it."""
    from pmray.data.annotations import cut, spaced

    words = row["words"]
    return cut(words) if isinstance(words, str) else spaced(words, row.get("space_after"))


def _mask(encoded: pa.Table) -> NDArray[np.bool_]:
    """Where tokens are in a batch of windows, (windows, longest)."""
    sizes = encoded["windows"].combine_chunks().flatten().to_numpy()
    mask: NDArray[np.bool_] = np.arange(sizes.max())[None, :] < sizes[:, None]
    return mask


def _word_counts(encoded: pa.Table) -> NDArray[np.int64]:
    import pyarrow.compute as pc

    counts: NDArray[np.int64] = pc.list_value_length(encoded["places"]).to_numpy()
    return counts


def _by_row(values: NDArray[Any], encoded: pa.Table) -> NDArray[Any]:
    return ragged(np.split(values, np.cumsum(_word_counts(encoded))[:-1]))


def _places(
    words: Sequence[str], offsets: NDArray[np.int64], special: NDArray[np.bool_], sizes: Sequence[int]
) -> NDArray[np.int64]:
    """Position of each word's first token among the tokens of all windows of a row."""
    places = np.zeros(len(words), dtype=np.int64)
    ends = np.cumsum([len(word) for word in words])
    best = np.full(len(words), -1)
    before = 0
    for size in sizes:
        within = slice(before, before + size)
        tokens = np.flatnonzero(~special[within] & (offsets[within, 1] > offsets[within, 0]))
        # By its last character: byte-level tokens may begin with the space before the word.
        owners = np.searchsorted(ends, offsets[within][tokens, 1] - 1, side="right")
        owned, first = np.unique(owners, return_index=True)
        room = np.minimum(tokens[first], size - 1 - tokens[first])
        # A word that the window cuts in half begins elsewhere.
        better = room > best[owned]
        places[owned[better]] = before + tokens[first][better]
        best[owned[better]] = room[better]
        before += size
    return places
