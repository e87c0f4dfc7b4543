"""Order, spacing, tilt, duplicates and missing slices from positions alone."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pydicom
import pytest

from inference.geometry import StackGeometry, analyse, normal_of

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
REAL = Path(os.environ.get("HEMONODE_HEAD_CT", Path(__file__).parents[3] / "shared" / "data" / "head_ct_ge"))
real_scan = pytest.mark.skipif(not REAL.is_dir(), reason="the real head CT is not on this machine")

Triple = tuple[float, float, float]


def tilted(degrees: float) -> tuple[float, ...]:
    """The orientation of a gantry tilted about the left-right axis."""
    return (1.0, 0.0, 0.0, 0.0, math.cos(math.radians(degrees)), -math.sin(math.radians(degrees)))


def along_z(*heights: float) -> list[Triple]:
    return [(-125.0, -120.0, z) for z in heights]


def stack(
    heights: Sequence[float],
    thicknesses: Sequence[float | None] | None = None,
    *,
    numbers: Sequence[int | None] | None = None,
) -> StackGeometry:
    return analyse(
        positions=along_z(*heights),
        orientations=[AXIAL] * len(heights),
        thicknesses=thicknesses,
        instance_numbers=numbers,
    )


def test_a_regular_stack_is_whole_whatever_the_order_of_arrival() -> None:
    heights = [5.0 * i for i in range(30)]
    shuffled = random.Random(3).sample(heights, k=30)
    geometry = stack(shuffled, [5.0] * 30)
    assert geometry.whole
    assert [shuffled[i] for i in geometry.order] == heights
    assert geometry.spacing_mm == pytest.approx(5.0)
    assert geometry.spacings_mm == (5.0,)
    assert geometry.coverage_mm == pytest.approx(150.0)
    assert geometry.missing == ()
    assert geometry.tilt_degrees == pytest.approx(0.0)


@pytest.mark.parametrize("lost", range(1, 29))
@pytest.mark.parametrize("thickness", [5.0, None])
def test_any_single_lost_slice_is_named_with_its_position_and_neighbours(lost: int, thickness: float | None) -> None:
    kept = [i for i in range(30) if i != lost]
    geometry = stack([5.0 * i for i in kept], [thickness] * 29, numbers=[i + 1 for i in kept])
    assert not geometry.whole
    assert geometry.missing == (
        f"1 slice missing at {5.0 * lost:.1f} mm, between instance {lost} and instance {lost + 2}",
    )
    assert geometry.gaps[0].missing_mm == pytest.approx((5.0 * lost,))


def test_a_long_hole_is_named_by_its_ends() -> None:
    kept = [i for i in range(40) if not 10 <= i < 20]
    geometry = stack([float(i) for i in kept], [1.0] * 30)
    assert geometry.missing == ("10 slices missing at 10.0 to 19.0 mm, between slice 10 and slice 11",)


def test_two_holes_are_two_sentences() -> None:
    kept = [i for i in range(30) if i not in (7, 20, 21)]
    geometry = stack([5.0 * i for i in kept], [5.0] * 27)
    assert [len(gap.missing_mm) for gap in geometry.gaps] == [1, 2]
    assert len(geometry.missing) == 2


def posterior_fossa(thin: float, thick: float) -> tuple[list[float], list[float]]:
    """Twelve thin slices below, fourteen thick ones above, face to face."""
    heights = [thin * i for i in range(12)]
    heights += [heights[-1] + (thin + thick) / 2 + thick * i for i in range(14)]
    return heights, [thin] * 12 + [thick] * 14


@pytest.mark.parametrize(("thin", "thick"), [(4.0, 7.0), (2.5, 5.0), (3.0, 8.0), (2.0, 10.0), (5.0, 10.0)])
def test_a_spacing_that_changes_with_the_thickness_is_no_gap(thin: float, thick: float) -> None:
    heights, thicknesses = posterior_fossa(thin, thick)
    geometry = stack(heights, thicknesses)
    assert geometry.whole
    assert geometry.spacings_mm == (thin, thick)


@pytest.mark.parametrize("lost", [5, 11, 12, 18])
def test_a_slice_lost_from_a_protocol_of_two_thicknesses_is_found(lost: int) -> None:
    heights, thicknesses = posterior_fossa(4.0, 7.0)
    del heights[lost], thicknesses[lost]
    geometry = stack(heights, thicknesses)
    assert [len(gap.missing_mm) for gap in geometry.gaps] == [1]


@pytest.mark.parametrize(("thin", "thick"), [(2.5, 5.0), (4.0, 7.0), (2.0, 10.0)])
def test_two_spacings_in_two_blocks_are_no_gap_even_without_a_thickness(thin: float, thick: float) -> None:
    heights = [thin * i for i in range(12)]
    heights += [heights[-1] + thick * (i + 1) for i in range(14)]
    assert stack(heights).whole


def test_slices_apart_by_the_protocol_are_no_gap() -> None:
    assert stack([10.0 * i for i in range(15)], [5.0] * 15, numbers=list(range(1, 16))).whole


def test_every_other_slice_still_to_come_is_not_taken_for_a_spacing() -> None:
    geometry = stack([10.0 * i for i in range(15)], [5.0] * 15, numbers=list(range(1, 31, 2)))
    assert len(geometry.gaps) == 14


def test_a_series_numbered_in_steps_of_two_is_whole() -> None:
    assert stack([5.0 * i for i in range(15)], [5.0] * 15, numbers=list(range(1, 31, 2))).whole


def test_overlapping_slices_are_whole_and_a_lost_one_is_found_though_its_neighbours_touch() -> None:
    heights = [2.5 * i for i in range(40)]
    whole = stack(heights, [5.0] * 40)
    assert whole.whole
    assert whole.coverage_mm == pytest.approx(102.5)
    del heights[20]
    assert stack(heights, [5.0] * 39).gaps[0].missing_mm == pytest.approx((50.0,))


def test_one_overlap_between_two_blocks_is_counted_and_no_gap() -> None:
    heights = [4.0 * i for i in range(14)]
    heights += [heights[-1] + 1.1 + 7.0 * i for i in range(14)]
    geometry = stack(heights, [4.0] * 14 + [7.0] * 14)
    assert geometry.whole
    assert geometry.overlaps == 1


def test_of_two_slices_at_one_position_the_highest_instance_number_is_kept() -> None:
    heights = [5.0 * i for i in range(10)] + [20.0, 25.01]
    geometry = stack(heights, [5.0] * 12, numbers=[*range(1, 11), 99, 2])
    assert geometry.whole
    assert geometry.dropped == (4, 11)
    assert 10 in geometry.order


def test_without_instance_numbers_the_last_to_arrive_is_kept() -> None:
    assert stack([0.0, 5.0, 10.0, 15.0, 10.0]).dropped == (2,)


def test_thin_slices_are_not_taken_for_duplicates() -> None:
    geometry = stack([0.2 * i for i in range(300)], [0.4] * 300)
    assert geometry.whole
    assert geometry.dropped == ()


@pytest.mark.parametrize("degrees", [-30.0, -18.5, -5.0, 0.0, 12.0, 18.5, 30.0])
def test_the_tilt_is_read_from_the_orientation_and_distances_run_along_the_normal(degrees: float) -> None:
    # The table moves along z while the planes are inclined.
    heights = [5.0 * i for i in range(20)]
    geometry = analyse(positions=along_z(*heights), orientations=[tilted(degrees)] * 20)
    assert geometry.tilt_degrees == pytest.approx(degrees)
    assert geometry.obliquity_degrees == pytest.approx(0.0)
    assert geometry.spacing_mm == pytest.approx(5.0 * math.cos(math.radians(degrees)))
    assert geometry.whole


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0), (0, 1, 0, -1, 0, 0)],
    ids=["supine", "prone", "mirrored", "upside down", "turned"],
)
def test_slices_are_ordered_from_feet_to_head_however_the_patient_lies(orientation: tuple[float, ...]) -> None:
    geometry = analyse(positions=along_z(10.0, 0.0, 5.0), orientations=[orientation] * 3)
    assert geometry.order == (1, 2, 0)
    assert geometry.normal == pytest.approx((0.0, 0.0, 1.0))
    assert geometry.tilt_degrees == pytest.approx(0.0)


def test_coronal_and_sagittal_planes_have_their_own_normals() -> None:
    assert normal_of((1, 0, 0, 0, 0, -1)) == pytest.approx((0.0, 1.0, 0.0))
    assert normal_of((0, 1, 0, 0, 0, -1)) == pytest.approx((1.0, 0.0, 0.0))
    assert normal_of((1, 0, 0, 1, 0, 0)) is None


def test_slices_of_another_plane_and_without_position_are_set_apart() -> None:
    positions: list[Triple | None] = [*along_z(0.0, 5.0, 10.0, 15.0, 20.0), None, (0.0, 0.0, math.nan)]
    orientations = [AXIAL] * 4 + [(1.0, 0.0, 0.0, 0.0, 0.0, -1.0), AXIAL, AXIAL]
    geometry = analyse(positions=positions, orientations=orientations)
    assert geometry.order == (0, 1, 2, 3)
    assert geometry.foreign == (4,)
    assert geometry.unplaced == (5, 6)
    assert geometry.missing == (
        "2 slices without a usable position or orientation",
        "1 slice in another plane than the rest",
    )


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_slices_are_never_whole(count: int) -> None:
    assert not stack([5.0 * i for i in range(count)], [5.0] * count).whole


@pytest.mark.parametrize("nonsense", [0.0, -5.0, 1e9, math.nan])
def test_an_absurd_thickness_is_no_thickness(nonsense: float) -> None:
    geometry = stack([5.0 * i for i in range(20)], [nonsense] * 20)
    assert geometry.whole
    assert geometry.coverage_mm == pytest.approx(100.0)


@pytest.mark.parametrize("seed", range(20))
def test_rounded_positions_of_random_stacks_stay_whole_and_show_any_random_loss(seed: int) -> None:
    rng = random.Random(seed)
    spacing, degrees = rng.choice([0.5, 0.625, 1.25, 2.5, 3.0, 5.0, 7.5]), rng.uniform(-25, 25)
    count = rng.randint(20, 200)
    heights = [round(spacing * i + rng.uniform(-0.02, 0.02) * spacing, 2) for i in range(count)]
    order = rng.sample(range(count), k=count)
    full = analyse(positions=along_z(*(heights[i] for i in order)), orientations=[tilted(degrees)] * count)
    assert full.whole
    lost = set(rng.sample(range(1, count - 1), k=2))
    kept = [i for i in order if i not in lost]
    holed = analyse(positions=along_z(*(heights[i] for i in kept)), orientations=[tilted(degrees)] * len(kept))
    assert sum(len(gap.missing_mm) for gap in holed.gaps) == 2


def test_the_geometry_survives_json() -> None:
    geometry = stack([0.0, 5.0, 10.0, 25.0, 30.0])
    assert StackGeometry.from_json(json.loads(json.dumps(geometry.to_json()))) == geometry


def test_two_thousand_slices_are_analysed_within_twenty_milliseconds() -> None:
    heights, numbers = [0.5 * i for i in range(2000)], list(range(2000))
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        stack(heights, [0.5] * 2000, numbers=numbers)
        best = min(best, time.perf_counter() - start)
    assert best < 0.02


@real_scan
def test_the_real_scan_with_two_thicknesses_and_a_tilt_is_whole() -> None:
    datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(REAL.glob("*.dcm"))]
    geometry = analyse(
        positions=[tuple(map(float, d.ImagePositionPatient)) for d in datasets],
        orientations=[tuple(map(float, d.ImageOrientationPatient)) for d in datasets],
        thicknesses=[float(d.SliceThickness) for d in datasets],
    )
    assert geometry.whole
    assert geometry.order == tuple(range(28))
    assert geometry.tilt_degrees == pytest.approx(18.5, abs=0.01)
    assert geometry.spacings_mm == (4.0, 7.0)
    assert geometry.overlaps == 1
    assert geometry.coverage_mm == pytest.approx(149.6, abs=0.1)
