"""PhysioNet ct-ich (Hssayeni et al., Data 2020;5(1):14): NIfTI, a label for every slice, outlines.

::

    ROOT/hemorrhage_diagnosis.csv      PatientNumber,SliceNumber,Intraventricular,…,Fracture_Yes_No
    ROOT/ct_scans/049.nii              Hounsfield units
    ROOT/masks/049.nii                 what bleeds, without a word on its kind

``hemorrhage_diagnosis_raw_ct.csv`` beside it belongs to other images with other numbers of slices and is never read.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from inference.result import SUBTYPES
from inference.volume import AIR_HU
from training.errors import DataError
from training.sources.folder import DECODER, csv_rows, zero_or_one
from training.study import Arrays, CohortFacts, LabelledStudy, Labels, patient_key, slice_digests, volume_key, with_any

TABLE, SCANS, MASKS = "hemorrhage_diagnosis.csv", "ct_scans", "masks"
COLUMNS = {name.capitalize(): name for name in SUBTYPES}
NONE = "No_Hemorrhage"

log = logging.getLogger(__name__)


def studies(root: Path) -> Iterator[LabelledStudy]:
    """Every labelled scan below `root`, in the order of the patients' numbers.

    Raises
    ------
    DataError
        The table is missing or contradicts itself, or there is no scan of a patient in it.
    """
    for number, labels in sorted(read_labels(root / TABLE).items()):
        scan, mask = _file(root / SCANS, number), _file(root / MASKS, number)
        if scan is None:
            raise DataError(f"{root / SCANS}: no scan of patient {number}, whom {TABLE} names")
        image: Any = nibabel.load(scan)
        sizes = [float(size) for size in image.header.get_zooms()]
        if image.shape[2] != len(labels) or set(labels) != set(range(1, len(labels) + 1)):
            raise DataError(
                f"{scan} has {image.shape[2]} slices, {TABLE} labels {len(labels)}: "
                "are these the images of hemorrhage_diagnosis_raw_ct.csv?"
            )
        states = [(path.name, path.stat()) for path in (scan, mask) if path is not None]
        yield LabelledStudy(
            source="physionet",
            patient=patient_key(f"physionet ct-ich {number}"),
            study_uid=f"physionet-{number:03d}",
            group="physionet",
            key=volume_key(DECODER, [(n, s.st_size, s.st_mtime_ns) for n, s in states], sorted(labels.items())),
            decode=partial(_volume, scan, mask, labels),
            slice_labels={str(slice_number): row for slice_number, row in labels.items()},
            facts=CohortFacts(pixel_mm=sizes[0], spacing_mm=sizes[2], thickness_mm=sizes[2], slices=len(labels)),
        )


def read_labels(path: Path) -> dict[int, dict[int, Labels]]:
    """Patient → slice (from 1) → six labels, columns found by name."""
    found: dict[int, dict[int, Labels]] = defaultdict(dict)
    for line, row in csv_rows(path, ("PatientNumber", "SliceNumber", *COLUMNS, NONE)):
        values = {column: zero_or_one(row[column], path=path, line=line, column=column) for column in (*COLUMNS, NONE)}
        none = values.pop(NONE)
        if (none == 1) == (1 in values.values()):
            raise DataError(f"{path.name}, line {line}, column {NONE}: {none:g} contradicts the five kinds")
        try:
            patient, place = int(row["PatientNumber"]), int(row["SliceNumber"])
        except ValueError as error:
            raise DataError(f"{path.name}, line {line}: PatientNumber and SliceNumber are whole numbers") from error
        if place in found[patient]:
            raise DataError(f"{path.name}, line {line}: slice {place} of patient {patient} stands there twice")
        found[patient][place] = with_any({COLUMNS[column]: value for column, value in values.items()})
    return dict(found)


def _file(folder: Path, number: int) -> Path | None:
    return next((p for p in (folder / f"{number:03d}.nii", folder / f"{number:03d}.nii.gz") if p.exists()), None)


def _volume(scan: Path, mask: Path | None, labels: Mapping[int, Labels]) -> Arrays:
    """The volume as DICOM has it: feet to head, rows to the back, columns to the patient's left."""
    hu, numbers, sizes = _oriented(scan)
    arrays: dict[str, NDArray[Any]] = {
        "hu": np.clip(np.rint(hu), AIR_HU, 32767).astype(np.int16),
        "spacing": np.array([sizes[1], sizes[0]]),
        "positions": np.arange(len(hu)) * sizes[2],
        "thickness": np.full(len(hu), sizes[2]),
        "uids": np.array([str(number) for number in numbers]),
    }
    arrays["digests"] = slice_digests(arrays["hu"])
    if mask is not None:
        outlined, _, _ = _oriented(mask)
        if outlined.shape != hu.shape:
            raise DataError(f"{mask} is of {outlined.shape}, {scan} of {hu.shape}")
        # The outline does not say of what kind: it counts for every kind that the slice is labelled with.
        kinds = [sum(1 << i for i, value in enumerate(labels[number][1:]) if value == 1) for number in numbers]
        arrays["masks"] = (outlined > 0).astype(np.uint8) * np.array(kinds, np.uint8)[:, None, None]
    return arrays


def _oriented(path: Path) -> tuple[NDArray[np.float32], list[int], tuple[float, float, float]]:
    """Values (slices, rows, columns), each slice's number in the file, and the sizes of a voxel: x, y, z in mm."""
    image: Any = nibabel.load(path)
    upright: Any = nibabel.as_closest_canonical(image)  # x to the right, y front, z up
    if nibabel.aff2axcodes(image.affine)[2] not in "SI":
        raise DataError(f"{path}: the slices are not axial")
    values = np.asarray(upright.dataobj, np.float32).transpose(2, 1, 0)[:, ::-1, ::-1]
    numbers = list(range(1, image.shape[2] + 1))
    if nibabel.aff2axcodes(image.affine)[2] == "I":
        numbers.reverse()
    x, y, z = (float(size) for size in upright.header.get_zooms())
    return values, numbers, (x, y, z)
