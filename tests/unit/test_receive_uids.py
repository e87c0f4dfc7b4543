"""What counts as a UID, a storage class, an acceptable transfer syntax."""

from __future__ import annotations

import pytest
from pydicom.uid import AllTransferSyntaxes
from pynetdicom.presentation import AllStoragePresentationContexts

from node.receive.uids import STORAGE_CLASSES, TRANSFER_SYNTAXES, is_storage_class, is_uid, preferred_syntaxes

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
JPEG_LOSSLESS, JPEG_LS = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"


@pytest.mark.parametrize(
    "text", ["1.2.840.10008.1.1", "2.25.329800735698586629295641978511506172918", "1.2.03.004", "1"]
)
def test_digits_and_single_dots_are_a_uid(text: str) -> None:
    assert is_uid(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../../etc",
        "1..2",
        ".1.2",
        "1.2.",
        "1.2/3",
        "1.2\0",
        "1.2\n",
        "1.2 ",
        "1.a",
        "٣.٤",
        "1." * 32 + "1",
    ],
)
def test_what_could_lead_out_of_the_archive_or_is_too_long_is_not_a_uid(text: str) -> None:
    assert not is_uid(text)


def test_every_storage_class_and_transfer_syntax_that_the_libraries_know_is_accepted() -> None:
    assert {str(context.abstract_syntax) for context in AllStoragePresentationContexts} <= set(STORAGE_CLASSES)
    assert {str(uid) for uid in AllTransferSyntaxes} <= set(TRANSFER_SYNTAXES)
    assert len(set(TRANSFER_SYNTAXES)) == len(TRANSFER_SYNTAXES)


def test_a_private_class_is_taken_for_storage_and_another_standard_service_is_not() -> None:
    assert is_storage_class("1.3.12.2.1107.5.9.1")
    assert not is_storage_class("1.2.840.10008.5.1.4.31")  # Modality Worklist
    assert not is_storage_class("not a uid")


@pytest.mark.parametrize(
    ("proposals", "preferred"),
    [
        ([[IMPLICIT, EXPLICIT]], (EXPLICIT, IMPLICIT)),
        ([[BIG, IMPLICIT]], (IMPLICIT, BIG)),
        ([[JPEG_LOSSLESS, IMPLICIT, EXPLICIT]], (JPEG_LOSSLESS, EXPLICIT, IMPLICIT)),
        ([[IMPLICIT, JPEG_LOSSLESS, EXPLICIT]], (EXPLICIT, IMPLICIT, JPEG_LOSSLESS)),
        ([[JPEG_LS], [JPEG_LOSSLESS, EXPLICIT]], (JPEG_LOSSLESS, JPEG_LS, EXPLICIT)),
        ([["1.2.3.4"]], ()),
    ],
)
def test_a_requestor_keeps_its_own_order_except_among_uncompressed_syntaxes(
    proposals: list[list[str]], preferred: tuple[str, ...]
) -> None:
    assert preferred_syntaxes(proposals) == preferred
