"""RADnet has the measures its paper implies and does what its three names promise."""

import pytest
import torch

from inference.models.radnet import MaskHead, RADnet, RadnetConfig, Transition

SMALL = RadnetConfig(growth=3, layers=2, stem=4, hidden=5, size=42)


def small(**changes: object) -> RADnet:
    torch.manual_seed(0)
    return RADnet(RadnetConfig.from_json(SMALL.to_json() | changes)).eval()


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (RadnetConfig(attention=False, recurrent=False), 1_015_393),
        (RadnetConfig(recurrent=False), 1_016_647),
        (RadnetConfig(), 1_608_327),
        (RadnetConfig(hidden=64), 1_279_495),
        (RadnetConfig(labels=6), 1_609_612),
        (RadnetConfig(growth=24), 4_904_919),
    ],
)
def test_the_networks_have_as_many_parameters_as_the_papers_imply(config: RadnetConfig, count: int) -> None:
    with torch.device("meta"):
        assert parameters(RADnet(config)) == count


def test_the_backbone_is_the_densenet_with_one_million_parameters() -> None:
    with torch.device("meta"):
        model = RADnet(RadnetConfig(attention=False, recurrent=False))
    assert parameters(model) - parameters(model.classify) == 1_014_944


def test_forty_layers_carry_weights() -> None:
    with torch.device("meta"):
        model = RADnet(RadnetConfig(attention=False, recurrent=False))
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(convolutions) == 40


def test_at_full_size_a_slice_has_448_features_and_its_masks_are_as_large_as_the_image() -> None:
    torch.manual_seed(0)
    model = RADnet(RadnetConfig()).eval()
    with torch.inference_mode():
        logits, masks = model(torch.rand(1, 1, 1, 250, 250))
    assert model.descriptor_size == 448
    assert logits.shape == (1, 1, 1)
    assert masks is not None
    assert masks.shape == (1, 1, 3, 250, 250)


def test_training_and_serving_paths_agree_in_evaluation_mode() -> None:
    model = small(labels=6)
    images = torch.rand(2, 4, 1, 42, 42)
    with torch.no_grad():
        together, masks = model(images)
        for scan, logits in zip(images, together, strict=True):
            torch.testing.assert_close(model.decide(model.encode(scan)), logits, atol=1e-5, rtol=0)
        assert masks is not None
        torch.testing.assert_close(model.attend(images[0]), masks[0].sigmoid(), atol=1e-5, rtol=0)


def test_pooling_before_the_convolution_of_a_transition_changes_nothing_but_the_cost() -> None:
    torch.manual_seed(0)
    transition = Transition(24, dropout=0.0)
    maps = torch.randn(2, 24, 16, 16)
    transition.norm.momentum = None  # one pass in training mode makes the running statistics the batch's own
    with torch.no_grad():
        as_published = transition.train()(maps)
        unbiased = maps.numel() / 24 / (maps.numel() / 24 - 1)
        transition.norm.get_buffer("running_var").div_(unbiased)
        torch.testing.assert_close(transition.eval()(maps), as_published, atol=1e-5, rtol=0)


def test_the_lstm_lets_a_slice_change_what_is_said_of_its_neighbours() -> None:
    images = torch.rand(5, 1, 42, 42)
    changed = images.clone()
    changed[0] = 0
    for recurrent in (True, False):
        model = small(recurrent=recurrent)
        with torch.no_grad():
            before, after = (model.decide(model.encode(x)) for x in (images, changed))
        assert bool((before[1:] != after[1:]).any()) is recurrent


def test_every_parameter_learns_from_the_class_and_mask_losses() -> None:
    model = small().train()
    logits, masks = model(torch.rand(1, 3, 1, 42, 42))
    assert masks is not None
    (logits.square().mean() + masks.square().mean()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_without_attention_there_are_no_masks() -> None:
    model = small(attention=False)
    assert model(torch.rand(1, 2, 1, 42, 42))[1] is None
    with pytest.raises(ValueError, match="without attention"):
        model.attend(torch.rand(1, 1, 42, 42))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_an_untrained_deconvolution_interpolates(factor: int) -> None:
    """A constant stays constant inside, and a ramp stays a ramp."""
    torch.manual_seed(0)
    head = next(m for m in small().modules() if isinstance(m, MaskHead) and m.deconv.stride == (factor, factor))
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    with torch.no_grad():
        grown = head.deconv(ramp)[0, 0, 4 * factor]
    assert grown.shape == (8 * factor,)
    steps = grown.diff()[factor:-factor]
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / factor))
