"""The exception tree of the node.

HemonodeError
├── ConfigError             node.toml is wrong: file, key, what is allowed
├── StartError              a part of the node cannot start (port in use, missing weights, no such database)
├── IntakeError             an object was not stored; carries the DIMSE status the sender is told
│   ├── OutOfResources      A700  PS3.4 B.2.3, "Refused: Out of resources"
│   ├── DataSetMismatch     A900  PS3.4 B.2.3, "Error: Data Set does not match SOP Class"
│   └── CannotUnderstand    C000  PS3.4 B.2.3, "Error: Cannot understand"
├── DeliveryError           something was not delivered this time; it is tried again
│   ├── PeerUnreachable     no connection, no association, or it broke off
│   └── PeerRefused         the far side answered with a failure status
├── QueryRefused            a query or retrieval cannot be answered; carries the DIMSE status the asker is told
└── NoSegmentation          these models or images allow no DICOM Segmentation
"""

from __future__ import annotations


class HemonodeError(Exception):
    """Something the node can name."""


class ConfigError(HemonodeError):
    """node.toml is wrong; the message names the file, the key and what is allowed."""


class StartError(HemonodeError):
    """A part of the node cannot start; the message says why in one line."""


class IntakeError(HemonodeError):
    """An object was not stored. `status` is the C-STORE status the sender is told (PS3.4 table B.2-1)."""

    status: int = 0xC000


class OutOfResources(IntakeError):
    """Refused: Out of resources (A700)."""

    status = 0xA700


class DataSetMismatch(IntakeError):
    """Error: Data Set does not match SOP Class (A900)."""

    status = 0xA900


class CannotUnderstand(IntakeError):
    """Error: Cannot understand (C000)."""

    status = 0xC000


class DeliveryError(HemonodeError):
    """Something was not delivered this time."""


class PeerUnreachable(DeliveryError):
    """No connection, no association, or it broke off before the answer."""


class PeerRefused(DeliveryError):
    """The far side answered with a failure. `status` is its DIMSE status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class QueryRefused(HemonodeError):
    """A query or retrieval cannot be answered. `status` is its DIMSE status, `tag` the attribute at fault or None."""

    def __init__(self, message: str, *, status: int, tag: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.tag = tag


class NoSegmentation(HemonodeError):
    """These models or images allow no DICOM Segmentation; the message says why."""
