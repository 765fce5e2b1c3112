"""Names of the tasks and where they live.

The registry maps a name to ``module:class`` and imports nothing until a task is asked for, so that listing names and
checking a spec load no torch. Other packages add theirs through the entry-point group ``pmray.tasks``.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pmray.errors import UnknownName

TASKS = {
    "text-classification": "pmray.tasks.text:TextClassification",
    "token-classification": "pmray.tasks.tokens:TokenClassification",
    "image-classification": "pmray.tasks.images:ImageClassification",
    "pretraining": "pmray.tasks.pretraining:Pretraining",
}


def task_names() -> list[str]:
    """All known tasks, ours and then those of installed plug-ins."""
    return list(dict.fromkeys([*TASKS, *sorted(entry.name for entry in entry_points(group="pmray.tasks"))]))


def task_class(name: str) -> Any:
    """Return the class that carries out a task (see ``pmray.tasks.base.Task``).

    Raises:
        UnknownName: No task of that name; the message proposes the nearest.
    """
    if name in TASKS:
        module, _, attribute = TASKS[name].partition(":")
        return getattr(import_module(module), attribute)
    for entry in entry_points(group="pmray.tasks"):
        if entry.name == name:
            return entry.load()
    raise UnknownName("task", name, task_names())
