"""Bring a database's schema to the newest version, whoever else tries the same at the same time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from kodolly.errors import StoreError

LOCK = 0x6B6F646F6C6C79  # of PostgreSQL's advisory locks: ours by chance of its 56 bits


def upgrade(connection: sa.Connection, to: str) -> str:
    """Take the missing steps, in the caller's write transaction. Returns the version reached.

    `to`: a version: the newest, or an older one in tests. Raises StoreError where the database is newer than this program.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", str(Path(__file__).parent))
    script = ScriptDirectory.from_config(config)
    known = {step.revision for step in script.walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise StoreError(
            f"the store has schema {current}, and this KoDolly knows schemas up to"
            f" {script.get_current_head()}: start a newer KoDolly, or restore an older backup"
        )

    def steps(revision: Any, _: Any) -> Any:
        return script._upgrade_revs(to, revision)

    with EnvironmentContext(config, script, fn=steps, destination_rev=to) as environment:
        environment.configure(connection=connection, transactional_ddl=True)
        environment.run_migrations()
    return str(MigrationContext.configure(connection).get_current_revision())
