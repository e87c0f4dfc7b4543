"""The associations in progress: how many, of whom, and how each ended; in memory and in the database."""

from __future__ import annotations

import socket
import threading
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pynetdicom.association import Association
from sqlalchemy.exc import SQLAlchemyError

from db import associations
from db.associations import ABORTED
from db.engine import Database
from node.config import Settings
from node.log import log

_NAME = "AcceptorThread@"
"""pynetdicom finds its acceptors by this part of their threads' names."""


MOST_PROCESSES = 16


def receiver_name(settings: Settings, *, number: int = 0) -> str:
    """What a receiving process is called: the same after a restart, different from every other one.

    `number` tells those apart that share one port; the first is called as if it were alone.
    """
    name = f"{socket.gethostname()[:48]}:{settings.node.port}"
    return f"{name}#{number}" if number else name


def association_id_of(association: Association) -> str:
    """The key under which the association stands in the database; set when it was admitted."""
    return association.name.removeprefix(_NAME)


def failure(error: BaseException) -> dict[str, str]:
    """What a log may say of an unexpected error: its type and place. Its message may quote patient data."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown"
    return {"error": type(error).__name__, "place": place}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who opened an association."""

    calling_ae: str
    called_ae: str
    address: str


@dataclass(frozen=True, kw_only=True)
class _Entry:
    association_id: str
    caller: Caller
    note: str = "aborted by this node"


class Roll:
    """The associations that were admitted and have not ended; may be used by any number of threads.

    Parameters
    ----------
    database : Database
        Where they are recorded.
    receiver : str
        The name of this receiving process.
    beside : sequence of str
        The names of those that share its port: limits are those of all together.
    """

    def __init__(self, *, database: Database, receiver: str, beside: Sequence[str] = ()) -> None:
        self._database = database
        self._receiver = receiver
        self._beside = tuple(beside)
        self._changed = threading.Condition()
        self._entries: dict[Association, _Entry] = {}

    def close_lost(self, *former: str) -> None:
        """What a former life of this receiver, or any of these that exist no more, left open stands as lost."""
        with self._database.write() as tx:
            lost = sum(associations.close_lost(tx, receiver=name) for name in (self._receiver, *former))
        if lost:
            log().warning("associations_lost", count=lost)

    def enter(self, association: Association, caller: Caller, *, maximum: int, maximum_of_ae: int) -> bool:
        """The association stands as open, in the database too; False, and nothing, where a limit is reached.

        Counted is every association from here to its end, so those still negotiating count as well.
        """
        entry = _Entry(association_id=uuid.uuid4().hex, caller=caller)
        with self._changed:
            same = sum(other.caller.calling_ae == caller.calling_ae for other in self._entries.values())
            if len(self._entries) >= maximum or same >= maximum_of_ae:
                return False
            self._entries[association] = entry
        try:
            with self._database.write() as tx:
                elsewhere = associations.callers_of(tx, receivers=self._beside) if self._beside else ()
                if self._is_full(caller, elsewhere, maximum=maximum, maximum_of_ae=maximum_of_ae):
                    self._strike(association)
                    return False
                associations.opened(
                    tx,
                    association_id=entry.association_id,
                    receiver=self._receiver,
                    calling_ae=caller.calling_ae,
                    called_ae=caller.called_ae,
                    address=caller.address,
                )
        except BaseException:
            self._strike(association)
            raise
        association.name = f"{_NAME}{entry.association_id}"
        log().info("association_opened", association_id=entry.association_id, **_who(caller))
        return True

    def _is_full(self, caller: Caller, elsewhere: Sequence[str], *, maximum: int, maximum_of_ae: int) -> bool:
        """Whether this association, which counts already, is one too many together with those of other processes."""
        with self._changed:
            callers = [*elsewhere, *(entry.caller.calling_ae for entry in self._entries.values())]
        return len(callers) > maximum or callers.count(caller.calling_ae) > maximum_of_ae

    def note(self, association: Association, note: str) -> None:
        """Should the association end now, `note` says why."""
        with self._changed:
            if association in self._entries:
                self._entries[association] = replace(self._entries[association], note=note)

    def leave(self, association: Association, outcome: str) -> None:
        """The association stands as ended; only the first end counts."""
        entry = self._strike(association)
        if entry is None:
            return
        detail = entry.note if outcome == ABORTED else None
        log().info("association_ended", association_id=entry.association_id, outcome=outcome, detail=detail)
        try:
            with self._database.write() as tx:
                associations.ended(tx, association_id=entry.association_id, outcome=outcome, detail=detail)
        except SQLAlchemyError as error:
            # It stays open in the database until this receiver starts again, when it will stand as lost.
            log().error("association_end_not_recorded", association_id=entry.association_id, **failure(error))

    def reap(self) -> None:
        """An association whose thread ended without a word stands as aborted."""
        with self._changed:
            dead = [association for association in self._entries if not association.is_alive()]
        for association in dead:
            self.note(association, "ended without a word")
            self.leave(association, ABORTED)

    def open(self) -> list[Association]:
        """The associations in progress."""
        with self._changed:
            return list(self._entries)

    def wait_until_empty(self, seconds: float) -> bool:
        """Whether no association is in progress, within this time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._entries, timeout=seconds)

    def _strike(self, association: Association) -> _Entry | None:
        with self._changed:
            entry = self._entries.pop(association, None)
            self._changed.notify_all()
            return entry


def _who(caller: Caller) -> dict[str, str]:
    return {"calling_ae": caller.calling_ae, "called_ae": caller.called_ae, "address": caller.address}
