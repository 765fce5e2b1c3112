"""Text classification: one label, two labels, many labels, single texts and pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from pmray.spec import Choice, Data, Log, Range, Recipe
from pmray.tasks.labels import RowLabels, labels_of, prepare_head
from pmray.tasks.pretrained import layer_mean, open_head, open_tokenizer

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from pmray.data.check import Finding


@dataclass(frozen=True)
class TextClassification(RowLabels):
    """Rows are a text (or a pair of texts) and a label (or a list of labels); the score is macro F1."""

    pair: bool = False
    """A row has a second text, ``text_pair``."""

    name: ClassVar[str] = "text-classification"
    columns: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": False, "label": True, "group": False}
    head: ClassVar[str] = "AutoModelForSequenceClassification"
    reader: ClassVar[str] = "tokenizer"
    encode_rows: ClassVar[int] = 10_000
    baselines: ClassVar[Mapping[str, str]] = {"majority class": "majority", "TF-IDF + logistic regression": "tfidf"}

    @classmethod
    def from_data(cls, data: Data, train: pa.Table) -> Self:
        """Find labels, and whether rows have several, in the training rows.

        Raises:
            DataError: ``positive_label`` is not one of two labels.
        """
        return cls(pair="text_pair" in train.column_names, **labels_of(data, train))

    def check(self, table: pa.Table, split: str) -> list[Finding]:
        """Warn of texts so short that they say nothing; what all tasks share is checked by ``pmray.data.check``."""
        import pyarrow.compute as pc

        from pmray.data.check import Finding

        short = pc.less(pc.utf8_length(pc.utf8_trim_whitespace(table["text"])), 2)
        count = pc.sum(short).as_py() or 0
        if not count:
            return []
        examples = tuple(table.filter(short)["row_id"].slice(0, 5).to_pylist())
        message = f"{count} rows of {split} have one character; kept"
        return [Finding("info", "very short text", message, count, examples)]

    def default_recipe(self, family: str, parameters: int) -> Recipe:
        """Return the published recipe for a model of this size.

        Under 50 M parameters: Turc et al. 2019 ("Well-read students learn better", section 5: lr 3e-5 to 3e-4), whose
        1e-4 also suits MiniLM; base models: Devlin et al. 2019, appendix A.3 (lr 2e-5 to 5e-5) and Liu et al. 2019;
        large ones: Mosbach et al. 2021 (2e-5 and longer warm-up). Decoders under 5 M have no published value.
        """
        if parameters < 5e6:
            return Recipe(lr=1e-3, weight_decay=0.0)
        if parameters < 5e7:
            return Recipe(lr=1e-4)
        if parameters < 2e8:
            return Recipe(lr=3e-5)
        return Recipe(lr=2e-5)

    def default_space(self, family: str, parameters: int) -> dict[str, Range]:
        """Learning rate from half to four times the default, and the two batch sizes of the BERT paper.

        With less than half of the default, recorded fits were behind at every rung and lost 6 to 50 points in the end
        (tests/bench/RESULTS.md).
        """
        lr = self.default_recipe(family, parameters).lr
        return {"lr": Log(log=(lr / 2, lr * 4)), "batch_size": Choice(choice=[16, 32])}

    def processor(self, folder: str) -> Any:
        """Open the tokenizer in `folder`; one without a padding token pads with its end or unknown token."""
        return open_tokenizer(folder)

    def build(self, folder: str, config: Any, pad: int, **options: Any) -> torch.nn.Module:
        """Open the pre-trained body and put a new classification head on it, whatever the size of an old one was."""
        prepare_head(config, self.labels, multi_label=self.multi_label)
        if config.pad_token_id is None:
            config.pad_token_id = pad
        return open_head(self.head, folder, config=config, ignore_mismatched_sizes=True, **options)

    def encode(self, table: pa.Table, processor: Any, max_length: int) -> pa.Table:
        """Turn rows into token ids; columns ``input_ids``, ``length`` and, for pairs, ``token_type_ids``."""
        import pyarrow as pa

        texts = table["text"].to_pylist()
        pairs = table["text_pair"].to_pylist() if self.pair else None
        if not texts:
            encoded: Mapping[str, Any] = {"input_ids": []}
        else:
            encoded = processor(texts, pairs, truncation=True, max_length=max_length, return_attention_mask=False)
        ids = pa.array(encoded["input_ids"], type=pa.list_(pa.int32()))
        columns = {"input_ids": ids, "length": pa.array([len(row) for row in encoded["input_ids"]], pa.int32())}
        # A single text is all segment 0, which is what a model assumes when it gets none.
        if self.pair and "token_type_ids" in encoded:
            columns["token_type_ids"] = pa.array(encoded["token_type_ids"], type=pa.list_(pa.int8()))
        return pa.table(columns)

    def collate(
        self, encoded: pa.Table, pad: int, random: np.random.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Pad to the longest row of this batch; the mask comes from the lengths, as some ids pad and mean something."""
        import torch

        lengths = encoded["length"].to_numpy()
        mask = np.arange(lengths.max())[None, :] < lengths[:, None]
        batch = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
        for name, filler in (("input_ids", pad), ("token_type_ids", 0)):
            if name in encoded.column_names:
                padded = np.full(mask.shape, filler, dtype=np.int64)
                padded[mask] = encoded[name].combine_chunks().flatten().to_numpy()
                batch[name] = torch.from_numpy(padded)
        return batch

    def features(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], encoded: pa.Table) -> torch.Tensor:
        """Mean over layers of the body's hidden states: of all tokens, the first and the last; (rows, 3, width)."""
        import torch

        mask, states = batch["attention_mask"], layer_mean(model, batch)
        mean = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        last = states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
        return torch.stack([mean, states[:, 0], last], dim=1)

    @property
    def inputs(self) -> tuple[str, ...]:
        """``text``, and of pairs ``text_pair``."""
        return ("text", "text_pair") if self.pair else ("text",)

    def sent(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row as it is."""
        return row

    def row_schema(self) -> dict[str, Any]:
        """JSON Schema of a row as it is sent."""
        example = dict(zip(self.inputs, ("great value, and it arrived early .", "worth its price ."), strict=False))
        return {
            "type": "object",
            "properties": {role: {"type": "string", "minLength": 1} for role in self.inputs},
            "required": list(self.inputs),
            "examples": [example],
        }

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Say why a row cannot be answered, or None."""
        for role in self.inputs:
            value = row.get(role)
            if value is None:
                return f"`{role}` is missing; a row needs {' and '.join(f'`{one}`' for one in self.inputs)}"
            if not isinstance(value, str):
                return f"`{role}` must be text, but is {type(value).__name__}"
            if not value.strip():
                return f"`{role}` is empty"
        return None

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Make rows that were sent, and have no problem, into a table that ``encode`` takes."""
        import pyarrow as pa

        return pa.table({role: pa.array([row[role] for row in rows], pa.string()) for role in self.inputs})
