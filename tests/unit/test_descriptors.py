"""Encoded slices are placed along the head, and kept within bounds."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.card import ModelError
from inference.descriptors import (
    ENTRY_OVERHEAD,
    DescriptorCache,
    EncodedSlice,
    SliceKey,
    SlicePlace,
    place_of,
    put_together,
    take_apart,
)


@dataclass(frozen=True, kw_only=True)
class ASlice:
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    sop_instance_uid: str = "1.2.3"
    frame: int | None = None
    hu: NDArray[np.int16] = field(default_factory=lambda: np.zeros((1, 1), np.int16))
    pixel_spacing: tuple[float, float] = (1.0, 1.0)
    thickness: float | None = 5.0


def encoded(value: float = 0.0, *, size: int = 256) -> EncodedSlice:
    place = SlicePlace(sop_instance_uid="1.2.3", position_mm=value)
    return EncodedSlice(place=place, descriptors={"radnet": np.full(size, value, np.float32)})


def key(number: int, *, frame: int | None = None, digest: str = "a") -> SliceKey:
    return SliceKey(f"1.2.{number}", frame, digest)


@pytest.mark.parametrize(
    ("orientation", "position", "expected"),
    [
        ((1, 0, 0, 0, 1, 0), (-120.0, -130.0, 42.5), 42.5),
        ((-1, 0, 0, 0, 1, 0), (120.0, -130.0, 42.5), 42.5),  # prone: the plain normal would point down
        ((1, 0, 0, 0, 0.8, -0.6), (0.0, 10.0, 20.0), 22.0),  # tilted: 10 · 0.6 + 20 · 0.8
        ((2, 0, 0, 0, 2, 0), (0.0, 0.0, 7.0), 7.0),  # cosines that are not of length one
    ],
)
def test_a_slice_lies_where_its_normal_says_and_up_is_up(
    orientation: tuple[float, ...], position: tuple[float, float, float], expected: float
) -> None:
    place = place_of(ASlice(position=position, orientation=orientation))
    assert place.position_mm == pytest.approx(expected)
    assert place.thickness_mm == 5.0


def test_a_slice_without_an_orientation_is_refused() -> None:
    with pytest.raises(ModelError, match=r"1\.2\.3 has the orientation"):
        place_of(ASlice(position=(0, 0, 0), orientation=(1, 0, 0, 1, 0, 0)))


def test_descriptors_taken_apart_come_together_again_in_any_order() -> None:
    rows = {"radnet": np.arange(6, dtype=np.float32).reshape(3, 2), "cnn_lstm": np.eye(3, dtype=np.float32)}
    places = [SlicePlace(sop_instance_uid=f"1.{i}", position_mm=float(i)) for i in range(3)]
    slices = take_apart(rows, places)
    assert [s.place for s in slices] == places
    backwards = put_together(slices[::-1])
    for name, values in rows.items():
        np.testing.assert_array_equal(backwards[name], values[::-1])


def test_an_encoded_slice_does_not_keep_the_batch_it_came_from_in_memory() -> None:
    (one, _) = take_apart({"radnet": np.zeros((2, 4), np.float32)}, [encoded().place] * 2)
    assert one.descriptors["radnet"].base is None


def test_a_slice_is_found_by_identity_frame_and_content_and_not_otherwise() -> None:
    cache = DescriptorCache(max_bytes=1 << 20)
    kept = encoded(1.0)
    cache.put(key(1, frame=2), kept)
    assert cache.get(key(1, frame=2)) is kept
    assert cache.get(key(1)) is None
    assert cache.get(key(1, frame=2, digest="b")) is None


def test_the_cache_never_holds_more_than_its_bound_and_forgets_what_was_used_longest_ago() -> None:
    entry = ENTRY_OVERHEAD + 256 * 4
    cache = DescriptorCache(max_bytes=3 * entry)
    for number in range(3):
        cache.put(key(number), encoded(number))
    assert cache.get(key(0)) is not None
    cache.put(key(3), encoded(3))
    assert cache.used_bytes == 3 * entry
    assert [cache.get(key(number)) is not None for number in range(4)] == [True, False, True, True]


def test_putting_a_slice_again_counts_it_once() -> None:
    cache = DescriptorCache(max_bytes=1 << 20)
    cache.put(key(1), encoded(1.0))
    cache.put(key(1), encoded(2.0))
    assert (len(cache), cache.used_bytes) == (1, ENTRY_OVERHEAD + 1024)
    found = cache.get(key(1))
    assert found is not None
    assert found.place.position_mm == 2.0


def test_a_slice_larger_than_the_cache_is_not_kept() -> None:
    cache = DescriptorCache(max_bytes=1024)
    cache.put(key(1), encoded(size=4096))
    assert (len(cache), cache.used_bytes) == (0, 0)


def test_a_forgotten_slice_gives_its_memory_back() -> None:
    cache = DescriptorCache(max_bytes=1 << 20)
    cache.put(key(1), encoded())
    cache.forget(key(1))
    cache.forget(key(2))
    assert (len(cache), cache.used_bytes) == (0, 0)
