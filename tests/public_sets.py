"""Small folders exactly as the public head CT sets are given out, with every quirk that is known of them."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

RSNA_ORDER = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
CQ500_FIELDS = (
    "ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "BleedLocation-Left", "BleedLocation-Right", "ChronicBleed", "Fracture",
    "CalvarialFracture", "OtherFracture", "MassEffect", "MidlineShift",
)  # fmt: skip
PHYSIONET_ORDER = ("Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural")


def ct(hu: NDArray[np.int16], *, z: float, intercept: int = -1024, tilt: float = 0.0, wrapped: bool = False) -> Dataset:
    """The pixels of one slice as twelve unsigned bits; `wrapped` as signed ones read as unsigned, intercept 0."""
    dataset = Dataset()
    dataset.Modality = "CT"
    cos, sin = float(np.cos(np.radians(tilt))), float(np.sin(np.radians(tilt)))
    dataset.ImagePositionPatient = [-100.0, -100.0, z]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, round(cos, 6), round(sin, 6)]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = hu.shape
    dataset.PixelSpacing = [2.0, 2.0]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = [40.0, 40.0], [80.0, 80.0]
    dataset.RescaleIntercept, dataset.RescaleSlope = (0 if wrapped else intercept), 1
    stored = hu.astype(np.int32) & 0xFFF if wrapped else hu.astype(np.int32) - intercept
    dataset.PixelData = np.clip(stored, 0, 4095).astype("<u2").tobytes()
    return dataset


def write(dataset: Dataset, path: Path) -> None:
    """As a file whose meta information names another SOP Instance UID, as in the RSNA set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def head(number: int, *, rows: int = 64) -> NDArray[np.int16]:
    """A disc of brain in a ring of bone in air, told from others by one dense square."""
    y, x = np.mgrid[:rows, :rows] - rows / 2
    radius = np.hypot(x, y) / rows
    hu = np.where(radius < 0.42, 35, -1000)
    hu[(radius > 0.38) & (radius < 0.42)] = 1200
    hu[20:24, 20 + number % 20 : 24 + number % 20] = 60
    return hu.astype(np.int16)


class Rsna:
    """A folder of the RSNA challenge, and its table, grown image by image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: list[tuple[str, int]] = []
        self.hu: dict[str, NDArray[np.int16]] = {}

    def add(
        self, image: str, *, patient: str, study: str, z: float, positive: Sequence[str] = (), rows: int = 64,
        wrapped: bool = False, cut_off: bool = False,
    ) -> None:  # fmt: skip
        """One image with its six rows; UIDs are those of the set, no legal UIDs."""
        self.hu[image] = head(len(self.hu), rows=rows)
        dataset = ct(self.hu[image], z=z, tilt=15.0, wrapped=wrapped)
        values = {"SOPInstanceUID": image, "PatientID": patient, "StudyInstanceUID": study, "StudyID": ""}
        if cut_off:
            dataset.PixelData = dataset.PixelData[:100]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of UIDs that are none; this set is full of them
            for keyword, value in (values | {"SeriesInstanceUID": f"{study}a"}).items():
                setattr(dataset, keyword, value)
            write(dataset, self.root / "stage_2_train" / f"{image}.dcm")
        bleeding = {*positive, *(["any"] if positive else [])}
        self.rows += [(f"{image}_{kind}", int(kind in bleeding)) for kind in RSNA_ORDER]

    def finish(self, *, again: str = "") -> Path:
        """The table is written; the rows of the image `again` stand in it twice."""
        doubled = [row for row in self.rows if again and row[0].startswith(again)]
        _table(self.root / "stage_2_train.csv", ("ID", "Label"), [*self.rows, *doubled])
        return self.root


def cq500_table(path: Path, reads: Mapping[int, Sequence[Mapping[str, int]]]) -> None:
    """`reads.csv` with 44 columns: for each study what R1, R2 and R3 mark; the rest is 0."""
    columns = ["name", "Category", *(f"R{reader}:{field}" for reader in (1, 2, 3) for field in CQ500_FIELDS)]
    rows = [
        [f"CQ500-CT-{number}", "B1", *(vote.get(field, 0) for vote in votes for field in CQ500_FIELDS)]
        for number, votes in reads.items()
    ]
    _table(path, columns, rows)


def cq500_series(root: Path, number: int, name: str, *, slices: int = 12, step: float = 8.0, **elements: str) -> None:
    """One series folder of a study, as it is unpacked."""
    study = generate_uid(entropy_srcs=[str(number)])
    series = generate_uid(entropy_srcs=[str(number), name])
    for place in range(slices):
        dataset = ct(head(place, rows=128), z=step * place)
        dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"CQ500-CT-{number}", study, series
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
        dataset.InstanceNumber, dataset.SliceThickness = slices - place, step
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        folder = root / "qct01" / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / name
        write(dataset, folder / f"CT{place:06d}.dcm")


def physionet_table(path: Path, patients: Mapping[int, Sequence[str]]) -> None:
    """`hemorrhage_diagnosis.csv`: for each patient the kind that each slice shows, "" for none."""
    rows = []
    for number, kinds in patients.items():
        for place, kind in enumerate(kinds, start=1):
            rows.append([number, place, *(int(name == kind) for name in PHYSIONET_ORDER), int(not kind), 0])
    _table(path, ("PatientNumber", "SliceNumber", *PHYSIONET_ORDER, "No_Hemorrhage", "Fracture_Yes_No"), rows)


def _table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
