"""The commands. The only place that prints, exits and handles signals."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from db.errors import DatabaseError
from node import config, log
from node.config import RemoteSection, Settings
from node.errors import ConfigError, HemonodeError, StartError
from node.supervisor import CANNOT_START, watch_lifeline

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A DICOM node that reads head CT on arrival, flags intracranial haemorrhage and files a Structured Report.",
)

weights_app = typer.Typer(no_args_is_help=True, help="Weights as model directories.")
app.add_typer(weights_app, name="weights")
labels_app = typer.Typer(no_args_is_help=True, help="What readers and reports say about studies.")
app.add_typer(labels_app, name="labels")
dataset_app = typer.Typer(no_args_is_help=True, help="Labelled studies of the archive to train on.")
app.add_typer(dataset_app, name="dataset")
models_app = typer.Typer()
app.add_typer(models_app, name="models")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The configuration.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
StudyArgument = Annotated[str, typer.Argument(help="A Study Instance UID, or its unmistakable beginning or end.")]
"""`show` and `requeue` take what `studies` prints."""
DEFAULT_CONFIG = Path("node.toml")
USAGE, FAILED = 2, 1

# Where no terminal says how wide it is, tables are as wide as a log viewer or a pager shows them.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False)


def main() -> None:
    """Run a command; every error the node can name becomes one line and an exit code."""
    try:
        app()
    except (HemonodeError, DatabaseError) as error:
        err.print(f"hemonode: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(_exit_code(error))


def _as_part(run: Callable[[], None]) -> None:
    """Runs a part of the node; what it dies of, unless the node can name it, is one line of the log."""
    try:
        run()
    except HemonodeError:
        raise
    except Exception:  # noqa: BLE001 the process's own boundary
        log.log().exception("part_failed")
        sys.exit(FAILED)


def _exit_code(error: Exception) -> int:
    if isinstance(error, StartError):
        return CANNOT_START
    return USAGE if isinstance(error, ConfigError) else FAILED


def _print(facts: Any, rendered: RenderableType, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    else:
        out.print(rendered)


def _until_told() -> threading.Event:
    """An event that SIGINT, SIGTERM or the supervisor's death sets."""
    stop = threading.Event()
    # A handler interrupts the main thread wherever it is, also while that holds the event's own lock on its way out of
    # `stop.wait()`, which the lifeline has just ended: to set the event there is to wait for oneself forever. So it
    # only tells a thread, by a queue that may be interrupted.
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: signals.put(number))

    def heed() -> None:
        signals.get()
        stop.set()

    threading.Thread(target=heed, name="signals", daemon=True).start()
    watch_lifeline(stop)
    return stop


def _settings(path: Path, *, part: str) -> Settings:
    settings = config.load(path)
    log.configure(level=settings.log.level, part=part)
    return settings


@app.command()
def serve(config_path: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the whole node on this machine until Ctrl-C or SIGTERM, then drain and exit 0."""
    from node import parts

    settings = _settings(config_path, part="serve")
    _as_part(lambda: parts.serve(settings, config=config_path.resolve(), stop=_until_told()))


@app.command()
def receive(
    config_path: ConfigOption = DEFAULT_CONFIG,
    number: Annotated[int, typer.Option(help="Which of the processes that share the port this is.")] = 0,
) -> None:
    """Run only the listening part: storage, verification and worklist services."""
    from node import parts

    settings = _settings(config_path, part=parts.receive_part(number))
    _as_part(lambda: parts.receive(settings, number=number, stop=_until_told()))


@app.command()
def schedule(config_path: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run only the scheduling part: assemble, flag, report, deliver."""
    from node import parts

    settings = _settings(config_path, part="schedule")
    _as_part(lambda: parts.schedule(settings, stop=_until_told()))


@app.command()
def web(config_path: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run only the DICOMweb part: store, search, retrieve and the worklist over HTTP."""
    from node import parts

    settings = _settings(config_path, part="web")
    _as_part(lambda: parts.web(settings, stop=_until_told()))


@app.command()
def work(
    config_path: ConfigOption = DEFAULT_CONFIG,
    number: Annotated[int, typer.Option(help="Which worker this is; with several CUDA devices, which device.")] = 0,
) -> None:
    """Run only one worker: encode slices as they arrive, decide when a study is complete."""
    from node import parts

    settings = _settings(config_path, part=f"work-{number}")
    _as_part(lambda: parts.work(settings, number=number, stop=_until_told()))


@app.command()
def demo(
    dicom: Annotated[list[Path] | None, typer.Option(help="Also send these files or folders.")] = None,
    folder: Annotated[Path, typer.Option(help="Where the demonstration keeps its data.")] = Path("demo"),
    as_json: JsonOption = False,
) -> None:
    """Start a node, send it three phantom studies (and your own), and show what happened to each."""
    from node import demo as demonstration

    log.configure(level="warning", part="demo")
    told = err if as_json else out
    stories = demonstration.run(folder=folder.resolve(), extra=tuple(dicom or ()), out=told, stop=_until_told())
    if as_json:
        _print(stories, "", as_json=True)


@app.command()
def send(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders that are searched through.")],
    config_path: ConfigOption = DEFAULT_CONFIG,
    to: Annotated[str, typer.Option(help="AET@host:port; this node when left out.")] = "",
    calling: Annotated[str, typer.Option(help="The calling AE title.")] = "HEMONODE-SEND",
    as_json: JsonOption = False,
) -> None:
    """Send DICOM files as a scanner would (C-STORE), compressed ones as they are."""
    from node import sender

    remote = _remote(to, config_path)
    files, other = sender.sendable(paths)
    if not files:
        raise ConfigError(f"no DICOM file under {', '.join(map(str, paths))}")
    with _progress(disable=as_json) as progress:
        task = progress.add_task(f"sending to {remote.ae_title}", total=len(files))
        sent = sender.send(
            remote, files, own_ae_title=calling, timeout=30, told=lambda _: progress.advance(task)
        )  # fmt: skip
    failed = [{"path": str(s.file.path), "error": s.error} for s in sent if s.error]
    stored = len(sent) - len(failed)
    facts = {"sent": stored, "failed": failed, "not_dicom": [str(path) for path in other]}
    lines = [f"{stored} of {len(sent)} instances stored by {remote.ae_title}"]
    lines += [f"failed: {f['path']}: {f['error']}" for f in failed]
    lines += [f"not DICOM: {path}" for path in other]
    _print(facts, "\n".join(lines), as_json=as_json)
    if failed:
        raise typer.Exit(FAILED)


@app.command()
def echo(
    config_path: ConfigOption = DEFAULT_CONFIG,
    to: Annotated[str, typer.Option(help="AET@host:port; this node when left out.")] = "",
    calling: Annotated[str, typer.Option(help="The calling AE title.")] = "HEMONODE-ECHO",
    as_json: JsonOption = False,
) -> None:
    """Ask an application entity whether it answers (C-ECHO)."""
    from node import sender

    remote = _remote(to, config_path)
    sender.echo(remote, own_ae_title=calling, timeout=10)
    facts = {"ae_title": remote.ae_title, "address": remote.address, "port": remote.port, "answers": True}
    _print(facts, f"{remote.ae_title} at {remote.address}:{remote.port} answers", as_json=as_json)


@app.command()
def status(config_path: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """The node at a glance: parts, studies, queue, deliveries, objects set aside, disk."""
    from node import parts, tables, views

    settings = config.load(config_path)
    with parts.reading(settings) as tx:
        facts = views.status(tx, settings)
    _print(facts, tables.status(facts), as_json=as_json)


@app.command()
def studies(
    config_path: ConfigOption = DEFAULT_CONFIG,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """The studies last received from, newest first."""
    from node import parts, tables, views

    with parts.reading(config.load(config_path)) as tx:
        facts = views.study_rows(tx, limit=limit)
    _print(facts, tables.studies(facts), as_json=as_json)


@app.command()
def show(study: StudyArgument, config_path: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """One study's whole story: timeline, verdict, series and why, findings, deliveries."""
    from node import parts, tables, views

    with parts.reading(config.load(config_path)) as tx:
        facts = views.story(tx, views.study_uid_like(tx, study))
    _print(facts, tables.story(facts), as_json=as_json)


@app.command()
def worklist(config_path: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """The reading worklist in the order in which to read it."""
    from node import parts, tables, views

    with parts.reading(config.load(config_path)) as tx:
        facts = views.worklist_rows(tx)
    _print(facts, tables.worklist(facts), as_json=as_json)


@app.command()
def requeue(
    study: Annotated[str, typer.Argument(help="A Study Instance UID; every abandoned delivery when left out.")] = "",
    config_path: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Try abandoned deliveries again; a parked (failed) or archived study is read as its next revision."""
    from node import operate, parts, tables

    database = parts.open_database(config.load(config_path))
    with database.write() as tx:
        facts = operate.requeue(tx, study)
    database.close()
    _print(facts, tables.requeued(facts), as_json=as_json)


@app.command()
def infer(
    folder: Annotated[Path, typer.Argument(help="A folder (or file) with DICOM images of one or more studies.")],
    config_path: Annotated[Path | None, typer.Option("--config", "-c", help="The configuration.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model's name, packaged weights or a directory; may be given several times."),
    ] = None,
    sr: Annotated[Path | None, typer.Option(help="Write the Structured Report here (one study only).")] = None,
    seg: Annotated[
        Path | None, typer.Option(help="Write what masks outline as DICOM Segmentation, for research.")
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Write pictures of where each model looked here, for research.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read a folder without a node: what would be read, what the models say, and why."""
    from node import offline, tables

    settings = _settings(config_path, part="infer") if config_path else Settings()
    if config_path is None:
        log.configure(level="warning", part="infer")
    settings = offline.with_models(settings, model or ())
    wanted = offline.Wanted(sr=sr, seg=seg, overlay=overlay)
    with _progress(disable=as_json) as progress:
        results = offline.infer(folder, settings=settings, wanted=wanted, progress=progress)
    facts = [result.to_json() for result in results]
    _print(facts, Group(*map(tables.offline, facts)), as_json=as_json)


@models_app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    config_path: Annotated[Path | None, typer.Option("--config", "-c", help="The configuration.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Our own and the papers' networks; the installed weights: digest, labels, rule, operating points, figures."""
    if context.invoked_subcommand:
        return
    from node import offline, tables

    facts = offline.catalogue(config.load(config_path) if config_path else Settings())
    _print(facts, tables.models(facts), as_json=as_json)


@app.command()
def fetch(
    source: Annotated[str, typer.Option("--from", help="The name of one of the [[archives]] in node.toml.")],
    config_path: ConfigOption = DEFAULT_CONFIG,
    query: Annotated[list[str] | None, typer.Option(help="KEYWORD=VALUE of a study, such as PatientID=P1.")] = None,
    modality: Annotated[list[str] | None, typer.Option(help="Only series of this modality.")] = None,
    since: Annotated[str, typer.Option(help="Studies of this day and later: 2026-01-31.")] = "",
    until: Annotated[str, typer.Option(help="Studies of this day and earlier.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Retrieve from so many studies this time.")] = None,
    rate: Annotated[str, typer.Option(help="Instances per time: 5/s, 100/min, 1000/h.")] = "",
    between: Annotated[str, typer.Option(help="Only at this time of day: 22:00-06:00.")] = "",
    analyse: Annotated[bool, typer.Option("--analyse", help="Read the studies as if a scanner had sent them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch priors or a whole archive from a PACS (C-FIND, then C-MOVE or C-GET); given again, it goes on."""
    from node import fetch as fetching
    from node import parts, tables

    settings = _settings(config_path, part="fetch")
    wish = fetching.Wish(
        keys=fetching.study_keys(query or (), modalities=modality or (), since=since, until=until),
        modalities=tuple(modality or ()),
        limit=limit,
        rate=fetching.instances_per_second(rate) if rate else None,
        window=fetching.Window.parse(between) if between else None,
        prior=not analyse,
    )
    with _progress(disable=as_json) as progress:
        task = progress.add_task(f"fetching from {source}", total=None)
        outcome = parts.fetch(
            settings, source=source, wish=wish, stop=_until_told(),
            told=lambda so_far: progress.update(task, completed=so_far.received, total=so_far.announced),
        )  # fmt: skip
    facts = dataclasses.asdict(outcome)
    _print(facts, tables.fetched(facts), as_json=as_json)
    if outcome.missing:
        raise typer.Exit(FAILED)


@weights_app.command("import")
def import_weights(
    source: Annotated[Path, typer.Argument(help="A local .pth, .pt or .safetensors file; never unpickled.")],
    out: Annotated[Path, typer.Argument(help="The model directory to write.")],
    family: Annotated[str, typer.Option(help="radnet, cnn_lstm, adjacent, resnet_2d, resnet_3d or classifiers.")],
    architecture: Annotated[str, typer.Option(help='The network, as JSON: {"trunk": "resnet50"}.')] = "{}",
    preprocessing: Annotated[str, typer.Option(help="What the network sees, as JSON with the keys of a card's.")] = "",
    quantiles_of: Annotated[
        Path | None, typer.Option(help="A folder of DICOM slices that equalise a classifier's images.")
    ] = None,
    labels: Annotated[str, typer.Option(help="The outputs in order, such as any,subdural; the usual ones.")] = "",
    name: Annotated[str, typer.Option(help="What reports call the algorithm.")] = "",
    sha256: Annotated[str, typer.Option(help="What the file's digest must be.")] = "",
    partial: Annotated[bool, typer.Option(help="Let a part of the network be filled in part.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a model directory from published or your own weights: read, renamed, checked, with a card."""
    from node import offline

    asked = offline.Asked(
        preprocessing=_json(preprocessing, option="--preprocessing") if preprocessing else None,
        quantiles_of=quantiles_of,
        labels=tuple(label.strip() for label in labels.split(",") if label.strip()),
        name=name,
        sha256=sha256,
        partial=partial,
    )
    wanted = _json(architecture, option="--architecture")
    facts = offline.import_weights(source, family=family, architecture=wanted, out=out, asked=asked)
    lines = [f"{facts['directory']}: {facts['layout']} weights, SHA-256 {facts['sha256']}"]
    lines += [f"untrained: {', '.join(facts['untrained'])}"] if facts["untrained"] else []
    lines += [f"left out: {', '.join(facts['dropped'])}"] if facts["dropped"] else []
    _print(facts, "\n".join(lines), as_json=as_json)


@labels_app.command("import")
def import_labels(
    table: Annotated[
        Path, typer.Argument(help="A CSV file: study_uid, and a column for each label, or label and value.")
    ],
    config_path: ConfigOption = DEFAULT_CONFIG,
    source: Annotated[str, typer.Option(help="csv, reader or report.")] = "csv",
    reader: Annotated[str, typer.Option(help="Who says so, where the table has no column reader.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count, and change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take labels of studies from a table: all of it or nothing; the same table again changes nothing."""
    from db.states import LabelSource
    from node import labels, parts

    if source not in set(LabelSource):
        raise ConfigError(f"--source {source!r}: expected one of {', '.join(LabelSource)}")
    found = labels.read(table, reader=reader or table.stem, source=LabelSource(source))
    database = parts.open_database(config.load(config_path))
    try:
        with database.write() as tx:
            given = labels.import_table(tx, table, found)
            if dry_run:
                tx.rollback()
    finally:
        database.close()
    facts = {"rows": found.rows, "labels": len(found.labels), **dataclasses.asdict(given), "dry_run": dry_run}
    said = f"{found.rows} rows, {len(found.labels)} labels: {given.added} new, {given.changed} changed, "
    said += f"{given.unchanged} known already" + ("; nothing was written" if dry_run else "")
    _print(facts, said, as_json=as_json)


DELEGATED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Commands of training: all of their arguments are its own."""


@app.command(context_settings=DELEGATED)
def train(context: typer.Context) -> None:
    """Train weights by a recipe: hemonode train RECIPE --data SOURCE[:PATH] --out DIR."""
    _hand_over("train", *context.args)


@app.command(context_settings=DELEGATED)
def evaluate(context: typer.Context) -> None:
    """Judge weights on labelled studies: hemonode evaluate WEIGHTS --data SOURCE[:PATH]."""
    _hand_over("evaluate", *context.args)


@dataset_app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def freeze(context: typer.Context, config_path: ConfigOption = DEFAULT_CONFIG) -> None:
    """Freeze labelled studies into a list with digests: NAME [--since DAY] [--until DAY] [--scanner WORDS] …."""
    settings = config.load(config_path)
    os.environ["HEMONODE_DATABASE_URL"] = settings.database_url
    criteria = json.dumps(dataclasses.asdict(settings.select))
    _hand_over("dataset", "freeze", "--archive", str(settings.archive), "--criteria", criteria, *context.args)


@models_app.command(context_settings=DELEGATED)
def promote(context: typer.Context) -> None:
    """Put weights in use where they are better: hemonode models promote CANDIDATE SLOT --data SOURCE[:PATH]."""
    _hand_over("models", "promote", *context.args)


@models_app.command(context_settings=DELEGATED)
def rollback(context: typer.Context) -> None:
    """Put the weights that were in use before back in use: hemonode models rollback SLOT."""
    _hand_over("models", "rollback", *context.args)


def _hand_over(*arguments: str) -> NoReturn:
    """This process becomes a command of training, which the node must not import: signals and exit code are its own."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "training", *arguments])  # noqa: S606


def _json(text: str, *, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{option} {text!r}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{option} {text!r}: not a JSON object")
    return value


def _remote(to: str, config_path: Path) -> RemoteSection:
    if not to:
        node = config.load(config_path).node
        address = "127.0.0.1" if node.address in ("0.0.0.0", "::", "") else node.address  # noqa: S104
        return RemoteSection(name="self", ae_title=node.ae_title, address=address, port=node.port)
    title, _, where = to.rpartition("@")
    host, _, port = where.rpartition(":")
    if not (title and host and port.isdigit()):
        raise ConfigError(f"--to {to!r}: expected AET@host:port")
    return RemoteSection(name="remote", ae_title=title, address=host, port=int(port))


def _progress(*, disable: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, disable=disable or not err.is_terminal, transient=True)


if __name__ == "__main__":
    main()
