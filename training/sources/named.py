"""Sources by name, as the command line has them: ``SOURCE[:PATH]``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training import heads
from training.errors import DataError
from training.heads import Heads
from training.sources.phantom import PRESETS
from training.study import LabelledStudy

KNOWN = ("archive", "rsna", "cq500", "physionet", "phantom")


def open_source(text: str, *, index: Path) -> list[LabelledStudy]:
    """The labelled studies of ``archive:FILE``, ``rsna:FOLDER``, ``cq500:FOLDER``, ``physionet:FOLDER`` or ``phantom``.

    Phantoms take values instead of a path: ``phantom:count=200,first=1,presets=easy+real,sizes=256,thicknesses=5``.

    Parameters
    ----------
    index : pathlib.Path
        Where indices of large folders are kept.

    Raises
    ------
    DataError
        There is no such source, or it is not what its layout says.
    """
    name, _, rest = text.partition(":")
    if name not in KNOWN:
        raise DataError(f"no source {name!r}; there are {', '.join(KNOWN)}")
    if name != "phantom" and not rest:
        raise DataError(f"{name} needs a path: {name}:PATH")
    path = Path(rest).expanduser()
    openers: dict[str, Callable[[], list[LabelledStudy]]] = {
        "archive": lambda: _archive(path),
        "rsna": lambda: _rsna(path, index),
        "cq500": lambda: _cq500(path, index),
        "physionet": lambda: _physionet(path),
        "phantom": lambda: list(heads.studies(_heads(rest))),
    }
    found = openers[name]()
    if not found:
        raise DataError(f"{text}: no labelled study")
    return found


def _archive(path: Path) -> list[LabelledStudy]:
    from training.sources.archive import frozen

    return list(frozen.studies(path))


def _rsna(path: Path, index: Path) -> list[LabelledStudy]:
    from training.sources import rsna

    return list(rsna.studies(path, index=index))


def _cq500(path: Path, index: Path) -> list[LabelledStudy]:
    from training.sources import cq500

    return list(cq500.studies(path, index=index))


def _physionet(path: Path) -> list[LabelledStudy]:
    try:
        from training.sources import physionet
    except ImportError as error:
        raise DataError("PhysioNet's scans are NIfTI: pip install 'hemonode[train]'") from error
    return list(physionet.studies(path))


def _heads(text: str) -> Heads:
    given = dict(part.partition("=")[::2] for part in text.split(",") if part)
    known = {"count", "first", "presets", "sizes", "thicknesses"}
    if unknown := sorted(set(given) - known):
        raise DataError(f"phantom: no {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    presets = tuple(given.get("presets", "real").split("+"))
    if wrong := sorted(set(presets) - set(PRESETS)):
        raise DataError(f"phantom: no preset {', '.join(wrong)}; there are {', '.join(PRESETS)}")
    try:
        return Heads(
            first=int(given.get("first", "1")),
            count=int(given.get("count", "100")),
            presets=presets,
            sizes=tuple(int(v) for v in given.get("sizes", "512").split("+")),
            thicknesses_mm=tuple(float(v) for v in given.get("thicknesses", "5").split("+")),
        )
    except ValueError as error:
        raise DataError(f"phantom:{text}: {error}") from error
