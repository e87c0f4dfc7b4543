"""A series split into stacks: planes of one orientation, one kind and one pass through the patient."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference.facts import InstanceFacts, Orientation
from inference.geometry import FEWEST, SAME_PLANE_DEGREES, SAME_POSITION_MM, StackGeometry, analyse, normal_of

LOCALIZER_WORDS = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM")


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One image plane: an instance, and the 1-based frame in it (None for a single-frame image)."""

    facts: InstanceFacts
    frame: int | None = None

    @property
    def index(self) -> int:
        """The plane's place in the instance's per-frame values."""
        return (self.frame or 1) - 1


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Planes that belong together, in the order of arrival, and what their positions say."""

    planes: tuple[Plane, ...]
    geometry: StackGeometry

    @property
    def head(self) -> InstanceFacts:
        """The header of the first plane, which speaks for the values all planes share."""
        return self.planes[0].facts

    @property
    def in_order(self) -> tuple[Plane, ...]:
        """The planes kept, from feet to head, one for each position."""
        return tuple(self.planes[i] for i in self.geometry.order)

    @property
    def sop_instance_uids(self) -> tuple[str, ...]:
        """The instances to read, from feet to head, each once."""
        return tuple(dict.fromkeys(plane.facts.sop_instance_uid for plane in self.in_order))

    @property
    def thickness_mm(self) -> float | None:
        """The median Slice Thickness."""
        known = [p.facts.thickness for p in self.planes if p.facts.thickness is not None and p.facts.thickness > 0]
        return float(np.median(known)) if known else None

    @property
    def field_of_view_mm(self) -> float | None:
        """The longer side of the image."""
        head = self.head
        if head.pixel_spacing is None or head.rows is None or head.columns is None:
            return head.reconstruction_diameter
        return max(head.pixel_spacing[0] * head.rows, head.pixel_spacing[1] * head.columns)


def is_localizer(facts: InstanceFacts) -> bool:
    """Whether the image calls itself a localizer (Image Type value 3, PS3.3 C.8.2.1.1.1), in any maker's word."""
    return any(word in value for value in facts.image_type for word in LOCALIZER_WORDS)


def stacks(facts: Sequence[InstanceFacts]) -> tuple[Stack, ...]:
    """The stacks of one series, those with most planes first. Instances without pixels are left out.

    Planes of different orientation (by more than 1°), size, kernel, image type or temporal position part; so do
    acquisitions that go over the same positions again, as when a patient moved and was scanned twice.
    """
    groups: dict[tuple[object, ...], list[Plane]] = defaultdict(list)
    normals: list[tuple[float, float, float]] = []
    numbered: dict[Orientation | None, int | None] = {None: None}
    for plane in planes_of(facts):
        head = plane.facts
        orientation = head.orientations[plane.index]
        if orientation not in numbered:
            numbered[orientation] = _cluster(orientation, normals)
        temporal = head.temporal_positions[plane.index] if head.temporal_positions else None
        kind = (is_localizer(head), head.image_type[:3], head.rows, head.columns, head.kernel, temporal)
        groups[(*kind, numbered[orientation])].append(plane)
    parts = itertools.chain.from_iterable(_passes(planes) for planes in groups.values())
    return tuple(sorted(map(_stack, parts), key=lambda stack: -len(stack.planes)))


def stack_geometry(planes: Sequence[Plane]) -> StackGeometry:
    """What the positions of `planes` say; indices refer to `planes`."""
    return analyse(
        positions=[plane.facts.positions[plane.index] for plane in planes],
        orientations=[plane.facts.orientations[plane.index] for plane in planes],
        thicknesses=[plane.facts.thickness for plane in planes],
        instance_numbers=[plane.frame or plane.facts.instance_number for plane in planes],
    )


def _stack(planes: Sequence[Plane]) -> Stack:
    return Stack(planes=tuple(planes), geometry=stack_geometry(planes))


def planes_of(facts: Sequence[InstanceFacts]) -> list[Plane]:
    """Every plane of the instances: one for each frame."""
    return [
        Plane(facts=f, frame=frame if f.number_of_frames is not None and f.frames > 1 else None)
        for f in facts
        for frame in range(1, f.frames + 1)
    ]


def _cluster(orientation: Orientation | None, normals: list[tuple[float, float, float]]) -> int | None:
    """The number of the plane direction; a new one is added to `normals`."""
    normal = None if orientation is None else normal_of(orientation)
    if normal is None:
        return None
    cosine = float(np.cos(np.radians(SAME_PLANE_DEGREES)))
    for number, known in enumerate(normals):
        if abs(sum(a * b for a, b in zip(normal, known, strict=True))) >= cosine:
            return number
    normals.append(normal)
    return len(normals) - 1


def _passes(planes: list[Plane]) -> list[list[Plane]]:
    """The planes parted where an acquisition mostly repeats positions already taken.

    Step-and-shoot scans number each table position as its own acquisition: those stay together. A repeat of fewer
    than three slices stays too: its slices replace the first attempt as duplicates.
    """
    places = {place: plane for plane in planes if (place := _place(plane)) is not None}
    if len(places) == len(planes):
        return [planes]
    acquisitions: dict[int, list[Plane]] = defaultdict(list)
    for plane in planes:
        acquisitions[plane.facts.acquisition_number or 0].append(plane)
    passes: list[list[Plane]] = [[]]
    taken: set[int] = set()
    for _, members in sorted(acquisitions.items()):
        here = [place for plane in members if (place := _place(plane)) is not None]
        if 2 * sum(place in taken for place in here) > len(here):
            passes.append([])
            taken = set()
        passes[-1].extend(members)
        taken.update(here)
    whole = [part for part in passes if len(part) >= FEWEST]
    small = [plane for part in passes if len(part) < FEWEST for plane in part]
    return [[*whole[0], *small], *whole[1:]] if whole else [planes]


def _place(plane: Plane) -> int | None:
    """The plane's projection on its own normal, in steps within which positions are the same."""
    position, orientation = plane.facts.positions[plane.index], plane.facts.orientations[plane.index]
    normal = None if orientation is None else normal_of(orientation)
    if position is None or normal is None:
        return None
    return round(sum(a * b for a, b in zip(position, normal, strict=True)) / SAME_POSITION_MM)
