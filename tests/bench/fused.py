"""Trials as one computation, beside the same trials one after the other: ``python -m tests.bench.fused``.

Four recipes that differ in their learning rate, on rows of SST-2, batches of 16, in one process, as a trial's process
carries them out: how many examples a second they are trained on, and how many rows a second they are scored on. With
all weights trained, and with ways to train that leave most of them as they are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pmray.data.encode import encode_table
from pmray.demo.story import WEIGHTS
from pmray.spec import Candidate, Recipe
from pmray.training import loop
from pmray.training.fused import Member, run_together
from pmray.training.hardware import device_here
from pmray.training.model import locate, open_model
from tests.bench.fit import SST2, TASK, Rows

SMALL = SST2.parents[2] / "models" / "stories260k-llama"
RATES = (2e-5, 5e-5, 1e-4, 3e-4)
STEPS, SCORED, LENGTH = 24, 256, 64
KINDS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "the last two layers and the head": {"freeze_layers": 4},
    "low-rank changes (lora_rank: 8)": {"lora_rank": 8},
    "the head alone": {"head_only": True},
}


class Setting:
    """A model, and rows that are encoded for it."""

    def __init__(self, folder: str, rows: Rows) -> None:
        self.pretrained = locate(Candidate(model=folder))
        processor = TASK.processor(self.pretrained.folder)
        self.train, self.few = (
            encode_table(TASK, one, processor, LENGTH) for one in (rows.train, rows.test.slice(0, SCORED))
        )
        self.targets, self.few_targets = TASK.targets(rows.train), TASK.targets(rows.test.slice(0, SCORED))

    def fit(self, recipe: Recipe, together: Member | None = None) -> loop.Fitted:
        """Take some steps, and score once at their end."""
        torch.manual_seed(0)
        model = open_model(self.pretrained, TASK, pad=self.train.pad, recipe=recipe)
        return loop.fit(
            model, TASK, recipe, self.train, self.targets, self.few, self.few_targets, metric="f1_macro",
            rungs=[STEPS * recipe.batch_size], seed=0, together=together,
        )  # fmt: skip

    def compare(self, settings: dict[str, Any]) -> list[tuple[float, float]]:
        """Examples trained on, and rows scored, a second: each one after the other, and as one computation."""
        recipes = [Recipe(lr=rate, max_length=LENGTH, **{"batch_size": 16, **settings}) for rate in RATES]
        self.fit(recipes[0])
        alone = [self.fit(recipe) for recipe in recipes]
        fused: dict[int, loop.Fitted] = {}
        members: list[Member] = []

        def job(place: int, member: Member) -> None:
            members.append(member)
            fused[place] = self.fit(recipes[place], member)

        run_together([partial(job, place) for place in range(len(recipes))])
        if problem := next((one.problem for one in members if one.problem), None):
            raise RuntimeError(problem)
        for place, one in enumerate(alone):
            if abs(fused[place].loss - one.loss) > 0.02 * one.loss:
                raise RuntimeError(f"recipe {place}: loss {fused[place].loss} fused, {one.loss} alone")
        # Each is charged its share of the time.
        fits = (alone, list(fused.values()))
        trained = [sum(one.train_seconds for one in each) for each in fits]
        scored = [sum(one.evaluate_seconds for one in each) for each in fits]
        examples, rows = STEPS * recipes[0].batch_size * len(recipes), SCORED * len(recipes)
        return [(examples / trained[0], examples / trained[1]), (rows / scored[0], rows / scored[1])]


def main() -> None:
    """Run the bench and print a table."""
    console, rows = Console(width=140), Rows(2_000)
    table = Table("model", "what is trained", title=f"{len(RATES)} recipes: examples trained on, rows scored, a second")
    for heading in ("one by one", "as one", "x") * 2:
        table.add_column(heading, justify="right")
    models = {"MiniLM-L6": WEIGHTS, "stories260k (Llama)": str(SMALL)}
    for name, folder in models.items():
        if folder == str(SMALL) and not SMALL.is_dir():
            console.print(f"{SMALL} is not there")
            continue
        setting = Setting(folder, rows)
        for what, settings in KINDS.items():
            found = setting.compare(settings)
            cells = [(f"{alone:.0f}", f"{fused:.0f}", f"{fused / alone:.2f}") for alone, fused in found]
            table.add_row(name, what, *cells[0], *cells[1])
    console.print(f"{rows.name}, {device_here()}, {torch.get_num_threads()} threads")
    console.print(table)


if __name__ == "__main__":
    main()
