"""Builds the reader of a worker, or of an offline command, from node.toml: the only way into the engine."""

from __future__ import annotations

from pathlib import Path

import inference
from inference.card import CARD_FILE, ModelCard, ModelError, read_card
from inference.combination import Combination
from inference.engine import Engine
from inference.metadata import HeaderModel
from inference.result import ANY
from inference.study import EncodedCache, StudyReader
from node.config import ReadSection, Settings
from node.errors import StartError

PACKAGED = Path(inference.__file__).parent / "weights"
"""The demonstration weights that travel with Hemonode, one directory each."""


def directory_of(weights: str) -> Path:
    """The directory that a model section's `weights` names: the site's own, or for a bare name the packaged one."""
    return Path(weights) if "/" in weights else PACKAGED / weights


def packaged() -> tuple[Path, ...]:
    """The directories of the weights that travel with Hemonode."""
    return tuple(sorted(path.parent for path in PACKAGED.glob(f"*/{CARD_FILE}")))


def engine_of(settings: Settings, *, device: str | None = None, threads: int | None = None) -> Engine:
    """The engine with every configured model, on this device and with so many threads where they are not as configured.

    Raises ``StartError`` naming the directory and what is wrong with it, or the device or backend that is missing.
    """
    read = settings.read
    if not read.models:
        raise StartError("no model is configured under [read.models]")
    directories = {name: path for name, (path, card) in cards(settings).items() if not card.preprocessing.header}
    try:
        engine = Engine.load(
            directories,
            device=device or read.device,
            threads=threads or read.threads,
            chunk=read.batch,
            backend=read.backend,
        )
    except ModelError as error:
        raise StartError(str(error)) from error
    return engine


def reader_of(settings: Settings, engine: Engine) -> StudyReader:
    """The reader that `settings` describe."""
    return StudyReader(
        engine,
        criteria=settings.select,
        combination=combination_of(settings.read),
        cache=EncodedCache(limit=settings.read.cache_mb * 2**20),
        headers=headers_of(settings),
    )


def headers_of(settings: Settings) -> list[HeaderModel]:
    """The configured models that look at headers only. Raises ``StartError``."""
    try:
        return [
            HeaderModel.load(name, path) for name, (path, card) in cards(settings).items() if card.preprocessing.header
        ]
    except ModelError as error:
        raise StartError(str(error)) from error


def combination_of(read: ReadSection) -> Combination:
    """Which models' findings of "any" raise the flag. Raises ``StartError`` when none may."""
    triggers = {name: ANY for name, model in read.models.items() if model.trigger}
    if not triggers:
        raise StartError("no model under [read.models] has trigger = true: nothing could ever be flagged")
    abstain = read.out_of_distribution == "abstain"
    if read.combine == "any_of":
        return Combination(any_of=triggers, abstain=abstain)
    return Combination(all_of=triggers, abstain=abstain)


def refuse_silent_triggers(settings: Settings) -> None:
    """Raises ``StartError`` where a model that may raise the flag says nothing of "any": it could clear no study."""
    for name, (_, card) in cards(settings).items():
        if settings.read.models[name].trigger and ANY not in card.labels:
            raise StartError(
                f'[read.models.{name}] has trigger = true, and its weights say nothing of "any", only of '
                f"{', '.join(card.labels)}: give it trigger = false beside a model that does"
            )


def cards(settings: Settings) -> dict[str, tuple[Path, ModelCard]]:
    """The card of every configured model and the directory it lies in. Raises ``StartError``."""
    found = {}
    for name, model in settings.read.models.items():
        directory = directory_of(model.weights)
        try:
            found[name] = (directory, read_card(directory))
        except ModelError as error:
            raise StartError(str(error)) from error
    return found
