"""The leakage guard: nobody, and no image, stands on two sides of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from training.dataset import Scan
from training.errors import LeakageError


def refuse_overlap(sides: Mapping[str, Sequence[Scan]]) -> None:
    """Raise `LeakageError` where a patient, or a slice with the same pixels, stands on two of the named sides.

    Patients are compared by `training.study.patient_key`, so across sources as well; pixels by the digest of each
    decoded slice, which finds a study that came twice under two names. Slices of one value do not count.
    """
    for first, second in combinations(sides, 2):
        refuse_patients(
            {scan.facts.patient for scan in sides[first]},
            {scan.facts.patient for scan in sides[second]},
            names=(first, second),
        )
        _refuse_pixels(sides[first], sides[second], names=(first, second))


def refuse_patients(first: set[str], second: set[str], *, names: tuple[str, str]) -> None:
    """Raise `LeakageError` where two sides have patients in common."""
    common = first & second
    if common:
        raise LeakageError(
            f"{len(common)} patients stand both in {names[0]} and in {names[1]}, for example {min(common)}"
        )


def _refuse_pixels(first: Sequence[Scan], second: Sequence[Scan], *, names: tuple[str, str]) -> None:
    known: dict[bytes, Scan] = {}
    for scan in first:
        known.update((digest, scan) for digest in _digests(scan))
    for scan in second:
        twin = next((known[digest] for digest in _digests(scan) if digest in known), None)
        if twin is not None:
            raise LeakageError(
                f"identical pixels in {names[0]} and {names[1]}: a slice of {_name(twin)} is also one of {_name(scan)}"
            )


def _digests(scan: Scan) -> list[bytes]:
    return [digest.tobytes() for digest in scan.digests if digest.any()]


def _name(scan: Scan) -> str:
    facts = scan.facts
    return f"study {facts.study_uid} ({facts.source or 'no source'}, patient {facts.patient})"
