"""DCMTK's findscu, movescu, getscu and termscu against the archive."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

from db.engine import Database
from node.config import RemoteSection
from tests.archive_node import CT, archive_node
from tests.receiving import a_slice, part_10, send, wait_until
from tests.worklist_node import a_free_port

pytestmark = pytest.mark.peer

STUDY = "1.2.826.0.1.99.1"
SLICES = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the clients write what they get."""
    (tmp_path / "got").mkdir()
    return tmp_path / "got"


@pytest.fixture
def own_port() -> int:
    """Where DCMTK's movescu listens for what is moved to it."""
    return a_free_port()


@pytest.fixture
def port(tmp_path: Path, database: Database, peer: Callable[..., None], own_port: int) -> Iterator[int]:
    """The port of an archive with two studies, which may be moved to movescu."""
    peer("findscu", "movescu", "getscu", "storescu", "dcmsend", "termscu")
    movescu = RemoteSection(name="movescu", ae_title="MOVESCU", address="127.0.0.1", port=own_port)
    with archive_node(tmp_path / "data", database, destinations=[movescu]) as node:
        slices = [a_slice(n) for n in range(1, SLICES + 1)]
        other = a_slice(1, StudyInstanceUID="1.2.2", SeriesInstanceUID="1.2.2.1", SOPInstanceUID="1.2.2.1.1",
                        PatientName="Müller^Jörg", PatientID="P2", SpecificCharacterSet="ISO_IR 100")  # fmt: skip
        assert set(send(node, *slices, other)) == {0}
        yield node.port


def run(program: str, port: int, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        [program, "-v", "-aec", "HEMONODE", *arguments, "127.0.0.1", str(port)],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode("latin-1")
    assert done.returncode == expect, said
    return said


def keys(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("-k", pair)]


def found(said: str, tag: str) -> list[str]:
    """The value of an attribute in each answer."""
    answers = said.partition("Find Response")[2]
    return [value.strip(" \0") for value in re.findall(rf"\({tag}\) \w\w \[?([^\]#\n]*?)\]? *#", answers)]


def test_findscu_finds_by_name_in_its_own_character_set(port: int) -> None:
    asked = keys("QueryRetrieveLevel=STUDY", "SpecificCharacterSet=ISO_IR 100", "StudyInstanceUID",
                 "PatientName=MÜLLER*", "NumberOfStudyRelatedInstances")  # fmt: skip
    done = subprocess.run(
        [b"findscu", b"-v", b"-S", b"-aec", b"HEMONODE", *(k.encode("latin-1") for k in asked), b"127.0.0.1",
         str(port).encode()],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode("latin-1")
    assert (found(said, "0020,000d"), found(said, "0010,0010")) == (["1.2.2"], ["Müller^Jörg"])
    assert found(said, "0020,1208") == ["1"]


def test_findscu_walks_down_the_patient_root(port: int) -> None:
    patients = run("findscu", port, "-P", *keys("QueryRetrieveLevel=PATIENT", "PatientID", "PatientName=doe*"))
    assert found(patients, "0010,0020") == ["P1"]
    studies = run("findscu", port, "-P", *keys("QueryRetrieveLevel=STUDY", "PatientID=P1", "StudyInstanceUID"))
    assert found(studies, "0020,000d") == [STUDY]
    images = run(
        "findscu", port, "-P",
        *keys("QueryRetrieveLevel=IMAGE", "PatientID=P1", f"StudyInstanceUID={STUDY}", f"SeriesInstanceUID={STUDY}.1",
              "SOPInstanceUID"),
    )  # fmt: skip
    assert len(found(images, "0008,0018")) == SLICES


def test_movescu_gets_the_study_sent_to_itself(port: int, own_port: int, folder: Path) -> None:
    said = run(
        "movescu", port, "-S", "-aet", "MOVESCU", "-aem", "MOVESCU", "+P", str(own_port), "-od", str(folder),
        *keys("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={STUDY}"),
    )  # fmt: skip
    assert "Received Final Move Response (Success)" in said
    assert len(list(folder.iterdir())) == SLICES


def test_movescu_is_told_that_the_destination_is_unknown(port: int, folder: Path) -> None:
    said = run(
        "movescu", port, "-S", "-aem", "ELSEWHERE", *keys("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={STUDY}"),
        expect=69,
    )  # fmt: skip
    assert "MoveDestinationUnknown" in said.replace(" ", "") or "0xa801" in said.lower()


def test_getscu_gets_the_study_over_its_own_association(port: int, folder: Path) -> None:
    run("getscu", port, "-S", "-od", str(folder), *keys("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={STUDY}"))
    got = [dcmread(path) for path in folder.iterdir()]
    assert {d.SOPInstanceUID for d in got} == {f"{STUDY}.1.{n}" for n in range(1, SLICES + 1)}
    assert all(d.PixelData == a_slice(int(d.InstanceNumber)).PixelData for d in got)


@pytest.mark.parametrize("program", ["storescu", "dcmsend"])
def test_what_dcmtk_sends_can_be_found_at_once(port: int, tmp_path: Path, program: str) -> None:
    new = a_slice(9, StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1", SOPInstanceUID="1.2.9.1.1", SOPClassUID=CT)
    (tmp_path / "new.dcm").write_bytes(part_10(new))
    subprocess.run(
        [program, "-aec", "HEMONODE", "127.0.0.1", str(port), str(tmp_path / "new.dcm")], timeout=60, check=True
    )
    said = run("findscu", port, "-S", *keys("QueryRetrieveLevel=STUDY", "StudyInstanceUID=1.2.9", "PatientID"))
    assert found(said, "0010,0020") == ["P1"]


def test_termscu_does_not_end_the_archive(port: int) -> None:
    subprocess.run(["termscu", "-aec", "HEMONODE", "127.0.0.1", str(port)], timeout=60, check=False)
    said = wait_until(lambda: run("findscu", port, "-S", *keys("QueryRetrieveLevel=STUDY", "StudyInstanceUID")))
    assert len(found(said, "0020,000d")) == 2
