"""UPS-RS over real sockets: the worklist of the DIMSE services, its statuses, its event channel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from db import worklist
from db.dicom_json import data_set, element, tag_of
from db.engine import Database
from db.states import WorkItemState
from db.subscriptions import FILTERED, GLOBAL
from tests.web_node import Web, web_node
from tests.worklist_node import DONE

HEADERS = {"Content-Type": "application/dicom+json"}
UID, OTHER, CLAIM = "1.2.826.0.1.99.5.1", "1.2.826.0.1.99.5.2", "1.2.826.0.1.99.6"
SUBSCRIBER = "VIEWER"


@pytest.fixture
def web(tmp_path: Path, database: Database) -> Iterator[Web]:
    with web_node(tmp_path, database, subscribers=[SUBSCRIBER], maximum_results=2) as node:
        yield node


def an_item(**values: Any) -> dict[str, Any]:
    return data_set(
        **{
            "ScheduledProcedureStepPriority": "MEDIUM",
            "ProcedureStepLabel": "Read",
            "ScheduledProcedureStepStartDateTime": "20260101120000",
            "InputReadinessState": "READY",
            "ProcedureStepState": "SCHEDULED",
            "PatientName": {"Alphabetic": "Doe^Jane"},
            **values,
        }
    )


def post(web: Web, path: str, *content: dict[str, Any]) -> httpx.Response:
    return web.http.post(path, content=json.dumps(list(content)), headers=HEADERS)


def made(web: Web, uid: str = UID, **values: Any) -> None:
    answer = post(web, f"/workitems?{uid}", an_item(**values))
    assert answer.status_code == 201, answer.text


def state(web: Web, to: str, *, transaction: str = CLAIM, uid: str = UID) -> httpx.Response:
    content = [data_set(ProcedureStepState=to, TransactionUID=transaction)]
    return web.http.put(f"/workitems/{uid}/state", content=json.dumps(content), headers=HEADERS)


def test_an_item_is_made_found_and_read_and_is_the_one_that_dimse_sees(web: Web, database: Database) -> None:
    answer = post(web, f"/workitems?{UID}", an_item())
    assert answer.headers["Location"] == f"{web.url}/workitems/{UID}"
    (found,) = web.http.get("/workitems", params={"ProcedureStepState": "SCHEDULED", "PatientName": "doe*"}).json()
    (read,) = web.http.get(f"/workitems/{UID}").json()
    assert found == read
    assert read[tag_of("WorklistLabel")]["Value"] == ["Worklist"]
    with database.read() as tx:
        item = worklist.find(tx, UID)
    assert item is not None
    assert item.attributes == read


def test_an_item_may_be_named_by_parameter_by_its_body_or_not_at_all(web: Web) -> None:
    assert post(web, f"/workitems?workitem={UID}", an_item()).headers["Location"].endswith(UID)
    assert post(web, "/workitems", an_item(SOPInstanceUID=OTHER)).headers["Location"].endswith(OTHER)
    assert post(web, "/workitems", an_item()).status_code == 201


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"ProcedureStepState": "IN PROGRESS"}, 400),
        ({"ProcedureStepLabel": None}, 400),
        ({"ScheduledProcedureStepPriority": "URGENT"}, 400),
        ({"TransactionUID": CLAIM}, 400),
    ],
)
def test_what_dimse_refuses_to_create_is_a_bad_request(web: Web, values: dict[str, Any], status: int) -> None:
    assert post(web, "/workitems", an_item(**values)).status_code == status


def test_a_known_uid_is_a_conflict_and_one_that_is_none_a_bad_request(web: Web) -> None:
    made(web)
    assert post(web, f"/workitems?{UID}", an_item()).status_code == 409
    assert post(web, "/workitems?workitem=abc", an_item()).status_code == 400
    assert post(web, f"/workitems?{GLOBAL}", an_item()).status_code == 400


@pytest.mark.parametrize(
    "content", ["", "nonsense", "[]", "[1]", '[{"x": 1}]', '[{"00741000": {"Value": []}}]', "[{}, {}]"]
)
def test_a_body_that_is_no_data_set_is_a_bad_request(web: Web, content: str) -> None:
    assert web.http.post("/workitems", content=content, headers=HEADERS).status_code == 400


def test_a_body_of_another_type_or_size_is_refused(web: Web) -> None:
    assert web.http.post("/workitems", content="<x/>", headers={"Content-Type": "application/xml"}).status_code == 415
    large = an_item(CommentsOnTheScheduledProcedureStep="x" * (5 << 20))
    assert post(web, "/workitems", large).status_code == 413


def test_an_item_is_claimed_updated_and_completed(web: Web) -> None:
    made(web)
    assert state(web, "IN PROGRESS").status_code == 200
    (item,) = web.http.get(f"/workitems/{UID}").json()
    assert item[tag_of("ProcedureStepState")]["Value"] == ["IN PROGRESS"]
    assert tag_of("TransactionUID") not in item
    assert state(web, "COMPLETED").status_code == 409  # the final state requirements are not met
    assert post(web, f"/workitems/{UID}?transaction-uid={CLAIM}", DONE).status_code == 200
    assert state(web, "COMPLETED").status_code == 200
    again = state(web, "COMPLETED")
    assert (again.status_code, "already" in again.headers["Warning"]) == (200, True)


def test_only_who_claimed_an_item_changes_it(web: Web) -> None:
    made(web)
    assert state(web, "IN PROGRESS").status_code == 200
    second = state(web, "IN PROGRESS", transaction="1.2.3")
    assert second.status_code == 400
    assert "Transaction UID" in second.headers["Warning"]
    assert state(web, "IN PROGRESS").status_code == 409
    assert post(web, f"/workitems/{UID}", data_set(ProcedureStepLabel="x")).status_code == 400
    assert post(web, f"/workitems/{UID}?1.2.3", data_set(ProcedureStepLabel="x")).status_code == 400
    assert post(web, f"/workitems/{UID}", data_set(ProcedureStepLabel="x", TransactionUID=CLAIM)).status_code == 200


@pytest.mark.parametrize(("to", "status"), [("SCHEDULED", 400), ("DONE", 400), ("COMPLETED", 409)])
def test_a_state_that_cannot_be_entered_is_refused(web: Web, to: str, status: int) -> None:
    made(web)
    assert state(web, to).status_code == status


def test_what_is_not_there_is_not_found(web: Web) -> None:
    assert web.http.get(f"/workitems/{OTHER}").status_code == 404
    assert state(web, "IN PROGRESS", uid=OTHER).status_code == 404
    assert post(web, f"/workitems/{OTHER}", data_set(ProcedureStepLabel="x")).status_code == 404
    assert web.http.post(f"/workitems/{OTHER}/cancelrequest").status_code == 404
    assert web.http.post(f"/workitems/{OTHER}/subscribers/{SUBSCRIBER}").status_code == 404


def test_a_scheduled_item_is_cancelled_on_request(web: Web, database: Database) -> None:
    made(web)
    answer = post(web, f"/workitems/{UID}/cancelrequest", data_set(ReasonForCancellation="not needed"))
    assert answer.status_code == 202
    with database.read() as tx:
        item = worklist.find(tx, UID)
    assert item is not None
    assert item.state is WorkItemState.CANCELED
    assert web.http.post(f"/workitems/{UID}/cancelrequest").status_code == 409


def test_a_request_to_cancel_what_nobody_watches_is_a_conflict(web: Web) -> None:
    made(web)
    assert state(web, "IN PROGRESS").status_code == 200
    assert web.http.post(f"/workitems/{UID}/cancelrequest").status_code == 409


def test_items_are_searched_in_reading_order_page_by_page(web: Web) -> None:
    for number, priority in enumerate(("LOW", "HIGH", "MEDIUM")):
        made(web, f"{UID}.{number}", ScheduledProcedureStepPriority=priority)
    first = web.http.get("/workitems")
    second = web.http.get("/workitems", params={"offset": 2})
    found = [item[tag_of("ScheduledProcedureStepPriority")]["Value"][0] for item in first.json() + second.json()]
    assert found == ["HIGH", "MEDIUM", "LOW"]
    assert "additional results" in first.headers["Warning"]
    assert web.http.get("/workitems", params={"PatientName": "nobody"}).status_code == 204
    assert len(web.http.get("/workitems", params={"ScheduledProcedureStepPriority": "LOW"}).json()) == 1


def channel(web: Web, subscriber: str = SUBSCRIBER) -> ClientConnection:
    return connect(f"{web.url.replace('http', 'ws')}/subscribers/{subscriber}", proxy=None)


def test_a_subscriber_is_told_of_every_change_in_order(web: Web) -> None:
    answer = web.http.post(f"/workitems/{GLOBAL}/subscribers/{SUBSCRIBER}", params={"deletionlock": "true"})
    address = answer.headers["Content-Location"]
    assert (answer.status_code, address) == (201, f"{web.url.replace('http', 'ws')}/subscribers/{SUBSCRIBER}")
    made(web)
    with connect(address, proxy=None) as events:
        created = json.loads(events.recv(timeout=20))
        state(web, "IN PROGRESS")
        claimed = json.loads(events.recv(timeout=20))
    assert created["00001000"] == claimed["00001000"] == element("UI", UID)
    assert created["00001002"] == element("US", 1)
    assert [e[tag_of("ProcedureStepState")]["Value"] for e in (created, claimed)] == [["SCHEDULED"], ["IN PROGRESS"]]


def test_what_is_owed_waits_for_the_channel_and_comes_once(web: Web) -> None:
    made(web)
    assert web.http.post(f"/workitems/{UID}/subscribers/{SUBSCRIBER}").status_code == 201
    with channel(web) as events:
        assert json.loads(events.recv(timeout=20))["00001002"]["Value"] == [1]
    state(web, "IN PROGRESS")
    with channel(web) as events:
        assert json.loads(events.recv(timeout=20))[tag_of("ProcedureStepState")]["Value"] == ["IN PROGRESS"]
        with pytest.raises(TimeoutError):
            events.recv(timeout=0.6)


def test_a_filtered_subscription_and_its_suspension_and_end(web: Web) -> None:
    path = f"/workitems/{FILTERED}/subscribers/{SUBSCRIBER}"
    assert web.http.post(path, params={"filter": "ScheduledProcedureStepPriority=HIGH"}).status_code == 201
    made(web)
    made(web, OTHER, ScheduledProcedureStepPriority="HIGH")
    assert web.http.post(f"{path}/suspend").status_code == 200
    made(web, f"{OTHER}.1", ScheduledProcedureStepPriority="HIGH")
    assert web.http.delete(f"/workitems/{GLOBAL}/subscribers/{SUBSCRIBER}").status_code == 200
    state(web, "IN PROGRESS", uid=OTHER)
    with channel(web) as events:
        assert json.loads(events.recv(timeout=20))["00001000"]["Value"] == [OTHER]
        with pytest.raises(TimeoutError):
            events.recv(timeout=0.6)


def test_nobody_unknown_subscribes_or_listens(web: Web) -> None:
    assert web.http.post(f"/workitems/{GLOBAL}/subscribers/STRANGER").status_code == 403
    with pytest.raises(InvalidStatus, match="403"), channel(web, "STRANGER"):
        pass
