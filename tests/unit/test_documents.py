"""The documents say what the program does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from typer.main import get_command

from inference.series import Criteria
from node.cli import app
from node.config import DestinationSection, ModelSection, PeerSection, RemoteSection, Settings

ROOT = Path(__file__).parents[2]


def test_every_key_of_the_configuration_is_explained() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    sections = [field.annotation for field in Settings.model_fields.values()]
    keys = {key for section in sections for key in getattr(section, "model_fields", {})}
    keys |= {
        key
        for section in (ModelSection, PeerSection, RemoteSection, DestinationSection)
        for key in section.model_fields
    }
    keys |= {field.name for field in dataclasses.fields(Criteria)}
    keys -= {
        "ups",
        "destinations",
        "availability",
        "move_destinations",
    }  # tables of their own, explained under their heading
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []
    assert "[[flag.ups]]" in text
    assert "[[deliver.destinations]]" in text
    assert "[[deliver.availability]]" in text
    assert "[[query.move_destinations]]" in text


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    parts_of_serve = {"receive", "schedule", "work"}
    commands = set(get_command(app).commands) - parts_of_serve  # type: ignore[attr-defined]
    assert [name for name in sorted(commands) if not re.search(rf"\b{name}\b", text)] == []


def test_every_document_that_is_linked_is_there() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links {link}"
