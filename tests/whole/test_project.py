"""What surrounds the package agrees with it: citation, archives, conda recipe, container, types."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import maury

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONDA = {"dask": "dask-core", "lazy_loader": "lazy-loader", "matplotlib": "matplotlib-base"}
CONDA |= {"torch": "pytorch"}
"""Names on conda-forge of what is called otherwise on PyPI."""


def read(name):
    text = (ROOT / name).read_text("utf-8")
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


def test_citation_and_archives_say_the_same() -> None:
    cited, zenodo, meta = (read(n) for n in ("CITATION.cff", ".zenodo.json", "codemeta.json"))
    assert cited["title"] == zenodo["title"] == meta["name"]
    assert cited["version"] == zenodo["version"] == meta["version"] == maury.__version__
    names = [one["name"] for one in cited["authors"]]
    assert names == [one["name"] for one in zenodo["creators"]]
    assert names == [one["name"] for one in meta["author"]]
    assert names == [one["name"] for one in PROJECT["authors"]]
    assert cited["keywords"] == zenodo["keywords"] == meta["keywords"]
    assert cited["license"] == zenodo["license"] == PROJECT["license"]
    assert meta["license"] == f"https://spdx.org/licenses/{cited['license']}"
    assert zenodo["description"] == meta["description"] == PROJECT["description"]
    (paper,) = cited["references"]
    assert [one["identifier"] for one in zenodo["related_identifiers"]] == [paper["doi"]]
    assert meta["referencePublication"]["@id"] == f"https://doi.org/{paper['doi']}"
    assert meta["referencePublication"]["name"] == paper["title"]


def test_the_conda_recipe_asks_for_what_the_project_asks_for() -> None:
    recipe = read("packaging/conda/recipe.yaml")
    assert recipe["context"]["version"] == maury.__version__
    assert PROJECT["requires-python"] == f">={recipe['context']['python_min']}"
    wanted = {"python": ">=${{ python_min }}"}
    for text in PROJECT["dependencies"]:
        name, bound = re.fullmatch(r"([\w.-]+)(.*)", text).groups()
        wanted[CONDA.get(name, name)] = bound
    assert dict(one.split(" ", 1) for one in recipe["requirements"]["run"]) == wanted
    (entry,) = recipe["build"]["python"]["entry_points"]
    assert PROJECT["scripts"] == {"maury": entry.partition(" = ")[2]}
    assert (ROOT / "packaging" / "conda" / recipe["source"]["path"]).resolve() == ROOT


def test_the_container_is_made_of_what_is_there() -> None:
    text = (ROOT / "packaging" / "Containerfile").read_text("utf-8")
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    (extras,) = re.findall(r"'/src\[(.+)\]'", text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)


def test_issue_templates_can_be_filled_in() -> None:
    forms = [path.name for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")]
    assert sorted(forms) == ["config.yml", "fault.yml", "wish.yml"]
    for name in ("fault.yml", "wish.yml"):
        form = read(f".github/ISSUE_TEMPLATE/{name}")
        assert form["name"]
        assert form["description"]
        ids = [one["id"] for one in form["body"]]
        assert len(ids) == len(set(ids))
        assert all(one["attributes"]["label"] for one in form["body"])
        assert any(one.get("validations", {}).get("required") for one in form["body"])


GOOD = """
from pathlib import Path
import maury
from maury.labels import Label

def label_stars(spectra: Path, out: Path) -> maury.Catalogue:
    survey: maury.Survey = maury.simulate_survey(spectra, n_star=20)
    model: maury.Model = maury.train(survey, out / "model", members=2)
    names: tuple[str, ...] = tuple(label.name for label in maury.LABELS)
    first: Label = maury.LABELS[0]
    print(names, first.unit)
    return maury.predict(model, survey, out / "labels.fits")
"""
WRONG = """
import maury
model: int = maury.train("survey.zarr", "a.model")
maury.predict(model, "survey.zarr")
maury.nothing_of_the_kind
"""


def mypy(folder: Path, program: str) -> str:
    """What mypy says of a program that uses maury as a library, as an installed package."""
    (folder / "program.py").write_text(program, "utf-8")
    # Found where Python finds it, and not as sources of this project: then py.typed counts.
    known = {**os.environ, "MYPYPATH": ""}
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "program.py"]
    done = subprocess.run(
        command, cwd=folder, env=known, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_types_reach_who_uses_maury(tmp_path) -> None:
    pytest.importorskip("mypy")
    assert mypy(tmp_path, GOOD).startswith("Success")
    said = mypy(tmp_path, WRONG)
    assert 'expression has type "Model", variable has type "int"' in said
    assert 'Missing positional argument "out" in call to "predict"' in said
    assert 'Module has no attribute "nothing_of_the_kind"' in said
