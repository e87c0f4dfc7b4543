"""Who may associate: called AE title, calling AE title with its address, and whether there is room on the disk."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from node.config import PeerSection, Settings
from node.receive.disk import Disk
from node.receive.roll import Caller
from node.receive.uids import is_storage_class


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An A-ASSOCIATE-RJ (PS3.8 table 9-21) and, for the log, its reason in words."""

    result: int
    source: int
    reason: int
    why: str


CALLING_AE_NOT_RECOGNIZED = Refusal(result=1, source=1, reason=3, why="calling AE title or its address not known")
CALLED_AE_NOT_RECOGNIZED = Refusal(result=1, source=1, reason=7, why="called AE title is not this node's")
TEMPORARY_CONGESTION = Refusal(result=2, source=3, reason=1, why="this node cannot record the association now")
TOO_MANY_ASSOCIATIONS = Refusal(result=2, source=3, reason=2, why="too many associations")
DISK_IS_LOW = Refusal(result=2, source=3, reason=2, why="the disk is below its watermark")


class Access:
    """The rules of node.toml: [node], [receive] and [[peers]].

    Closed by default: an association must come from a configured peer, which is an AE title *and* an address; with
    ``trust_loopback`` any AE title may call from this machine.
    """

    def __init__(self, *, settings: Settings, disk: Disk) -> None:
        self._node = settings.node
        self._receive = settings.receive
        self._peers = settings.peers
        self._disk = disk

    def refusal(self, caller: Caller, *, abstract_syntaxes: Iterable[str]) -> Refusal | None:
        """Why the association is rejected, or None.

        On a low disk only associations that could store are rejected: the worklist stays readable, and whoever only
        verifies hears that the node is alive.
        """
        if self._receive.check_called_ae and caller.called_ae != self._node.ae_title:
            return CALLED_AE_NOT_RECOGNIZED
        if not self._is_trusted(caller) and self._peer(caller) is None:
            return CALLING_AE_NOT_RECOGNIZED
        if any(is_storage_class(uid) for uid in abstract_syntaxes) and self._disk.is_low():
            return DISK_IS_LOW
        return None

    def maximum_of(self, caller: Caller) -> int:
        """How many associations the caller's AE title may have at once."""
        peer = self._peer(caller)
        own = peer.maximum_associations if peer is not None else None
        return own if own is not None else self._receive.maximum_associations_per_ae

    def _is_trusted(self, caller: Caller) -> bool:
        return self._receive.trust_loopback and _address(caller.address).is_loopback

    def _peer(self, caller: Caller) -> PeerSection | None:
        address = _address(caller.address)
        for peer in self._peers:
            networks = (ipaddress.ip_network(network, strict=False) for network in peer.addresses)
            if peer.ae_title == caller.calling_ae and any(address in network for network in networks):
                return peer
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
