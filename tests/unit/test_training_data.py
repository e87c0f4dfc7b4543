"""Scans are prepared as in serving, dealt by patient, and drawn so that images, masks and labels stay together."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from inference import preprocess
from inference.preprocess import Preprocessing
from inference.result import SUBTYPES
from training import dataset
from training.augment import Changes, Ranges, cutmix, draw, grid_of, perturb, warp
from training.batches import Ahead, Sampler, Sampling
from training.cache import VolumeCache
from training.dataset import Scan, split
from training.errors import DataError, LeakageError
from training.guard import refuse_overlap
from training.heads import Heads
from training.losses import weighted_log_loss
from training.study import LabelledStudy, slice_digests, volume_key

SMALL = Preprocessing.radnet(size=40, pixel_mm=5.0)
STILL = Ranges(rotation=0, flip=0)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A grey square head of 160 mm; each positive slice has a bright square at its left (low columns)."""

    seed: int
    positive: tuple[int, ...] = (3, 4, 5)
    slices: int = 8
    pixel_spacing: tuple[float, float] = (2.5, 2.5)

    @property
    def hu(self) -> np.ndarray:
        hu = np.full((self.slices, 80, 80), -1000, np.int16)
        hu[:, 8:72, 8:72] = 30
        hu += np.random.default_rng(self.seed).integers(-3, 4, hu.shape, dtype=np.int16)
        hu[self.masks.any(0)] = 70
        return hu

    @property
    def masks(self) -> np.ndarray:
        masks = np.zeros((5, self.slices, 80, 80), bool)
        for place in self.positive:
            masks[self.seed % 5, place, 30:42, 16:28] = True
        return masks

    @property
    def labels(self) -> np.ndarray:
        found = self.masks.any((2, 3)).T.astype(np.float32)
        return np.concatenate([found.max(1, keepdims=True), found], 1)

    def decode(self) -> dict[str, np.ndarray]:
        bits = sum(mask.astype(np.uint8) << index for index, mask in enumerate(self.masks))
        return {
            "hu": self.hu,
            "spacing": np.array(self.pixel_spacing),
            "positions": np.arange(self.slices) * 5.0,
            "uids": np.array([str(i) for i in range(self.slices)]),
            "digests": slice_digests(self.hu),
            "labels": self.labels,
            "masks": np.asarray(bits, np.uint8),
        }

    def study(self, *, patient: str = "", outlines: bool = True) -> LabelledStudy:
        def decode() -> dict[str, np.ndarray]:
            return {name: value for name, value in self.decode().items() if outlines or name != "masks"}

        return LabelledStudy(
            source="blocks",
            patient=patient or f"p{self.seed}",
            study_uid=f"s{self.seed}",
            group="blocks",
            key=volume_key(self.seed, self.positive, self.slices, outlines),
            decode=decode,
        )


def blocks(folder: Path, seed: int, *, patient: str = "", outlines: bool = True, **kind: object) -> Scan:
    study = Blocks(seed=seed, **kind).study(patient=patient, outlines=outlines)  # type: ignore[arg-type]
    return dataset.prepare(study, cache=VolumeCache(folder), preprocessing=SMALL)


def test_a_prepared_scan_is_what_serving_makes_of_the_same_slices(tmp_path: Path) -> None:
    scan, study = blocks(tmp_path, 1), Blocks(seed=1)
    served = preprocess.prepare(
        torch.from_numpy(study.hu), pixel_spacing=[study.pixel_spacing] * study.slices, preprocessing=SMALL
    )
    assert np.abs(scan.images - served.numpy()).max() < 1e-3
    assert scan.facts.pixel_mm == 5.0
    assert (scan.labels == study.labels).all()


def test_the_masks_lie_over_the_blood(tmp_path: Path) -> None:
    scan = blocks(tmp_path, 2)
    found = dataset.unpack(torch.tensor(scan.opened()["masks"])).numpy()
    assert found.shape == (8, len(SUBTYPES), 40, 40)
    assert found[:, 2].sum() == 3 * 36
    assert found.sum() == found[:, 2].sum()
    assert (scan.images[:, 0][found[:, 2] == 1] > 0.7).all()


def test_no_patient_stands_on_two_sides_and_more_patients_move_nobody() -> None:
    names = [f"p{i}" for i in range(400)]
    groups = split(names, shares=(0.7, 0.2, 0.1), seed=5)
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert [len(group) / 400 for group in groups] == pytest.approx([0.7, 0.2, 0.1], abs=0.06)
    wider = split([*names, *(f"q{i}" for i in range(100))], shares=(0.7, 0.2, 0.1), seed=5)
    assert all(set(few) <= set(many) for few, many in zip(groups, wider, strict=True))
    assert split(names, shares=(0.7, 0.2, 0.1), seed=6) != groups


def test_an_overlap_of_patients_is_refused(tmp_path: Path) -> None:
    one, other = blocks(tmp_path, 1), blocks(tmp_path, 2)
    refuse_overlap({"training": [one], "test": [other]})
    with pytest.raises(LeakageError, match=r"both in training and in test, for example p1"):
        refuse_overlap({"training": [one, other], "test": [one]})


def test_the_same_pixels_under_two_patients_are_refused_and_blank_slices_are_nobodys(tmp_path: Path) -> None:
    one, twin = blocks(tmp_path, 1), blocks(tmp_path, 1, patient="another")
    with pytest.raises(LeakageError, match=r"identical pixels in training and test: .*patient p1.*patient another"):
        refuse_overlap({"training": [one], "validation": [], "test": [twin]})
    blank = np.full((2, 4, 4), -1000, np.int16)
    blank[1, 0, 0] = 5
    assert slice_digests(blank).any(1).tolist() == [False, True]


def test_batches_made_ahead_are_those_that_would_be_made_now(tmp_path: Path) -> None:
    sampler = Sampler([blocks(tmp_path, i) for i in range(2)], Sampling(runs=2, slices=2, side=40))
    with Ahead(partial(sampler.numbered, seed=4), workers=3, stride=2) as batches:
        for number in (1, 3, 5, 7):
            assert torch.equal(batches(number).images, sampler.numbered(number, seed=4).images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_changes_images_and_masks_as_a_cpu_does(tmp_path: Path) -> None:
    ranges = Ranges(rotation=30, scale=0.2, shift=0.1, gain=0.2, kernel=0.5, grid=0.2, optical=0.2)
    sampling = Sampling(runs=6, slices=2, side=40, reach=1, outlines=True, ranges=ranges)
    sampler, device = Sampler([blocks(tmp_path, i) for i in range(2)], sampling), torch.device("cuda")
    here, there = sampler.numbered(3, seed=0), sampler.loadable(3, seed=0, device=device).to(device)
    for one, other in ((here.images, there.images), (here.masks, there.masks), (here.labels, there.labels)):
        torch.testing.assert_close(one, other.cpu(), atol=1e-3, rtol=1e-3)


def test_slices_that_nobody_outlined_keep_their_label_and_give_no_mask(tmp_path: Path) -> None:
    scan = blocks(tmp_path, 1, outlines=False)
    whole = Sampler([scan], Sampling(runs=8, slices=8, side=40, positive=1.0, outlines=True)).numbered(0, seed=1)
    assert torch.equal(whole.outlined, whole.labels[..., 0] == 0)
    assert not whole.masks.any()
    cut = Sampler([scan], Sampling(runs=30, slices=1, side=10, crop=0.25, positive=1.0, outlines=True)).numbered(
        0, seed=1
    )
    assert cut.labels[..., 0].isnan().all(), "whether the crop holds the bleeding is not known"


def test_a_label_that_nobody_gave_teaches_nothing() -> None:
    logits = torch.zeros(2, 6, requires_grad=True)
    labels = torch.tensor([[1.0, 0, 1, 0, 0, 0], [torch.nan] * 6])
    weighted_log_loss(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert bool((logits.grad[0] != 0).all())
    assert not bool(logits.grad[1].any())


def test_a_negative_study_is_negative_in_every_slice_and_a_positive_one_nobody_knows_where() -> None:
    study = LabelledStudy(
        source="x", patient="p", study_uid="s", key="k", decode=dict, labels=(1.0, 0.0, None, None, 1.0, None)
    )
    labels = study.label_slices({"uids": np.array(["a", "b"])})
    assert (labels[:, 1] == 0).all()
    assert np.isnan(labels[:, [0, 2, 3, 4, 5]]).all()
    assert np.array_equal(study.label_study(labels), [1, 0, np.nan, np.nan, 1, np.nan], equal_nan=True)


@pytest.mark.timeout(60)
def test_a_scan_is_prepared_also_where_its_volume_shares_a_lock_with_its_images(tmp_path: Path) -> None:
    keys = (f"{number:08x}" for number in range(1 << 20))
    key = next(k for k in keys if volume_key(k, dataset.PREPARED, SMALL.to_json())[:2] == k[:2])
    study = replace(Blocks(seed=1).study(), key=key)
    assert len(dataset.prepare(study, cache=VolumeCache(tmp_path), preprocessing=SMALL)) == 8


def test_training_without_bleeding_or_without_its_absence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        Sampler([blocks(tmp_path, 1, positive=())], Sampling(runs=1, slices=1, side=40))


def test_the_same_generator_state_gives_the_same_batch_and_another_gives_another(tmp_path: Path) -> None:
    sampling = Sampling(
        runs=4, slices=3, side=40, ranges=Ranges(scale=0.1, shift=0.1, noise=0.05, gain=0.1, offset=0.1)
    )
    sampler = Sampler([blocks(tmp_path, i) for i in range(3)], sampling)
    first, again, other = (sampler.batch(torch.Generator().manual_seed(s)).images for s in (1, 1, 2))
    assert first.shape == (4, 3, 1, 40, 40)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_as_many_runs_as_asked_hold_bleeding_and_short_scans_give_short_runs(tmp_path: Path) -> None:
    scans = [blocks(tmp_path, 0), blocks(tmp_path, 1, slices=5, positive=(2,))]
    always = Sampler(scans, Sampling(runs=24, slices=6, side=40, positive=1.0, ranges=STILL))
    batch = always.batch(torch.Generator().manual_seed(0))
    assert batch.labels.shape[1] == 5
    assert (batch.labels[..., 0].amax(1) == 1).all()


def test_the_masks_move_with_the_images(tmp_path: Path) -> None:
    ranges = Ranges(rotation=40, scale=0.2, shift=0.1)
    sampler = Sampler(
        [blocks(tmp_path, 1)], Sampling(runs=16, slices=2, side=40, positive=1.0, outlines=True, ranges=ranges)
    )
    batch = sampler.batch(torch.Generator().manual_seed(3))
    blood = batch.masks.sum(2) > 0.99
    assert blood.any()
    assert (batch.images[:, :, 0][blood] > 0.75).all()
    assert float((batch.images[:, :, 0] > 0.75)[batch.masks.sum(2) == 0].float().mean()) == 0


def test_the_labels_of_a_crop_are_what_is_inside_it(tmp_path: Path) -> None:
    sampling = Sampling(runs=60, slices=1, side=10, crop=0.25, positive=0.5, outlines=True, ranges=STILL)
    batch = Sampler([blocks(tmp_path, 1)], sampling).batch(torch.Generator().manual_seed(4))
    inside = batch.masks.sum((2, 3, 4)) * 25 >= 12
    assert torch.equal(batch.labels[..., 0] == 1, inside)
    assert 0 < int(inside.sum()) < 60
    assert torch.equal(batch.labels[..., 2], batch.labels[..., 0])


def test_nothing_changes_without_ranges_and_a_flip_mirrors_columns() -> None:
    planes, generator = torch.rand(2, 1, 3, 9, 9), torch.Generator().manual_seed(0)

    def changed(ranges: Ranges) -> torch.Tensor:
        return warp(planes, grid_of(draw(ranges, 2, generator=generator), side=9))

    assert torch.allclose(changed(STILL), planes, atol=1e-5)
    assert torch.allclose(changed(Ranges(rotation=0, flip=1)), planes.flip(-1), atol=1e-5)
    assert torch.allclose(changed(Ranges(rotation=0, flip=0, upside_down=1)), planes.flip(-2), atol=1e-5)


def test_every_run_of_a_batch_is_changed_by_what_was_drawn_for_it() -> None:
    ranges = Ranges(rotation=30, scale=0.2, shift=0.1, crop=0.2, optical=0.2, grid=0.3, gain=0.2, offset=0.3, blur=1.5)
    changes = draw(ranges, 5, generator=torch.Generator().manual_seed(3))
    planes = torch.rand(5, 2, 3, 16, 16)
    together = perturb(warp(planes, grid_of(changes, side=16)), changes)
    for run in range(5):
        here = slice(run, run + 1)
        one = Changes(
            maps=changes.maps[here],
            blur=changes.blur[here],
            **{name: getattr(changes, name)[here] for name in ("cells", "optical", "gain", "offset")},
        )
        torch.testing.assert_close(together[here], perturb(warp(planes[here], grid_of(one, side=16)), one))
    assert len({round(float(angle), 4) for angle in changes.maps[:, 0, 1]}) == 5


STAYING = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])


def test_distortion_keeps_the_corners_of_the_grid_and_folds_nothing_over() -> None:
    def grid(ranges: Ranges) -> torch.Tensor:
        drawn = draw(ranges, 1, generator=torch.Generator().manual_seed(1))
        return grid_of(replace(drawn, maps=STAYING), side=500)[0]

    uneven, plain = grid(Ranges(grid=0.9)), grid(Ranges())
    assert (uneven[:, 1:, 0] > uneven[:, :-1, 0]).all()
    assert (uneven[1:, :, 1] > uneven[:-1, :, 1]).all()
    assert torch.allclose(uneven[[0, -1], [0, -1]], torch.tensor([[-1.0, -1], [1, 1]]), atol=0.02)
    assert float((uneven - plain).abs().max()) > 0.05
    share = grid(Ranges(optical=0.2)).norm(dim=-1) / plain.norm(dim=-1)
    assert float((share[250, 250] - 1).abs()) < 1e-3 < float((share[0, 0] - 1).abs()) < 0.16


def test_a_crop_shows_a_part_of_the_image_and_nothing_beyond_it() -> None:
    changes = draw(Ranges(rotation=0, flip=0, crop=0.2), 50, generator=torch.Generator().manual_seed(2))
    grids = grid_of(changes, side=64)
    assert float(grids.abs().max()) < 1
    areas = ((grids[:, -1, -1] - grids[:, 0, 0]).prod(1) / 4 * (64 / 63) ** 2).tolist()
    assert 0.8 - 1e-3 < min(areas) < 0.85
    assert 0.95 < max(areas) <= 1 + 1e-3


def test_what_lies_beyond_the_edge_is_filled() -> None:
    fill = torch.tensor([0.3, -2.0])[:, None, None]
    grid = grid_of(Changes(maps=torch.tensor([[[1.0, 0, 5.0], [0, 1, 0]]])), side=8)
    shifted = warp(torch.ones(1, 1, 2, 8, 8), grid, fill=fill)
    assert torch.allclose(shifted, fill.expand(1, 1, 2, 8, 8))


def test_cutmix_mixes_labels_by_the_pasted_area() -> None:
    images = torch.arange(6.0)[:, None, None, None].expand(6, 1, 16, 16)
    labels = torch.eye(6)
    mixed, shares = cutmix(images, labels, alpha=1, generator=torch.Generator().manual_seed(8))
    for i in range(6):
        expected = torch.stack([(mixed[i] == value).float().mean() for value in range(6)])
        assert torch.allclose(shares[i], expected, atol=1e-6)


def test_a_population_of_heads_is_the_same_each_time_and_mixes_what_it_lists() -> None:
    heads = Heads(first=1, count=60)
    drawn = [heads.spec(seed) for seed in range(1, 61)]
    assert drawn == [heads.spec(seed) for seed in range(1, 61)]
    assert {preset for preset, _ in drawn} == {"easy", "real"}
    assert {spec.size for _, spec in drawn} == {256, 512}
    assert {spec.thickness_mm for _, spec in drawn} == {3.0, 4.0, 5.0, 6.0}
