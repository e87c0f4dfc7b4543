"""What performed procedure steps (MPPS) say of a study's completeness: the scanner's own list of what it has made.

The list is the strongest evidence there is, where it describes what comes here. Three things keep it from holding a
study up for nothing. Only series that are to be read are waited for: a scanner lists its dose report, and what it sends
to a workstation only, as well. A list is believed about a series only when it names every image of it that has come:
some scanners list images under UIDs that a router has changed since, or list before the last reconstruction. And a
list without instances, which some send, says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from db.performed_steps import PerformedStep
from db.states import PerformedState
from node.assemble.piece import Evidence, Kind, Says
from node.assemble.view import Candidate, Role, StudyView
from node.config import AssembleSection

Lists = Mapping[str, frozenset[str]]
"""SOP Instance UIDs by Series Instance UID."""


def performed(study: StudyView, _settings: AssembleSection, _now: float) -> tuple[Evidence, ...]:
    """What the steps say in which the study was made; nothing where there are none."""
    if not study.steps:
        return ()
    ended = [step for step in study.steps if step.state is not PerformedState.IN_PROGRESS]
    running = len(ended) < len(study.steps)
    completed = [step for step in ended if step.state is PerformedState.COMPLETED]
    listed = _lists(ended)
    waited_for = study.with_role(Role.CHOSEN) or study.with_role(Role.GROWING)
    described = [c for c in waited_for if _describes(listed, c, held=study.held)]
    short = [c for c in described if _lacking(listed, study.held, c.series_uid)]
    pieces = [_short(c, listed, study.held, kind=_kind_for(c, completed)) for c in short]
    if running:
        return (*pieces, _piece(Kind.PERFORMED, Says.NOTHING, f"a {_STEP} is in progress"))
    if len(completed) < len(ended):
        pieces.append(_piece(Kind.DISCONTINUED, Says.COMPLETE, f"the {_STEP} was discontinued"))
        return tuple(pieces)
    if short:
        return tuple(pieces)
    if len(described) < len(waited_for):
        undescribed = _names(c for c in waited_for if c not in described)
        return (_piece(Kind.PERFORMED, Says.NOTHING, f"the list of the {_STEP} does not describe {undescribed}"),)
    return (_all_described(study, listed, waited_for),)


_STEP = "performed procedure step"


def _all_described(study: StudyView, listed: Lists, waited_for: Sequence[Candidate]) -> Evidence:
    """What is said once nothing is lacking of what is waited for."""
    count = len(frozenset().union(*listed.values()))
    elsewhere = [uid for uid in listed if _lacking(listed, study.held, uid)]
    lacking = sum(len(_lacking(listed, study.held, uid)) for uid in elsewhere)
    if not count:
        return _piece(Kind.PERFORMED, Says.NOTHING, f"the {_STEP} lists no instances")
    if not elsewhere:
        sentence = f"all {count} instances that the {_STEP} lists have come"
        return _piece(Kind.PERFORMED, Says.COMPLETE, sentence)
    rest = f"{lacking} of {count} instances that the {_STEP} lists have not come"
    if waited_for:
        return _piece(Kind.LISTED, Says.COMPLETE, f"{_names(waited_for)} came as the {_STEP} lists it; {rest}")
    return _piece(Kind.LISTED, Says.INCOMPLETE, rest, missing=(rest,))


def _kind_for(candidate: Candidate, completed: Iterable[PerformedStep]) -> Kind:
    """What a completed step lists is waited for; what one lists that was discontinued may never have been made."""
    return Kind.PERFORMED if any(candidate.series_uid in step.series for step in completed) else Kind.DISCONTINUED


def _short(candidate: Candidate, listed: Lists, held: Lists, *, kind: Kind) -> Evidence:
    names = listed[candidate.series_uid]
    lacking = len(_lacking(listed, held, candidate.series_uid))
    sentence = f"{candidate.name}: {len(names) - lacking} of {len(names)} images that the {_STEP} lists"
    return _piece(kind, Says.INCOMPLETE, sentence, missing=(sentence,))


def _describes(listed: Lists, candidate: Candidate, *, held: Lists) -> bool:
    names = listed.get(candidate.series_uid)
    return bool(names) and held.get(candidate.series_uid, frozenset()) <= (names or frozenset())


def _lacking(listed: Lists, held: Lists, series_uid: str) -> frozenset[str]:
    return listed[series_uid] - held.get(series_uid, frozenset())


def _lists(steps: Iterable[PerformedStep]) -> Lists:
    found: dict[str, frozenset[str]] = {}
    for step in steps:
        for series_uid, uids in step.series.items():
            found[series_uid] = found.get(series_uid, frozenset()) | uids
    return found


def _names(candidates: Iterable[Candidate]) -> str:
    return " and ".join(dict.fromkeys(candidate.name for candidate in candidates))


def _piece(kind: Kind, says: Says, sentence: str, missing: tuple[str, ...] = ()) -> Evidence:
    return Evidence(kind=kind, says=says, sentence=sentence, missing=missing)
