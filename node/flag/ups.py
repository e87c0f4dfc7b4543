"""The UPS channel: a reading work item on a far worklist, raised or withdrawn, and read back (PS3.4 CC)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pynetdicom.association import Association

from db.procedure_step import PULL, PUSH, WATCH, Answer
from db.states import Priority
from node.config import RemoteSection, Settings
from node.errors import PeerRefused, PeerUnreachable
from node.flag.flag import SUSPECTED, Channel, Flag, Receipt
from node.flag.workitem import changes, uid_of, workitem
from node.scu import associate, checked

ACCEPTED = (Answer.DONE, Answer.NOT_SUPPORTED, Answer.CREATED_MODIFIED, Answer.COERCED)
ANY_STATUS = range(0x10000)
_GONE = (Answer.UNKNOWN, Answer.NO_SUCH_INSTANCE, Answer.NO_LONGER_UPDATED)
_HELD = (Answer.WRONG_TRANSACTION, Answer.NOT_IN_PROGRESS)
_SHOWN = ("SpecificCharacterSet", "ProcedureStepState", "ScheduledProcedureStepPriority", "ProcedureStepLabel")


def channels(settings: Settings) -> tuple[Channel, ...]:
    """One channel for each ``[[flag.ups]]``."""
    return tuple(
        UpsChannel(
            remote=remote,
            own_ae_title=settings.node.ae_title,
            retrieve_ae_title=settings.retrieve_ae_title,
            timeout=settings.deliver.timeout,
        )
        for remote in settings.flag.ups
    )


@dataclass(frozen=True, kw_only=True)
class UpsChannel:
    """Carries flags to one UPS SCP. `timeout` in seconds holds for every step of the exchange.

    `retrieve_ae_title` is where the reader can retrieve the images.
    """

    remote: RemoteSection
    own_ae_title: str
    retrieve_ae_title: str
    timeout: float

    @property
    def name(self) -> str:
        """The remote's name in node.toml."""
        return self.remote.name

    def send(self, flag: Flag) -> Receipt:
        """The study's item on the far worklist says what the flag says, as far as its state allows.

        The study has one item for all its revisions while that is open. A study that has been read gets a further one
        when it is positive. The UIDs depend on study and revision only, so sending again never makes a second item.

        Raises
        ------
        DeliveryError
            The far side could not be reached or refused.
        """
        contexts = (PUSH, PULL, WATCH)
        with associate(
            self.remote, own_ae_title=self.own_ae_title, contexts=contexts, timeout=self.timeout
        ) as association:
            far = _Far(association)
            return _receipt(far, self._stand(far, flag))

    def _stand(self, far: _Far, flag: Flag) -> _Standing:
        new = workitem(flag, at=dt.datetime.now(dt.UTC), retrieve_ae_title=self.retrieve_ae_title)
        first, further = self._uid(flag), self._uid(flag, revision=flag.revision)
        if far.create(first, new):
            return _Standing(uid=first, done="created", asked=flag.priority)
        later = (self._uid(flag, revision=revision) for revision in range(flag.revision, 1, -1))
        for uid in (first, *later):
            standing = far.revise(uid, flag)
            if standing is not None:
                return standing
        if flag.raised and far.create(further, new):
            return _Standing(uid=further, done="created: the study had been read", asked=flag.priority)
        return _Standing(uid=first, done="left alone: the study has been read", asked=None)

    def _uid(self, flag: Flag, *, revision: int | None = None) -> str:
        return uid_of(ae_title=self.own_ae_title, study_uid=flag.study_uid, destination=self.name, revision=revision)


@dataclass(frozen=True, kw_only=True)
class _Standing:
    """The far item that now speaks for the study, what was done to it, and the priority asked for, if any."""

    uid: str
    done: str
    asked: Priority | None


class _Far:
    """The far worklist during one association."""

    def __init__(self, association: Association) -> None:
        self._association = association
        self._accepted = {context.abstract_syntax for context in association.accepted_contexts}
        if PUSH not in self._accepted:
            raise PeerRefused("the UPS Push SOP Class is not accepted", status=0x0122)

    def create(self, uid: str, dataset: Dataset) -> bool:
        """Whether the item was made; False when one of this UID is there already."""
        status, _ = self._ask(
            self._association.send_n_create, dataset, uid, doing="N-CREATE", accept=(*ACCEPTED, Answer.DUPLICATE)
        )
        return status != Answer.DUPLICATE

    def shown(self, uid: str) -> Dataset:
        """State, priority and label of the item; empty where the far side does not say."""
        tags = [tag_for_keyword(keyword) for keyword in _SHOWN]
        status, dataset = self._ask(
            self._association.send_n_get, tags, uid, doing="N-GET", accept=ANY_STATUS, using=(PULL, WATCH),
        )  # fmt: skip
        return dataset if status in ACCEPTED and dataset is not None else Dataset()

    def revise(self, uid: str, flag: Flag) -> _Standing | None:
        """The item says what the flag says, unless somebody is reading it; None where it has ended or never was."""
        priority = _priority(flag, self.shown(uid))
        status, _ = self._ask(
            self._association.send_n_set, changes(flag, priority=priority), uid, doing="N-SET",
            accept=(*ACCEPTED, *_HELD, *_GONE), using=(PULL,),
        )  # fmt: skip
        if status in _GONE:
            return None
        if status in _HELD:
            return _Standing(
                uid=uid, done=f"not revised (0x{status:04X}, {Answer(status).meaning})", asked=flag.priority
            )
        kept = ", HIGH kept as somebody else has set it" if priority is not flag.priority else ""
        return _Standing(uid=uid, done=f"revised{kept}", asked=priority)

    def _ask(
        self,
        send: Callable[..., tuple[Dataset, Dataset | None]],
        what: Any,
        uid: str,
        *,
        doing: str,
        accept: Sequence[int],
        using: tuple[str, ...] = (),
    ) -> tuple[int, Dataset | None]:
        # The instance is always of the Push class; the context may be another of the five (PS3.4 CC.3.1.1).
        context = next((syntax for syntax in using if syntax in self._accepted), PUSH)
        try:
            answer, dataset = send(what, PUSH, uid, meta_uid=context)
        except RuntimeError as error:
            raise PeerUnreachable(f"{doing}: {error}") from error
        return checked(answer, doing=doing, accept=accept), dataset


def _priority(flag: Flag, shown: Dataset) -> Priority:
    """The priority to ask for: a HIGH that this node did not set was somebody's decision and stays.

    The labels this node gives to positive studies all begin alike, which tells its own HIGH from another's.
    """
    ours = str(shown.get("ProcedureStepLabel", "")).startswith(SUSPECTED)
    others = shown.get("ScheduledProcedureStepPriority") == Priority.HIGH and not ours
    return Priority.HIGH if others else flag.priority


def _receipt(far: _Far, standing: _Standing) -> Receipt:
    shown = far.shown(standing.uid)
    priority = shown.get("ScheduledProcedureStepPriority", "")
    if not priority:
        return Receipt(confirmed=False, detail=f"{standing.uid} {standing.done}; it could not be read back")
    state = shown.get("ProcedureStepState", "state unknown")
    detail = f"{standing.uid} {standing.done}; {state}, priority {priority}"
    return Receipt(confirmed=standing.asked == priority, detail=detail)
