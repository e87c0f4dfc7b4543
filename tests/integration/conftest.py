"""A real PostgreSQL beside SQLite: what holds for one database has to hold for the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from db.engine import Database
from db.schema import metadata
from tests.tools.postgresql import NotInstalled, running_postgresql, url_of

REQUIRE_PEERS = os.environ.get("HEMONODE_REQUIRE_PEERS") == "1"
SHARED = "hemonode"
"""The database that is emptied for each test: making a new one takes a hundred times as long."""


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The folder of a private PostgreSQL, which holds its socket; it ends with the tests."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(running_postgresql(fsync=False))
        except NotInstalled as error:
            if REQUIRE_PEERS:
                pytest.fail(str(error), pytrace=False)
            pytest.skip(str(error))
        _execute(folder, f"CREATE DATABASE {SHARED}")
        shared = Database(url_of(folder, SHARED))
        shared.upgrade()
        shared.close()
        yield folder


def _execute(folder: Path | str, *statements: str, database: str = "postgres") -> None:
    import psycopg  # an optional dependency: only sites with several machines need it

    with psycopg.connect(host=str(folder), user="hemonode", dbname=database, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without any schema: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'hemonode.db'}"
    folder = request.getfixturevalue("postgresql")
    _execute(folder, "DROP DATABASE IF EXISTS fresh", "CREATE DATABASE fresh")
    return url_of(folder, "fresh")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh database with the current schema: once SQLite, once PostgreSQL."""
    if request.param == "postgresql":
        folder = request.getfixturevalue("postgresql")
        tables = ", ".join(metadata.tables)
        _execute(folder, f"TRUNCATE {tables} RESTART IDENTITY", database=SHARED)
        return url_of(folder, SHARED)
    database = Database(f"sqlite:///{tmp_path / 'hemonode.db'}")
    database.upgrade()
    database.close()
    return database.url


@pytest.fixture
def either_database(database_url: str) -> Iterator[Database]:
    """A fresh database with the current schema: once SQLite, once PostgreSQL."""
    database = Database(database_url)
    yield database
    database.close()
