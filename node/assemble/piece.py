"""One piece of evidence: where it comes from, what it says, and until when."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Where a piece of evidence comes from."""

    GEOMETRY = "geometry"
    ANNOUNCED = "announced"
    ASSOCIATION = "association"
    PERFORMED = "performed"
    LISTED = "listed"
    DISCONTINUED = "discontinued"
    SETTLED = "settled"
    QUIET = "quiet"
    AGE = "age"
    PACS = "pacs"


class Says(StrEnum):
    """What a piece of evidence says: the study is complete, it is not, or nothing yet."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    NOTHING = "nothing"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One piece of evidence.

    `missing` names, a sentence each, what is absent where it says so. `until` is the monotonic second in which it will
    say something else by the passing of time alone; None where only another arrival can change it.
    """

    kind: Kind
    says: Says
    sentence: str
    missing: tuple[str, ...] = ()
    until: float | None = None
