"""What a phantom study shall look like: sizes, noise, blood, mimics, and the presets easy, real and hard."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Clot:
    """Density and size of one subtype: mean HU with its spread over patients, and a factor on every length."""

    mean_hu: float
    sd_hu: float
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How studies are drawn. Ranges are uniform unless said otherwise.

    `slices` fixes their number and spreads them over the head, so that the thickness follows; None takes as many as
    `thickness_mm` needs. `mixed` is the chance that the skull base is cut at half the thickness of the rest.
    `subplanes` is how many planes are averaged through each slice. `clots` maps a subtype to its density and size and
    replaces `blood_hu`. `mimics` and `artefacts` multiply how often each of them occurs. `cut` is the chance that the
    vertex or the skull base is not covered, `child` that the head is a child's.
    """

    size: int = 256
    fov_mm: tuple[float, float] = (218.0, 250.0)
    slices: int | None = None
    thickness_mm: float = 5.0
    mixed: float = 0.0
    subplanes: int = 3
    p_positive: float = 0.5
    tilt_degrees: tuple[float, float] = (-22.0, 22.0)
    p_tilt: float = 0.5
    turn_degrees: float = 6.0
    noise_hu: tuple[float, float] = (3.0, 6.5)
    blood_hu: tuple[float, float] = (52.0, 76.0)
    lesion_scale: tuple[float, float] = (0.5, 1.3)
    clots: dict[str, Clot] = field(default_factory=dict)
    mimics: float = 1.0
    artefacts: float = 1.0
    several: float = 0.35
    subtype_odds: tuple[float, ...] = (0.30, 0.14, 0.24, 0.24, 0.08)
    cut: float = 0.1
    child: float = 0.06


EASY = Spec(noise_hu=(2.0, 4.0), blood_hu=(60.0, 80.0), lesion_scale=(0.8, 1.6), mimics=0.5, artefacts=0.5)
"""Large, dense bleeds in quiet images."""

REAL = Spec(
    noise_hu=(3.5, 7.0),
    clots={
        "intraparenchymal": Clot(mean_hu=54, sd_hu=8, scale=1.25),
        "intraventricular": Clot(mean_hu=47, sd_hu=8, scale=0.9),
        "subarachnoid": Clot(mean_hu=48, sd_hu=8, scale=0.5),
        "subdural": Clot(mean_hu=53, sd_hu=10, scale=0.6),
        "epidural": Clot(mean_hu=55, sd_hu=9, scale=1.75),
    },
)
"""Densities and volumes near those of 192 annotated scans (BHSD, as tabulated by InSilicoICH)."""

HARD = Spec(
    noise_hu=(5.0, 9.0), blood_hu=(44.0, 62.0), lesion_scale=(0.25, 0.8), mimics=1.5, artefacts=1.0, several=0.15
)
"""Small, faint bleeds in noisy images full of mimics."""

PRESETS = {"easy": EASY, "real": REAL, "hard": HARD}
