"""The model card that travels with a bundle, in the form that the Hugging Face Hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader

from pmray.report.cost import Cost
from pmray.selection.verdict import Verdict, show

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MOST_LABELS = 30
"""Labels of which the counts are listed."""
METRICS = {
    "balanced_accuracy": "balanced_accuracy",
    "mcc": "matthews_correlation",
    "span_f1": "f1",
    "subset_accuracy": "accuracy",
}
"""Our name of a metric -> the Hub's, where it is not the part before the first underscore."""

EXAMPLES = {
    "text-classification": 'classify = pipeline("text-classification", model="PATH/TO/THIS/FOLDER", top_k=None)\n'
    'classify("a text")',
    "token-classification": 'tag = pipeline("token-classification", model="PATH/TO/THIS/FOLDER", '
    'aggregation_strategy="simple")\ntag("a text")',
    "image-classification": 'classify = pipeline("image-classification", model="PATH/TO/THIS/FOLDER", top_k=None)\n'
    'classify("picture.jpg")',
}


class CardFacts(NamedTuple):
    """What a card tells beside settings and verdict."""

    licence: str | None
    """Of the base model, as its card writes it."""
    languages: Sequence[str]
    sources: Sequence[str]
    """Names of the data, without folders."""
    hub_data: Sequence[str]
    """Ids of the data sets on the Hub."""
    label_counts: Sequence[tuple[str, int]]
    """Of the training rows, the most frequent first."""
    warnings: Sequence[str]
    cost: Cost
    """Of the whole run."""


def model_card(settings: Mapping[str, Any], verdict: Verdict | None, facts: CardFacts) -> str:
    """Write the card in Markdown, with the Hub's metadata block.

    Args:
        settings: Of the bundle, as in ``pmray.json``.
        verdict: The comparison it won; None for a single fit.
        facts: The rest.
    """

    def p_value(name: str) -> str:
        if verdict is None or name == verdict.winner:
            return ""
        found = next((one for one in verdict.comparisons if {one.first, one.second} == {name, verdict.winner}), None)
        return "" if found is None else f"{found.adjusted_p:.2g}"

    task, base = settings["task"], settings["candidate"]["model"]
    labels = list(task["labels"])
    tagging = task["task"] == "token-classification"
    if tagging:
        labels = list(dict.fromkeys(label[2:] for label in labels if label != "O"))
    what = {"token-classification": "marks names in texts", "image-classification": "sorts images"}
    columns = ", ".join(f"`{column}`" for role, column in settings["columns"].items() if role not in ("label", "group"))
    use = f"It {what.get(task['task'], 'sorts texts')} like those of its training data" + (
        f" ({columns})" if columns else ""
    )
    fallback = f'model = pipeline("{task["task"]}", model="PATH/TO/THIS/FOLDER")'
    templates = Environment(
        loader=PackageLoader("pmray.report"), autoescape=False, keep_trailing_newline=True
    )  # Markdown
    return templates.get_template("card.md.j2").render(
        metadata=metadata(settings, verdict, facts).to_yaml(),
        settings=settings,
        verdict=verdict,
        winner=verdict.line(verdict.winner) if verdict else None,
        models=[line.name for line in verdict.lines if not line.baseline] if verdict else [],
        facts=facts,
        labels=labels,
        most=MOST_LABELS,
        # A folder of this machine is nobody else's.
        base=Path(base).name if Path(base).is_absolute() else base,
        use=f"{use} ({columns})" if columns else use,
        unit="pixels a side" if task["task"] == "image-classification" else "tokens",
        example=EXAMPLES.get(task["task"], fallback),
        show=show,
        p_value=p_value,
    )


def metadata(settings: Mapping[str, Any], verdict: Verdict | None, facts: CardFacts) -> ModelCardData:
    """The block that the Hub reads: task, base model, licence, data, and results of the test rows."""
    task, base = settings["task"]["task"], settings["candidate"]["model"].split("@")[0]
    results = []
    if verdict:
        line = verdict.line(verdict.winner)
        others = {name: score for name, score in line.metrics.items() if name != verdict.metric}
        scores = {verdict.metric: line.score, **others}
        results = [
            EvalResult(
                task_type=task,
                dataset_type=facts.hub_data[0] if facts.hub_data else "private",
                dataset_name=facts.sources[0],
                dataset_split="test",
                metric_type=METRICS.get(name, name.split("_")[0]),
                metric_name=f"{name} ({score.level:.0%} interval {score.low:.4f} to {score.high:.4f})",
                metric_value=round(score.value, 4),
            )
            for name, score in scores.items()
        ]
    return ModelCardData(
        model_name=settings["name"],
        library_name="transformers",
        pipeline_tag=task,
        license=facts.licence,
        language=list(facts.languages) or None,
        base_model=base if HUB_ID.fullmatch(base) else None,
        datasets=list(facts.hub_data) or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        tags=["pmray"],
        eval_results=results or None,
    )
