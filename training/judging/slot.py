"""Where the weights in use stand, who put them there, and the way back.

::

    SLOT/current -> models/3f0c9e41d2aa    what node.toml names: weights = "…/SLOT/current"
    SLOT/models/3f0c9e41d2aa/              a copy of every model that was ever promoted
    SLOT/promotions.jsonl                  one line for each promotion and each rollback, only ever added to

A model is copied whole and synced, then its line is written, then `current` is replaced by one rename. Whoever is
killed between leaves the old model in use, and at most a line about a promotion that can be repeated.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inference import card as cards
from inference.result import Json
from training.errors import TrainingError

CURRENT = "current"
MODELS = "models"
RECORD = "promotions.jsonl"
PROMOTED, ROLLED_BACK = "promoted", "rolled back"


@dataclass(frozen=True, kw_only=True)
class Entry(Json):
    """One line of the record.

    `previous` is what was in use before. `against` is what spoke against a promotion; where anything did, `override` is
    why `by` let it pass. `test_set` is the digest of the scans that it was judged on, and `gains` what it gained there.
    """

    at: str
    by: str
    action: str
    model: str
    sha256: str
    previous: str | None
    test_set: str = ""
    against: tuple[str, ...] = ()
    override: str = ""
    gains: dict[str, Any] = field(default_factory=dict)


class Slot:
    """A place in which one model is in use. Nothing is made before the first promotion."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def current(self) -> Path | None:
        """The directory of the model in use; None before the first promotion."""
        pointer = self.directory / CURRENT
        return pointer.resolve(strict=True) if pointer.is_symlink() else None

    def record(self) -> list[Entry]:
        """Every line, the oldest first; a last line that was cut off by a crash does not count."""
        path = self.directory / RECORD
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        try:
            return [Entry.from_json(json.loads(line)) for line in lines if line]
        except (ValueError, TypeError) as error:
            raise TrainingError(f"{path} is not a record of promotions: {error}") from error

    @property
    def test_set(self) -> str | None:
        """The digest of the scans on which whatever comes next must be judged."""
        return next((entry.test_set for entry in reversed(self.record()) if entry.test_set), None)

    def promote(
        self, model: Path, *, test_set: str, against: tuple[str, ...], override: str, gains: dict[str, Any]
    ) -> Entry:
        """A copy of `model` is in use, and the record says why.

        Raises ``TrainingError`` where something speaks against it and nothing overrides that, or it is in use already.
        """
        if against and not override:
            raise TrainingError("not promoted: " + "; ".join(against))
        card, _ = cards.load(model)
        name = hashlib.sha256((model / cards.CARD_FILE).read_bytes()).hexdigest()[:12]
        with self._alone():
            before = self.current
            if before is not None and before.name == name:
                raise TrainingError(f"{model} is the model in use already")
            self._keep(model, name)
            entry = _entry(
                PROMOTED, name, card.sha256, before, test_set=test_set, against=against, override=override, gains=gains
            )
            self._put(entry)
        return entry

    def rollback(self) -> Entry:
        """What was in use before the model in use is in use again. Raises ``TrainingError`` where nothing was."""
        with self._alone():
            now = self.current
            promoted = [e for e in self.record() if now and e.model == now.name and e.action == PROMOTED]
            if now is None or not promoted or promoted[-1].previous is None:
                raise TrainingError(f"{self.directory}: nothing was in use before")
            name = promoted[-1].previous
            card, _ = cards.load(self.directory / MODELS / name)
            entry = _entry(ROLLED_BACK, name, card.sha256, now)
            self._put(entry)
        return entry

    @contextmanager
    def _alone(self) -> Iterator[None]:
        (self.directory / MODELS).mkdir(parents=True, exist_ok=True)
        with (self.directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _keep(self, model: Path, name: str) -> None:
        place = self.directory / MODELS / name
        if place.exists():
            return
        fresh = Path(tempfile.mkdtemp(prefix=".", dir=place.parent))
        try:
            shutil.copytree(model, fresh, dirs_exist_ok=True)
            fresh.chmod(0o755)
            for path in (*fresh.rglob("*"), fresh):
                _sync(path)
            fresh.rename(place)
            _sync(place.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _put(self, entry: Entry) -> None:
        """The line is written, then the pointer replaced."""
        path = self.directory / RECORD
        whole = path.read_bytes() if path.exists() else b""
        line = json.dumps(entry.to_json(), ensure_ascii=False).encode() + b"\n"
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(whole.rfind(b"\n") + 1)  # over what a crash left of a line
            file.truncate()
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        pointer = self.directory / f".{CURRENT}"
        pointer.unlink(missing_ok=True)
        pointer.symlink_to(Path(MODELS) / entry.model)
        pointer.replace(self.directory / CURRENT)
        _sync(self.directory)


def _entry(action: str, name: str, sha256: str, before: Path | None, **said: Any) -> Entry:
    return Entry(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=getpass.getuser(),
        action=action,
        model=name,
        sha256=sha256,
        previous=before.name if before else None,
        **said,
    )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
