"""Header habits of CT makers: how each stores Hounsfield units, pads, windows, numbers and names its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

AXIAL, BONE, LOCALIZER, CORONAL, SAGITTAL, DOSE = "axial", "bone", "localizer", "coronal", "sagittal", "dose"
EXAM = (LOCALIZER, AXIAL, BONE, CORONAL, SAGITTAL, DOSE)
"""The series of a whole exam, in the order of their numbers."""


def _names(**given: str) -> Mapping[str, str]:
    return MappingProxyType(given)


@dataclass(frozen=True, kw_only=True)
class Maker:
    """One maker's habits.

    `stored = (HU - intercept) / slope`. `padding` is the stored value outside the circle of reconstruction, None where
    the image fills the square; `padding_tagged` says whether PixelPaddingValue admits it. `descriptions` holds
    SeriesDescription by kind of series. `numbering` is the order of InstanceNumber along the body.
    """

    key: str
    manufacturer: str
    model: str
    software: str
    kernel: tuple[str, ...]
    bone_kernel: tuple[str, ...]
    descriptions: Mapping[str, str]
    signed: bool
    bits: int
    intercept: float
    slope: float = 1.0
    padding: int | None = None
    padding_tagged: bool = False
    windows: tuple[tuple[float, float], ...] = ((40.0, 80.0),)
    tilt_tagged: bool = True
    spacing_tagged: bool = False
    numbering: Literal["up", "down", "shuffled"] = "up"
    flavour: tuple[str, ...] = ("AXIAL",)
    study_description: str = "CT HEAD WITHOUT CONTRAST"
    protocol: str = "HEAD ROUTINE"


MAKERS: Mapping[str, Maker] = MappingProxyType(
    {
        maker.key: maker
        for maker in (
            Maker(
                key="ge",
                manufacturer="GE MEDICAL SYSTEMS",
                model="Revolution CT",
                software="phantom.ge.1",
                kernel=("STANDARD",),
                bone_kernel=("BONEPLUS",),
                descriptions=_names(
                    axial="AXIAL 5MM HEAD",
                    bone="BONE 2.5MM",
                    localizer="SCOUT",
                    coronal="COR HEAD",
                    sagittal="SAG HEAD",
                    dose="Dose Report",
                ),
                signed=True,
                bits=16,
                intercept=-1024,
                padding=-2000,
                padding_tagged=True,
                numbering="down",
            ),
            Maker(
                key="ge_old",
                manufacturer="GE MEDICAL SYSTEMS",
                model="HiSpeed Dual",
                software="phantom.ge.0",
                kernel=("STD+",),
                bone_kernel=("BONE",),
                descriptions=_names(
                    axial="",
                    bone="",
                    localizer="",
                    coronal="Processed Images",
                    sagittal="Processed Images",
                    dose="Dose Report",
                ),
                signed=True,
                bits=16,
                intercept=0,
                padding=-1500,
                padding_tagged=True,
                windows=((35.0, 100.0),),
                flavour=("AXIAL", "ADD"),
                study_description="HEAD",
            ),
            Maker(
                key="siemens",
                manufacturer="SIEMENS",
                model="SOMATOM Definition AS",
                software="phantom.siemens.1",
                kernel=("H31s",),
                bone_kernel=("H60s",),
                descriptions=_names(
                    axial="Head  5.0  H31s",
                    bone="Head  2.0  H60s",
                    localizer="Topogram  0.6  T20f",
                    coronal="MPR cor 3.0",
                    sagittal="MPR sag 3.0",
                    dose="Patient Protocol",
                ),
                signed=False,
                bits=12,
                intercept=-1024,
                windows=((35.0, 80.0), (700.0, 3200.0)),
                spacing_tagged=True,
                flavour=("AXIAL", "CT_SOM5 SEQ"),
            ),
            Maker(
                key="siemens_alpha",
                manufacturer="Siemens Healthineers",
                model="NAEOTOM Alpha",
                software="phantom.siemens.2",
                kernel=("Hr40f", "3"),
                bone_kernel=("Hr60f", "3"),
                descriptions=_names(
                    axial="HEAD 1.0 Hr40 Q3",
                    bone="HEAD 0.6 Hr60 Q3",
                    localizer="Topogram 0.6 Tr20f",
                    coronal="HEAD cor 2.0",
                    sagittal="HEAD sag 2.0",
                    dose="Dose Info",
                ),
                signed=False,
                bits=16,
                intercept=-8192,
                windows=((40.0, 80.0), (450.0, 1500.0)),
                flavour=("AXIAL", "CT_SOM8 SPI QSD"),
            ),
            Maker(
                key="philips",
                manufacturer="Philips",
                model="iCT 256",
                software="phantom.philips.1",
                kernel=("UB",),
                bone_kernel=("YD",),
                descriptions=_names(
                    axial="HEAD BRAIN/BONE, iDose (3)",
                    bone="HEAD BRAIN/BONE",
                    localizer="Surview",
                    coronal="COR MPR",
                    sagittal="SAG MPR",
                    dose="Dose Info",
                ),
                signed=False,
                bits=12,
                intercept=-1024,
                windows=((40.0, 80.0), (40.0, 80.0)),
                numbering="down",
                tilt_tagged=False,
            ),
            Maker(
                key="canon",
                manufacturer="TOSHIBA",
                model="Aquilion ONE",
                software="phantom.canon.1",
                kernel=("FC26",),
                bone_kernel=("FC30",),
                descriptions=_names(
                    axial="CTA 5.0",
                    bone="Body 1.0 Bone",
                    localizer="Scano",
                    coronal="Brain COR",
                    sagittal="Brain SAG",
                    dose="Dose",
                ),
                signed=True,
                bits=16,
                intercept=0,
                padding=-2048,
                padding_tagged=False,
                windows=((35.0, 85.0),),
                numbering="shuffled",
                protocol="CTA HEAD AND NECK",
            ),
            Maker(
                key="neusoft",
                manufacturer="Neusoft Medical Systems",
                model="NeuViz 128",
                software="phantom.neusoft.1",
                kernel=("SOFT",),
                bone_kernel=("BONE",),
                descriptions=_names(
                    axial="Bone 5.0",
                    bone="Brain 5.0",
                    localizer="Surview",
                    coronal="Cor",
                    sagittal="Sag",
                    dose="Dose",
                ),
                signed=True,
                bits=16,
                intercept=-1024,
                slope=0.5,
                windows=((40.0, 100.0),),
                numbering="shuffled",
                tilt_tagged=False,
                study_description="SKULL",
            ),
        )
    }
)
