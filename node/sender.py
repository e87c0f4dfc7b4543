"""Sends files to an application entity as a scanner or PACS would: `hemonode send` and `hemonode demo`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID
from pynetdicom import _config
from pynetdicom.presentation import PresentationContext, build_context

from node.config import RemoteSection
from node.errors import PeerRefused
from node.scu import associate, checked

VERIFICATION = "1.2.840.10008.1.1"
"""Verification SOP Class (PS3.4 A.4)."""

MOST_CONTEXTS = 128
"""Presentation context IDs are the odd numbers 1 to 255 (PS3.8 9.3.2.2)."""

_HEADER_TAGS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"]


@dataclass(frozen=True, kw_only=True)
class Sendable:
    """A file that can be sent as it is."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How one file fared. `error` is None when the far side has stored it."""

    file: Sendable
    error: str | None


def sendable(paths: Iterable[Path]) -> tuple[tuple[Sendable, ...], tuple[Path, ...]]:
    """Every DICOM file among `paths` (folders are searched through), and the files that are none."""
    found, other = [], []
    for path in _files(paths):
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
            found.append(
                Sendable(
                    path=path,
                    sop_class_uid=str(header.SOPClassUID),
                    sop_instance_uid=str(header.SOPInstanceUID),
                    study_uid=str(header.StudyInstanceUID),
                    transfer_syntax_uid=str(header.file_meta.TransferSyntaxUID),
                )
            )
        except (InvalidDicomError, AttributeError, OSError):
            other.append(path)
    return tuple(found), tuple(other)


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and p.name != "DICOMDIR")
        else:
            yield path


def send(
    remote: RemoteSection,
    files: Sequence[Sendable],
    *,
    own_ae_title: str,
    timeout: float,
    told: Callable[[Sent], None],
) -> tuple[Sent, ...]:
    """Every file was offered to `remote` over as few associations as the limit of contexts allows.

    Parameters
    ----------
    told : callable
        Called after each file, for progress.

    Raises
    ------
    PeerUnreachable
        There was no association, or it broke off; what had been sent until then was told.
    """
    outcomes: list[Sent] = []
    for group in _by_context(files):
        contexts = [build_context(UID(sop_class), UID(syntax)) for sop_class, syntax in sorted(_kinds(group))]
        outcomes.extend(_send_group(remote, group, contexts, own_ae_title=own_ae_title, timeout=timeout, told=told))
    return tuple(outcomes)


def _send_group(
    remote: RemoteSection,
    group: Sequence[Sendable],
    contexts: Sequence[PresentationContext],
    *,
    own_ae_title: str,
    timeout: float,
    told: Callable[[Sent], None],
) -> list[Sent]:
    outcomes = []
    # Sends the encoded data set straight from the file instead of decoding and encoding it again.
    _config.STORE_SEND_CHUNKED_DATASET = True
    with associate(remote, own_ae_title=own_ae_title, contexts=contexts, timeout=timeout) as association:
        for number, file in enumerate(group, start=1):
            error = None
            try:
                answer = association.send_c_store(file.path, msg_id=(number - 1) % 65535 + 1)
                checked(answer, doing="C-STORE", accept=(0x0000, 0xB000, 0xB006, 0xB007))
            except PeerRefused as refusal:
                error = str(refusal)
            except ValueError:
                error = "no presentation context accepted for this object and transfer syntax"
            outcomes.append(Sent(file=file, error=error))
            told(outcomes[-1])
    return outcomes


def _kinds(files: Iterable[Sendable]) -> set[tuple[str, str]]:
    return {(file.sop_class_uid, file.transfer_syntax_uid) for file in files}


def _by_context(files: Sequence[Sendable]) -> Iterable[list[Sendable]]:
    group: list[Sendable] = []
    kinds: set[tuple[str, str]] = set()
    for file in files:
        kind = (file.sop_class_uid, file.transfer_syntax_uid)
        if kind not in kinds and len(kinds) == MOST_CONTEXTS:
            yield group
            group, kinds = [], set()
        kinds.add(kind)
        group.append(file)
    if group:
        yield group


def echo(remote: RemoteSection, *, own_ae_title: str, timeout: float) -> None:
    """`remote` has answered a C-ECHO with success. Raises ``PeerUnreachable`` or ``PeerRefused``."""
    with associate(remote, own_ae_title=own_ae_title, contexts=[VERIFICATION], timeout=timeout) as association:
        checked(association.send_c_echo(), doing="C-ECHO")
