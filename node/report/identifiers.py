"""What a report is called and where it lies: UIDs and paths that follow from the study and its revision alone."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from pydicom.uid import UID

_NAMESPACE = uuid.UUID("8f9a5d0e-2f2b-5c1e-9a53-4d1c6c0b7a11")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")  # leading zeros are forbidden and sent all the same
_LONGEST_UID = 64


def derived_uid(*parts: object) -> UID:
    """A UID that is always the same for the same parts: a name-based UUID under 2.25 (PS3.5 B.2, RFC 4122 4.3)."""
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(str(part) for part in parts)).int}")


IMPLEMENTATION_CLASS_UID = derived_uid("implementation")


def report_uid(*, study_uid: str, revision: int) -> UID:
    """SOP Instance UID of the report on this revision."""
    return derived_uid("sr", study_uid, revision)


def series_uid(*, study_uid: str, revision: int) -> UID:
    """Series Instance UID of the report; a series each, for its description changes with what the report says."""
    return derived_uid("sr-series", study_uid, revision)


def segmentation_uid(*, study_uid: str, revision: int) -> UID:
    """SOP Instance UID of the segmentation on this revision."""
    return derived_uid("seg", study_uid, revision)


def segmentation_series_uid(*, study_uid: str, revision: int) -> UID:
    """Series Instance UID of the segmentation; a series each, as for reports."""
    return derived_uid("seg-series", study_uid, revision)


def tracking_uid(*, study_uid: str, subject: str, label: str) -> UID:
    """Tracking UID of what `subject` (a model, or the node) says about `label`: one through all revisions."""
    return derived_uid("tracking", study_uid, subject, label)


def device_uid(ae_title: str) -> UID:
    """Device Observer UID of the node with this AE title."""
    return derived_uid("device", ae_title)


def report_path(archive: Path, *, study_uid: str, revision: int) -> Path:
    """Where the report lies. Raises ``ValueError`` for a UID that is none: it will become part of a path."""
    return _folder(archive, study_uid) / f"{revision}.dcm"


def segmentation_path(archive: Path, *, study_uid: str, revision: int) -> Path:
    """Where the segmentation lies. Raises ``ValueError`` as `report_path` does."""
    return _folder(archive, study_uid) / f"{revision}-segmentation.dcm"


def _folder(archive: Path, study_uid: str) -> Path:
    if len(study_uid) > _LONGEST_UID or not _UID.fullmatch(study_uid):
        raise ValueError("not a Study Instance UID")
    return archive / "reports" / study_uid
