"""Patients are dealt into folds evenly, always alike, and nobody is described by who has learnt from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.square_scans import square_scans
from training.dataset import Scan, split
from training.errors import DataError
from training.folds import patient_folds


def scans(count: int, *, bleeding: int, each: int = 1) -> list[Scan]:
    """So many patients with `each` scans, the first of them bleeding."""
    found = []
    for number, scan in enumerate(square_scans(count, side=16)):
        labels = scan.labels if number < bleeding else np.zeros_like(scan.labels)
        found += [replace(scan, labels=labels, study_labels=labels.max(0)) for _ in range(each)]
    return found


def test_every_patient_is_left_out_once_and_never_learnt_from_then() -> None:
    known = scans(11, bleeding=5, each=2)
    folds = patient_folds(known, count=3, seed=0)
    assert [fold.number for fold in folds] == [1, 2, 3]
    assert Counter(id(scan) for fold in folds for scan in fold.left_out) == Counter(id(scan) for scan in known)
    for fold in folds:
        learnt, left_out = ({scan.facts.patient for scan in part} for part in (fold.learn, fold.left_out))
        assert not learnt & left_out
        assert len(learnt | left_out) == 11
        assert len(fold.learn) + len(fold.left_out) == len(known)


def test_folds_are_alike_in_size_and_in_bleeding_patients_also_within_one_side_of_the_split() -> None:
    known = scans(120, bleeding=30)
    (kept, _) = split([scan.facts.patient for scan in known], shares=(0.5, 0.5), seed=0)
    side = [scan for scan in known if scan.facts.patient in set(kept)]
    folds = patient_folds(side, count=5, seed=0)
    sizes = [len(fold.left_out) for fold in folds]
    bleeding = [sum(scan.study_labels[0] == 1 for scan in fold.left_out) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    assert max(bleeding) - min(bleeding) <= 1


def test_folds_are_always_the_same_and_others_with_another_seed() -> None:
    def patients(seed: int, *, turned: bool = False) -> list[set[str]]:
        known = scans(12, bleeding=6)
        folds = patient_folds(known[::-1] if turned else known, count=3, seed=seed)
        return [{scan.facts.patient for scan in fold.left_out} for fold in folds]

    assert patients(0) == patients(0, turned=True)
    assert patients(0) != patients(1)


@pytest.mark.parametrize("count", [1, 4])
def test_fewer_than_two_folds_or_more_than_patients_are_refused(count: int) -> None:
    with pytest.raises(DataError, match="3 patients cannot be dealt"):
        patient_folds(scans(3, bleeding=1), count=count, seed=0)
