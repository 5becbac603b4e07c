"""The worked examples of the documentation run as they stand there, on simulated files."""

import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from builders import example_files
from maury.cli.app import app
from maury.prediction.catalogue import Catalogue
from maury.survey.assembly import Flow
from maury.survey.store import Survey

PAGE = Path(__file__).resolve().parents[2] / "docs" / "start" / "examples.md"
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections():
    """Title of each example: its TOML, and its commands."""
    for title, text in SECTION.findall(PAGE.read_text("utf-8")):
        found = FENCE.findall(text)
        tomls = [content for language, content in found if language == "toml"]
        commands = [
            c for language, content in found if language == "bash" for c in content.splitlines()
        ]
        yield title, tomls, [c for c in commands if c.strip()]


EXAMPLES = {title: (tomls, commands) for title, tomls, commands in sections()}


def run(folder, monkeypatch, title):
    """Write the TOML of an example and run its commands; return survey, catalogue and flow."""
    (toml,), commands = EXAMPLES[title]
    name = re.match(r"# (\S+\.toml)\n", toml)[1]
    (folder / name).write_text(toml, "utf-8")
    monkeypatch.chdir(folder)
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "maury"
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"
    survey = Survey.open(shlex.split(commands[0])[3])
    catalogue = Catalogue.read(shlex.split(commands[-1])[4])
    assert survey.simulated
    assert catalogue.simulated
    return survey, catalogue, Flow.of_survey(survey)


def test_every_example_is_one_toml_and_three_commands() -> None:
    assert len(EXAMPLES) == 3
    for title, (tomls, commands) in EXAMPLES.items():
        assert len(tomls) == 1, title
        assert tomllib.loads(tomls[0])
        assert len(commands) == 3, title
        assert [c.split()[1] for c in commands] == ["build", "train", "predict"]


def flow_of(flow):
    return {(step.of, step.step): (step.n_in, step.n_out) for step in flow}


@pytest.mark.slow
def test_rave_with_apogee(tmp_path, monkeypatch) -> None:
    example_files.write_rave_apogee(tmp_path)
    survey, catalogue, flow = run(tmp_path, monkeypatch, "RAVE spectra with APOGEE labels")
    steps = flow_of(flow)
    assert steps["spectra", "in-sparv"] == (70, 68)
    assert steps["apogee-dr17", "star-bad"] == (54, 49)
    assert len(survey) == len(catalogue) == 68
    assert 40 < np.isfinite(survey.column("teff")).sum() < 60
    assert survey.resolving_power == 7500
    assert np.unique(survey.star_id).size < len(survey)
    # Photometry found its way over Gaia, by positions of three epochs and by identifiers.
    for name in ("parallax", "phot_g_mean_mag", "ks_m", "w1mpro", "a_v"):
        assert np.isfinite(survey.column(name)).sum() > 60, name


@pytest.mark.slow
def test_gaia_rvs_with_apogee(tmp_path, monkeypatch) -> None:
    example_files.write_rvs_apogee(tmp_path)
    survey, catalogue, flow = run(tmp_path, monkeypatch, "Gaia RVS spectra with APOGEE labels")
    assert len(survey) == len(catalogue) == 130
    assert (survey.medium, survey.resolving_power, survey.n_pixel) == ("vacuum", 11500, 2401)
    assert survey.provenance["conversions"]["apogee-dr17"]["to"] is None
    assert flow_of(flow)["spectra in apogee-dr17", "matched"] == (99, 99)


@pytest.mark.slow
def test_4most_with_gaia_eso(tmp_path, monkeypatch) -> None:
    example_files.write_4most_gaia_eso(tmp_path)
    title = "A high-resolution arm in 4MOST's format with Gaia-ESO labels"
    survey, catalogue, flow = run(tmp_path, monkeypatch, title)
    assert len(survey) == len(catalogue) == 130
    assert (survey.medium, survey.n_pixel) == ("vacuum", 2501)
    assert set(survey.label_names) == {"teff", "logg", "fe_h"}
    assert flow_of(flow)["spectra in gaia-eso", "matched"] == (100, 100)
