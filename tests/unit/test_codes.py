"""The table of coded concepts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydicom.sr import _concepts_dict

from inference.result import LABELS
from node.report import codes
from node.report.codes import Concept, Source

concepts: dict[str, dict[str, dict[str, object]]] = dict(_concepts_dict.concepts)  # type: ignore[arg-type]
TABLE = [value for value in vars(codes).values() if isinstance(value, Concept)]


@pytest.mark.parametrize("concept", TABLE, ids=lambda concept: concept.meaning)
def test_a_code_said_to_be_in_the_dictionary_is_in_it_and_no_other(concept: Concept) -> None:
    known = any(concept.value in meanings for meanings in concepts.get(concept.scheme, {}).values())
    assert known == (concept.source is Source.DICTIONARY)


@pytest.mark.parametrize("concept", TABLE, ids=lambda concept: concept.meaning)
def test_every_concept_fits_its_code_sequence_item(concept: Concept) -> None:
    item = concept.coded()
    assert item.value == concept.value
    assert 0 < len(concept.meaning) <= 64


def test_no_two_concepts_share_a_code() -> None:
    keys = [(concept.scheme, concept.value) for concept in TABLE]
    assert len(keys) == len(set(keys))


def test_every_label_of_the_models_has_a_finding_and_a_site() -> None:
    assert tuple(codes.HAEMORRHAGES) == LABELS
    said = {(h.finding.value, h.site.value) for h in codes.HAEMORRHAGES.values()}
    assert len(said) == len(LABELS)


def test_intraventricular_haemorrhage_is_composed_of_two_verified_codes() -> None:
    meant = codes.HAEMORRHAGES["intraventricular"]
    assert (meant.finding.value, meant.site.value) == ("50960005", "35764002")
    assert meant.finding.source is meant.site.source is Source.DICTIONARY


@pytest.mark.parametrize("code", ["too_few_slices", "incomplete_coverage", "x" * 80, ""])
def test_a_reason_code_of_any_length_becomes_a_private_concept(code: str) -> None:
    item = codes.own_reason(code).coded()
    assert item.value == (code or codes.UNSPECIFIED)
    assert item.scheme_designator == codes.PRIVATE_SCHEME
    assert 0 < len(item.meaning) <= 64


def test_no_other_file_of_the_report_spells_a_code() -> None:
    known = {concept.value for concept in TABLE if concept.source is not Source.OWN and len(concept.value) > 1}
    for path in Path(codes.__file__).parent.glob("*.py"):
        if path.name != "codes.py":
            spelled = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
            assert not spelled & known, path.name
