"""A task as somebody else's package brings it: is a word of the text a keyword? Written from the outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pmray.spec import Recipe
from pmray.tasks.text import TextClassification


@dataclass(frozen=True)
class KeywordSpotting(TextClassification):
    """Texts are read in lower case, and a shouted one is as good as a whispered one."""

    name: ClassVar[str] = "keyword-spotting"
    columns: ClassVar[Mapping[str, bool]] = {"text": True, "label": True}

    def default_recipe(self, family: str, parameters: int) -> Recipe:
        """A few quick epochs."""
        return Recipe(lr=1e-3, epochs=4)

    def encode(self, table: pa.Table, processor: Any, max_length: int) -> pa.Table:
        """Encode lower-case texts."""
        index = table.column_names.index("text")
        return super().encode(table.set_column(index, "text", pc.utf8_lower(table["text"])), processor, max_length)

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Take rows that were sent."""
        return super().rows(rows)
