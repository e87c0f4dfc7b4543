"""The reading list as a Modality Worklist SCP for clients that know only that (PS3.4 K.6.1); it orders nothing."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from pynetdicom import evt
from pynetdicom.events import Event

from db import worklist
from db.dicom_json import Attributes, data_set, first, items, part, tag_of
from db.engine import Database
from db.procedure_step import COMMENTS, WorkItem
from db.states import WorkItemState
from node.query.dimse import SYNTAXES, Answered, found
from node.service import Service

FIND = "1.2.840.10008.5.1.4.31"
"""Modality Worklist Information Model - FIND (PS3.4 K.6.1.4)."""

MODALITY = "CT"
NOTICE = "Reading list: no acquisition is ordered."
TOGETHER = ((tag_of("ScheduledProcedureStepStartDate"), tag_of("ScheduledProcedureStepStartTime")),)
"""A range of dates with a range of times is one range (PS3.4 table K.6-1)."""

STATUS = {WorkItemState.SCHEDULED: "READY", WorkItemState.IN_PROGRESS: "STARTED"}
"""Scheduled Procedure Step Status (0040,0020): the patient has been examined; the images wait to be read."""


@dataclass(frozen=True, kw_only=True)
class _Worklist:
    """What the handler works on; `ae_title` stands as the scheduled station."""

    database: Database
    ae_title: str


def service(*, database: Database, ae_title: str) -> Service:
    """Modality Worklist over what is still to be read, in reading order.

    Parameters
    ----------
    ae_title : str
        This node's own; it is the Scheduled Station AE Title of every entry.
    """
    node = _Worklist(database=database, ae_title=ae_title)
    return Service(
        contexts=((FIND, SYNTAXES),),
        handlers=((evt.EVT_C_FIND, find, [node]),),
    )


def find(event: Event, node: _Worklist) -> Iterator[Answered]:
    """Answers C-FIND: the matching entries in reading order (PS3.4 K.4.1.3)."""

    def listed(_keys: Attributes) -> list[Attributes]:
        with node.database.read() as tx:
            open_items = worklist.in_reading_order(tx, states=worklist.OPEN)
        return [entry(item, ae_title=node.ae_title) for item in open_items]

    return found(event, listed, pairs=TOGETHER)


def entry(item: WorkItem, *, ae_title: str) -> Attributes:
    """A work item as an entry of the Modality Worklist (PS3.4 table K.6-1), marked as a reading."""
    held = item.dataset
    request = next(iter(items(held, tag_of("ReferencedRequestSequence"))), {})
    study_uid = first(held, tag_of("StudyInstanceUID")) or first(request, tag_of("StudyInstanceUID"))
    patient = ("PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientIDsSequence", "PatientBirthDate",
               "PatientSex", "AdmissionID")  # fmt: skip
    asked = ("AccessionNumber", "ReferringPhysicianName", "RequestingPhysician", "RequestedProcedureCodeSequence")
    return data_set(
        **{keyword: part(held, keyword) for keyword in patient},
        **{keyword: part(request, keyword) for keyword in asked},
        StudyInstanceUID=study_uid,
        RequestedProcedureID=first(request, tag_of("RequestedProcedureID")) or _step_id(item),
        RequestedProcedureDescription=f"Reading: {item.label}"[:64],
        RequestedProcedurePriority=str(item.priority),
        RequestedProcedureComments=" ".join(filter(None, (NOTICE, first(held, COMMENTS)))),
        ScheduledProcedureStepSequence=_step(item, ae_title),
    )


def _step(item: WorkItem, ae_title: str) -> Attributes:
    start = _local(item)
    return data_set(
        ScheduledStationAETitle=ae_title,
        ScheduledProcedureStepStartDate=start.strftime("%Y%m%d"),
        ScheduledProcedureStepStartTime=start.strftime("%H%M%S"),
        Modality=MODALITY,
        ScheduledPerformingPhysicianName=None,
        ScheduledProcedureStepDescription=f"Reading: {item.label}"[:64],
        ScheduledProcedureStepID=_step_id(item),
        ScheduledProcedureStepStatus=STATUS[item.state],
        CommentsOnTheScheduledProcedureStep=first(item.dataset, COMMENTS),
    )


def _local(item: WorkItem) -> dt.datetime:
    # Dates and times of a Modality Worklist have no offset: they are local (PS3.5 table 6.2-1).
    return item.created_at.astimezone()


def _step_id(item: WorkItem) -> str:
    return f"READ{hashlib.sha256(item.uid.encode()).hexdigest()[:12].upper()}"  # VR SH: 16 characters
