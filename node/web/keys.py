"""Query parameters as matching keys (PS3.18 8.3.4), for studies and for work items."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from starlette.requests import Request

from db.dicom_json import Attributes, element, tag_of
from node.errors import RequestRefused

_NUMBERS = {"IS": int, "US": int, "UL": int, "SS": int, "SL": int, "DS": float, "FD": float, "FL": float}
_OTHERS = frozenset({"limit", "offset", "fuzzymatching", "includefield", "accept", "charset"})
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A search. `include` holds tags, or `ALL`; `unsupported` what was asked for and has to be left aside, in words."""

    keys: Attributes
    include: frozenset[str]
    offset: int
    limit: int
    unsupported: tuple[str, ...]


def asked(request: Request, *, largest: int, known: Collection[str] | None = None) -> Asked:
    """What the query parameters ask for.

    Parameters
    ----------
    largest : int
        How many results one answer may have.
    known : collection of str, optional
        The tags that can be matched and returned; every one where it is left out.

    Raises
    ------
    RequestRefused
        A parameter is neither one of the Standard's nor an attribute, or its value is not of its type (400).
    """
    given = request.query_params
    named = [tag_named(name) for text in given.getlist("includefield") for name in text.split(",") if name != ALL]
    keys: Attributes = {}
    for name, value in given.multi_items():
        if name not in _OTHERS:
            keys |= key(name, value)
    left_out = sorted({tag for tag in (*keys, *named) if known is not None and tag not in known})
    said = [f"The attributes {', '.join(left_out)} are not supported and were left out."] if left_out else []
    if given.get("fuzzymatching", "").lower() == "true":
        said.append("The fuzzymatching parameter is not supported. Only literal matching has been performed.")
    return Asked(
        keys={tag: held for tag, held in keys.items() if tag not in left_out},
        include=frozenset({ALL} if ALL in given.getlist("includefield") else set(named) - set(left_out)),
        offset=_number(request, "offset", 0),
        limit=min(largest, _number(request, "limit", largest)),
        unsupported=tuple(said),
    )


def key(name: str, value: str) -> Attributes:
    """One parameter as a matching key; ``Sequence.Attribute`` names an attribute of a sequence's items."""
    outer, _, inner = name.partition(".")
    tag = tag_named(outer)
    if inner:
        return {tag: element("SQ", key(inner, value))}
    vr = dictionary_VR(tag)
    return {tag: element(vr, *_values(vr, value))}


def tag_named(name: str) -> str:
    """The tag of a keyword or of eight hexadecimal digits. Raises ``RequestRefused`` (400)."""
    try:
        if len(name) == 8 and dictionary_has_tag(int(name, 16)):
            return name.upper()
    except ValueError:
        pass
    try:
        return tag_of(name)
    except ValueError as error:
        raise RequestRefused("a query parameter is no attribute of the data dictionary", status=400) from error


def _values(vr: str, text: str) -> Iterator[object]:
    if vr == "PN":
        yield dict(zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False))
    elif vr == "UI":
        yield from text.replace("\\", ",").split(",")
    elif vr in _NUMBERS and text:
        try:
            yield _NUMBERS[vr](text)
        except ValueError as error:
            raise RequestRefused("a query parameter is not a number", status=400) from error
    elif text:
        yield text


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdecimal():
        raise RequestRefused(f"{name} is not a number", status=400)
    return int(text)
