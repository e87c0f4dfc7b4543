"""What acceptance tests may ask for: models, exams, a far side, and a running node of the real commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.far_side import FarSide
from tests.scanner import Exams
from tests.small_models import small_models


@pytest.fixture(scope="session")
def finding_everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small untrained models to which every study is positive."""
    return small_models(tmp_path_factory.mktemp("finding-everything"), threshold=0.0)


@pytest.fixture(scope="session")
def finding_nothing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small untrained models to which every study is negative."""
    return small_models(tmp_path_factory.mktemp("finding-nothing"), threshold=1.0)


@pytest.fixture(scope="session")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Exams:
    """Exams of 16 slices of 128² pixels, each with UIDs of its own."""
    return Exams(root=tmp_path_factory.mktemp("exams"))


@pytest.fixture(scope="module")
def far_side() -> Iterator[FarSide]:
    """A reading worklist and PACS that records what it is asked."""
    with FarSide().listening() as far:
        yield far
