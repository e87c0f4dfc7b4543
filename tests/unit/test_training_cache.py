"""An entry of the cache is made once, whole or not there, whoever writes and whoever is killed."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from training.cache import VolumeCache, insist
from training.errors import DataError

KEY, OTHER = "ab" + "0" * 62, "cd" + "0" * 62
ROOT = Path(__file__).parents[2]


def volume(value: int = 7, *, size: int = 4) -> dict[str, np.ndarray]:
    return {"hu": np.full((2, size, size), value, np.int16), "uids": np.array(["a", "b"])}


def test_an_entry_is_made_once_and_then_memory_mapped(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return volume()

    first, again = VolumeCache(tmp_path).get(KEY, make), VolumeCache(tmp_path).get(KEY, make)
    assert len(made) == 1
    assert isinstance(first["hu"].base, mmap.mmap)
    assert isinstance(again["hu"].base, mmap.mmap)
    assert again["hu"].dtype == np.int16
    assert again["uids"].tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="read-only"):
        again["hu"][0] = 1


def test_an_entry_that_leaves_between_being_found_and_being_read_is_looked_for_again(tmp_path: Path) -> None:
    cache, found = VolumeCache(tmp_path), []

    def look() -> np.ndarray:
        entry = cache.get(KEY, volume) and cache.find(KEY)
        assert entry is not None
        found.append(entry)
        if len(found) == 1:
            shutil.rmtree(tmp_path / KEY[:2] / KEY)
        return entry["hu"]

    assert (insist(look) == 7).all()
    assert len(found) == 2
    assert sorted(found[1]) == ["hu", "uids"]
    assert found[1].get("masks") is None


def test_threads_that_want_the_same_entry_wait_for_the_one_that_makes_it(tmp_path: Path) -> None:
    made, begun = [], threading.Event()

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        begun.wait(5)
        return volume()

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(VolumeCache(tmp_path).get, KEY, make) for _ in range(4)]
        begun.set()
        assert all((w.result()["hu"] == 7).all() for w in waiting)
    assert len(made) == 1


KILLED = """
import sys, threading
from pathlib import Path
import numpy as np
from training.cache import VolumeCache, insist
class Slow(dict):
    def items(self):
        yield "hu", np.zeros((2, 4, 4), np.int16)
        print("half", flush=True)
        threading.Event().wait(60)
        yield "uids", np.array(["a", "b"])
VolumeCache(Path(sys.argv[1])).get(sys.argv[2], Slow)
"""


def test_who_is_killed_in_the_middle_leaves_no_entry_and_nobody_waiting(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), KEY]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    assert list(tmp_path.glob("ab/*.partial/hu.npy"))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    cache = VolumeCache(tmp_path)
    assert KEY not in cache
    found = cache.get(KEY, volume)
    assert (found["hu"] == 7).all()
    assert not list(tmp_path.glob("ab/*.partial"))


def test_a_volume_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> dict[str, np.ndarray]:
        raise DataError("no slice can be read")

    cache = VolumeCache(tmp_path)
    with pytest.raises(DataError):
        cache.get(KEY, fail)
    assert KEY not in cache
    assert (cache.get(KEY, volume)["hu"] == 7).all()


def test_the_longest_unused_entries_leave_when_the_limit_is_passed_and_open_ones_stay_readable(tmp_path: Path) -> None:
    cache = VolumeCache(tmp_path, limit=100_000)
    keys = [f"{n:02x}" + "0" * 62 for n in range(8)]
    first = cache.get(keys[0], filler(0))
    now = time.time()
    for number, key in enumerate(keys[1:], start=1):
        for age, old in enumerate(reversed(keys[:number])):
            if old in cache:
                os.utime(tmp_path / old[:2] / old, (now - 100 - age,) * 2)
        cache.get(key, filler(number))
    held = [key for key in keys if key in cache]
    assert held == keys[-len(held) :]
    assert 1 <= len(held) <= 3
    assert (first["hu"] == 0).all(), "the pages of an entry that left stay with who has it open"
    assert (cache.get(keys[0], filler(0))["hu"] == 0).all()


def filler(value: int) -> Callable[[], dict[str, np.ndarray]]:
    return lambda: volume(value, size=90)  # 32 kB


def test_processes_that_fill_one_cache_find_each_others_entries(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np; from training.cache import VolumeCache\n"
        "cache = VolumeCache(Path(sys.argv[1]))\n"
        "for n in range(40):\n"
        "    key = f'{n % 5:02x}' + f'{n:062x}'\n"
        "    def make(): print(n); return {'hu': np.full((3, 3), n, np.int16)}\n"
        "    assert (cache.get(key, make)['hu'] == n).all()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = [line for process in both for line in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(map(int, made)) == list(range(40)), "each was made by one of them"
