"""Image classification: one label or many, from encoded bytes, paths, or folders of class folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pmray.errors import DataError
from pmray.spec import Choice, Data, Log, Range, Recipe
from pmray.tasks.labels import RowLabels, labels_of, prepare_head
from pmray.tasks.pretrained import open_head

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from pmray.data.check import Finding

PATCH = 256
"""Pixels that count as one token of a batch's budget: a patch of 16 x 16 (Dosovitskiy et al. 2021)."""

SHIFT = 0.06
"""Largest move of a training image, as a share of its width and height."""

EXAMPLE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mPcoqHBgA0wMeAAg1MCANCsARTeYvrcAAAAAElFTkSuQmCC"
"""A PNG of 8 x 8 pixels, as base64 text."""

LEARNING_RATES = {"vit": 5e-5, "deit": 5e-5, "dinov2": 2e-5, "swin": 5e-5, "convnext": 1e-4}
"""Peak learning rates of families; all others are convolutional networks, at 1e-3."""


@dataclass(frozen=True)
class ImageClassification(RowLabels):
    """Rows are an image and a label (or a list of labels); the score is macro F1."""

    name: ClassVar[str] = "image-classification"
    columns: ClassVar[Mapping[str, bool]] = {"image": True, "label": True, "group": False}
    head: ClassVar[str] = "AutoModelForImageClassification"
    reader: ClassVar[str] = "image processor"
    encode_rows: ClassVar[int] = 256
    baselines: ClassVar[Mapping[str, str]] = {"majority class": "majority", "pixels + logistic regression": "pixels"}

    @classmethod
    def from_data(cls, data: Data, train: pa.Table) -> Self:
        """Find labels, and whether rows have several, in the training rows.

        Raises:
            DataError: ``positive_label`` is not one of two labels.
        """
        return cls(**labels_of(data, train))

    def check(self, table: pa.Table, split: str) -> list[Finding]:
        """Nothing more: images that cannot be read were found when the rows were loaded."""
        return []

    def default_recipe(self, family: str, parameters: int) -> Recipe:
        """Return the usual recipe for a family.

        Vision transformers: AdamW at 5e-5 (``transformers``' own example of image classification; 2e-5 for DINOv2, as
        in Oquab et al. 2023, appendix B); convolutional networks bear ten times as much (Wightman et al. 2021, "ResNet
        strikes back": 1e-3 and more). Images are moved and mirrored a little.
        """
        lr = LEARNING_RATES.get(family, 1e-3)
        return Recipe(lr=lr, epochs=5, weight_decay=0.01, augment=True)

    def default_space(self, family: str, parameters: int) -> dict[str, Range]:
        """Learning rate a factor of four around the default, and whether images are changed."""
        lr = self.default_recipe(family, parameters).lr
        return {"lr": Log(log=(lr / 4, lr * 4)), "augment": Choice(choice=[True, False])}

    def processor(self, folder: str) -> Any:
        """Open the image processor in `folder`; without torchvision, ``transformers`` takes its Pillow version."""
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)

    def build(self, folder: str, config: Any, pad: int, **options: Any) -> torch.nn.Module:
        """Open the pre-trained body and put a new head on it, whatever the size of the old one was."""
        prepare_head(config, self.labels, multi_label=self.multi_label)
        return open_head(self.head, folder, config=config, ignore_mismatched_sizes=True, **options)

    def encode(self, table: pa.Table, processor: Any, max_length: int) -> pa.Table:
        """Decode and resize images as the processor says; columns ``pixels`` (uint8, channels first) and ``length``.

        What comes after (scaling and normalising) is done with whole batches by ``collate``; the table's metadata says
        how. So images are decoded once for all trials, and a pixel takes one byte.
        """
        import pyarrow as pa

        from pmray.data.images import decode, each

        images = each(table["image"].to_pylist(), decode) if len(table) else []
        if images:
            made = processor(images, **_resized_only(processor), return_tensors="np")["pixel_values"]
            if made.dtype != np.uint8 or made.ndim != 4:
                raise DataError(f"{type(processor).__name__} does not resize images to one size of 8-bit pixels")
            pixels = np.ascontiguousarray(made)
        else:
            pixels = np.zeros((0, 3, 1, 1), np.uint8)
        shape = pixels.shape[1:]
        flat = pa.array(pixels.reshape(-1), pa.uint8())
        length = max(1, shape[1] * shape[2] // PATCH)
        encoded = pa.table(
            {
                "pixels": pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape))),
                "length": pa.array(np.full(len(pixels), length, np.int32)),
            }
        )
        scale, offset = _normalisation(processor)
        settings = {"shape": list(shape), "scale": scale, "offset": offset}
        return encoded.replace_schema_metadata({"pixels": json.dumps(settings)})

    def collate(
        self, encoded: pa.Table, pad: int, random: np.random.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Scale and normalise; with `random`, mirror and move each image by a little first."""
        import torch

        settings = json.loads(encoded.schema.metadata[b"pixels"])
        flat = encoded["pixels"].combine_chunks().flatten().to_numpy()
        pixels = flat.reshape(len(encoded), *settings["shape"])
        if random is not None:
            pixels = _changed(pixels, random)
        scale, offset = (torch.tensor(settings[name]).reshape(1, -1, 1, 1) for name in ("scale", "offset"))
        return {"pixel_values": torch.from_numpy(pixels.astype(np.float32)) * scale + offset}

    def features(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], encoded: pa.Table) -> torch.Tensor:
        """Mean over positions of the last map of a convolutional network, or over the layers of a transformer."""
        import torch

        found = model.base_model(**batch, output_hidden_states=True)  # type: ignore[operator]
        last: torch.Tensor = found.last_hidden_state
        if last.ndim == 4:
            return last.float().mean((2, 3))
        return torch.stack([state.float().mean(1) for state in found.hidden_states[1:]]).mean(0)

    @property
    def inputs(self) -> tuple[str, ...]:
        """``image``, encoded, as base64 text."""
        return ("image",)

    def sent(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with its image as base64 text."""
        from pmray.data.images import to_base64

        return {"image": to_base64(row["image"])}

    def row_schema(self) -> dict[str, Any]:
        """JSON Schema of a row as it is sent."""
        return {
            "type": "object",
            "properties": {"image": {"type": "string", "contentEncoding": "base64", "minLength": 1}},
            "required": ["image"],
            "examples": [{"image": EXAMPLE}],
        }

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Say why a row cannot be answered, or None. Text is base64, never a path: a request opens no file."""
        from pmray.data.images import from_base64, problem_of

        image = row.get("image")
        if image is None:
            return "`image` is missing; a row needs an encoded image (PNG, JPEG …) as base64 text"
        if not isinstance(image, str):
            return f"`image` must be base64 text, but is {type(image).__name__}"
        try:
            found = problem_of(from_base64(image))
        except DataError as error:
            found = str(error)
        return f"`image`: {found}" if found else None

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Make rows that were sent, and have no problem, into a table that ``encode`` takes."""
        import pyarrow as pa

        from pmray.data.images import from_base64

        return pa.table({"image": pa.array([from_base64(row["image"]) for row in rows], pa.binary())})


def _resized_only(processor: Any) -> dict[str, bool]:
    """What keeps a processor from scaling and normalising; EfficientNet's has a switch of its own besides."""
    switches = ("do_rescale", "do_normalize", "include_top")
    return {name: False for name in switches if hasattr(processor, name)}


def _normalisation(processor: Any) -> tuple[list[float], list[float]]:
    """What a processor does to the pixels that it has resized, as a factor and an offset of each channel.

    Read off a black and a white image: processors differ in what they do (some also shift by one, some normalise
    twice), and all of it is one line.
    """
    from PIL import Image

    black, white = (
        np.asarray(processor([Image.new("RGB", (64, 64), color)], return_tensors="np")["pixel_values"], np.float64)[0]
        for color in ("black", "white")
    )
    low, high = black.mean((1, 2)), white.mean((1, 2))
    return ((high - low) / 255).tolist(), low.tolist()


def _changed(pixels: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Mirror half of the images, and move each by up to `SHIFT`; what comes in at the edges is the edge repeated."""
    _, _, height, width = pixels.shape
    changed = np.empty_like(pixels)
    for place, image in enumerate(pixels):
        down, right = (int(random.integers(-round(SHIFT * size), round(SHIFT * size) + 1)) for size in (height, width))
        rows = (np.arange(height) + down).clip(0, height - 1)
        columns = (np.arange(width) + right).clip(0, width - 1)
        if random.random() < 0.5:
            columns = columns[::-1]
        changed[place] = image[:, rows[:, None], columns[None, :]]
    return changed
