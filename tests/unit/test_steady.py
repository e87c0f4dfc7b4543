"""Whoever holds up an association's own thread goes on only when it is held."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association

from node.steady import RELIED_ON, Checkpoint

SOON, LONG = 0.2, 10.0


class Turns(Association):
    """Goes through a checkpoint and works, again and again; holds in its work while it is told to."""

    def __init__(self) -> None:
        super().__init__(ApplicationEntity("TEST"), "requestor")
        self.daemon = True
        self.checkpoint = Checkpoint(self)
        self.may_work = threading.Event()
        self.working = threading.Event()
        self.may_work.set()
        self.ended = False
        self.turns = 0

    def run(self) -> None:
        while not self.ended:
            self.checkpoint.wait()
            self.working.set()
            self.may_work.wait(LONG)
            self.turns += 1


@pytest.fixture
def turns() -> Iterator[Turns]:
    thread = Turns()
    yield thread
    thread.ended = True
    thread.may_work.set()
    thread.checkpoint.set()
    if thread.ident is not None:
        thread.join(LONG)


def closing(turns: Turns) -> threading.Thread:
    closer = threading.Thread(target=turns.checkpoint.clear, daemon=True)
    closer.start()
    return closer


def test_closing_waits_for_a_thread_that_has_just_gone_through(turns: Turns) -> None:
    turns.may_work.clear()
    turns.start()
    assert turns.working.wait(LONG)
    closer = closing(turns)
    closer.join(SOON)
    assert closer.is_alive()
    turns.may_work.set()
    closer.join(LONG)
    assert not closer.is_alive()
    assert turns.turns == 1


def test_a_thread_that_was_let_go_and_is_held_again_does_nothing_more(turns: Turns) -> None:
    turns.start()
    for _ in range(20):
        turns.checkpoint.clear()
        turns.checkpoint.set()
        turns.checkpoint.clear()
        turns.working.clear()
        assert not turns.working.wait(SOON / 10)
        turns.checkpoint.set()
        assert turns.working.wait(LONG)


def test_it_is_held_whatever_a_thread_says_that_served_an_event_report(turns: Turns) -> None:
    turns.start()
    turns.checkpoint.clear()
    assert turns._is_paused
    turns._is_paused = False
    deadline = time.monotonic() + LONG
    while not turns._is_paused:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_closing_does_not_wait_for_a_thread_that_has_ended(turns: Turns) -> None:
    turns.start()
    turns.ended = True
    turns.join(LONG)
    closer = closing(turns)
    closer.join(LONG)
    assert not closer.is_alive()


def test_the_thread_itself_may_close_it() -> None:
    done: list[bool] = []

    class Closing(Turns):
        def run(self) -> None:
            self.checkpoint.clear()
            done.append(True)

    thread = Closing()
    thread.start()
    thread.join(LONG)
    assert done == [True]


def test_pynetdicom_still_has_what_is_replaced() -> None:
    plain = Association(ApplicationEntity("TEST"), "requestor")
    assert [name for name in RELIED_ON if not hasattr(plain, name)] == []
    wanted = {name for name in ("is_set", "set", "clear", "wait") if hasattr(plain._reactor_checkpoint, name)}
    assert wanted <= set(dir(Checkpoint))
