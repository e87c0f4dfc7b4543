"""Storage SCP and Verification SCP: from pynetdicom's events to `Intake`, from its answers to DIMSE statuses.

========  =============================================  ==========================================================
Status    PS3.4 table B.2-1                              here
========  =============================================  ==========================================================
0000      Success                                        durable with its row; or it was already (nothing is changed)
B000      Warning: Coercion of Data Elements             another object has this UID: kept aside, see `intake.Taken`
A700      Refused: Out of resources                      disk below its watermark, disk or database failing; not kept
A900      Error: Data Set does not match SOP Class       command, presentation context and data set disagree; kept aside
C000      Error: Cannot understand                       unreadable, broken off, without UIDs or not UIDs; kept aside
========  =============================================  ==========================================================

Whatever is not 0000 carries an Error Comment (0000,0902) in plain words and without any value of the data set.

An object is held in memory while it arrives, up to ``[receive] spool_above_mb``; a larger one goes into a file, which
becomes the archive's own. Either way a full disk is answered with A700 rather than by a broken association.
"""

from __future__ import annotations

import functools
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import SOPClassCommonExtendedNegotiation
from pynetdicom.presentation import PresentationContext, build_context

from db.engine import Database
from node.config import Settings
from node.errors import CannotUnderstand, IntakeError
from node.log import log
from node.receive.archive import Archive
from node.receive.dataset import Facts
from node.receive.disk import Disk
from node.receive.files import Files
from node.receive.intake import KEPT_ASIDE_COMMENT, KEPT_ASIDE_STATUS, Intake, StoreRequest, Taken
from node.receive.reactor import Collected, Store
from node.receive.roll import association_id_of, failure
from node.receive.uids import (
    NATIVE,
    PYNETDICOMS_OWN,
    STORAGE_CLASSES,
    TRANSFER_SYNTAXES,
    is_storage_class,
    preferred_syntaxes,
)
from node.service import Service

STORAGE_SERVICE_CLASS = "1.2.840.10008.4.2"
VERIFICATION = "1.2.840.10008.1.1"
LO = 64
"""Characters of a Long String (PS3.5 6.2)."""


def service(*, settings: Settings, database: Database, facts: Facts) -> Service:
    """Storage and Verification, ready to be listened for; parameters as `intake_of`."""
    return service_of(intake_of(settings=settings, database=database, facts=facts))


def intake_of(*, settings: Settings, database: Database, facts: Facts) -> Intake:
    """What takes objects into the configured archive, which is prepared.

    Parameters
    ----------
    settings : Settings
        Names the archive and the limits of its disk.
    database : Database
        Where stored instances are recorded.
    facts : callable
        What the index keeps about an instance, see `node.receive.dataset.Facts`.
    """
    flush = settings.receive.flush
    archive = Archive(root=settings.archive, files=Files(flush=flush))
    archive.prepare()
    return Intake(archive=archive, database=database, disk=Disk.of(settings), facts=facts, flush=flush)


def service_of(intake: Intake) -> Service:
    """Storage and Verification in front of `intake`.

    The contexts are all that is known by name. Which of them, which private classes and which transfer syntax an
    association gets is decided when it is requested, from what it proposes.
    """
    storage = tuple((uid, TRANSFER_SYNTAXES) for uid in STORAGE_CLASSES)
    return Service(
        contexts=((VERIFICATION, NATIVE), *storage),
        handlers=(
            (evt.EVT_REQUESTED, _support_what_is_proposed, []),
            (evt.EVT_SOP_COMMON, _private_classes_are_storage, []),
            (evt.EVT_C_STORE, _c_store, [intake]),
        ),
        close=intake.close,
        spool=intake.spool,
        take=functools.partial(_answer_of, intake=intake),
    )


def _support_what_is_proposed(event: Event) -> None:
    """Every proposed storage class is supported, in transfer syntaxes ordered for this association."""
    association = event.assoc
    if association.is_rejected or association.is_aborted:
        return
    proposed: dict[str, list[tuple[str, ...]]] = {}
    for context in _proposals(event):
        uid = str(context.abstract_syntax)
        if is_storage_class(uid):
            proposed.setdefault(uid, []).append(tuple([str(syntax) for syntax in context.transfer_syntax]))
    others = [c for c in association.acceptor.supported_contexts if not is_storage_class(str(c.abstract_syntax))]
    # A class offered in unknown syntaxes only is kept with one that it lacks, so that the answer is "transfer syntaxes
    # not supported" (PS3.8 table 9-18) and not "abstract syntax not supported".
    association.acceptor.supported_contexts = others + [
        _supported(uid, tuple(contexts)) for uid, contexts in proposed.items()
    ]


@functools.lru_cache(maxsize=1024)
def _supported(uid: str, proposals: tuple[tuple[str, ...], ...]) -> PresentationContext:
    # Shared, as pynetdicom only reads it: a sender proposes a hundred in every association, and always the same.
    context = build_context(uid, list(preferred_syntaxes(proposals)) or [ImplicitVRLittleEndian])
    # Who retrieves by C-GET proposes to be the SCP itself (PS3.7 D.3.3.4); without a proposal the roles stay as usual.
    context.scu_role = context.scp_role = True
    return context


def _private_classes_are_storage(event: Event) -> dict[Any, SOPClassCommonExtendedNegotiation]:
    """For pynetdicom, which classes that it does not know belong to the Storage Service Class (PS3.7 D.3.3.6)."""
    items = {}
    for context in _proposals(event):
        uid = str(context.abstract_syntax)
        if context.abstract_syntax is not None and uid not in PYNETDICOMS_OWN and is_storage_class(uid):
            item = SOPClassCommonExtendedNegotiation()
            item.sop_class_uid = context.abstract_syntax
            item.service_class_uid = STORAGE_SERVICE_CLASS
            items[context.abstract_syntax] = item
    return items


def _proposals(event: Event) -> list[PresentationContext]:
    request = event.assoc.requestor.primitive
    return [] if request is None else request.presentation_context_definition_list


def _c_store(event: Event, intake: Intake) -> Dataset | int:
    """The status of a C-STORE of which pynetdicom tells."""
    request: Any = event.request
    store = Store(
        association=event.assoc,
        abstract_syntax_uid=str(event.context.abstract_syntax),
        transfer_syntax_uid=str(event.context.transfer_syntax),
        sop_class_uid=str(request.AffectedSOPClassUID),
        sop_instance_uid=str(request.AffectedSOPInstanceUID),
        data=request.DataSet,
    )
    status, comment = _answer_of(store, intake=intake)
    if not comment:
        return status
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment
    return answer


def _answer_of(store: Store, *, intake: Intake) -> tuple[int, str]:
    """Status and comment (LO) of a C-STORE: after everything is durable, and whatever happens."""
    known = {
        "association_id": association_id_of(store.association),
        "calling_ae": store.association.requestor.ae_title,
    }
    try:
        taken = intake.take(
            StoreRequest(
                abstract_syntax_uid=store.abstract_syntax_uid,
                transfer_syntax_uid=store.transfer_syntax_uid,
                sop_class_uid=store.sop_class_uid,
                sop_instance_uid=store.sop_instance_uid,
                data=store.data.taken() if isinstance(store.data, Collected) else store.data,
                **known,
            )
        )
    except IntakeError as error:
        if error.__cause__ is not None or error.status == 0xA700:
            log().error("not_stored", status=f"0x{error.status:04X}", reason=str(error), **failure(error), **known)
        return error.status, str(error)[:LO]
    except Exception as error:  # noqa: BLE001 — the association's boundary: the sender gets an answer, we the reason
        log().error("not_stored", status=f"0x{CannotUnderstand.status:04X}", **failure(error), **known)
        return CannotUnderstand.status, "internal error"
    log().debug("taken", taken=taken.value, sop_instance_uid=store.sop_instance_uid, **known)
    return (KEPT_ASIDE_STATUS, KEPT_ASIDE_COMMENT[:LO]) if taken is Taken.KEPT_ASIDE else (0x0000, "")
