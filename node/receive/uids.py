"""Which text counts as a UID, and which UIDs are storage classes and transfer syntaxes that are accepted."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydicom.uid import (
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom.presentation import AllStoragePresentationContexts

STANDARD_ROOT = "1.2.840.10008."

NATIVE = tuple(
    str(uid)
    for uid in (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
    )
)
"""Uncompressed transfer syntaxes, the best to keep first: explicit VR preserves the type of private elements."""

_NEWER = (
    "1.2.840.10008.1.2.1.98",  # Encapsulated Uncompressed Explicit VR Little Endian
    "1.2.840.10008.1.2.4.110",  # JPEG XL Lossless
    "1.2.840.10008.1.2.4.111",  # JPEG XL JPEG Recompression
    "1.2.840.10008.1.2.4.112",  # JPEG XL
    "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression
)
TRANSFER_SYNTAXES = (*NATIVE, *(str(uid) for uid in AllTransferSyntaxes if str(uid) not in NATIVE), *_NEWER)
"""Every accepted transfer syntax. A data set is stored as it came; whether it can be decoded is asked later."""

RETIRED_STORAGE_CLASSES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{suffix}"
    for suffix in (
        "3",  # Ultrasound Multi-frame Image
        "5",  # Nuclear Medicine Image
        "6",  # Ultrasound Image
        "8",  # Standalone Overlay
        "9",  # Standalone Curve
        "10",  # Standalone Modality LUT
        "11",  # Standalone VOI LUT
        "12.3",  # X-Ray Angiographic Bi-Plane Image
        "129",  # Standalone PET Curve
    )
)
"""Retired (PS3.6 table A-1) but still sent by the archives that kept such objects."""

PYNETDICOMS_OWN = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
"""The storage classes that pynetdicom knows by itself."""

STORAGE_CLASSES = tuple(
    dict.fromkeys((*(str(c.abstract_syntax) for c in AllStoragePresentationContexts), *RETIRED_STORAGE_CLASSES))
)

_KNOWN_STORAGE = frozenset(STORAGE_CLASSES)
_KNOWN_SYNTAXES = frozenset(TRANSFER_SYNTAXES)
_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)


def is_uid(text: str) -> bool:
    """Whether `text` is a UID that may become part of a file name.

    PS3.5 9.1 allows 64 characters, components of digits separated by dots. Components with leading zeros are against
    the Standard and in daily use, so they pass; empty components (and with them ``.`` and ``..``) do not.
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def is_storage_class(uid: str) -> bool:
    """Whether an abstract syntax is taken for a storage class.

    Private ones are: makers send their own objects along with the images, in the same association, and a scanner
    that finds one context refused may fail the whole transfer.
    """
    return uid in _KNOWN_STORAGE or (is_uid(uid) and not uid.startswith(STANDARD_ROOT))


def preferred_syntaxes(proposals: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """The transfer syntaxes to accept for one abstract syntax, the most wanted first.

    Parameters
    ----------
    proposals : iterable of iterable of str
        The transfer syntaxes of each presentation context that proposes the abstract syntax.

    Returns
    -------
    tuple of str
        The requestor's own order, because it names first what it holds, and a compressed object is to be kept as it
        is; only among uncompressed syntaxes the order is ours. Contexts that leave a choice are heard before those
        with a single syntax, which take that one wherever it stands.
    """
    contexts = sorted((list(proposal) for proposal in proposals), key=lambda context: len(context) == 1)
    named = list(dict.fromkeys(uid for context in contexts for uid in context if uid in _KNOWN_SYNTAXES))
    native = [uid for uid in NATIVE if uid in named]
    compressed = [uid for uid in named if uid not in NATIVE]
    native_first = bool(named) and named[0] in NATIVE
    return tuple(native + compressed if native_first else compressed + native)
