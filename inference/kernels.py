"""Convolution kernels in their makers' vocabularies: which show soft tissue, and which were made for bone and lung.

The names are the makers' own and not standardised (Convolution Kernel is free text, PS3.3 C.8.2.1). A name that no
rule knows is *unknown*, which is not a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum


class Sharpness(StrEnum):
    """What a kernel is for."""

    SOFT = "soft"
    MEDIUM = "medium"
    SHARP = "sharp"
    UNKNOWN = "unknown"


# Words that several makers spell out (GE STANDARD, BONEPLUS; United Imaging H_SOFT_B, B_SHARP_C; NeuroLogica …).
_SHARP_WORDS = re.compile(r"BONE|EDGE|LUNG|SHARP|SHRP|ULTRA|HI[- ]?RES|HRES|INNER ?EAR|KNOCHEN|OSSEUX|HUESO")
_MEDIUM_WORDS = re.compile(r"DETAIL|\bDTL|CHST|CHEST")
_SOFT_WORDS = re.compile(r"STANDARD|STND|\bSTD|SOFT|SMOOTH|BRAIN|CEREB|HEAD|NEURO|ROUTINE|FOSSA|WEICH|HIRN")

# Siemens: a family letter or two, a two-digit sharpness, a speed letter (H30s, J40s, Hr40f, B60f, Hr69h, Qr36d\3).
_SIEMENS = re.compile(r"([ABCDHIJKQSTU])[A-Z]?(\d{2})(?:[A-Z]{0,2}\d?)")
_SIEMENS_MEDIUM, _SIEMENS_SHARP = 46, 50

# Canon (Toshiba): FC and two digits; the tens are the use: 1x body, 2x brain with and 4x without beam-hardening
# correction, 3x inner ear and bone, 5x lung, 6x brain with newer corrections, 8x bone.
_CANON = re.compile(r"F[CL](\d{2})(?:\b|_|-).*")
_CANON_TENS = {
    0: Sharpness.SOFT,
    1: Sharpness.SOFT,
    2: Sharpness.SOFT,
    3: Sharpness.SHARP,
    4: Sharpness.SOFT,
    5: Sharpness.SHARP,
    6: Sharpness.SOFT,
    8: Sharpness.SHARP,
}

# Philips: a letter or two. UA, UB, UC are the brain's smooth, standard and sharper filters; D and Y* enhance edges.
_PHILIPS = {
    **dict.fromkeys(("A", "B", "UA", "UB", "SA", "SB"), Sharpness.SOFT),
    **dict.fromkeys(("C", "UC", "EB", "EC", "SC", "XA", "XB"), Sharpness.MEDIUM),
    **dict.fromkeys(("D", "E", "L", "F", "YA", "YB", "YC", "YD", "YE"), Sharpness.SHARP),
}


def sharpness(kernel: str | None, *, accepted: Sequence[str] = (), rejected: Sequence[str] = ()) -> Sharpness:
    """What `kernel` is for.

    Parameters
    ----------
    kernel : Convolution Kernel as in the header; of several values (``Hr40f\\3``) the first that is known counts.
    accepted, rejected : a site's own regular expressions, searched without regard to case, rejected first; they
        overrule the vocabularies.
    """
    name = (kernel or "").strip()
    if any(re.search(pattern, name, re.IGNORECASE) for pattern in rejected if name):
        return Sharpness.SHARP
    if any(re.search(pattern, name, re.IGNORECASE) for pattern in accepted if name):
        return Sharpness.SOFT
    judged = (_of_one(value.strip().upper()) for value in name.split("\\"))
    return next((known for known in judged if known is not Sharpness.UNKNOWN), Sharpness.UNKNOWN)


def _of_one(name: str) -> Sharpness:
    if name in _PHILIPS:
        return _PHILIPS[name]
    if match := _CANON.fullmatch(name):
        return Sharpness.SHARP if name.startswith("FL") else _CANON_TENS.get(int(match[1]) // 10, Sharpness.UNKNOWN)
    if match := _SIEMENS.fullmatch(name):
        number = int(match[2])
        if number >= _SIEMENS_SHARP:
            return Sharpness.SHARP
        return Sharpness.MEDIUM if number >= _SIEMENS_MEDIUM else Sharpness.SOFT
    for pattern, known in ((_SHARP_WORDS, Sharpness.SHARP), (_MEDIUM_WORDS, Sharpness.MEDIUM)):
        if pattern.search(name):
            return known
    return Sharpness.SOFT if _SOFT_WORDS.search(name) else Sharpness.UNKNOWN
