"""Listens for HTTP: address, TLS, tokens, and draining on stop."""

from __future__ import annotations

import errno
import logging
import re
import socket
import threading
from pathlib import Path

import uvicorn

from db import associations
from db.engine import Database
from node.config import Settings, WebSection
from node.errors import StartError
from node.log import log
from node.receive.dataset import Facts
from node.receive.store import intake_of
from node.web.app import application
from node.web.served import Served

BACKLOG = 128
KEEP_ALIVE_SECONDS = 30
ABORT_SECONDS = 3.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


class WebServer:
    """The DICOMweb services, listening.

    Parameters
    ----------
    settings : Settings
        Where to listen; `settings.web.port` is set, 0 for any free port.
    database : Database
        Shared with every other part.
    facts : callable
        See `node.receive.dataset.Facts`.
    """

    def __init__(self, *, settings: Settings, database: Database, facts: Facts) -> None:
        self._web = settings.web
        tokens = tokens_in(self._web.tokens_file) if self._web.tokens_file else frozenset[str]()
        self._socket = _bound(self._web)
        self._port = int(self._socket.getsockname()[1])
        try:
            self._intake = intake_of(settings=settings, database=database, facts=facts)
            receiver = f"{socket.gethostname()[:48]}:web:{self.port}"
            with database.write() as tx:
                associations.close_lost(tx, receiver=receiver)
            served = Served(database=database, settings=settings, intake=self._intake, receiver=receiver)
            config = uvicorn.Config(
                application(served, tokens=tokens),
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=self._web.maximum_requests,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                ssl_certfile=self._web.certificate,
                ssl_keyfile=self._web.key,
                ws="websockets-sansio",
            )
            config.load()
        except BaseException as error:
            self._socket.close()
            if isinstance(error, OSError):  # ssl.SSLError is one
                raise StartError(f"[web] certificate, key or archive: {error}") from error
            raise
        # uvicorn would print what was raised, and with it values of data sets; `Door` has said what may be said.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._port

    def start(self) -> None:
        """Requests are answered from now on."""
        self._thread.start()
        log().info("web_listening", address=self._web.address, port=self.port, tls=self._web.certificate is not None)

    def stop(self, *, grace_seconds: float) -> None:
        """Nobody is listening any more; requests in progress may finish within `grace_seconds`."""
        self._server.should_exit = True
        self._thread.join(grace_seconds)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(ABORT_SECONDS)
        self._socket.close()
        self._intake.close()


def tokens_in(path: Path) -> frozenset[str]:
    """The SHA-256 digests in a file, one a line; what follows a # is a note.

    Raises
    ------
    StartError
        The file cannot be read, holds no digest, or a line that is none.
    """
    try:
        lines = [line.split("#")[0].strip().lower() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"[web] tokens_file {path}: cannot be read") from error
    digests = frozenset(line for line in lines if line)
    if not digests or not all(_DIGEST.fullmatch(digest) for digest in digests):
        raise StartError(f"[web] tokens_file {path}: expected the SHA-256 of a token in hex on each line")
    return digests


def _bound(web: WebSection) -> socket.socket:
    where = f"{web.address}:{web.port}"
    try:
        family = socket.AF_INET6 if ":" in web.address else socket.AF_INET
        return socket.create_server((web.address, web.port or 0), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"{where} is in use by another program; [web] port names another port") from error
        raise StartError(f"cannot listen on {where}: {error.strerror or error}") from error
