"""Where the models looked in a study that was read: volume for the report, masks for the segmentation, for research."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from db.schema import now
from inference.attention import INSIDE, Kind, Looking, ScanMaps, StoredSlices
from inference.card import ModelError
from inference.decoding import Stored
from inference.result import Outcome, StudyResult
from inference.series import Criteria, Stack, select
from node import __version__
from node.config import Settings
from node.errors import StartError
from node.reading import cards
from node.report.content import Device
from node.report.filing import write_durably
from node.report.identifiers import segmentation_path
from node.report.segmentation import Outline, Plane, build
from node.report.sr import to_bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Located:
    """What was seen in the series that was read: its slices, and every model's maps by the model's name."""

    slices: StoredSlices
    maps: Mapping[str, ScanMaps]

    def with_volumes(self, result: StudyResult) -> StudyResult:
        """The result with the volume that each model's masks enclose, where the model draws masks."""
        readings = tuple(
            replace(reading, volume=self.maps[reading.name].volume()) if reading.name in self.maps else reading
            for reading in result.readings
        )
        return replace(result, readings=readings)


class Locator:
    """The configured models, once more, to be asked where they look."""

    def __init__(self, looking: Mapping[str, Looking], *, settings: Settings) -> None:
        self._looking = looking
        self._settings = settings

    @classmethod
    def load(cls, settings: Settings, *, device: str = "cpu", masks_only: bool = False) -> Self:
        """With every configured model, or with those that draw masks. Raises ``StartError``."""
        try:
            models = {
                name: Looking.load(directory, device=device)
                for name, (directory, card) in cards(settings).items()
                if not card.preprocessing.header  # those look at nothing
            }
        except ModelError as error:
            raise StartError(str(error)) from error
        wanted = {name: model for name, model in models.items() if model.kind is Kind.MASK or not masks_only}
        return cls(wanted, settings=settings)

    def locate(self, result: StudyResult, stored: Sequence[Stored]) -> Located | None:
        """Where the models looked in the series that `result` was read from; None where none was read."""
        stack = _stack_read(result, stored, self._settings.select)
        if stack is None:
            return None
        slices = StoredSlices(stack, {instance.facts.sop_instance_uid: instance.path for instance in stored})
        read = {reading.name for reading in result.readings}
        return Located(
            slices=slices, maps={name: model.look(slices) for name, model in self._looking.items() if name in read}
        )

    def segmentation(
        self, result: StudyResult, located: Located, stored: Sequence[Stored], *, made_at: dt.datetime
    ) -> Dataset:
        """The DICOM Segmentation of what the masks outline. Raises ``NoSegmentation``."""
        outlines = [
            Outline(
                reading=reading,
                marked=np.stack([piece.on_slice() >= INSIDE for piece in located.maps[reading.name].slices]),
            )
            for reading in result.readings
            if reading.name in located.maps and located.maps[reading.name].kind is Kind.MASK
        ]
        planes = _planes(located, stored) if outlines else []
        return build(result, outlines, planes=planes, made_at=made_at, device=device_of(self._settings))

    def filed(self, result: StudyResult, stored: Sequence[Stored]) -> tuple[StudyResult, bool]:
        """Of a positive study: the result with volumes, and a segmentation filed in the archive (once).

        Only models that found something and draw masks are asked. Returns whether a segmentation was filed; one in
        which nothing is outlined is not.
        """
        finding = tuple(r for r in result.readings if r.name in self._looking and r.findings[0].present)
        asked = replace(result, readings=finding)
        located = self.locate(asked, stored) if finding and result.outcome is Outcome.POSITIVE else None
        if located is None:
            return result, False
        result = located.with_volumes(result)
        if not any(reading.volume and reading.volume.ml for reading in result.readings):
            return result, False
        path = segmentation_path(self._settings.archive, study_uid=result.study_uid, revision=result.revision)
        if not path.exists():
            write_durably(path, to_bytes(self.segmentation(asked, located, stored, made_at=now())))
        return result, True


def device_of(settings: Settings) -> Device:
    """This node as the maker of reports and segmentations."""
    return Device(
        ae_title=settings.node.ae_title,
        version=__version__,
        institution=settings.report.institution,
        department=settings.report.department,
    )


def _stack_read(result: StudyResult, stored: Sequence[Stored], criteria: Criteria) -> Stack | None:
    """The stack that was read; the choice is made again, which gives the same answer for the same instances."""
    stacks = select([instance.facts for instance in stored], criteria).stacks
    return next((stack for stack in stacks if stack.head.series_uid in result.read_series_uids[:1]), None)


def _planes(located: Located, stored: Sequence[Stored]) -> list[Plane]:
    paths = {instance.facts.sop_instance_uid: instance.path for instance in stored}
    places = [piece.place for piece in next(iter(located.maps.values())).slices]  # the same for every model
    images = {
        uid: dcmread(paths[uid], stop_before_pixels=True) for uid in dict.fromkeys(p.sop_instance_uid for p in places)
    }
    return [Plane(image=images[place.sop_instance_uid], frame=place.frame) for place in places]
