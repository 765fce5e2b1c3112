"""Bodies of requests and replies: JSON that is strict, files that are streamed to disk and cannot blow up."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from pydantic_core import from_json, to_json
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pmray.errors import DataError

FILE_KINDS = {"application/vnd.apache.parquet": ".parquet", "text/csv": ".csv"}
"""Content type -> suffix of a file that may be uploaded."""

PARSE_INLINE = 100_000
"""Bytes; a longer body is parsed in a thread."""

UNPACKED = 4
"""An uploaded file may be so many times ``max_upload`` when it is unpacked."""


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None, after: BackgroundTask | None = None
) -> Response:
    """A reply of plain values; NaN, which JSON does not know, becomes null."""
    return Response(
        to_json(value, inf_nan_mode="null"), status, dict(headers or {}), "application/json", background=after
    )


def content_type(request: Request) -> str:
    """Of a body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request) -> Any:
    """The body as plain values. Not NaN, not Infinity, nothing nested deeper than 200 levels, no broken Unicode.

    Raises:
        HTTPException: 415 or 422, with one sentence.
    """
    kind = content_type(request)
    # Browsers send other pages' forms as text/plain without asking; only JSON makes them ask first (CORS).
    if kind != "application/json" and not kind.endswith("+json"):
        raise HTTPException(
            415, f"send JSON with `content-type: application/json`, not {kind[:80] or 'without a kind'!r}"
        )
    try:
        body = await request.body()
    except ClientDisconnect:
        raise HTTPException(400, "the client went away") from None
    try:
        return _parse(body) if len(body) < PARSE_INLINE else await asyncio.to_thread(_parse, body)
    except ValueError as error:
        raise HTTPException(422, f"body: not JSON ({str(error)[:200]})") from None


def rows_of(body: Any, max_rows: int) -> list[Any]:
    """The rows of a parsed body.

    Raises:
        HTTPException: 413 or 422, with one sentence.
    """
    if not isinstance(body, dict) or "rows" not in body:
        raise HTTPException(422, 'body: an object such as {"rows": [...]} is expected; see /docs for the form')
    if more := sorted(set(body) - {"rows"}):
        raise HTTPException(422, f"body: {more[0][:80]!r} is not known; it holds `rows` alone")
    rows = body["rows"]
    if not isinstance(rows, list) or not rows:
        raise HTTPException(422, "rows: an array with one row or more is expected; see /docs for the form")
    if len(rows) > max_rows:
        raise HTTPException(413, f"a request may have {max_rows} rows, this has {len(rows)}")
    return rows


@asynccontextmanager
async def uploaded(request: Request, max_upload: int) -> AsyncIterator[Path]:
    """Stream the body into a temporary file, which goes at the end of the block.

    Raises:
        HTTPException: 413 or 422, with one sentence.
    """
    with tempfile.TemporaryDirectory(prefix="pmray-upload-") as folder:
        path = Path(folder) / f"upload{FILE_KINDS[content_type(request)]}"
        with path.open("wb") as file:
            try:
                async for chunk in request.stream():
                    await asyncio.to_thread(file.write, chunk)
            except ClientDisconnect:
                raise HTTPException(400, "the client went away") from None
        if path.suffix == ".parquet":
            await asyncio.to_thread(check_parquet, path, UNPACKED * max_upload)
        yield path


def check_parquet(path: Path, most: int) -> None:
    """Refuse a Parquet file that would be huge when it is unpacked, from its footer alone.

    Raises:
        HTTPException: 413 or 422, with one sentence.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_metadata(path)
        groups = [found.row_group(number) for number in range(found.num_row_groups)]
        size = sum(group.column(one).total_uncompressed_size for group in groups for one in range(group.num_columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise HTTPException(422, f"the body is no Parquet file ({' '.join(str(error).split())[:150]})") from None
    # Runs of one value take no room in the file, but do in memory: a row counts with its columns.
    size = max(size, 8 * found.num_rows * max(1, found.num_columns))
    if size > most:
        raise HTTPException(413, f"the file has {size} bytes when it is unpacked; at most {most} are read")


def as_http(error: DataError) -> HTTPException:
    """What is wrong with rows, as a 422 of one sentence."""
    more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
    return HTTPException(422, f"{error.problems[0]}{more}")


def _parse(body: bytes) -> Any:
    return from_json(body, allow_inf_nan=False)
