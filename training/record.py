"""The log of a run: a table of every figure, TensorBoard where it is installed, and the curves as one picture."""

from __future__ import annotations

import csv
import importlib.util
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

COLUMNS = ("step", "name", "value")
TABLE, PICTURE, BOARD = "log.csv", "curves.png", "tensorboard"

log = logging.getLogger(__name__)


class RunLog:
    """Writes below `folder`. A run that was resumed overwrites what its former life wrote after the checkpoint.

    So the table of a run that was killed and resumed is, but for its times, that of a run that was not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / TABLE
        self._begun = False
        self._board: Any = None

    def write(self, step: int, **figures: float) -> None:
        """Every figure of `step` stands in the table, and on the board."""
        if not self._begun:
            self._begin(step)
        with self.table.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows((step, name, repr(float(value))) for name, value in figures.items())
        for name, value in figures.items():
            if self._board is not None:
                self._board.add_scalar(name, value, step)

    def _begin(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read(self.table) if row[0] < step] if self.table.exists() else []
        partial = self.table.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *((at, name, repr(value)) for at, name, value in kept)])
        os.replace(partial, self.table)
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / BOARD), purge_step=step)
        self._begun = True

    def close(self) -> None:
        """The board is written out and the curves are drawn, where matplotlib is installed."""
        if self._board is not None:
            self._board.close()
        if self.table.exists() and importlib.util.find_spec("matplotlib"):
            draw(self.table, self.folder / PICTURE)


def read(table: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of every whole row; a row that was cut off is left out."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) == len(COLUMNS) and row[0].isdigit()]
    return [(int(step), name, float(value)) for step, name, value in rows]


def draw(table: Path, picture: Path) -> None:
    """The curves of `table` as a PNG, those of training and validation under one name together."""
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for step, name, value in read(table):
        part, _, kind = name.partition("/")
        curves[kind or part][part].append((step, value))
    figure = Figure(figsize=(6, 2.2 * max(1, len(curves))), layout="constrained")
    for place, (kind, parts) in enumerate(sorted(curves.items()), start=1):
        axes = figure.add_subplot(len(curves), 1, place)
        for part, points in sorted(parts.items()):
            axes.plot(*zip(*points, strict=True), label=part, linewidth=1)
        axes.set_ylabel(kind.replace("_", " "))
        axes.legend(fontsize="small")
    figure.supxlabel("step")
    figure.savefig(picture, dpi=120)
