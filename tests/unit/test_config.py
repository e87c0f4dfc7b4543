"""node.toml: what is allowed, and what a mistake is answered with."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from node.config import Settings, load
from node.errors import ConfigError

ROOT = Path(__file__).parents[2]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_file_in_the_repository_shows_the_defaults() -> None:
    settings = load(ROOT / "node.toml")
    defaults = Settings()
    assert settings.model_copy(update={"node": defaults.node}) == defaults


def test_the_file_in_the_repository_names_every_key_that_has_a_single_default() -> None:
    shown = tomllib.loads((ROOT / "node.toml").read_text(encoding="utf-8"))
    optional = {("read", "workers"), ("read", "threads"), ("read", "batch"), ("read", "models"), ("flag", "ups")}
    optional |= {("flag", "retrieve_ae_title")}
    optional |= {("deliver", "destinations"), ("deliver", "availability"), ("query", "move_destinations")}
    for name, field in Settings.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {})  # [select] has docs/configuration.md instead
        assert {(name, key) for key in keys} - optional <= {(name, key) for key in shown.get(name, {})}, name


def test_relative_paths_count_from_the_file(tmp_path: Path) -> None:
    assert load(written(tmp_path, "[node]\ndata = 'd'")).node.data == (tmp_path / "d").resolve()


def test_a_site_names_the_directory_of_its_own_weights(tmp_path: Path) -> None:
    text = "[read.models.ours]\nweights = 'weights/ours'\n[read.models.demo]\nweights = 'demo-radnet'"
    models = load(written(tmp_path, text)).read.models
    assert models["ours"].weights == str(tmp_path / "weights/ours")
    assert models["demo"].weights == "demo-radnet"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[node]\nprot = 104", "node.prot: unknown key; allowed: address, ae_title, data, port"),
        ("[nod]", "nod: unknown key; allowed: archives, assemble"),
        ("[node]\nport = 70000", "node.port: Input should be less than or equal to 65535, not 70000"),
        ("[node]\nae_title = 'A TITLE MUCH TOO LONG'", "node.ae_title: an AE title has 1 to 16"),
        ("[read]\ndevice = 'tpu'", "read.device"),
        ("[[peers]]\nae_title = 'CT1'\naddresses = ['nowhere']", "peers.0.addresses"),
        ("[assemble]\nquiet_time = 0", "assemble.quiet_time"),
        ("[[deliver.destinations]]\nname='archive'\nae_title='A'\naddress='h'\nport=104", "the node's own archive"),
        ("[select]\nmin_slice = 3", "select: unknown key 'min_slice'; allowed: accepted_kernels"),
        ("[select]\nmin_slices = 'many'", "select.min_slices"),
        ("port = = 3", "not TOML"),
    ],
)
def test_a_mistake_is_answered_with_file_key_and_what_is_allowed(tmp_path: Path, text: str, named: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        load(tmp_path / "nowhere.toml")
