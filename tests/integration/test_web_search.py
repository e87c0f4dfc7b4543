"""QIDO-RS over real sockets, asked by dicomweb-client and by hand."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from db.dicom_json import tag_of
from db.engine import Database
from tests.receiving import a_slice
from tests.web_node import Web, web_node

A, B = "1.2.826.0.1.99.1", "1.2.826.0.1.99.2"
SERIES_A = "1.2.826.0.1.99.1.1"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("web")
    database = Database(f"sqlite:///{folder / 'hemonode.db'}")
    database.upgrade()
    with web_node(folder, database, maximum_results=3) as node:
        node.holds(*(a_slice(n, SeriesDescription="Head", SeriesNumber=2) for n in range(1, 5)))
        other = {"StudyInstanceUID": B, "SeriesInstanceUID": f"{B}.1", "PatientID": "P2", "StudyDate": "20260302"}
        node.holds(
            a_slice(11, **other, PatientName="Müller^Jürgen", SpecificCharacterSet="ISO_IR 100"),
            a_slice(12, **other | {"SeriesInstanceUID": f"{B}.2"}, Modality="PT"),
        )
        yield node
    database.close()


def of(answer: httpx.Response, keyword: str) -> list[object]:
    """One attribute of every result."""
    assert answer.status_code in (200, 204), answer.text
    results = answer.json() if answer.content else []
    return [result.get(tag_of(keyword), {}).get("Value", [None])[0] for result in results]


def test_dicomweb_client_finds_studies_series_and_instances(web: Web) -> None:
    client = web.client()
    (study,) = client.search_for_studies(search_filters={"PatientID": "P1"})
    assert study[tag_of("NumberOfStudyRelatedInstances")]["Value"] == [4]
    assert study[tag_of("PatientName")]["Value"] == [{"Alphabetic": "Doe^Jane"}]
    (series,) = client.search_for_series(A)
    assert series[tag_of("SeriesInstanceUID")]["Value"] == [SERIES_A]
    assert len(client.search_for_instances(A, SERIES_A, limit=2, offset=2)) == 2
    assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({}, [B, A]),
        ({"PatientName": "doe*"}, [A]),
        ({"PatientName": "müller^*"}, [B]),
        ({"00100020": "P2"}, [B]),
        ({"StudyDate": "20260201-20260401"}, [B]),
        ({"StudyInstanceUID": f"{A},{B}"}, [B, A]),
        ({"ModalitiesInStudy": "PT"}, [B]),
        ({"limit": "1"}, [B]),
        ({"limit": "1", "offset": "1"}, [A]),
        ({"offset": "2"}, []),
    ],
)
def test_studies_are_matched_as_by_c_find_newest_first(web: Web, parameters: dict[str, str], found: list[str]) -> None:
    assert of(web.http.get("/studies", params=parameters), "StudyInstanceUID") == found


def test_no_result_is_no_content(web: Web) -> None:
    assert web.http.get("/studies", params={"PatientID": "none"}).status_code == 204


@pytest.mark.parametrize(
    ("path", "parameters", "count"),
    [
        ("/series", {}, 3),
        ("/series", {"Modality": "PT", "PatientID": "P2"}, 1),
        ("/series", {"SeriesNumber": "2"}, 1),
        (f"/studies/{B}/series", {}, 2),
        (f"/studies/{B}/instances", {}, 2),
        (f"/studies/{B}/instances", {"SeriesInstanceUID": f"{B}.2"}, 1),
        (f"/studies/{A}/series/{SERIES_A}/instances", {"InstanceNumber": "3"}, 1),
        ("/instances", {"PatientID": "P2", "Rows": "16"}, 2),
    ],
)
def test_series_and_instances_are_found_below_a_study_and_across_all(
    web: Web, path: str, parameters: dict[str, str], count: int
) -> None:
    answer = web.http.get(path, params=parameters)
    assert (answer.status_code, len(answer.json())) == (200, count)


def test_an_answer_has_the_attributes_of_the_levels_that_its_address_does_not_name(web: Web) -> None:
    (across,) = web.http.get("/series", params={"PatientID": "P1"}).json()
    (below,) = web.http.get(f"/studies/{A}/series").json()
    assert tag_of("PatientName") in across
    assert tag_of("PatientName") not in below
    assert below[tag_of("RetrieveURL")]["Value"] == [f"{web.url}/studies/{A}/series/{SERIES_A}"]
    assert below[tag_of("StudyInstanceUID")]["Value"] == [A]


def test_fields_are_included_when_asked_for(web: Web) -> None:
    plain = web.http.get("/studies", params={"PatientID": "P2"}).json()[0]
    assert tag_of("PatientAge") not in plain
    path = f"/studies/{A}/series"
    assert of(web.http.get(path, params={"includefield": "PatientPosition,StudyID"}), "StudyID") == ["S1"]
    assert of(web.http.get(path, params={"includefield": "all"}), "PatientID") == ["P1"]


def test_what_is_not_supported_is_left_out_with_a_warning(web: Web) -> None:
    answer = web.http.get("/studies", params={"fuzzymatching": "true", "PatientName": "do"})
    assert (answer.status_code, "fuzzymatching" in answer.headers["Warning"]) == (204, True)
    answer = web.http.get("/studies", params={"EthnicGroup": "x", "includefield": "StudyComments"})
    assert of(answer, "StudyInstanceUID") == [B, A]
    assert tag_of("EthnicGroup") in answer.headers["Warning"]


def test_an_answer_is_cut_at_its_limit_and_says_so(web: Web) -> None:
    answer = web.http.get("/instances")
    assert len(answer.json()) == 3
    assert "additional results" in answer.headers["Warning"]
    assert "Warning" not in web.http.get("/instances", params={"offset": "3"}).headers


def test_pages_are_disjoint_and_together_whole(web: Web) -> None:
    pages = [of(web.http.get("/instances", params={"limit": 2, "offset": n}), "SOPInstanceUID") for n in (0, 2, 4)]
    assert len({uid for page in pages for uid in page}) == 6


@pytest.mark.parametrize(
    "parameters",
    [{"limit": "-1"}, {"offset": "x"}, {"NoSuchKeyword": "1"}, {"includefield": "Nothing"}, {"SeriesNumber": "a"}],
)
def test_what_is_no_query_is_a_bad_request(web: Web, parameters: dict[str, str]) -> None:
    assert web.http.get("/series", params=parameters).status_code == 400


def test_what_is_no_uid_or_no_address_is_refused(web: Web) -> None:
    assert web.http.get("/studies/abc/series").status_code == 400
    assert web.http.get("/nothing").status_code == 404
    assert web.http.delete("/studies").status_code == 405
    assert web.http.get("/studies", headers={"Accept": "application/dicom+xml"}).status_code == 406
