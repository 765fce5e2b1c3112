"""Runs migrations on the connection that ``pmray.live.store`` hands over; alembic looks for this file."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
