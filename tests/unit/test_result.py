"""The values that cross from inference to the node."""

import json

import pytest

from inference.result import Completeness, Finding, ModelReading, Outcome, SeriesChoice, SliceReading, StudyResult


def a_result() -> StudyResult:
    reading = ModelReading(
        name="radnet",
        family="radnet",
        version="1",
        digest="ab" * 32,
        demonstration=True,
        rule="3 consecutive slices",
        findings=(Finding(label="any", present=True, score=0.9, threshold=0.5),),
        slices=(SliceReading(sop_instance_uid="1.2.3", position_mm=-4.5, scores={"any": 0.9}),),
        key_slices=("1.2.3",),
    )
    return StudyResult(
        study_uid="1.2",
        revision=2,
        outcome=Outcome.POSITIVE,
        reason="3 consecutive slices",
        completeness=Completeness(complete=True, reason="geometrically whole"),
        series=(SeriesChoice(series_uid="1.2.1", chosen=True, rank=1, code="read", reason="axial head"),),
        readings=(reading,),
        timings_ms={"decide": 3.5},
    )


def test_a_result_survives_a_round_trip_through_json_text() -> None:
    result = a_result()
    assert StudyResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_an_unknown_key_is_refused() -> None:
    data = a_result().to_json() | {"priority": "LOW"}
    with pytest.raises(TypeError, match="priority"):
        StudyResult.from_json(data)


def test_demonstration_weights_make_the_whole_result_a_demonstration() -> None:
    assert a_result().demonstration
