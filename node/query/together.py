"""Several services as one: pynetdicom has one handler for each kind of request, whichever service it belongs to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from pynetdicom.events import Event

from node.service import Service

_Bound = tuple[frozenset[str], Callable[..., Any], list[Any]]


def together(*services: Service) -> Service:
    """A service that is all of `services`; a request goes to the one in whose presentation context it came."""
    bound: dict[Any, list[_Bound]] = defaultdict(list)
    for service in services:
        syntaxes = frozenset(str(uid) for uid, _ in service.contexts)
        for event, handler, arguments in service.handlers:
            bound[event].append((syntaxes, handler, arguments))

    def close() -> None:
        for service in services:
            service.close()

    return Service(
        contexts=tuple(context for service in services for context in service.contexts),
        handlers=tuple((event, *_one(candidates)) for event, candidates in bound.items()),
        reversible=frozenset[str]().union(*(service.reversible for service in services)),
        close=close,
    )


def _one(candidates: list[_Bound]) -> tuple[Callable[..., Any], list[Any]]:
    if len(candidates) == 1:
        return candidates[0][1:]

    def dispatch(event: Event) -> Any:
        syntax = str(event.context.abstract_syntax)
        handler, arguments = next((h, a) for syntaxes, h, a in candidates if syntax in syntaxes)
        return handler(event, *arguments)

    return dispatch, []
