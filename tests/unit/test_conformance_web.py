"""The conformance statement says of DICOMweb what the program does."""

from __future__ import annotations

import re
from pathlib import Path

from db.procedure_step import Answer
from node.receive.intake import KEPT_ASIDE_STATUS
from node.web.app import EVENT_CHANNEL, TRANSACTIONS
from node.web.arriving import CALLING_AE, CLASS_NOT_SUPPORTED, SYNTAX_NOT_SUPPORTED
from node.web.images import PICTURES, STREAMS
from node.web.metadata import LARGEST_INLINE
from node.web.workitems import ANSWERS

STATEMENT = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
WEB = STATEMENT.split("## DICOMweb (PS3.18)")[1].split("\n## ")[0]


def test_every_transaction_is_listed_in_order_and_no_other() -> None:
    rows = re.findall(r"^\| (GET|POST|PUT|DELETE) \| `([^`]+)` \|", WEB, flags=re.MULTILINE)
    assert rows == [*((method, path) for method, path, _ in TRANSACTIONS), ("GET", EVENT_CHANNEL)]


def test_the_http_status_of_every_answer_of_the_worklist_is_listed() -> None:
    for answer, (status, _) in ANSWERS.items():
        if status >= 400:
            (row,) = re.findall(rf"^\|.*\b{answer:04X}\b.*\| (\d+)", WEB, flags=re.MULTILINE)
            assert int(row) == status, answer


def test_every_answer_that_the_worklist_gives_has_an_http_status() -> None:
    never_given_here = {
        Answer.PROCESSING_FAILURE, Answer.NO_SUCH_INSTANCE, Answer.NO_SUCH_ACTION, Answer.CREATED_MODIFIED,
        Answer.LOCK_NOT_GRANTED, Answer.COERCED, Answer.NOT_CANCELED, Answer.NO_EVENTS, Answer.CANCEL, Answer.PENDING,
        Answer.CANNOT_MATCH,
    }  # fmt: skip
    assert set(Answer) - never_given_here == set(ANSWERS)


def test_reasons_media_types_and_limits_are_those_of_the_code() -> None:
    for reason in (KEPT_ASIDE_STATUS, CLASS_NOT_SUPPORTED, SYNTAX_NOT_SUPPORTED):
        assert f"{reason:04X}" in WEB
    for content in (*STREAMS.values(), *PICTURES):
        assert f"`{content}`" in WEB
    assert f"`{CALLING_AE}`" in WEB
    assert f"more than {LARGEST_INLINE} bytes" in WEB
