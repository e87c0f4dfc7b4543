"""What stops a node from starting, said in one line; and how it stops: drained, with exit code 0, leaving nothing."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.running_node import RunningNode, command, running_node, wait_for, write_config
from tests.scanner import Exams, Scanner

USAGE, FAILED, CANNOT_START = 2, 1, 3


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command which failed says for people; log lines are other lines."""
    assert "Traceback" not in done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("timestamp=")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("hemonode: ")
    return said[0]


def serve(config: Path) -> subprocess.CompletedProcess[str]:
    return command("serve", "--config", config)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[node]\nprot = 11112\n", ("node.prot", "unknown key", "allowed:", "port")),
        ("[node]\nport = 99999\n", ("node.port", "65535")),
        ("[node\n", ("not TOML",)),
        ('[[deliver.destinations]]\nname = "archive"\nae_title = "A"\naddress = "h"\nport = 1\n', ("archive",)),
        ('[node]\nae_title = "SEVENTEEN LETTERS"\n', ("node.ae_title", "1 to 16")),
    ],
    ids=["unknown key", "value", "syntax", "reserved name", "AE title"],
)
def test_a_wrong_configuration_is_named_by_file_and_key(tmp_path: Path, text: str, says: tuple[str, ...]) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    done = serve(path)
    line = one_line(done)
    assert done.returncode == USAGE
    assert [words for words in (str(path), *says) if words not in line] == []


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = serve(tmp_path / "absent.toml")
    assert (done.returncode, "absent.toml" in one_line(done)) == (USAGE, True)


def test_a_port_in_use_stops_the_start_and_is_named(tmp_path: Path, finding_nothing: dict[str, Path]) -> None:
    config = write_config(tmp_path, models=finding_nothing)
    port = RunningNode(config).port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        alone = command("receive", "--config", config)
        whole = serve(config)
    assert alone.returncode == whole.returncode == CANNOT_START
    assert str(port) in one_line(alone)
    said = [line for line in whole.stderr.splitlines() if line.startswith("hemonode: ")]
    assert str(port) in said[0], "the part that cannot start says why"
    assert "receive" in said[-1], "and the node says which part it was"
    assert "Traceback" not in whole.stderr
    assert RunningNode(config).processes() == {}


def test_missing_weights_stop_the_start_and_are_named(tmp_path: Path) -> None:
    done = command("work", "--config", write_config(tmp_path, models={"radnet": tmp_path / "no-such-weights"}))
    assert done.returncode == CANNOT_START
    assert "no-such-weights" in one_line(done)


def test_altered_weights_are_refused(tmp_path: Path, finding_nothing: dict[str, Path]) -> None:
    altered = shutil.copytree(finding_nothing["radnet"], tmp_path / "altered")
    weights = altered / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = command("work", "--config", write_config(tmp_path, models={"radnet": altered}))
    assert done.returncode == CANNOT_START
    line = one_line(done)
    assert "altered" in line
    assert re.search("digest|SHA-256", line)


def test_a_node_that_was_never_started_has_no_status(tmp_path: Path) -> None:
    done = command("status", "--config", write_config(tmp_path))
    assert done.returncode == CANNOT_START
    assert "not been started" in one_line(done)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_while_a_scanner_sends_drains_and_exits_0_and_nothing_acknowledged_is_lost(
    number: signal.Signals, tmp_path: Path, finding_nothing: dict[str, Path], exams: Exams
) -> None:
    exam = exams.new()
    scanner = Scanner(port=0)
    with running_node(tmp_path, models=finding_nothing) as node:
        scanner.port = node.port
        sending = threading.Thread(target=scanner.send, args=(exam.files,), kwargs={"pace": 0.05})
        sending.start()
        wait_for(lambda: len(scanner.acknowledged) >= 4, what="the first slices")
        assert node.zombies() == []
        assert node.stop(number) == 0
        sending.join()
        assert node.processes() == {}
        assert len(scanner.acknowledged) == len(exam.files), "the association was not cut off"
        assert scanner.associations == 1
        assert node.story(exam.study_uid)["instances"] == len(exam.files)
        assert node.status()["associations_open"] == []
        assert "Traceback" not in node.log
        assert [part["name"] for part in node.status()["parts"]] == []
        unknown = node.run("show", "9.9.9")
        assert (unknown.returncode, "9.9.9" in one_line(unknown)) == (FAILED, True)
        ended = one_line(node.run("echo"))
        assert str(node.port) in ended


def test_models_and_status_speak_json(tmp_path: Path, finding_nothing: dict[str, Path]) -> None:
    done = command("models", "--config", write_config(tmp_path, models=finding_nothing), "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)["configured"]
    assert {card["name"] for card in told} == {"radnet", "cnn-lstm"}
    assert all(re.fullmatch("[0-9a-f]{64}", card["sha256"]) and card["demonstration"] for card in told)
