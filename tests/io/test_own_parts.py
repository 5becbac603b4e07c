"""Networks, methods and readers of others: by installed packages, and by modules that are named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maury.errors import ConfigError
from maury.io.own_parts import VARIABLE, Parts, import_named, name_modules

MODULE = """
from typing import ClassVar

from torch import nn

from maury.model.networks.base import NetworkConfig, linear, preset


class Line(nn.Module):
    def __init__(self, n_pixel, n_label):
        super().__init__()
        self.layer = linear(n_pixel, n_label)

    def forward(self, flux, observables):
        return self.layer(flux)


@preset
class LineConfig(NetworkConfig):
    name: ClassVar[str] = "line"
    paper: ClassVar[str] = "none"
    bibtex_key: ClassVar[str] = "none"
    training_defaults: ClassVar[dict] = {"epochs": 1}
    photometry: bool = False

    def assemble(self, n_pixel, n_observable, n_label):
        return Line(n_pixel, n_label)
"""
INFO = "Metadata-Version: 2.1\nName: line-network\nVersion: 1.0\n"
LOOK = """
import sys
from maury.model.networks.base import network_config_of
print("own_line" in sys.modules, type(network_config_of({"name": "line"})).__name__)
"""


def install(folder: Path) -> None:
    (folder / "own_line.py").write_text(MODULE)
    info = folder / "line_network-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(INFO)
    (info / "entry_points.txt").write_text("[maury.networks]\nline = own_line:LineConfig\n")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_a_network_of_an_installed_package_is_loaded_when_it_is_asked_for(tmp_path):
    install(tmp_path)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    assert run("-c", LOOK, PYTHONPATH=path).stdout == "False LineConfig\n"


@pytest.mark.slow
def test_a_network_of_a_named_module_is_known_to_other_processes_and_no_other_is(tmp_path):
    (tmp_path / "own_line.py").write_text(MODULE)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    named = {"PYTHONPATH": path, VARIABLE: "own_line"}
    assert run("-c", LOOK, **named).stdout == "False LineConfig\n"
    # The module lies on the path, but nobody named it: a model file must not have it imported.
    alone = run("-c", LOOK, PYTHONPATH=path)
    assert "unknown preset 'line'" in alone.stderr
    assert alone.returncode == 1


def test_a_module_that_cannot_be_imported_is_one_error(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(ConfigError, match="--import no_such_module: the module cannot be"):
        name_modules(["no_such_module"])
    with pytest.raises(ConfigError, match="no_such_module"):
        import_named()


def test_parts_are_a_mapping():
    parts = Parts("maury.nothing", {"a": 1})
    parts["b"] = 2
    assert json.dumps(dict(parts)) == '{"a": 1, "b": 2}'
    assert ("b" in parts, "c" in parts, len(parts)) == (True, False, 2)
    del parts["b"]
    with pytest.raises(KeyError):
        parts["b"]
