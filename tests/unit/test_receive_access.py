"""Who may associate, by node.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node.receive.access import (
    CALLED_AE_NOT_RECOGNIZED,
    CALLING_AE_NOT_RECOGNIZED,
    DISK_IS_LOW,
    Access,
    Refusal,
)
from node.receive.disk import Disk
from node.receive.roll import Caller
from tests.receiving import settings_of

CT, ECHO = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"
PEERS: list[dict[str, Any]] = [
    {"ae_title": "CT1", "addresses": ["192.0.2.7", "10.1.0.0/16"], "maximum_associations": 3},
    {"ae_title": "PACS", "addresses": ["2001:db8::/32"]},
]


def access(*, free: int = 10**12, **receive: Any) -> Access:
    settings = settings_of(Path("data"), peers=PEERS, **{"disk_watermark_mb": 1, **receive})
    return Access(settings=settings, disk=Disk(path=Path(), watermark=1 << 20, reserve=0, free=lambda _: free))


def caller(address: str, calling: str = "CT1", called: str = "HEMONODE") -> Caller:
    return Caller(calling_ae=calling, called_ae=called, address=address)


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        (caller("192.0.2.7"), None),
        (caller("10.1.255.3"), None),
        (caller("::ffff:10.1.255.3"), None),
        (caller("2001:db8::5", "PACS"), None),
        (caller("fe80::1%eth0", "PACS"), CALLING_AE_NOT_RECOGNIZED),
        (caller("192.0.2.8"), CALLING_AE_NOT_RECOGNIZED),
        (caller("10.1.255.3", "PACS"), CALLING_AE_NOT_RECOGNIZED),
        (caller("10.1.255.3", "ct1"), CALLING_AE_NOT_RECOGNIZED),
        (caller("127.0.0.1", "ANYBODY"), None),
        (caller("::1", "ANYBODY"), None),
        (caller("127.0.0.1", "ANYBODY", "OTHER"), CALLED_AE_NOT_RECOGNIZED),
        (caller("192.0.2.7", called="OTHER"), CALLED_AE_NOT_RECOGNIZED),
    ],
)
def test_a_peer_is_an_ae_title_and_an_address(who: Caller, expected: Refusal | None) -> None:
    assert access().refusal(who, abstract_syntaxes=[CT]) is expected


def test_loopback_is_trusted_only_where_the_settings_say_so() -> None:
    closed = access(trust_loopback=False)
    assert closed.refusal(caller("127.0.0.1"), abstract_syntaxes=[CT]) is CALLING_AE_NOT_RECOGNIZED


def test_the_called_ae_title_is_checked_only_where_the_settings_say_so() -> None:
    open_hearted = access(check_called_ae=False)
    assert open_hearted.refusal(caller("127.0.0.1", called="X"), abstract_syntaxes=[CT]) is None


def test_on_a_low_disk_who_could_store_is_refused_and_who_only_asks_is_not() -> None:
    low = access(free=100)
    assert low.refusal(caller("127.0.0.1"), abstract_syntaxes=[ECHO, CT]) is DISK_IS_LOW
    assert low.refusal(caller("127.0.0.1"), abstract_syntaxes=[ECHO]) is None
    assert low.refusal(caller("203.0.113.1"), abstract_syntaxes=[CT]) is CALLING_AE_NOT_RECOGNIZED


def test_a_peers_own_limit_counts_before_the_general_one() -> None:
    rules = access(maximum_associations_per_ae=9)
    assert rules.maximum_of(caller("192.0.2.7")) == 3
    assert rules.maximum_of(caller("2001:db8::5", "PACS")) == 9
    assert rules.maximum_of(caller("127.0.0.1", "ANYBODY")) == 9
