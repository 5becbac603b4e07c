"""Recipes of public surveys, and the grammar of their cuts."""

import tomllib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from typer.testing import CliRunner

from maury.cli.app import app
from maury.errors import ColumnError, ConfigError, MauryError, UnknownName
from maury.io.source_table import SourceTable
from maury.io.tables import open_table
from maury.labels import references as bibliography
from maury.survey import archives as surveys
from maury.survey.archives import Cut, apply_cuts, describing
from maury.survey.archives.recipe import parse

MINIMAL = """
name = "mine"
title = "Mine"
kind = "catalogue"
description = "A catalogue"
citation = []
documentation = "https://example.org"
[id]
column = "ID"
[columns]
teff = "TEFF"
"""


def cut(**condition):
    return Cut.model_validate({"name": "a", "why": "", "source": "", **condition})


def table(**arrays):
    return SourceTable.of_arrays(Path("mine.fits"), arrays)


def passes(one, **arrays):
    return apply_cuts([one], table(**arrays)).keep.tolist()


@pytest.mark.parametrize("name", surveys.names())
def test_recipes_of_the_package_are_whole(name):
    recipe = surveys.load(name)
    assert recipe.name == name
    assert recipe.citation
    for key in recipe.citation:
        assert key in bibliography.entries(), f"{key} is not in the bibliography"
    for column, source in recipe.columns.items():
        unit = recipe.parts(column)[0].unit
        assert source.unit is None or unit, f"{column} is a pure number"
    for one in recipe.cut:
        assert one.why
        paper = one.source in bibliography.entries()
        assert paper or one.source.startswith(("https://", "http://")), one.source
    assert describing.facts(recipe, bibliography.entries())
    assert len(describing.columns(recipe)) == len(recipe.columns)


def test_units_of_recipes_convert_to_those_of_maury():
    from astropy import units

    for name in surveys.names():
        recipe = surveys.load(name)
        for column, source in recipe.columns.items():
            unit = recipe.parts(column)[0].unit
            if source.unit not in (None, "dex") and unit != "dex":
                units.Unit(source.unit).to(unit)


def test_everything_wrong_in_a_recipe_is_told_at_once():
    text = """
    name = "My Survey"
    titel = "Mine"
    kind = "both"
    description = ""
    citation = []
    documentation = "example.org"
    [columns]
    tef = "TEFF"
    [[file]]
    name = "../../etc/passwd"
    url = "file:///etc/passwd"
    sha256 = "abc"
    [abundances]
    solar_scale = "asplund2019"
    [spectra]
    reader = "apstars"
    medium = "water"
    [spectra.columns]
    snrr = "SNR"
    [[cut]]
    name = "a"
    column = "X"
    mim = 3
    why = ""
    source = ""
    """
    with pytest.raises(ConfigError) as caught:
        parse(text, what="mine.toml")
    message = str(caught.value)
    for part in (
        "name: String should match pattern",
        "titel: unknown key; did you mean 'title'?",
        "it lacks title, [id]",
        "documentation:",
        "columns.tef: unknown column; did you mean 'teff'?",
        "file.0.name:",
        "file.0.url:",
        "file.0.sha256:",
        "did you mean 'asplund2021'?",
        "no such reader; did you mean 'apstar'?",
        "spectra.medium:",
        "spectra.columns.snrr: unknown column; did you mean 'snr'?",
        "cut.0.mim: unknown key; did you mean 'min'?",
    ):
        assert part in message, f"{part!r} is not in {message!r}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('[id]\ncolumn = "ID"\n', ""), "it lacks [id], which must be given; the least"),
        (('kind = "catalogue"', 'kind = "spectra"'), "it lacks [spectra]"),
        (('name = "mine"', 'name = "mine'), "cannot read mine.toml"),
        (('teff = "TEFF"', 'teff = { name = "T", index = -1 }'), "index"),
    ],
)
def test_recipes_that_are_wrong(change, message):
    parse(MINIMAL, what="mine.toml")
    with pytest.raises(ConfigError) as caught:
        parse(MINIMAL.replace(*change), what="mine.toml")
    assert message in str(caught.value)


def test_names_that_stand_twice():
    twice = '[[cut]]\nname="a"\ncolumn="X"\nmin=1\nwhy=""\nsource=""\n' * 2
    with pytest.raises(ConfigError, match="'a' stands twice"):
        parse(MINIMAL + twice, what="mine.toml")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({}, "give a 'column'"),
        ({"column": "X"}, "give one condition of"),
        ({"column": "X", "min": 1, "equals": 2}, "give one condition of"),
        ({"column": "X", "min": 1, "any": [{"column": "Y", "min": 1}]}, "give one of 'any'"),
        ({"any": []}, "must list at least one"),
        ({"column": "X", "bits_clear": [64]}, "bits_clear"),
        ({"column": "X", "expression": "__import__('os')"}, "expression"),
    ],
)
def test_conditions_that_are_wrong(condition, message):
    with pytest.raises(ValueError, match="validation error") as caught:
        cut(**condition)
    assert message in str(caught.value)


def test_each_condition_on_a_few_values():
    x = np.array([1.0, 2.0, 3.0, np.nan])
    for condition, want in [
        ({"min": 2}, [0, 1, 1, 0]),
        ({"max": 2}, [1, 1, 0, 0]),
        ({"min": 2, "below": 3}, [0, 1, 0, 0]),
        ({"above": 1, "missing": "pass"}, [0, 1, 1, 1]),
        ({"equals": 2}, [0, 1, 0, 0]),
        ({"not_equals": 2}, [1, 0, 1, 0]),
        ({"one_of": [1, 3]}, [1, 0, 1, 0]),
        ({"none_of": [1, 3], "missing": "pass"}, [0, 1, 0, 1]),
        ({"finite": True}, [1, 1, 1, 0]),
        ({"finite": False}, [0, 0, 0, 1]),
    ]:
        assert passes(cut(column="X", **condition), X=x) == [bool(v) for v in want], condition


def test_texts_truths_vectors_and_masked_values():
    assert passes(cut(column="F", equals="n"), F=np.array([b"n ", b"b", b""])) == [
        True,
        False,
        False,
    ]
    assert passes(cut(column="B", equals=False), B=np.array([True, False])) == [False, True]
    masked = np.ma.masked_array([1, 2], mask=[True, False])
    assert passes(cut(column="M", max=5), M=masked) == [False, True]
    vectors = np.array([[1.0, 9.0], [9.0, 1.0]])
    assert passes(cut(column="V", index=1, max=5), V=vectors) == [False, True]
    both = {"any": [{"column": "A", "min": 2}, {"all": [{"column": "B", "equals": "x"}]}]}
    assert passes(cut(**both), A=np.array([1, 2, 1]), B=np.array(["x", "y", "z"])) == [
        True,
        True,
        False,
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8),
    st.lists(st.integers(0, 63), min_size=1, max_size=4, unique=True),
)
def test_bits_are_those_of_python(values, bits):
    flags = np.array(values, dtype=np.int64)
    clear = passes(cut(column="F", bits_clear=bits), F=flags)
    every = passes(cut(column="F", bits_set={f"B{bit}": bit for bit in bits}), F=flags)
    assert clear == [all(not (value >> bit) & 1 for bit in bits) for value in values]
    assert every == [all((value >> bit) & 1 for bit in bits) for value in values]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=3, max_size=3), max_size=6)
)
def test_the_flow_table_adds_up(rows):
    rows = [[0, 0, 0], *rows]
    arrays = {
        name: np.ma.masked_invalid([np.nan if row[k] is None else float(row[k]) for row in rows])
        for k, name in enumerate("ABC")
    }
    cuts = [
        Cut.model_validate({"name": name, "column": column, "why": "", "source": "", **condition})
        for name, column, condition in (
            ("a", "A", {"min": -1}),
            ("b", "B", {"not_equals": 2, "missing": "pass"}),
            ("c", "C", {"below": 2}),
        )
    ]
    chosen = apply_cuts(cuts, table(**arrays))

    def first_reason(a, b, c):
        if a is None or a < -1:
            return "a"
        if b == 2:
            return "b"
        return "c" if c is None or c >= 2 else ""

    reasons = [first_reason(*row) for row in rows]
    assert chosen.reasons.tolist() == reasons
    assert chosen.keep.tolist() == [reason == "" for reason in reasons]
    flow = chosen.flow()
    assert [step.n_removed for step in flow] == [reasons.count(name) for name in "abc"]
    assert flow[0].n_in == len(rows)
    assert [step.n_in for step in flow[1:]] == [step.n_out for step in flow[:-1]]
    lost = [k for k, reason in enumerate(reasons) if reason == "a" and rows[k][0] is None]
    assert flow[0].n_missing == len(lost)


def test_numbers_that_mean_missing():
    chosen = apply_cuts(
        [cut(column="X", max=5)], table(X=np.array([-9999.0, 1.0])), missing=[-9999]
    )
    assert chosen.keep.tolist() == [False, True]
    assert chosen.flow()[0].n_missing == 1


def test_every_column_that_is_lacking_is_named():
    cuts = [cut(column="Y", min=1), cut(any=[{"column": "Z", "min": 1}, {"column": "X", "min": 1}])]
    with pytest.raises(ColumnError, match=r"'Y' \(for a\); 'Z' \(for a\)"):
        apply_cuts(cuts, table(X=np.ones(2)))


@pytest.mark.parametrize(
    ("condition", "values"),
    [
        ({"min": 1}, np.array(["a", "b"])),
        ({"equals": "n"}, np.array([1.0, 2.0])),
        ({"bits_clear": [1]}, np.array([1.5, 2.0])),
    ],
)
def test_values_of_another_kind_are_one_error(condition, values):
    with pytest.raises(ColumnError, match=r"mine\.fits, column 'X' holds"):
        passes(cut(column="X", **condition), X=values)


def test_cuts_are_the_same_in_every_format(tmp_path):
    columns = {"FLAG": [0, 1 << 23, 5], "NAME": ["n", "b", "n"], "X": [1.0, 2.0, float("nan")]}
    Table(columns).write(tmp_path / "t.fits")
    Table(columns).write(tmp_path / "t.vot", format="votable")
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    text = "FLAG,NAME,X\n0,n,1.0\n8388608,b,2.0\n5,n,\n"
    (tmp_path / "t.csv").write_text(text, "utf-8")
    cuts = [
        cut(column="FLAG", bits_clear=[23]),
        cut(column="NAME", equals="n"),
        cut(column="X", finite=True),
    ]
    for suffix in ("fits", "vot", "parquet", "csv"):
        with ExitStack() as stack:
            chosen = apply_cuts(cuts, open_table(tmp_path / f"t.{suffix}", stack))
            assert [v.passes.tolist() for v in chosen.results] == [
                [True, False, True],
                [True, False, True],
                [True, True, False],
            ], suffix


def test_a_64_bit_flag_in_fits_keeps_its_lowest_bit(tmp_path):
    flags = np.array([(1 << 62) | 1, 1 << 62], dtype=np.int64)
    hdu = fits.BinTableHDU.from_columns([fits.Column("F", "K", array=flags)])
    hdu.writeto(tmp_path / "t.fits")
    with ExitStack() as stack:
        opened = open_table(tmp_path / "t.fits", stack)
        assert apply_cuts([cut(column="F", bits_clear=[0])], opened).keep.tolist() == [False, True]


def test_cuts_of_apogee_on_a_table_of_its_data_model(tmp_path):
    """allStar: 32-bit EXTRATARG, 64-bit flags, float32 labels (datamodel page of the recipe)."""
    columns = [
        fits.Column("ASPCAPFLAG", "K", array=[0, 1 << 23, 0, 1 << 7, 0, 1 << 19, 1 << 22, 0]),
        fits.Column("STARFLAG", "K", array=[0, 0, 0, 0, 1 << 4, 0, 0, 0]),
        fits.Column("EXTRATARG", "J", array=[0, 0, 1 << 4, 1, 0, 0, 0, 0]),
        fits.Column("SNREV", "E", array=[100, 100, 100, 30, 100, 100, 100, 100]),
        fits.Column("TEFF", "E", array=[4800, 4800, 4800, 4800, np.nan, 4800, 4800, 4800]),
        fits.Column("LOGG", "E", array=np.full(8, 2.5)),
        fits.Column("M_H", "E", array=np.full(8, -0.1)),
        # Bit 8 warns, bit 0 says that the abundance lies at an edge of the grid.
        fits.Column("MG_FE_FLAG", "J", array=[1 << 8, 0, 0, 0, 0, 0, 0, 1]),
        *(
            fits.Column(f"{name}_FLAG", "J", array=np.zeros(8))
            for name in ("FE_H", "SI_FE", "AL_FE", "NI_FE")
        ),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "allStar.fits")
    for name in ("apogee-dr16", "apogee-dr17"):
        recipe = surveys.load(name)
        with ExitStack() as stack:
            table = open_table(tmp_path / "allStar.fits", stack, hdu=recipe.table.hdu)
            chosen = apply_cuts(recipe.cuts(), table)
            strict = apply_cuts(recipe.cuts(also=("snr", "star-flag", "elements")), table)
        bad = ["parameter-bad", "parameter-bad"]
        expected = ["", "star-bad", "duplicate", "", "parameters-given", *bad, ""]
        assert chosen.reasons.tolist() == expected
        expected = ["", "star-bad", "duplicate", "snr", "star-flag", *bad, "elements"]
        assert strict.reasons.tolist() == expected


def test_default_cuts_can_be_switched():
    recipe = surveys.load("apogee-dr17")
    default = ["star-bad", "parameter-bad", "duplicate", "parameters-given"]
    assert [one.name for one in recipe.cuts()] == default
    chosen = recipe.cuts(without=("duplicate",), also=("snr",))
    assert [one.name for one in chosen] == ["star-bad", "parameter-bad", "parameters-given", "snr"]
    with pytest.raises(UnknownName, match="did you mean 'duplicate'"):
        recipe.cuts(without=("duplicates",))


def test_a_recipe_of_a_user(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL, "utf-8")
    assert surveys.load(path) == surveys.load(str(path))
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        surveys.load(tmp_path / "other.toml")
    with pytest.raises(UnknownName, match="did you mean 'apogee-dr17'"):
        surveys.load("apogee-dr-17")


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60))
def test_no_text_makes_a_recipe_fail_otherwise_than_by_one_error(text):
    message = "mine.toml"
    try:
        parse(MINIMAL + text, what="mine.toml")
    except ConfigError as error:
        message = str(error)
    else:
        tomllib.loads(MINIMAL + text)
    assert "mine.toml" in message


def test_the_command_lists_and_shows(tmp_path):
    runner = CliRunner()
    listed = runner.invoke(app, ["surveys"])
    assert listed.exit_code == 0
    for name in surveys.names():
        assert f"{name} " in listed.stdout
    shown = runner.invoke(app, ["surveys", "apogee-dr17"]).stdout
    recipe = surveys.load("apogee-dr17")
    for part in (recipe.title, "allStar-dr17-synspec_rev1.fits", "MG_FE", "STAR_BAD (bit 23)"):
        assert part in shown
    for one in recipe.cut:
        assert one.source in shown
    wrong = runner.invoke(app, ["surveys", "apogee-dr-17"])
    assert isinstance(wrong.exception, MauryError)


def test_ingest_takes_the_name_of_a_recipe_as_a_command(tmp_path):
    runner = CliRunner()
    for words in (["rave-dr6"], ["recipe", "rave-dr6"]):
        done = runner.invoke(app, ["ingest", *words, str(tmp_path / "none"), str(tmp_path / "o")])
        assert "not found" in str(done.exception)
    done = runner.invoke(app, ["ingest", "mars", "a", "b"])
    assert isinstance(done.exception, UnknownName)


def test_what_a_bare_recipe_lacks_is_told_in_one_text_with_an_example_that_reads():
    with pytest.raises(ConfigError) as caught:
        parse('name = "log"\nkind = "catalogue"\n', what="log.toml")
    message = str(caught.value)
    lacking = "title, description, citation, documentation, [id], [columns]"
    assert message.startswith(f"log.toml is wrong: it lacks {lacking}, which must be given")
    assert message.count("must be given") == 1
    example = message[message.index("name = ") :]
    assert parse(example, what="the example").kind == "catalogue"
