"""Outgoing associations: opened with every timeout set, closed in every case, failures as exceptions."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context, build_role

from node.config import RemoteSection
from node.errors import PeerRefused, PeerUnreachable
from node.steady import rejection_of, steady

DEFAULT_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
MAXIMUM_PDU_SIZE = 131072


@contextmanager
def associate(
    remote: RemoteSection,
    *,
    own_ae_title: str,
    contexts: Sequence[PresentationContext | str],
    timeout: float,
    scp_roles: Sequence[str] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Association]:
    """An established association with `remote`, released when the block ends and aborted when it raises.

    Parameters
    ----------
    own_ae_title : str
        The calling AE title, unless `remote` names another.
    contexts : sequence
        Presentation contexts, or abstract syntax UIDs (offered in explicit and implicit VR little endian).
    timeout : float
        Seconds for connecting, for the association, for each DIMSE answer and for silence on the network.
    scp_roles : sequence of str
        Abstract syntaxes for which this side proposes to be SCP as well (PS3.7 D.3.3.4).
    handlers : sequence
        What pynetdicom binds, for what the far side may ask in its turn.

    Raises
    ------
    PeerUnreachable
        Nobody listens, the association was rejected or aborted, or no context was accepted.
    """
    entity = ApplicationEntity(remote.calling_ae_title or own_ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = timeout
    offered = [build_context(c, list(DEFAULT_SYNTAXES)) if isinstance(c, str) else c for c in contexts]
    where = f"{remote.ae_title} at {remote.address}:{remote.port}"
    try:
        association = entity.associate(
            remote.address,
            remote.port,
            contexts=offered,
            ae_title=remote.ae_title,
            max_pdu=MAXIMUM_PDU_SIZE,
            ext_neg=[build_role(uid, scp_role=True, scu_role=True) for uid in scp_roles],
            evt_handlers=list(handlers),
        )
    except (OSError, RuntimeError) as error:
        raise PeerUnreachable(f"{where}: {error}") from error
    if not association.is_established:
        raise PeerUnreachable(f"{where}: {_why(association)}")
    without_delay(association)
    try:
        yield steady(association)
    except BaseException:
        association.abort()
        raise
    association.release()


def checked(answer: Dataset | None, *, doing: str, accept: Sequence[int] = (0x0000,)) -> int:
    """The status of a DIMSE answer when it is in `accept`.

    Raises
    ------
    PeerUnreachable
        There was no answer: timed out, aborted or lost.
    PeerRefused
        The status is another one; it is in the exception.
    """
    if answer is None or "Status" not in answer:
        raise PeerUnreachable(f"{doing}: no answer")
    status = int(answer.Status)
    if status in accept:
        return status
    comment = str(answer.get("ErrorComment", "") or "")
    raise PeerRefused(f"{doing}: status 0x{status:04X}{': ' + comment if comment else ''}", status=status)


def _why(association: Association) -> str:
    rejection = rejection_of(association)
    if rejection is not None:
        return f"association rejected: {rejection.reason_str}"
    if association.is_aborted:
        return "no connection, association aborted, or no presentation context accepted"
    return "no association"


def without_delay(association: Association) -> None:
    """Small messages leave at once."""
    # Without it Nagle's algorithm and delayed acknowledgement add 40 ms to every message.
    transport = association.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
