"""Opens the database: SQLite (WAL) on one machine, PostgreSQL on several; short transactions either way."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite

from db.errors import SchemaMismatch

MIGRATIONS = Path(__file__).with_name("migrations")
BUSY_SECONDS = 30
"""How long a writer waits for SQLite's one write lock."""
PRIMARY_CODE = 0xFF
"""An extended result code of SQLite without what it adds."""
RETRY_SECONDS = (0.002, 0.02)
"""Between two attempts, by chance: those who collided do not collide again."""


class Database:
    """One database, opened once per process and passed down as an argument.

    Parameters
    ----------
    url : str
        An SQLAlchemy URL, ``sqlite:////path/hemonode.db`` or ``postgresql+psycopg://…``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _sqlite(url) if url.startswith("sqlite") else sa.create_engine(url, pool_pre_ping=True)
        self._unflushed = self.engine.execution_options(hemonode_durable=False)
        self._writer = threading.Lock() if self.engine.dialect.name == "sqlite" else None
        # PostgreSQL's own default shows each statement a newer state; SQLite's deferred BEGIN holds one by itself.
        self._reading: dict[str, Any] = (
            {"hemonode_read": True}
            if self.engine.dialect.name == "sqlite"
            else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sa.Connection]:
        """A transaction that is durable once the block is left, and never was when the block raises.

        With `durable` False, SQLite does not flush it: it is seen by everybody at once and survives the end of the
        process, but survives power loss only once a later durable transaction has ended. That is for what can be
        repeated from elsewhere. PostgreSQL, which may fail without its clients, flushes every transaction.
        """
        with self._turn(), (self.engine if durable else self._unflushed).begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent view that takes no write lock."""
        with self.engine.connect().execution_options(**self._reading) as connection, connection.begin():
            yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        # SQLite has one writer at a time, and who waits polls with growing pauses: one thread of eight waited through
        # a thousand writes of the others, near the time-out. Threads of one process therefore queue before they ask.
        taken = self._writer is not None and self._writer.acquire(timeout=BUSY_SECONDS)
        try:
            yield
        finally:
            if taken and self._writer is not None:
                self._writer.release()

    def close(self) -> None:
        """Release every pooled connection."""
        self.engine.dispose()

    def upgrade(self) -> None:
        """Bring the schema to this version; safe to call from several processes at once.

        Raises
        ------
        SchemaMismatch
            The database was made by a newer Hemonode.
        """
        config = _alembic(self.url)
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(7236410)"))
            found = MigrationContext.configure(connection).get_current_revision()
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            if found is not None and found not in known:
                raise SchemaMismatch(f"the database has schema {found}, which this version of Hemonode does not know")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


INSERT: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""What makes an INSERT that knows ON CONFLICT, by the name of the dialect."""


def insert_into(tx: sa.Connection, table: sa.Table) -> Any:
    """An INSERT of the dialect in use, which knows ON CONFLICT."""
    return INSERT[tx.dialect.name](table)


def _alembic(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def _log_ahead(cursor: sqlite3.Cursor) -> None:
    """The database has a write-ahead log. Raises ``sqlite3.OperationalError`` where others prevent that for too long.

    Of several that open a new database at once and want that, SQLite lets one fail at once and others wait long: so
    nobody waits within SQLite, and everybody tries again.
    """
    cursor.execute("PRAGMA busy_timeout=0")
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & PRIMARY_CODE != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(random.uniform(*RETRY_SECONDS))  # noqa: S311 — no secret


def _sqlite(url: str) -> sa.Engine:
    # Nothing to roll back when a connection returns: every use above ends its transaction.
    engine = sa.create_engine(
        url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}, pool_reset_on_return=None
    )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # Transactions are begun below; the driver's own implicit BEGIN would come too late to avoid lock upgrades.
        connection.isolation_level = None
        cursor = connection.cursor()
        _log_ahead(cursor)
        cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        reading = options.get("hemonode_read", False)
        # FULL: a commit survives power loss. NORMAL: it does once a later one was FULL (sqlite.org/pragma.html).
        wanted = "FULL" if options.get("hemonode_durable", True) else "NORMAL"
        if connection.info.get("synchronous") != wanted:
            connection.exec_driver_sql(f"PRAGMA synchronous={wanted}")
            connection.info["synchronous"] = wanted
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine
