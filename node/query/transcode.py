"""How a stored object leaves in a transfer syntax that the far side has accepted, its pixels bit for bit the same."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

PLAIN = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
"""What everything can be converted to that can be converted at all."""

_COMPRESSED = frozenset(
    map(str, (JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless, HTJ2KLosslessRPCL,
              RLELossless))
)  # fmt: skip
CONVERTIBLE = _COMPRESSED | {*PLAIN, str(DeflatedExplicitVRLittleEndian)}
"""Transfer syntaxes that lose nothing. What was compressed with loss leaves as it is or not at all: decoders differ."""


class CannotConvert(ValueError):
    """There is no accepted transfer syntax in which the object could leave unchanged."""


def outgoing(path: Path, *, stored_in: str, accepted: Collection[str]) -> Path | Dataset:
    """What to send of the file at `path`: the file itself where its transfer syntax is `accepted`, else a conversion.

    Raises
    ------
    CannotConvert
        The far side accepts nothing that would keep the pixels as they are.
    FileNotFoundError
        The file is gone.
    """
    if stored_in in accepted:
        return path
    to = next((syntax for syntax in PLAIN if syntax in accepted), None)
    if to is None or stored_in not in CONVERTIBLE:
        raise CannotConvert(f"stored in {stored_in}, which was not accepted")
    dataset = dcmread(path)
    if stored_in in _COMPRESSED:
        dataset.decompress(as_rgb=False, generate_instance_uid=False)
    converted = Dataset()
    converted.update(dataset)
    converted.file_meta = dataset.file_meta
    converted.file_meta.TransferSyntaxUID = UID(to)
    return converted
