"""Endpoint, store or server are killed: what was acknowledged must be there afterwards."""

import os
import signal
import subprocess
import sys

import pytest

from pmray.live.store import Store
from tests.databases import PostgreSQL

WRITER = """
import sys, itertools
from pmray.live.records import Feedback, Prediction
from pmray.live.store import Store
from pmray.live.writer import Writer
import numpy as np

writer = Writer(lambda: Store(sys.argv[1]))
for number in itertools.count():
    row = f"row{number}"
    made = [Prediction(row, float(number), "m", "1", "a", np.array([0.5, 0.5], np.float32), "0", 1)]
    writer.record(lambda made=made: made)
    try:
        writer.feedback([Feedback(row, "a", 1.0)]).result(60)
        print(row, flush=True)
    except Exception as error:
        print("refused", type(error).__name__, flush=True)
"""
"""Writes predictions and labels as an endpoint does, and tells every label that was acknowledged."""


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    server = PostgreSQL(tmp_path_factory.mktemp("postgresql"))
    yield server
    server.stop()


def start(url):
    return subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True, env=os.environ)


def acknowledged(process, count):
    """The next so many labels that were acknowledged, and how many were refused meanwhile."""
    rows, refused = [], 0
    while len(rows) < count:
        line = process.stdout.readline().strip()
        assert line, "the writer ended"
        if line.startswith("refused"):
            refused += 1
        else:
            rows.append(line)
    return rows, refused


def rest(process):
    return [line.strip() for line in process.stdout if line.startswith("row") and line.endswith("\n")]


def labelled(url):
    store = Store(url)
    try:
        return {one.id for one in store.answered("m", 0, labelled=True, limit=1_000_000)}
    finally:
        store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_killed_endpoint_has_lost_no_label_that_it_acknowledged(kind, tmp_path, request):
    url = f"sqlite:///{tmp_path}/live.db" if kind == "sqlite" else request.getfixturevalue("postgresql").url
    before = labelled(url)
    process = start(url)
    rows, _ = acknowledged(process, 200)
    process.send_signal(signal.SIGKILL)
    rows += rest(process)
    process.wait()
    assert set(rows) <= labelled(url) - before
    assert len(rows) >= 200


def test_a_database_that_stops_dies_and_comes_back_has_lost_no_label_either(postgresql):
    store = Store(postgresql.url)
    store.forget(before=float("inf"))
    store.close()
    process = start(postgresql.url)
    try:
        rows, _ = acknowledged(process, 100)
        for end in (postgresql.stop, postgresql.kill):
            end()
            # Labels are refused, not lost, while it is away.
            while not process.stdout.readline().startswith("refused"):
                pass
            postgresql.start()
            more, refused = acknowledged(process, 100)
            rows += more
            assert refused >= 0
    finally:
        process.kill()
        rows += rest(process)
        process.wait()
    assert set(rows) <= labelled(postgresql.url)
