"""Tables of the live store as the newest migration leaves them. Times are seconds since 1970, UTC."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

NUMBER = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite counts up by itself only what it calls INTEGER."""

predictions = Table(
    "predictions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("time", Double, nullable=False),
    Column("served", Boolean, nullable=False),
    Column("prediction", Text, nullable=False),
    Column("scores", LargeBinary),
    Column("input_hash", String(64), nullable=False),
    Column("length", Integer, nullable=False),
    Column("words", BigInteger),
    Column("latency_ms", Double),
    Column("inputs", Text),
    Index("predictions_by_time", "name", "time"),
)
"""One line for each answer of each version to a row; champion and challenger share the row's id."""

labels = Table(
    "labels",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("label", Text, nullable=False),
    Column("time", Double, nullable=False),
    Column("received", Double, nullable=False),
    Column("changes", Integer, nullable=False),
    Index("labels_by_arrival", "received"),
)
"""The label of a row that counts; no foreign key, since a label may come before the prediction is written."""

label_history = Table(
    "label_history",
    metadata,
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False),
    Column("label", Text, nullable=False),
    Column("time", Double, nullable=False),
    Column("received", Double, nullable=False),
    Index("label_history_by_id", "id"),
)
"""Every different label that a row was given."""

decisions = Table(
    "decisions",
    metadata,
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("time", Double, nullable=False),
    Column("name", String(255), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("champion", String(64)),
    Column("challenger", String(64)),
    Column("reasons", Text, nullable=False),
    Column("numbers", Text, nullable=False),
    Index("decisions_by_time", "name", "time"),
)

health_checks = Table(
    "health_checks",
    metadata,
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("time", Double, nullable=False),
    Column("name", String(255), nullable=False),
    Column("version", String(64), nullable=False),
    Column("problem", Text),
    Index("health_checks_by_time", "name", "time"),
)
