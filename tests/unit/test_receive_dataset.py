"""What a received data set says about itself, and what cannot be understood."""

from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO
from typing import Any

import pydicom.config
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
)

from node.errors import CannotUnderstand
from node.receive.dataset import LARGEST_INFLATED, Described, describe
from tests.receiving import a_slice, encoded, facts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


@pytest.fixture(autouse=True)
def values_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the receiving process, where pydicom is told not to comment on values."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)


def described(data: bytes, syntax: str = ExplicitVRLittleEndian) -> Described:
    return describe(BytesIO(data), transfer_syntax_uid=syntax, facts=facts)


def text(header: dict[str, Any], tag: str) -> Any:
    return header[tag]["Value"][0]


@pytest.mark.parametrize("syntax", NATIVE)
def test_identity_and_header_are_read_in_every_native_syntax_and_pixels_are_not(syntax: str) -> None:
    found = described(encoded(a_slice(7), syntax), syntax)
    assert found.sop_instance_uid.endswith(".7")
    assert (found.study_uid, found.series_uid) == ("1.2.826.0.1.99.1", "1.2.826.0.1.99.1.1")
    assert found.facts == {"rows": 16, "pixels_seen": False}
    assert text(found.header, "00100020") == "P1"


@pytest.mark.parametrize(
    ("charset", "name", "expected"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎", {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}),
        ("ISO_IR 126", "Διονυσιος", {"Alphabetic": "Διονυσιος"}),
        ("ISO_IR 127", "قباني^لنزار", {"Alphabetic": "قباني^لنزار"}),
        ("ISO_IR 144", "Люкceмбypг", {"Alphabetic": "Люкceмбypг"}),
        ("ISO_IR 100", "Buc^Jérôme", {"Alphabetic": "Buc^Jérôme"}),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东", {"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小东"}),
        ("GB18030", "Wang^XiaoDong=王^小东", {"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小东"}),
    ],
)
def test_names_survive_in_unicode_in_every_character_set(
    charset: str | list[str], name: str, expected: dict[str, str]
) -> None:
    header = described(encoded(a_slice(SpecificCharacterSet=charset, PatientName=name))).header
    assert text(header, "00100010") == expected


def test_a_name_in_latin_1_without_a_character_set_and_one_with_an_unknown_set_are_still_read() -> None:
    latin = encoded(a_slice(PatientName="XXXX")).replace(b"XXXX", "Jörg".encode("latin-1"))
    assert text(described(latin).header, "00100010") == {"Alphabetic": "Jörg"}
    unknown = encoded(a_slice(SpecificCharacterSet="ISO_IR 100")).replace(b"ISO_IR 100", b"KLINGON   ")
    assert text(described(unknown).header, "00100010") == {"Alphabetic": "Doe^Jane"}


def test_values_against_the_standard_do_not_keep_an_image_out() -> None:
    odd = a_slice(PatientID="P" * 100, StudyDescription="D" * 200)
    data = encoded(odd).replace(b"20260101", b"1.1.2026")
    assert text(described(data).header, "00080020") == "1.1.2026"


def test_uids_with_leading_zeros_or_padding_are_accepted() -> None:
    data = encoded(a_slice(SeriesInstanceUID="1.2.003.0004")).replace(b"1.2.003.0004", b"1.2.003.04 \0")
    assert described(data).series_uid == "1.2.003.04"


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_missing_uid_and_one_that_is_no_uid_are_named(keyword: str) -> None:
    with pytest.raises(CannotUnderstand, match=f"{keyword} is missing"):
        described(encoded(a_slice(1, **dict[str, Any]({keyword: None}))))
    placeholder = "1" * 12
    data = encoded(a_slice(1, **dict[str, Any]({keyword: placeholder})))
    with pytest.raises(CannotUnderstand, match=f"{keyword} is not a UID"):
        described(data.replace(placeholder.encode(), b"../../passwd"))


@pytest.mark.parametrize("syntax", NATIVE)
def test_a_data_set_that_breaks_off_within_its_pixels_is_refused(syntax: str) -> None:
    with pytest.raises(CannotUnderstand, match="breaks off"):
        described(encoded(a_slice(), syntax)[:-8], syntax)


def test_a_data_set_that_breaks_off_within_a_header_element_is_refused() -> None:
    whole = encoded(a_slice())
    with pytest.raises(CannotUnderstand, match="breaks off"):
        described(whole[: whole.index(b"MONOCHROME2") + 4])


def test_a_data_set_that_breaks_off_within_a_sequence_is_refused() -> None:
    item = Dataset()
    item.CodeMeaning = "meaning"
    dataset = a_slice(PixelData=None, ContentSequence=Sequence([item, item]))
    dataset["ContentSequence"].is_undefined_length = True
    whole = encoded(dataset)
    assert described(whole)
    with pytest.raises(CannotUnderstand):
        described(whole[:-20])


def test_compressed_pixels_must_end_with_their_delimiter() -> None:
    dataset = a_slice(PixelData=encapsulate([b"\1\2" * 100, b"\3\4" * 100]))
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    whole = encoded(dataset, JPEGLosslessSV1)
    assert described(whole, JPEGLosslessSV1).facts["rows"] == 16
    for cut in (4, 12, 150, 250):
        with pytest.raises(CannotUnderstand, match="breaks off within its pixels"):
            described(whole[:-cut], JPEGLosslessSV1)


def test_a_deflated_data_set_that_would_fill_the_memory_is_refused() -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = b"\0" * (1 << 24)
    bomb = b"".join(deflate.compress(block) for _ in range(LARGEST_INFLATED // len(block) + 1)) + deflate.flush()
    assert len(bomb) < 2_000_000
    with pytest.raises(CannotUnderstand, match="too large"):
        described(bomb, DeflatedExplicitVRLittleEndian)


def test_a_thousand_nested_sequences_are_refused_and_not_followed_into_the_ground() -> None:
    opened = struct.pack("<HHLHHL", 0x0040, 0xA730, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(CannotUnderstand):
        described(opened * 5000, ImplicitVRLittleEndian)


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64])
def test_what_is_not_a_data_set_cannot_be_understood(data: bytes) -> None:
    for syntax in NATIVE:
        with pytest.raises(CannotUnderstand):
            described(data, syntax)


def test_a_data_set_with_random_damage_is_described_or_refused_and_nothing_else() -> None:
    rng = random.Random(4)
    whole = encoded(a_slice(SpecificCharacterSet="ISO_IR 192"))
    outcomes = set()
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            described(bytes(damaged))
            outcomes.add("described")
        except CannotUnderstand:
            outcomes.add("refused")
    assert outcomes == {"described", "refused"}


def test_facts_that_cannot_be_made_mean_that_the_header_cannot_be_read() -> None:
    def failing(_dataset: Dataset) -> dict[str, Any]:
        raise ValueError("Doe^Jane")

    with pytest.raises(CannotUnderstand) as caught:
        describe(BytesIO(encoded(a_slice())), transfer_syntax_uid=ExplicitVRLittleEndian, facts=failing)
    assert "Doe" not in str(caught.value)
