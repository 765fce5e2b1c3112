"""Predictions, labels and their history, decisions, health checks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("served", sa.Boolean, nullable=False),
        sa.Column("prediction", sa.Text, nullable=False),
        sa.Column("scores", sa.LargeBinary),
        sa.Column("input_hash", sa.String(64), nullable=False),
        sa.Column("length", sa.Integer, nullable=False),
        sa.Column("words", sa.BigInteger),
        sa.Column("latency_ms", sa.Double),
        sa.Column("inputs", sa.Text),
    )
    op.create_index("predictions_by_time", "predictions", ["name", "time"])
    op.create_table(
        "labels",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("received", sa.Double, nullable=False),
        sa.Column("changes", sa.Integer, nullable=False),
    )
    op.create_index("labels_by_arrival", "labels", ["received"])
    op.create_table(
        "label_history",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("received", sa.Double, nullable=False),
    )
    op.create_index("label_history_by_id", "label_history", ["id"])
    op.create_table(
        "decisions",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("champion", sa.String(64)),
        sa.Column("challenger", sa.String(64)),
        sa.Column("reasons", sa.Text, nullable=False),
        sa.Column("numbers", sa.Text, nullable=False),
    )
    op.create_index("decisions_by_time", "decisions", ["name", "time"])
    op.create_table(
        "health_checks",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("problem", sa.Text),
    )
    op.create_index("health_checks_by_time", "health_checks", ["name", "time"])


def downgrade() -> None:
    """Drop the tables."""
    for table in ("health_checks", "decisions", "label_history", "labels", "predictions"):
        op.drop_table(table)
