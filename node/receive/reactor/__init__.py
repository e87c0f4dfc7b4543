"""A faster reactor for pynetdicom's acceptor: it waits for events instead of looking for them.

pynetdicom keeps what is difficult (the state machine of PS3.8 9.2, negotiation, every DIMSE service) and is asked to
use other parts through its public ``AE.make_server(request_handler=…)``. Its own reactor sleeps a millisecond between
two looks at a connection, in two threads, reads 4 KiB at a time, copies each fragment several times and hands each
message from thread to thread. Here a connection's thread

* blocks in ``poll`` until the peer, another thread or a timer wants something (`loop`),
* reads into one buffer that is used again and again, out of which PDUs are cut without a copy (`frames`),
* copies each fragment of a data set once, to where it stays (`spool`),
* and answers a C-STORE itself, where its command is as usual without asking pynetdicom; any other message goes to the
  association's second thread, which sleeps until then (`messages`, `association`).

What an association may hold is bounded: one buffer of two PDUs, and one object of which at most `Spool.memory` bytes
lie in memory. A sender that breaks the rules of PS3.7 6.3 or PS3.8 Annex E is aborted.

The events of pynetdicom are triggered as ever, except for those that would cost a copy of every byte: a P-DATA-TF that
arrives triggers neither EVT_DATA_RECV nor EVT_PDU_RECV, and a C-STORE neither EVT_DIMSE_RECV nor (when it is answered
without a comment) EVT_DIMSE_SENT; where `Spool.take` answers it, nothing but EVT_DATA_SENT.
"""

from node.receive.reactor.association import EventConnection
from node.receive.reactor.spool import Collected, Spool, Store

__all__ = ["RELIED_ON", "Collected", "EventConnection", "Spool", "Store"]

RELIED_ON: dict[str, tuple[str, ...]] = {
    "pynetdicom.association.Association": (
        "_abort_blocking",
        "_accepted_cx",
        "_dul_ready",
        "_is_paused",
        "_kill",
        "_reactor_checkpoint",
        "_run_reactor",
        "_serve_request",
        "_server",
    ),
    "pynetdicom.dul.DULServiceProvider": (
        "_decode_pdu",
        "_idle_timer",
        "_kill_thread",
        "_process_recv_primitive",
        "_recv_pdu",
    ),
    "pynetdicom.transport.RequestHandler": ("_create_association",),
    "pynetdicom.transport.AssociationServer": ("_handlers",),
}
"""Everything private of pynetdicom that this package touches; a test compares it with the code and with pynetdicom."""
