"""Stored responses and conversations, in a SQLite file or in PostgreSQL: docs/store.md.

Nothing is imported here: an API without a store needs no SQLAlchemy.
"""
