"""How many answers a pynetdicom client loses on a busy machine: ``python -m benchmarks.lost_answers``.

A client sends small slices to the event-driven reactor with nothing behind it, while other processes want the
processor; in turn as pynetdicom has it, and with `node.steady`, which all of the node's own associations use.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import build_context

from benchmarks.receive_inside import CT, EXPLICIT, bare
from node.steady import steady
from tests.receiving import a_slice

OF_AN_ASSOCIATION = 40
ANSWER_SECONDS = 3.0


def send(port: int, *, seconds: float, mended: bool) -> tuple[int, int]:
    """How many slices were sent in this time, and to how many no answer was found."""
    slice_ = a_slice()
    slice_.file_meta = FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = EXPLICIT
    sent = lost = 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        entity = ApplicationEntity("CT1")
        entity.dimse_timeout = ANSWER_SECONDS
        contexts = [build_context(CT, EXPLICIT)]
        association = entity.associate("127.0.0.1", port, contexts=contexts, ae_title="HEMONODE")
        if mended:
            steady(association)
        for _ in range(OF_AN_ASSOCIATION):
            if not association.is_established:
                break
            sent += 1
            if "Status" not in association.send_c_store(slice_):
                lost += 1
                association.abort()
        if association.is_established:
            association.release()
    return sent, lost


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lost_answers", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--busy", type=int, default=10, help="processes that do nothing but compute")
    parser.add_argument("--seconds", type=float, default=25)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, bare("event")(Path(folder)) as running, ExitStack() as busy:
        for _ in range(asked.busy):
            busy.callback(subprocess.Popen([sys.executable, "-c", "while True: pass"]).kill)
        for number in range(2 * asked.rounds):
            sent, lost = send(running.port, seconds=asked.seconds, mended=bool(number % 2))
            print(f"{'node.steady' if number % 2 else 'pynetdicom'}: {sent} sent, {lost} answers lost", flush=True)


if __name__ == "__main__":
    main()
