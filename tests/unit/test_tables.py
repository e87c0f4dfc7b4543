"""What the commands print: a score is called a probability only where it is one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from rich.console import Console

from inference.result import StudyResult
from node import offline, tables
from node.config import Settings
from tests.tools.reports import ABSTAINED, POSITIVE, a_reading


def printed(what: Any) -> str:
    console = Console(width=200, record=True, file=None, quiet=False, color_system=None)
    with console.capture() as capture:
        console.print(what)
    return " ".join(capture.get().split())


def shown(result: StudyResult) -> str:
    return printed(tables.offline(json.loads(json.dumps(result.to_json()))))


def test_only_a_calibrated_finding_is_shown_with_a_probability() -> None:
    assert "score, not a probability" in shown(POSITIVE)
    assert "probability 0." not in shown(POSITIVE)
    calibrated = replace(POSITIVE, readings=(a_reading(labels=("any",), calibrated=True),))
    assert "probability 0.85, where 12% of scans bear it" in shown(calibrated)


def test_a_study_unlike_those_of_training_is_shown_as_that() -> None:
    said = shown(ABSTAINED)
    assert "not analysed: the scan is unlike those the models were trained on" in said
    assert "warning: cnn-lstm: the scan is unlike those of training" in said


def test_the_models_are_listed_with_operating_points_calibration_and_guard() -> None:
    read = Settings().read
    only_radnet = read.model_copy(update={"models": {"radnet": read.models["radnet"]}})
    facts = offline.catalogue(Settings(read=only_radnet))
    said = printed(tables.models(json.loads(json.dumps(facts))))
    assert [len(facts[key]) for key in ("configured", "packaged")] == [1, 1]
    for card in (*facts["configured"], *facts["packaged"]):
        (point, *_) = card["operating_points"]["any"]
        assert (
            f"any, {point['name']}, {point['threshold']:.3g}: sensitivity {point['sensitivity']['value']:.2f} [" in said
        )
    assert "(in force)" in said
    assert "any: slices by temperature" in said
    assert "looks at images and features, fitted on" in said
