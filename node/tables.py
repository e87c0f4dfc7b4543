"""How facts look on a terminal: rich tables and lines made from the values of `node.views`. Prints nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

NOT_CLINICAL = "DEMONSTRATION WEIGHTS, trained on synthetic heads: NOT FOR CLINICAL USE"

_COLOURS = {
    "positive": "bold red",
    "HIGH": "bold red",
    "negative": "green",
    "not_analysed": "yellow",
    "failed": "bold yellow",
    "abandoned": "bold yellow",
    "MEDIUM": "default",
}
ENDING = 10
"""Digits of a UID that tell studies apart on a screen."""

PARTS = {
    "name": "part",
    "alive": "alive",
    "pid": "pid",
    "associations": "associations",
    "accepts_images": "accepts images",
    "device": "device",
    "precision": "precision",
}

SHORT = 60

_SILENT = {"event", "at", "seconds", "revision", "workitem_uid"}


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, title: str | None = None) -> Table:
    """A table of `rows`; `columns` maps each row key that is shown to its heading."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in columns.values():
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*(cell(row.get(key)) for key in columns))
    return made


def cell(value: Any) -> Text:
    """One value as text, coloured where its meaning matters."""
    if value is None:
        return Text("–", style="dim")
    if isinstance(value, float):
        return Text(f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}")
    return Text(str(value), style=_COLOURS.get(str(value), ""))


def ending(uid: str | None) -> str:
    """The end of a UID, by which `hemonode show` knows it."""
    return "–" if uid is None else uid if len(uid) <= ENDING else f"…{uid[-ENDING:]}"


def clock(at: str) -> str:
    """An ISO time as day and time to the second."""
    return f"{at[5:10]} {at[11:19]}"


def status(facts: Mapping[str, Any]) -> RenderableType:
    """`hemonode status` for people."""
    node = facts["node"]
    lines: list[RenderableType] = [
        Text(f"{node['ae_title']} on {node['address']}:{node['port']}", style="bold"),
        table(
            [part | {"alive": "yes" if part["alive"] else "NO"} for part in facts["parts"]],
            PARTS,
        )
        if facts["parts"]
        else Text("no part of the node is running", style="yellow"),
        counts("studies", facts["studies"]),
        counts("jobs", facts["jobs"]),
        counts("deliveries", facts["deliveries"]),
        counts("event reports", facts["notifications"]),
        counts("commitments", facts["commitments"]),
        Text(f"instances: {facts['instances']}   set aside: {facts['set_aside']}"),
        Text(f"disk: {facts['disk_free_mb']} MB free, receiving stops below {facts['disk_watermark_mb']} MB"),
    ]
    return Group(*lines, *_troubles(facts))


def _troubles(facts: Mapping[str, Any]) -> Iterable[Text]:
    for item in facts["abandoned"]:
        yield Text(f"ABANDONED {item['kind']} to {item['destination']}: {item['error']}", style="bold yellow")
    for item in facts["commitments_abandoned"]:
        what = f"{item['instances']} instance{'s' * (item['instances'] != 1)}"
        yield Text(f"ABANDONED answer to {item['ae_title']} on {what}: {item['error']}", style="bold yellow")
    for item in facts["latest_set_aside"]:
        yield Text(f"set aside ({item['kind']}) from {item['calling_ae']}: {item['reason']}", style="yellow")


def counts(what: str, by_state: Mapping[str, int]) -> Text:
    """One line such as ``studies: receiving 2, reported 14``."""
    return Text(f"{what}: " + (", ".join(f"{state} {count}" for state, count in sorted(by_state.items())) or "none"))


def story(facts: Mapping[str, Any]) -> RenderableType:
    """`hemonode show STUDY` for people."""
    lines: list[RenderableType] = [
        Text(f"study {facts['study_uid']}", style="bold"),
        Text(f"{facts['state']}, revision {facts['revision']}, {facts['instances']} instances, {facts['calling_ae']}"),
    ]
    for result in facts["results"]:
        lines += _result(result)
    lines += [Text(), timeline(facts["timeline"])]
    if facts["deliveries"]:
        columns = {"revision": "rev", "kind": "what", "destination": "to", "state": "state", "detail": "answer"}
        lines += [Text(), table(facts["deliveries"], columns | {"error": "error"}, title="deliveries")]
    for job in facts["jobs"]:
        if job["error"]:
            lines.append(Text(f"job of revision {job['revision']} ({job['state']}): {job['error']}", style="yellow"))
    for item in facts["set_aside"]:
        lines.append(Text(f"set aside ({item['kind']}): {item['reason']}", style="yellow"))
    return Group(*lines)


def _result(result: Mapping[str, Any]) -> Iterable[RenderableType]:
    yield Text()
    yield Text(f"revision {result['revision']}: ", style="bold").append(cell(result["outcome"]))
    yield Text(f"  {result['reason']}")
    if any(reading["demonstration"] for reading in result["readings"]):
        yield Text(f"  {NOT_CLINICAL}", style="bold yellow")
    yield Text(f"  read as {'complete' if result['completeness']['complete'] else 'INCOMPLETE'}: "
               f"{result['completeness']['reason']}")  # fmt: skip
    for missing in result["completeness"]["missing"]:
        yield Text(f"    missing: {missing}", style="yellow")
    for warning in result["warnings"]:
        yield Text(f"  warning: {warning}", style="yellow")
    if result["series"]:
        rows = [choice | {"chosen": "read" if choice["chosen"] else "not read"} for choice in result["series"]]
        columns = {"chosen": "", "description": "series", "instances": "images", "reason": "why"}
        yield table(rows, columns, title="series")
    for reading in result["readings"]:
        yield _reading(reading)
        for warning in reading["warnings"]:
            yield Text(f"  warning: {reading['name']}: {warning}", style="yellow")


def _reading(reading: Mapping[str, Any]) -> Table:
    title = f"{reading['name']} {reading['version']} ({reading['device']}, {reading['precision']}): {reading['rule']}"
    rows = [
        finding | {"present": "PRESENT" if finding["present"] else "absent", "scale": _scale(finding)}
        for finding in reading["findings"]
    ]
    columns = {"label": "finding", "present": "", "score": "score", "threshold": "at or above", "scale": ""}
    made = table(rows, columns, title=title)
    if volume := reading.get("volume"):
        made.caption = (
            f"outlined: {volume['ml']:.1f} ml ({volume['low_ml']:.1f} to {volume['high_ml']:.1f}), for research"
        )
    return made


def _scale(finding: Mapping[str, Any]) -> str:
    if finding["calibrated"]:
        return f"probability {finding['probability']:.2f}, where {finding['prevalence']:.0%} of scans bear it"
    return "score, not a probability"


def timeline(events: Sequence[Mapping[str, Any]]) -> Table:
    """Every event with the time since the one before it."""
    rows = [
        {
            "at": event["at"][11:23],
            "after": f"+{event['seconds']:.3f} s",
            "event": event["event"].replace("_", " "),
            "detail": ", ".join(f"{k}: {v}" for k, v in event.items() if k not in _SILENT and v not in (None, [], "")),
        }
        for event in events
    ]
    return table(rows, {"at": "UTC", "after": "after", "event": "what", "detail": ""}, title="timeline")


def studies(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """`hemonode studies` for people."""
    if not rows:
        return Text("no study has been received yet")
    rows = [
        {**row, "study": ending(row["study_uid"]), "at": clock(row["last_received_at"]), "why": _short(row["reason"])}
        for row in rows
    ]
    columns = {
        "study": "study",
        "at": "last image (UTC)",
        "calling_ae": "from",
        "instances": "images",
        "state": "state",
        "revision": "rev",
        "outcome": "outcome",
        "why": "why",
    }
    return table(rows, columns)


def _short(reason: str | None) -> str | None:
    """Enough of a reason for a list; `hemonode show` has the whole of it."""
    return reason if reason is None or len(reason) <= SHORT else f"{reason[:SHORT].rstrip()}…"


def worklist(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """`hemonode worklist` for people: what to read first stands on top."""
    if not rows:
        return Text("the worklist is empty")
    rows = [{**row, "study": ending(row["study_uid"]), "since": clock(row["since"])} for row in rows]
    columns = {
        "priority": "priority",
        "label": "label",
        "patient": "patient",
        "patient_id": "ID",
        "accession": "accession",
        "state": "state",
        "since": "since (UTC)",
        "study": "study",
    }
    return table(rows, columns, title="reading worklist, first to read on top")


def requeued(facts: Mapping[str, Any]) -> Text:
    """`hemonode requeue` for people."""
    said = f"{facts['deliveries']} deliveries are due again"
    if facts["commitments"]:
        said += f"; {facts['commitments']} storage commitments are answered again"
    if facts["revision"] is not None:
        said += f"; study {facts['study_uid']} is read again as revision {facts['revision']}"
    return Text(said)


def offline(result: Mapping[str, Any]) -> RenderableType:
    """`hemonode infer` for people."""
    return Group(Text(f"study {result['study_uid']}", style="bold"), *_result(result))


def models(facts: Mapping[str, Any]) -> RenderableType:
    """`hemonode models` for people."""
    networks = [
        network | {"input": " × ".join(map(str, network["input"])), "parameters": f"{network['parameters']:,}"}
        if network["parameters"]
        else network | {"input": "header facts", "parameters": "–"}
        for network in facts["networks"]
    ]
    columns = ("family", "name", "input", "parameters", "decides", "paper")
    lines: list[RenderableType] = [
        table(networks, {column: column for column in columns}, title="networks, at their papers' sizes")
    ]
    for heading, key in (("configured", "configured"), ("packaged, not configured", "packaged")):
        if facts[key]:
            lines += [Text(), Text(heading, style="bold underline")]
            lines += [line for card in facts[key] for line in _card(card)]
    return Group(*lines)


def _card(card: Mapping[str, Any]) -> Iterable[RenderableType]:
    yield Text(f"{card['name']}: {card['model']} {card['version']} ({card['family']})", style="bold")
    if card["demonstration"]:
        yield Text(f"  {NOT_CLINICAL}", style="bold yellow")
    facts = {
        "directory": card["directory"],
        "SHA-256": card["sha256"],
        "raises the flag": "yes" if card["trigger"] else "no",
        "scan rule": ", ".join(f"{key} {value}" for key, value in card["rule"].items()),
        "thresholds": ", ".join(f"{label} ≥ {value:.3g}" for label, value in card["thresholds"].items()),
        **card["certainty"],
        "findings have": "probabilities beside scores" if card["calibrated"] else "scores, not probabilities",
        "trained by": f"{card['provenance']['recipe']} on {card['provenance']['data']}",
        "intended use": card["intended_use"],
    }
    yield table([{"what": k, "value": v} for k, v in (facts | _measured(card)).items()], {"what": "", "value": ""})


def _measured(card: Mapping[str, Any]) -> dict[str, str]:
    """How often scans were called rightly, by the first label, on each set of scans that the card has figures of."""
    label, said = card["labels"][0], {}
    for name, figures in card["figures"].items():
        scans = figures.get("all", {}).get("scans", {}).get(label) if isinstance(figures, dict) else None
        if scans:
            parts = [f"{what} {_share(scans[what])}" for what in ("sensitivity", "specificity") if scans.get(what)]
            said[f"{label}, {name}"] = ", ".join(parts)
    return said


def _share(counted: Mapping[str, Any]) -> str:
    low, high = (round(100 * counted[end]) for end in ("low", "high"))
    return f"{counted['hits']} of {counted['cases']} (95 %: {low}–{high} %)"


def fetched(facts: dict[str, Any]) -> RenderableType:
    """What a fetch brought, and what it did not."""
    lines = [
        f"{facts['received']} of {facts['announced']} instances are here, of {facts['series']} series"
        f" in {facts['studies']} studies; {facts['known']} were here before"
    ]
    lines += ["stopped before the end: the same command goes on"] if facts["stopped"] else []
    lines += [f"not fetched: {m['series_uid'] or m['study_uid']}: {m['reason']}" for m in facts["missing"]]
    return Text("\n".join(lines))
