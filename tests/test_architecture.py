"""Who may import whom, and the other rules of the house that a program can hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("node", "inference", "training", "db")
STAGES = ("receive", "assemble", "flag", "report", "deliver", "query")

ENGINE_USERS = {"node.reading", "node.worker", "node.offline", "node.parts", "node.locate", "node.overlay"}
"""The worker and the offline commands; nothing else of the node reaches the networks."""

LIGHT = {"inference.result", "inference.series", "inference.facts", "inference.geometry", "inference.stacks"}
"""What the rest of the node may know of inference: header facts, geometry and results. None of it imports torch."""

COMPOSERS = {"node.parts", "node.scheduler", "node.conclude", "node.offline", "node.demo", "node.cli", "node.locate"}
"""The only modules that know several stages: they put processes together."""


def modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module of ours that is imported, as far as the import names it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(tree: ast.Module, *packages: str) -> set[str]:
    return {name for name in imports(tree) if name.split(".")[0] in packages}


@pytest.mark.parametrize("package", ["db", "inference"])
def test_db_and_inference_import_nothing_else_of_ours(package: str) -> None:
    others = set(PACKAGES) - {package}
    assert {name: found for name, tree in modules(package) if (found := ours(tree, *others))} == {}


def test_training_knows_inference_and_its_archive_source_the_database() -> None:
    found = {name: ours(tree, "node", "db") for name, tree in modules("training")}
    allowed = {name for name in found if name.startswith("training.sources.archive")}
    assert {name: uses for name, uses in found.items() if uses and name not in allowed} == {}


def test_only_the_worker_and_the_offline_commands_reach_the_engine() -> None:
    for name, tree in modules("node"):
        heavy = {used for used in ours(tree, "inference") if not any(used.startswith(light) for light in LIGHT)}
        assert name in ENGINE_USERS or heavy <= {"inference"}, f"{name} imports {heavy}"
        assert not ours(tree, "training"), name


def test_stages_meet_in_the_database_and_not_in_each_other() -> None:
    for name, tree in modules("node"):
        here = name.split(".")[1] if "." in name else ""
        stages = {used.split(".")[1] for used in ours(tree, "node") if used.count(".") and used.split(".")[1] in STAGES}
        assert name in COMPOSERS or stages <= {here}, f"{name} imports the stages {stages}"


@pytest.mark.parametrize("part", ["node.scheduler", "node.cli", "node.receive.scp", "node.assemble", "node.report"])
def test_torch_stays_out_of_the_parts_that_must_not_crash_with_it(part: str) -> None:
    code = f"import {part}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_nothing_is_ever_unpickled() -> None:
    forbidden = re.compile(
        r"\b(pickle|joblib|shelve|marshal|dill)\b|(?<!safetensors\.)torch\.load\((?!.*weights_only=True)"
    )
    found = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if forbidden.search(line.split("#")[0]) and not line.lstrip().startswith('"')
    ]
    assert found == []


def test_every_module_says_first_what_it_owns() -> None:
    silent = [
        name for package in PACKAGES for name, tree in modules(package) if tree.body and not ast.get_docstring(tree)
    ]
    assert silent == []


def test_no_module_is_called_after_nothing() -> None:
    names = {path.stem for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert names & {"utils", "util", "helper", "helpers", "manager", "common", "base", "misc"} == set()
