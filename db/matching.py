"""Attribute matching of C-FIND keys against a data set, both in the DICOM JSON Model (PS3.4 C.2.2.2)."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from db.dicom_json import Attributes, items, values

NEVER_MATCHED = frozenset({"00080005", "00080201"})
"""Specific Character Set and Timezone Offset From UTC say how the rest is read (PS3.4 C.2.2.2)."""

WILD = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
TEMPORAL = frozenset({"DA", "TM", "DT"})

Pairs = tuple[tuple[str, str], ...]
"""Tags of a date and a time that are matched as one moment where both keys are ranges (PS3.4 C.2.2.2.5.4)."""


def matches(keys: Attributes, held: Attributes, *, pairs: Pairs = ()) -> bool:
    """Whether every key matches. An empty key matches anything; an absent or empty value matches no other key.

    Person names match case-insensitively in any of their component groups, everything else literally; dates and times
    match by meaning, those without an offset in this machine's time zone.
    """
    paired = {tag for pair in pairs if _are_ranges(keys, pair) for tag in pair}
    single = all(
        _element(key, held.get(tag, {}), pairs)
        for tag, key in keys.items()
        if tag not in NEVER_MATCHED and tag not in paired and not tag.endswith("0000")
    )
    return single and all(_moment(keys, held, pair) for pair in pairs if pair[0] in paired)


def projected(keys: Attributes, held: Attributes, *, pairs: Pairs = ()) -> Attributes:
    """The answer to `keys`: each requested attribute with its value, empty where unknown, and no other (CC.2.8.1.3.2).

    Of a sequence only the matching items are returned, with the requested attributes; a sequence asked for without
    any key is returned whole (C.2.2.2.6).
    """
    wanted = {tag: key for tag, key in keys.items() if tag not in NEVER_MATCHED and not tag.endswith("0000")}
    return {tag: _answer(key, held.get(tag, {"vr": key["vr"]}), pairs) for tag, key in wanted.items()}


def _answer(key: dict[str, Any], held: dict[str, Any], pairs: Pairs) -> dict[str, Any]:
    inner = next(iter(items({"": key}, "")), None) if key["vr"] == "SQ" else None
    if not inner:
        return held
    found = [projected(inner, item, pairs=pairs) for item in items({"": held}, "") if matches(inner, item, pairs=pairs)]
    return {"vr": "SQ", "Value": found} if found else {"vr": "SQ"}


def _element(key: dict[str, Any], held: dict[str, Any], pairs: Pairs) -> bool:
    if key["vr"] == "SQ":
        inner = next(iter(items({"": key}, "")), {})
        universal = matches(inner, {}, pairs=pairs)
        return universal or any(matches(inner, item, pairs=pairs) for item in items({"": held}, ""))
    wanted, found = values({"": key}, ""), values({"": held}, "")
    return not wanted or any(_value(key["vr"], w, f) for w in wanted for f in found or [""])


def _value(vr: str, wanted: Any, found: Any) -> bool:
    if vr == "PN":
        return _person_name(wanted, found)
    if vr in TEMPORAL:
        return bool(found) and _when(vr, str(wanted), str(found))
    if vr in WILD:
        return _text(str(wanted), str(found))
    return bool(found != "" and wanted == found)


def _text(wanted: str, found: str) -> bool:
    wanted, found = wanted.strip(), found.strip()
    if set(wanted) == {"*"}:
        return True
    if not found:
        return False
    pattern = re.escape(wanted).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(pattern, found, re.DOTALL) is not None


def _person_name(wanted: Any, found: Any) -> bool:
    asked, held = _groups(wanted), _groups(found)
    if len(asked) == 1:
        return any(_text(asked[0], group) for group in held)
    # Several groups are asked for: each against its own, an empty one matching any (PS3.5 6.2.1.1).
    held += [""] * (len(asked) - len(held))
    return all(_text(group, own) for group, own in zip(asked, held, strict=False) if group)


def _groups(name: Any) -> list[str]:
    parts = [name.get(part, "") for part in ("Alphabetic", "Ideographic", "Phonetic")] if name else [""]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return [part.rstrip("^ ").casefold() for part in parts]


def _when(vr: str, wanted: str, found: str) -> bool:
    asked, moment = span(vr, wanted.strip()), bounds(vr, found.strip())
    if asked is None or moment is None:
        return False
    low, high = asked
    return (low is None or low <= moment[0]) and (high is None or moment[0] <= high)


def span(vr: str, text: str) -> tuple[Any, Any] | None:
    """The first and last moment that `text` means, None for an open end; None altogether where it means nothing."""
    one = bounds(vr, text)
    if one is not None:
        return one
    # A hyphen before four digits up to 1400 is an offset from UTC, not the year of an upper bound (PS3.5 table 6.2-1).
    for cut in (i for i, letter in enumerate(text) if letter == "-"):
        low, high = text[:cut].strip(), text[cut + 1 :].strip()
        first, last = bounds(vr, low), bounds(vr, high)
        if (low or high) and (first or not low) and (last or not high):
            return (first[0] if first else None), (last[1] if last else None)
    return None


def bounds(vr: str, text: str) -> tuple[Any, Any] | None:
    """The earliest and latest moment that one value of VR DA, TM or DT may mean, comparable with each other."""
    if vr == "DT":
        return _moments(text)
    if vr == "DA":
        digits = text.replace(".", "")  # ACR-NEMA wrote 1993.08.22 (PS3.5 table 6.2-1, note)
        return (digits, digits) if re.fullmatch(r"\d{8}", digits) else None
    clock = re.fullmatch(r"(\d{2}(?:\d{2}){0,2})(?:\.(\d{1,6}))?", text.replace(":", ""))
    if clock is None:
        return None
    fraction = clock[2] or ""
    return clock[1].ljust(6, "0") + fraction.ljust(6, "0"), _latest(clock[1]) + fraction.ljust(6, "9")


def _latest(digits: str) -> str:
    return digits + "235959"[len(digits) :]


def _moments(text: str) -> tuple[dt.datetime, dt.datetime] | None:
    """The earliest and latest moment a DT may mean where trailing components are absent."""
    parts = re.fullmatch(r"(\d{4})(\d{2})?(\d{2})?(\d{2})?(\d{2})?(\d{2})?(?:\.(\d{1,6}))?([+-]\d{4})?", text)
    if parts is None or (parts[8] and abs(int(parts[8])) > 1400):
        return None
    year = int(parts[1])
    month, day, hour, minute, second = (int(part) if part else None for part in parts.groups()[1:6])
    if not 1900 <= year < 9999:
        return None
    fraction = parts[7] or ""
    moment = (year, month or 1, day or 1, hour or 0, minute or 0, min(second or 0, 59), int(fraction.ljust(6, "0")))
    try:
        early = dt.datetime(*moment)  # noqa: DTZ001
    except ValueError:
        return None
    step = _precision((month, day, hour, minute, second), fraction, early)
    zone = _zone(parts[8])
    return early.replace(tzinfo=zone).astimezone(dt.UTC), (early + step).replace(tzinfo=zone).astimezone(dt.UTC)


def _precision(given: tuple[int | None, ...], fraction: str, early: dt.datetime) -> dt.timedelta:
    tick = dt.timedelta(microseconds=1)
    month, day, hour, minute, second = given
    if second is not None:
        return dt.timedelta(microseconds=10 ** (6 - len(fraction))) - tick
    if minute is not None:
        return dt.timedelta(minutes=1) - tick
    if hour is not None:
        return dt.timedelta(hours=1) - tick
    if day is not None:
        return dt.timedelta(days=1) - tick
    following = dt.datetime(early.year + (month in (None, 12)), 1 if month in (None, 12) else early.month + 1, 1)  # noqa: DTZ001
    return following - early - tick


def _zone(offset: str | None) -> dt.tzinfo | None:
    if not offset:
        return None  # astimezone() then takes this machine's
    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    return dt.timezone(dt.timedelta(minutes=-minutes if offset[0] == "-" else minutes))


def _are_ranges(keys: Attributes, pair: tuple[str, str]) -> bool:
    return all("-" in str(next(iter(values(keys, tag)), "")) for tag in pair)


def _moment(keys: Attributes, held: Attributes, pair: tuple[str, str]) -> bool:
    date, time = ("".join(str(value) for value in values(held, tag)[:1]) for tag in pair)
    dates, times = (span(vr, str(values(keys, tag)[0]).strip()) for vr, tag in zip(("DA", "TM"), pair, strict=True))
    day, clock = bounds("DA", date), bounds("TM", time or "000000")
    if dates is None or times is None or day is None or clock is None:
        return False
    low = dates[0] and dates[0] + (times[0] or "")
    high = dates[1] and dates[1] + (times[1] or _latest("") + "9" * 6)
    moment = day[0] + clock[0]
    return (not low or low <= moment) and (not high or moment <= high)
