"""What speaks for a study's completeness, and what against it: one function for each kind of evidence.

A new kind (a count from the PACS, say) is a function of the same form in `SOURCES`, and a member of `Kind`;
`node.assemble.verdict` weighs it with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from db.associations import ABORTED, LOST, Association
from node.assemble.performed import performed
from node.assemble.piece import Evidence, Kind, Says
from node.assemble.view import Candidate, Role, StudyView
from node.config import AssembleSection

__all__ = ["SOURCES", "Evidence", "Kind", "Says", "gather"]

SPLIT = 3
"""A series that came over so many associations, one after the other, is not ended by the release of one."""


Source = Callable[[StudyView, AssembleSection, float], tuple[Evidence, ...]]


def geometry(study: StudyView, _settings: AssembleSection, _now: float) -> tuple[Evidence, ...]:
    """What the positions of the slices say of every series that can be read."""
    ranked = [*study.with_role(Role.CHOSEN), *study.with_role(Role.ALTERNATIVE)]
    # Beside a series that is read, one of a few slices is a test image; alone, it may be the start of the scan.
    candidates = ranked or list(study.with_role(Role.GROWING))
    if not candidates:
        found = f" ({', '.join(study.refused)})" if study.refused else ""
        return (Evidence(kind=Kind.GEOMETRY, says=Says.NOTHING, sentence=f"no series that can be read{found}"),)
    return tuple(_of_candidate(candidate) for candidate in candidates)


def _of_candidate(candidate: Candidate) -> Evidence:
    count = f"{candidate.slices} slice{'s' * (candidate.slices != 1)} over {candidate.coverage_mm:.0f} mm"
    if candidate.role is Role.GROWING and not candidate.gaps:
        sentence = f"{candidate.name}: {count}, too few to be read"
        return Evidence(kind=Kind.GEOMETRY, says=Says.NOTHING, sentence=sentence)
    if candidate.whole:
        sentence = f"{candidate.name}: {count}, none missing between them"
        return Evidence(kind=Kind.GEOMETRY, says=Says.COMPLETE, sentence=sentence)
    sentence = f"{candidate.name}: {count}, {'; '.join(candidate.missing)}"
    if candidate.role is Role.ALTERNATIVE:
        return Evidence(kind=Kind.GEOMETRY, says=Says.NOTHING, sentence=f"{sentence}; another series is to be read")
    return Evidence(kind=Kind.GEOMETRY, says=Says.INCOMPLETE, sentence=sentence, missing=candidate.missing)


def announced(study: StudyView, _settings: AssembleSection, _now: float) -> tuple[Evidence, ...]:
    """Whether as much has come of the series to be read as their headers announce."""
    told = [candidate for candidate in study.with_role(Role.CHOSEN) if candidate.announced]
    return tuple(_of_announced(candidate) for candidate in told)


def _of_announced(candidate: Candidate) -> Evidence:
    if not candidate.short:
        sentence = f"{candidate.name}: as many images as its headers announce"
        return Evidence(kind=Kind.ANNOUNCED, says=Says.COMPLETE, sentence=sentence)
    missing = tuple(f"{candidate.name}: {s.received} of {s.announced} {s.what}" for s in candidate.short)
    return Evidence(kind=Kind.ANNOUNCED, says=Says.INCOMPLETE, sentence="; ".join(missing), missing=missing)


def associations(study: StudyView, _settings: AssembleSection, _now: float) -> tuple[Evidence, ...]:
    """How the associations ended that brought the images of this revision."""
    brought = [a for a in study.associations if a.association_id in study.carriers]
    broken = [a for a in brought if a.outcome in (ABORTED, LOST) and not _made_good(a, brought)]
    still_open = [a for a in brought if a.ended_at is None]
    if broken:
        missing = tuple(f"what {a.calling_ae} had not sent when its association was {a.outcome}" for a in broken)
        sentence = "; ".join(f"the association of {a.calling_ae} was {a.outcome}" for a in broken)
        return (_association(Says.INCOMPLETE, sentence, missing=missing),)
    if still_open or len(brought) < len(study.carriers):
        return (_association(Says.NOTHING, f"{_senders(still_open or brought)} may still be sending"),)
    if any(a.outcome in (ABORTED, LOST) for a in brought):
        return (_association(Says.NOTHING, f"{_senders(brought)} sent again after an association broke off"),)
    split = next((c for c in study.candidates if _one_after_another(study, c) >= SPLIT), None)
    if split is not None:
        sentence = f"{split.name} came over {_one_after_another(study, split)} associations one after another"
        return (_association(Says.NOTHING, f"{sentence}: the end of one ends nothing"),)
    return (_association(Says.COMPLETE, f"{_senders(brought)} released {_associations(len(brought))}"),)


def _association(says: Says, sentence: str, missing: tuple[str, ...] = ()) -> Evidence:
    return Evidence(kind=Kind.ASSOCIATION, says=says, sentence=sentence, missing=missing)


def _made_good(broken: Association, brought: Iterable[Association]) -> bool:
    """Whether the same sender began again afterwards, brought what had not come, and ended in good order."""
    ended = broken.ended_at or broken.started_at
    later = (a for a in brought if a.calling_ae == broken.calling_ae and a.started_at >= ended)
    return any(a.outcome not in (ABORTED, LOST) for a in later)


def _one_after_another(study: StudyView, candidate: Candidate) -> int:
    """The longest row of associations that brought the series, each begun after the one before had ended."""
    brought = [a for a in study.associations if a.association_id in candidate.carriers and a.ended_at is not None]
    count, ended = 0, None
    for association in sorted(brought, key=lambda a: a.ended_at or a.started_at):
        if ended is None or association.started_at >= ended:
            count, ended = count + 1, association.ended_at
    return count


def _senders(brought: Sequence[Association]) -> str:
    return " and ".join(dict.fromkeys(a.calling_ae for a in brought)) or "the sender"


def _associations(count: int) -> str:
    return "its association" if count == 1 else f"all {count} associations"


def settled(study: StudyView, settings: AssembleSection, now: float) -> tuple[Evidence, ...]:
    """Whether a moment has passed since the last instance, in which a sender would have gone on."""
    until = study.last_at + settings.settle_time
    if now >= until:
        sentence = f"nothing more for {settings.settle_time:g} s"
        return (Evidence(kind=Kind.SETTLED, says=Says.COMPLETE, sentence=sentence),)
    return (Evidence(kind=Kind.SETTLED, says=Says.NOTHING, sentence="instances have just come", until=until),)


def quiet(study: StudyView, _settings: AssembleSection, now: float) -> tuple[Evidence, ...]:
    """Whether the source has been silent for its quiet time.

    Where every series to be read is whole, only more of these would matter, and nothing else keeps them waiting.
    """
    chosen = study.with_role(Role.CHOSEN)
    nothing_lacks = bool(chosen) and all(candidate.whole and not candidate.short for candidate in chosen)
    last, what = (study.last_candidate_at, "slice") if nothing_lacks else (study.last_image_at, "image")
    until = last + study.quiet_time
    if now >= until:
        sentence = f"no further {what} for the quiet time of {study.quiet_time:g} s"
        return (Evidence(kind=Kind.QUIET, says=Says.COMPLETE, sentence=sentence),)
    return (Evidence(kind=Kind.QUIET, says=Says.NOTHING, sentence="the source is not quiet yet", until=until),)


def age(study: StudyView, settings: AssembleSection, now: float) -> tuple[Evidence, ...]:
    """Whether the study has waited as long as any may."""
    until = study.first_at + settings.limit
    if now >= until:
        sentence = f"the limit of {settings.limit:g} s since the first instance has passed"
        return (Evidence(kind=Kind.AGE, says=Says.COMPLETE, sentence=sentence),)
    return (Evidence(kind=Kind.AGE, says=Says.NOTHING, sentence="the limit has not passed", until=until),)


SOURCES: tuple[Source, ...] = (geometry, announced, associations, performed, settled, quiet, age)


def gather(
    study: StudyView, settings: AssembleSection, now: float, *, sources: Sequence[Source] = SOURCES
) -> tuple[Evidence, ...]:
    """All evidence there is at the monotonic second `now`."""
    return tuple(evidence for source in sources for evidence in source(study, settings, now))
