"""What the transactions work on, and how a request names what it wants of it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from db.engine import Database
from db.holdings import Selection
from node.config import Settings
from node.errors import RequestRefused
from node.receive.intake import Intake
from node.receive.uids import is_uid


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is served. `receiver` is what this process is called among those that receive."""

    database: Database
    settings: Settings
    intake: Intake
    receiver: str


def served(request: HTTPConnection) -> Served:
    """What is served to this request."""
    found: Served = request.app.state.served
    return found


def uid_in(request: HTTPConnection, name: str) -> str:
    """The UID of this name in the address, empty where the address has none.

    Raises
    ------
    RequestRefused
        It is not a UID (400).
    """
    uid = str(request.path_params.get(name, ""))
    if uid and not is_uid(uid):
        raise RequestRefused(f"{name} is not a UID", status=400)
    return uid


def selection_of(request: HTTPConnection) -> Selection:
    """The instances below the study, series or instance that the address names."""
    return Selection(
        study_uids=_given(uid_in(request, "study")),
        series_uids=_given(uid_in(request, "series")),
        sop_instance_uids=_given(uid_in(request, "instance")),
    )


def _given(uid: str) -> tuple[str, ...]:
    return (uid,) if uid else ()
