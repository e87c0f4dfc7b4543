"""The report as one HTML file that needs nothing else: tables, and pictures inside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from inference.result import ANY, Rate
from training.dataset import Scan
from training.judging import pictures
from training.judging.cohorts import Cohort
from training.judging.errors import Errors

PAGE_FILE = "report.html"
JSON_FILE = "report.json"


def write(folder: Path, found: dict[str, Any], scans: Sequence[Scan]) -> Path:
    """``report.json`` and ``report.html`` stand in `folder`; returns the page's path. `scans` give the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_FILE).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = folder / PAGE_FILE
    page.write_text(html(found, scans), encoding="utf-8")
    return page


def html(found: dict[str, Any], scans: Sequence[Scan]) -> str:
    """The whole page."""
    room = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    room.filters |= {"share": _share, "interval": _interval, "number": _number, "gain": _gain}
    return room.get_template("report.html.j2").render(
        report=found,
        any=ANY,
        cohorts={
            name: [Cohort.from_json(row) for row in rows] for name, rows in found.get("cohorts", {}).items()
        },
        pictures={name: base64.b64encode(data).decode() for name, data in _pictures(found, scans).items()},
    )  # fmt: skip


def _pictures(found: dict[str, Any], scans: Sequence[Scan]) -> dict[str, bytes]:
    by_label = found["scans"]
    drawn = {
        "roc": pictures.roc(by_label),
        "calibration": pictures.calibration({label: one["calibration"] for label, one in by_label.items()}),
    }
    if "queue" in found:
        drawn["waits"] = pictures.waits(found["queue"])
    if "errors" in found:
        wrong = Errors.from_json(found["errors"])
        by_name = {(scan.facts.source, scan.facts.study_uid): scan for scan in scans}
        sheets = {"missed": wrong.missed, "alarms": wrong.alarms, "slices": wrong.slices}
        drawn |= {name: sheet for name, errors in sheets.items() if (sheet := pictures.contact_sheet(errors, by_name))}
    return drawn


def _share(rate: dict[str, Any] | Rate | None) -> str:
    """For example "0.91 [0.80-0.96] (41 of 45)"."""
    if rate is None:
        return "–"
    found = rate if isinstance(rate, Rate) else Rate.from_json(rate)
    return "–" if found.value is None else str(found)


def _interval(value: dict[str, float] | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f} to {value['high']:.{digits}f}]"


def _gain(value: dict[str, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value['value']:+.3f} [{value['low']:+.3f} to {value['high']:+.3f}], p = {value['p']:.3g}"


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
