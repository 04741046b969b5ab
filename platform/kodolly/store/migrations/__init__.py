"""The steps from each released schema to the next, and how they are taken."""

NEWEST = "0002"  # a store that has this schema opens without Alembic, whose import takes a while
