"""node.toml → frozen, validated settings. Unknown keys are errors; every key is explained in docs/configuration.md."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from inference.series import Criteria
from node.errors import ConfigError

ARCHIVE = "archive"
"""The destination to which every report is delivered: the node's own archive."""

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,47}$")]


def _ae_title(value: str) -> str:
    # PS3.5 table 6.2-1: AE is 16 characters of the default repertoire, without backslash or control characters.
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", value) or not value.strip():
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return value.strip()


AeTitle = Annotated[str, pydantic.AfterValidator(_ae_title)]


class Section(pydantic.BaseModel):
    """A table of node.toml."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class NodeSection(Section):
    """[node]: who and where this node is."""

    ae_title: AeTitle = "HEMONODE"
    address: str = "127.0.0.1"
    port: Port = 11112
    data: Path = Path("data")


class DatabaseSection(Section):
    """[database]: an SQLAlchemy URL; empty means SQLite inside the data directory."""

    url: str = ""


class ReceiveSection(Section):
    """[receive]: the listening side."""

    maximum_pdu_size: Annotated[int, Field(ge=4096, le=4 * 1024 * 1024)] = 131072
    maximum_associations: Annotated[int, Field(ge=1)] = 64
    maximum_associations_per_ae: Annotated[int, Field(ge=1)] = 32
    check_called_ae: bool = True
    trust_loopback: bool = True
    acse_timeout: Seconds = 30
    dimse_timeout: Seconds = 60
    network_timeout: Seconds = 60
    disk_watermark_mb: Annotated[int, Field(ge=0)] = 4096
    disk_reserve_mb: Annotated[int, Field(ge=0)] = 256
    flush: bool = True
    reactor: Literal["event", "library"] = "event"
    processes: Annotated[int, Field(ge=1, le=16)] = 1
    spool_above_mb: Annotated[int, Field(ge=1)] = 4


class PeerSection(Section):
    """[[peers]]: who may associate with this node. `addresses` holds addresses or networks (CIDR).

    `port` is where this node reaches it, at the address that it called from.
    """

    ae_title: AeTitle
    addresses: tuple[str, ...]
    quiet_time: Seconds | None = None
    maximum_associations: Annotated[int, Field(ge=1)] | None = None
    port: Port | None = None

    @pydantic.field_validator("addresses")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            ipaddress.ip_network(item, strict=False)
        return value


class AssembleSection(Section):
    """[assemble]: when a study is complete. All in seconds."""

    settle_time: Seconds = 2
    quiet_time: Seconds = 30
    limit: Seconds = 600
    tick: Seconds = 0.2
    count_from: str = ""
    count_every: Seconds = 5


def _known_criteria(value: Any) -> Any:
    known = {field.name for field in dataclasses.fields(Criteria)}
    for key in value if isinstance(value, dict) else ():
        if key not in known:
            raise ValueError(f"unknown key {key!r}; allowed: {', '.join(sorted(known))}")
    return value


class ModelSection(Section):
    """[read.models.NAME]: weights, and whether this model may raise the flag. `weights` names a directory.

    A path has a slash in it; a bare name such as "demo-radnet" means weights that travel with Hemonode.
    """

    weights: str
    trigger: bool = True


def _demonstration() -> dict[str, ModelSection]:
    return {
        "radnet": ModelSection(weights="demo-radnet"),
        "cnn-lstm": ModelSection(weights="demo-cnn-lstm"),
    }


class ReadSection(Section):
    """[read]: the worker."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    workers: Annotated[int, Field(ge=1)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    backend: Literal["auto", "torch", "compile", "openvino"] = "auto"
    batch: Annotated[int, Field(ge=1)] | None = None
    combine: Literal["any_of", "all_of"] = "any_of"
    encode_on_arrival: bool = True
    cache_mb: Annotated[int, Field(ge=1)] = 512
    poll: Seconds = 0.05
    lease: Seconds = 60
    attempts: Annotated[int, Field(ge=1)] = 3
    out_of_distribution: Literal["say", "abstain"] = "abstain"
    models: dict[Name, ModelSection] = Field(default_factory=_demonstration)


class RemoteSection(Section):
    """Another application entity that this node calls. `calling_ae_title` defaults to the node's own."""

    name: Name
    ae_title: AeTitle
    address: str
    port: Port
    calling_ae_title: AeTitle | None = None


class DestinationSection(RemoteSection):
    """[[deliver.destinations]]: who gets every report; with `commitment` it is asked to commit to each."""

    commitment: bool = False


class FlagSection(Section):
    """[flag]: the channels that carry the priority flag; each channel kind is one file in node/flag."""

    ups: tuple[RemoteSection, ...] = ()
    retrieve_ae_title: AeTitle | None = None


class ReportSection(Section):
    """[report]: what the Structured Report says about its maker; `locations`, for research, whether it marks images."""

    institution: str = ""
    department: str = ""
    locations: bool = False


class DeliverSection(Section):
    """[deliver]: the outbox; destinations receive every Structured Report."""

    destinations: tuple[DestinationSection, ...] = ()
    availability: tuple[RemoteSection, ...] = ()
    attempts: Annotated[int, Field(ge=1)] = 12
    first_retry: Seconds = 5
    longest_retry: Seconds = 900
    timeout: Seconds = 30
    lease: Seconds = 120
    tick: Seconds = 0.1


class QuerySection(Section):
    """[query]: what others may ask of the archive, and where it may be sent on request."""

    maximum_matches: Annotated[int, Field(ge=1)] = 20_000
    timeout: Seconds = 60
    move_destinations: tuple[RemoteSection, ...] = ()


class ArchiveSection(RemoteSection):
    """[[archives]]: a PACS that this node asks and fetches from, by C-MOVE to itself or by C-GET.

    `sends_as` is the calling AE title with which it sends what it is asked for, where that is another.
    """

    retrieve: Literal["move", "get"] = "move"
    sends_as: AeTitle | None = None


class CommitmentSection(Section):
    """[commitment]: storage commitment, given and asked for. All in seconds."""

    grace: Annotated[float, Field(ge=0)] = 30
    hold: Annotated[float, Field(ge=0)] = 5
    answer_within: Seconds = 600
    tick: Seconds = 0.2


class LogSection(Section):
    """[log]: how much is said."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Section):
    """All of node.toml."""

    node: NodeSection = NodeSection()
    database: DatabaseSection = DatabaseSection()
    receive: ReceiveSection = ReceiveSection()
    peers: tuple[PeerSection, ...] = ()
    assemble: AssembleSection = AssembleSection()
    select: Annotated[Criteria, pydantic.BeforeValidator(_known_criteria)] = Criteria()
    read: ReadSection = ReadSection()
    flag: FlagSection = FlagSection()
    report: ReportSection = ReportSection()
    deliver: DeliverSection = DeliverSection()
    subscribers: tuple[RemoteSection, ...] = ()
    query: QuerySection = QuerySection()
    archives: tuple[ArchiveSection, ...] = ()

    commitment: CommitmentSection = CommitmentSection()
    log: LogSection = LogSection()

    @pydantic.model_validator(mode="after")
    def _names_are_unique(self) -> Settings:
        named = {
            "flag.ups": self.flag.ups,
            "deliver.destinations": self.deliver.destinations,
            "deliver.availability": self.deliver.availability,
            "subscribers": self.subscribers,
            "query.move_destinations": self.query.move_destinations,
            "archives": self.archives,
        }
        for key, sections in named.items():
            names = [section.name for section in sections]
            if len(names) != len(set(names)):
                raise ValueError(f"{key}: every name must be different")
            if ARCHIVE in names:
                raise ValueError(f"{key}: the name {ARCHIVE!r} is the node's own archive")
        titles = [subscriber.ae_title for subscriber in self.subscribers]
        if len(titles) != len(set(titles)):
            raise ValueError("subscribers: every ae_title must be different")
        if self.assemble.count_from and self.assemble.count_from not in {a.name for a in self.archives}:
            raise ValueError(f"assemble.count_from: no [[archives]] is named {self.assemble.count_from!r}")
        return self

    @property
    def database_url(self) -> str:
        """The database that counts: the configured one, or SQLite inside the data directory."""
        return self.database.url or f"sqlite:///{self.node.data / 'hemonode.db'}"

    @property
    def retrieve_ae_title(self) -> str:
        """Where work items say that the images can be retrieved: the configured archive, else this node."""
        return self.flag.retrieve_ae_title or self.node.ae_title

    @property
    def archive(self) -> Path:
        """The directory under which every stored file lies."""
        return self.node.data / "archive"


def load(path: Path) -> Settings:
    """The settings in `path`; relative paths in it count from its own directory.

    Raises
    ------
    ConfigError
        The file is missing, is not TOML, or holds an unknown key or a value that is not allowed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        settings = Settings.model_validate(data)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error
    return _resolved(settings, path.parent)


def _resolved(settings: Settings, folder: Path) -> Settings:
    node = settings.node.model_copy(update={"data": (folder / settings.node.data).resolve()})
    models = {
        # A bare name may be that of packaged weights; whoever loads them decides.
        name: model if "/" not in model.weights else model.model_copy(update={"weights": str(folder / model.weights)})
        for name, model in settings.read.models.items()
    }
    read = settings.read.model_copy(update={"models": models})
    return settings.model_copy(update={"node": node, "read": read})


def _explain(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "node.toml"
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key{_allowed(first['loc'])}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if first["type"] == "value_error" else f"{key}: {message}, not {first['input']!r}"


def _allowed(location: tuple[Any, ...]) -> str:
    section: Any = Settings
    for part in location[:-1]:
        if isinstance(part, int) or not hasattr(section, "model_fields"):
            continue
        field = section.model_fields.get(part)
        section = _section_of(field.annotation) if field else None
    if not hasattr(section, "model_fields"):
        return ""
    return f"; allowed: {', '.join(sorted(section.model_fields))}"


def _section_of(annotation: Any) -> Any:
    if hasattr(annotation, "model_fields"):
        return annotation
    inner = [a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")]
    return inner[0] if inner else None
