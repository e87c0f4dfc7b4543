"""What an operator may change by command."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from db import commitments, deliveries, fetches, studies
from db.states import StudyState
from node.views import study_uid_like


def requeue(tx: sa.Connection, text: str) -> dict[str, Any]:
    """Abandoned deliveries are due again; a parked or archived study is read anew. Says what was done.

    Without a study named, those are told as well who asked for commitment and could not be told.
    """
    study_uid = study_uid_like(tx, text) if text else None
    count = deliveries.requeue(tx, study_uid=study_uid)
    study = studies.find(tx, study_uid) if study_uid else None
    revision = None
    if study is not None and study.state in (StudyState.FAILED, StudyState.ARCHIVED):
        fetches.read_after_all(tx, study.study_uid)
        revision = studies.reopen(tx, study.study_uid, reason="requeued by an operator")
    reports = 0 if study_uid else commitments.requeue(tx)
    return {"study_uid": study_uid, "deliveries": count, "commitments": reports, "revision": revision}
