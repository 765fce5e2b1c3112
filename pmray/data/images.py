"""Images as people have them: encoded bytes or paths, in any mode, turned by EXIF, now and then damaged."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from os import cpu_count
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
"""Files of a folder that are images."""

THUMBNAIL = 16
"""Pixels on each side of the copies that a baseline sees."""

MOST_PIXELS = 100_000_000
"""Of one image; beyond it a few kilobytes may be gigabytes of pixels."""


def read_bytes(value: bytes | str) -> bytes:
    """The encoded image: as given, or from the file or URL that is named.

    Raises:
        OSError: The file cannot be read.
    """
    if isinstance(value, bytes):
        return value
    import fsspec

    with fsspec.open(value, "rb") as stream:
        content: bytes = stream.read()
    return content


def decode(value: bytes | str) -> Image:
    """Decode an image into RGB, upright: EXIF turns are applied, grey and palette converted, transparency is white.

    Raises:
        DataError: It is no image, damaged, or too large; says which.
    """
    try:
        return _upright_rgb(read_bytes(value))
    except DataError:
        raise
    except ImportError:
        raise DataError("images need Pillow: pip install 'pmray[vision]'") from None
    except Exception as error:  # noqa: BLE001  (Pillow's decoders raise errors of many kinds for damaged files)
        told = re.sub(r" *<_io\.BytesIO[^>]*>", "", " ".join(str(error).split()))[:120]
        reason = "an empty file" if value == b"" else told or type(error).__name__
        raise DataError(f"it cannot be decoded ({reason})") from None


def _upright_rgb(content: bytes) -> Image:
    from PIL import Image, ImageOps

    opened = Image.open(io.BytesIO(content))
    if opened.width * opened.height > MOST_PIXELS:
        raise DataError(f"{opened.width} x {opened.height} pixels, more than {MOST_PIXELS:,}; make it smaller")
    opened.load()
    upright: Image.Image = ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
        # Sixteen bits and more of grey: Pillow would cut them off at 255.
        grey = np.asarray(upright, dtype=np.float32)
        top = 65535.0 if grey.max(initial=0) > 255 else 255.0
        return Image.fromarray((grey / top * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright).convert("RGB")
    return upright.convert("RGB")


def from_base64(text: str) -> bytes:
    """The bytes of an image that came as base64 text, alone or as ``data:image/png;base64,…``.

    Raises:
        DataError: It is no base64.
    """
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("it is not base64; send the encoded image (PNG, JPEG …) as base64 text") from None


def to_base64(value: bytes | str) -> str:
    """The encoded image as text that JSON can carry."""
    return base64.b64encode(read_bytes(value)).decode()


T = TypeVar("T")


def each(values: Sequence[Any], function: Callable[[Any], T]) -> list[T]:
    """Apply a function to images in as many threads as there are CPUs: decoders work without the interpreter's lock."""
    with ThreadPoolExecutor(cpu_count() or 1) as threads:
        return list(threads.map(function, values))


def problem_of(value: bytes | str) -> str | None:
    """Why an image cannot be used, or None; decodes it."""
    try:
        decode(value)
    except DataError as error:
        return str(error)
    return None


def content_keys(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A hash of each encoded image, so that one image is known again under another name."""
    keys = each(column.to_pylist(), _content_key)
    return pa.chunked_array([pa.array(keys, pa.string())])


def thumbnails(table: pa.Table) -> NDArray[np.float32]:
    """Small copies of the images as rows of numbers from -1 to 1, shape (rows, 3 x 16 x 16)."""

    def small(value: Any) -> NDArray[np.float32]:
        copy = decode(value).resize((THUMBNAIL, THUMBNAIL))
        return np.asarray(copy, dtype=np.float32).ravel() / 127.5 - 1

    return np.stack(each(table["image"].to_pylist(), small))


def _content_key(value: Any) -> str | None:
    try:
        return None if value is None else sha256(read_bytes(value)).hexdigest()
    except OSError:
        return None
