"""Slices that are encoded between their neighbours have the numbers of one pass over the scan, however they came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference.engine import Engine, LoadedModel, Rows, encode_images
from inference.models import ScanModel
from inference.neighbours import HELD, Key, Neighbourhood, windows
from inference.recent import Recent
from tests.every_family import EVERY, network_of
from tests.small_scan import CPU, SmallSlice, described, images, small_head

pytestmark = pytest.mark.usefixtures("one_thread")

ONE, TWO, NONE = "hemonode", "hemonode mirrored", "cnn-lstm"
"""Models that see one neighbour on either side, two, and none."""

HEAD = small_head(11)


class Counted:
    """Encodes, and counts the slices."""

    def __init__(self) -> None:
        self.slices = 0

    def __call__(self, network: ScanModel, seen: torch.Tensor, processor: object) -> torch.Tensor:
        self.slices += len(seen) if network.reach else 0
        return encode_images(network, seen, CPU)


def engine_of(*names: str, encode: Counted | None = None) -> Engine:
    models = [LoadedModel(name=name, card=EVERY[name], state=network_of(name).state_dict()) for name in names]
    return Engine(models, ladder=[CPU], chunk=4, encode=encode or Counted())


class Arriving:
    """A scan whose slices come one after the other; the content of each is its key."""

    def __init__(self, engine: Engine, *, limit: int = HELD) -> None:
        self.engine = engine
        self.neighbourhood = Neighbourhood(engine, limit=limit)
        self.here: list[int] = []

    def come(self, *places: int) -> None:
        """These slices of the head arrive, and are encoded as far as that is possible among those that are here."""
        rows = self.engine.encode([HEAD[place] for place in places])
        self.here += places
        for row, place in enumerate(places):
            kept = {name: rows[name][row].copy() for name in self.engine.reach}
            self.neighbourhood.keep(key_of(place), kept)
        self.neighbourhood.advance([key_of(place) for place in sorted(self.here)], [key_of(p) for p in places])

    def rows(self, order: Sequence[int] | None = None) -> dict[str, Rows]:
        return self.neighbourhood.rows([key_of(place) for place in order or sorted(self.here)], self.again)

    def again(self, keys: list[Key]) -> dict[Key, dict[str, Rows]]:
        made = self.engine.encode([HEAD[int(digest)] for digest, _ in keys], among=True)
        return {key: {name: rows[row] for name, rows in made.items()} for row, key in enumerate(keys)}


def key_of(place: int) -> Key:
    return (str(place), None)


def one_pass(name: str, slices: Sequence[SmallSlice]) -> NDArray[np.float32]:
    """What the network itself gives for the whole scan, from images as they are kept for neighbours."""
    network, seen = network_of(name), images(EVERY[name], slices)
    with torch.inference_mode():
        rows: NDArray[np.float32] = network.encode(
            network.among(seen.half().float()) if network.reach else seen
        ).numpy()
    return rows


def assert_as_in_one_pass(found: dict[str, Rows], slices: Sequence[SmallSlice]) -> None:
    """To 1e-5 of the largest number: prepared in another batch, a pixel may be rounded to the next float16."""
    for name, rows in found.items():
        expected = one_pass(name, slices)
        np.testing.assert_allclose(rows, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())), rtol=0)


ORDERS = {
    "in order": [[i] for i in range(11)],
    "from head to feet": [[i] for i in reversed(range(11))],
    "a few at a time": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]],
    "shuffled": [[i] for i in (7, 2, 9, 0, 4, 10, 1, 6, 3, 8, 5)],
    "some late": [[0, 1, 2, 4, 5, 8, 9, 10], [3], [7, 6]],
    "twice": [[0, 1, 2], [2, 3, 4], [4, 5, 6, 7, 8, 9, 10], [0]],
}


@pytest.mark.parametrize("limit", [HELD, 100_000, 1])
@pytest.mark.parametrize("order", ORDERS)
def test_slices_have_the_numbers_of_one_pass_in_whatever_order_they_come(order: str, limit: int) -> None:
    arriving = Arriving(engine_of(ONE), limit=limit)
    for places in ORDERS[order]:
        arriving.come(*places)
    arriving.here = sorted(set(arriving.here))
    assert_as_in_one_pass(arriving.rows(), HEAD)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_scan_of_hardly_any_slices_has_them_too(count: int) -> None:
    arriving = Arriving(engine_of(ONE, TWO))
    for place in range(count):
        arriving.come(place)
    assert_as_in_one_pass(arriving.rows(), HEAD[:count])


def test_slices_that_were_dropped_in_the_end_leave_no_trace() -> None:
    arriving = Arriving(engine_of(ONE, TWO))
    for place in range(11):
        arriving.come(place)
    kept = [0, 1, 2, 5, 6, 9]
    assert_as_in_one_pass(arriving.rows(kept), [HEAD[place] for place in kept])


def test_models_with_and_without_neighbours_share_an_engine() -> None:
    engine = engine_of(ONE, NONE, TWO)
    assert engine.reach == {ONE: 1, TWO: 2}
    assert_as_in_one_pass(described(engine, HEAD), HEAD)
    assert_as_in_one_pass({NONE: engine.encode(HEAD)[NONE]}, HEAD)
    assert set(engine.encode(HEAD[:2], among=True)) == {ONE, TWO}


def test_in_order_every_slice_is_encoded_once_and_all_but_the_last_before_the_scan_is_whole() -> None:
    counted = Counted()
    arriving = Arriving(engine_of(ONE, encode=counted))
    for place in range(11):
        arriving.come(place)
    early = counted.slices
    arriving.rows()
    repeated = 11  # as the highest slice so far each was encoded without the one above it
    assert early == counted.slices == 10 + repeated


def test_a_slice_is_not_encoded_before_one_that_is_elsewhere() -> None:
    counted = Counted()
    engine = engine_of(ONE, encode=counted)
    neighbourhood, rows = Neighbourhood(engine), engine.encode(HEAD[:3])[ONE]
    elsewhere = ("", None)
    for place in range(3):
        neighbourhood.keep(key_of(place), {ONE: rows[place]})
        order = [elsewhere, *(key_of(i) for i in range(place + 1)), elsewhere]
        neighbourhood.advance(order, [key_of(place)])
    assert counted.slices == 1, "the middle one alone has both its neighbours"


def test_a_late_slice_has_its_neighbours_encoded_again_and_nobody_else() -> None:
    counted = Counted()
    arriving = Arriving(engine_of(ONE, encode=counted))
    arriving.come(*(i for i in range(11) if i != 5))
    before = counted.slices
    arriving.come(5)
    arriving.rows()
    assert counted.slices - before == 3


def test_slices_of_different_size_are_neighbours_as_their_images_are() -> None:
    engine = engine_of(ONE)
    cropped = [replace(s, hu=s.hu[8:-8, 8:-8].copy()) if i % 2 else s for i, s in enumerate(HEAD)]
    rows = engine.encode(cropped)[ONE]
    alone = np.concatenate([engine.encode([s])[ONE] for s in cropped])
    np.testing.assert_array_equal(rows, alone)
    assert engine.encode_among(ONE, list(windows(rows, 1))).shape == (11, 512)


@pytest.mark.parametrize(
    ("count", "reach", "expected"),
    [
        (3, 0, ["a", "b", "c"]),
        (3, 1, ["aab", "abc", "bcc"]),
        (2, 2, ["aaabb", "aabbb"]),
        (1, 2, ["aaaaa"]),
        (0, 1, []),
        (5, 2, ["aaabc", "aabcd", "abcde", "bcdee", "cdeee"]),
    ],
)
def test_beyond_the_ends_the_last_item_stands_again(count: int, reach: int, expected: list[str]) -> None:
    assert ["".join(window) for window in windows("abcde"[:count], reach)] == expected


def test_the_longest_unused_leave_first() -> None:
    recent: Recent[str, str] = Recent(limit=6, size=len)
    for key, value in (("a", "xx"), ("b", "xx"), ("c", "xx")):
        recent.put(key, value)
    assert recent.get("a") == "xx"
    recent.put("d", "xxx")
    assert [key for key in "abcd" if key in recent] == ["a", "d"]
    assert recent.held == 5
    recent.put("e", "x" * 9)
    assert recent.get("e") == "x" * 9, "one that is larger than all may stay alone"
    assert recent.held == 9
