"""Far systems that tests talk to: Orthanc as the PACS beside the node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tools.orthanc import Orthanc, running_orthanc


@pytest.fixture
def orthanc(tmp_path: Path, peer: Callable[..., None]) -> Iterator[Orthanc]:
    """Orthanc, freshly started on free loopback ports, empty, accepting from anybody."""
    peer("Orthanc")
    with running_orthanc(tmp_path / "orthanc") as running:
        yield running
