"""Threads that share one commit."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.receive.group import Group
from tests.receiving import wait_until


def test_whoever_comes_while_one_commit_runs_shares_the_next() -> None:
    committed: list[list[int]] = []
    entered, go_on = threading.Event(), threading.Event()

    def commit(items: Sequence[int]) -> list[int]:
        committed.append(list(items))
        if len(committed) == 1:
            entered.set()
            assert go_on.wait(20)
        return [item * 10 for item in items]

    group: Group[int, int] = Group(commit, most=64)
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(group.join, 0)
        assert entered.wait(20)
        others = [threads.submit(group.join, number) for number in range(1, 9)]
        wait_until(lambda: group.waiting == 8)
        go_on.set()
        assert [f.result(20) for f in (first, *others)] == [number * 10 for number in range(9)]
    assert [len(items) for items in committed] == [1, 8]


def test_no_group_is_larger_than_it_may_be_and_none_is_left_behind() -> None:
    sizes: list[int] = []

    def commit(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        return list(items)

    group: Group[int, int] = Group(commit, most=3)
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(group.join, range(500))) == list(range(500))
    assert sum(sizes) == 500
    assert max(sizes) <= 3


def test_one_that_fails_fails_alone_and_a_commit_that_raises_fails_for_all_of_its_group_only() -> None:
    def commit(items: Sequence[int]) -> list[int | Exception]:
        if 13 in items:
            raise OSError("all of them")
        return [ValueError("this one") if item == 7 else item for item in items]

    group: Group[int, int] = Group(commit, most=1)
    for item, error in ((7, ValueError), (13, OSError)):
        with pytest.raises(error):
            group.join(item)
        assert group.join(1) == 1
