"""DCMTK's storescu, dcmsend and echoscu as scanner, archive and test button."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from pydicom import dcmread

from benchmarks import receive
from db import schema
from db.engine import Database
from node.config import Settings
from node.receive.scp import Scp
from tests.receiving import (
    a_slice,
    aside,
    data_set_of,
    digest_on_disk,
    listening,
    part_10,
    settings_of,
    stored,
    wait_until,
)

pytestmark = pytest.mark.peer
STUDY = "1.2.826.0.1.99.1"


@pytest.fixture(autouse=True)
def dcmtk(peer: Callable[..., None]) -> None:
    peer("storescu", "dcmsend", "echoscu", "dcmcjpeg")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path / "data", maximum_associations_per_ae=8)


@pytest.fixture
def scp(settings: Settings, database: Database) -> Iterator[Scp]:
    with listening(settings, database) as scp:
        yield scp


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    folder = tmp_path / "slices"
    folder.mkdir()
    for number in range(1, 21):
        (folder / f"{number}.dcm").write_bytes(part_10(a_slice(number)))
    return folder


def run(scp: Scp, program: str, *options: str, called: str = "HEMONODE") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(scp, program, *options, called=called), capture_output=True, text=True, timeout=120)


def command(scp: Scp, program: str, *options: str, called: str = "HEMONODE") -> list[str]:
    flags = [option for option in options if option.startswith(("-", "+"))]
    paths = [option for option in options if option not in flags]
    return [program, "-v", "-aec", called, "-aet", "CT1", *flags, "127.0.0.1", str(scp.port), *paths]


def ends(database: Database) -> list[tuple[str | None, str | None]]:
    with database.read() as tx:
        query = sa.select(schema.associations.c.outcome, schema.associations.c.detail).order_by("started_at")
        return [(row.outcome, row.detail) for row in tx.execute(query)]


def test_the_table_of_receivers_is_made(peer: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    peer("storescp", "gcc")
    sizes = ["--rounds", "1", "--images", "12", "--associations", "2", "--clients", "nodelay"]
    receive.main([*sizes, "--receivers", "dcmtk", "two", "sink"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Flush floor: ")
    ratios = [line.split(" | ")[-1] for line in lines if line.startswith(("| DCMTK", "| Hemonode", "| C socket"))]
    assert len(ratios) == 3
    assert ratios[0] == "1.00 |"


def test_echoscu_is_answered_and_rejected_with_the_right_reason(scp: Scp) -> None:
    assert run(scp, "echoscu").returncode == 0
    refused = run(scp, "echoscu", called="SOMEBODY")
    assert refused.returncode != 0
    assert "Called AE Title Not Recognized" in refused.stdout + refused.stderr


def test_storescu_sends_a_series_and_the_same_series_again(scp: Scp, slices: Path, database: Database) -> None:
    for _ in range(2):
        sent = run(scp, "storescu", "+sd", str(slices))
        assert sent.returncode == 0
        assert sent.stdout.count("Received Store Response (Success)") + sent.stderr.count("(Success)") == 20
    assert len(stored(database)) == 20
    wait_until(lambda: ends(database) == [("released", None)] * 2)


def test_eight_storescus_at_once_lose_nothing(scp: Scp, settings: Settings, tmp_path: Path, database: Database) -> None:
    processes = []
    for scanner in range(8):
        folder = tmp_path / f"scanner{scanner}"
        folder.mkdir()
        for number in range(20):
            (folder / f"{number}.dcm").write_bytes(part_10(a_slice(scanner * 100 + number)))
        processes.append(subprocess.Popen(command(scp, "storescu", "+sd", str(folder)), stdout=-3, stderr=-3))
    assert [process.wait(timeout=120) for process in processes] == [0] * 8
    rows = stored(database)
    assert len(rows) == 160
    assert all(digest_on_disk(settings.archive, row) == row.digest for row in rows)


def test_dcmsend_delivers_many_transfer_syntaxes_unchanged(scp: Scp, settings: Settings) -> None:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    names = (
        "CT_small.dcm",
        "SC_rgb_rle.dcm",
        "693_J2KI.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "JPGExtended.dcm",
        "image_dfl.dcm",
        "liver_1frame.dcm",
        "test-SR.dcm",
        "waveform_ecg.dcm",
    )
    sent = run(scp, "dcmsend", "--decompress-never", "--no-halt", *(str(folder / name) for name in names))
    assert sent.returncode == 0, sent.stdout + sent.stderr
    arrived = {str(file.SOPInstanceUID): file for file in map(dcmread, settings.archive.rglob("*.dcm"))}
    for name in names:  # dcmsend rewrites sequences and group lengths, so not every byte is the file's
        original = dcmread(folder / name)
        copy = arrived.pop(str(original.SOPInstanceUID))
        assert copy.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID, name
        assert copy.get("PixelData") == original.get("PixelData"), name
    assert arrived == {}


@pytest.mark.parametrize("proposal", ["two contexts", "one context"])
def test_a_jpeg_lossless_file_stays_as_it_is_however_storescu_proposes_it(
    proposal: str, scp: Scp, settings: Settings, slices: Path, tmp_path: Path, database: Database
) -> None:
    file = tmp_path / "lossless.dcm"
    subprocess.run(["dcmcjpeg", str(slices / "1.dcm"), str(file)], check=True, timeout=60)
    options = ["-xs"] + (["--combine"] if proposal == "one context" else [])
    assert run(scp, "storescu", *options, str(file)).returncode == 0
    (row,) = stored(database)
    assert row.transfer_syntax_uid == "1.2.840.10008.1.2.4.70"
    assert row.digest == hashlib.sha256(data_set_of(file.read_bytes())).hexdigest()


def test_a_conflict_is_a_warning_to_storescu_and_a_broken_file_an_error(
    scp: Scp, tmp_path: Path, database: Database
) -> None:
    first, second = tmp_path / "1.dcm", tmp_path / "2.dcm"
    first.write_bytes(part_10(a_slice()))
    second.write_bytes(part_10(a_slice(PatientName="Other^Name")))
    sent = run(scp, "storescu", "-nh", str(first), str(second))
    assert "Warning" in sent.stdout + sent.stderr
    assert sent.returncode == 0
    assert len(stored(database)) == 1
    second.write_bytes(part_10(a_slice(2, StudyInstanceUID=None)))
    sent = run(scp, "storescu", "-nh", str(second))
    assert "CannotUnderstand" in (sent.stdout + sent.stderr).replace(" ", "")
    assert {kept.status for kept in aside(database)} == {0xB000, 0xC000}


def test_storescu_that_aborts_leaves_what_was_acknowledged(scp: Scp, slices: Path, database: Database) -> None:
    run(scp, "storescu", "--abort", "+sd", str(slices))
    assert len(stored(database)) == 20
    wait_until(lambda: ends(database) == [("aborted", "aborted by the peer")])


def test_storescu_killed_while_it_sends_is_an_aborted_association(
    scp: Scp, tmp_path: Path, settings: Settings, database: Database
) -> None:
    big = a_slice(PixelData=b"\0" * 64_000_000)
    file = tmp_path / "big.dcm"
    file.write_bytes(part_10(big))
    sending = [*command(scp, "storescu", str(file)), "--repeat", "50"]
    process = subprocess.Popen(sending, stdout=-3, stderr=-3)
    wait_until(lambda: ends(database))
    process.kill()
    process.wait()
    wait_until(lambda: [outcome for outcome, _ in ends(database)] == ["aborted"])
    for row in stored(database):
        assert digest_on_disk(settings.archive, row) == row.digest
