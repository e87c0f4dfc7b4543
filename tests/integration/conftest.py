"""A real PostgreSQL beside SQLite: what holds for one database has to hold for the other."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db.engine import Database
from db.schema import metadata

REQUIRE_PEERS = os.environ.get("HEMONODE_REQUIRE_PEERS") == "1"
OPTIONS = "-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off -c max_connections=200"
GUARD = 'cat; "$0" -D "$1/data" -w -m immediate stop; rm -r "$1"'
SHARED = "hemonode"
"""The database that is emptied for each test: making a new one takes a hundred times as long."""


def _program(name: str) -> str | None:
    # Debian keeps the server's programs out of PATH, one folder for each version.
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, versions)]))


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom the server runs as: it refuses to run as root."""
    if os.getuid() != 0:
        return None
    known = {user.pw_name: user for user in pwd.getpwall()}
    return known.get("postgres", known["nobody"])


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The folder of a private PostgreSQL, which holds its socket; it ends with the tests."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    driver = importlib.util.find_spec("psycopg")
    if initdb is None or pg_ctl is None or driver is None:
        message = "a PostgreSQL server (`make peers` installs it) or its driver psycopg is missing"
        if REQUIRE_PEERS:
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="hemonode-pg-"))  # short: a socket's path has at most 107 characters
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)

    who: dict[str, Any] = {"cwd": "/", "stdout": subprocess.DEVNULL}
    if user is not None:
        who |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data, options = str(folder / "data"), OPTIONS.format(folder=folder)
    make = [initdb, "-D", data, "-U", "hemonode", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
    start = [pg_ctl, "-D", data, "-w", "-t", "60", "-l", str(folder / "log"), "-o", options, "start"]
    # The guard ends the server when its input closes: also when the tests were killed.
    guard = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, pg_ctl, str(folder)], stdin=subprocess.PIPE, start_new_session=True, **who
    )
    try:
        subprocess.run(make, check=True, timeout=120, **who)
        subprocess.run(start, check=True, timeout=120, **who)
        _execute(folder, f"CREATE DATABASE {SHARED}")
        shared = Database(_url(folder, SHARED))
        shared.upgrade()
        shared.close()
        yield str(folder)
    finally:
        guard.communicate(timeout=120)
    assert not folder.exists()


def _url(folder: Path | str, name: str) -> str:
    return f"postgresql+psycopg://hemonode@/{name}?host={folder}"


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
    return _url(folder, "fresh")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh database with the current schema: once SQLite, once PostgreSQL."""
    if request.param == "postgresql":
        folder = request.getfixturevalue("postgresql")
        tables = ", ".join(metadata.tables)
        _execute(folder, f"TRUNCATE {tables} RESTART IDENTITY", database=SHARED)
        return _url(folder, SHARED)
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
