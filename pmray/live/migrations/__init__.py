"""Versions of the live store's schema, run by alembic."""
