"""A receiving process to be killed: ``python -m tests.receiving_process DATA SETTINGS`` prints its port and listens."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from db.engine import Database
from node.log import configure
from tests.receiving import listening, settings_of


def main() -> None:
    """Listens until it is killed, or until its standard input ends."""
    configure(level="debug", part="receive")
    settings = settings_of(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    settings.node.data.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_url)
    database.upgrade()
    with listening(settings, database) as scp:
        print(scp.port, flush=True)
        threading.Thread(target=sys.stdin.read).run()


if __name__ == "__main__":
    main()
