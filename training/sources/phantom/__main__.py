"""Writes phantom studies as folders of DICOM: ``python -m training.sources.phantom OUT --subtype subdural``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from inference.result import SUBTYPES
from training.sources.phantom import EXAM, MAKERS, PRESETS, make_study, write_study


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.sources.phantom", description="Synthetic head CT as DICOM."
    )
    parser.add_argument("out", type=Path, help="folder; each study gets one below it")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first study")
    parser.add_argument("--count", type=int, default=1, help="how many studies, with following seeds")
    parser.add_argument("--subtype", action="append", choices=(*SUBTYPES, "none"), help="repeatable; default: drawn")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="real")
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--slices", type=int, help="default: as many as the thickness needs")
    parser.add_argument("--thickness", type=float, default=5.0, help="mm")
    parser.add_argument("--maker", choices=tuple(MAKERS), default="ge")
    parser.add_argument("--series", action="append", choices=EXAM, help="repeatable; default: axial")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the studies that `arguments` ask for and name each on standard output."""
    a = _arguments().parse_args(arguments)
    spec = replace(PRESETS[a.preset], size=a.size, slices=a.slices, thickness_mm=a.thickness)
    subtypes = None if a.subtype is None else tuple(name for name in a.subtype if name != "none")
    for seed in range(a.seed, a.seed + a.count):
        study = make_study(seed=seed, spec=spec, subtypes=subtypes)
        folder = a.out / f"phantom-{seed}"
        files = write_study(study, folder, maker=MAKERS[a.maker], series=tuple(a.series or ("axial",)))
        found = ", ".join(study.truth["subtypes"]) or "no haemorrhage"
        sys.stdout.write(f"{folder}: {len(files)} files, {found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
