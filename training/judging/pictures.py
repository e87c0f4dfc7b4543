"""Plots and contact sheets of a report, as PNG. Nothing is shown on a screen, and nothing is written to a file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.dataset import Scan
from training.judging.errors import Wrong

BRAIN = (40.0, 80.0)
"""Level and width of the brain window in HU (Nguyen et al. 2020, section 2)."""

ACROSS = 6
DOTS = 110
NEIGHBOURS = (-1, 0, 1)


def roc(curves: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The ROC curve of every label of the scans that has one, with the point in force."""
    figure = Figure(figsize=(5.2, 5), dpi=DOTS, layout="tight")
    axes = figure.subplots()
    for label, found in curves.items():
        if found["roc"]:
            area = found["auc_delong"]
            name = f"{label} {area['value']:.3f}" if area else label
            (line,) = axes.step(*np.array(found["roc"]).T, where="post", label=name, linewidth=1.4)
            here = 1 - found["specificity"]["value"], found["sensitivity"]["value"]
            axes.plot(*here, "o", color=line.get_color(), markersize=5)
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=8, frameon=False)
    return png(figure)


def calibration(tables: Mapping[str, Mapping[str, Any] | None]) -> bytes:
    """The reliability diagram: how often the label is borne where values are such, with Wilson intervals."""
    figure = Figure(figsize=(5.2, 5), dpi=DOTS, layout="tight")
    axes = figure.subplots()
    for name, found in tables.items():
        rows = found["table"] if found else []
        if rows:
            shares = [row["share"] for row in rows]
            value = np.array([share["value"] for share in shares])
            reach = np.abs(np.array([[share["low"], share["high"]] for share in shares]).T - value)
            means = [row["mean"] for row in rows]
            axes.errorbar(means, value, yerr=reach, marker="o", markersize=3, linewidth=1, capsize=2, label=name)
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="mean value", ylabel="share that bears the label", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", fontsize=8, frameon=False)
    return png(figure)


def waits(queue: Mapping[str, Any]) -> bytes:
    """Mean waits of each group in both orders, with their intervals."""
    groups = list(queue["waits"])
    figure = Figure(figsize=(7.5, 0.55 * len(groups) + 1), dpi=DOTS, layout="tight")
    axes = figure.subplots()
    for offset, order, name in ((-0.18, "first_come", "first in, first out"), (0.18, "flagged_first", "flagged first")):
        means = [queue["waits"][group][order] for group in groups]
        value = np.array([mean["value"] for mean in means])
        reach = np.abs(np.array([[mean["low"], mean["high"]] for mean in means]).T - value)
        axes.barh(np.arange(len(groups)) + offset, value, height=0.34, xerr=reach, label=name, error_kw={"capsize": 2})
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("minutes until the reading begins")
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def contact_sheet(wrong: Sequence[Wrong], scans: Mapping[tuple[str, str], Scan]) -> bytes | None:
    """The key slice of each error in the brain window, with a neighbour on either side; None without any.

    What the network saw takes the place of a volume that is not at hand.
    """
    if not wrong:
        return None
    across = min(ACROSS // len(NEIGHBOURS), len(wrong))
    down = -(-len(wrong) // across)
    figure = Figure(figsize=(1.9 * len(NEIGHBOURS) * across, 2.15 * down), dpi=DOTS, layout="tight")
    grid = figure.subplots(down, across * len(NEIGHBOURS), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for number, one in enumerate(wrong):
        row, column = divmod(number, across)
        planes = _planes(scans[one.source, one.study_uid], one.slice)
        for place, plane in enumerate(planes):
            axes = grid[row][column * len(NEIGHBOURS) + place]
            axes.imshow(plane, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
            if NEIGHBOURS[place] == 0:
                axes.set_title(f"{number + 1}: {one.score:.3f}", fontsize=8)
    return png(figure)


def _planes(scan: Scan, place: int) -> list[NDArray[np.float32]]:
    here = [min(max(place + step, 0), len(scan) - 1) for step in NEIGHBOURS]
    if scan.volume is None:
        seen = [scan.images[at, 0].astype(np.float32) for at in here]
        return [(plane - plane.min()) / max(float(np.ptp(plane)), 1e-6) for plane in seen]
    level, width = BRAIN
    hu = scan.volume()["hu"]
    return [np.clip((hu[at].astype(np.float32) - level) / width + 0.5, 0, 1) for at in here]


def png(figure: Figure) -> bytes:
    """The picture as a PNG without a date or a program's name in it: the same figures give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
