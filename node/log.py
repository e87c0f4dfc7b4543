"""One line per event: time, level, event, then key=value. UIDs yes, patient data never."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog


def configure(*, level: str = "info", part: str = "", stream: TextIO | None = None) -> None:
    """Every log line of this process goes to `stream` (stderr by default) as one line, marked with `part`.

    pynetdicom's own logger is held at warnings: at debug it prints identifiers, which are patient data.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "part", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    if part:
        structlog.contextvars.bind_contextvars(part=part)
    logging.basicConfig(level=logging.ERROR, stream=stream or sys.stderr, force=True, format="%(name)s %(message)s")
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


def log() -> Any:
    """The logger: ``log().info("stored", sop_instance_uid=…)``."""
    return structlog.get_logger()
