"""The CNN-LSTM has the paper's trunks and sizes."""

import pytest
import torch

from inference.models.cnn_lstm import TRUNKS, CnnLstm, CnnLstmConfig, SEResNeXt50


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("trunk", "count", "features"),
    [("se_resnext50_32x4d", 42_310_646, 2048), ("resnet50", 40_307_782, 2048), ("resnet18", 21_684_806, 512)],
)
def test_the_networks_have_as_many_parameters_as_the_paper_implies(trunk: str, count: int, features: int) -> None:
    with torch.device("meta"):
        model = CnnLstm(CnnLstmConfig(trunk=trunk))
    assert parameters(model) == count
    assert model.descriptor_size == features


def test_the_se_resnext_with_a_thousand_classes_is_the_published_one() -> None:
    with torch.device("meta"):
        trunk, classifier = SEResNeXt50(), torch.nn.Linear(2048, 1000)
    assert parameters(trunk) + parameters(classifier) == 27_559_896


def test_the_se_resnext_has_the_names_of_its_published_weights() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in SEResNeXt50().state_dict().items()}
    assert shapes["layer0.conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.conv2.weight"] == (128, 4, 3, 3)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer4.2.se_module.fc1.weight"] == (128, 2048, 1, 1)
    assert shapes["layer4.2.se_module.fc2.bias"] == (2048,)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_each_trunk_describes_slices_and_the_lstm_labels_them(trunk: str) -> None:
    torch.manual_seed(0)
    model = CnnLstm(CnnLstmConfig(trunk=trunk, hidden=8, size=64)).eval()
    images = torch.rand(1, 3, 3, 64, 64)
    with torch.inference_mode():
        descriptors = model.encode(images[0])
        logits, maps = model(images)
        torch.testing.assert_close(model.decide(descriptors), logits[0], atol=1e-5, rtol=0)
    assert descriptors.shape == (3, model.descriptor_size)
    assert logits.shape == (1, 3, 6)
    assert maps is None


def test_the_shape_of_the_se_resnext_maps_is_that_of_ceil_mode_pooling() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        assert SEResNeXt50().eval().layer0(torch.rand(1, 3, 64, 64)).shape == (1, 64, 16, 16)


def test_an_unknown_trunk_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="resnet18, resnet50, se_resnext50_32x4d"):
        CnnLstm(CnnLstmConfig(trunk="vgg"))
