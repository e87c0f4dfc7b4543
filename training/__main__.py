"""The commands of training: `hemonode train`, `evaluate` and `dataset` hand their arguments on to here.

With several processes or devices: ``torchrun --nproc-per-node 4 -m training train RECIPE …``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from inference import card as cards
from inference.errors import InferenceError
from inference.series import Criteria
from training import evaluate as judging
from training import headers
from training import run as running
from training.cache import DEFAULT_GB, VolumeCache
from training.dataset import prepare_all
from training.errors import TrainingError
from training.export import rewrite
from training.judging import promotion, waiting
from training.judging import report as reporting
from training.judging.cohorts import DIMENSIONS
from training.judging.gate import Gate
from training.judging.slot import Slot
from training.judging.waiting import Site
from training.loop import keep_memory
from training.recipes import RECIPES
from training.recipes.metadata_forest import NAME as HEADERS
from training.sources.named import open_source
from training.team import ALONE, device_of, joined

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Makes and judges weights.",
)
dataset_app = typer.Typer(no_args_is_help=True, help="Frozen data sets of the node's archive.")
app.add_typer(dataset_app, name="dataset")
models_app = typer.Typer(no_args_is_help=True, help="Which weights are in use.")
app.add_typer(models_app, name="models")

FAILED = 1
DATABASE_VARIABLE = "HEMONODE_DATABASE_URL"
err = Console(stderr=True, highlight=False)

DataOption = Annotated[
    list[str],
    typer.Option("--data", help="archive:FILE, rsna:DIR, cq500:DIR, physionet:DIR, phantom:count=200,…; repeatable."),
]
CacheOption = Annotated[Path, typer.Option(help="Where decoded volumes and indices are kept.")]
CacheSizeOption = Annotated[float, typer.Option(help="Size of the volumes kept at most, in GB.")]
WorkersOption = Annotated[int, typer.Option(min=1, help="Processes that decode, threads that make batches.")]
CACHE = Path("runs/cache")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help=f"One of {', '.join((*RECIPES, HEADERS))}.")],
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Everything of this run; the same command continues it.")],
    test: Annotated[list[str] | None, typer.Option(help="Sources to test on, in place of a share of --data.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, split and batches.")] = 0,
    split: Annotated[str, typer.Option(help="Shares of training, validation and test, by patient.")] = "0.7,0.15,0.15",
    minutes: Annotated[float, typer.Option(help="Stop after so many minutes; 0: as long as the recipe says.")] = 0,
    values: Annotated[list[str] | None, typer.Option("--set", help="A value of the recipe: epochs=3.")] = None,
    architecture: Annotated[str, typer.Option(help="Changes to the network, as JSON.")] = "{}",
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 200,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between two validations.")] = 500,
    start_from: Annotated[
        Path | None, typer.Option(help="Weights to begin with: a file of ImageNet, MedicalNet or our own.")
    ] = None,
    cache: CacheOption = CACHE,
    cache_gb: CacheSizeOption = DEFAULT_GB,
    workers: WorkersOption = 2,
    threads: Annotated[int, typer.Option(help="Threads that compute; 0: as torch chooses.")] = 0,
) -> None:
    """Train a network and write it as a model directory, OUT/model."""
    _begin(threads)
    asked = running.Asked(
        recipe=recipe,
        data=tuple(data),
        test=tuple(test or ()),
        out=out,
        cache=cache,
        cache_gb=cache_gb,
        seed=seed,
        shares=_shares(split),
        minutes=minutes or float("inf"),
        values=dict(map(_value, values or ())),
        architecture=_json(architecture, "--architecture"),
        start_from=start_from,
        checkpoint_every=checkpoint_every,
        validate_every=validate_every,
        workers=workers,
    )
    with joined() as team, _bars(quiet=not team.leads) as progress:
        if recipe == HEADERS:
            card = headers.train(asked, told=_told(progress)) if team.leads else None
        else:
            card = running.train(asked, team=team, told=_told(progress))
    if card is not None:
        sys.stdout.write(f"{out / 'model'}: {card.name}, SHA-256 {card.sha256}\n")


@app.command()
def evaluate(
    weights: Annotated[Path, typer.Argument(help="A model directory.")],
    data: DataOption,
    fit: Annotated[
        list[str] | None, typer.Option(help="Fit operating points, calibration and guard on these sources first.")
    ] = None,
    fit_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Or on this share of the patients of --data; the rest judge.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Write report.html and report.json here, and --write.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Another model directory, to be compared on the same.")] = None,
    queue: Annotated[bool, typer.Option("--queue", help="Simulate how long studies wait to be read.")] = False,
    prevalence: Annotated[float, typer.Option(help="--queue: share of the studies that bleed.")] = 0.15,
    per_hour: Annotated[float, typer.Option(help="--queue: studies that arrive in an hour.")] = 6,
    reading_times: Annotated[
        Path | None, typer.Option(help="--queue: measured minutes, in a CSV's first column; 8 ± 4 assumed.")
    ] = None,
    write: Annotated[
        bool | None, typer.Option("--write/--no-write", help="Put what was fitted and measured into the card.")
    ] = None,
    cache: CacheOption = CACHE,
    cache_gb: CacheSizeOption = DEFAULT_GB,
    workers: WorkersOption = 2,
) -> None:
    """Judge weights on labelled studies of patients they were not made from: figures as JSON, or a report in --out."""
    _begin(0)
    if fit and fit_share:
        raise TrainingError("--fit and --fit-share: either says what to fit on")
    site = _site(prevalence, per_hour, reading_times) if queue else None
    second = None
    with _bars(quiet=False) as progress:
        opened = _opener(progress, cache=cache, cache_gb=cache_gb, workers=workers)
        fit_on, unseen = opened(weights, fit) if fit else None, opened(weights, data)
        if fit_share:
            fit_on, unseen = unseen.dealt(fit_share)
        found = judging.judge(weights, unseen, fit_on=fit_on, device=device_of(ALONE))
        if compare:
            second = judging.judge(compare, opened(compare, data).of(unseen.patients), device=device_of(ALONE))
    if out is None and site is None and second is None:
        said: dict[str, Any] = found.card.figures["unseen"]
    else:
        other = (second.card, second.readings) if second else None
        said = reporting.report(found.card, found.readings, sources=data, other=other, site=site)
    if (out is not None) if write is None else write:
        rewrite(weights.resolve(), found.card, features=found.features)
    if out is None:
        json.dump(said, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    from training.judging import page  # its libraries come with the extra `train`

    sys.stdout.write(f"{page.write(out, said, unseen.scans)}\n")


def _site(prevalence: float, per_hour: float, times: Path | None) -> Site:
    minutes = waiting.reading_times(times) if times else waiting.assumed_times(mean=8, spread=4)
    return Site(prevalence=prevalence, per_hour=per_hour, reading_minutes=minutes)


def _opener(
    progress: Progress, *, cache: Path, cache_gb: float, workers: int
) -> Callable[[Path, Sequence[str]], judging.Studies]:
    """What prepares the studies of named sources as the model in a directory wants them."""

    def opened(weights: Path, texts: Sequence[str]) -> judging.Studies:
        studies = [study for text in texts for study in open_source(text, index=cache / "index")]
        move, count = _told(progress)("preparing scans", len(studies)), iter(range(1, len(studies) + 1))
        scans = prepare_all(
            studies,
            cache=VolumeCache(cache / "volumes", limit=int(cache_gb * 1e9)),
            preprocessing=cards.read_card(weights).preprocessing,
            workers=workers,
            told=lambda: move(next(count)),
        )
        return judging.Studies(scans=scans, sources=texts)

    return opened


@dataset_app.command()
def freeze(
    name: Annotated[str, typer.Argument(help="Name of the data set; writes NAME.json.")],
    archive: Annotated[Path, typer.Option(help="The node's archive directory.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.json.")] = Path(),
    criteria: Annotated[str, typer.Option(help="The node's section [select], as JSON.")] = "{}",
    since: Annotated[str, typer.Option(help="Only studies first received on this day or later, YYYY-MM-DD.")] = "",
    until: Annotated[str, typer.Option(help="Only studies first received before this day.")] = "",
    scanner: Annotated[str, typer.Option(help="Maker, model or station: a regular expression.")] = "",
    modality: Annotated[str, typer.Option(help="Of the series.")] = "CT",
    labels: Annotated[str, typer.Option(help="Which labels count, the best first.")] = "reader,csv,report",
) -> None:
    """Freeze the labelled studies of the archive into a list with digests, from which training reads."""
    from training.sources.archive import freeze as freezing

    wanted = freezing.Query(
        since=since, until=until, scanner=scanner, modality=modality, labels=tuple(labels.split(","))
    )  # fmt: skip
    chosen: dict[str, Any] = _json(criteria, "--criteria")
    frozen = freezing.freeze(
        os.environ.get(DATABASE_VARIABLE, ""), archive=archive, name=name, query=wanted, criteria=Criteria(**chosen)
    )
    path = freezing.write(frozen, out / f"{name}.json")
    sys.stdout.write(f"{path}: {len(frozen['studies'])} studies, SHA-256 {frozen['sha256']}\n")
    for reason, count in sorted(frozen["left_out"].items()):
        sys.stdout.write(f"left out: {count} studies: {reason}\n")


@models_app.command()
def promote(
    candidate: Annotated[Path, typer.Argument(help="The new model directory.")],
    slot: Annotated[Path, typer.Argument(help="Where the model in use stands; node.toml names SLOT/current.")],
    data: DataOption,
    margin: Annotated[float, typer.Option(min=0, help="How much worse it might be, by the 95 % interval.")] = 0.05,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="How far a group may fall: 0.1, or for one dimension thickness=0.02; repeatable."),
    ] = None,
    override: Annotated[str, typer.Option(help="Promote whatever speaks against it, for this reason.")] = "",
    cache: CacheOption = CACHE,
    cache_gb: CacheSizeOption = DEFAULT_GB,
    workers: WorkersOption = 2,
) -> None:
    """Put new weights in use where they are better than those in use, on the same fixed test set."""
    _begin(0)
    with _bars(quiet=False) as progress:
        opened = _opener(progress, cache=cache, cache_gb=cache_gb, workers=workers)
        entry = promotion.promote(
            candidate, Slot(slot), lambda weights: opened(weights, data), gate=_gate(margin, limit or []),
            override=override, device=device_of(ALONE),
        )  # fmt: skip
    for reason in entry.against:
        sys.stdout.write(f"overridden: {reason}\n")
    sys.stdout.write(f"{slot / 'current'}: {entry.model}, before {entry.previous or 'nothing'}\n")


@models_app.command()
def rollback(slot: Annotated[Path, typer.Argument(help="Where the model in use stands.")]) -> None:
    """Put the weights that were in use before back in use."""
    entry = Slot(slot).rollback()
    sys.stdout.write(f"{slot / 'current'}: {entry.model}, before {entry.previous}\n")


def _gate(margin: float, limits: Sequence[str]) -> Gate:
    whole, named = Gate(margin=margin).limit, {}
    for text in limits:
        name, equals, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise TrainingError(f"--limit {text!r}: expected 0.1 or thickness=0.02") from None
        if name not in (*DIMENSIONS, "subtype", "volume", *([] if equals else [""])):
            raise TrainingError(f"--limit: no {name!r}; there are subtype, volume, {', '.join(DIMENSIONS)}")
        if name:
            named[name] = number
        else:
            whole = number
    return Gate(margin=margin, limit=whole, limits=named)


def _begin(threads: int) -> None:
    handler = RichHandler(console=err, show_path=False, markup=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    keep_memory()
    if threads:
        torch.set_num_threads(threads)


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or any(share < 0 for share in shares) or abs(sum(shares) - 1) > 1e-6 or not shares[0]:
        raise TrainingError(f"--split {text!r}: expected three shares whose sum is 1, such as 0.7,0.15,0.15")
    return shares


def _value(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, _json(value, f"--set {name}")


def _json(text: str, option: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TrainingError(f"{option}: {text!r} is not JSON: {error}") from error


def _bars(*, quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    return Progress(*columns, console=err, disable=quiet or not err.is_terminal)


def _told(progress: Progress) -> running.Told:
    def begin(text: str, total: int | None) -> Callable[[int], None]:
        task = progress.add_task(text, total=total)
        return lambda place: progress.update(task, completed=place)

    return begin


def main() -> None:
    """Run a command; every error that training or the system can name becomes one line and exit code 1."""
    try:
        app()
    except (TrainingError, InferenceError, OSError) as error:
        err.print(f"hemonode: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
