"""Slices are placed along the head, whichever way the patient lay."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.card import ModelError
from inference.place import place_of


@dataclass(frozen=True, kw_only=True)
class ASlice:
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    sop_instance_uid: str = "1.2.3"
    frame: int | None = None
    hu: NDArray[np.int16] = field(default_factory=lambda: np.zeros((1, 1), np.int16))
    pixel_spacing: tuple[float, float] = (1.0, 1.0)
    thickness: float | None = 5.0


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
