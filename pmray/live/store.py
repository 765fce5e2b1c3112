"""Predictions and labels on disk: SQLite in one file by default, PostgreSQL for clusters.

A transaction that has ended is on disk: SQLite writes ahead and syncs at each commit (WAL, ``synchronous=FULL``),
PostgreSQL does so unless it was told otherwise.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from pmray.errors import LiveStoreError, SpecError
from pmray.live.records import Check, Feedback, Label, Prediction, Received, Record, as_json, pack, settle
from pmray.live.schema import decisions, health_checks, label_history, labels, predictions

URL_VARIABLE = "PMRAY_LIVE_URL"

SQLITE = "sqlite:///"

MIGRATIONS = Path(__file__).with_name("migrations")

LOCK = 0x706D726179
"""Number of PostgreSQL's advisory lock for migrations and labels."""

CONNECT_TIMEOUT_S = 3
BUSY_TIMEOUT_S = 30

AT_ONCE = 500
"""Ids in one IN list."""


def default_url(registry: str | None) -> str | None:
    """``PMRAY_LIVE_URL``, or ``live.db`` beside a registry that is an SQLite file, or None.

    >>> default_url("sqlite:////data/runs/registry.db")
    'sqlite:////data/runs/live.db'
    """
    if given := os.environ.get(URL_VARIABLE):
        return given
    if registry is None or not registry.startswith(SQLITE):
        return None
    return f"{SQLITE}{Path(registry.removeprefix(SQLITE)).expanduser().absolute().with_name('live.db')}"


def open_default(url: str | None, registry: str | None) -> Store:
    """The store of this URL, or the default one.

    Raises:
        SpecError: There is none.
    """
    found = url or default_url(registry)
    if found is None:
        raise SpecError(
            f"where the live store is must be told for a registry that is no SQLite file; set {URL_VARIABLE} to "
            "postgresql://USER:PASSWORD@HOST/DATABASE or sqlite:///FILE"
        )
    return Store(found)


def exists(url: str) -> bool:
    """Whether there is such a store; True where only a connection could tell."""
    return not url.startswith(SQLITE) or Path(url.removeprefix(SQLITE)).is_file()


@dataclass(frozen=True, slots=True)
class Answered:
    """A prediction, and its label where that has come."""

    id: str
    version: str
    time: float
    served: bool
    prediction: Any
    scores: bytes | None
    length: int
    words: int | None
    latency_ms: float | None = None
    label: Any = None
    """None without one."""
    received: float | None = None
    """When its label came."""


@dataclass(frozen=True)
class Counts:
    """How much there is of a model in a span of time; only what was served counts."""

    predictions: int
    labelled: int
    relabelled: int
    """Of those, how many had another label before."""


class Store:
    """An open store; its tables are brought up to date.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.

    Raises:
        SpecError: The URL is none of these, or its driver is missing.
        LiveStoreError: The database cannot be opened, or a newer pmray made it.
    """

    def __init__(self, url: str) -> None:
        self.url = _parsed(url)
        self.shown = self.url.render_as_string(hide_password=True)
        self.engine = _engine(self.url)
        with self._errors():
            self._migrate()

    def write(self, new: Sequence[Prediction], feedback: Sequence[Feedback] = ()) -> list[Received]:
        """Write predictions and labels in one transaction; when it returns, they are on disk.

        A prediction that is already there stays as it is. What becomes of labels says ``records.settle``.

        Raises:
            LiveStoreError: Nothing was written.
        """
        with self._errors(), self.engine.begin() as connection:
            if new:
                insert = self._insert(predictions).on_conflict_do_nothing()
                connection.execute(insert, [_row(one) for one in new])
            return self._label(connection, feedback) if feedback else []

    def _label(self, connection: Connection, feedback: Sequence[Feedback]) -> list[Received]:
        self._lock(connection)  # two servers may get labels of one row at once
        ids = sorted({one.id for one in feedback})
        known, matched = {}, set()
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            for row in connection.execute(sa.select(labels).where(labels.c.id.in_(some))):
                known[row.id] = Label(row.label, row.time, row.received, row.changes)
            matched |= set(connection.scalars(sa.select(predictions.c.id).where(predictions.c.id.in_(some))))
        now = time.time()
        outcomes, written, history = settle(known, feedback, now)
        if written:
            insert = self._insert(labels)
            newer = {name: insert.excluded[name] for name in ("label", "time", "received", "changes")}
            connection.execute(
                insert.on_conflict_do_update(index_elements=["id"], set_=newer),
                [{"id": key, **asdict(label)} for key, label in written.items()],
            )
        if history:
            rows = [{"id": one.id, "label": as_json(one.label), "time": one.time, "received": now} for one in history]
            connection.execute(sa.insert(label_history), rows)
        return [Received(one.id, outcome, one.id in matched) for one, outcome in zip(feedback, outcomes, strict=True)]

    def counts(self, name: str, since: float, until: float | None = None, *, version: str | None = None) -> Counts:
        """Count predictions that were served, and labels."""
        joined = predictions.outerjoin(labels, predictions.c.id == labels.c.id)
        what = sa.select(
            sa.func.count(), sa.func.count(labels.c.id), sa.func.count(sa.case((labels.c.changes > 0, 1)))
        ).select_from(joined)
        with self._reading() as connection:
            found = connection.execute(what.where(*_span(name, since, until, version), predictions.c.served)).one()
        return Counts(*found)

    def answered(
        self,
        name: str,
        since: float,
        until: float | None = None,
        *,
        version: str | None = None,
        labelled: bool = False,
        served: bool | None = None,
        limit: int = 20_000,
    ) -> list[Answered]:
        """The newest predictions of a model in a span of time, oldest first.

        Args:
            name: Of the registered model.
            since: Seconds since 1970.
            until: Now by default.
            version: Of all versions by default.
            labelled: Only those with a label.
            served: Only replies (True), or only shadow predictions (False).
            limit: At most so many.
        """
        columns = [predictions.c[key] for key in _ANSWERED]
        joined = predictions.join(labels, predictions.c.id == labels.c.id, isouter=not labelled)
        what = sa.select(*columns, labels.c.label, labels.c.received).select_from(joined)
        what = what.where(*_span(name, since, until, version))
        if served is not None:
            what = what.where(predictions.c.served == served)
        with self._reading() as connection:
            rows = connection.execute(what.order_by(predictions.c.time.desc(), predictions.c.id).limit(limit)).all()
        return [_answered(row) for row in reversed(rows)]

    def first(self, name: str, version: str, count: int) -> list[Answered]:
        """The first replies of a version, oldest first."""
        columns = [predictions.c[key] for key in _ANSWERED]
        what = sa.select(*columns, sa.null().label("label"), sa.null().label("received"))
        what = what.where(predictions.c.name == name, predictions.c.version == version, predictions.c.served)
        with self._reading() as connection:
            return [_answered(row) for row in connection.execute(what.order_by(predictions.c.time).limit(count))]

    def pairs(
        self, name: str, champion: str, challenger: str, since: float = 0.0, *, limit: int = 50_000
    ) -> list[tuple[Answered, Answered]]:
        """Rows that both versions answered and that have a label, in the order of time: (champion's, challenger's)."""
        sides = {
            version: {one.id: one for one in self.answered(name, since, version=version, labelled=True, limit=limit)}
            for version in (champion, challenger)
        }
        return [(one, sides[challenger][key]) for key, one in sides[champion].items() if key in sides[challenger]]

    def note(self, record: Record) -> None:
        """Write a decision down."""
        values = {**asdict(record), "reasons": as_json(list(record.reasons)), "numbers": as_json(record.numbers)}
        with self._errors(), self.engine.begin() as connection:
            connection.execute(sa.insert(decisions), values)

    def decisions(self, name: str, limit: int = 20) -> list[Record]:
        """The latest decisions about a model, newest first."""
        what = sa.select(decisions).where(decisions.c.name == name).order_by(decisions.c.number.desc()).limit(limit)
        with self._reading() as connection:
            return [
                Record(
                    row.name,
                    row.kind,
                    row.time,
                    row.champion,
                    row.challenger,
                    json.loads(row.reasons),
                    json.loads(row.numbers),
                )
                for row in connection.execute(what)
            ]

    def check(self, check: Check) -> None:
        """Write down how a served version fares."""
        with self._errors(), self.engine.begin() as connection:
            connection.execute(sa.insert(health_checks), asdict(check))

    def checks(self, name: str, version: str, limit: int = 10) -> list[Check]:
        """The latest looks at a version, newest first."""
        what = sa.select(health_checks).where(health_checks.c.name == name, health_checks.c.version == version)
        with self._reading() as connection:
            rows = connection.execute(what.order_by(health_checks.c.number.desc()).limit(limit)).all()
        return [Check(row.name, row.version, row.time, row.problem) for row in rows]

    def forget(self, *, before: float, inputs_before: float | None = None) -> int:
        """Delete predictions, their labels and looks that are older; and of less old predictions the inputs.

        Decisions stay.

        Returns:
            How many predictions were deleted.
        """
        old = sa.select(predictions.c.id).where(predictions.c.time < before)
        # A row that a version answered later still needs its label.
        young = sa.select(predictions.c.id).where(predictions.c.time >= before)
        gone = sa.and_(labels.c.received < before, labels.c.id.not_in(young))
        with self._errors(), self.engine.begin() as connection:
            self._lock(connection)
            count = connection.scalar(sa.select(sa.func.count()).select_from(old.subquery())) or 0
            connection.execute(sa.delete(predictions).where(predictions.c.time < before))
            connection.execute(sa.delete(labels).where(gone))
            connection.execute(
                sa.delete(label_history).where(
                    label_history.c.received < before, label_history.c.id.not_in(sa.select(labels.c.id))
                )
            )
            connection.execute(sa.delete(health_checks).where(health_checks.c.time < before))
            if inputs_before is not None:
                stale = sa.update(predictions).where(
                    predictions.c.time < inputs_before, predictions.c.inputs.is_not(None)
                )
                connection.execute(stale.values(inputs=None))
        return int(count)

    def close(self) -> None:
        """Close its connections."""
        self.engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        head = ScriptDirectory.from_config(config).get_current_head()
        with self._reading() as connection:
            if MigrationContext.configure(connection).get_current_revision() == head:
                return
        with self.engine.begin() as connection:
            self._lock(connection)  # of several servers that start at once, one makes the tables
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise LiveStoreError(
                    f"the live store {self.shown} was made by a newer pmray ({error}); update pmray, or name another "
                    f"store in {URL_VARIABLE}"
                ) from None

    def _insert(self, table: sa.Table) -> Any:
        return (sqlite if self.engine.dialect.name == "sqlite" else postgresql).insert(table)

    def _lock(self, connection: Connection) -> None:
        """Let no second transaction that takes the lock run beside this one; SQLite has only one writer anyway."""
        if self.engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._errors(), self.engine.connect() as connection:
            yield connection.execution_options(reading=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            told = error.orig if isinstance(error, DBAPIError) else error
            raise LiveStoreError(
                f"the live store {self.shown} failed ({type(told).__name__}: {' '.join(str(told).split())[:200]}); "
                f"{URL_VARIABLE} says which one is used"
            ) from error


_ANSWERED = ("id", "version", "time", "served", "prediction", "scores", "length", "words", "latency_ms")


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    kind = parsed.get_backend_name() if parsed else ""
    if parsed is None or kind not in ("sqlite", "postgresql", "postgres"):
        # Not shown: it may hold a password.
        raise SpecError(
            f"the live store must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE, but its URL begins "
            f"with {url.partition(':')[0]!r}; see {URL_VARIABLE}"
        )
    if kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise SpecError("the live store needs a file: sqlite:///FILE")
        return parsed
    return parsed.set(drivername="postgresql+psycopg")


def _engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() == "postgresql":
            return sa.create_engine(
                url,
                pool_pre_ping=True,  # a server that was restarted closed its connections
                connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
            )
        Path(str(url.database)).expanduser().parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    except (ModuleNotFoundError, NoSuchModuleError):
        raise SpecError("a live store in PostgreSQL needs its driver: pip install 'pmray[postgres]'") from None
    except OSError as error:
        raise LiveStoreError(f"the folder of the live store {url.database} cannot be made ({error})") from None
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # sqlite3 would begin transactions when it likes; `_begin_sqlite` does
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then writes fails at once, without waiting, when another one wrote meanwhile.
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _span(name: str, since: float, until: float | None, version: str | None) -> list[sa.ColumnElement[bool]]:
    conditions = [predictions.c.name == name, predictions.c.time >= since]
    if until is not None:
        conditions.append(predictions.c.time < until)
    if version is not None:
        conditions.append(predictions.c.version == version)
    return conditions


def _row(one: Prediction) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "version": one.version,
        "time": one.time,
        "served": one.served,
        "prediction": as_json(one.prediction),
        "scores": pack(one.scores),
        "input_hash": one.input_hash,
        "length": one.length,
        "words": one.words,
        "latency_ms": one.latency_ms,
        "inputs": None if one.inputs is None else as_json(one.inputs),
    }


def _answered(row: Any) -> Answered:
    values: Mapping[str, Any] = row._mapping
    label = values["label"]
    return Answered(
        **{key: values[key] for key in _ANSWERED if key != "prediction"},
        prediction=json.loads(values["prediction"]),
        label=None if label is None else json.loads(label),
        received=values["received"],
    )
