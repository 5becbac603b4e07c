"""Further observables: from a TOML file through the store to a network, missing or not."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyarrow import parquet

from maury.errors import ColumnError, ConfigError, UnknownName
from maury.evaluation.audit import audit
from maury.evaluation.validation import held_out_rows
from maury.labels.flags import Flag
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork
from maury.prediction.predictor import Predictor, hide
from maury.prediction.streaming import predict_rows
from maury.simulation.disturbances import Disturbances, disturb_observables
from maury.simulation.drawing import draw_around
from maury.spectra.batch import Batch
from maury.spectra.observable_groups import ColumnRange
from maury.spectra.preparation import AV, AbsoluteMagnitudes, FurtherColumns, Preparation
from maury.spectra.spectra import Spectra
from maury.survey.readers import ingest_toml
from maury.survey.store import Survey, SurveyWriter
from maury.training.ensemble import train

torch.set_num_threads(1)

N, SIZE = 6, 5
RNG = np.random.default_rng(5)
COEFFICIENTS = RNG.normal(0, [30.0, 3.0, 1.0, 0.1, 0.01], (N, SIZE))
ERRORS = RNG.uniform(0.01, 0.02, (N, SIZE))
LOGG = np.array([1.5, 2.0, np.nan, 2.5, 3.0, 4.0])
IDS = np.array([f"s{k}" for k in range(N)])

TOML = """
[spectra]
file = "s.npz"
id = "id"

[wavelength]
medium = "air"
start = 8500.0
step = 0.5

[[table]]
file = "TABLE"
id = "obs"

[columns]
bp = "bp_coefficients"
bp_error = "bp_coefficient_errors"
logg_seismic = { name = "numax_logg", unit = "dex" }
logg_seismic_error = "e_logg"
ebv = { name = "reddening", missing = -1 }

[[observable]]
name = "bp"
size = 5
description = "Coefficient of the BP spectrum"

[[observable]]
name = "logg_seismic"
unit = "dex"
ucd = "phys.gravity"
description = "log g from oscillations"

[[observable]]
name = "ebv"
unit = "mag"
description = "Reddening E(B-V)"
"""


def columns():
    return {
        "obs": IDS[::-1],
        "bp_coefficients": COEFFICIENTS[::-1],
        "bp_coefficient_errors": ERRORS[::-1],
        "numax_logg": LOGG[::-1],
        "e_logg": np.full(N, 0.02),
        "reddening": np.array([0.1, -1.0, 0.2, 0.3, 0.4, 0.5])[::-1],
    }


def as_fits(path):
    Table(columns()).write(path)


def as_variable_fits(path):
    """Arrays of variable length, as Gaia's tables have them."""
    c = columns()
    arrays = {}
    for name in ("bp_coefficients", "bp_coefficient_errors"):
        arrays[name] = np.empty(N, dtype=object)
        for k in range(N):
            arrays[name][k] = c[name][k]
    hdu = fits.BinTableHDU.from_columns(
        [
            fits.Column("obs", "8A", array=c["obs"]),
            *(fits.Column(name, "PD()", array=array) for name, array in arrays.items()),
            *(
                fits.Column(name, "D", array=c[name])
                for name in ("numax_logg", "e_logg", "reddening")
            ),
        ]
    )
    hdu.writeto(path)


def as_csv(path):
    c = columns()
    lines = [",".join(c)]
    for k in range(N):
        cells = [
            '"[' + ",".join(map(repr, v[k].tolist())) + ']"' if v.ndim > 1 else str(v[k])
            for v in c.values()
        ]
        lines.append(",".join(cells).replace("nan", ""))
    path.write_text("\n".join(lines))


def as_parquet(path):
    c = {name: v.tolist() for name, v in columns().items()}
    c["numax_logg"] = [None if np.isnan(v) else v for v in c["numax_logg"]]
    parquet.write_table(pa.table(c), path)


def as_votable(path):
    Table(columns()).write(path, format="votable")


def ingest(folder, text=TOML, write=as_fits, name="t.fits"):
    flux = np.ones((N, 50)) + np.linspace(0, 0.1, 50)
    np.savez(folder / "s.npz", flux=flux, id=IDS)
    write(folder / name)
    (folder / "s.toml").write_text(text.replace("TABLE", name))
    return ingest_toml(folder / "s.toml", folder / "s.zarr", overwrite=True)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (as_fits, "t.fits"),
        (as_variable_fits, "t.fits"),
        (as_csv, "t.csv"),
        (as_parquet, "t.parquet"),
        (as_votable, "t.vot"),
    ],
)
def test_observables_of_every_format_reach_the_store(tmp_path, write, name):
    survey = ingest(tmp_path, write=write, name=name)
    for k in range(SIZE):
        np.testing.assert_allclose(survey.column(f"bp_{k:02d}"), COEFFICIENTS[:, k])
        np.testing.assert_allclose(survey.column(f"bp_{k:02d}_error"), ERRORS[:, k])
    np.testing.assert_array_equal(survey.column("logg_seismic"), LOGG)
    np.testing.assert_array_equal(survey.column("ebv"), [0.1, np.nan, 0.2, 0.3, 0.4, 0.5])


def test_the_store_says_unit_and_meaning(tmp_path):
    dataset = ingest(tmp_path).dataset
    about = dataset["logg_seismic"].attrs
    assert (about["units"], about["ucd"]) == ("dex", "phys.gravity")
    assert about["description"] == "log g from oscillations"
    error = dataset["logg_seismic_error"].attrs
    assert (error["units"], error["ucd"]) == ("dex", "stat.error;phys.gravity")
    assert dataset["bp_04"].attrs["description"] == "Coefficient of the BP spectrum"


def test_units_of_observables_are_converted(tmp_path):
    text = TOML.replace(
        '{ name = "reddening", missing = -1 }', '{ name = "reddening", unit = "mmag" }'
    )
    np.testing.assert_allclose(ingest(tmp_path, text).column("ebv")[0], 1e-4)


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("size = 5", "size = 4", ColumnError, "5 values"),
        ("ebv = {", "ebw = {", ConfigError, "did you mean 'ebv'"),
        ('name = "ebv"', 'name = "parallax"', ConfigError, "column already"),
        ('name = "ebv"', 'name = "ebv_error"', ConfigError, "may not end"),
        ('name = "ebv"', 'name = "bp_03"', ConfigError, "defined twice"),
        ('unit = "mag"', 'unt = "mag"', ConfigError, "unit"),
        ('description = "Reddening E(B-V)"', "", ConfigError, "description"),
        ('"numax_logg", unit = "dex"', '"numax_logg", unit = "kg"', ColumnError, "'kg'"),
        ('bp = "bp_coefficients"', 'bp = "e_logg"', ColumnError, "array of numbers"),
        ('bp = "bp_coefficients"', 'bp = "bp_coefficient"', ColumnError, "bp_coefficients"),
    ],
)
def test_wrong_definitions_are_one_clear_error(tmp_path, old, new, error, words):
    assert old in TOML
    with pytest.raises(error, match=words):
        ingest(tmp_path, TOML.replace(old, new))


# Preparation

XP = FurtherColumns(source="xp", columns=(ColumnRange(name="bp", size=SIZE),), over="bp_00")
SEISMIC = FurtherColumns(source="seismic", columns=("logg_seismic",))


def batch_of(**values):
    n = len(next(iter(values.values())))
    spectra = Spectra.from_arrays(8500.0 + np.arange(30), np.ones((n, 30)) + np.arange(30) * 1e-3)
    return Batch(spectra, {name: np.asarray(v, dtype=float) for name, v in values.items()})


def coefficient_batch():
    values = {f"bp_{k:02d}": COEFFICIENTS[:, k] for k in range(SIZE)}
    values |= {f"bp_{k:02d}_error": ERRORS[:, k] for k in range(SIZE)}
    return batch_of(**values, logg_seismic=LOGG)


def test_observables_keep_their_order_and_names():
    preparation = Preparation(observables=(AV(), XP, SEISMIC))
    assert preparation.observable_names == (
        "a_v",
        *(f"bp_{k:02d}/bp_00" for k in range(1, SIZE)),
        "logg_seismic",
    )
    assert preparation.source_names == ("a_v", "xp", "seismic")
    expected = np.zeros((3, 6), dtype=bool)
    expected[0, 0] = expected[1, 1:5] = expected[2, 5] = True
    np.testing.assert_array_equal(preparation.sources, expected)
    again = Preparation.from_json(json.loads(json.dumps(preparation.to_json())))
    assert again == preparation


def test_preparations_without_further_columns_are_as_they_were():
    preparation = Preparation(observables=(AbsoluteMagnitudes(), AV()))
    assert not preparation.is_further.any()
    assert preparation.further_sources == {}


def test_a_column_over_another_loses_the_brightness():
    batch = coefficient_batch()
    values, errors = XP.measure(batch)
    np.testing.assert_allclose(values, COEFFICIENTS[:, 1:] / COEFFICIENTS[:, :1])
    brighter = {name: v * 7.0 if name.startswith("bp") else v for name, v in batch.columns.items()}
    again = XP.measure(Batch(batch.spectra, brighter))
    np.testing.assert_allclose(again[0], values)
    np.testing.assert_allclose(again[1], errors)


def test_errors_of_ratios_against_sampling():
    rng = np.random.default_rng(1)
    n = 40_000
    top, bottom = 3.0 + 0.05 * rng.standard_normal(n), 20.0 + 0.3 * rng.standard_normal(n)
    group = FurtherColumns(source="xp", columns=("a",), over="b")
    _, error = group.measure(batch_of(a=[3.0], a_error=[0.05], b=[20.0], b_error=[0.3]))
    assert error[0, 0] == pytest.approx(np.std(top / bottom), rel=0.03)


@given(
    values=hnp.arrays(float, (4, 2), elements=st.floats(allow_nan=True, allow_infinity=True)),
    below=hnp.arrays(float, 4, elements=st.floats(allow_nan=True, allow_infinity=True)),
)
def test_bad_numbers_are_missing_and_flagged(values, below):
    group = FurtherColumns(source="x", columns=("a", "b"), over="c")
    batch = batch_of(a=values[:, 0], b=values[:, 1], c=below)
    with np.errstate(all="ignore"):
        inputs = Preparation(observables=(group,)).apply(batch)
        usable = np.isfinite(values).all(axis=1) & np.isfinite(below) & (below != 0)
    flagged = (inputs.flags & Flag.COLUMN_MISSING.value) != 0
    assert np.all(flagged[~usable])
    with np.errstate(all="ignore"):
        plain = (np.abs(values / below[:, None]) < 1e38).all(axis=1)
    assert not np.any(flagged & usable & plain)
    assert not np.any(np.isinf(inputs.observables[flagged]))


def test_hidden_sources_are_missing():
    preparation = Preparation(observables=(XP, SEISMIC))
    batch = coefficient_batch()
    further = preparation.further_sources
    seen = preparation.apply(hide(batch, ("xp",), further=further)).observables
    assert np.isnan(seen[:, :4]).all()
    np.testing.assert_array_equal(seen[:, 4], LOGG.astype("f4"))
    none = preparation.apply(hide(batch, ("photometry",), further=further)).observables
    assert np.isnan(none).all()
    assert np.isfinite(batch.columns["bp_00"]).all()


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"source": "a_v", "columns": ["x"]}, "input already"),
        ({"source": "photometry", "columns": ["x"]}, "input already"),
        ({"source": "x", "columns": []}, "at least 1"),
        ({"source": "x", "columns": ["Bad Name"]}, "pattern"),
        ({"source": "x", "columns": ["y", "y"]}, "listed twice"),
        ({"source": "x", "colums": ["y"]}, "did you mean 'columns'"),
    ],
)
def test_wrong_groups_are_one_clear_error(group, words):
    with pytest.raises(ConfigError, match=words):
        Preparation.from_json({"observables": [{"observable": "columns", **group}]})


# The default network


CONFIG = {
    "network": {"stem": 8, "width": 24, "depth": 1},
    "training": {"steps": 600, "stars": 300, "batch_size": 32},
    "ensemble": {"members": 1},
    "preparation": {
        "steps": [{"step": "noise"}],
        "observables": [
            {"observable": "a_v"},
            {"observable": "columns", "source": "seismic", "columns": ["logg_seismic"]},
        ],
    },
}


@pytest.fixture(scope="module")
def seismic_survey(tmp_path_factory, tiny_survey):
    """The tiny survey, with a log g of 0.02 dex, in units of 1e-4 dex, for most stars."""
    source = Survey.open(tiny_survey)
    batch = source.rows(np.arange(len(source)))
    rng = np.random.default_rng(9)
    logg = 1e4 * (batch.columns["logg"] + 0.02 * rng.standard_normal(len(source)))
    logg[::12] = np.nan
    path = tmp_path_factory.mktemp("seismic") / "s.zarr"
    definition = ingest_column("logg_seismic")
    with SurveyWriter(
        path,
        n_star=len(source),
        wave_aa=source.wave_aa,
        medium=source.medium,
        columns=[*(n for n in batch.columns if n not in ("id", "star_id")), definition],
        simulated=True,
        resolving_power=source.resolving_power,
        labels=source.label_definitions,
    ) as writer:
        writer.write(0, batch.spectra.flux, batch.spectra.ivar, **batch.columns, logg_seismic=logg)
    return Survey.open(path)


def ingest_column(name):
    from maury.labels.columns import Column

    return Column(name, "", "", "log g from oscillations, in 1e-4 dex")


@pytest.fixture(scope="module")
def model(tmp_path_factory, seismic_survey):
    path = tmp_path_factory.mktemp("model") / "m"
    return train(seismic_survey, path, config=CONFIG, n_processes=1)


@pytest.mark.slow
def test_the_network_uses_what_it_is_given(model, seismic_survey):
    batch = seismic_survey.batch(0, len(seismic_survey))
    known = np.isfinite(batch.columns["logg_seismic"])
    truth = batch.columns["logg"]
    scatter = {}
    for without in ((), ("seismic",)):
        predictor = Predictor(model, without=without)
        found = predictor.predict(batch)
        scatter[without] = np.std((found["logg"] - truth)[known])
        flagged = (found["flags"] & Flag.COLUMN_MISSING.value) != 0
        np.testing.assert_array_equal(flagged, ~known if not without else True)
        assert np.isfinite(found["logg"]).all()
    assert scatter[()] < scatter[("seismic",)]
    higher = {**batch.columns, "logg_seismic": batch.columns["logg_seismic"] + 5e3}
    risen = Predictor(model).predict(Batch(batch.spectra, higher))["logg"]
    plain = Predictor(model).predict(batch)["logg"]
    assert np.median((risen - plain)[known]) > 0.02
    np.testing.assert_array_equal(risen[~known], plain[~known])


def test_sparse_columns_stay_as_frequent_and_true_in_simulated_stars():
    rng = np.random.default_rng(2)
    labels = rng.normal([5000, 3, 0, 0, 0.1, 0, 0, 0, 0], 0.2, (400, 9))
    logg = np.where(rng.random(400) < 0.1, labels[:, 1], np.nan)
    observables = np.column_stack([rng.normal(size=400), logg])
    drawn, seen = draw_around(labels, observables, 20_000, rng, sparse=(1,))
    share = np.isfinite(logg).mean()
    assert np.isfinite(seen[:, 1]).mean() == pytest.approx(share, rel=0.15)
    known = np.isfinite(seen[:, 1])
    np.testing.assert_allclose(seen[known, 1], drawn[known, 1])
    assert np.isfinite(seen[:, 0]).all()
    plain = draw_around(labels, observables, 20_000, np.random.default_rng(4))[1]
    assert np.isfinite(plain[:, 1]).mean() < 0.02


def test_draws_without_sparse_columns_are_as_they_were():
    rng = np.random.default_rng(2)
    labels, observables = rng.normal(size=(60, 9)), rng.normal(size=(60, 3))
    one = draw_around(labels, observables, 500, np.random.default_rng(5))
    other = draw_around(labels, observables, 500, np.random.default_rng(5), sparse=(2,))
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.slow
def test_no_noise_is_added_to_further_columns(model):
    mapping = model.preparation.observable_map
    values = np.ones((50, len(model.preparation.observable_names)))
    moved = disturb_observables(values, mapping, Disturbances(), np.random.default_rng(0))
    assert mapping.further.any()
    assert (moved[:, mapping.further] == 1).all()
    assert (moved[:, 0] != 1).all()


@pytest.mark.slow
def test_an_audit_says_what_further_columns_tell(model, seismic_survey):
    report = audit(model, seismic_survey, n_bootstrap=50)
    rows = report.further_rows()
    # Alone, they do not suffice for labels.
    assert rows[0] == ("label", "unit", "all inputs", "without seismic")
    assert len(rows) == 1 + len(report.labels)
    (logg,) = (one for one in report.labels if one.name == "logg")
    held = held_out_rows(model, seismic_survey)
    found = predict_rows(model, seismic_survey, held, without=("seismic",))
    residual = found["logg"] - seismic_survey.labels(["logg"])[held, 0]
    assert logg.cases["without seismic"].scatter == pytest.approx(residual.std(), rel=1e-5)


@pytest.mark.slow
def test_the_saved_model_gives_the_same_bits(model, seismic_survey):
    batch = seismic_survey.batch(0, 50)
    first, second = (Predictor(m).predict(batch) for m in (model, Model.open(model.path)))
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])


def test_a_column_that_the_survey_lacks_is_told_before_training(tmp_path, tiny_survey):
    with pytest.raises(ColumnError, match="logg_seismic"):
        train(tiny_survey, tmp_path / "m", config=CONFIG)


@pytest.mark.slow
def test_unknown_inputs_are_told(model):
    with pytest.raises(UnknownName, match="seismic"):
        Predictor(model, without=("seizmic",))


@pytest.mark.slow
@pytest.mark.parametrize("suffices", [False, True])
def test_columns_alone_give_labels_if_they_suffice(model, seismic_survey, suffices):
    group = FurtherColumns(source="seismic", columns=("logg_seismic",), suffices=suffices)
    changed = model.preparation.model_copy(update={"observables": (AV(), group)})
    other = Model.open(model.path)
    object.__setattr__(other, "preparation", changed)
    batch = hide(seismic_survey.batch(0, 40), ("spectrum",))
    known = np.isfinite(batch.columns["logg_seismic"])
    answer = EnsembleNetwork(other).predict(changed.apply(batch))
    answered = np.isfinite(answer.mean).all(axis=1)
    np.testing.assert_array_equal(answered, known & suffices)
