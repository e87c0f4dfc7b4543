"""The listening socket, which several receiving processes may share, and the lock that keeps those apart."""

from __future__ import annotations

import fcntl
import socket
from collections.abc import Callable
from pathlib import Path
from socketserver import BaseServer
from typing import IO, Any

from pynetdicom.transport import ThreadedAssociationServer

from node.errors import StartError

BACKLOG = 128


class Lock:
    """A file that one process holds at a time; the system lets it go when that process ends, however it ends.

    Processes that share a port are not kept apart by it, so each number is held this way: otherwise a second node with
    the same node.toml would take half of the connections and declare the first one's associations lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """It is held. Raises ``StartError`` where another process holds it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self._path, "ab")  # noqa: SIM115 held until the process ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise StartError(f"{self._path} is held by another receiving process of this node") from error
        self._file = file

    def release(self) -> None:
        """It is free."""
        if self._file is not None:
            self._file.close()
        self._file = None


class Listener(ThreadedAssociationServer):
    """pynetdicom's server, with a backlog for scanners that open many associations at once."""

    request_queue_size = BACKLOG
    daemon_threads = True

    def __init__(self, *args: Any, tend: Callable[[], None], shares_port: bool, **kwargs: Any) -> None:
        self._tend = tend
        self._shares_port = shares_port
        super().__init__(*args, **kwargs)

    def server_bind(self) -> None:
        """The system hands every connection to one of the processes that listen on the port."""
        if self._shares_port and self.socket is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def service_actions(self) -> None:
        """Called by the listening loop every `POLL_SECONDS`."""
        super().service_actions()
        self._tend()

    def stop(self) -> None:
        """Nobody is listening. Not `shutdown`, which expects `ApplicationEntity.start_server` to have been used."""
        BaseServer.shutdown(self)
        self.server_close()
