"""What the OpenAPI document says of each route: rows and answers in the terms of the task that is served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pmray.serving.service import Service

ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
    "example": {"error": "rows: an array with one row or more is expected; see /docs for the form"},
}

REFUSALS = {
    400: "The client went away.",
    401: "A valid API key is needed.",
    403: "This key may only look.",
    408: "Not read and answered in time.",
    413: "Too many rows or bytes.",
    415: "Not JSON.",
    422: "Not in the form that is expected.",
    503: "The model is busy, or not healthy; ask again after `Retry-After` seconds.",
}

Kind = Literal["predict", "evaluate", "facts", "list", "health", "metrics"]

REFUSED_BY: Mapping[Kind, tuple[int, ...]] = {
    "predict": (400, 401, 403, 408, 413, 415, 422, 503),
    "evaluate": (400, 401, 403, 408, 413, 415, 422, 503),
    "facts": (401, 403),
    "list": (401, 403),
    "health": (403, 503),
    "metrics": (401, 403),
}

OBJECT = {"type": "object"}


def described(
    kind: Kind, service: Service | None = None, example: Mapping[str, Any] | None = None, *, named: bool = False
) -> dict[str, Any]:
    """Arguments of a FastAPI route that describe it.

    Args:
        kind: What it does.
        service: Whose rows it takes.
        example: An answer of it.
        named: Whether its path has the name of a model.
    """
    replies: dict[int | str, dict[str, Any]] = {
        status: {"description": REFUSALS[status], "content": {"application/json": {"schema": ERROR}}}
        for status in (*REFUSED_BY[kind], *((404,) if named else ()))
        if status in REFUSALS
    }
    if named:
        replies[404] = {"description": "There is no such model.", "content": {"application/json": {"schema": ERROR}}}
    replies[200] = {"description": "Done.", "content": _content(kind, example)}
    options: dict[str, Any] = {"responses": replies, "response_model": None}
    if kind in ("predict", "evaluate") and service is not None:
        options["openapi_extra"] = {"requestBody": {"required": True, "content": _body(kind, service)}}
    return options


def _content(kind: Kind, example: Mapping[str, Any] | None) -> dict[str, Any]:
    if kind == "metrics":
        return {"text/plain": {"schema": {"type": "string"}}}
    if kind != "predict":
        return {"application/json": {"schema": OBJECT}}
    text = {"type": "string"}
    prediction = {
        "type": "object",
        "description": "The answer to a row, or `error`: why it cannot be answered.",
        "properties": {"id": {"type": "string", "pattern": "^[0-9a-f]{32}$"}, "error": text},
        "required": ["id"],
    }
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "model": {"type": "object", "properties": {"name": text, "version": text}, "required": ["name", "version"]},
            "predictions": {"type": "array", "items": prediction},
        },
        "required": ["model", "predictions"],
    }
    if example:
        schema["example"] = dict(example)
    return {"application/json": {"schema": schema}}


def _body(kind: Kind, service: Service) -> dict[str, Any]:
    row = service.task.row_schema()
    if kind == "evaluate":
        label = {"type": "string", "enum": list(service.task.labels)}
        labels = {"type": "array", "items": label}
        several = getattr(service.task, "multi_label", None)
        kinds = {True: labels, False: label, None: {"anyOf": [label, labels]}}
        row = {
            **row,
            "properties": {**row["properties"], "label": kinds[several]},
            "required": [*row["required"], "label"],
            "examples": [{**one, "label": _example_label(service, one)} for one in row["examples"]],
        }
    rows = {"type": "array", "minItems": 1, "items": row, "example": row["examples"]}
    schema = {"type": "object", "properties": {"rows": rows}, "required": ["rows"], "additionalProperties": False}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if kind == "evaluate":
        file = {"schema": {"type": "string", "format": "binary"}}
        content |= {"text/csv": file, "application/vnd.apache.parquet": file}
    return content


def _example_label(service: Service, row: Mapping[str, Any]) -> Any:
    first = service.task.labels[0]
    if getattr(service.task, "multi_label", False):
        return [first]
    words = row.get("words")
    return [first] * len(words) if isinstance(words, list) else first
