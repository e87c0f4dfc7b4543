"""A private PostgreSQL for tests and benchmarks: made, started and gone again; as root too."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPTIONS = "-c listen_addresses='' -c unix_socket_directories='{folder}' -c max_connections=200"
GUARD = 'cat; "$0" -D "$1/data" -w -m immediate stop; rm -r "$1"'


class NotInstalled(Exception):
    """The server's programs or the driver psycopg are missing."""


@contextmanager
def running_postgresql(*, fsync: bool, within: Path | None = None) -> Iterator[str]:
    """The folder that holds the socket of a server of our own; it ends with the block, and when we are killed.

    Parameters
    ----------
    fsync : bool
        Whether it flushes: only then does it cost what a real one costs.
    within : pathlib.Path, optional
        Where its folder is made; the system's temporary directory when left out.

    Raises
    ------
    NotInstalled
        There is no server to start.
    """
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    if initdb is None or pg_ctl is None or importlib.util.find_spec("psycopg") is None:
        raise NotInstalled("a PostgreSQL server (`make peers` installs it) or its driver psycopg is missing")
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="hemonode-pg-", dir=within))  # short: a socket's path has 107 characters
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)

    who: dict[str, Any] = {"cwd": "/", "stdout": subprocess.DEVNULL}
    if user is not None:
        who |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data, options = str(folder / "data"), OPTIONS.format(folder=folder) + ("" if fsync else " -c fsync=off")
    make = [initdb, "-D", data, "-U", "hemonode", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
    start = [pg_ctl, "-D", data, "-w", "-t", "60", "-l", str(folder / "log"), "-o", options, "start"]
    # The guard ends the server when its input closes: also when we were killed.
    guard = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, pg_ctl, str(folder)], stdin=subprocess.PIPE, start_new_session=True, **who
    )
    try:
        subprocess.run(make, check=True, timeout=120, **who)
        subprocess.run(start, check=True, timeout=120, **who)
        yield str(folder)
    finally:
        guard.communicate(timeout=120)
    assert not folder.exists()


def url_of(folder: Path | str, name: str) -> str:
    """The URL of one of the server's databases."""
    return f"postgresql+psycopg://hemonode@/{name}?host={folder}"


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
