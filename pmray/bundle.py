"""The exported model: a plain ``save_pretrained`` folder that ``transformers`` opens alone, and what pmray adds.

``pmray.json`` holds the task, thresholds, the promised score and where the model came from; ``golden.parquet`` a few
rows with their expected score vectors, for health checks; ``reference.parquet`` what the model said of validation rows,
which live traffic is compared with; ``README.md`` the model card. Loading never unpickles and
never runs code that comes with a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pmray.errors import DataError
from pmray.tasks.base import Task
from pmray.training.trial import open_task

if TYPE_CHECKING:
    import torch

SETTINGS = "pmray.json"
GOLDEN = "golden.parquet"
GOLDEN_ROWS = 16
REFERENCE = "reference.parquet"
REFERENCE_ROWS = 500
"""Validation rows whose answers are kept; enough to see a change of a tenth, and no text is among them."""
GOLDEN_TOLERANCE = 0.01
"""Largest difference of a probability from the expected one; other hardware rounds differently, a wrong model more."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    folder: Path
    settings: Mapping[str, Any]
    task: Task

    @property
    def name(self) -> str:
        """Name of the run that made it."""
        return str(self.settings["name"])

    @property
    def max_length(self) -> int:
        """Tokens of a row; longer ones are cut."""
        return int(self.settings["max_length"])

    def open_model(self) -> tuple[torch.nn.Module, Any]:
        """Open weights (fp32, ready to predict) and tokenizer or other processor."""
        import torch

        from pmray.tasks.pretrained import open_head
        from pmray.training.model import quiet_transformers

        with quiet_transformers():
            model = open_head(self.task.head, str(self.folder), dtype=torch.float32)
        return model.eval(), self.task.processor(str(self.folder))

    def golden(self) -> pa.Table:
        """Rows with their expected score vectors, in column ``scores``."""
        return pq.read_table(self.folder / GOLDEN)

    def reference(self) -> pa.Table | None:
        """Of some validation rows ``length``, ``words``, ``prediction`` (JSON) and ``scores`` (bytes), as
        ``pmray.live`` keeps them; None in bundles that were exported before there was such a file.
        """
        return pq.read_table(self.folder / REFERENCE) if (self.folder / REFERENCE).is_file() else None


def open_bundle(folder: str | Path) -> Bundle:
    """Open a bundle's settings; the weights are read when they are asked for.

    Raises:
        DataError: The folder is not a bundle.
    """
    folder = Path(folder).expanduser().absolute()
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        return Bundle(folder, settings, open_task(settings["task"]))
    except FileNotFoundError:
        found = "no such folder" if not folder.is_dir() else f"it has no {SETTINGS}"
        raise DataError(f"{folder} is not a pmray bundle ({found}); `pmray sweep` writes one to RUN/bundle.") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{folder / SETTINGS} cannot be read ({error}); export the bundle again.") from None


def write_settings(folder: Path, settings: Mapping[str, Any], golden: pa.Table, card: str) -> None:
    """Add pmray's own files to a saved model; ``pmray.json`` comes last, so its presence means the bundle is whole."""
    pq.write_table(golden, folder / GOLDEN)
    (folder / "README.md").write_text(card)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, default=float) + "\n")
