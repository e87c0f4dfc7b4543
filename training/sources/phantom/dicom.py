"""A phantom study as real DICOM: CT Image Storage instances with one maker's header habits, and their files."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import gdcm
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
)
from pydicom.valuerep import DSfloat

from training.sources.phantom.makers import AXIAL, BONE, DOSE, EXAM, LOCALIZER, MAKERS, Maker
from training.sources.phantom.reformat import Image, bone_kernel, dose_page, localizers, reformats
from training.sources.phantom.study import PhantomStudy

IMPLEMENTATION = UID("2.25.210318642119846013270384923170398217145")
PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)


@dataclass(frozen=True, kw_only=True)
class Exam:
    """One exam: who, when, and the root of every UID in it.

    The same `seed` and `salt` make the same UIDs again; another `salt` makes another patient's exam of the same head.
    """

    study: PhantomStudy
    maker: Maker
    salt: str = ""
    when: datetime | None = None

    def uid(self, *role: object) -> UID:
        """The UID of `role` in this exam, derived as a UUID (PS3.5 B.2)."""
        name = "/".join(str(part) for part in (self.salt, self.study.seed, self.maker.key, *role))
        return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}")

    @property
    def study_uid(self) -> UID:
        """StudyInstanceUID."""
        return self.uid("study")

    def series_uid(self, kind: str) -> UID:
        """SeriesInstanceUID of one kind of series."""
        return self.uid("series", kind)

    @property
    def started(self) -> datetime:
        """When the exam began: `when`, or a time that follows from the seed."""
        # No zone: DICOM's DA and TM are local times of the scanner.
        return self.when or datetime(2024, 1, 1, 8) + timedelta(minutes=self.study.seed % 500_000)  # noqa: DTZ001

    @property
    def accession_number(self) -> str:
        """Sixteen characters at most, different for another salt."""
        return f"PH{uuid.uuid5(uuid.NAMESPACE_OID, f'{self.salt}/{self.study.seed}').int % 10**10:010d}"


def write_study(
    study: PhantomStudy,
    folder: Path,
    *,
    maker: Maker,
    series: Sequence[str] = (AXIAL,),
    transfer_syntax: str = ExplicitVRLittleEndian,
    salt: str = "",
    when: datetime | None = None,
) -> list[Path]:
    """Write `study` below `folder` as the maker's scanner would send it; return the files in the order of sending.

    Parameters
    ----------
    series
        Which of `EXAM` to write: axial, bone, localizer, coronal, sagittal, dose.
    transfer_syntax
        A UID: implicit, explicit or deflated little endian, or lossless RLE, JPEG SV1, JPEG-LS or JPEG 2000.
    salt
        Another salt gives the same images under other UIDs.
    when
        Local time of the exam; None takes one that follows from the seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ds in instances(study, maker=maker, series=series, salt=salt, when=when):
        path = folder / f"{int(ds.SeriesNumber):02d}_{int(ds.InstanceNumber):04d}.dcm"
        save(ds, path, transfer_syntax=transfer_syntax)
        paths.append(path)
    return paths


def write_localizer_only_study(
    study: PhantomStudy, folder: Path, *, maker: Maker = MAKERS["ge"], salt: str = ""
) -> list[Path]:
    """Write an exam that ended after its localizers: nothing in it can be read for haemorrhage."""
    return write_study(study, folder, maker=maker, series=(LOCALIZER,), salt=salt)


def instances(
    study: PhantomStudy,
    *,
    maker: Maker,
    series: Sequence[str] = (AXIAL,),
    salt: str = "",
    when: datetime | None = None,
) -> Iterator[Dataset]:
    """The data sets of `write_study`, with file meta information, uncompressed, in the order of sending.

    Raises
    ------
    ValueError
        A kind of series is not one of `EXAM`.
    """
    unknown = set(series) - set(EXAM)
    if unknown:
        raise ValueError(f"no such series: {sorted(unknown)}; there are {', '.join(EXAM)}")
    exam = Exam(study=study, maker=maker, salt=salt, when=when)
    for kind in series:
        yield from _series(exam, kind)


def save(ds: Dataset, path: Path, *, transfer_syntax: str = ExplicitVRLittleEndian) -> None:
    """Write one data set as a DICOM file in the transfer syntax; the SOP Instance UID stays, as nothing is lost."""
    syntax = UID(transfer_syntax)
    if syntax == JPEGLosslessSV1:
        ds.save_as(path, enforce_file_format=True)
        _to_jpeg_lossless(path)
        return
    if syntax in PLAIN:
        ds.file_meta.TransferSyntaxUID = syntax
    else:
        ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(path, enforce_file_format=True)


def _to_jpeg_lossless(path: Path) -> None:
    """Re-encode a file in place with GDCM, which holds the only encoder for this process."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    writer = gdcm.ImageWriter()
    read = reader.Read()
    change.SetInput(reader.GetImage())
    changed = read and change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not (changed and writer.Write()):
        raise OSError(f"GDCM could not write {path.name} as JPEG Lossless")


def _series(exam: Exam, kind: str) -> Iterator[Dataset]:
    study = exam.study
    if kind == DOSE:
        yield _dose(exam)
        return
    if kind in (AXIAL, BONE):
        sharp = bone_kernel(study.hu) if kind == BONE else study.hu
        images = [
            Image(hu=hu, position=p, orientation=study.orientation, spacing=study.pixel_spacing, thickness=float(t))
            for hu, p, t in zip(sharp, study.positions, study.thickness, strict=True)
        ]
    elif kind == LOCALIZER:
        images = localizers(study)
    else:
        images = reformats(study, kind)
    numbers = _numbers(exam, kind, len(images))
    for image, number in zip(images, numbers, strict=True):
        yield _ct(exam, kind, image, number)


def _numbers(exam: Exam, kind: str, count: int) -> list[int]:
    """InstanceNumber of each image, from the feet upwards."""
    up = list(range(1, count + 1))
    if kind != AXIAL or exam.maker.numbering == "up":
        return up
    if exam.maker.numbering == "down":
        return up[::-1]
    return [int(n) for n in np.random.default_rng((exam.study.seed, 6)).permutation(up)]


def _common(exam: Exam, kind: str, number: int, sop_class: UID) -> Dataset:
    """Patient, study, series and equipment: everything that does not depend on the pixels."""
    maker, seed = exam.maker, exam.study.seed
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.FileMetaInformationVersion = b"\x00\x01"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = exam.uid(kind, number)
    ds.file_meta.ImplementationClassUID = IMPLEMENTATION
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 100"
    taken = exam.started + timedelta(seconds=20 * EXAM.index(kind) + number)
    for what, time in (("Study", exam.started), ("Series", exam.started), ("Acquisition", taken), ("Content", taken)):
        setattr(ds, f"{what}Date", f"{time:%Y%m%d}")
        setattr(ds, f"{what}Time", f"{time:%H%M%S}.{time.microsecond:06d}")
    ds.AccessionNumber, ds.StudyID = exam.accession_number, f"{seed % 10**8}"
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "CT", maker.manufacturer, maker.model
    ds.InstitutionName, ds.StationName, ds.SoftwareVersions = "SYNTHETIC", "PHANTOM", maker.software
    ds.DeviceSerialNumber = "0"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = maker.study_description
    if maker.descriptions[kind]:
        ds.SeriesDescription = maker.descriptions[kind]
    ds.PatientName, ds.PatientID = f"PHANTOM^SEED{seed:07d}", f"PHANTOM-{seed}"
    ds.PatientBirthDate, ds.PatientSex = f"{exam.started.year - (8 if exam.study.truth['child'] else 60)}0101", "O"
    ds.PatientAge = "008Y" if exam.study.truth["child"] else "060Y"
    ds.PatientComments = "Synthetic image of no patient"
    ds.BodyPartExamined, ds.ProtocolName = "HEAD", maker.protocol
    ds.StudyInstanceUID, ds.SeriesInstanceUID = exam.study_uid, exam.series_uid(kind)
    ds.SeriesNumber, ds.InstanceNumber = 1 + EXAM.index(kind), number
    return ds


def _ct(exam: Exam, kind: str, image: Image, number: int) -> Dataset:
    """One CT image (PS3.3 A.3)."""
    maker = exam.maker
    ds = _common(exam, kind, number, CTImageStorage)
    ds.ImageType = {
        AXIAL: ["ORIGINAL", "PRIMARY", *maker.flavour],
        BONE: ["ORIGINAL", "PRIMARY", *maker.flavour],
        LOCALIZER: ["ORIGINAL", "PRIMARY", "LOCALIZER"],
    }.get(kind, ["DERIVED", "SECONDARY", "REFORMATTED"])
    ds.PatientPosition = "HFS"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = exam.uid("frame"), ""
    ds.AcquisitionNumber = 1 + EXAM.index(kind)
    ds.KVP, ds.XRayTubeCurrent, ds.ExposureTime = 120, 250, 1000
    ds.ConvolutionKernel = list(maker.bone_kernel if kind == BONE else maker.kernel)
    ds.SliceThickness = _number(image.thickness)
    ds.ImagePositionPatient = [_number(c) for c in image.position]
    ds.ImageOrientationPatient = [_number(c) for c in image.orientation]
    ds.PixelSpacing = [_number(c) for c in image.spacing]
    ds.ReconstructionDiameter = _number(float(image.spacing[1]) * image.hu.shape[1])
    if kind in (AXIAL, BONE):
        ds.SliceLocation = _number(float(image.position[2]))
        if maker.tilt_tagged:
            # Scanners count the gantry's lean forward as positive; the columns then point downwards.
            ds.GantryDetectorTilt = _number(-float(exam.study.truth["tilt_degrees"]))
        if maker.spacing_tagged:
            ds.SpacingBetweenSlices = _number(image.thickness)
    _windows(ds, ((500.0, 2000.0),) if kind == BONE else maker.windows)
    _pixels(ds, maker, image.hu, pad=kind in (AXIAL, BONE))
    if kind == LOCALIZER:
        ds.RescaleType = "US"  # "unspecified": a projection has no Hounsfield units
    return ds


def _windows(ds: Dataset, windows: Sequence[tuple[float, float]]) -> None:
    centres, widths = zip(*windows, strict=True)
    ds.WindowCenter, ds.WindowWidth = [_number(c) for c in centres], [_number(w) for w in widths]
    if len(windows) > 1:
        ds.WindowCenterWidthExplanation = [f"WINDOW{i + 1}" for i in range(len(windows))]


def _pixels(ds: Dataset, maker: Maker, hu: npt.NDArray[np.int16], *, pad: bool) -> None:
    stored = np.rint((hu.astype(np.float64) - maker.intercept) / maker.slope)
    if pad and maker.padding is not None:
        stored[outside_circle(hu.shape)] = maker.padding
        if maker.padding_tagged:
            ds.PixelPaddingValue = maker.padding
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, maker.bits, maker.bits - 1
    ds.PixelRepresentation = int(maker.signed)
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = _number(maker.intercept), _number(maker.slope), "HU"
    ds.PixelData = stored.astype("<i2" if maker.signed else "<u2").tobytes()
    ds["PixelData"].VR = "OW"


def outside_circle(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """The corners (rows, columns) that lie outside the circle of reconstruction."""
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in shape)
    corners: npt.NDArray[np.bool_] = rows[:, None] ** 2 + columns[None] ** 2 > (min(shape) / 2) ** 2
    return corners


def _dose(exam: Exam) -> Dataset:
    """The dose page: a secondary capture (PS3.3 A.8) with burned-in text."""
    ds = _common(exam, DOSE, 1, UID("1.2.840.10008.5.1.4.1.1.7"))
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    ds.ConversionType, ds.BurnedInAnnotation = "WSD", "YES"
    ds.PatientOrientation = ""
    page = dose_page(exam.study.seed)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = page.shape
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = page.tobytes()
    ds["PixelData"].VR = "OB"
    return ds


def _number(value: float) -> DSfloat:
    return DSfloat(float(value), auto_format=True)
