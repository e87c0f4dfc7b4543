"""Weights from elsewhere: a local file in one of the published layouts becomes a model directory that is checked.

Nothing is downloaded, and no file is ever allowed to execute code: what is not safetensors is read by torch's
restricted reader, which makes tensors and plain containers and nothing else.

==============  =====================================================================================================
layout          files
==============  =====================================================================================================
``own``         our state dictionaries and training checkpoints
``torchvision`` ImageNet weights of its ResNets, DenseNet-121 and AlexNet
``cadene``      ImageNet weights of SE-ResNeXt-50 (pretrained-models.pytorch)
``medicalnet``  the 3D ResNet-18 with shortcuts of type A (Chen et al. 2019)
``cnn_lstm``    the whole networks that Nguyen et al. 2020 published
==============  =====================================================================================================
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from inference.card import ModelCard, ModelError, Provenance, save
from inference.decision import ScanRule
from inference.models import FAMILIES, ScanModel
from inference.preprocess import Preprocessing
from inference.result import ANY, LABELS, SUBTYPES

INTENDED_USE = (
    "A starting point for training, not for clinical use: no operating point was measured with these weights. "
    "Thresholds of 0.5 stand for none."
)
MOST_NAMED = 5
COUNTER = "num_batches_tracked"
"""How often batch normalisation was updated; older files lack it, and nothing depends on it."""

LAST = "classify.weight"
"""Of the layer that makes a network's logits, in every family that has one layer for that."""

PREPROCESSING: dict[str, Callable[[int], Preprocessing]] = {
    "radnet": lambda size: Preprocessing.radnet(size=size),
    "cnn_lstm": lambda size: Preprocessing.three_windows(size=size),
    "hemonode": lambda size: Preprocessing.three_windows(size=size),
    "adjacent": lambda size: Preprocessing.three_windows(size=size),
    "resnet_2d": lambda size: Preprocessing.soft_windows(size=size),
    "resnet_3d": lambda size: Preprocessing.full_range(size=size),
}
"""What each family sees of a slice, as its paper says. The classifiers' depends on the slices they are trained on."""

USUAL_LABELS = {len(labels): labels for labels in (LABELS, SUBTYPES, (ANY,))}


class ImportRefused(ModelError):
    """The file cannot become the model that was asked for; the message says what it lacks or has too much."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What came of an import.

    Attributes
    ----------
    card : ModelCard
        As written.
    layout : str
        Which of the published layouts the file has.
    untrained : tuple of str
        Parts of the network that the file says nothing about; they hold random initial values.
    dropped : tuple of str
        Tensors of the file that the network has no use for, such as ImageNet's thousand classes.
    """

    card: ModelCard
    layout: str
    untrained: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedWeights:
    """What a file gives one network: its whole `state`, and the file's digest; the rest as in `Imported`."""

    state: dict[str, Tensor]
    layout: str
    sha256: str
    untrained: tuple[str, ...]
    dropped: tuple[str, ...]


def import_weights(
    source: Path,
    *,
    family: str,
    architecture: Mapping[str, Any],
    out: Path,
    preprocessing: Preprocessing | None = None,
    labels: tuple[str, ...] | None = None,
    name: str = "",
    sha256: str = "",
    partial: bool = False,
    seed: int = 0,
) -> Imported:
    """The model directory `out` holds the weights of the file `source`, and a card that says where they come from.

    Parameters
    ----------
    family, architecture
        The network that takes the weights, as in a model card.
    preprocessing, labels
        The paper's, where they are not given.
    name : str
        What the report calls the algorithm; the family where it is empty.
    sha256 : str
        What the file's digest (hex) must be; empty for no check.
    partial : bool
        Lets a part of the network be filled in part. Otherwise every part is filled whole or not at all.
    seed : int
        Of the initial values of the parts that the file says nothing about.

    Raises
    ------
    ImportRefused
        The file is not readable as weights, has another digest, or does not fit the network: tensors that are missing,
        unexpected, of another shape or not finite are named.
    """
    network = _network(family, architecture, seed=seed)
    fitted = fit_weights(source, network.state_dict(), sha256=sha256, partial=partial)
    layout, untrained = fitted.layout, fitted.untrained
    labels = labels or _usual_labels(network.labels)
    try:
        card = ModelCard(
            name=name or family,
            family=family,
            version=fitted.sha256[:12],
            architecture=dict(architecture),
            preprocessing=preprocessing or _usual_preprocessing(family, network.size, layout),
            labels=labels,
            thresholds=dict.fromkeys(labels, 0.5),
            rule=ScanRule(run=3) if family == "radnet" else ScanRule(max=True),
            demonstration=True,
            intended_use=INTENDED_USE,
            provenance=Provenance(
                recipe=f"imported, layout {layout}",
                data=f"{source.name}, SHA-256 {fitted.sha256}",
                seed=seed if untrained else None,
                date=datetime.now(UTC).isoformat(timespec="seconds"),
            ),
            figures={"untrained": list(untrained)},
        )
    except ValueError as error:
        raise ImportRefused(f"{source}: {error}") from error
    return Imported(card=save(out, card, fitted.state), layout=layout, untrained=untrained, dropped=fitted.dropped)


def fit_weights(
    source: Path,
    expected: Mapping[str, Tensor],
    *,
    sha256: str = "",
    partial: bool = False,
    other_labels: bool = False,
) -> FittedWeights:
    """The file `source` as the state of a network whose state is now `expected`; see `import_weights` for the rest.

    With `other_labels` the last layer of a network of ours for another number of labels is left out.
    """
    data, digest = _checked(source, sha256)
    found = _tensors(data, source)
    layout = _layout_of(found, expected, source)
    renamed, dropped = _renamed(found, layout, expected)
    if other_labels and layout == "own" and _shape(renamed, LAST) != _shape(expected, LAST):
        last = {name for name in renamed if _part(name) == _part(LAST)}
        renamed = {name: tensor for name, tensor in renamed.items() if name not in last}
        dropped += tuple(sorted(last))
    renamed = {name: _widened(name, tensor, expected) for name, tensor in renamed.items()}
    untrained = _require_fit(renamed, expected, source, partial=partial)
    floats = {key: value.float() if value.is_floating_point() else value for key, value in renamed.items()}
    return FittedWeights(
        state=dict(expected) | floats, layout=layout, sha256=digest, untrained=untrained, dropped=dropped
    )


def _checked(source: Path, sha256: str) -> tuple[bytes, str]:
    try:
        data = source.read_bytes()
    except OSError as error:
        raise ImportRefused(f"{source} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and digest != sha256.lower():
        raise ImportRefused(f"{source} has SHA-256 {digest}, {sha256.lower()} was expected")
    return data, digest


def _network(family: str, architecture: Mapping[str, Any], *, seed: int) -> ScanModel:
    """With its initial values; the process's random numbers go on as if nothing had been drawn."""
    if family not in FAMILIES:
        raise ImportRefused(f"family is {family!r}, known are {', '.join(FAMILIES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return FAMILIES[family](architecture)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ImportRefused(f"no {family} network has the architecture {dict(architecture)}: {error}") from error


def _tensors(data: bytes, source: Path) -> dict[str, Tensor]:
    """The tensors of the file by name, without what wraps them."""
    if source.suffix == ".safetensors":
        try:
            found = safetensors.torch.load(data)
        except SafetensorError as error:
            raise ImportRefused(f"{source} is not a safetensors file: {error}") from error
    else:
        found = _restricted(data, source)
    while found and all(name.startswith("module.") for name in found):  # torch's DataParallel
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    if not found:
        raise ImportRefused(f"{source} holds no tensors by name")
    return found


def _restricted(data: bytes, source: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can make the reader raise anything at all
        raise ImportRefused(f"{source} is no file of plain tensors: {str(error).splitlines()[0]}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _layout_of(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path) -> str:
    if any(name.removeprefix("model.") in expected for name in found):
        return "own"
    if any(name.startswith("decoder.") for name in found):
        return "cnn_lstm"
    if "layer0.conv1.weight" in found:
        return "cadene"
    first = found.get("conv1.weight")
    if first is not None and first.ndim == 5:
        return "medicalnet"
    if first is not None or any(name.startswith("features.") for name in found):
        return "torchvision"
    raise ImportRefused(f"{source} has none of the known layouts; it begins with {_some(found)}")


DROPPED = {
    "own": r"optimizer\.",
    "torchvision": r"(fc|classifier)\.",
    "cadene": r"last_linear\.",
    "medicalnet": r"(conv_seg|fc)\.",
    "cnn_lstm": r"(?!)",
}
"""What each layout has beside what a trunk can use."""


FIRST = ("trunk.conv1.weight", "trunk.layer0.conv1.weight")
"""Where a network that looks at neighbours sees them."""


def _renamed(
    found: Mapping[str, Tensor], layout: str, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under our names, and the names of those left out."""
    dropped = tuple(name for name in found if re.match(DROPPED[layout], name))
    kept = {name: tensor for name, tensor in found.items() if name not in dropped}
    return {_our_name(name, layout, expected): tensor for name, tensor in kept.items()}, dropped


def _our_name(name: str, layout: str, expected: Mapping[str, Tensor]) -> str:
    if layout == "own":
        return name.removeprefix("model.")
    if name.startswith("decoder.recurrent."):
        return name.removeprefix("decoder.")
    if name.startswith("decoder.fc."):
        return name.replace("decoder.fc.", "classify.")
    if layout == "cnn_lstm" and "trunk.conv1.weight" in expected:
        name = name.removeprefix("layer0.")
    # Early DenseNet files have a dot that a module's name may no longer have.
    name = re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", name)
    return f"trunk.{name}"


def _widened(name: str, tensor: Tensor, expected: Mapping[str, Tensor]) -> Tensor:
    """A first convolution of three colours, with noughts for the neighbours that the network sees beside them."""
    wanted = expected.get(name)
    if name not in FIRST or wanted is None or tensor.ndim != 4 or not 3 == tensor.shape[1] < wanted.shape[1]:
        return tensor
    return torch.cat((tensor, tensor.new_zeros(len(tensor), wanted.shape[1] - 3, *tensor.shape[2:])), 1)


def _require_fit(
    renamed: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path, *, partial: bool
) -> tuple[str, ...]:
    """The parts of the network that are not filled whole. Raises ``ImportRefused`` for what does not fit."""
    if unexpected := renamed.keys() - expected.keys():
        raise ImportRefused(f"{source}: {_some(unexpected)} not part of this network")
    for name, tensor in renamed.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, this network expects {tuple(expected[name].shape)}"
            raise ImportRefused(f"{source}: {name} has shape {shapes}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ImportRefused(f"{source}: {name} has values that are not finite")
    missing = {name for name in expected.keys() - renamed.keys() if not name.endswith(COUNTER)}
    touched = {_part(name) for name in renamed} | {"trunk"}
    half_filled = {name for name in missing if _part(name) in touched}
    if half_filled and not partial:
        raise ImportRefused(f"{source}: {_some(half_filled)} missing; that leaves a part of the network half filled")
    return tuple(sorted({_part(name) for name in missing}))


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _part(name: str) -> str:
    return name.split(".")[0]


def _usual_preprocessing(family: str, size: int, layout: str) -> Preprocessing:
    if family not in PREPROCESSING:
        raise ImportRefused(
            f"{family} equalise intensities by quantiles of the slices they are trained on; preprocessing must be given"
        )
    if layout == "cnn_lstm":
        return Preprocessing.three_windows(size=size, eight_bit=True)
    return PREPROCESSING[family](size)


def _usual_labels(outputs: int) -> tuple[str, ...]:
    if outputs not in USUAL_LABELS:
        raise ImportRefused(f"a network with {outputs} outputs has no usual labels; they must be given")
    return USUAL_LABELS[outputs]


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - MOST_NAMED} more" if len(ordered) > MOST_NAMED else ""
    return ", ".join(ordered[:MOST_NAMED]) + more
