"""What one DICOM service brings to the listening application entity: presentation contexts and handlers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Service:
    """Contexts and handlers of one service class; `node.receive.scp` listens with any number of them.

    Parameters
    ----------
    contexts : tuple of (str, tuple of str)
        Abstract syntax UIDs, each with the transfer syntax UIDs it is accepted in.
    handlers : tuple of (event, callable, list)
        What pynetdicom binds: ``(evt.EVT_C_ECHO, function, [arguments])``.
    reversible : frozenset of str
        Abstract syntaxes for which who opens an association may propose to be its SCP (PS3.7 D.3.3.4).
    close : callable
        Called once when nobody listens any more and every association has ended.
    spool : callable, optional
        Opens a file for a C-STORE's data set that is too large for memory, see `node.receive.reactor.Spool`.
    take : callable, optional
        Answers a C-STORE as the handler of its event would, see `node.receive.reactor.Spool`.
    """

    contexts: tuple[tuple[str, tuple[str, ...]], ...]
    handlers: tuple[tuple[Any, Callable[..., Any], list[Any]], ...] = field(default=())
    reversible: frozenset[str] = frozenset()
    close: Callable[[], None] = field(default=lambda: None)
    spool: Callable[..., Any] | None = None
    take: Callable[..., Any] | None = None
