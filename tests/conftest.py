"""What every test may ask for: a fresh database, the real head CT, a system program used as a peer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from db.engine import Database
from node.log import log

REQUIRE_PEERS = os.environ.get("HEMONODE_REQUIRE_PEERS") == "1"


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    """A test that configures the log does so for itself: its captured stream is closed when the next one runs."""
    yield
    structlog.reset_defaults()
    log.cache_clear()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A fresh SQLite database with the current schema."""
    database = Database(f"sqlite:///{tmp_path / 'hemonode.db'}")
    database.upgrade()
    yield database
    database.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: small networks lose time by sharing work, and sums on two threads round differently."""
    import torch  # only the tests that train

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def head_ct() -> Path:
    """A folder with a real head CT, where one is at hand (HEMONODE_HEAD_CT names another)."""
    default = Path(__file__).parents[2] / "shared" / "data" / "head_ct_ge"
    folder = Path(os.environ.get("HEMONODE_HEAD_CT", default))
    if not folder.is_dir():
        pytest.skip("no real head CT at hand; HEMONODE_HEAD_CT names a folder")
    return folder


@pytest.fixture(scope="session")
def peer() -> Callable[..., None]:
    """``peer("storescu")`` skips the test where a program is missing, and fails it where every peer is required."""

    def require(*programs: str) -> None:
        missing = [program for program in programs if not _found(program)]
        if missing and REQUIRE_PEERS:
            pytest.fail(f"{', '.join(missing)} missing; `make peers` installs it", pytrace=False)
        if missing:
            pytest.skip(f"{', '.join(missing)} missing; `make peers` installs it")

    return require


def _found(program: str) -> bool:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return Path(program).exists() if "/" in program else shutil.which(program, path=path) is not None
