"""Labels, columns and flags: one definition each, from which everything else derives."""

import re

import numpy as np
import pytest
from astropy import units
from astropy.io.votable.ucd import check_ucd
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from maury.cli.app import app
from maury.errors import ConfigError, UnknownName
from maury.labels import columns, flags
from maury.labels import definitions as labels
from maury.labels.definitions import LABEL_NAMES, LABELS, Label
from maury.labels.flags import WARNING_MASK, Flag

ALL_COLUMNS = [
    *columns.known().values(),
    *(columns.for_label_quantile(label, *q) for label in LABELS for q in columns.QUANTILES),
    *columns.COVERAGE,
    columns.FLAGS,
    columns.WARN,
]


def test_the_nine_labels_in_published_order():
    assert " ".join(LABEL_NAMES) == "teff logg m_h fe_h alpha_m si_fe al_fe mg_fe ni_fe"


@pytest.mark.parametrize("column", ALL_COLUMNS, ids=lambda c: c.name)
def test_every_column_has_a_valid_unit_ucd_and_text(column):
    units.Unit(column.unit)
    assert check_ucd(column.ucd, check_controlled_vocabulary=True), column.ucd
    assert column.description
    assert len(column.description) < 80


def test_column_names_are_unique():
    names = [column.name for column in ALL_COLUMNS]
    assert len(set(names)) == len(names)


def test_absolute_names_are_those_of_the_published_network():
    names = [band.absolute_name for band in columns.BANDS]
    assert names == ["M_G", "M_BP", "M_RP", "M_J", "M_H", "M_Ks", "M_W1", "M_W2"]


def test_user_labels_from_toml(tmp_path):
    path = tmp_path / "labels.toml"
    path.write_text(
        '[[label]]\nname = "ca_fe"\nsymbol = "[Ca/Fe]"\nunit = "dex"\n'
        'description = "Calcium"\nrange = [-0.4, 0.6]\n'
    )
    extended = labels.extend(labels.load(path))
    assert [label.name for label in extended] == [*LABEL_NAMES, "ca_fe"]
    assert labels.select(["ca_fe", "teff"], extended)[0].range == (-0.4, 0.6)
    assert Label.model_validate(extended[-1].model_dump(mode="json")) == extended[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[label]]\nname = 1", "label 1, name"),
        ('[[label]]\nname = "Ca"\nsymbol="x"\nunit="x"\ndescription="x"\nrange=[1,0]', "pattern"),
        ('[[label]]\nname = "c"\nsymbol="x"\nunit="x"\ndescription="x"\nrange=[1,0]', "increase"),
        ('[[label]]\nname = "c_error"\nsymbol="x"\nunit="x"\ndescription="x"\nrange=[0,1]', "_err"),
        ("x = 1", "no \\[\\[label\\]\\]"),
        ("not toml", "cannot read"),
    ],
)
def test_wrong_label_definitions(tmp_path, text, message):
    path = tmp_path / "labels.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        labels.load(path)


def test_a_label_defined_twice():
    row = LABELS[0].model_dump()
    with pytest.raises(ConfigError, match="'teff' is defined twice"):
        labels.parse([row, row])


def test_unknown_label_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'mg_fe'"):
        labels.select(["mgfe"])


def test_flag_bits_are_single_unique_and_described():
    assert [flag.value for flag in Flag] == [1 << bit for bit in range(len(Flag))]
    assert all(flag.text and len(flag.text) < 80 for flag in Flag)
    assert len({flag.text for flag in Flag}) == len(Flag)


def test_every_flag_has_a_remedy_that_names_commands_as_they_are():
    assert all(flag.remedy and len(flag.remedy) < 90 for flag in Flag)
    for flag in Flag:
        for words in re.findall(r"'maury ([^']*)'", flag.remedy):
            name, *options = words.split()
            command = get_command(app).commands[name]
            known = {option for one in command.params for option in one.opts}
            assert {word for word in options if word.startswith("--")} <= known, flag


def test_missing_inputs_inform_and_missing_answers_warn():
    assert not Flag.NO_PARALLAX.warns
    assert not Flag.PARALLAX_ERROR_UNKNOWN.warns
    assert not Flag.MAGNITUDE_MISSING.warns
    assert Flag.INPUT_REQUIRED.warns
    assert Flag.NO_SPECTRUM.warns


@given(st.sets(st.sampled_from(list(Flag))))
def test_masks_round_trip_through_names(chosen):
    mask = sum(flag.value for flag in chosen)
    assert set(flags.names(mask)) == {flag.name for flag in chosen}
    assert len(flags.reasons(mask)) == len(chosen)
    assert flags.warn(np.array([mask]))[0] == any(flag.warns for flag in chosen)
    assert bool(mask & WARNING_MASK) == any(flag.warns for flag in chosen)


def test_set_where_leaves_its_argument():
    before = np.zeros(3, dtype=flags.FLAG_DTYPE)
    after = flags.set_where(before, Flag.LOW_SNR, np.array([True, False, True]))
    assert before.tolist() == [0, 0, 0]
    assert after.tolist() == [8, 0, 8]
    assert after.dtype == flags.FLAG_DTYPE
