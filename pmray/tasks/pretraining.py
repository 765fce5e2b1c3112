"""Continued pre-training: language modelling on texts without labels, packed into rows of full length.

Encoders learn masked tokens (Devlin et al. 2019), decoders the next token. What is held out tells the perplexity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from pmray.errors import SpecError
from pmray.spec import Data, Range, Recipe
from pmray.tasks.base import PLAIN_LOSS, LossOptions, Outcomes
from pmray.tasks.pretrained import open_head, open_tokenizer

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from pmray.data.check import Finding

SCORE = "token_log_likelihood"
"""Mean natural logarithm of the probability of a held-out token; perplexity is ``exp`` of its negative."""

NOT_FOR_TEXT = ("label_smoothing", "class_weights", "sampling", "head_only", "lora_rank", "lora_alpha")
"""Values of a recipe that say nothing here: there are no labels and no new head."""


class _Answer(NamedTuple):
    """In place of what a language model returns."""

    logits: torch.Tensor
    """Of each row the sum of its tokens' negative log-likelihoods, and their number; shape (rows, 2), float32."""


@dataclass(frozen=True)
class Pretraining:
    """Rows are texts; a model that has a mask token predicts masked tokens, another one the next token."""

    mask: float = 0.15
    """Share of a row's tokens that are to be predicted: of these 80 % are masked, 10 % replaced by any, 10 % left."""

    name: ClassVar[str] = "pretraining"
    columns: ClassVar[Mapping[str, bool]] = {"text": True, "group": False}
    reader: ClassVar[str] = "tokenizer"
    encode_rows: ClassVar[int] = 10_000
    labels: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def scores(cls) -> frozenset[str]:
        """The one score."""
        return frozenset({SCORE})

    @classmethod
    def from_data(cls, data: Data, train: pa.Table) -> Self:
        """Nothing is found in the rows."""
        return cls()

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        return cls(settings["mask"])

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return {"task": self.name, "mask": self.mask}

    def check(self, table: pa.Table, split: str) -> list[Finding]:
        """Any text will do."""
        return []

    def check_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Raise ``SpecError`` for values that a user gave and that would say nothing."""
        if given := [name for name in NOT_FOR_TEXT if name in recipe]:
            raise SpecError(
                f"pre-training has no labels and no new head, so take {', '.join(given)} out of the recipe."
            )

    def default_recipe(self, family: str, parameters: int) -> Recipe:
        """Return the recipe for task-adaptive pre-training of Gururangan et al. 2020 ("Don't stop pretraining").

        Their table 13 has lr 1e-4, a warm-up of 6 % and weight decay 0.01 for models of BERT's size; with their batch
        of 256 short texts a few packed rows hold as many tokens.
        """
        lr = 1e-3 if parameters < 5e6 else 1e-4
        return Recipe(lr=lr, epochs=5, batch_size=16, max_length=256, warmup=0.06, augment=True)

    def default_space(self, family: str, parameters: int) -> dict[str, Range]:
        """Nothing is searched."""
        return {}

    def processor(self, folder: str) -> Any:
        """Open the tokenizer in `folder`.

        Raises:
            ValueError: It has no mask token, while the model is an encoder; or nothing to pad with.
        """
        from transformers import AutoConfig

        tokenizer = open_tokenizer(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if _is_masked(config) != (tokenizer.mask_token_id is not None):
            needs = "needs a mask token, and it has none" if _is_masked(config) else "has no use for its mask token"
            raise ValueError(f"a {config.model_type} model {needs}")
        return tokenizer

    def build(self, folder: str, config: Any, pad: int, **options: Any) -> torch.nn.Module:
        """Open the model with its language-modelling head; one that has none in its files gets a new one."""
        config.use_cache = False
        head = "AutoModelForMaskedLM" if _is_masked(config) else "AutoModelForCausalLM"
        model = open_head(head, folder, config=config, **options)
        _tell_likelihoods(model)
        return model

    def encode(self, table: pa.Table, processor: Any, max_length: int) -> pa.Table:
        """Pack texts, a separator after each, into rows of `max_length` tokens ("full sentences", Liu et al. 2019).

        Returns:
            Columns ``input_ids``, ``length``, ``free`` (bits: tokens that may be masked), ``mask_id`` (null for
            decoders) and ``vocabulary`` (its size). There are as many rows as the tokens fill.
        """
        import pyarrow as pa

        texts = table["text"].to_pylist()
        made = processor(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        masked = processor.mask_token_id is not None
        end = processor.sep_token_id if masked else processor.eos_token_id
        first = [processor.cls_token_id] if masked and processor.cls_token_id is not None else []
        stream = np.array([token for text in made for token in (*text, *([] if end is None else [end]))], np.int32)
        space = max_length - len(first)
        rows = [np.concatenate([first, stream[start : start + space]]) for start in range(0, len(stream), space)]
        lengths = np.array([len(row) for row in rows], np.int32)
        flat = np.concatenate(rows or [stream]).astype(np.int32)
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.table(
            {
                "input_ids": pa.ListArray.from_arrays(ends, flat),
                "length": lengths,
                "free": pa.ListArray.from_arrays(ends, ~np.isin(flat, processor.all_special_ids)),
                "mask_id": pa.array([processor.mask_token_id] * len(rows), pa.int32()),
                "vocabulary": pa.array([len(processor)] * len(rows), pa.int32()),
            }
        )

    def targets(self, table: pa.Table) -> NDArray[Any]:
        """Texts carry their own: a zero for each row."""
        return np.zeros(len(table), np.int64)

    def collate(
        self, encoded: pa.Table, pad: int, random: np.random.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Pad, and choose what is to be predicted: with `random` anew each time, without it always the same tokens.

        Returns:
            ``input_ids`` and ``attention_mask`` for the model; ``predicted``, bits of the positions that count, and
            ``targets``, the token to be predicted at each; all of shape (rows, tokens).
        """
        import torch

        lengths = encoded["length"].to_numpy()
        there = np.arange(lengths.max())[None, :] < lengths[:, None]
        ids = np.full(there.shape, pad, np.int64)
        ids[there] = encoded["input_ids"].combine_chunks().flatten().to_numpy()
        inputs, targets, predicted = ids, ids, np.zeros_like(there)
        if encoded["mask_id"].null_count:
            predicted[:, :-1] = there[:, 1:]
            targets = np.roll(ids, -1, axis=1)
        else:
            free = np.zeros_like(there)
            free[there] = encoded["free"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            inputs = ids.copy()
            settings = zip(encoded["mask_id"].to_pylist(), encoded["vocabulary"].to_pylist(), strict=True)
            for row, (mask, vocabulary) in enumerate(settings):
                # By its content, so that a held-out row has the same tokens masked in every batch and on every worker.
                own = random or np.random.default_rng(crc32(ids[row, : lengths[row]].tobytes()))
                where = np.flatnonzero(free[row])
                chosen = own.permutation(where)[: max(1, round(self.mask * len(where)))]
                lot = own.random(len(chosen))
                inputs[row, chosen[lot < 0.8]] = mask
                other = chosen[lot >= 0.9]
                inputs[row, other] = own.integers(vocabulary, size=len(other))
                predicted[row, chosen] = True
        return {
            "input_ids": torch.from_numpy(inputs),
            "attention_mask": torch.from_numpy(there.astype(np.int64)),
            "predicted": torch.from_numpy(predicted),
            "targets": torch.from_numpy(targets),
        }

    def loss(
        self, logits: torch.Tensor, targets: NDArray[Any], encoded: pa.Table, options: LossOptions = PLAIN_LOSS
    ) -> torch.Tensor:
        """Mean negative log-likelihood of each row's tokens, shape (rows,)."""
        return logits[:, 0] / logits[:, 1].clamp(min=1)

    def predict(self, logits: torch.Tensor, encoded: pa.Table) -> NDArray[np.float32]:
        """Of each row the sum of its tokens' negative log-likelihoods, and their number; shape (rows, 2)."""
        told: NDArray[np.float32] = logits.float().cpu().numpy()
        return told

    def tuned(self, scores: NDArray[Any], targets: NDArray[Any], metric: str) -> Self:
        """There is nothing to tune."""
        return self

    def outcome(self, scores: NDArray[Any], targets: NDArray[Any]) -> Outcomes:
        """What ``predict`` gave."""
        return scores

    def score(self, metric: str, outcomes: Outcomes, weights: NDArray[Any]) -> NDArray[np.float64]:
        """Mean log-likelihood of a token, shape (draws,)."""
        sums = weights @ np.asarray(outcomes, np.float64)
        values: NDArray[np.float64] = -sums[:, 0] / np.maximum(1, sums[:, 1])
        return values

    def metrics(self) -> Sequence[str]:
        """The one score."""
        return (SCORE,)

    def default_score(self) -> str:
        """The one score."""
        return SCORE

    def check_score(self, score: str) -> None:
        """There is but one, which the spec has checked."""


def _is_masked(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if not config.is_encoder_decoder:
        if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
            return True
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            return False
    raise ValueError(f"pre-training knows encoders and decoders of text, and {config.model_type} is neither")


def _tell_likelihoods(model: torch.nn.Module) -> None:
    """Make a language model answer with likelihoods in place of logits, for the positions alone that count.

    A vocabulary is a hundred times as wide as a hidden state: logits of all positions would take most of the memory,
    and with 15 % of them masked most of the head's time.
    """
    import torch
    from torch.nn import functional as F

    positions: list[torch.Tensor] = []

    def keep_positions(_: torch.nn.Module, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[positions[0]][None]
        return output

    getattr(model, str(model.base_model_prefix)).register_forward_hook(keep_positions)
    forward = model.forward

    def likelihoods(predicted: torch.Tensor, targets: torch.Tensor, **batch: torch.Tensor) -> _Answer:
        positions[:] = [predicted]
        logits = forward(**batch).logits[0].float()
        told = F.cross_entropy(logits, targets[predicted], reduction="none")
        sums = torch.zeros(len(predicted), device=told.device).index_add(0, predicted.nonzero()[:, 0], told)
        return _Answer(torch.stack([sums, predicted.sum(1).float()], dim=1))

    model.forward = likelihoods
