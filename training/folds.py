"""Patient folds: every scan described by a network that has not learnt from its patient.

What is trained on the descriptions of scans that the describing network knows by heart learns to trust them too much.
With k folds each network learns from k - 1 of them, so that all together cost as much as k - 1 trainings on all scans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from inference.models import ScanModel
from training.dataset import Scan
from training.described import Described, describe
from training.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One part of the patients, `left_out`, and the scans of all others, to `learn` from; `number` counts from 1."""

    number: int
    learn: Sequence[Scan]
    left_out: Sequence[Scan]


def patient_folds(scans: Sequence[Scan], *, count: int, seed: int) -> list[Fold]:
    """The patients of `scans` in `count` folds, alike in size and in patients who bleed, always the same ones.

    Patients stand in the order of a digest of name and seed, and are dealt in turn: first those who bleed.

    Raises
    ------
    DataError
        There are fewer than two folds, or a fold would be empty.
    """
    bleeding = {
        scan.facts.patient for scan in scans if bool((scan.labels[:, 0] == 1).any() or scan.study_labels[0] == 1)
    }
    others = {scan.facts.patient for scan in scans} - bleeding
    ordered = [*_shuffled(bleeding, seed), *_shuffled(others, seed)]
    if not 2 <= count <= len(ordered):
        raise DataError(f"{len(ordered)} patients cannot be dealt into {count} folds; there may be 2 to that many")
    place = {patient: number % count for number, patient in enumerate(ordered)}
    return [
        Fold(
            number=number + 1,
            learn=[scan for scan in scans if place[scan.facts.patient] != number],
            left_out=[scan for scan in scans if place[scan.facts.patient] == number],
        )
        for number in range(count)
    ]


def out_of_fold(
    scans: Sequence[Scan], *, count: int, seed: int, trained: Callable[[Fold], ScanModel]
) -> list[Described]:
    """Every scan described by the network that `trained` makes of the folds without its patient, in their order."""
    described: dict[int, Described] = {}
    for fold in patient_folds(scans, count=count, seed=seed):
        found = describe(trained(fold), fold.left_out)
        described |= {id(scan): one for scan, one in zip(fold.left_out, found, strict=True)}
    return [described[id(scan)] for scan in scans]


def _shuffled(patients: Iterable[str], seed: int) -> list[str]:
    """Not by the digest that parts training from validation: its training patients are all on one side of it."""
    return sorted(patients, key=lambda patient: hashlib.sha256(f"fold:{seed}:{patient}".encode()).digest())
