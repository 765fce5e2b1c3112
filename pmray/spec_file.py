"""From a YAML file and overrides to a spec, or to a list of all mistakes in it, each with its line and the fix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from pmray.errors import SpecError, nearest
from pmray.spec import BRANCH, Candidate, Recipe, Section, Spec


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read and check a spec file.

    Args:
        path: YAML file.
        overrides: ``key.path=value`` strings that replace values of the file, such as ``search.trials=4`` or
            ``candidates.0.layers=3``; values are read as YAML.

    Raises:
        SpecError: The file cannot be read, or anything in it is wrong; the message lists every mistake with its line.
    """
    path = Path(path)
    try:
        text = path.read_text()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        hint = "`pmray init text-classification` prints a starter"
        raise SpecError(f"{path} cannot be read ({error}); {hint}.") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise SpecError(f"{path} must hold `key: value` lines, but holds {type(values).__name__}.")
    if twice := list(_repeated_keys(node)):
        raise SpecError(_listing(str(path), [f"line {line}: `{key}` is given twice; keep one" for key, line in twice]))
    for override in overrides:
        _override(values, override)
    values.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("-._") or "run")
    return _checked(values, str(path), _lines(node), list(overrides))


def spec_from(values: Mapping[str, Any] | Spec, overrides: Sequence[str] = ()) -> Spec:
    """Check a spec given as a dictionary, with the same messages as for a file.

    Raises:
        SpecError: Anything in it is wrong.
    """
    plain = (
        values.model_dump(mode="json", exclude_defaults=True) if isinstance(values, Spec) else deepcopy(dict(values))
    )
    for override in overrides:
        _override(plain, override)
    return _checked(plain, "The spec", {}, list(overrides))


KeyPath = tuple[str | int, ...]


def _checked(values: dict[str, Any], origin: str, lines: Mapping[KeyPath, int], overrides: list[str]) -> Spec:
    try:
        return Spec.model_validate(values)
    except ValidationError as error:
        mistakes = [_mistake(detail, lines, overrides) for detail in error.errors()]
    raise SpecError(_listing(origin, list(dict.fromkeys(mistakes))))


def _listing(origin: str, mistakes: Sequence[str]) -> str:
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    head = f"{origin} cannot be used ({count}); nothing was started."
    return "\n".join([head, *(f"  {mistake}" for mistake in mistakes)])


_WORDING = {
    "missing": "is required",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be `key: value` lines",
    "model_type": "must be `key: value` lines",
}


TRAINER_NAMES = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "clip",
    "bf16": "precision",
}
"""What ``transformers.TrainingArguments`` calls a hyper-parameter -> what a recipe calls it."""


def _mistake(detail: Any, lines: Mapping[KeyPath, int], overrides: Sequence[str]) -> str:
    path = tuple(part for part in detail["loc"] if not str(part).startswith(BRANCH))
    shown = ".".join(str(part) for part in path) or "spec"
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    place = "--set: " if any(_sets(override, path) for override in overrides) else f"line {line}: " if line else ""
    if detail["type"] == "extra_forbidden":
        text = _unknown_key(path)
    elif detail["type"] == "value_error":
        text = str(detail["ctx"]["error"])
    elif detail["type"] == "literal_error":
        hint = nearest(str(detail["input"]), re.findall(r"'([^']+)'", detail["ctx"]["expected"]))
        did_you_mean = f"; did you mean {hint!r}?" if hint else ""
        text = f"must be {detail['ctx']['expected']}, but got {_short(detail['input'])}{did_you_mean}"
    else:
        text = _WORDING.get(detail["type"], detail["msg"][0].lower() + detail["msg"][1:])
        if detail["type"] != "missing":
            text += f", but got {_short(detail['input'])}"
    return f"{place}{shown}: {text}"


def _sets(override: str, path: KeyPath) -> bool:
    """Whether an override gave the value at this path, something around it or a part of it."""
    given = override.split("=")[0].strip().split(".")
    return bool(path) and all(step == str(part) for step, part in zip(given, path, strict=False))


def _unknown_key(path: KeyPath) -> str:
    known, key = _keys_at(path[:-1]), str(path[-1])
    if key == "seed" and known == list(Recipe.model_fields):
        return "the seed is not a hyper-parameter; `search.seeds` repeats the finalists"
    if key in Recipe.model_fields and "recipe" in known:
        return f"no such key; a fixed value goes under `recipe: {{{key}: ...}}`, values to search under `space`"
    names = TRAINER_NAMES if known == list(Recipe.model_fields) else {}
    hint = nearest(key, [*known, *names])
    hint = names.get(hint, hint) if hint else None
    return f"no such key; did you mean `{hint}`?" if hint else f"no such key; known: {', '.join(known)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(path: Sequence[str | int]) -> list[str]:
    """The keys that a section at this path accepts, found from the models' own annotations."""
    section: Any = Spec
    for part in path:
        if section is Candidate and part in ("recipe", "space"):
            section = Recipe
        elif section and part in section.model_fields:
            section = _section_of(section.model_fields[str(part)].annotation)
    return list(section.model_fields) if section else []


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and not get_origin(annotation):
        return annotation if issubclass(annotation, Section) else None
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise SpecError(f"--set needs key=value, such as search.trials=4, but got {override!r}.")
    parts = key.strip().split(".")
    target: Any = values
    for position, part in enumerate(parts[:-1]):
        if isinstance(target, list):
            target = target[_position(target, part, override)]
        elif isinstance(target, dict):
            if not isinstance(target.get(part), dict | list):
                target[part] = {}
            target = target[part]
        if isinstance(target, str):
            where = ".".join(parts[: position + 1])
            raise SpecError(f"--set {override}: `{where}` is text, it has no `{parts[position + 1]}`.")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}: the value is not YAML: {error}") from None
    if isinstance(target, list):
        target[_position(target, parts[-1], override)] = parsed
    else:
        target[parts[-1]] = parsed


def _position(target: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(target):
        raise SpecError(f"--set {override}: {part!r} is not a position between 0 and {len(target) - 1}.")
    return int(part)


def _lines(node: yaml.Node | None, path: KeyPath = ()) -> dict[KeyPath, int]:
    """Line number of every key, by its path."""
    found: dict[KeyPath, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found[(*path, key.value)] = key.start_mark.line + 1
            found |= _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found[(*path, index)] = value.start_mark.line + 1
            found |= _lines(value, (*path, index))
    return found


def _repeated_keys(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """YAML keeps the last of two equal keys silently; that loses what the user wrote first."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated_keys(value)
