"""One line per event: time, level, event, then key=value. UIDs yes, patient data never."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from functools import cache, partial
from typing import Any, TextIO

import pydicom.config
import structlog


def configure(*, level: str = "info", part: str = "", stream: TextIO | None = None) -> None:
    """Every log line of this process goes to `stream` (stderr by default) as one line, marked with `part`.

    pynetdicom's and pydicom's own messages are held back: they print identifiers and values, which are patient data.
    """
    structlog.configure(
        processors=[
            partial(_mark, part),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "part", "event"], drop_missing=True, bool_as_flag=False
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    log.cache_clear()
    # pydicom prints values that break a rule of their type, birth dates among them.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.basicConfig(level=logging.ERROR, stream=stream or sys.stderr, force=True, format="%(name)s %(message)s")
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


def _mark(part: str, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The same in every thread of the process."""
    return {**event, "part": part} if part else event


@cache
def log() -> Any:
    """The logger: ``log().info("stored", sop_instance_uid=…)``. Made once."""
    return structlog.get_logger().bind()
