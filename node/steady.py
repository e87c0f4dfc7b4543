"""A client's association whose answers reach who asked: mends three races in pynetdicom.

A rejection may be read, and the connection closed with it, before whoever asked has looked whether there is one. That
is then taken for a connection that was never made, and the answer stays where it lies (`rejection_of`).

Each ``send_…()`` of pynetdicom holds up the association's own thread, so that this does not take the answer away, and
then waits until it is held. But that thread says that it is held before it stands at its checkpoint, and also when it
walks right through. On a busy machine it then takes the answer, drops it as unexpected, and whoever asked waits until
his time is up.

An N-EVENT-REPORT is served by a thread of its own, which says at its end that the association's thread is not held,
whether it is or not: whoever waits for that, to release the association say, waits forever.
"""

from __future__ import annotations

import threading
from typing import cast

from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE

LOOK_SECONDS = 0.05
"""Between two looks whether the association's thread is still there."""

RELIED_ON = ("_is_paused", "_reactor_checkpoint")
"""What is private of pynetdicom here; a test looks whether it is still there."""


REJECTED = (0x01, 0x02)
"""Results of an A-ASSOCIATE-RJ: for good, for now (PS3.8 table 9-21)."""


def rejection_of(association: Association) -> A_ASSOCIATE | None:
    """What the far side answered, where it rejected the association that was just requested; else None."""
    answer = association.acceptor.primitive if association.is_rejected else association.dul.peek_next_pdu()
    return answer if isinstance(answer, A_ASSOCIATE) and answer.result in REJECTED else None


def steady(association: Association) -> Association:
    """The association itself; from now on its own thread is really held while somebody waits for an answer."""
    association._reactor_checkpoint = cast(threading.Event, Checkpoint(association))
    return association


class Checkpoint:
    """Where the association's thread is held while it is closed; takes the place of pynetdicom's ``threading.Event``.

    Unlike with an event, whoever closes it goes on only when that thread stands before it, or has ended. While it is
    held, the association says so, whatever others make it say.
    """

    def __init__(self, held_up: Association) -> None:
        self._held_up = held_up
        self._changed = threading.Condition()
        self._open = True
        self._stands = False

    def is_set(self) -> bool:
        """Whether it is open."""
        return self._open

    def set(self) -> None:
        """It is open."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def clear(self) -> None:
        """It is closed, and the thread stands before it; the thread itself is not waited for by itself."""
        with self._changed:
            self._open = False
            if threading.current_thread() is self._held_up:
                return
            while not self._stands and self._held_up.is_alive():
                self._changed.wait(LOOK_SECONDS)
            self._held_up._is_paused = True

    def wait(self) -> bool:
        """It has been passed, when it is open."""
        with self._changed:
            self._stands = True
            self._changed.notify_all()
            while not self._open:
                self._held_up._is_paused = True
                self._changed.wait(LOOK_SECONDS)
            self._stands = False
        return True
