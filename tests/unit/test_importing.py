"""Published weights become our model directories, or are refused with what does not fit."""

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from inference.card import ModelError, load
from inference.importing import Imported, ImportRefused, import_weights
from inference.models import FAMILIES, ScanModel
from inference.models.cnn_lstm import SEResNeXt50
from inference.models.resnet_3d import MedicalResNet18
from inference.preprocess import Preprocessing
from inference.result import ANY, LABELS, SUBTYPES

RESNET_2D = {"size": 64}
CNN_LSTM = {"trunk": "resnet18", "hidden": 4, "size": 64}
EQUALISED = Preprocessing.equalised((-1000.0, 0.0, 80.0, 1000.0), size=64)


def state(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """A ResNet-18 as torchvision publishes it, with a thousand classes, and as old as to lack the counters."""
    torch.manual_seed(1)
    weights = state(torchvision.models.resnet18(weights=None))
    return {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def into(tmp_path: Path, source: Path, family: str = "resnet_2d", **options: Any) -> Imported:
    architecture = options.pop("architecture", RESNET_2D)
    return import_weights(source, family=family, architecture=architecture, out=tmp_path / "model", **options)


def loaded(tmp_path: Path) -> ScanModel:
    card, stored = load(tmp_path / "model")
    network = FAMILIES[card.family](card.architecture)
    network.load_state_dict(stored)
    return network


def assert_holds(network: ScanModel, weights: Mapping[str, Tensor], *, prefix: str = "trunk.") -> None:
    ours = network.state_dict()
    assert weights
    for name, tensor in weights.items():
        assert torch.equal(ours[prefix + name], tensor), name


def test_imagenet_weights_fill_the_trunk_and_the_card_says_that_the_head_is_untrained(
    tmp_path: Path, imagenet: dict[str, Tensor]
) -> None:
    source = write(tmp_path / "resnet18.pth", imagenet)
    done = into(tmp_path, source, name="2D ResNet-18")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    card, _ = load(tmp_path / "model")
    assert card == done.card
    assert (done.layout, done.untrained, done.dropped) == ("torchvision", ("classify",), ("fc.weight", "fc.bias"))
    assert (card.name, card.demonstration, card.labels) == ("2D ResNet-18", True, LABELS)
    assert card.figures == {"untrained": ["classify"]}
    assert card.provenance.data == f"resnet18.pth, SHA-256 {digest}"
    assert str(tmp_path) not in str(card.to_json())
    assert_holds(loaded(tmp_path), {n: t for n, t in imagenet.items() if not n.startswith("fc.")})


def test_the_untrained_head_comes_from_the_seed_and_draws_no_numbers_from_anyone_else(
    tmp_path: Path, imagenet: dict[str, Tensor]
) -> None:
    source = write(tmp_path / "resnet18.pth", imagenet)
    torch.manual_seed(5)
    expected = torch.rand(3)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(5)
        into(tmp_path, source, seed=seed)
        assert torch.equal(torch.rand(3), expected)
        heads.append(loaded(tmp_path).get_parameter("classify.weight"))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("trunk", ["resnet18", "densenet121", "alexnet"])
def test_torchvision_trunks_fill_the_classifiers(tmp_path: Path, trunk: str) -> None:
    torch.manual_seed(1)
    weights = state(torchvision.models.get_model(trunk, weights=None))
    # As in the files of 2017.
    renamed = {n.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): t for n, t in weights.items()}
    source = write(tmp_path / "imagenet.pth", renamed if trunk == "densenet121" else weights)
    architecture = {"trunk": trunk, "labels": 5, "size": 64}
    done = into(tmp_path, source, "classifiers", architecture=architecture, preprocessing=EQUALISED)
    assert (done.untrained, done.card.labels) == (("classify", "head"), SUBTYPES)
    assert_holds(loaded(tmp_path), {n: t for n, t in weights.items() if not n.startswith(("fc.", "classifier."))})


def test_classifiers_need_the_quantiles_of_their_own_slices(tmp_path: Path, imagenet: dict[str, Tensor]) -> None:
    source = write(tmp_path / "resnet18.pth", imagenet)
    with pytest.raises(ImportRefused, match="preprocessing must be given"):
        into(tmp_path, source, "classifiers")
    done = into(tmp_path, source, "classifiers", preprocessing=EQUALISED)
    assert done.card.labels == (ANY,)


def test_an_imagenet_se_resnext_fills_the_trunk_of_the_cnn_lstm(tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = state(SEResNeXt50())
    published = weights | {"last_linear.weight": torch.zeros(1000, 2048), "last_linear.bias": torch.zeros(1000)}
    source = write(tmp_path / "se_resnext50.pth", published)
    done = into(tmp_path, source, "cnn_lstm", architecture={"hidden": 4, "size": 64})
    assert (done.layout, done.untrained) == ("cadene", ("classify", "recurrent"))
    assert done.dropped == ("last_linear.weight", "last_linear.bias")
    assert_holds(loaded(tmp_path), weights)


def test_imagenets_three_colours_leave_noughts_for_the_neighbours_that_our_own_network_sees(
    tmp_path: Path, imagenet: dict[str, Tensor]
) -> None:
    source = write(tmp_path / "resnet18.pth", imagenet)
    done = into(tmp_path, source, "hemonode", architecture={"hidden": 4, "size": 64, "reach": 2})
    assert done.untrained == ("tail",)
    first = loaded(tmp_path).get_parameter("trunk.conv1.weight")
    assert torch.equal(first[:, :3], imagenet["conv1.weight"])
    assert not first[:, 3:].any()
    grey = write(tmp_path / "grey.pth", imagenet | {"conv1.weight": imagenet["conv1.weight"][:, :1]})
    with pytest.raises(ImportRefused, match=r"trunk.conv1.weight has shape \(64, 1, 7, 7\)"):
        into(tmp_path, grey, "hemonode", architecture={"hidden": 4, "size": 64})


def test_medicalnet_weights_lose_their_wrapping_and_their_segmentation(tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = state(MedicalResNet18())
    published = {f"module.{name}": tensor for name, tensor in weights.items()}
    published["module.conv_seg.0.weight"] = torch.zeros(512, 32, 2, 2, 2)
    source = write(tmp_path / "resnet_18_23dataset.pth", {"state_dict": published})
    done = into(tmp_path, source, "resnet_3d", architecture={"size": 32, "depth": 12})
    assert (done.layout, done.untrained, done.dropped) == ("medicalnet", ("classify",), ("conv_seg.0.weight",))
    assert_holds(loaded(tmp_path), weights)


@pytest.mark.parametrize("architecture", [CNN_LSTM, {"hidden": 4, "size": 64}])
def test_a_published_cnn_lstm_is_whole_and_sees_eight_bit_windows(tmp_path: Path, architecture: dict[str, Any]) -> None:
    torch.manual_seed(1)
    ours = state(FAMILIES["cnn_lstm"](architecture))
    stem = "" if architecture.get("trunk") is None else "layer0."
    published = {}
    for name, tensor in ours.items():
        name = name.replace("classify.", "decoder.fc.").replace("recurrent.", "decoder.recurrent.")
        name = name.replace("trunk.conv1", f"trunk.{stem}conv1").replace("trunk.bn1", f"trunk.{stem}bn1")
        published[name.removeprefix("trunk.")] = tensor
    content = {"epoch": 18, "best_metric": 0.0629, "state_dict": published, "optimizer": {"state": {}}}
    done = into(tmp_path, write(tmp_path / "best.pth", content), "cnn_lstm", architecture=architecture)
    assert (done.layout, done.untrained, done.dropped) == ("cnn_lstm", (), ())
    assert done.card.preprocessing.eight_bit
    assert done.card.demonstration, "no operating point was measured"
    assert_holds(loaded(tmp_path), ours, prefix="")


@pytest.mark.parametrize("family", ["radnet", "adjacent"])
def test_our_own_training_checkpoints_come_back_whole(tmp_path: Path, family: str) -> None:
    architecture: dict[str, Any] = {"size": 64, "trunk": "resnet18"}
    if family == "radnet":
        architecture = {"growth": 2, "layers": 2, "stem": 4, "hidden": 3, "size": 32}
    torch.manual_seed(1)
    weights = state(FAMILIES[family](architecture))
    checkpoint = {f"model.{name}": tensor for name, tensor in weights.items()} | {"optimizer.0.exp": torch.ones(2)}
    source = tmp_path / "stage.safetensors"
    source.write_bytes(safetensors.torch.save(checkpoint))
    done = into(tmp_path, source, family, architecture=architecture)
    assert (done.layout, done.untrained, done.dropped) == ("own", (), ("optimizer.0.exp",))
    assert_holds(loaded(tmp_path), weights, prefix="")


def test_a_densenet_with_attention_may_lend_its_weights_to_a_radnet_when_asked(tmp_path: Path) -> None:
    small = {"growth": 2, "layers": 2, "stem": 4, "hidden": 3, "size": 32}
    torch.manual_seed(1)
    weights = state(FAMILIES["radnet"](small | {"recurrent": False}))
    without_last = {name: tensor for name, tensor in weights.items() if not name.startswith("classify.")}
    done = into(tmp_path, write(tmp_path / "a.pth", without_last), "radnet", architecture=small)
    assert done.untrained == ("classify", "recurrent")


def test_part_of_a_backbone_is_refused_by_name_unless_it_is_asked_for(
    tmp_path: Path, imagenet: dict[str, Tensor]
) -> None:
    lacking = {name: tensor for name, tensor in imagenet.items() if name != "layer4.1.conv2.weight"}
    source = write(tmp_path / "resnet18.pth", lacking)
    with pytest.raises(ImportRefused, match=r"trunk\.layer4\.1\.conv2\.weight missing"):
        into(tmp_path, source)
    assert not (tmp_path / "model").exists()
    assert into(tmp_path, source, partial=True).untrained == ("classify", "trunk")


def test_a_head_alone_is_no_backbone(tmp_path: Path) -> None:
    source = write(tmp_path / "head.pth", {"classify.weight": torch.zeros(6, 512), "classify.bias": torch.zeros(6)})
    with pytest.raises(ImportRefused, match=r"trunk.* and \d+ more missing"):
        into(tmp_path, source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra.weight": torch.zeros(1)}, r"trunk\.extra\.weight not part"),
        ({"bn1.weight": torch.zeros(32)}, r"trunk\.bn1\.weight has shape \(32,\), this network expects \(64,\)"),
        ({"bn1.weight": torch.full((64,), torch.nan)}, r"trunk\.bn1\.weight has values that are not finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, imagenet: dict[str, Tensor], change: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ImportRefused, match=message):
        into(tmp_path, write(tmp_path / "resnet18.pth", imagenet | change), partial=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"unet.weight": torch.zeros(1)}, r"none of the known layouts; it begins with unet\.weight"),
        ({}, "no tensors"),
        ([torch.zeros(1)], "no tensors"),
        ({"state_dict": {"epoch": 3}}, "no tensors"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        into(tmp_path, write(tmp_path / "a.pth", content))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_that_is_no_weights_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(ImportRefused, match=name):
        into(tmp_path, tmp_path / name)
    with pytest.raises(ImportRefused, match="cannot be read"):
        into(tmp_path, tmp_path / "nowhere.pth")


def test_a_file_that_wants_to_run_a_program_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    source, trace = tmp_path / "evil.pth", tmp_path / "trace"
    program = f"""
import pathlib, torch
class Evil:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path({str(trace)!r}),)
torch.save({{"conv1.weight": torch.zeros(64, 3, 7, 7), "evil": Evil()}}, {str(source)!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    with pytest.raises(ImportRefused, match="no file of plain tensors"):
        into(tmp_path, source)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("labels", "message"), [(("bleed",), "expected some of any"), ((ANY,), "6 outputs, the card names 1 labels")]
)
def test_labels_that_the_network_cannot_have_are_refused(
    tmp_path: Path, imagenet: dict[str, Tensor], labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        into(tmp_path, write(tmp_path / "resnet18.pth", imagenet), labels=labels)
    assert not (tmp_path / "model").exists()


def test_a_file_with_another_digest_than_expected_is_refused(tmp_path: Path, imagenet: dict[str, Tensor]) -> None:
    source = write(tmp_path / "resnet18.pth", imagenet)
    with pytest.raises(ImportRefused, match="SHA-256"):
        into(tmp_path, source, sha256="0" * 64)
    into(tmp_path, source, sha256=hashlib.sha256(source.read_bytes()).hexdigest().upper())


@pytest.mark.parametrize(
    ("family", "architecture", "message"),
    [
        ("unet", {}, "known are radnet"),
        ("resnet_2d", {"colour": "red"}, "colour"),
        ("resnet_2d", {"size": 64, "labels": 3}, "no usual labels"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(
    tmp_path: Path, imagenet: dict[str, Tensor], family: str, architecture: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImportRefused, match=message):
        into(tmp_path, write(tmp_path / "resnet18.pth", imagenet), family, architecture=architecture)
