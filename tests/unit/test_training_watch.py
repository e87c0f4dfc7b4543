"""What makes a training worthless is said early, once, and in words that name it."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import numpy as np

from inference.result import LABELS
from training import record
from training.dataset import Scan, ScanFacts
from training.loop import Progress
from training.record import RunLog
from training.study import CohortFacts
from training.watch import Watch, headers_auc

RNG = np.random.default_rng(0)


def scan(number: int, *, bleeds: bool, thickness: float = 5.0) -> Scan:
    labels = np.zeros((4, 6), np.float32)
    labels[1, [0, 4]] = bleeds
    facts = ScanFacts(
        patient=f"p{number}", group="x", pixel_mm=1, cohort=CohortFacts(thickness_mm=thickness, manufacturer="A")
    )
    return Scan(facts=facts, labels=labels, study_labels=labels.max(0), opened=partial(dict))


def at(step: int, loss: float) -> Progress:
    return Progress(step=step, share=0.1, seconds=1, loss=loss, norm=1, rate=0.5)


def test_a_label_without_a_positive_slice_is_named() -> None:
    watch = Watch(labels=LABELS)
    watch.data([scan(number, bleeds=number % 2 == 0) for number in range(4)])
    assert len(watch.said) == 4
    assert all(said.startswith("dead class: no training slice") for said in watch.said)
    assert not any("subdural" in said or "labelled any" in said for said in watch.said)


def test_headers_that_tell_the_label_are_a_leak_and_headers_at_random_are_not() -> None:
    thick = [scan(n, bleeds=n % 2 == 0, thickness=5.0 if n % 2 == 0 else 2.5) for n in range(60)]
    blind = [scan(n, bleeds=n % 2 == 0, thickness=float(RNG.choice([2.5, 5.0]))) for n in range(60)]
    watch = Watch(labels=("any",))
    watch.data(thick)
    assert "label leakage: thickness, size, maker and kernel alone" in watch.said[0]
    watch.data(blind)
    assert len(watch.said) == 1
    assert headers_auc(thick[:20]) is None, "too few to say"


def test_an_area_that_no_reader_reaches_at_the_first_validation_is_a_leak() -> None:
    truth = (np.arange(60)[:, None] % 3 == 0).astype(float)
    watch = Watch(labels=("any",))
    watch.validation(truth * 0.5 + 0.2, truth, number=1)
    assert watch.said == [], "later on it may have learnt"
    watch.validation(RNG.random((60, 1)), truth, number=0)
    assert watch.said == []
    watch.validation(truth * 0.5 + 0.2, truth, number=0)
    assert watch.said == ["label leakage: any has an AUC of 1.0000 at the first validation: what gives it away?"]


def test_the_same_score_for_every_slice_is_a_dead_class() -> None:
    truth = (np.arange(60)[:, None] % 3 == 0).astype(float)
    watch = Watch(labels=("any",))
    for number in (0, 1, 2):
        watch.validation(np.full((60, 1), 0.31), truth, number=number)
    assert watch.said == ["dead class: the network gives every slice the same score for any"]


def test_a_loss_that_rises_says_that_the_rate_is_too_high_and_a_wavering_one_does_not() -> None:
    calm, wild = Watch(labels=("any",)), Watch(labels=("any",))
    for step, loss in enumerate([1.0, 0.9, 1.8, 0.7, 0.9, 0.6]):
        calm.training(at(step, loss))
    for step, loss in enumerate([1.0, 2.0, 3.0, 4.0, 5.0]):
        wild.training(at(step, loss))
    assert calm.said == []
    assert wild.said == ["step 3: the loss has risen from 1 to 4; the learning rate (0.5) is too high"]


def test_the_table_of_a_resumed_run_is_that_of_one_that_was_not_killed(tmp_path: Path) -> None:
    whole, killed = RunLog(tmp_path / "whole"), RunLog(tmp_path / "killed")
    for step in (10, 20, 30, 40):
        whole.write(step, **{"training/loss": 1 / step})
    for step in (10, 20, 30):
        killed.write(step, **{"training/loss": 1 / step})
    with killed.table.open("a") as file:
        file.write("40,training/lo")
    resumed = RunLog(tmp_path / "killed")  # from the checkpoint of step 20
    for step in (30, 40):
        resumed.write(step, **{"training/loss": 1 / step})
    assert resumed.table.read_text() == whole.table.read_text()
    with whole.table.open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [10, 20, 30, 40]


def test_a_run_leaves_curves_as_a_picture_and_for_tensorboard(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, **{"training/loss": 1 / step, "validation/loss": 2 / step, "learning_rate": 0.1})
    log.close()
    assert (tmp_path / record.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / record.BOARD).glob("events.*"))
