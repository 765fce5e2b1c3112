"""Load on an HTTP endpoint from a process of its own: keep-alive, as little work a request as Python allows.

``python -m tests.bench.load URL PATH BODIES CONNECTIONS SECONDS [RATE]``: BODIES is a file with one JSON body a line.
With RATE, requests per second arrive whatever becomes of those before (open loop). Prints one JSON document.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlparse

KEY = "the-key-of-the-bench"
"""Is sent along; who wants none does not look."""

WARM_S = 2.0
"""Seconds at the start that are not counted."""


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self):
        self.buffer, self.reply, self.transport = b"", None, None

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, error):
        if self.reply and not self.reply.done():
            self.reply.set_result(0)

    def data_received(self, data):
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(rest) >= int(length or 0) and self.reply and not self.reply.done():
            self.buffer = b""
            self.reply.set_result(int(head[9:12]))
            if b"connection: close" in head.lower():
                self.transport.close()

    async def ask(self, request):
        self.reply = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.reply


async def load(url, path, bodies, connections, seconds, rate=None):
    """Statuses, requests per second and latency of those that were answered with 200."""
    at = urlparse(url)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {at.netloc}\r\nauthorization: Bearer {KEY}\r\n"
        "content-type: application/json\r\ncontent-length: "
    )
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    ends = began + WARM_S + seconds
    statuses, times, refusals = Counter(), [], []
    number = answered = 0
    arrivals = asyncio.Queue()

    async def arrive():
        due = began
        while due < ends:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            arrivals.put_nowait(None)
            due += 1 / rate

    async def one():
        nonlocal number, answered
        connection = None
        while time.perf_counter() < ends:
            if rate:
                try:
                    await asyncio.wait_for(arrivals.get(), max(0.01, ends - time.perf_counter()))
                except TimeoutError:
                    return
            if connection is None or connection.transport.is_closing():
                _, connection = await loop.create_connection(Connection, at.hostname, at.port)
            number += 1
            started = time.perf_counter()
            status = await connection.ask(requests[number % len(requests)])
            now = time.perf_counter()
            answered += status == 200
            if started - began < WARM_S:
                continue
            statuses[status] += 1
            (times if status == 200 else refusals).append(now - started)

    feeder = asyncio.create_task(arrive()) if rate else None
    await asyncio.gather(*(one() for _ in range(connections)))
    if feeder:
        feeder.cancel()
    took = time.perf_counter() - began - WARM_S

    def quantile(values, share):
        return sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1e3 if values else None

    return {
        "per_second": statuses[200] / took,
        "p50_ms": quantile(times, 0.5),
        "p99_ms": quantile(times, 0.99),
        "refusal_p99_ms": quantile(refusals, 0.99),
        "statuses": dict(statuses),
        "all_answered": answered,
    }


if __name__ == "__main__":
    url, path, file, connections, seconds, *rate = sys.argv[1:]
    lines = Path(file).read_bytes().splitlines()
    found = asyncio.run(load(url, path, lines, int(connections), float(seconds), float(rate[0]) if rate else None))
    print(json.dumps(found))
