"""How backends fail: one that is asked for and is not there, and one that cannot run a network here."""

from __future__ import annotations

from inference.card import ModelError


class BackendMissing(ModelError):
    """The configured backend is not installed, or is not for this device."""


class BackendFailed(RuntimeError):
    """The backend cannot run this network here; torch still can. The message begins with the backend's name."""
