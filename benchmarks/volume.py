"""How well the volume that a RADnet's masks enclose agrees with the true volume of phantom bleeds.

``python -m benchmarks.volume --heads 12`` draws heads with bleeding that the demonstration weights have not seen, and
prints for each preset the median error of the estimate and how often its range holds the truth. ``--each`` prints every
head as well. Truth is the volume of blood in the phantom's anatomy, before the scanner blurs it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inference.attention import Looking
from inference.result import Volume
from inference.volume import Slice
from training.sources.phantom import PRESETS, PhantomStudy, make_study

WEIGHTS = Path("inference/weights/demo-radnet")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One head: the true volume, the estimate, and how far mask and truth lie over one another (Dice)."""

    true_ml: float
    volume: Volume
    dice: float


def slices_of(study: PhantomStudy) -> list[Slice]:
    """The phantom as a reader has it once decoded."""
    spacing = (float(study.pixel_spacing[0]), float(study.pixel_spacing[1]))
    return [
        Slice(
            sop_instance_uid=f"1.2.{i}",
            hu=hu,
            position=tuple(study.positions[i].tolist()),
            orientation=tuple(study.orientation.tolist()),
            pixel_spacing=spacing,
            thickness=float(study.thickness[i]),
        )
        for i, hu in enumerate(study.hu)
    ]


def measure(looking: Looking, *, preset: str, seed: int, size: int) -> Case:
    """One head of this preset, always with blood, read and compared."""
    spec = replace(PRESETS[preset], size=size, thickness_mm=5.0, p_positive=1.0)
    study = make_study(seed=seed, spec=spec)
    maps = looking.look(slices_of(study))
    volume = maps.volume()
    assert volume is not None, "these weights draw no masks"
    marked = np.stack([piece.on_slice() >= 0.5 for piece in maps.slices])
    truth = study.masks.any(0)
    dice = 2 * np.count_nonzero(marked & truth) / max(1, np.count_nonzero(marked) + np.count_nonzero(truth))
    return Case(true_ml=sum(study.truth["volumes_ml"].values()), volume=volume, dice=dice)


def row(preset: str, cases: list[Case]) -> str:
    """One line of the table."""
    true, found = (np.array(v) for v in ([c.true_ml for c in cases], [c.volume.ml for c in cases]))
    held = sum(c.volume.low_ml <= c.true_ml <= c.volume.high_ml for c in cases)
    error, low, high = np.median(abs(found - true)), *np.quantile(found - true, (0.1, 0.9))
    return (
        f"| {preset} | {len(cases)} | {np.median(true):.1f} | {error:.1f} | {low:+.1f} … {high:+.1f} "
        f"| {held}/{len(cases)} | {np.median([c.dice for c in cases]):.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--heads", type=int, default=12, help="of each preset")
    parser.add_argument("--first", type=int, default=60_000, help="seed of the first head")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of a slice")
    parser.add_argument("--presets", nargs="+", default=["easy", "real"])
    parser.add_argument("--each", action="store_true", help="print every head")
    asked = parser.parse_args()
    looking = Looking.load(WEIGHTS)
    print("| preset | heads | true ml, median | error ml, median | 10–90 % of errors | range holds truth | Dice |")
    print("|---|---|---|---|---|---|---|")
    for preset in asked.presets:
        cases = []
        for seed in range(asked.first, asked.first + asked.heads):
            case = measure(looking, preset=preset, seed=seed, size=asked.size)
            cases.append(case)
            if asked.each:
                v = case.volume
                said = f"{v.ml:.1f} ({v.low_ml:.1f}–{v.high_ml:.1f})"
                print(f"{preset} {seed}: true {case.true_ml:.1f}, found {said}, Dice {case.dice:.2f}", flush=True)
        print(row(preset, cases), flush=True)


if __name__ == "__main__":
    main()
