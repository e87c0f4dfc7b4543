"""An instance's attributes in the DICOM JSON Model, its large values left where they are (PS3.18 F.2.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from db.dicom_json import Attributes, element
from node.log import log

LARGEST_INLINE = 1024
"""Bytes of a binary value that travel within the metadata; a larger one leaves its address."""
BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
PIXELS = ("7FE00010", "7FE00008", "7FE00009")


def described(path: Path, *, bulk_data: str) -> Attributes:
    """The attributes of the instance in this file.

    Parameters
    ----------
    bulk_data : str
        The address below which large values are found by their tags.
    """
    dataset = dcmread(path, stop_before_pixels=True)
    told = {f"{found.tag:08X}": told for found in _elements(dataset) if (told := _told(found, bulk_data)) is not None}
    told["00080005"] = element("CS", "ISO_IR 192")
    if "Rows" in dataset:
        told[PIXELS[0]] = {"vr": pixel_vr(dataset), "BulkDataURI": f"{bulk_data}/{PIXELS[0]}"}
    return dict(sorted(told.items()))


def pixel_vr(dataset: Dataset) -> str:
    """The VR of Pixel Data (PS3.5 8.2, A.1 to A.4)."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return "OB"
    return "OW" if (dataset.get("BitsAllocated") or 16) > 8 else "OB"


def _elements(dataset: Dataset) -> list[DataElement]:
    found = []
    for tag in dataset.keys():  # noqa: SIM118 - iterating a data set reads every value
        try:
            found.append(dataset[tag])
        except Exception as error:  # noqa: BLE001 - whatever pydicom meets in foreign bytes
            log().warning("attribute_unreadable", tag=f"{tag:08X}", error=type(error).__name__)
    return found


def _told(found: DataElement, bulk_data: str) -> dict[str, Any] | None:
    if found.VR in BINARY and isinstance(found.value, bytes) and len(found.value) > LARGEST_INLINE:
        return {"vr": found.VR, "BulkDataURI": f"{bulk_data}/{found.tag:08X}"}
    try:
        told: dict[str, Any] = found.to_json_dict(None, 0)
    except Exception as error:  # noqa: BLE001 - a value that is none of its type
        log().warning("attribute_unreadable", tag=f"{found.tag:08X}", error=type(error).__name__)
        return None
    return told
