"""The papers' comparisons remade on phantoms, with seeds and intervals; and our own network beside theirs.

``python -m benchmarks.phantoms run --work runs/ladder`` trains and tests what `docs/results/phantoms.json` lacks, one
contender and seed after the other, and adds it there: it may be stopped at any time and continued on another day.
``python -m benchmarks.phantoms table`` makes `docs/results/phantoms.md` of it.

All learn from the same heads, see each of their slices equally often (`--epochs`), and are judged on the same other
heads, by the last state of their training. Nothing here says anything about patients.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.inference import machine
from benchmarks.phantoms_contenders import CONTENDERS, Contender
from benchmarks.phantoms_table import page
from inference import card as cards
from inference.card import ModelCard
from inference.models import build
from inference.result import LABELS
from training import run as running
from training.cache import VolumeCache
from training.dataset import prepare_all
from training.described import describe
from training.loop import keep_memory
from training.metrics import auc, log_loss, prior_log_loss
from training.reading import Read, read, scan_scores
from training.sources.named import open_source
from training.study import LabelledStudy
from training.team import ALONE, device_of

RESULTS = Path("docs/results/phantoms.json")
PAGE = RESULTS.with_suffix(".md")
POPULATION = "presets=real,sizes=256,thicknesses=5"
LEARNT_FROM, JUDGED_ON = 100_000, 200_000
"""Seeds of the first head of either side."""
SHARES = (0.87, 0.13)
NEVER = 1_000_000
CACHE_GB = 200
FIRST_STAGE = "checkpoint-trunk*.safetensors"

log = logging.getLogger(__name__)


def main() -> None:
    """Run contenders or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phantoms", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and test what is lacking")
    run.add_argument("--work", type=Path, required=True, help="folder for heads and runs")
    run.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--heads", type=int, default=240, help="to learn from; 13 %% of them validate")
    run.add_argument("--test", type=int, default=200, help="heads to be judged on")
    run.add_argument("--epochs", type=int, default=3)
    run.add_argument("--side", type=int, default=96, help="pixels")
    run.add_argument("--processes", type=int, default=1, help="that train at the same time, on a GPU that has room")
    run.add_argument("--threads", type=int, default=1, help="of each of several processes")
    run.add_argument("--workers", type=int, default=2, help="that make batches for each process")
    for command in (run, commands.add_parser("table", help="write the page")):
        command.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.command == "run":
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        keep_memory()
        run_all(asked)
    asked.results.with_suffix(".md").write_text(page(_stored(asked.results)))


def run_all(asked: argparse.Namespace) -> None:
    """Every contender with every seed is among the results."""
    scale = {name: getattr(asked, name) for name in ("heads", "test", "epochs", "side")}
    stored = _stored(asked.results)
    if stored["scale"] not in ({}, scale):
        raise SystemExit(f"{asked.results} holds runs of {stored['scale']}; take another --results for {scale}")
    there = {(run["contender"], run["seed"]) for run in stored["runs"]}
    lacking = [(name, seed) for seed in asked.seeds for name in asked.contenders if (name, seed) not in there]
    if lacking:
        draw_heads(asked)
    first = [run for run in lacking if not (CONTENDERS[run[0]].first_stage_of or CONTENDERS[run[0]].weights_of)]
    for together in (first, [one for one in lacking if one not in first]):  # who takes another's stage comes after it
        for found in _done(together, asked):
            stored = _stored(asked.results)
            stored["scale"] = scale
            stored["test"] = found.pop("test")
            stored["runs"].append(found)
            _store(asked.results, stored)
            log.info(
                "%s, seed %d: AUC of any per slice %.3f, %.1f CPU minutes",
                found["contender"], found["seed"], found["slice_auc"] or np.nan, found["cpu_minutes"],
            )  # fmt: skip


def _done(runs: Sequence[tuple[str, int]], asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each of the runs as soon as it is done, `--processes` of them at a time; one that fails ends no other."""
    if asked.processes == 1:
        yield from (run_one(run, asked=asked) for run in runs)
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(asked.processes, spawn, initializer=_begin, initargs=(asked.threads,)) as pool:
        coming = {pool.submit(run_one, run, asked=asked): run for run in runs}
        failed = 0
        for done in as_completed(coming):
            if error := done.exception():
                failed += 1
                log.error("%s, seed %d failed", *coming[done], exc_info=error)
            else:
                yield done.result()
    if failed:
        raise SystemExit(f"{failed} of {len(runs)} runs failed")


def _begin(threads: int) -> None:
    keep_memory()
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")


def draw_heads(asked: argparse.Namespace) -> None:
    """All heads lie in the cache, so that no run draws what another draws at the same time."""
    cache = _cache(asked)
    heads = _heads(LEARNT_FROM, asked.heads), _heads(JUDGED_ON, asked.test)
    studies = [study for text in heads for study in open_source(text, index=asked.work / "cache" / "index")]
    missing = [study for study in studies if study.key not in cache]
    if missing:
        log.info("drawing %d heads", len(missing))
        with get_context("spawn").Pool(asked.workers * asked.processes, torch.set_num_threads, (1,)) as pool:
            for _ in pool.imap_unordered(partial(_draw, cache=cache), missing):
                pass


def _draw(study: LabelledStudy, *, cache: VolumeCache) -> None:
    cache.get(study.key, study.decode)


def _cache(asked: argparse.Namespace) -> VolumeCache:
    return VolumeCache(asked.work / "cache" / "volumes", limit=int(CACHE_GB * 1e9))


def run_one(run: tuple[str, int], *, asked: argparse.Namespace) -> dict[str, Any]:
    """The contender trained with this seed, and what it says of the test heads, as plain JSON values."""
    name, seed = run
    log.info("%s, seed %d", name, seed)
    contender = CONTENDERS[name]
    spent = time.process_time()
    if contender.weights_of:
        out, changed = asked.work / f"{contender.weights_of}-{seed}", contender.architecture
    else:
        out, changed = asked.work / f"{name}-{seed}", {}
        _train(contender, out, seed=seed, asked=asked)
    spent = time.process_time() - spent
    card, state = cards.load(out / "model")
    card = replace(card, architecture=card.architecture | changed)
    model = build(card)
    model.load_state_dict(state)
    model.to(device_of(ALONE))
    scans = prepare_all(
        open_source(_heads(JUDGED_ON, asked.test), index=asked.work / "cache" / "index"),
        cache=_cache(asked),
        preprocessing=card.preprocessing,
        workers=asked.workers,
    )
    readings = read(model, describe(model, scans))
    return {
        "contender": name,
        "seed": seed,
        "commit": card.provenance.commit,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "device": device_of(ALONE).type,
        "cpu_minutes": round(spent / 60, 2),
        "parameters": sum(value.numel() for value in model.parameters()),
        "recipe": card.provenance.recipe,
        **judged(card, readings),
        "test": {one.scan.facts.study_uid: one.scan.study_labels.tolist() for one in readings},
    }


def _train(contender: Contender, out: Path, *, seed: int, asked: argparse.Namespace) -> None:
    """The contender's weights lie in ``out / "model"``."""
    if contender.first_stage_of:
        out.mkdir(parents=True, exist_ok=True)
        for path in (asked.work / f"{contender.first_stage_of}-{seed}").glob(FIRST_STAGE):
            shutil.copy(path, out)
    running.train(
        running.Asked(
            recipe=contender.recipe,
            data=(_heads(LEARNT_FROM, asked.heads),),
            test=(_heads(JUDGED_ON, asked.test),),
            out=out,
            cache=asked.work / "cache",
            cache_gb=CACHE_GB,
            seed=seed,
            shares=SHARES,
            values={"epochs": asked.epochs} | ({"sizes": [asked.side]} if contender.sized else {}) | contender.values,
            architecture={"size": asked.side} | contender.architecture,
            validate_every=NEVER,
            workers=asked.workers,
        )
    )


def judged(card: ModelCard, readings: Sequence[Read]) -> dict[str, Any]:
    """What tables are made of: for each scan the score of *any* and the sums of its slices' losses."""
    scores = scan_scores(readings, label=0, rule=card.rule)
    losses: dict[str, list[float]] = {}
    everything: NDArray[np.float64] = np.empty(0)
    truth: NDArray[np.float64] = np.empty(0)
    for one in readings:
        if len(one.scores) == len(one.scan.labels) > 1:
            everything = np.append(everything, one.scores[:, 0])
            truth = np.append(truth, one.scan.labels[:, 0])
            losses[one.scan.facts.study_uid] = _losses(one, list(card.labels))
    whole = len(losses) == len(readings)  # a network that says nothing of blank slices is judged by scans alone
    return {
        "labels": len(card.labels),
        "rule": card.rule.to_json(),
        "scans": {one.scan.facts.study_uid: round(float(s), 5) for one, s in zip(readings, scores, strict=True)},
        "losses": losses if whole else {},
        "slice_auc": auc(everything, truth) if whole else None,
        "prior_losses": _prior_losses(card, readings) if whole else None,
    }


def _prior_losses(card: ModelCard, readings: Sequence[Read]) -> list[float]:
    """The losses of a slice, for *any* and for all labels, if every slice got the labels' shares in training."""
    prior = np.array([card.figures["prior"][label] for label in card.labels])
    found = np.concatenate([one.scan.labels for one in readings])[:, [LABELS.index(label) for label in card.labels]]
    return [prior_log_loss(found[:, :1], prior[:1]), prior_log_loss(found, prior)]


def _losses(one: Read, labels: list[str]) -> list[float]:
    """Slices, the sum of their losses for *any*, and of all labels weighted as the metric does."""
    truth = one.scan.labels[:, [LABELS.index(label) for label in labels]]
    means = log_loss(one.scores[:, :1], truth[:, :1]), log_loss(one.scores, truth)
    return [len(truth), *(round(len(truth) * mean, 4) for mean in means)]


def _heads(first: int, count: int) -> str:
    return f"phantom:count={count},first={first},{POPULATION}"


def _stored(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"scale": {}, "test": {}, "runs": []}
    return found


def _store(path: Path, stored: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(stored, separators=(",", ":")) + "\n")
    partial.rename(path)


if __name__ == "__main__":
    main()
