"""What the database says, as plain JSON values: status, studies, one study's story. Reads only."""

from __future__ import annotations

import datetime as dt
import shutil
from typing import Any

import sqlalchemy as sa

from db import (
    associations,
    audit,
    commitments,
    deliveries,
    instances,
    jobs,
    notifications,
    parts,
    results,
    studies,
    worklist,
)
from db.dicom_json import first, items, tag_of
from db.errors import UnknownStudy
from db.procedure_step import WorkItem
from db.schema import now
from db.states import DeliveryState
from db.studies import Study
from node.config import Settings

BEAT_EXPECTED_SECONDS = 10.0


def status(tx: sa.Connection, settings: Settings) -> dict[str, Any]:
    """The node at a glance: its parts, what waits, what was set aside or abandoned, and the room left on disk."""
    free = shutil.disk_usage(settings.node.data).free
    abandoned = deliveries.in_state(tx, DeliveryState.ABANDONED)
    return {
        "node": {"ae_title": settings.node.ae_title, "address": settings.node.address, "port": settings.node.port},
        "parts": [_part(part) for part in parts.all_parts(tx)],
        "instances": instances.count(tx),
        "studies": studies.count_by_state(tx),
        "jobs": jobs.count_by_state(tx),
        "deliveries": deliveries.count_by_state(tx),
        "notifications": notifications.count_by_state(tx),
        "commitments": commitments.count_by_state(tx),
        "commitments_abandoned": [_request(request) for request in commitments.abandoned(tx)],
        "abandoned": [_delivery(delivery) | {"study_uid": delivery.study_uid} for delivery in abandoned],
        "set_aside": instances.count_set_aside(tx),
        "latest_set_aside": [_set_aside(item) for item in instances.all_set_aside(tx, limit=5)],
        "associations_open": [a.calling_ae for a in associations.open_now(tx)],
        "disk_free_mb": free // 2**20,
        "disk_watermark_mb": settings.receive.disk_watermark_mb,
    }


def study_rows(tx: sa.Connection, *, limit: int) -> list[dict[str, Any]]:
    """The studies last received from, newest first, one row each."""
    return [_row(tx, study) for study in studies.latest(tx, limit=limit)]


def _row(tx: sa.Connection, study: Study) -> dict[str, Any]:
    result = results.find(tx, study_uid=study.study_uid, revision=study.revision)
    return {
        "study_uid": study.study_uid,
        "state": study.state.value,
        "revision": study.revision,
        "instances": instances.count(tx, study_uid=study.study_uid),
        "calling_ae": study.calling_ae,
        "first_received_at": _time(study.first_received_at),
        "last_received_at": _time(study.last_received_at),
        "outcome": result.outcome if result else None,
        "reason": result.payload["reason"] if result else None,
    }


def study_uid_like(tx: sa.Connection, text: str) -> str:
    """The one study whose UID is `text`, or begins or ends with it. Raises ``UnknownStudy`` for none or several."""
    text = text.removeprefix("…")
    found = studies.uids_like(tx, text)
    if len(found) == 1 or text in found:
        return text if text in found else found[0]
    raise UnknownStudy(f"{len(found) or 'no'} stud{'y' if not found else 'ies'} like {text!r}")


def story(tx: sa.Connection, study_uid: str) -> dict[str, Any]:
    """Everything known of one study: its row, timeline, series with reasons, results, deliveries.

    Raises ``UnknownStudy`` when there is no such study.
    """
    study = studies.find(tx, study_uid)
    if study is None:
        raise UnknownStudy(f"no study {study_uid}")
    told = results.of_study(tx, study_uid)
    return _row(tx, study) | {
        "completeness": study.completeness,
        "timeline": timeline(tx, study),
        "results": [{"made_at": _time(r.made_at), **r.payload} for r in told],
        "jobs": [_job(job) for job in jobs.of_study(tx, study_uid)],
        "deliveries": [_delivery(delivery) for delivery in deliveries.of_study(tx, study_uid)],
        "set_aside": [_set_aside(item) for item in instances.set_aside_of_study(tx, study_uid)],
    }


def timeline(tx: sa.Connection, study: Study) -> list[dict[str, Any]]:
    """What happened to a study, oldest first, each with the seconds since the event before it."""
    told = [(e.at, e.event, e.detail) for e in audit.timeline(tx, study.study_uid)]
    last = study.last_received_at
    told.append((last, "last_instance", {"instances": instances.count(tx, study_uid=study.study_uid)}))
    told.sort(key=lambda item: item[0])
    before = [told[0][0], *(at for at, _, _ in told)]
    return [
        {"at": _time(at), "seconds": round((at - earlier).total_seconds(), 3), "event": event, **detail}
        for (at, event, detail), earlier in zip(told, before, strict=False)
    ]


def worklist_rows(tx: sa.Connection) -> list[dict[str, Any]]:
    """The reading worklist in reading order: HIGH first, then the longest waiting."""
    return [_item(item) for item in worklist.in_reading_order(tx, states=worklist.OPEN)]


def _item(item: WorkItem) -> dict[str, Any]:
    said = item.dataset
    requests = items(said, tag_of("ReferencedRequestSequence"))
    accession = first(requests[0], tag_of("AccessionNumber")) if requests else None
    name = first(said, tag_of("PatientName"))
    return {
        "priority": item.priority.value,
        "label": item.label,
        "state": item.state.value,
        "patient": name.get("Alphabetic") if isinstance(name, dict) else name,
        "patient_id": first(said, tag_of("PatientID")),
        "accession": accession,
        "since": _time(item.created_at),
        "study_uid": item.study_uid,
        "workitem_uid": item.uid,
    }


def _part(part: parts.Part) -> dict[str, Any]:
    silent = (now() - part.beat_at).total_seconds()
    return {
        "name": part.name,
        "pid": part.pid,
        "started_at": _time(part.started_at),
        "silent_seconds": round(silent, 1),
        "alive": silent < BEAT_EXPECTED_SECONDS,
        **part.detail,
    }


def _job(job: jobs.Job) -> dict[str, Any]:
    return {
        "revision": job.revision,
        "state": job.state.value,
        "attempts": job.attempts,
        "worker": job.owner,
        "error": job.error,
    }


def _delivery(delivery: deliveries.Delivery) -> dict[str, Any]:
    return {
        "revision": delivery.revision,
        "kind": delivery.kind.value,
        "destination": delivery.destination,
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "detail": delivery.detail,
        "error": delivery.error,
        "sop_instance_uid": delivery.sop_instance_uid,
        "sent_at": _time(delivery.sent_at),
        "confirmed_at": _time(delivery.confirmed_at),
    }


def _request(request: commitments.Request) -> dict[str, Any]:
    return {
        "transaction_uid": request.transaction_uid,
        "ae_title": request.ae_title,
        "instances": len(request.asked),
        "asked_at": _time(request.asked_at),
        "error": request.error,
    }


def _set_aside(item: instances.SetAside) -> dict[str, Any]:
    return {
        "at": _time(item.at),
        "kind": item.kind.value,
        "status": f"0x{item.status:04X}",
        "reason": item.reason,
        "calling_ae": item.calling_ae,
        "sop_instance_uid": item.sop_instance_uid,
        "path": item.path,
    }


def _time(value: dt.datetime | None) -> str | None:
    return None if value is None else value.isoformat(timespec="milliseconds")
