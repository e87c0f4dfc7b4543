"""RSNA 2019 Intracranial Hemorrhage (Flanders et al., Radiology: AI 2020;2(3):e190211), as Kaggle gives it out.

::

    ROOT/stage_2_train.csv             ID,Label: six rows an image, ID_<9 hex>_<type>
    ROOT/stage_2_train/ID_<9 hex>.dcm  one folder of all images

The table knows neither patients nor studies, the file names no order: both come from the headers. UIDs are no legal
UIDs, 24 rows stand there twice, one image is cut off, and some hold signed values that wrapped around.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from inference.facts import facts
from inference.geometry import normal_of
from inference.result import ANY, LABELS, SUBTYPES
from training.errors import DataError
from training.sources.folder import Row, csv_rows, decoded, files_key, header, headers, indexed, zero_or_one
from training.study import CohortFacts, LabelledStudy, Labels, patient_key

TABLE, IMAGES = "stage_2_train.csv", "stage_2_train"
KINDS = (*SUBTYPES, ANY)
CORRUPT = frozenset({"ID_6431af929"})
"""Its pixel data are shorter than its rows and columns."""
COLUMNS = ("image", "patient", "study", "series", "position_mm", "pixel_mm")
_TAGS = (
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Image:
    name: str
    position: float | None
    pixel_mm: float | None


def studies(root: Path, *, index: Path) -> Iterator[LabelledStudy]:
    """Every labelled series below `root`, by patient; `index` is where the headers' index is kept.

    Raises
    ------
    DataError
        The table or the folder is missing, or the table contradicts itself.
    """
    folder = root / IMAGES
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; an RSNA folder holds {TABLE} and {IMAGES}/")
    labels = read_labels(root / TABLE)
    rows = indexed(folder, kind="rsna", columns=COLUMNS, rows=partial(_headers, folder), index=index)
    series: dict[tuple[str, str, str], list[_Image]] = defaultdict(list)
    for image, patient, study, uid, position, pixel in rows:
        if image in labels:
            series[patient, study, uid].append(
                _Image(name=image, position=_number(position), pixel_mm=_number(pixel))
            )  # fmt: skip
    if not series:
        raise DataError(f"no image in {folder} is named in {TABLE}")
    for (patient, study, uid), images in sorted(series.items()):
        yield _study(folder, patient, study, uid, images, labels)


def _study(
    folder: Path, patient: str, study: str, series: str, images: list[_Image], labels: dict[str, Labels]
) -> LabelledStudy:
    paths = [folder / f"{image.name}.dcm" for image in sorted(images, key=lambda image: image.name)]
    along = np.sort([image.position for image in images if image.position is not None])
    return LabelledStudy(
        source="rsna",
        patient=patient_key(patient),
        study_uid=study,
        series_uid=series,
        group="rsna",
        key=files_key(paths),
        decode=partial(decoded, paths),
        headers=partial(headers, paths),
        slice_labels={image.name: labels[image.name] for image in images},
        facts=CohortFacts(
            slices=len(images),
            spacing_mm=round(float(np.median(np.diff(along))), 3) if len(along) > 1 else None,
            pixel_mm=images[0].pixel_mm,
        ),
    )


def read_labels(path: Path) -> dict[str, Labels]:
    """Image → its six labels in our order. Rows that stand there twice count once; contradictions are errors."""
    codes: dict[str, int] = {}  # two bits a label: known, positive; 4.5 million rows have to fit into memory
    known = {kind: place for place, kind in enumerate(KINDS)}
    for line, row in csv_rows(path, ("ID", "Label")):
        image, _, kind = row["ID"].rpartition("_")
        if kind not in known or not image:
            raise DataError(f"{path.name}, line {line}, column ID: {row['ID']!r}, expected ID_<9 hex>_<type>")
        value = int(zero_or_one(row["Label"], path=path, line=line, column="Label"))
        place, code = 2 * known[kind], codes.get(image, 0)
        if code >> place & 1 and code >> place + 1 & 1 != value:
            raise DataError(f"{path.name}, line {line}: {row['ID']} stands there twice with different labels")
        codes[image] = code | (1 | value << 1) << place
    whole = int("01" * len(KINDS), 2)
    for image, code in codes.items():
        if code & whole != whole:
            raise DataError(f"{path.name}: {image} has not all of the labels {', '.join(KINDS)}")
    return {
        image: tuple(float(code >> 2 * known[name] + 1 & 1) for name in LABELS)
        for image, code in codes.items()
        if image not in _noted(image)
    }


def _noted(image: str) -> frozenset[str]:
    if image in CORRUPT:
        log.warning("%s left out: its pixel data are known to be cut off", image)
    return CORRUPT


def _headers(folder: Path) -> Iterator[Row]:
    """One row for every image, from its header alone."""
    for path in sorted(folder.glob("*.dcm")):
        dataset = header(path, _TAGS)
        if dataset is None or "StudyInstanceUID" not in dataset:
            log.warning("%s left out: no DICOM header", path.name)
            continue
        known = facts(dataset)
        normal = normal_of(known.orientations[0]) if known.orientations and known.orientations[0] else None
        position = known.positions[0] if known.positions else None
        along = None if normal is None or position is None else float(np.dot(normal, position))
        pixel = known.pixel_spacing[0] if known.pixel_spacing else None
        patient = str(dataset.get("PatientID", ""))
        yield path.stem, patient, known.study_uid, known.series_uid, _text(along), _text(pixel)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _number(value: str) -> float | None:
    return float(value) if value else None
