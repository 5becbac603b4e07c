"""The bibliography, and what has to be cited for what."""

import ast
import re
import tomllib
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import maury
from builders.catalogues import write_catalogue
from builders.training_survey import write_survey
from maury.cli.app import app
from maury.errors import ConfigError, UnknownName
from maury.labels import references as bibliography
from maury.labels.references import entries, parse, plain
from maury.methods.registry import METHODS, method_class
from maury.model.citations import keys_of_model
from maury.model.directory import Model
from maury.model.networks.published import PRESETS
from maury.report.publish import citing
from maury.spectra.preparation import Preparation
from maury.survey import archives as surveys

PACKAGE = Path(maury.__file__).parent
ENTRY = "@article{key,\n  author = {A},\n  year = {2000},\n}\n"


def keys(what=None):
    return [citation.entry.key for citation in citing.cite(what)]


def test_every_entry_is_whole():
    assert len(entries()) > 60
    for key, entry in entries().items():
        assert {"author", "year", "title", "url", "note"} <= set(entry.fields), key
        assert re.fullmatch(r"\d{4}", entry.fields["year"]), key
        assert entry.kind in ("article", "book", "techreport", "inproceedings", "software", "misc")
        if re.match(r"\d{4}", key):
            assert key.startswith(entry.fields["year"]), key
        if entry.kind == "article":
            assert {"journal"} <= set(entry.fields), key


def test_every_entry_is_bibtex_that_latex_can_set():
    for entry in entries().values():
        text = entry.to_bibtex()
        values = re.findall(r"^  \w+ = \{(.*)\},$", text, re.MULTILINE)
        assert len(values) == text.count("\n") - 2
        for name, value in entry.fields.items():
            if name not in ("url", "note", "doi", "keywords"):
                assert not re.search(r"(?<!\\)[&%#_]", value), (entry.key, value)
            assert bibliography.balanced(value)
        assert "keywords" not in text
        assert "note" not in text


def test_what_is_written_is_read_again():
    for entry in entries().values():
        (again,) = parse(entry.to_bibtex())
        assert (again.kind, again.key) == (entry.kind, entry.key)
        assert again.fields.items() <= entry.fields.items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "line 1"),
        ("@article{key,\n  author = {A}\n}\n", "line 2"),
        ("@article{key,\n  author = {A},\n", "not closed"),
        ("@article{key,\n  author = {{A},\n}\n", "line 2"),
        ("@article{key,\n  author = {A}}{},\n}\n", "line 2"),
        ("@article{key,\n  year = {1},\n  year = {2},\n}\n", "line 3"),
        (ENTRY + ENTRY, "more than one entry has the key key"),
    ],
)
def test_what_is_no_bibliography_is_one_clear_error(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    with suppress(ConfigError):
        parse(text)
    assert isinstance(plain(text), str)


def test_latex_becomes_text():
    assert plain(r"M{\'e}sz{\'a}ros, S.") == "Mészáros, S."
    assert plain(r"Garc{\'i}a P{\'e}rez and J{\"o}nsson") == "García Pérez and Jönsson"
    assert plain(r"{A\&A}") == "A&A"


def cited_keys():
    """Every key that the code names as one."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            target = value = None
            if isinstance(node, ast.AnnAssign):
                target, value = getattr(node.target, "id", None), node.value
            elif isinstance(node, ast.Assign):
                target, value = getattr(node.targets[0], "id", None), node.value
            elif isinstance(node, ast.Dict):
                for key, item in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "bibtex_key":
                        target, value = "bibtex_key", item
            if target == "bibtex_key" and isinstance(value, ast.Constant):
                yield path.name, value.value


def test_every_key_that_the_code_cites_exists():
    found = list(cited_keys())
    assert len(found) > 15
    for name, key in found:
        assert key in entries(), f"{name} cites {key}"


def test_every_key_that_a_recipe_cites_exists():
    folder = resources.files("maury.survey.archives") / "recipes"
    recipes = [path for path in folder.iterdir() if path.name.endswith(".toml")]
    assert recipes
    for path in recipes:
        cited = tomllib.loads(path.read_text("utf-8")).get("citation", [])
        assert cited, path.name
        for key in cited:
            assert key in entries(), f"{path.name} cites {key}"


@pytest.mark.parametrize("name", [*METHODS, *PRESETS])
def test_every_method_and_preset_can_be_cited(name):
    key = method_class(name).bibtex_key if name in METHODS else PRESETS[name].bibtex_key
    assert key in keys(name)
    assert "maury" in keys(name)


def test_maury_is_cited_as_the_version_that_it_is():
    assert entries()["maury"].fields["version"] == maury.__version__
    assert keys()[0] == "maury"
    assert "2020Natur.585..357H" in keys()
    assert len(keys()) == len(set(keys()))


def test_gaufre_is_cited_for_the_proceedings_in_which_it_appeared():
    (citation,) = [c for c in citing.cite("gaufre") if "gaufre" in c.reason]
    assert citation.entry.fields["booktitle"] == "European Physical Journal Web of Conferences"


def test_recipes_are_cited():
    for name in surveys.names():
        assert set(surveys.load(name).citation) <= set(keys(name))


def test_names_that_are_nothing_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'cannon'"):
        citing.cite("canon")
    with pytest.raises(UnknownName):
        bibliography.select(["1900nothing"])


def test_a_model_and_its_survey_are_cited(tmp_path, tiny_model):
    model = Model.open(tiny_model)
    found = keys(model)
    assert "2020A&A...644A.168G" in found
    assert "2019arXiv191201703P" in found, "torch computed its networks"
    # The survey is simulated: its theory and observing model are cited.
    assert {"2019ApJ...879...69T", "2020AJ....160...82S"} <= set(found)
    assert set(keys_of_model(model)) <= set(found)
    assert keys(tiny_model) == keys(str(tiny_model)) == found


def test_a_survey_that_names_what_to_cite_is_believed(tmp_path):
    key = "2014AJ....147..116H"
    survey = write_survey(tmp_path / "s.zarr", n=6)
    assert key not in keys(survey)
    used = list(citing._survey_uses({"spectra": {"citation": [key, "no key"]}}, simulated=False))
    assert used == [(key, "the survey")]


def test_a_catalogue_cites_what_its_model_cites(tmp_path):
    model = {"preset": "starnet", "members": 3, "cites": ["2014AJ....147..116H", "unheard of"]}
    catalogue = write_catalogue(tmp_path / "c.parquet", 5, model=model)
    found = keys(tmp_path / "c.parquet")
    assert found == keys(catalogue)
    assert {"2018MNRAS.475.2978F", "2014AJ....147..116H", "2019arXiv191201703P"} <= set(found)
    assert "2019ApJ...879...69T" in found, "the spectra are simulated"


def test_command(tmp_path):
    done = CliRunner().invoke(app, ["cite", "cannon"])
    assert done.exit_code == 0
    found = [line[len("@article{") : -1] for line in done.output.splitlines() if line[:2] == "@a"]
    assert "2015ApJ...808...16N" in found
    text = "\n".join(line for line in done.output.splitlines() if not line.startswith("%")) + "\n"
    assert {entry.key for entry in parse(text)} == set(keys("cannon"))


def test_a_survey_in_a_folder_is_cited(tmp_path):
    survey = write_survey(tmp_path / "s.zarr", n=6)
    assert keys(tmp_path / "s.zarr") == keys(survey)
    assert "2019ApJ...879...69T" in keys(survey), "the spectra are simulated"


def test_libraries_of_networks_are_cited_for_networks_alone(tmp_path):
    torch = "2019arXiv191201703P"
    for preset, members, wanted in (("cannon", 0, False), ("starnet", 2, True)):
        model = {"preset": preset, "members": members}
        catalogue = write_catalogue(tmp_path / f"{preset}.parquet", 5, model=model)
        assert (torch in keys(catalogue)) == wanted


def test_a_method_is_cited_without_networks_and_with_what_prepared_its_inputs(tiny_model):
    model = Model.open(tiny_model)
    observables = [
        {"observable": "absolute_magnitudes", "zero_point": True, "deredden": True},
        {"observable": "a_v"},
    ]
    prepared = Preparation.from_json({"steps": [], "observables": observables})
    other = replace(model, preparation=prepared, provenance={}, attachments={})
    method = other.with_arrays("method", {"a": np.zeros(1)}, metadata={})
    reasons = {citation.reason for citation in citing.cite(method)}
    assert any("zero point" in reason for reason in reasons)
    assert any("extinction" in reason for reason in reasons)
    assert "2019arXiv191201703P" not in keys(method)
    plain_reasons = {
        citation.reason for citation in citing.cite(replace(other, preparation=Preparation()))
    }
    assert not any("zero point" in reason for reason in plain_reasons)
