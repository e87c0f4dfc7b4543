"""One answer from all the evidence: the study is complete, or read as it is, or it waits; with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inference.result import Completeness
from node.assemble.evidence import Evidence, Kind, Says

ENDINGS = frozenset({Kind.ASSOCIATION, Kind.LISTED, Kind.DISCONTINUED, Kind.PACS})
"""The kinds of evidence that tell that a sender has sent everything it means to send."""

_OVER = frozenset({Kind.QUIET, Kind.PERFORMED, Kind.DISCONTINUED})
"""The kinds of evidence that tell that nothing more is to be expected, whatever there is."""

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

    - Everything that the scanner itself lists has come, and nothing speaks against it: complete, at once.
    - Every series to be read is whole, its sender has ended, nothing speaks against it, and it has settled: complete.
    - The source has been quiet long enough, or its examination has ended and the study has settled: complete unless
      something is known to be missing. But what the scanner lists of a series to be read is waited for.
    - The limit has passed: incomplete.
    - Otherwise it waits for whatever comes first.
    """
    everything = _says(evidence, Kind.PERFORMED)
    against = [piece for piece in evidence if piece.says is Says.INCOMPLETE]
    if everything:  # what an association that broke off had not sent has come over another
        against = [piece for piece in against if piece.kind is not Kind.ASSOCIATION]
    shape = [piece for piece in evidence if piece.kind is Kind.GEOMETRY]
    if everything and not against:
        return _pronounce(evidence, [*_of(evidence, Kind.PERFORMED), *shape], complete=True)
    whole = bool(shape) and all(piece.says is Says.COMPLETE for piece in shape)
    ended = [piece for piece in evidence if piece.kind in ENDINGS and piece.says is Says.COMPLETE]
    settled = _says(evidence, Kind.SETTLED)
    if whole and ended and not against and settled:
        return _pronounce(evidence, [*shape, *ended, *_of(evidence, Kind.SETTLED)], complete=True)
    over = [piece for piece in evidence if piece.kind in _OVER and piece.says is Says.COMPLETE]
    awaited = any(piece.kind is Kind.PERFORMED for piece in against)
    if not awaited and (_says(evidence, Kind.QUIET) or (over and settled)):
        return _pronounce(evidence, [*over, *(against or shape)], complete=not against)
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
