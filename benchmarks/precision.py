"""How far bfloat16 moves scores: ``python -m benchmarks.precision --heads 12``.

Draws phantom heads that the demonstration weights have not seen, and reads each in float32 and in bfloat16 with torch
and, where it is installed, OpenVINO. Of each head the slice whose score moved most counts. On this machine's CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inference import card as cards
from inference.backends import Costly, openvino_installed
from inference.backends.eager import eager
from inference.backends.openvino import OpenVino
from inference.backends.run import Run
from inference.models import FAMILIES
from training.cache import VolumeCache
from training.dataset import prepare_all
from training.sources.named import open_source

WEIGHTS = Path("inference/weights")
HEADS = "presets=easy+easy+real,sizes=512+512+512+256,thicknesses=3+4+5+5+5+6"


def moved(directory: Path, *, heads: str, cache: Path) -> dict[str, list[float]]:
    """By backend, of each head the largest difference of a slice's calibrated score."""
    card, weights = cards.load(directory)
    network = FAMILIES[card.family](card.architecture)
    network.load_state_dict(weights)
    network.eval()
    part = Costly(network)
    runs: dict[str, Run] = {"torch": eager(part, bf16=True, memory_format=network.memory_format)}
    if openvino_installed():
        runs["openvino"] = OpenVino(part, shape=network.costly_shape, bf16=True)
    temperatures = torch.tensor([card.calibration.temperature.get(label, 1.0) for label in card.labels])

    def scores(descriptors: Tensor) -> Tensor:
        return torch.sigmoid(network.decide(descriptors[None])[0] / temperatures)

    scans = prepare_all(
        list(open_source(heads, index=cache)), cache=VolumeCache(cache / "volumes"), preprocessing=card.preprocessing
    )
    found: dict[str, list[float]] = {name: [] for name in runs}
    for scan in scans:
        images = torch.from_numpy(np.array(scan.opened()["images"], dtype=np.float32))
        full = scores(network.encode(images))
        for name, run in runs.items():
            found[name].append(float((scores(run(images)) - full).abs().max()))
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--first", type=int, default=50000, help="seed of the first")
    parser.add_argument("--cache", type=Path, help="where heads are kept; a folder that is removed, if left out")
    asked = parser.parse_args()
    print("| network | backend | worst head | median of heads |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for directory in sorted(WEIGHTS.iterdir()):
            heads = f"phantom:first={asked.first},count={asked.heads},{HEADS}"
            for name, largest in moved(directory, heads=heads, cache=asked.cache or Path(folder)).items():
                print(f"| {directory.name} | {name} | {max(largest):.4f} | {np.median(largest):.4f} |", flush=True)


if __name__ == "__main__":
    main()
