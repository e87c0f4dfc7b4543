"""What was received but does not stand in the archive: recorded once, shown, and told in the log."""

from __future__ import annotations

from dataclasses import dataclass

from db import audit, instances
from db.engine import Database
from db.states import SetAsideKind
from node.log import log


@dataclass(frozen=True, kw_only=True)
class Aside:
    """An object whose file is durable among those set aside. `status` is what its sender is told."""

    kind: SetAsideKind
    status: int
    reason: str
    path: str
    size: int
    digest: str
    association_id: str
    calling_ae: str
    sop_class_uid: str | None
    sop_instance_uid: str | None
    study_uid: str | None = None


def record(database: Database, aside: Aside) -> None:
    """The object stands among those set aside, durably, once however often it comes."""
    with database.write() as tx:
        known = instances.set_aside_digest_known(tx, sop_instance_uid=aside.sop_instance_uid, digest=aside.digest)
        if not known:
            instances.keep_aside(
                tx, kind=aside.kind, status=aside.status, reason=aside.reason, path=aside.path, size=aside.size,
                digest=aside.digest, association_id=aside.association_id, calling_ae=aside.calling_ae,
                sop_class_uid=aside.sop_class_uid, sop_instance_uid=aside.sop_instance_uid,
            )  # fmt: skip
            audit.record(
                tx, "set_aside", study_uid=aside.study_uid, kind=aside.kind, status=aside.status, reason=aside.reason,
                sop_instance_uid=aside.sop_instance_uid, calling_ae=aside.calling_ae,
            )  # fmt: skip
    log().warning(
        "set_aside", kind=str(aside.kind), status=f"0x{aside.status:04X}", reason=aside.reason, path=aside.path,
        sop_instance_uid=aside.sop_instance_uid, association_id=aside.association_id, calling_ae=aside.calling_ae,
    )  # fmt: skip
