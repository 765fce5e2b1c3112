"""The model card that travels with a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment

from pmray.selection.verdict import Verdict, show

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: {{ settings.task.task }}
tags: [pmray]
---
# {{ settings.name }}

{{ settings.task.task }} into {{ settings.task.labels | length }} labels: {{ settings.task.labels | join(", ") }}.
Fine-tuned from `{{ settings.candidate.model }}`{% if settings.candidate.layers %}, its first \
{{ settings.candidate.layers }} layers{% endif %} ({{ settings.candidate.revision }}), and chosen by pmray \
{{ settings.pmray_version }}.

{% if verdict -%}
## How good it is
On {{ verdict.rows }} test rows that were opened once, after all fits; {{ "%.0f" | format(100 * verdict.level) }} % \
bootstrap intervals over rows and seeds.

| | {{ verdict.metric }} | p against the winner |
|---|---|---|
{% for line in verdict.lines -%}
| {{ "**" ~ line.name ~ "**" if line.name == verdict.winner else line.name }} | {{ show(line.score) }} | \
{{ p_value(line.name) }} |
{% endfor %}
{{ verdict.words | join(" ") }}

Corrected for having been picked on these rows (Tsamardinos et al. 2018): {{ show(verdict.corrected) }}.
This copy is the fit with seed {{ settings.seed }}{% if settings.deployed_score %}; it alone scores \
{{ "%.3f" | format(settings.deployed_score) }}{% endif %}.

| class | precision | recall | F1 |
|---|---|---|---|
{% for label, values in verdict.per_class.items() -%}
| {{ label }} | {{ show(values.precision) }} | {{ show(values.recall) }} | {{ show(values.f1) }} |
{% endfor %}
{%- else -%}
## How good it is
{{ settings.metric }} {{ "%.3f" | format(settings.validation_score) }} on validation rows, with which its best \
epoch was chosen: an optimistic number. It has not been compared, and no test rows were opened.
{%- endif %}

## How it was made
| | |
|---|---|
| data | {{ settings.rows.train }} training rows, key `{{ settings.data }}` |
{% for name, value in settings.recipe.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
## How to use it
```python
from transformers import pipeline

classify = pipeline("text-classification", model="PATH/TO/THIS/FOLDER", top_k=None)
```
or `pmray serve PATH/TO/THIS/FOLDER`. Texts over {{ settings.max_length }} tokens are cut.

## Limits
The numbers hold for rows like the test rows. Other sources, times or languages can be worse: measure with
`pmray evaluate PATH/TO/THIS/FOLDER DATA`.
"""


def model_card(settings: Mapping[str, Any], verdict: Verdict | None) -> str:
    """Write the card in Markdown.

    Args:
        settings: Of the bundle, as in ``pmray.json``.
        verdict: The comparison it won; None for a single fit.
    """

    def p_value(name: str) -> str:
        if verdict is None or name == verdict.winner:
            return ""
        found = next((one for one in verdict.comparisons if {one.first, one.second} == {name, verdict.winner}), None)
        return "" if found is None else f"{found.adjusted_p:.2g}"

    template = Environment(autoescape=False, trim_blocks=False).from_string(TEMPLATE)  # Markdown, not HTML
    return template.render(settings=settings, verdict=verdict, show=show, p_value=p_value)
