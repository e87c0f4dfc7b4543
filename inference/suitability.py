"""Judgement of one stack: why it is not to be read, or what speaks against reading it first.

Tags and geometry refuse; a description alone never does, it only makes a doubt that lowers the rank: descriptions
are written by people and by protocols, and mislead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from inference.facts import InstanceFacts
from inference.kernels import Sharpness, sharpness
from inference.stacks import Stack, is_localizer


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """Which series may be read, and which first; every value can be set in node.toml.

    Lengths in mm, angles in degrees. Words and kernels are regular expressions, searched without regard to case.
    `contrast`, `derived`: ``refuse``, or ``last`` (read only where nothing better is there), or ``accept``.
    """

    min_slices: int = 8
    min_coverage_mm: float = 60.0
    full_coverage_mm: float = 110.0
    max_coverage_mm: float = 350.0
    max_thickness_mm: float = 10.0
    preferred_thickness_mm: float = 5.0
    max_tilt_degrees: float = 30.0
    max_obliquity_degrees: float = 15.0
    min_fov_mm: float = 120.0
    max_fov_mm: float = 350.0
    accepted_kernels: tuple[str, ...] = ()
    rejected_kernels: tuple[str, ...] = ()
    contrast: Literal["refuse", "last", "accept"] = "refuse"
    derived: Literal["refuse", "last", "accept"] = "last"
    max_series: int = 1
    head_words: tuple[str, ...] = (
        r"\bhead",
        r"brain",
        r"skull",
        r"\bcran",
        r"kran",
        r"\bkopf",
        r"sch(ae|ä)del",
        r"\bn?cct\b",
        r"\b[nh]ct\b",
        r"cereb|zerebr",
        r"enc[eé]f|enceph",
        r"t[eê]te\b",
        r"cabeza|cabe[cç]a",
        r"\btesta\b",
        r"neuro",
        r"stroke|apoplex",
    )
    other_part_words: tuple[str, ...] = (
        r"chest|thora|\btorax|lung|pulmon",
        r"abd(omen|om|\b)",
        r"pelvi|becken|bassin",
        r"spine|wirbel|cervic|lumbar|dorsal|colum|\b[chlbt]ws\b|rachis",
        r"\bneck|\bhals|\bcuello|\bcou\b|carotid",
        r"knee|\bknie|genou|rodilla|ankle|\bfoot|\bhip\b|shoulder|schulter|wrist|elbow|\bhand\b|femur|tibia|\bleg\b|extrem",
        r"heart|cardi|coronar|aort",
        r"liver|kidney|\bkub\b|colon\b",
        r"sinus|\bnnh\b|facial|\bface|maxill|mandib|dental|\borbit",
        r"petrous|temporal bone|\biacs?\b|felsenbein|rocher|mastoid",
    )
    contrast_words: tuple[str, ...] = (
        r"\+ ?c\b|\bc ?\+|\+ ?km\b|\bkm\b",
        r"contrast|\bpost (gad|inj)|enhanc",
        r"\bct[apv]\b|angio|perfu|venogra|arterial|venous|bolus|monitoring",
    )
    no_contrast_words: tuple[str, ...] = (
        r"without|\bw/?o\b|ohne|sans|\bsin\b",
        r"\bnon?[ -]?(con|enh|iv)|unenh|\bpre\b|\bnativ|plain|\bnc\b|ncct|\bc ?-(?!\w)",
    )
    sharp_words: tuple[str, ...] = (r"\bbone|knochen|\bos\b|osseux|hueso|\bsharp|\bedge\b",)


@dataclass(frozen=True, kw_only=True)
class Objection:
    """A stable code and a sentence."""

    code: str
    reason: str


_CT_IMAGES = {
    "",  # a data set without its class, told by its modality
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
}
# Storage classes (PS3.4 B.5) by the beginning of their UID, the most particular first.
_ROOT = "1.2.840.10008.5.1.4.1.1."
_CLASSES = (
    ("88.59", Objection(code="key_object_selection", reason="a key object selection, holds no images")),
    ("88.67", Objection(code="dose_report", reason="a radiation dose report, holds no images")),
    ("88.68", Objection(code="dose_report", reason="a radiation dose report, holds no images")),
    ("88.76", Objection(code="dose_report", reason="a radiation dose report, holds no images")),
    ("88", Objection(code="structured_report", reason="a structured report, holds no images")),
    ("11", Objection(code="presentation_state", reason="a presentation state, holds no images")),
    ("66.4", Objection(code="segmentation", reason="a segmentation, not an image of the patient")),
    ("66.7", Objection(code="segmentation", reason="a segmentation, not an image of the patient")),
    (
        "7",
        Objection(code="secondary_capture", reason="a secondary capture: pixels are a screen's, not Hounsfield units"),
    ),
    ("104", Objection(code="not_an_image", reason="an encapsulated document, holds no images")),
    ("9", Objection(code="not_an_image", reason="a waveform, holds no images")),
    ("66", Objection(code="not_an_image", reason="raw data or a registration, holds no images")),
    ("481", Objection(code="not_an_image", reason="a radiotherapy object, not an image of the patient")),
)
_PROJECTIONS = re.compile(
    r"\bM(AX|IN)?_?IP\b|MIN_?IP|MAX_?IP|PROJECTION|VOLUME|VRT|SSD|3D|SUBTRACT|SCREEN|CAPTURE|PERFUSION|IODINE|VNC|MONO_?E"
    r"|CBF|CBV|MTT|TTP|TMAX|RGB"
)
_REFORMATS = re.compile(r"MPR|REFORMAT|RESAMPLED|AVERAGE")
_DOSE = re.compile(r"dose (report|info|record)|patient protocol|dosisbericht|exam protocol", re.IGNORECASE)
_NO_AGENT = re.compile(
    r"no(ne|t .*|n.*)?|n|neg|nil|0|-+|\?|unknown|without.*|w/?o.*|ohne.*|sans.*|sin .*|nativ.*|plain", re.IGNORECASE
)


def matches(words: tuple[str, ...], text: str | None) -> bool:
    """Whether any of `words` is found in `text`; underscores and dots count as spaces."""
    plain = re.sub(r"[_.,;]", " ", text or "")
    return any(re.search(word, plain, re.IGNORECASE) for word in words)


def kernel_sharpness(facts: InstanceFacts, criteria: Criteria) -> Sharpness:
    """What the series' kernel is for, a site's own patterns first."""
    return sharpness(facts.kernel, accepted=criteria.accepted_kernels, rejected=criteria.rejected_kernels)


def not_a_ct_image(facts: InstanceFacts) -> Objection | None:
    """Why the object is no CT image, told by its storage class, modality and pixels; None where it is one."""
    if _DOSE.search(facts.series_description or "") or any(v.endswith(" PROT") for v in facts.image_type):
        return Objection(code="dose_report", reason="a dose or protocol page, not an image of the patient")
    if facts.sop_class_uid not in _CT_IMAGES:
        family = facts.sop_class_uid.removeprefix(_ROOT)
        for prefix, objection in _CLASSES:
            if family == prefix or family.startswith(f"{prefix}."):
                return objection
        return Objection(code="not_ct", reason=f"not a CT image (modality {facts.modality or 'unknown'})")
    if (facts.modality or "CT").upper() != "CT":
        return Objection(code="not_ct", reason=f"not a CT image (modality {facts.modality})")
    if is_localizer(facts):
        return Objection(code="localizer", reason="a localizer (scout view), not a slice")
    if (facts.samples_per_pixel or 1) != 1:
        return Objection(code="secondary_capture", reason="colour images: not Hounsfield units")
    if not facts.has_pixels:
        return Objection(code="not_an_image", reason="holds no images")
    return None


def refusal(stack: Stack, criteria: Criteria, *, arriving: bool = False) -> Objection | None:
    """Why the stack is not to be read; None for a candidate.

    With `arriving`, slices are still to come: their number and extent refuse nothing yet.
    """
    head, geometry = stack.head, stack.geometry
    return (
        not_a_ct_image(head)
        or _misplaced(stack, criteria)
        or _other_part(stack, criteria)
        or (None if arriving else _too_few(stack, criteria))
        or _tagged(head, criteria)
        or (None if arriving or geometry.coverage_mm >= criteria.min_coverage_mm else _short(stack, criteria))
    )


def doubts(stack: Stack, criteria: Criteria) -> tuple[Objection, ...]:
    """What speaks against a candidate, the weightiest first; none of it is enough to refuse it."""
    head = stack.head
    found: list[Objection] = []
    if _is_derived(head) and criteria.derived != "accept":
        found.append(Objection(code="derived", reason="a derived (reformatted) series"))
    if has_contrast(head) and criteria.contrast == "last":
        found.append(Objection(code="contrast", reason=f"contrast-enhanced (agent {head.contrast_agent!r})"))
    elif criteria.contrast != "accept" and _describes_contrast(head, criteria):
        found.append(
            Objection(code="contrast", reason="its description speaks of contrast, though no agent is recorded")
        )
    kernel = kernel_sharpness(head, criteria)
    if kernel is Sharpness.UNKNOWN and matches(criteria.sharp_words, head.series_description):
        found.append(
            Objection(code="sharp_kernel", reason="its description speaks of a bone kernel; the kernel is not known")
        )
    texts, sizes = _other_part_evidence(stack, criteria)
    if texts or sizes:
        found.append(
            Objection(code="other_body_part", reason=f"may show another body part ({', '.join((*texts, *sizes))})")
        )
    return tuple(found)


def has_contrast(facts: InstanceFacts) -> bool:
    """Whether a contrast agent is recorded; agents that say 'none' in some language are not one."""
    agent = (facts.contrast_agent or "").strip()
    return bool(agent) and not _NO_AGENT.fullmatch(agent)


def _misplaced(stack: Stack, criteria: Criteria) -> Objection | None:
    geometry = stack.geometry
    if geometry.normal is None:
        return Objection(code="no_geometry", reason="Image Position or Image Orientation (Patient) is missing")
    if len(geometry.dropped) >= 2 * len(geometry.order) and len(stack.planes) > criteria.min_slices:
        times = len(stack.planes) // len(geometry.order)
        return Objection(code="dynamic", reason=f"a dynamic series: each position was imaged about {times} times")
    tilt, oblique = abs(geometry.tilt_degrees), geometry.obliquity_degrees
    if tilt > criteria.max_tilt_degrees + 0.5 or oblique > criteria.max_obliquity_degrees:
        return Objection(code="not_axial", reason=f"{_plane(geometry.normal)} planes, not axial")
    thickness = stack.thickness_mm
    if thickness is not None and thickness > criteria.max_thickness_mm:
        limit = f"{criteria.max_thickness_mm:g} mm are the limit"
        return Objection(code="too_thick", reason=f"slices of {thickness:g} mm: {limit}")
    fov = stack.field_of_view_mm
    if fov is not None and fov < criteria.min_fov_mm:
        return Objection(code="small_field_of_view", reason=f"field of view of {fov:.0f} mm: too small to hold a head")
    return None


def _too_few(stack: Stack, criteria: Criteria) -> Objection | None:
    count = len(stack.geometry.order)
    if count >= criteria.min_slices:
        return None
    slices = "1 slice" if count == 1 else f"{count} slices"
    return Objection(code="too_few_slices", reason=f"only {slices}: at least {criteria.min_slices} are needed")


def _short(stack: Stack, criteria: Criteria) -> Objection:
    covered = f"covers only {stack.geometry.coverage_mm:.0f} mm"
    return Objection(
        code="incomplete_coverage", reason=f"{covered}: at least {criteria.min_coverage_mm:.0f} mm are needed"
    )


def _tagged(head: InstanceFacts, criteria: Criteria) -> Objection | None:
    """What single tags say: projections and derived series, bone kernel, contrast."""
    if any(_PROJECTIONS.search(value) for value in head.image_type[2:]):
        return Objection(code="derived", reason=f"a computed image ({head.image_type[-1]}), not slices of the scan")
    if kernel_sharpness(head, criteria) is Sharpness.SHARP:
        return Objection(
            code="sharp_kernel", reason=f"kernel {head.kernel}: made for bone or lung, not for soft tissue"
        )
    if criteria.contrast == "refuse" and has_contrast(head):
        return Objection(code="contrast", reason=f"contrast-enhanced (agent {head.contrast_agent!r})")
    if criteria.derived == "refuse" and _is_derived(head):
        return Objection(code="derived", reason="a derived (reformatted) series, not the original slices")
    return None


def _is_derived(head: InstanceFacts) -> bool:
    kinds = head.image_type
    return bool(kinds) and (
        kinds[0] == "DERIVED" or "SECONDARY" in kinds[1:2] or any(_REFORMATS.search(value) for value in kinds[2:])
    )


def _describes_contrast(head: InstanceFacts, criteria: Criteria) -> bool:
    described = head.series_description
    return not matches(criteria.no_contrast_words, described) and matches(criteria.contrast_words, described)


def _other_part(stack: Stack, criteria: Criteria) -> Objection | None:
    """Another body part, where two independent signs agree and nothing of the series names the head."""
    texts, sizes = _other_part_evidence(stack, criteria)
    named = (stack.head.body_part, stack.head.series_description, stack.head.protocol_name)
    if len(texts) + len(sizes) < 2 or any(matches(criteria.head_words, text) for text in named):
        return None
    return Objection(code="other_body_part", reason=f"another body part ({', '.join((*texts, *sizes))})")


def _other_part_evidence(stack: Stack, criteria: Criteria) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Signs of another body part: what texts say that do not also name the head, and sizes no head has."""
    head = stack.head
    named = {
        "body part": head.body_part,
        "series description": head.series_description,
        "protocol": head.protocol_name,
        "study description": head.study_description,
    }
    texts = tuple(
        f"{name} {text!r}"
        for name, text in named.items()
        if matches(criteria.other_part_words, text) and not matches(criteria.head_words, text)
    )
    fov, coverage = stack.field_of_view_mm, stack.geometry.coverage_mm
    sizes = []
    if fov is not None and fov > criteria.max_fov_mm:
        sizes.append(f"field of view {fov:.0f} mm")
    if coverage > criteria.max_coverage_mm:
        sizes.append(f"coverage {coverage:.0f} mm")
    return texts, tuple(sizes)


def _plane(normal: tuple[float, float, float]) -> str:
    axis = max(range(3), key=lambda i: abs(normal[i]))
    name = ("sagittal", "coronal", "axial")[axis]
    return name if abs(normal[axis]) > 0.97 else f"oblique {name}"
