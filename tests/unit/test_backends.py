"""Every backend gives every family's numbers, and one that cannot is left with a sentence that says so."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.backends import (
    OPENVINO_GAIN,
    BackendFailed,
    BackendMissing,
    Costly,
    accelerated,
    chosen,
    openvino_installed,
)
from inference.backends.compiled import compiled
from inference.backends.eager import eager
from inference.backends.graphs import Graph
from inference.backends.openvino import OpenVino
from inference.backends.parting import MOST_CHANNELS, Parted, parted
from inference.backends.pieces import InPieces
from inference.backends.rounding import in_wide_halves, keeping_sums
from inference.device import Processor, usable_threads
from inference.engine import Engine, LoadedModel
from inference.models import FAMILIES, ScanModel
from inference.neighbours import windows
from inference.result import ModelReading
from inference.threads import at_most, one_thread, threads_of_one
from tests.every_family import EVERY, head, network_of
from tests.small_scan import images, places, read

CPU = Processor(device="cpu", bf16=False)
CPU_BF16 = Processor(device="cpu", bf16=True)
GPU = Processor(device="cuda:0", bf16=True)
MARGIN = 0.02
"""By how much a probability may differ between bfloat16 and float32."""

needs_openvino = pytest.mark.skipif(not openvino_installed(), reason="openvino is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
every_family = pytest.mark.parametrize("family", EVERY)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are too small for more."""
    with one_thread():
        yield


@dataclass(frozen=True, kw_only=True)
class Scores:
    """(s, labels) or (1, labels); and which labels are present."""

    values: NDArray[np.float64]
    present: list[bool]


def flipped(full: Scores, half: Scores) -> list[int]:
    """Labels found by one and not by the other, though no score is within the margin of the threshold of 0.5."""
    near = (np.abs(full.values - 0.5) <= MARGIN).any(0)
    pairs = zip(full.present, half.present, near, strict=True)
    return [i for i, (a, b, close) in enumerate(pairs) if a != b and not close]


def scores_of(reading: ModelReading) -> Scores:
    values = [list(s.scores.values()) for s in reading.slices] or [[f.score for f in reading.findings]]
    return Scores(values=np.array(values), present=[f.present for f in reading.findings])


def engine_with(family: str, *, backend: str = "torch", device: str = "cpu", bf16: bool = False) -> Engine:
    model = LoadedModel(name="model", card=EVERY[family], state=network_of(family).state_dict())
    return Engine([model], ladder=[Processor(device=device, bf16=bf16)], chunk=4, backend=backend)


@cache
def encoded_as_it_arrives(family: str) -> Scores:
    """In full precision with torch: each slice by itself, decided at the end."""
    engine = engine_with(family)
    rows = np.concatenate([engine.encode([s])["model"] for s in head()])
    if reach := engine.reach.get("model"):
        rows = np.concatenate([engine.encode_among("model", [window]) for window in windows(rows, reach)])
    (reading,) = engine.decide({"model": rows}, places(head()))
    return scores_of(reading)


def test_every_family_is_among_those_of_these_tests() -> None:
    sees_no_pixel = {"metadata_forest"}
    assert {card.family for card in EVERY.values()} == set(FAMILIES) - sees_no_pixel == set(OPENVINO_GAIN)


@every_family
def test_a_scan_encoded_as_it_arrives_has_the_numbers_of_one_pass_over_it_whole(family: str) -> None:
    card, network = EVERY[family], network_of(family)
    with torch.inference_mode():
        # In one pass the network sees the scan as it is: no engine, no backend, no pieces.
        logits, _ = network(images(card, head())[None])
    expected = card.calibration.slice_scores(logits[0].float().numpy(), labels=card.labels)
    # Images are kept as float16 until the network sees them; in one pass it sees those of float32.
    atol = 1e-3 if network.costly_decide or network.reach else 1e-5
    np.testing.assert_allclose(encoded_as_it_arrives(family).values, expected, atol=atol, rtol=0)


@every_family
def test_bfloat16_moves_no_score_by_more_than_the_margin_and_flips_no_finding_outside_it(family: str) -> None:
    full, half = encoded_as_it_arrives(family), scores_of(read(engine_with(family, bf16=True), head()))
    assert np.abs(full.values - half.values).max() <= MARGIN
    assert flipped(full, half) == []


@needs_openvino
@every_family
def test_openvino_stays_as_close(family: str) -> None:
    reading = read(engine_with(family, backend="openvino", bf16=True), head())
    full, found = encoded_as_it_arrives(family), scores_of(reading)
    assert np.abs(full.values - found.values).max() <= MARGIN
    assert flipped(full, found) == []
    assert (reading.device, reading.warnings) == ("cpu, openvino", ())


@pytest.mark.parametrize("bf16", [False, True])
def test_compiled_by_torch_a_network_gives_the_same_numbers(bf16: bool) -> None:
    torch.manual_seed(0)
    part = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    run = eager(part.eval().requires_grad_(False), bf16=bf16, memory_format=torch.channels_last, to_be_compiled=True)
    pixels = torch.rand(2, 1, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(run)(pixels), run(pixels), atol=5e-3 if bf16 else 1e-5, rtol=0)


@needs_openvino
@pytest.mark.parametrize("family", ["radnet", "cnn-lstm", "resnet-3d five"])
def test_openvino_in_full_precision_gives_torchs_numbers(family: str) -> None:
    found = scores_of(read(engine_with(family, backend="openvino"), head()))
    np.testing.assert_allclose(found.values, encoded_as_it_arrives(family).values, atol=1e-4, rtol=0)


class Residual(nn.Module):
    """Convolutions with and without a shortcut; what comes out is what bfloat16 would round away of their biases."""

    def __init__(self, fine: float) -> None:
        super().__init__()
        self.entry = nn.Conv2d(1, 1, 1, bias=False)
        self.alone, self.before, self.beside = (nn.Conv2d(1, 1, 1) for _ in range(3))
        with torch.no_grad():
            self.entry.weight.fill_(1.0)
            for layer in (self.alone, self.before, self.beside):
                layer.weight.fill_(-1.0)
                assert layer.bias is not None
                layer.bias.fill_(1.0 + fine)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.entry(images)
        alone = torch.relu(self.alone(maps))
        added = torch.relu(self.before(maps) + self.beside(maps))
        return torch.cat((alone, added), 1).mean((2, 3))


@needs_openvino
def test_openvino_rounds_no_bias_with_and_without_a_shortcut() -> None:
    fine = 2.0**-9  # half a digit behind the last of 1 in bfloat16
    run = OpenVino(Residual(fine).eval(), shape=(1, 64, 64), bf16=True)
    torch.testing.assert_close(run(torch.ones(2, 1, 64, 64)), torch.tensor([[fine, 2 * fine]] * 2))


def test_a_convolution_over_volumes_with_many_channels_is_a_sum_of_several() -> None:
    torch.manual_seed(0)
    many = nn.Conv3d(MOST_CHANNELS + 44, 8, 3, padding=4, dilation=4)
    network = nn.Sequential(nn.Conv3d(2, MOST_CHANNELS + 44, 1), nn.ReLU(), many, nn.Conv3d(8, 8, 1))
    maps = torch.randn(2, 2, 6, 9, 9)
    with torch.inference_mode():
        expected = network(maps)
        assert [type(layer) for layer in parted(network)] == [nn.Conv3d, nn.ReLU, Parted, nn.Conv3d]
        torch.testing.assert_close(network(maps), expected, rtol=1e-5, atol=1e-5)
    assert [few.in_channels for few in network[2].parts] == [MOST_CHANNELS, 44]


def test_both_halves_of_an_image_together_have_all_that_two_short_numbers_hold() -> None:
    images = torch.randn(3, 2, 8, 8) * 100
    coarse, fine = in_wide_halves(images).chunk(2, 1)
    assert torch.equal(coarse.bfloat16().float(), coarse)
    torch.testing.assert_close(coarse + fine.bfloat16().float(), images, rtol=2**-15, atol=0)


@needs_openvino
@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (8, 1, 7, 7), (4, 4, 3, 3, 3), (16, 64, 1, 1)])
def test_a_filter_in_bfloat16_sums_up_to_what_it_did(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    kept = keeping_sums(weight)
    assert torch.equal(kept, kept.bfloat16().float())
    assert float((kept - weight).abs().max()) < 2**-7 * float(weight.abs().max())

    def moved(rounded: Tensor) -> float:
        return float((rounded - weight).flatten(2).sum(-1).abs().mean())

    if weight[0, 0].numel() > 1:
        assert moved(kept) < 0.1 * moved(weight.bfloat16().float())
    else:
        assert torch.equal(kept, weight.bfloat16().float())


def test_openvino_reports_to_nobody() -> None:
    OpenVino(Costly(network_of("radnet")), shape=(1, 64, 64), bf16=False)
    assert sys.modules["openvino_telemetry"] is None
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]


@needs_openvino
def test_openvino_that_fails_while_running_says_so() -> None:
    run = OpenVino(Costly(network_of("radnet")), shape=(1, 64, 64), bf16=False)
    with pytest.raises(BackendFailed, match="openvino: "):
        run(torch.zeros(2, 3, 64, 64))


def test_openvino_that_is_not_there_is_an_error_where_it_was_asked_for_and_else_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert importlib.util.find_spec("openvino") is None
    assert chosen("auto", family="radnet", processor=CPU) == "torch"
    with pytest.raises(BackendMissing, match="not installed"):
        chosen("openvino", family="radnet", processor=CPU)
    with pytest.raises(BackendFailed, match="openvino: "):
        OpenVino(Costly(network_of("radnet")), shape=(1, 64, 64), bf16=False)


@needs_openvino
def test_the_automatic_choice_takes_openvino_where_it_was_measured_to_be_faster() -> None:
    assert {chosen("auto", family=family, processor=CPU) for family in OPENVINO_GAIN} == {"openvino"}
    assert chosen("auto", family="a family not yet measured", processor=CPU) == "torch"
    assert chosen("auto", family="radnet", processor=GPU) == "torch"


def test_a_backend_for_another_device_or_of_another_name_is_refused() -> None:
    with pytest.raises(BackendMissing, match="runs on the CPU only, the device is cuda:0"):
        chosen("openvino", family="radnet", processor=GPU)
    with pytest.raises(ValueError, match="expected one of auto, torch, compile, openvino"):
        chosen("tensorrt", family="radnet", processor=CPU)


def test_a_backend_that_fails_is_left_for_torch_and_every_reading_says_so() -> None:
    def failing_once(network: ScanModel, images: Tensor, _: Processor) -> Tensor:
        if not failed:
            failed.append(True)
            raise BackendFailed("openvino: the primitive cannot be made")
        return network.encode(images)

    failed: list[bool] = []
    model = LoadedModel(name="model", card=EVERY["cnn-lstm"], state=network_of("cnn-lstm").state_dict())
    engine = Engine([model], ladder=[CPU], encode=failing_once)
    reading = read(engine, head())
    assert reading.warnings == ("model: openvino: the primitive cannot be made; running with torch as it is instead",)
    assert engine.backends == {"model": "eager"}
    expected = encoded_as_it_arrives("cnn-lstm").values
    np.testing.assert_allclose(scores_of(reading).values, expected, atol=1e-5)


def test_the_network_itself_is_left_as_it_was() -> None:
    network = network_of("cnn-lstm")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    accelerated(network, backend="torch", processor=CPU_BF16, batch=4)
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("count", "smallest", "expected"),
    [(40, 8, [32, 8]), (41, 8, [32, 8, 8]), (3, 8, [8]), (130, 8, [64, 64, 8]), (7, 1, [4, 2, 1]), (70, None, [64, 6])],
)
def test_images_run_in_pieces_of_few_sizes(count: int, smallest: int | None, expected: list[int]) -> None:
    seen: list[int] = []

    def make() -> Callable[[Tensor], Tensor]:
        def run(images: Tensor) -> Tensor:
            seen.append(len(images))
            return images.flatten(1).sum(1, keepdim=True)

        return run

    pixels = torch.rand(count, 1, 4, 4)
    found = InPieces(make, largest=64, smallest=smallest)(pixels)
    assert seen == expected
    torch.testing.assert_close(found, pixels.sum((1, 2, 3))[:, None])


@needs_gpu
@every_family
def test_cuda_graphs_give_the_cpus_numbers(family: str) -> None:
    engine = engine_with(family, device="cuda:0")
    reading = read(engine, head())
    np.testing.assert_allclose(scores_of(reading).values, encoded_as_it_arrives(family).values, atol=5e-3)
    assert reading.warnings == ()
    assert engine.backends == {"model": "torch"}


@needs_gpu
def test_what_cannot_be_recorded_says_so() -> None:
    def waits_for_the_device(images: Tensor) -> Tensor:
        return images * float(images.sum())

    with pytest.raises(BackendFailed, match="CUDA graphs"):
        Graph(waits_for_the_device)(torch.ones(2, 1, device="cuda"))


@pytest.mark.parametrize(("limit", "most"), [("100000 100000", 1), ("150000 100000", 2), ("max 100000", 4096)])
def test_a_process_takes_no_more_threads_than_its_cgroup_lets_run(tmp_path: Path, limit: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    unlimited = usable_threads(cgroup=tmp_path / "none")
    assert usable_threads(cgroup=tmp_path) == min(unlimited, most)


def test_two_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu in range(1024):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-1023\n")
    assert usable_threads(cgroup=tmp_path / "none", topology=tmp_path) == 1


def test_threads_of_one_compute_alone_and_leave_the_others_their_helpers() -> None:
    with at_most(2):
        usual = torch.get_num_threads()
        with threads_of_one("some", 3) as pool:
            inside = list(pool.map(lambda _: torch.get_num_threads(), range(12)))
            assert set(inside) == {1}
            assert torch.get_num_threads() == usual
