"""The page of ``benchmarks.phantoms``: figures with intervals over heads and seeds, and what they say of each claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.phantoms_contenders import COMPARISONS, CONTENDERS, LADDER, OURS, PAPERS, Comparison
from training.judging.intervals import weighted_auc

DRAWS = 2000
ENOUGH = 3
"""Seeds without which nothing is said."""

HEAD = """\
# The papers' comparisons, on phantoms

Synthetic heads only: these tables say how the networks compare on phantoms of the preset `real`, learning from
few heads for a short time. They say nothing about patients, and nothing about what the papers measured on
patients.

`python -m benchmarks.phantoms run --work runs/ladder --epochs {epochs} --side {side} --heads {heads} --test
{test}` trains what is lacking; `python -m benchmarks.phantoms table` writes this page from `phantoms.json`,
which holds every score.

All learn from the same {heads} heads (13 % of them for operating points) and see the slices of each equally
often ({epochs} epochs), at {side} × {side} pixels and from random weights. They are judged on {count} other
heads, {bleeding} of which bleed, by the last state of their training. Trunks are ResNet-18 but for Grewal's.
What else differs from each recipe stands in `benchmarks/phantoms_contenders.py`.

Runs of {dates} on {machines}.

Minutes are those of runs without a GPU, with one thread or two, some beside others. Intervals (95 %) are over
heads and seeds, both drawn anew {draws} times. Who has fewer than {enough} seeds is not compared. A run that was
stopped and continued counts the minutes since it was continued.
"""

CLAIMS = """\
How much better the second is than the first, with the same seeds on the same heads: AUC of *any* over scans,
and log loss of *any* over slices, where less is better. It *shows* where the interval of one of the two lies on
the claim's side of nought and that of the other does not lie on the other side.
"""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One contender with one seed: values of the test heads, all in the same order."""

    seed: int
    scores: Floats
    losses: Floats
    """(heads, 3): slices, and the sums of their losses for *any* and for all labels; empty without slice scores"""
    stored: dict[str, Any]


def page(stored: dict[str, Any]) -> str:
    """The page as Markdown."""
    heads = sorted(stored["test"])
    bearing = np.array([stored["test"][head][0] == 1 for head in heads])
    runs: dict[str, list[Run]] = {}
    for run in sorted(stored["runs"], key=lambda run: int(run["seed"])):
        runs.setdefault(run["contender"], []).append(_run(run, heads))
    there = {name: runs[name] for name in CONTENDERS if name in runs}
    return "\n".join([*_head(stored, there, bearing), "", *_figures(there, bearing), *_claims(there, bearing)]) + "\n"


def _run(run: dict[str, Any], heads: Sequence[str]) -> Run:
    losses = [run["losses"][head] for head in heads] if run["losses"] else np.empty((0, 3))
    return Run(
        seed=run["seed"],
        scores=np.array([run["scans"][head] for head in heads]),
        losses=np.array(losses, np.float64),
        stored=run,
    )


def _head(stored: dict[str, Any], runs: dict[str, list[Run]], bearing: NDArray[np.bool_]) -> list[str]:
    made = [run.stored for many in runs.values() for run in many]
    dates = sorted(run["date"] for run in made)
    said = HEAD.format(
        **stored["scale"],
        count=len(bearing),
        bleeding=int(bearing.sum()),
        dates=f"{dates[0]} to {dates[-1]}",
        machines="; ".join(sorted({run["machine"] for run in made})),
        draws=DRAWS,
        enough=ENOUGH,
    )
    return said.splitlines()


def _figures(runs: dict[str, list[Run]], bearing: NDArray[np.bool_]) -> Iterator[str]:
    for title, names in (
        ("The papers' networks and ours", [*PAPERS, OURS]),
        ("Ours, with one thing left out or added", list(LADDER)),
    ):
        there = [name for name in names if name in runs]
        if not there:
            continue
        yield from (
            f"## {title}",
            "",
            "| contender | seeds | AUC of *any*, scans | AUC of *any*, slices | log loss of *any* (prior) "
            "| weighted log loss, 6 labels (prior) | million parameters | training, CPU minutes |",
            "|---|---|---|---|---|---|---|---|",
        )
        yield from (_row(name, runs[name], bearing) for name in there)
        yield ""


def _row(name: str, runs: Sequence[Run], bearing: NDArray[np.bool_]) -> str:
    slices = [run.stored["slice_auc"] for run in runs if run.stored["slice_auc"] is not None]
    cells = [CONTENDERS[name].said, str(len(runs)), _cell(_interval(runs, partial(_area, bearing)))]
    cells.append(f"{np.mean(slices):.3f}" if slices else "–")
    for column, labels in ((1, 1), (2, 6)):
        if not len(runs[0].losses) or runs[0].stored["labels"] < labels:
            cells.append("–")
            continue
        prior = np.mean([run.stored["prior_losses"][column - 1] for run in runs])
        cells.append(f"{_cell(_interval(runs, partial(_loss, column)))} ({prior:.3f})")
    cells.append(f"{runs[0].stored['parameters'] / 1e6:.1f}")
    minutes = [run.stored["cpu_minutes"] for run in runs if run.stored.get("device", "cpu") == "cpu"]
    cells.append(f"{np.mean(minutes):.1f}" if minutes else "–")
    return f"| {' | '.join(cells)} |"


def _claims(runs: dict[str, list[Run]], bearing: NDArray[np.bool_]) -> Iterator[str]:
    ours = [Comparison(first=name, second=OURS, claim="ours beats it") for name in PAPERS] + [
        Comparison(first=name, second=OURS, claim=CONTENDERS[name].said) for name in LADDER
    ]
    for title, comparisons in (("What the papers say", COMPARISONS), ("What ours gains", ours)):
        rows = [_claim(one, runs, bearing) for one in comparisons if one.first in runs and one.second in runs]
        if not rows:
            continue
        yield from (
            f"## {title}",
            "",
            *CLAIMS.splitlines(),
            "",
            "| claim | first | second | seeds | Δ AUC | Δ log loss | on these phantoms |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        )


def _claim(one: Comparison, runs: dict[str, list[Run]], bearing: NDArray[np.bool_]) -> str:
    first, second = ({run.seed: run for run in runs[name]} for name in (one.first, one.second))
    seeds = sorted(first.keys() & second.keys())
    pairs = [(first[seed], second[seed]) for seed in seeds]
    areas = _difference(pairs, partial(_area, bearing))
    with_slices = all(len(run.losses) for pair in pairs for run in pair)
    losses = _difference(pairs, partial(_loss, 1)) if with_slices else None
    said = _said(areas, losses) if len(seeds) >= ENOUGH else f"{len(seeds)} seeds only"
    cells = [one.claim, one.first, one.second, str(len(seeds)), _cell(areas, sign=True)]
    return f"| {' | '.join([*cells, _cell(losses, sign=True) if losses is not None else '–', said])} |"


def _said(areas: Floats, losses: Floats | None) -> str:
    better = areas[1] > 0 or (losses is not None and losses[2] < 0)
    worse = areas[2] < 0 or (losses is not None and losses[1] > 0)
    if better and worse:
        return "AUC and log loss disagree"
    return "**shows**" if better else "the contrary shows" if worse else "does not show"


def _cell(interval: Floats, *, sign: bool = False) -> str:
    value, low, high = interval
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})" if sign else f"{value:.3f} ({low:.3f}–{high:.3f})"


def _interval(runs: Sequence[Run], statistic: Callable[[Run, Floats], float | None]) -> Floats:
    """Mean over seeds, with its interval."""
    return _drawn(len(runs), len(runs[0].scores), lambda i, weight: statistic(runs[i], weight))


def _difference(pairs: Sequence[tuple[Run, Run]], statistic: Callable[[Run, Floats], float | None]) -> Floats:
    """Mean over seeds of what the second of each pair has more, with its interval."""

    def gain(index: int, weight: Floats) -> float | None:
        first, second = (statistic(run, weight) for run in pairs[index])
        return None if first is None or second is None else second - first

    return _drawn(len(pairs), len(pairs[0][0].scores), gain)


def _drawn(seeds: int, heads: int, figure: Callable[[int, Floats], float | None]) -> Floats:
    """The figure's mean over seeds (value, low, high); heads and seeds are drawn anew for the interval."""
    value = _mean([figure(index, np.ones(heads)) for index in range(seeds)])
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        weight = rng.multinomial(heads, [1 / heads] * heads).astype(np.float64)
        drawn.append(_mean([figure(index, weight) for index in rng.integers(seeds, size=seeds).tolist()]))
    return np.array([value, *np.nanquantile(drawn, [0.025, 0.975])])


def _mean(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else float("nan")


def _area(bearing: NDArray[np.bool_], run: Run, weight: Floats) -> float | None:
    """The AUC of the scans' scores, each scan counted by its weight; None where one kind is missing."""
    return weighted_auc(bearing, weight, np.unique(run.scores, return_inverse=True)[1])


def _loss(column: int, run: Run, weight: Floats) -> float:
    """The mean loss of a slice, each scan's slices counted by the scan's weight."""
    return float(weight @ run.losses[:, column] / (weight @ run.losses[:, 0]))
