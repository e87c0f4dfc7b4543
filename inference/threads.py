"""Torch's own threads, where they are in the way: work too small for them, and work in many small steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Torch computes with no more threads than that: where waiting for the others to wake up would take longer."""
    usual = torch.get_num_threads()
    torch.set_num_threads(min(threads, usual))
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def one_thread() -> AbstractContextManager[None]:
    """Torch computes with one thread."""
    return at_most(1)


def threads_of_one(name: str, count: int) -> ThreadPoolExecutor:
    """`count` threads, all of them started, in each of which torch computes with one thread.

    Left to itself, torch would give each of them as many helpers as the process may have cores, which wait for work by
    keeping those cores busy.
    """
    usual = torch.get_num_threads()
    everybody = Barrier(count + 1)
    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_alone)
    for _ in range(count):
        pool.submit(everybody.wait)
    everybody.wait()
    torch.set_num_threads(usual)  # some of torch's libraries know one number for all threads: the last one set
    return pool


def _alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread takes over the number last set anywhere when it first asks, and never again


def in_threads(work: Callable[[T], None], pieces: Sequence[T]) -> None:
    """`work` is done for every piece, several pieces at a time, each by one thread from beginning to end.

    For work in many short steps: with each step parted among threads, they would wait for one another after each, on a
    busy machine for longer than they work. What `work` raises is raised here, after the other threads are done.
    """
    count = min(torch.get_num_threads(), len(pieces))
    inference = torch.is_inference_mode_enabled()

    def share(number: int) -> None:
        with torch.inference_mode(inference):
            for piece in pieces[number::count]:
                work(piece)

    if count < 2:
        share(0)
        return
    with one_thread(), ThreadPoolExecutor(count - 1, thread_name_prefix="prepare") as others:
        shares = [others.submit(share, number) for number in range(1, count)]
        share(0)
        for done in shares:
            done.result()
