"""Figures by cohort: the subsets for which 21 CFR 892.2080(b)(1)(iii) wants sufficient cases and intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from inference.result import LABELS, SUBTYPES, Json, Rate
from training.dataset import Scan
from training.judging.intervals import Interval, delong
from training.judging.scans import Judged
from training.metrics import rate

UNKNOWN = "not known"
FEW = 10
"""Tables mark groups with fewer scans that bleed, or fewer that do not."""


@dataclass(frozen=True, kw_only=True)
class Cohort(Json):
    """One group of scans; a group that is defined by its bleeding has no specificity, and no AUC."""

    name: str
    scans: int
    sensitivity: Rate
    specificity: Rate
    auc: Interval | None = None

    @property
    def few(self) -> bool:
        """Whether there are too few scans on either side to say much; a side without any does not count."""
        return any(0 < side.cases < FEW for side in (self.sensitivity, self.specificity))


def cohorts(found: Judged) -> dict[str, list[Cohort]]:
    """Every dimension with its groups; a dimension of which nothing is known has one group, so that this is seen."""
    bleeding = found.of(found.bearing)
    tables = {
        "subtype": _subtypes(bleeding),
        "volume": _groups(bleeding, _volume, order=[name for name, _ in VOLUMES_ML]),
    }
    for dimension, named in DIMENSIONS.items():
        tables[dimension] = _groups(found, named, order=ORDERS.get(dimension, ()))
    return tables


def _subtypes(bleeding: Judged) -> list[Cohort]:
    """Scans with each subtype, alone or among others; then with that subtype alone, and with several."""
    borne = np.array([one.scan.study_labels[1:] == 1 for one in bleeding.readings], bool).reshape(-1, len(SUBTYPES))
    several = borne.sum(1)
    found = [_cohort(name, bleeding.of(borne[:, index])) for index, name in enumerate(SUBTYPES)]
    found += [_cohort(f"{name} alone", bleeding.of(borne[:, i] & (several == 1))) for i, name in enumerate(SUBTYPES)]
    found.append(_cohort("several subtypes", bleeding.of(several > 1)))
    return [*found, _cohort(f"subtype {UNKNOWN}", bleeding.of(several == 0))]


def _groups(found: Judged, named: Callable[[Scan], str], *, order: Sequence[str]) -> list[Cohort]:
    names = np.array([named(one.scan) for one in found.readings], dtype=object)
    place = {name: index for index, name in enumerate(order)}
    ordered = sorted(set(names), key=lambda name: (name == UNKNOWN, place.get(name, len(place)), name))
    return [_cohort(name, found.of(names == name)) for name in ordered]


def _cohort(name: str, group: Judged) -> Cohort:
    called, bearing = group.called, group.bearing
    return Cohort(
        name=name,
        scans=len(bearing),
        sensitivity=rate(int((called & bearing).sum()), int(bearing.sum())),
        specificity=rate(int((~called & ~bearing).sum()), int((~bearing).sum())),
        auc=delong(group.scores, bearing),
    )


Bands = tuple[tuple[str, float], ...]
"""Names with the end of their range, which belongs to the next."""

VOLUMES_ML: Bands = (("under 1 mL", 1), ("1 to 5 mL", 5), ("5 to 30 mL", 30), ("30 mL and more", np.inf))
"""30 mL is the volume from which the ICH score counts a point (Hemphill et al. 2001)."""
THICKNESSES_MM: Bands = (("under 1.5 mm", 1.5), ("1.5 to 3 mm", 3), ("3 to 5 mm", 5), ("5 mm and more", np.inf))
AGES: Bands = (("under 18", 18), ("18 to 39", 40), ("40 to 64", 65), ("65 to 79", 80), ("80 and more", np.inf))


def _banded(value: float | None, bands: Bands) -> str:
    return UNKNOWN if value is None or np.isnan(value) else next(name for name, end in bands if value < end)


def volume_ml(scan: Scan) -> float | None:
    """How much bleeds in mL, by the outlines of the prepared images; None where there are none."""
    masks = scan.array("masks")
    if masks is None:
        return None
    areas = np.array([np.count_nonzero(mask) for mask in masks]) * scan.facts.pixel_mm**2
    at = np.array(scan.facts.positions_mm)
    otherwise = scan.facts.cohort.spacing_mm or scan.facts.cohort.thickness_mm
    if len(at) > 1:
        return float((areas * np.abs(np.gradient(at))).sum() / 1000)
    return None if otherwise is None else float(areas.sum() * otherwise / 1000)


def _volume(scan: Scan) -> str:
    return _banded(volume_ml(scan), VOLUMES_ML)


DIMENSIONS: dict[str, Callable[[Scan], str]] = {
    "thickness": lambda scan: _banded(scan.facts.cohort.thickness_mm, THICKNESSES_MM),
    "manufacturer": lambda scan: scan.facts.cohort.manufacturer or UNKNOWN,
    "scanner": lambda scan: scan.facts.cohort.model or UNKNOWN,
    "kernel": lambda scan: scan.facts.cohort.kernel or UNKNOWN,
    "age": lambda scan: _banded(scan.facts.cohort.age_years, AGES),
    "source": lambda scan: scan.facts.source or UNKNOWN,
    "group": lambda scan: scan.facts.group or UNKNOWN,
}
ORDERS = {"thickness": [name for name, _ in THICKNESSES_MM], "age": [name for name, _ in AGES]}


def subtypes_of(scan: Scan) -> list[str]:
    """The subtypes that the scan is known to bear."""
    return [name for name, value in zip(LABELS, scan.study_labels, strict=True) if value == 1 and name in SUBTYPES]
