"""Builds of labelled surveys from simulated spectra and small tables, every row on record."""

import csv
import logging
import textwrap
from itertools import pairwise

import numpy as np
import pytest
from astropy.table import Table

from builders.training_survey import write_survey
from maury.errors import (
    ColumnError,
    ConfigError,
    InputFileError,
    OutputExists,
    SurveyFileError,
    TrainingError,
    UnknownName,
)
from maury.labels.columns import Column
from maury.survey.assembly import Flow, build_survey, load_recipe
from maury.survey.store import Survey, SurveyWriter

RECIPE = """
name = "{name}"
title = "A made-up survey"
kind = "catalogue"
description = "Made up for tests"
citation = ["2020A&A...644A.168G"]
documentation = "https://example.org/{name}"
[id]
column = "NAME"
[id.other]
gaia_dr3 = "GAIA"
[position]
ra = "RA"
dec = "DEC"
epoch = 2016.0
[columns]
parallax = {{ name = "PLX", unit = "arcsec" }}
teff = "TEFF"
teff_error = "E_TEFF"
logg = "LOGG"
logg_error = "E_LOGG"
fe_h = "FE_H"
mg_fe = "MG_FE"
mg_fe_error = "E_MG_FE"
[abundances]
solar_scale = "{scale}"
alpha = ["mg"]
[[cut]]
name = "flag"
column = "FLAG"
bits_clear = [0]
why = "bad fit"
source = "https://example.org/flags"
[[cut]]
name = "bright"
column = "SNR"
min = 50
default = false
why = "low S/N"
source = "https://example.org/snr"
"""


def simulated_spectra(folder, n=40, **changes):
    """A store of `n` simulated spectra of n / 2 stars, with positions, without labels."""
    rng = np.random.default_rng(3)
    star = np.arange(n) // 2
    ra, dec = rng.uniform(10, 20, n // 2)[star], rng.uniform(-60, -50, n // 2)[star]
    place = {"ra": ra, "dec": dec, "teff": np.full(n, np.nan), "logg": np.full(n, np.nan)}
    return write_survey(folder / "spectra.zarr", n=n, **{**place, **changes})


def catalogue(folder, name, stars, *, scale="asplund2009", seed=0, offset=0.0, **changes):
    """A table of some stars of `simulated_spectra`, and its recipe; `changes` replace columns."""
    rng = np.random.default_rng(seed)
    survey = Survey.open(folder / "spectra.zarr")
    first = 2 * np.asarray(stars)
    n = first.size
    truth = np.random.default_rng(99).random((3, len(survey)))[:, first]
    columns = {
        "NAME": survey.star_id[first],
        "GAIA": 10_000 + np.asarray(stars, dtype=np.int64),
        "RA": survey.column("ra")[first],
        "DEC": survey.column("dec")[first],
        "PLX": 1e-3 * np.ones(n),
        "TEFF": 4000 + 3000 * truth[0] + offset + rng.normal(0, 10, n),
        "E_TEFF": np.full(n, 10.0),
        "LOGG": 1 + 3 * truth[1],
        "E_LOGG": np.full(n, 0.05),
        "FE_H": truth[2] - 1,
        "MG_FE": 0.3 * truth[0],
        "E_MG_FE": np.full(n, 0.02),
        "FLAG": np.zeros(n, dtype=np.int32),
        "SNR": np.full(n, 100.0),
    }
    columns |= changes
    Table(columns).write(folder / f"{name}.fits", overwrite=True)
    (folder / f"{name}.toml").write_text(RECIPE.format(name=name, scale=scale), "utf-8")


def write_recipe(folder, text):
    path = folder / "build.toml"
    path.write_text(textwrap.dedent(text), "utf-8")
    return path


ONE = """
    title = "one"
    [spectra]
    store = "spectra.zarr"
    [[catalogue]]
    recipe = "ref.toml"
    file = "ref.fits"
    match = { by = "id", spectra = "star_id" }
"""


def counts(flow, of):
    return {step.step: (step.n_in, step.n_out) for step in flow.of(of)}


def check_accounts(flow):
    """What comes out of a step goes into the next one that counts the same."""
    for what in {step.of for step in flow}:
        steps = flow.of(what)
        for before, after in pairwise(steps):
            assert before.n_out == after.n_in, f"{what}: {before.step} to {after.step}"


def test_labels_come_from_the_catalogue_and_every_row_is_on_record(tmp_path) -> None:
    simulated_spectra(tmp_path)
    flags = np.zeros(15, dtype=np.int32)
    flags[:3] = 1
    catalogue(tmp_path, "ref", range(15), FLAG=flags)
    built = build_survey(write_recipe(tmp_path, ONE), tmp_path / "out.zarr")
    check_accounts(built.flow)
    assert counts(built.flow, "ref") == {"read": (15, 15), "flag": (15, 12)}
    assert counts(built.flow, "spectra in ref") == {"none-found": (40, 24), "matched": (24, 24)}
    assert counts(built.flow, "spectra")["labelled"] == (40, 24)
    survey = built.survey
    assert survey.simulated
    assert len(survey) == 24
    assert set(survey.label_names) == {"teff", "logg", "fe_h", "mg_fe"}
    assert set(survey.column("reference_survey")) == {"ref"}
    table = Table.read(tmp_path / "ref.fits")
    row = {str(name): k for k, name in enumerate(table["NAME"])}
    order = [row[name] for name in survey.star_id]
    np.testing.assert_array_equal(survey.column("teff"), table["TEFF"][order])
    np.testing.assert_array_equal(survey.column("mg_fe_error"), table["E_MG_FE"][order])
    assert np.isnan(survey.column("fe_h_error")).all()
    source = Survey.open(tmp_path / "spectra.zarr")
    at = [source.id.tolist().index(name) for name in survey.id]
    np.testing.assert_array_equal(
        survey.rows(np.arange(24)).spectra.flux, source.rows(at).spectra.flux
    )


def test_the_flow_table_is_in_the_store_and_beside_it(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(10))
    built = build_survey(write_recipe(tmp_path, ONE), tmp_path / "out.zarr")
    assert list(Flow.of_survey(built.survey)) == list(built.flow)
    table = Table.read(tmp_path / "out.flow.ecsv")
    assert table.meta["title"] == "one"
    assert [tuple(map(str, row)) for row in table.filled("")] == built.flow.rows()[1:]
    cut = next(step for step in built.flow if step.step == "flag")
    assert cut.why.startswith("bad fit: FLAG without bit 0")
    assert cut.source == "https://example.org/flags"
    assert built.survey.provenance["citation"] == ["2020A&A...644A.168G"]


def test_all_keeps_unmatched_spectra_as_observed(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(10))
    built = build_survey(write_recipe(tmp_path, 'keep = "all"\n' + ONE), tmp_path / "out.zarr")
    check_accounts(built.flow)
    assert len(built.survey) == 40
    labelled = np.isfinite(built.survey.column("teff"))
    assert labelled.sum() == 20
    assert set(built.survey.column("reference_survey")[~labelled]) == {""}


def test_cuts_can_be_left_out_added_and_made(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(20), FLAG=np.ones(20, int), SNR=np.linspace(0, 95, 20))
    text = ONE.replace(
        "store =",
        'cut = [{ name = "some", column = "id", none_of = ["s0", "s1"] }]\n    store =',
    )
    text += """
    without = ["flag"]
    also = ["bright"]
    [[catalogue.cut]]
    name = "cool"
    column = "TEFF"
    max = 6000.0
    why = "hot stars have few lines"
    """
    built = build_survey(write_recipe(tmp_path, text), tmp_path / "out.zarr")
    check_accounts(built.flow)
    steps = counts(built.flow, "ref")
    assert list(steps) == ["read", "bright", "cool"]
    assert steps["bright"] == (20, 10)
    assert built.survey.column("teff").max() <= 6000
    assert counts(built.flow, "spectra")["some"] == (40, 38)
    wrong = text.replace('["flag"]', '["flagg"]')
    with pytest.raises(ConfigError, match="did you mean 'flag'"):
        build_survey(write_recipe(tmp_path, wrong), tmp_path / "no.zarr")


def test_positions_match_and_ambiguous_ones_are_dropped_aloud(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", [*range(10), 3])
    table = Table.read(tmp_path / "ref.fits")
    table["NAME"] = [f"other{k}" for k in range(11)]
    table["DEC"][10] += 0.5 / 3600
    table.write(tmp_path / "ref.fits", overwrite=True)
    by_position = ONE.replace('{ by = "id", spectra = "star_id" }', "{ radius = 1.5 }")
    built = build_survey(write_recipe(tmp_path, by_position), tmp_path / "out.zarr")
    check_accounts(built.flow)
    assert counts(built.flow, "spectra in ref") == {
        "none-found": (40, 20),
        "dropped": (20, 18),
        "matched": (18, 18),
    }
    assert "star3" not in built.survey.star_id
    nearest = by_position.replace("1.5 }", '1.5, ambiguous = "nearest" }')
    built = build_survey(write_recipe(tmp_path, nearest), tmp_path / "near.zarr")
    assert "star3" in built.survey.star_id


def test_units_of_positions_are_those_of_the_file(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(10))
    by_position = ONE.replace('{ by = "id", spectra = "star_id" }', "{ radius = 1.5 }")
    plain = build_survey(write_recipe(tmp_path, by_position), tmp_path / "plain.zarr")
    table = Table.read(tmp_path / "ref.fits")
    for name in ("RA", "DEC"):
        table[name] = np.radians(np.asarray(table[name]))
        table[name].unit = "rad"
    table.write(tmp_path / "ref.fits", overwrite=True)
    built = build_survey(write_recipe(tmp_path, by_position), tmp_path / "out.zarr")
    assert counts(built.flow, "spectra in ref") == counts(plain.flow, "spectra in ref")
    assert built.survey.id.tolist() == plain.survey.id.tolist()


def test_a_catalogue_that_matches_nothing_is_said(tmp_path, caplog) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(3), NAME=np.array(["x", "y", "z"]))
    with pytest.raises(InputFileError, match="no spectrum is left"):
        build_survey(write_recipe(tmp_path, ONE), tmp_path / "out.zarr")
    assert "no spectrum is matched to ref (id: star_id = id)" in caplog.text


def test_identifiers_that_an_earlier_catalogue_knows_are_named_with_it(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "log", range(20))
    catalogue(tmp_path, "ref", range(20))
    later = ONE[ONE.index("    [[catalogue]]") :].replace('"star_id"', '"GAIA"')
    text = ONE.replace("ref.", "log.") + later
    with pytest.raises(ConfigError, match=r'via = "log", spectra = "GAIA"'):
        build_survey(write_recipe(tmp_path, text), tmp_path / "out.zarr")


@pytest.mark.parametrize("role", ["columns", "reference"])
def test_a_recommended_cut_on_a_column_that_an_excerpt_lacks(tmp_path, caplog, role) -> None:
    simulated_spectra(tmp_path, teff=np.linspace(4000, 6000, 40), parallax=np.full(40, np.nan))
    catalogue(tmp_path, "ref", range(20))
    table = Table.read(tmp_path / "ref.fits")
    table.remove_column("FLAG")
    table.write(tmp_path / "ref.fits", overwrite=True)
    text = ONE.replace("match =", f'role = "{role}"\n    match =')
    if role == "reference":
        # Labels that nobody checked are not let in; the remedy is named.
        with pytest.raises(ColumnError, match=r'without = \["flag"\] in the \[\[catalogue\]\]'):
            build_survey(write_recipe(tmp_path, text), tmp_path / "out.zarr")
        return
    built = build_survey(write_recipe(tmp_path, text), tmp_path / "out.zarr")
    step = next(one for one in built.flow if one.step == "flag")
    assert (step.n_in, step.n_out, step.why) == (20, 20, "not applied: ref.fits has no FLAG")
    assert caplog.text.count("'flag' is not applied: ref.fits has no FLAG") == 1


@pytest.mark.parametrize("suffix", [".dat", ".txt"])
def test_a_catalogue_may_be_a_text_of_columns(tmp_path, suffix) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(20))
    form = "ascii.commented_header" if suffix == ".dat" else "ascii.basic"
    Table.read(tmp_path / "ref.fits").write(tmp_path / f"ref{suffix}", format=form)
    built = build_survey(write_recipe(tmp_path, ONE), tmp_path / "out.zarr")
    other = ONE.replace("ref.fits", f"ref{suffix}")
    text = build_survey(write_recipe(tmp_path, other), tmp_path / "text.zarr")
    np.testing.assert_array_equal(text.survey.id, built.survey.id)
    np.testing.assert_allclose(text.survey.column("teff"), built.survey.column("teff"))


def test_of_rows_with_one_identifier_the_preferred_is_taken(tmp_path) -> None:
    simulated_spectra(tmp_path)
    snr = np.array([90.0, 60.0, np.nan, 120.0])
    catalogue(tmp_path, "ref", [0, 1, 0, 0], SNR=snr, TEFF=np.array([5000.0, 5100, 5200, 5300]))
    twice = build_survey(write_recipe(tmp_path, ONE), tmp_path / "twice.zarr")
    assert counts(twice.flow, "spectra in ref")["dropped"] == (4, 2)
    text = ONE.replace('"star_id" }', '"star_id", prefer = "SNR" }')
    built = build_survey(write_recipe(tmp_path, text), tmp_path / "out.zarr")
    assert counts(built.flow, "ref")["one-row-a-star"] == (4, 2)
    assert built.survey.column("teff").tolist() == [5300, 5300, 5100, 5100]


def test_spectra_that_share_a_catalogue_row_are_one_star(tmp_path) -> None:
    """Or a split could put them on both sides."""
    simulated_spectra(tmp_path, star_id=[f"alone{k}" for k in range(40)])
    catalogue(tmp_path, "ref", range(20))
    text = ONE.replace('{ by = "id", spectra = "star_id" }', "{ radius = 1.0 }")
    built = build_survey(write_recipe(tmp_path, text), tmp_path / "out.zarr")
    assert counts(built.flow, "stars") == {"same-catalogue-row": (40, 20)}
    star = built.survey.star_id
    assert (star[::2] == star[1::2]).all()
    assert np.unique(star).size == 20


def test_columns_are_taken_from_a_catalogue_via_another(tmp_path) -> None:
    simulated_spectra(tmp_path, parallax=np.full(40, np.nan))
    catalogue(tmp_path, "bridge", range(20))
    catalogue(tmp_path, "ref", range(20), NAME=[f"x{k}" for k in range(20)])
    text = """
    [spectra]
    store = "spectra.zarr"
    [[catalogue]]
    recipe = "bridge.toml"
    file = "bridge.fits"
    role = "columns"
    take = ["parallax"]
    match = { by = "id", spectra = "star_id" }
    [[catalogue]]
    recipe = "ref.toml"
    file = "ref.fits"
    match = { by = "id", via = "bridge", spectra = "gaia_dr3", catalogue = "gaia_dr3" }
    """
    built = build_survey(write_recipe(tmp_path, text), tmp_path / "out.zarr")
    assert len(built.survey) == 40
    np.testing.assert_allclose(built.survey.column("parallax"), 1.0)
    twice = text + '\n    take = ["parallax"]\n'
    with pytest.raises(ConfigError, match="'parallax' is to be taken from bridge and from ref"):
        build_survey(write_recipe(tmp_path, twice), tmp_path / "no.zarr")


def test_conventions_are_converted_to_one_scale(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(20), scale="grevesse2007")
    text = ONE + '\n    [labels]\n    solar_scale = "asplund2021"\n    names = ["teff", "mg_h"]\n'
    text += (
        '\n    [[label]]\n    name = "mg_h"\n    symbol = "[Mg/H]"\n    unit = "dex"\n'
        '    description = "Magnesium"\n    range = [-1, 1]\n'
    )
    built = build_survey(write_recipe(tmp_path, text), tmp_path / "out.zarr")
    table = Table.read(tmp_path / "ref.fits")
    expected = np.repeat(table["MG_FE"] + table["FE_H"] + 7.53 - 7.55, 2)
    np.testing.assert_allclose(built.survey.column("mg_h"), expected, atol=1e-12)
    assert built.survey.provenance["citation"] == [
        "2020A&A...644A.168G",
        "2021A&A...653A.141A",
        "2007SSRv..130..105G",
    ]
    note = built.survey.provenance["conversions"]["ref"]
    assert note["how"]["mg_h"] == "fe_h + mg_fe"
    assert (note["from"], note["to"]) == ("grevesse2007", "asplund2021")


TWO = """
    [spectra]
    store = "spectra.zarr"
    [[catalogue]]
    recipe = "ref.toml"
    file = "ref.fits"
    match = { by = "id", spectra = "star_id" }
    [[catalogue]]
    recipe = "other.toml"
    file = "other.fits"
    match = { by = "id", spectra = "star_id" }
"""


def test_a_second_reference_is_put_on_the_scale_of_the_first(tmp_path) -> None:
    simulated_spectra(tmp_path, n=200)
    catalogue(tmp_path, "ref", range(60))
    catalogue(tmp_path, "other", range(20, 100), seed=1, offset=150.0)
    built = build_survey(write_recipe(tmp_path, TWO), tmp_path / "out.zarr")
    check_accounts(built.flow)
    offset = built.offsets["other"]["teff"]
    assert offset.n_star == 40
    assert abs(offset.coefficients[0] - 150) < 4 * offset.errors[0]
    survey = built.survey
    names, n = np.unique(survey.column("reference_survey"), return_counts=True)
    assert dict(zip(names, n, strict=True)) == {"ref": 120, "other": 80}
    second = survey.column("reference_survey") == "other"
    truth = np.random.default_rng(99).random((3, 200))[0]
    star = np.array([int(name.removeprefix("star")) for name in survey.star_id])
    bias = (survey.column("teff") - (4000 + 3000 * truth[2 * star]))[second].mean()
    assert abs(bias) < 10
    assert (survey.column("teff_error")[second] > 10).all()
    stored = survey.provenance["offsets"]["other"]
    assert stored["first"] == "ref"
    assert any("40 stars in common" in step.why for step in built.flow.of("other"))


def test_references_without_common_stars_are_refused_unless_that_is_wanted(tmp_path) -> None:
    simulated_spectra(tmp_path, n=200)
    catalogue(tmp_path, "ref", range(50))
    catalogue(tmp_path, "other", range(45, 100), seed=1)
    with pytest.raises(TrainingError, match="20 common stars"):
        build_survey(write_recipe(tmp_path, TWO), tmp_path / "no.zarr")
    apart = TWO + "\n    [offsets]\n    fit = false\n"
    built = build_survey(write_recipe(tmp_path, apart), tmp_path / "out.zarr")
    assert len(built.survey) == 200
    assert built.offsets == {}


def test_nothing_is_overwritten_and_a_bad_input_leaves_nothing_behind(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(10))
    path = write_recipe(tmp_path, ONE)
    build_survey(path, tmp_path / "out.zarr")
    with pytest.raises(OutputExists):
        build_survey(path, tmp_path / "out.zarr")
    build_survey(path, tmp_path / "out.zarr", overwrite=True)
    catalogue(tmp_path, "ref", range(10), FLAG=np.ones(10, int))
    with pytest.raises(InputFileError, match="flag: 10 to 0"):
        build_survey(path, tmp_path / "none.zarr")
    Table({"A": [1]}).write(tmp_path / "ref.fits", overwrite=True)
    with pytest.raises(ColumnError, match="none of the columns of ref"):
        build_survey(path, tmp_path / "none.zarr")
    assert not list(tmp_path.glob("none*"))


def test_mistakes_in_a_recipe_are_told_at_once(tmp_path) -> None:
    text = """
    keep = "som"
    [spectra]
    store = "a.zarr"
    ingest = "b.toml"
    [[catalogue]]
    recipe = "apogee-dr17"
    file = "allStar.fits"
    mach = { by = "id" }
    [labels]
    solar_scale = "asplund2008"
    """
    with pytest.raises(ConfigError) as caught:
        load_recipe(write_recipe(tmp_path, text))
    for part in ("keep", "one of 'store'", "did you mean 'match'", "asplund2009"):
        assert part in str(caught.value)
    later = ONE.replace('spectra = "star_id"', 'via = "late"')
    with pytest.raises(
        ConfigError, match=r"which is no \[\[catalogue\]\] above it \(above it stand: none\)"
    ):
        load_recipe(write_recipe(tmp_path, later))


def test_spectra_in_files_are_read_without_a_store(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(10))
    survey = Survey.open(tmp_path / "spectra.zarr")
    flux = survey.rows(np.arange(40)).spectra.flux
    np.savez(tmp_path / "spectra.npz", flux=flux, wave=survey.wave_aa, obs=survey.id)
    with (tmp_path / "stars.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [("obs", "star"), *zip(survey.id, survey.star_id, strict=True)]
        )
    (tmp_path / "ingest.toml").write_text(
        'simulated = true\n[spectra]\nfile = "spectra.npz"\nid = "obs"\n'
        '[wavelength]\nmedium = "air"\nvalues = "wave"\n'
        '[[table]]\nfile = "stars.csv"\nid = "obs"\n[columns]\nstar_id = "star"\n',
        "utf-8",
    )
    text = ONE.replace('store = "spectra.zarr"', 'ingest = "ingest.toml"')
    built = build_survey(write_recipe(tmp_path, text), tmp_path / "out.zarr")
    assert len(built.survey) == 20
    np.testing.assert_array_equal(built.survey.rows(np.arange(20)).spectra.flux, flux[:20])
    assert np.isfinite(built.survey.column("snr")).all()


def test_the_command_prints_the_flow_table_and_offsets(tmp_path) -> None:
    from typer.testing import CliRunner

    from maury.cli.app import app

    simulated_spectra(tmp_path, n=200)
    catalogue(tmp_path, "ref", range(60))
    catalogue(tmp_path, "other", range(20, 100), seed=1, offset=150.0)
    path = write_recipe(tmp_path, TWO)
    result = CliRunner().invoke(app, ["build", str(path), str(tmp_path / "out.zarr")])
    assert result.exit_code == 0, result.output
    for part in ("Flow of rows", "none-found", "Offsets of other against ref", "SIMULATED"):
        assert part in result.stdout


def test_spectra_that_a_required_catalogue_lacks_are_left_out(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "quality", range(12), FLAG=np.arange(12) // 8)
    catalogue(tmp_path, "ref", range(20), SNR=np.full(20, 7.0))
    quality = """
    [[catalogue]]
    recipe = "quality.toml"
    file = "quality.fits"
    role = "columns"
    require = true
    match = { by = "id", spectra = "star_id" }
    """
    built = build_survey(write_recipe(tmp_path, ONE + quality), tmp_path / "out.zarr")
    check_accounts(built.flow)
    assert counts(built.flow, "spectra")["in-quality"] == (40, 16)
    assert len(built.survey) == 16
    assert built.survey.column("snr").min() == 100.0


def test_a_build_that_was_stopped_goes_on_and_ends_the_same(tmp_path, monkeypatch) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(20))
    path = write_recipe(tmp_path, ONE)
    whole = build_survey(path, tmp_path / "whole.zarr").survey
    monkeypatch.setattr("maury.survey.assembly.build_spectra.CHUNK_STARS", 16)
    done = []

    def stop(n, total):
        done.append((n, total))
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_survey(path, tmp_path / "out.zarr", progress=stop)
    assert not (tmp_path / "out.zarr").exists()
    survey = build_survey(path, tmp_path / "out.zarr", progress=stop).survey
    assert done == [(16, 40), (32, 40), (40, 40)]
    for name in whole.column_names:
        np.testing.assert_array_equal(survey.column(name), whole.column(name))
    rows = np.arange(40)
    np.testing.assert_array_equal(survey.rows(rows).spectra.flux, whole.rows(rows).spectra.flux)


COLUMNS_ONLY = ONE.replace("match =", 'role = "columns"\n    match =')


def edit_recipe(folder, name, old, new):
    """Change the recipe of a catalogue."""
    path = folder / f"{name}.toml"
    assert old in path.read_text("utf-8")
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")


def test_a_build_without_references_keeps_the_labels_of_the_spectra(tmp_path) -> None:
    simulated_spectra(tmp_path, parallax=np.full(40, np.nan), teff=np.linspace(4000, 5000, 40))
    catalogue(tmp_path, "ref", range(10))
    built = build_survey(write_recipe(tmp_path, COLUMNS_ONLY), tmp_path / "out.zarr")
    check_accounts(built.flow)
    assert len(built.survey) == 40
    assert built.offsets == {}
    np.testing.assert_allclose(built.survey.column("teff"), np.linspace(4000, 5000, 40))
    assert np.isfinite(built.survey.column("parallax")).sum() == 20
    assert "reference_survey" not in built.survey.column_names


def test_a_build_of_which_nothing_is_left_says_where_it_went(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(10), NAME=[f"x{k}" for k in range(10)])
    text = COLUMNS_ONLY + "    require = true\n"
    with pytest.raises(InputFileError, match=r"no spectrum is left.*spectra, in-ref: 40 to 0"):
        build_survey(write_recipe(tmp_path, text), tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_texts_of_a_catalogue_are_taken_as_texts(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(10), WHO=[f" who{k}" for k in range(10)])
    edit_recipe(tmp_path, "ref", "[columns]\n", '[columns]\nreference_survey = "WHO"\n')
    built = build_survey(write_recipe(tmp_path, COLUMNS_ONLY), tmp_path / "out.zarr")
    wanted = np.repeat([f"who{k}" for k in range(10)], 2).tolist() + [""] * 20
    assert built.survey.column("reference_survey").tolist() == wanted


def test_epochs_of_positions_may_differ_from_star_to_star(tmp_path) -> None:
    simulated_spectra(tmp_path)
    epochs = np.array([2000.0, 2016.0] * 10)
    dec = Survey.open(tmp_path / "spectra.zarr").column("dec")[::2]
    moved = dec + (epochs - 2000.0) * 0.5 / 3600
    still, moving = np.zeros(20), np.full(20, 500.0)
    catalogue(tmp_path, "ref", range(20), DEC=moved, EP=epochs, PMRA=still, PMDEC=moving)
    by_position = ONE.replace('{ by = "id", spectra = "star_id" }', "{ radius = 1.0 }")
    path = write_recipe(tmp_path, by_position)
    edit_recipe(tmp_path, "ref", "epoch = 2016.0", 'epoch = 2000.0\npmra = "PMRA"\npmdec = "PMDEC"')
    assert len(build_survey(path, tmp_path / "some.zarr").survey) == 20
    edit_recipe(tmp_path, "ref", "epoch = 2000.0", 'epoch = "EP"')
    assert len(build_survey(path, tmp_path / "all.zarr").survey) == 40


def test_a_motion_that_is_missing_in_the_usual_way_moves_no_star(tmp_path) -> None:
    simulated_spectra(tmp_path)
    dec = Survey.open(tmp_path / "spectra.zarr").column("dec")[::2]
    unknown = np.full(20, -9999.0)
    catalogue(tmp_path, "ref", range(20), DEC=dec, PMRA=unknown, PMDEC=unknown)
    path = write_recipe(
        tmp_path, ONE.replace('{ by = "id", spectra = "star_id" }', "{ radius = 1.0 }")
    )
    edit_recipe(tmp_path, "ref", "epoch = 2016.0", 'epoch = 1990.0\npmra = "PMRA"\npmdec = "PMDEC"')
    assert len(build_survey(path, tmp_path / "all.zarr").survey) == 40


def test_what_a_recipe_does_not_tell_cannot_be_matched_by(tmp_path) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(10))
    text = ONE.replace('"star_id" }', '"star_id", catalogue = "gaia_dr2" }')
    with pytest.raises(UnknownName, match=r"identifier of ref.*did you mean 'gaia_dr3'"):
        build_survey(write_recipe(tmp_path, text), tmp_path / "out.zarr")
    edit_recipe(tmp_path, "ref", '[position]\nra = "RA"\ndec = "DEC"\nepoch = 2016.0\n', "")
    by_position = ONE.replace('{ by = "id", spectra = "star_id" }', "{ radius = 1.0 }")
    with pytest.raises(ConfigError, match=r"recipe of ref has no \[position\]"):
        build_survey(write_recipe(tmp_path, by_position), tmp_path / "out.zarr")
    spectra = ONE.replace('"ref.toml"', '"4most-l1"')
    with pytest.raises(ConfigError, match="4most-l1 describes no catalogue; name another"):
        build_survey(write_recipe(tmp_path, spectra), tmp_path / "out.zarr")


def test_labels_that_a_reference_lacks_are_told(tmp_path, caplog) -> None:
    simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", range(10))
    path = write_recipe(tmp_path, ONE + '\n    [labels]\n    names = ["teff", "al_fe"]\n')
    with caplog.at_level(logging.WARNING):
        built = build_survey(path, tmp_path / "out.zarr")
    assert "ref gives no al_fe" in caplog.text
    assert np.isfinite(built.survey.column("teff")).all()
    path = write_recipe(tmp_path, ONE + '\n    [labels]\n    names = ["al_fe"]\n')
    with pytest.raises(
        ConfigError, match=r"ref gives none of the wanted labels al_fe.*it has teff"
    ):
        build_survey(path, tmp_path / "no.zarr")


def test_references_on_two_solar_scales_need_one_to_be_stated(tmp_path) -> None:
    simulated_spectra(tmp_path, n=80)
    catalogue(tmp_path, "ref", range(20))
    catalogue(tmp_path, "other", range(20, 40), scale="grevesse2007", seed=1)
    apart = TWO + "\n    [offsets]\n    fit = false\n"
    with pytest.raises(ConfigError, match=r"different solar scales.*'solar_scale' in"):
        build_survey(write_recipe(tmp_path, apart), tmp_path / "no.zarr")
    stated = apart + '    [labels]\n    solar_scale = "asplund2009"\n'
    built = build_survey(write_recipe(tmp_path, stated), tmp_path / "out.zarr")
    notes = built.survey.provenance["conversions"]
    assert {note["to"] for note in notes.values()} == {"asplund2009"}


@pytest.mark.parametrize("shared", ["none", "foreign"])
def test_references_without_a_shared_identifier_are_tied_by_position(tmp_path, shared) -> None:
    simulated_spectra(tmp_path, n=200)
    catalogue(tmp_path, "ref", range(60))
    catalogue(tmp_path, "other", range(20, 100), seed=1, offset=150.0, GAIA=np.arange(80))
    if shared == "none":
        edit_recipe(tmp_path, "other", '[id.other]\ngaia_dr3 = "GAIA"\n', "")
    built = build_survey(write_recipe(tmp_path, TWO), tmp_path / "out.zarr")
    offset = built.offsets["other"]["teff"]
    assert offset.n_star == 40
    assert abs(offset.coefficients[0] - 150) < 4 * offset.errors[0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('store = "spectra.zarr"', 'recipe = "rave-dr6"', "'recipe' and 'path' go together"),
        (
            'store = "spectra.zarr"',
            'store = "s"\n    path = "p"',
            "'recipe' and 'path' go together",
        ),
        ('store = "spectra.zarr"', 'store = "s"\n    arm = "ccd1"', "'arm' is for a recipe"),
        ('by = "id", ', "", "'spectra', 'catalogue' and 'prefer' are for by"),
        ('by = "id", ', 'by = "id", radius = 1.0, ', "'radius' and 'nearest' are for by"),
        ('by = "id", ', 'by = "id", ambiguous = "nearest", ', "'radius' and 'nearest' are for by"),
        (
            'file = "ref.fits"',
            'file = "ref.fits"\n    name = "spectra"',
            "'spectra': give it another",
        ),
        ('title = "one"', 'title = "one"\n    label = [{ name = "x" }]', "symbol"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, old, new, words) -> None:
    assert old in ONE
    with pytest.raises(ConfigError, match=words):
        load_recipe(write_recipe(tmp_path, ONE.replace(old, new)))


def test_columns_of_the_store_that_only_it_knows_are_kept(tmp_path) -> None:
    source = simulated_spectra(tmp_path)
    batch = source.rows(np.arange(40))
    transits = Column("transits", "", "meta.number", "Transits that were combined", "int32")
    columns = {name: batch.column(name) for name in ("id", "star_id", "snr", "ra", "dec")}
    with SurveyWriter(
        tmp_path / "more.zarr",
        n_star=40,
        wave_aa=source.wave_aa,
        medium="air",
        columns=["snr", "ra", "dec", transits],
        simulated=True,
    ) as writer:
        flux, ivar = batch.spectra.flux, batch.spectra.ivar
        writer.write(0, flux, ivar, **columns, transits=np.arange(40, dtype=np.int32))
    catalogue(tmp_path, "ref", range(10))
    path = write_recipe(tmp_path, ONE.replace("spectra.zarr", "more.zarr"))
    survey = build_survey(path, tmp_path / "out.zarr").survey
    assert survey.column("transits").tolist() == [*range(20)]
    about = survey.dataset["transits"].attrs
    assert (about["ucd"], about["description"]) == ("meta.number", "Transits that were combined")


def test_spectra_that_lie_far_apart_are_read_piece_by_piece(tmp_path, monkeypatch) -> None:
    source = simulated_spectra(tmp_path)
    catalogue(tmp_path, "ref", [0, 19])
    monkeypatch.setattr("maury.survey.assembly.build_spectra.CHUNK_STARS", 4)
    survey = build_survey(write_recipe(tmp_path, ONE), tmp_path / "out.zarr").survey
    rows = [0, 1, 38, 39]
    assert survey.id.tolist() == source.id[rows].tolist()
    wanted = source.rows(rows).spectra.flux
    np.testing.assert_array_equal(survey.rows(np.arange(4)).spectra.flux, wanted)


def test_a_survey_that_was_not_built_has_no_flow_table(tmp_path) -> None:
    with pytest.raises(SurveyFileError, match="no flow table: 'maury build' did not make it"):
        Flow.of_survey(simulated_spectra(tmp_path))
