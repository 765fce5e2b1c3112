"""Predictions and labels in SQLite and PostgreSQL."""

import json
import sqlite3
import threading

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from pmray.errors import LiveStoreError, SpecError
from pmray.live.records import Check, Feedback, Prediction, Record, unpack
from pmray.live.schema import label_history, metadata
from pmray.live.store import Store, default_url, open_default
from pmray.live.writer import Writer
from tests.databases import PostgreSQL
from tests.live import feedback, labels_of, scores_of, traffic


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory):
    server = PostgreSQL(tmp_path_factory.mktemp("postgresql"))
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/deep/live.db"
    server = request.getfixturevalue("postgresql")
    with sa.create_engine(server.url.replace("://", "+psycopg://", 1)).begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    return server.url


@pytest.fixture
def store(url):
    store = Store(url)
    yield store
    store.close()


def test_migrations_make_the_tables_that_the_code_knows(store, url):
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    Store(url).close()  # again: nothing to do


def test_a_store_that_a_newer_version_made_is_left_alone(store, url):
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LiveStoreError, match="made by a newer pmray"):
        Store(url)


def test_several_servers_may_start_at_once(url):
    failures = []

    def start():
        try:
            Store(url).close()
        except LiveStoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_predictions_come_back_as_they_were(store):
    scores = scores_of(3)
    store.write(traffic(scores, inputs={"text": "gr\u00fc\ud800\x00"}))
    found = store.answered("tiny", 0)
    assert [one.id for one in found] == ["row0", "row1", "row2"]
    np.testing.assert_array_equal(np.stack([unpack(one.scores, 2) for one in found]), scores)
    assert [one.label for one in found] == [None] * 3
    assert store.answered("tiny", 1, limit=1)[0].id == "row2"
    assert store.answered("other", 0) == []
    store.write(traffic(scores_of(3, seed=7)))  # the same ids: the first stay
    np.testing.assert_array_equal(unpack(store.answered("tiny", 0)[0].scores, 2), scores[0])


def test_ragged_scores_come_back_in_their_shape(store):
    tags = np.arange(6, dtype=np.float32).reshape(3, 2)
    store.write([Prediction("a", 1.0, "ner", "1", ["O", "O", "X"], tags, "0", 3)])
    (found,) = store.answered("ner", 0)
    np.testing.assert_array_equal(unpack(found.scores, 2), tags)
    assert found.prediction == ["O", "O", "X"]
    assert unpack(found.scores, 4) is None  # of another set of labels
    assert unpack(None, 2) is None


def test_labels_are_idempotent_and_the_later_of_contradictory_ones_counts(store):
    store.write(traffic(scores_of(2)))
    told = store.write([], [Feedback("row0", "positive", 10.0), Feedback("row1", ["b", "a"], 10.0)])
    assert [(one.outcome, one.matched) for one in told] == [("stored", True)] * 2

    def again(label, time):
        return store.write([], [Feedback("row0", label, time)])[0].outcome

    assert again("positive", 10.0) == "duplicate"
    assert again("negative", 5.0) == "older"
    assert again("negative", 20.0) == "changed"
    assert again("positive", 15.0) == "older"
    assert [one.label for one in store.answered("tiny", 0)] == ["negative", ["b", "a"]]
    with store.engine.connect() as connection:
        kept = connection.scalars(sa.select(label_history.c.label).where(label_history.c.id == "row0"))
        assert [json.loads(one) for one in kept] == ["positive", "negative", "negative", "positive"]
    counts = store.counts("tiny", 0)
    assert (counts.predictions, counts.labelled, counts.relabelled) == (2, 2, 1)


def test_a_label_repeated_later_outranks_what_contradicted_it_earlier(store):
    for label, time in (("positive", 10.0), ("positive", 30.0), ("negative", 20.0)):
        last = store.write([], [Feedback("x", label, time)])[0]
    assert last.outcome == "older"


def test_a_label_may_come_before_its_prediction(store):
    (told,) = store.write([], [Feedback("row0", "positive", 1.0)])
    assert not told.matched
    store.write(traffic(scores_of(1)))
    assert store.answered("tiny", 0, labelled=True)[0].label == "positive"


def test_one_call_may_hold_a_label_many_times_and_many_labels(store):
    many = [Feedback(f"row{number % 700}", str(number // 700), 1.0) for number in range(1_400)]
    told = store.write([], many)
    assert [one.outcome for one in told] == ["stored"] * 700 + ["changed"] * 700


def test_versions_that_answered_the_same_rows_are_paired(store):
    scores = scores_of(5)
    store.write(traffic(scores) + traffic(scores[:4], version="2", served=False), feedback(labels_of(scores[:3])))
    pairs = store.pairs("tiny", "1", "2")
    assert [(a.id, b.id, a.label == b.label) for a, b in pairs] == [(f"row{n}", f"row{n}", True) for n in range(3)]
    assert store.counts("tiny", 0).predictions == 5
    assert len(store.answered("tiny", 0, served=False)) == 4


def test_what_is_old_is_forgotten_and_inputs_before_the_rest(store):
    scores = scores_of(10)
    store.write(traffic(scores, inputs={"text": "hello"}), feedback(labels_of(scores)))
    assert store.forget(before=4.0, inputs_before=7.0) == 4
    assert [one.id for one in store.answered("tiny", 0)] == [f"row{n}" for n in range(4, 10)]
    assert all(one.label for one in store.answered("tiny", 0))
    with store.engine.connect() as connection:
        kept = connection.execute(sa.text("SELECT count(inputs) FROM predictions")).scalar()
    assert kept == 3


def test_decisions_and_checks_are_kept_newest_first(store):
    for kind in ("keep", "promote"):
        store.note(Record("tiny", kind, 1.0, "1", "2", ["because"], {"difference": {"low": 0.01}}))
    assert [one.kind for one in store.decisions("tiny")] == ["promote", "keep"]
    assert store.decisions("tiny")[0].numbers == {"difference": {"low": 0.01}}
    store.check(Check("tiny", "1", 1.0, None))
    store.check(Check("tiny", "1", 2.0, "golden rows differ"))
    assert [one.problem for one in store.checks("tiny", "1")] == ["golden rows differ", None]
    assert store.checks("tiny", "2") == []


def test_a_url_that_cannot_be_used_is_one_clear_error(tmp_path, monkeypatch):
    with pytest.raises(SpecError, match=r"begins with 'mysql'") as raised:
        Store("mysql://me:secret@host/db")
    assert "secret" not in str(raised.value)
    with pytest.raises(SpecError, match="needs a file"):
        Store("sqlite://")
    with pytest.raises(LiveStoreError, match="PMRAY_LIVE_URL") as raised:
        Store("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(raised.value)
    (tmp_path / "file").write_text("not a database, and long enough to be told from an empty one")
    with pytest.raises(LiveStoreError, match="not a database"):
        Store(f"sqlite:///{tmp_path}/file")
    monkeypatch.setenv("PMRAY_LIVE_URL", "postgresql://h/d")
    assert default_url(None) == "postgresql://h/d"
    monkeypatch.delenv("PMRAY_LIVE_URL")
    assert default_url(f"sqlite:///{tmp_path}/registry.db") == f"sqlite:///{tmp_path}/live.db"
    with pytest.raises(SpecError, match="where the live store is must be told"):
        open_default(None, "http://mlflow:5000")


def test_a_store_that_goes_and_comes_back_is_used_again(postgresql):
    store = Store(postgresql.url)
    store.write(traffic(scores_of(1), name="outage"))
    postgresql.stop()
    try:
        with pytest.raises(LiveStoreError):
            store.write(traffic(scores_of(2), name="outage"))
    finally:
        postgresql.start()
    store.write(traffic(scores_of(2), name="outage"))
    assert len(store.answered("outage", 0)) == 2
    store.close()


def test_the_writer_acknowledges_what_is_on_disk(url):
    writer = Writer(lambda: Store(url))
    scores = scores_of(50)
    writer.record(lambda: traffic(scores))
    told = writer.feedback(feedback(labels_of(scores))).result(timeout=30)
    # Read by another connection, before the writer has closed anything.
    assert len(told) == 50
    assert all(one.matched for one in told)
    assert len(Store(url).answered("tiny", 0, labelled=True)) == 50
    writer.close()
    assert (writer.waiting, writer.dropped) == (0, 0)


def test_the_writer_waits_for_a_store_and_refuses_labels_meanwhile(tmp_path):
    ready = threading.Event()

    def opened():
        if not ready.is_set():
            raise LiveStoreError("not there yet")
        return Store(f"sqlite:///{tmp_path}/live.db")

    writer = Writer(opened, at_most=30)
    writer.record(lambda: traffic(scores_of(50)))
    with pytest.raises(LiveStoreError, match="not there yet"):
        writer.feedback(feedback(["positive"])).result(timeout=30)
    assert (writer.waiting, writer.dropped, writer.failure) == (30, 20, "not there yet")
    ready.set()
    assert writer.feedback(feedback(["positive"])).result(timeout=30)[0].outcome == "stored"
    writer.close()
    assert writer.failure is None
    found = Store(f"sqlite:///{tmp_path}/live.db").answered("tiny", 0)
    assert [one.id for one in found] == [f"row{n}" for n in range(20, 50)]
    with pytest.raises(LiveStoreError, match="about to end"):
        writer.feedback(feedback(["positive"])).result(timeout=30)


def test_a_prediction_that_no_database_takes_does_not_stop_the_others(postgresql):
    writer = Writer(lambda: Store(postgresql.url))
    writer.record(lambda: traffic(scores_of(1), name="x" * 300))  # longer than its column
    with pytest.raises(LiveStoreError):
        writer.feedback(feedback(["positive"])).result(timeout=30)
    writer.record(lambda: traffic(scores_of(1), name="poison"))
    writer.close()
    assert writer.dropped == 1
    assert len(Store(postgresql.url).answered("poison", 0)) == 1


def test_sqlite_syncs_at_every_commit(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/live.db")
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    assert sqlite3.connect(tmp_path / "live.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)
