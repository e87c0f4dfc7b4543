"""One answer from all the evidence: the study is complete, or read as it is, or it waits; with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inference.result import Completeness
from node.assemble.evidence import Evidence, Kind, Says

ENDINGS = frozenset({Kind.ASSOCIATION, Kind.PACS})
"""The kinds of evidence that tell that a sender has sent everything it means to send."""

CLOCKS = frozenset({Kind.SETTLED, Kind.QUIET, Kind.AGE})


@dataclass(frozen=True, kw_only=True)
class Wait:
    """The study waits, at the latest until the monotonic second `until`, when there is something new to say."""

    until: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Pronounce:
    """The study is read now, on these terms."""

    completeness: Completeness


def verdict(evidence: Sequence[Evidence]) -> Wait | Pronounce:
    """What follows from the evidence.

    - Every series to be read is whole, its sender has ended, nothing speaks against it, and it has settled: complete.
    - The source has been quiet long enough: complete unless something is known to be missing.
    - The limit has passed: incomplete.
    - Otherwise it waits for whatever comes first.
    """
    against = [piece for piece in evidence if piece.says is Says.INCOMPLETE]
    shape = [piece for piece in evidence if piece.kind is Kind.GEOMETRY]
    whole = bool(shape) and all(piece.says is Says.COMPLETE for piece in shape)
    ended = [piece for piece in evidence if piece.kind in ENDINGS and piece.says is Says.COMPLETE]
    if whole and ended and not against and _says(evidence, Kind.SETTLED):
        return _pronounce(evidence, [*shape, *ended, *_of(evidence, Kind.SETTLED)], complete=True)
    if _says(evidence, Kind.QUIET):
        return _pronounce(evidence, [*_of(evidence, Kind.QUIET), *(against or shape)], complete=not against)
    waiting = [piece for piece in evidence if piece.kind not in CLOCKS and piece.says is not Says.COMPLETE]
    if _says(evidence, Kind.AGE):
        return _pronounce(evidence, [*_of(evidence, Kind.AGE), *(waiting or shape)], complete=False)
    until = min(piece.until for piece in evidence if piece.until is not None)
    return Wait(until=until, reason=_sentence(waiting or _of(evidence, Kind.SETTLED)))


def _pronounce(evidence: Sequence[Evidence], deciding: Sequence[Evidence], *, complete: bool) -> Pronounce:
    return Pronounce(
        completeness=Completeness(
            complete=complete,
            reason=_sentence(deciding),
            evidence=tuple(f"{piece.kind}: {piece.sentence}" for piece in evidence if _tells(piece)),
            missing=() if complete else tuple(sentence for piece in evidence for sentence in piece.missing),
        )
    )


def _tells(piece: Evidence) -> bool:
    """Clocks that have not run out yet say nothing worth keeping."""
    return piece.says is not Says.NOTHING or piece.kind not in CLOCKS


def _of(evidence: Sequence[Evidence], kind: Kind) -> list[Evidence]:
    return [piece for piece in evidence if piece.kind is kind]


def _says(evidence: Sequence[Evidence], kind: Kind) -> bool:
    return any(piece.says is Says.COMPLETE for piece in _of(evidence, kind))


def _sentence(pieces: Sequence[Evidence]) -> str:
    return "; ".join(dict.fromkeys(piece.sentence for piece in pieces))
