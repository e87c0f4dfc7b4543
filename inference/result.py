"""What the node reports: frozen, torch-free values that survive a round trip through JSON."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

ANY = "any"
SUBTYPES = ("intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural")
LABELS = (ANY, *SUBTYPES)
"""Order of the labels everywhere (Nguyen et al. 2020, table 1)."""


class Outcome(StrEnum):
    """The statement in which every study ends."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    NOT_ANALYSED = "not_analysed"


class Json:
    """A frozen dataclass that becomes plain JSON values and comes back equal."""

    def to_json(self) -> dict[str, Any]:
        """The value as plain dictionaries, lists, strings, numbers, booleans and None."""
        return {name: _plain(getattr(self, name)) for name in _names(type(self))}  # type: ignore[arg-type]  # every class is hashable

    @classmethod
    def from_json(cls, data: typing.Mapping[str, Any]) -> Self:
        """The value that `to_json` wrote. Unknown keys raise ``TypeError``; missing ones take their default."""
        hints = _hints(cls)  # type: ignore[arg-type]  # every class is hashable
        unknown = set(data) - set(hints)
        if unknown:
            raise TypeError(f"{cls.__name__} has no field {sorted(unknown)}")
        return cls(**{name: _typed(hints[name], value) for name, value in data.items()})


@functools.cache
def _names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(typing.cast(Any, cls)))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    # Resolving annotations takes eight times as long as everything else here.
    return typing.get_type_hints(cls)


_ALREADY_PLAIN = frozenset({type(None), str, int, float, bool})


def _plain(value: Any) -> Any:
    if type(value) in _ALREADY_PLAIN:
        return value
    if isinstance(value, Json):
        return value.to_json()
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _typed(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return None
    if origin in (typing.Union, types.UnionType):
        return _typed(next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        return tuple(_typed(args[0] if args[-1] is Ellipsis else arg, item) for arg, item in _pairs(args, value))
    if origin is dict:
        return {key: _typed(args[1], item) for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Json):
        return hint.from_json(value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    return value


def _pairs(args: tuple[Any, ...], values: list[Any]) -> typing.Iterator[tuple[Any, Any]]:
    if args[-1] is Ellipsis:
        return ((args[0], value) for value in values)
    return zip(args, values, strict=True)


@dataclass(frozen=True, kw_only=True)
class SliceReading(Json):
    """What one model says about one slice.

    `scores` maps each label the model knows to a value in [0, 1]. `frame` is 1-based, None for single-frame images.
    `position_mm` is the slice's position projected on the series' normal.
    """

    sop_instance_uid: str
    frame: int | None = None
    position_mm: float
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Rate(Json):
    """A share with its counts and its Wilson 95 % interval; without a value where there were no cases."""

    hits: int
    cases: int
    value: float | None
    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuses a share that contradicts its counts or its interval, with ``ValueError``."""
        share = self.hits / self.cases if self.cases else None
        if not 0 <= self.hits <= self.cases or self.value != share:
            raise ValueError(f"{self.value} is not {self.hits} of {self.cases}")
        if not 0 <= self.low <= (self.low if share is None else share) <= self.high <= 1:
            raise ValueError(f"{self.low}…{self.high} is no interval around {self.hits} of {self.cases}")

    def __str__(self) -> str:
        """For example "0.91 [0.80-0.96] (41 of 45)"."""
        if self.value is None:
            return "not measured"
        return f"{self.value:.2f} [{self.low:.2f}-{self.high:.2f}] ({self.hits} of {self.cases})"


@dataclass(frozen=True, kw_only=True)
class OperatingPoint(Json):
    """A threshold on the score of the scan, and how often scans were called rightly at it.

    `on` says on which scans, and where it is so that the threshold was chosen on them: such figures are optimistic.
    """

    name: str
    threshold: float
    sensitivity: Rate
    specificity: Rate
    on: str

    def __post_init__(self) -> None:
        """Refuses a threshold outside 0…1, and figures of nobody knows what, with ``ValueError``."""
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"an operating point lies between 0 and 1, not at {self.threshold}")
        if not self.name or not self.on:
            raise ValueError("an operating point has a name, and says on which scans it was measured")

    def __str__(self) -> str:
        """For example "balanced, 0.42: sensitivity 0.91 [0.80-0.96] (41 of 45), specificity …, on 90 phantoms"."""
        return (
            f"{self.name}, {self.threshold:.3g}: sensitivity {self.sensitivity}, "
            f"specificity {self.specificity}, on {self.on}"
        )


@dataclass(frozen=True, kw_only=True)
class Finding(Json):
    """What one model concludes about one label over the whole scan.

    `score` in [0, 1] orders scans and was held against `threshold`; it is no probability. `probability` is one, and is
    given only where `calibrated`: the weights' card calibrates the score of the *scan*, and the scan is like those on
    which it was calibrated, of which the part `prevalence` bore the label. `operating_point` is what was measured at
    the threshold, where the card says.
    """

    label: str
    present: bool
    score: float
    threshold: float
    calibrated: bool = False
    probability: float | None = None
    prevalence: float | None = None
    operating_point: OperatingPoint | None = None

    def __post_init__(self) -> None:
        """Refuses a finding that is calibrated without a probability, or the reverse, with ``ValueError``."""
        if self.calibrated != (self.probability is not None):
            raise ValueError("a finding has a probability exactly where it is calibrated")


@dataclass(frozen=True, kw_only=True)
class Novelty(Json):
    """Whether a scan is unlike those that a model was trained on; see `inference.novelty`.

    `sentence` names what is unusual, and is empty for a scan that is like them. The input distance is that of the
    measure furthest out of its usual range, in widths of the range; the feature distance is Mahalanobis'. `measures`
    is what was measured of the images.
    """

    unlike: bool
    sentence: str
    input_distance: float
    input_limit: float
    feature_distance: float | None = None
    feature_limit: float | None = None
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Volume(Json):
    """How much a model's masks enclose, in ml: an estimate, and what a stricter and a laxer outline enclose."""

    ml: float
    low_ml: float
    high_ml: float


@dataclass(frozen=True, kw_only=True)
class ModelReading(Json):
    """One model's reading of one scan.

    `name` is the section of node.toml it came from; `digest` is the SHA-256 (hex) of the weights file.
    `rule` is the scan rule in words. `key_slices` lists at most five SOP Instance UIDs, most suspicious first; empty
    when nothing was found. `warnings` are sentences (unlike the scans of training, retreat to CPU, smaller batch, …).
    `novelty` is None where the model came without a guard. `volume` is known only where the model draws masks and was
    asked for them.
    """

    name: str
    family: str
    version: str
    digest: str
    demonstration: bool
    rule: str
    findings: tuple[Finding, ...]
    slices: tuple[SliceReading, ...] = ()
    key_slices: tuple[str, ...] = ()
    device: str = "cpu"
    precision: str = "fp32"
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    novelty: Novelty | None = None
    volume: Volume | None = None

    @property
    def unlike(self) -> bool:
        """Whether the scan is known to be unlike those the model was trained on."""
        return self.novelty is not None and self.novelty.unlike

    def finding(self, label: str) -> Finding | None:
        """The finding for `label`, or None where the model does not know that label."""
        return next((f for f in self.findings if f.label == label), None)


@dataclass(frozen=True, kw_only=True)
class SeriesChoice(Json):
    """Whether a series was read, and why or why not. `code` is stable and short, `reason` is a sentence."""

    series_uid: str
    chosen: bool
    rank: int | None = None
    code: str
    reason: str
    instances: int = 0
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Completeness(Json):
    """The verdict under which a study was read.

    `complete` is False when the limit passed first; `missing` then names what is absent, one sentence each
    (for example "1 slice missing at 42.5 mm, between instance 8 and instance 9").
    """

    complete: bool
    reason: str
    evidence: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StudyResult(Json):
    """The node's statement on one revision of one study.

    `reason` is one sentence that stands on its own ("RADnet: 5 consecutive slices at or above 0.50").
    `study_uid` with `revision` identifies it; the UIDs of everything made from it are derived from that pair.
    """

    study_uid: str
    revision: int
    outcome: Outcome
    reason: str
    completeness: Completeness
    series: tuple[SeriesChoice, ...] = ()
    readings: tuple[ModelReading, ...] = ()
    warnings: tuple[str, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def demonstration(self) -> bool:
        """Whether any weights that took part are for demonstration only."""
        return any(reading.demonstration for reading in self.readings)

    @property
    def out_of_distribution(self) -> bool:
        """Whether the scan is unlike those that any of the models was trained on."""
        return any(reading.unlike for reading in self.readings)

    @property
    def read_series_uids(self) -> tuple[str, ...]:
        """The series that were read, best first."""
        chosen = sorted((c for c in self.series if c.chosen), key=lambda c: c.rank or 0)
        return tuple(c.series_uid for c in chosen)
