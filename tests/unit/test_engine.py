"""The engine gives the same numbers however slices come, and goes on when memory or a device fails."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.card import ModelCard, ModelError, WeightsMissing, load, save
from inference.decision import ScanRule
from inference.device import DeviceLost, DeviceMissing, Processor, cpu_has_bf16, is_lost, is_out_of_memory, processors
from inference.engine import Encode, Engine, LoadedModel, NotFinite, encode_images
from inference.models import ScanModel, build
from inference.place import SlicePlace, place_of
from inference.preprocess import Preprocessing, prepare
from inference.result import LABELS

CPU = Processor(device="cpu", bf16=False)
OTHER = Processor(device="cpu", bf16=True)
Descriptors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ASlice:
    sop_instance_uid: str
    hu: NDArray[np.int16]
    position: tuple[float, float, float]
    frame: int | None = None
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    pixel_spacing: tuple[float, float] = (2.0, 2.0)
    thickness: float | None = 5.0


def a_scan(count: int = 11, *, rows: int = 96, columns: int = 96) -> list[ASlice]:
    generator = np.random.default_rng(0)
    return [
        ASlice(
            sop_instance_uid=f"1.2.{i}",
            hu=generator.integers(-100, 200, (rows, columns)).astype(np.int16),
            position=(0.0, 0.0, 5.0 * i),
        )
        for i in range(count)
    ]


def radnet_card(**changes: Any) -> ModelCard:
    card = ModelCard(
        name="RADnet",
        family="radnet",
        version="1.0",
        architecture={"growth": 3, "layers": 3, "stem": 6, "hidden": 4, "size": 64},
        preprocessing=Preprocessing.radnet(size=64, pixel_mm=3.0),
        labels=("any",),
        thresholds={"any": 0.0},
        rule=ScanRule(run=3),
        demonstration=True,
        intended_use="Tests.",
    )
    return replace(card, **changes)


def cnn_lstm_card() -> ModelCard:
    return radnet_card(
        name="CNN-LSTM",
        family="cnn_lstm",
        architecture={"trunk": "resnet18", "hidden": 8, "size": 64},
        preprocessing=Preprocessing.three_windows(size=64),
        labels=LABELS,
        thresholds=dict.fromkeys(LABELS, 1.0),
        rule=ScanRule(max=True),
        demonstration=False,
    )


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    for name, card in {"radnet": radnet_card(), "cnn_lstm": cnn_lstm_card()}.items():
        save(root / name, card, build(card).state_dict())
    return {name: root / name for name in ("radnet", "cnn_lstm")}


@pytest.fixture(scope="module")
def loaded(directories: dict[str, Path]) -> list[LoadedModel]:
    return [
        LoadedModel(name=name, card=card, state=s)
        for name, (card, s) in zip(directories, map(load, directories.values()), strict=True)
    ]


@pytest.fixture(scope="module")
def engine(directories: dict[str, Path]) -> Engine:
    return Engine.load(directories, device="cpu", precision="fp32")


def close(found: Descriptors, expected: Descriptors, *, atol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, rows in found.items():
        np.testing.assert_allclose(rows, expected[name], atol=atol, rtol=0)


def places(slices: list[ASlice]) -> list[SlicePlace]:
    return [place_of(s) for s in slices]


def test_slices_have_the_same_descriptors_one_by_one_in_chunks_and_at_once(
    engine: Engine, loaded: list[LoadedModel]
) -> None:
    scan = a_scan()
    together = engine.encode(scan)
    assert {name: rows.shape for name, rows in together.items()} == {"radnet": (11, 33), "cnn_lstm": (11, 512)}
    one_by_one = [engine.encode([s]) for s in scan]
    close({name: np.concatenate([rows[name] for rows in one_by_one]) for name in together}, together)
    close(Engine(loaded, ladder=[CPU], chunk=64).encode(scan), together)
    close(Engine(loaded, ladder=[CPU], chunk=3).encode(scan), together)


def test_what_the_engine_encodes_is_what_the_network_gives_for_the_prepared_slices(
    engine: Engine, directories: dict[str, Path]
) -> None:
    scan = a_scan(3)
    card, state = load(directories["radnet"])
    network = build(card).eval()
    network.load_state_dict(state)
    hu = torch.from_numpy(np.stack([s.hu for s in scan]))
    images = prepare(hu, pixel_spacing=[s.pixel_spacing for s in scan], preprocessing=card.preprocessing)
    with torch.inference_mode():
        descriptors = network.encode(images)
        logits = network.decide(descriptors)
    np.testing.assert_allclose(engine.encode(scan)["radnet"], descriptors.numpy(), atol=1e-5)
    reading, _ = engine.decide(engine.encode(scan), places(scan))
    scores = [s.scores["any"] for s in reading.slices]
    np.testing.assert_allclose(scores, logits.sigmoid()[:, 0].numpy(), atol=1e-5)


def test_slices_of_different_size_can_stand_in_one_scan(engine: Engine) -> None:
    scan = [*a_scan(3), *a_scan(2, rows=80, columns=64), *a_scan(2)]
    together = engine.encode(scan)
    assert {len(rows) for rows in together.values()} == {7}
    close({name: rows[3:5] for name, rows in together.items()}, engine.encode(scan[3:5]))


def test_no_slices_have_no_descriptors(engine: Engine) -> None:
    assert {name: rows.shape for name, rows in engine.encode([]).items()} == {"radnet": (0, 33), "cnn_lstm": (0, 512)}


def test_a_reading_says_what_read_it_and_what_was_found(engine: Engine, directories: dict[str, Path]) -> None:
    scan = a_scan(7)
    radnet, cnn_lstm = engine.decide(engine.encode(scan), places(scan))
    assert (radnet.name, radnet.family, radnet.version, radnet.demonstration) == ("radnet", "radnet", "1.0", True)
    assert (cnn_lstm.name, cnn_lstm.demonstration) == ("cnn_lstm", False)
    assert radnet.digest == load(directories["radnet"])[0].sha256
    assert (radnet.device, radnet.precision, radnet.warnings) == ("cpu", "fp32", ())
    assert radnet.rule == "7 consecutive slices at or above 0 (3 needed): slices at 0.0…30.0 mm"
    assert [f.label for f in cnn_lstm.findings] == list(LABELS)
    assert all(f.present for f in radnet.findings)
    assert not any(f.present for f in cnn_lstm.findings)
    by_score = sorted(radnet.slices, key=lambda s: -s.scores["any"])
    assert radnet.key_slices == tuple(s.sop_instance_uid for s in by_score[:5])
    assert cnn_lstm.key_slices == ()
    assert [set(s.scores) for s in cnn_lstm.slices] == [set(LABELS)] * 7


def test_a_scan_is_read_in_positional_order_in_whatever_order_it_came(engine: Engine) -> None:
    scan = a_scan(7)
    shuffled = [scan[i] for i in (3, 0, 6, 1, 5, 2, 4)]
    expected = engine.decide(engine.encode(scan), places(scan))
    found = engine.decide(engine.encode(shuffled), places(shuffled))
    assert [r.key_slices for r in found] == [r.key_slices for r in expected]
    for a, b in zip(found, expected, strict=True):
        assert [s.position_mm for s in a.slices] == [5.0 * i for i in range(7)]
        np.testing.assert_allclose(
            [list(s.scores.values()) for s in a.slices], [list(s.scores.values()) for s in b.slices], atol=1e-5
        )


def test_frames_of_one_instance_are_named_once_among_the_key_slices(engine: Engine) -> None:
    scan = [replace(s, sop_instance_uid="1.2.3", frame=i + 1) for i, s in enumerate(a_scan(4))]
    radnet, _ = engine.decide(engine.encode(scan), places(scan))
    assert radnet.key_slices == ("1.2.3",)
    assert [s.frame for s in radnet.slices] == [1, 2, 3, 4]


def test_a_scan_without_slices_is_refused(engine: Engine) -> None:
    with pytest.raises(ModelError, match="without slices"):
        engine.decide(engine.encode([]), [])


def test_values_that_are_no_numbers_are_refused_and_not_read_as_negative(engine: Engine) -> None:
    scan = a_scan(3)
    descriptors = engine.encode(scan)
    descriptors["radnet"][1, 0] = np.nan
    with pytest.raises(NotFinite, match="radnet"):
        engine.decide(descriptors, places(scan))


def test_warming_up_changes_nothing(engine: Engine) -> None:
    scan = a_scan(2)
    before = engine.encode(scan)
    engine.warm_up()
    close(engine.encode(scan), before)
    assert engine.conditions == ()


def failing(when: Any, error: Exception) -> Encode:
    """An encoder that raises `error` whenever ``when(images, processor)``."""

    def encode(network: ScanModel, images: Tensor, processor: Processor) -> Tensor:
        if when(images, processor):
            raise error
        return encode_images(network, images, processor)

    return encode


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
LOST = RuntimeError("CUDA error: unspecified launch failure")


def test_out_of_memory_halves_the_batch_until_it_fits_and_every_reading_says_so(
    engine: Engine, loaded: list[LoadedModel]
) -> None:
    scan = a_scan()
    starving = Engine(loaded, ladder=[CPU], encode=failing(lambda images, _: len(images) > 2, OUT_OF_MEMORY))
    descriptors = starving.encode(scan)
    close(descriptors, engine.encode(scan))
    expected = tuple(f"out of memory on cpu: batch size reduced to {n}" for n in (4, 2))
    assert [r.warnings for r in starving.decide(descriptors, places(scan))] == [expected, expected]


def test_a_lost_device_is_left_for_the_next_one_and_every_reading_says_so(
    engine: Engine, loaded: list[LoadedModel]
) -> None:
    scan = a_scan(3)
    lost = Engine(loaded, ladder=[OTHER, CPU], encode=failing(lambda _, processor: processor is OTHER, LOST))
    descriptors = lost.encode(scan)
    close(descriptors, engine.encode(scan))
    assert lost.processor == CPU
    reading = lost.decide(descriptors, places(scan))[0]
    assert reading.warnings == ("cpu: device lost; running on cpu instead",)
    assert reading.precision == "fp32"


def test_a_device_too_small_for_one_slice_is_left_for_the_next_one(engine: Engine, loaded: list[LoadedModel]) -> None:
    scan = a_scan(3)
    small = Engine(
        loaded, ladder=[OTHER, CPU], chunk=2, encode=failing(lambda _, processor: processor is OTHER, OUT_OF_MEMORY)
    )
    close(small.encode(scan), engine.encode(scan))
    assert small.conditions == (
        "out of memory on cpu: batch size reduced to 1",
        "cpu: out of memory for a single slice; running on cpu instead",
    )


def test_warming_up_retreats_as_well(loaded: list[LoadedModel]) -> None:
    starving = Engine(loaded, ladder=[CPU], encode=failing(lambda images, _: len(images) > 4, OUT_OF_MEMORY))
    starving.warm_up()
    assert starving.chunk == 4
    assert len(starving.conditions) == 1


@pytest.mark.parametrize("error", [LOST, OUT_OF_MEMORY, MemoryError()])
def test_when_the_last_device_fails_that_is_said(loaded: list[LoadedModel], error: Exception) -> None:
    with pytest.raises(DeviceLost, match="no other device is left"):
        Engine(loaded, ladder=[CPU], encode=failing(lambda *_: True, error)).encode(a_scan(2))


def test_an_error_of_our_own_is_no_reason_to_retreat(loaded: list[LoadedModel]) -> None:
    mistake = RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Engine(loaded, ladder=[OTHER, CPU], encode=failing(lambda *_: True, mistake)).encode(a_scan(2))


@pytest.mark.parametrize(
    ("error", "memory", "lost"),
    [
        (OUT_OF_MEMORY, True, False),
        (MemoryError(), True, False),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
            True,
            False,
        ),
        (LOST, False, True),
        (torch.AcceleratorError("an illegal memory access was encountered"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False, False),
    ],
)
def test_errors_of_a_device_are_told_from_mistakes(error: Exception, memory: bool, lost: bool) -> None:
    assert (is_out_of_memory(error), is_lost(error)) == (memory, lost)


def test_bfloat16_stays_close_to_full_precision(engine: Engine, loaded: list[LoadedModel]) -> None:
    scan = a_scan(3)
    expected, half = engine.encode(scan), Engine(loaded, ladder=[OTHER]).encode(scan)
    for name, rows in half.items():
        assert np.abs(rows - expected[name]).max() < 0.05 * np.abs(expected[name]).max()
        assert not np.array_equal(rows, expected[name])


def test_the_processor_is_the_one_asked_for() -> None:
    assert processors("cpu", precision="fp32") == (CPU,)
    assert processors("cpu", precision="bf16") == (OTHER,)
    assert processors("cpu")[0].bf16 is cpu_has_bf16()
    assert processors("auto")[-1].device == "cpu"


def test_a_gpu_that_is_not_there_is_an_error_and_not_a_cpu() -> None:
    with pytest.raises(DeviceMissing, match="cuda:99"):
        processors("cuda:99")


@pytest.mark.parametrize("device", ["tpu", "cuda:one", "cpu:1", ""])
def test_a_device_that_does_not_exist_is_refused_with_those_that_do(device: str) -> None:
    with pytest.raises(DeviceMissing, match="expected auto, cpu, cuda or cuda:N"):
        processors(device)


def test_a_precision_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="expected auto, bf16 or fp32"):
        processors(precision="fp8")


def test_a_missing_model_stops_the_engine_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="nowhere"):
        Engine.load({"radnet": tmp_path / "nowhere"}, device="cpu")


def test_freed_memory_stays_with_the_process_that_asks_for_it() -> None:
    """In a process of its own: the setting cannot be taken back."""
    program = """
import pathlib, numpy, platform
from inference.device import keep_freed_memory
def resident(): return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
before = resident(); large = numpy.ones(64 << 20, dtype=numpy.uint8); del large
assert not keep_freed_memory() or resident() - before > 60 << 20, resident() - before
"""
    if sys.platform == "linux":
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
