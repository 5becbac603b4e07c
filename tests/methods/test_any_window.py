"""Rivals in a window that no theory of ours reaches, with any number of labels, gaps, and masks."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from builders.any_window import FIVE, FOURTEEN, N_PIXEL, SIZE, TWO, definition, made
from builders.method_samples import inputs_of, lines
from builders.training_survey import write_survey
from maury.errors import ConfigError, ModelFileError, TrainingError
from maury.labels.columns import Column
from maury.labels.flags import Flag
from maury.labels.statistics import robust_sigma
from maury.methods.fitting.survey_theory import SurveyTheory, filled_stars
from maury.methods.protocols import Sample
from maury.methods.registry import method_class, method_settings
from maury.methods.sme import Sme
from maury.model.directory import Model
from maury.prediction.streaming import predict
from maury.spectra.operators import fill_bad_pixels
from maury.training.runs import train

METHODS = ("athos", "cannon", "dd-payne", "ferre", "gaufre", "gauguin", "matisse", "payne", "space")
OPTIONS = {
    "athos": {"widths": [3, 6], "reach_aa": 12.0},
    "dd-payne": {"hidden": 40, "steps": 600, "guides": 300, "learning_rate": 0.01},
    "matisse": {"nodes": 4},
    "payne": {"hidden": 48, "steps": 600, "spectra": 800, "learning_rate": 0.01},
}


POWER = 6500.0 / (0.2 * 2.355)
"""Lines have a sigma of two pixels."""


def trained(name, sample, **options):
    if name == "space":
        # Its lines have profiles, whose width must be known.
        sample = replace(sample, resolving_power=POWER)
    settings = method_settings(name, OPTIONS.get(name, {}) | options)
    return method_class(name).train(sample, sample, settings=settings, seed=0)


def check(method, test, *, most=0.35, calibrated=2.0):
    """Labels follow the truth to `most` of its spread, and errors are not far too small."""
    found = method.apply(test.inputs)
    for name in ("teff", "logg"):
        column, own = test.label_names.index(name), found.label_names.index(name)
        error = found.labels[:, own] - test.truth[:, column]
        spread = test.truth[:, column].std()
        assert robust_sigma(error) < most * spread, name
        assert abs(np.median(error)) < 0.1 * spread, name
        assert robust_sigma(error / found.sigma[:, own]) < calibrated, name
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("names", [TWO, FIVE], ids=["2", "5"])
def test_any_labels_are_learnt_in_any_window(name, names):
    method = trained(name, made(names, 400, 1))
    found = check(method, made(names, 100, 2))
    assert set(found.label_names) == set(names)
    arrays, about = method.to_arrays()
    again = type(method).from_arrays(
        arrays, about, settings=method.settings, label_names=method.label_names
    )
    some = made(names, 5, 3).inputs
    np.testing.assert_array_equal(again.apply(some).labels, method.apply(some).labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_fourteen_labels_are_learnt(name):
    sample = made(FOURTEEN, 900, 1)
    found = check(trained(name, sample), made(FOURTEEN, 100, 2), most=0.6)
    assert set(found.label_names) == set(FOURTEEN)
    assert np.isfinite(found.labels).mean() > 0.99
    assert (found.sigma[np.isfinite(found.labels)] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_missing_labels_are_estimated_and_no_star_is_lost(name):
    """Of five labels 30 % each are missing, so that 17 % of the stars have all of them."""
    sample = made(FIVE, 500, 1)
    whole = check(trained(name, sample), made(FIVE, 150, 2))
    gaps = np.random.default_rng(3).random(sample.truth.shape) < 0.3
    lacking = replace(sample, truth=np.where(gaps, np.nan, sample.truth))
    test = made(FIVE, 150, 2)
    found = check(trained(name, lacking), test)
    scatter = [robust_sigma(one.labels[:, 0] - test.truth[:, 0]) for one in (whole, found)]
    assert scatter[1] < 1.5 * scatter[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_masked_pixels_are_missing_in_any_window(name):
    method, test = trained(name, made(FIVE, 500, 1)), made(FIVE, 150, 2)
    whole = method.apply(test.inputs)
    bad = np.random.default_rng(5).random(test.inputs.ivar.shape) < 0.15
    ivar = np.where(bad, 0, test.inputs.ivar).astype(np.float32)
    flux = fill_bad_pixels(np.where(bad, np.float32(1.5), test.inputs.flux), ivar)
    found = method.apply(replace(test.inputs, flux=flux, ivar=ivar))
    moved = (found.labels - whole.labels)[:, :2] / found.sigma[:, :2]
    assert (np.abs(np.median(moved, axis=0)) < 0.25).all()
    assert (np.median(found.sigma / whole.sigma, axis=0) > 0.9).all()
    blank = method.apply(replace(test.inputs, ivar=np.zeros_like(ivar)))
    assert np.isnan(blank.labels).all()


def test_theory_is_chosen_by_the_protocol_of_the_default_network():
    sample = made(FIVE, 200, 1)
    theory = SurveyTheory.lay(sample, seed=0)
    assert theory.choice.name == "learnt"
    assert "needs fe_h" in theory.choice.reason
    assert theory.checksum == ""
    unknown = replace(sample, resolving_power=None)
    assert SurveyTheory.lay(unknown, seed=0).choice.name == "learnt"
    with pytest.raises(ConfigError, match="resolving_power"):
        SurveyTheory.lay(unknown, wanted="emulator", seed=0)
    known = replace(sample, resolving_power=7500.0)
    with pytest.raises(ConfigError, match="reach beyond"):
        SurveyTheory.lay(known, wanted="emulator", seed=0)
    with pytest.raises(TrainingError, match="40 labelled stars are too few to learn"):
        SurveyTheory.lay(known.rows(np.arange(40)), seed=0)


def test_derivatives_of_a_learnt_theory_are_those_of_its_spectra():
    theory = SurveyTheory.lay(made(FIVE, 400, 1), seed=0)
    labels = made(FIVE, 6, 2).truth * 0.5 + np.median(theory.truth, axis=0) * 0.5
    slopes = theory.model.evaluate(theory.drawn(labels, 1.0, np.random.default_rng(0))).jacobian
    assert np.isfinite(slopes).all()
    exact = theory.learnt.typical_slopes(labels)
    for k in range(labels.shape[1]):
        step = 1e-2 * theory.learnt.scale[k] * np.eye(labels.shape[1])[k]
        ends = [theory.at_rest(labels + sign * step).astype(float) for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * step[k])
        assert exact[:, k] == pytest.approx(numeric, abs=0.01 * np.abs(numeric).max())


def test_synthetic_spectra_of_the_user_are_where_a_learnt_theory_begins(tmp_path):
    """From 80 stars: with a library of noise-free spectra theory errs less than without."""
    rng = np.random.default_rng(4)
    scaled = rng.uniform(-1, 1, (600, 5))
    centre, scale = np.array([SIZE.get(name, (0.0, 0.3)) for name in FIVE]).T
    wave = 6500.0 + 0.1 * np.arange(N_PIXEL)
    np.savez(
        tmp_path / "mine.npz",
        wave=wave,
        flux=lines(scaled, N_PIXEL),
        labels=scaled * scale + centre,
        label_names=np.array(FIVE),
        # As the survey: nothing is to be broadened.
        resolving_power=POWER,
    )
    few, test = made(FIVE, 80, 1), made(FIVE, 200, 2, snr=1e4)
    error = []
    for synthetic in ("", str(tmp_path / "mine.npz")):
        theory = SurveyTheory.lay(few, synthetic=synthetic, seed=0)
        error.append(np.std(theory.at_rest(test.truth) - test.inputs.flux))
    assert error[1] < 0.85 * error[0]


def test_a_label_that_no_star_has_is_told():
    sample = made(FIVE, 100, 1)
    truth = sample.truth.copy()
    truth[:, 4] = np.nan
    lacking = replace(sample, truth=truth)
    assert not np.isfinite(filled_stars(lacking).truth).all(axis=1).any()
    with pytest.raises(TrainingError, match="all of the labels"):
        trained("ferre", lacking)


def test_axes_that_theory_does_not_know_are_refused():
    sample = made(TWO, 120, 1)
    with pytest.raises(ConfigError, match="axes has m_h"):
        trained("ferre", sample, axes=["teff", "m_h"])
    assert trained("ferre", sample).core.grid.label_names == TWO
    iron = made(("teff", "fe_h"), 120, 1)
    assert trained("ferre", iron).core.grid.label_names == ("teff", "fe_h")
    alone = made(("mg_fe",), 120, 1)
    assert trained("ferre", alone).core.grid.label_names == ("mg_fe",)


def test_space_counts_lines_and_gives_limits():
    method, test = trained("space", made(FIVE, 400, 1)), made(FIVE, 60, 2)
    found = method.apply(test.inputs)
    assert {column.name for column in method.further_columns} == set(found.further)
    for k, name in enumerate(found.label_names):
        lower, upper = found.further[f"{name}_lower"], found.further[f"{name}_upper"]
        known = np.isfinite(lower) & np.isfinite(upper)
        assert known.mean() > 0.95
        assert (lower <= found.labels[:, k] + 1e-9)[known].all()
        assert (upper >= found.labels[:, k] - 1e-9)[known].all()
        half = np.median((upper - lower)[known] / 2 / found.sigma[known, k])
        assert 0.6 < half < 1.5, name
    counted = found.further["n_lines_mg"]
    assert (counted >= 1).all()
    noisy = replace(test.inputs, ivar=(test.inputs.ivar / 400).astype(np.float32))
    assert method.apply(noisy).further["n_lines_fe"].mean() < found.further["n_lines_fe"].mean()
    masked = replace(test.inputs, ivar=np.zeros_like(test.inputs.ivar))
    assert np.isnan(method.apply(masked).further["n_lines_mg"]).all()


@pytest.mark.slow
def test_space_fits_the_width_of_lines():
    """Spectra of a fifth more width: fitted, labels hold; not fitted, they move."""
    sample = made(FIVE, 400, 1)
    broad = made(FIVE, 100, 2)
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / (2 * np.sqrt(1.2**2 - 1))) ** 2)
    depth = [np.convolve(1 - row, kernel / kernel.sum(), "same") for row in broad.inputs.flux]
    flux = (1 - np.array(depth)).astype(np.float32)
    flux += np.random.default_rng(5).normal(0, 0.01, flux.shape).astype(np.float32)
    moved = []
    for width in (True, False):
        method = trained("space", sample, width=width)
        found = method.apply(replace(broad.inputs, flux=flux))
        error = (found.labels - broad.truth)[:, :2] / sample.truth[:, :2].std(axis=0)
        moved.append(np.sqrt(np.mean(error**2)))
    assert moved[0] < 0.9 * moved[1]


@pytest.mark.slow
def test_columns_of_a_method_of_its_own_stand_in_its_catalogues(tmp_path):
    survey = write_survey(tmp_path / "s.zarr", n=400, resolving_power=3500)
    model = train(survey, tmp_path / "m", method="space", seed=1)
    assert model.errors_calibrated
    named = [column.name for column in Model.open(tmp_path / "m").further_columns]
    assert named[:2] == ["teff_lower", "teff_upper"]
    for suffix in ("fits", "parquet"):
        table = predict(model, survey, tmp_path / f"c.{suffix}").table
        assert set(named) <= set(table.colnames)
        known = np.isfinite(np.asarray(table["teff_lower"]))
        assert known.mean() > 0.9
        assert (table["teff_lower"] <= table["teff_upper"])[known].all()
    wrong = model.attachments["method"].metadata | {"further_columns": [{"name": "Drop table"}]}
    damaged = model.with_arrays("method", model.arrays("method"), metadata=wrong)
    with pytest.raises(ModelFileError, match="further_columns"):
        _ = damaged.further_columns
    wrong["further_columns"] = [asdict(Column("Two words", "", "", ""))]
    damaged = model.with_arrays("method", model.arrays("method"), metadata=wrong)
    with pytest.raises(ModelFileError, match="names that are none"):
        _ = damaged.further_columns


@pytest.mark.slow
def test_matisse_learns_from_noise_free_spectra_of_theory():
    sample, test = made(FIVE, 500, 1, snr=30.0), made(FIVE, 200, 2)
    scatter = []
    for spectra in ("observed", "theory"):
        found = trained("matisse", sample, spectra=spectra).apply(test.inputs)
        scatter.append([robust_sigma(one) for one in (found.labels - test.truth)[:, :3].T])
        z = (found.labels - test.truth) / found.sigma
        assert (np.array([robust_sigma(one) for one in z.T]) > 0.5).all()
    assert np.median(np.divide(*scatter[::-1])) < 1.0


def test_gauguin_gives_upper_limits_of_each_element_and_counts_its_lines():
    names = (*FIVE, "ni_fe")
    method, test = trained("gauguin", made(names, 500, 1)), made(names, 80, 2)
    found = method.apply(test.inputs)
    assert set(found.further) == {"mg_fe_limit", "n_lines_mg_fe", "ni_fe_limit", "n_lines_ni_fe"}
    assert {column.name for column in method.further_columns} == set(found.further)
    assert (found.further["n_lines_mg_fe"] >= 1).all()
    seen = [np.isnan(found.further[f"{name}_limit"]).mean() for name in ("mg_fe", "ni_fe")]
    assert min(seen) > 0.7
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.5, test.inputs.flux.shape).astype(np.float32)
    ivar = np.full(noise.shape, 4.0, dtype=np.float32)
    noisy = method.apply(replace(test.inputs, flux=test.inputs.flux + noise, ivar=ivar))
    for name in ("mg_fe", "ni_fe"):
        limit, k = noisy.further[f"{name}_limit"], noisy.label_names.index(name)
        assert np.isfinite(limit).mean() > 0.5
        known = np.isfinite(limit)
        assert (limit > noisy.labels[:, k])[known].all()
        assert (limit > test.truth[:, names.index(name)])[known].mean() > 0.9
    blank = method.apply(replace(test.inputs, ivar=np.zeros_like(ivar)))
    assert np.isnan(blank.further["mg_fe_limit"]).all()
    earlier = replace(method, tells_limits=False).apply(test.inputs)
    assert not earlier.further


def test_fits_that_go_to_and_fro_on_a_linear_grid_settle_on_a_smooth_one():
    method, test = trained("gauguin", made(FIVE, 400, 1)), made(FIVE, 150, 2)
    bare = method.core.fit(test.inputs)
    restless = replace(bare, flags=np.where(np.arange(150) < 5, Flag.NOT_CONVERGED.value, 0))
    settled = method._settled(restless, test.inputs, {})
    assert not (settled.flags[:5] & Flag.NOT_CONVERGED.value).any()
    # The same minimum, but for what a straight line between nodes errs by.
    moved = np.abs(settled.labels - bare.labels)[:5, :2] / bare.sigma[:5, :2]
    assert (moved < 3.0).all()
    np.testing.assert_array_equal(settled.labels[5:], bare.labels[5:])


class Synthetic:
    """A synthesis code for tests: two lines, of which one tells log g, and a rotation."""

    def synthesise(self, labels, wave_aa):
        depth = 0.4 - (labels["teff"] - 5000) / 5000
        width = np.hypot(0.5, 0.02 * labels.get("vsini", 3.0))
        first = depth * np.exp(-0.5 * ((wave_aa - 6510) / width) ** 2) * 0.5 / width
        second = (0.2 + 0.1 * labels["logg"]) * np.exp(-0.5 * ((wave_aa - 6520) / width) ** 2)
        return 1 - first - second * 0.5 / width


def synthesised(n, seed, *, vsini=3.0, rv=0.0, tilt=0.0):
    rng = np.random.default_rng(seed)
    truth = np.column_stack([rng.uniform(4200, 5800, n), rng.uniform(1, 4, n)])
    wave = 6500.0 + 0.1 * np.arange(N_PIXEL)
    rest = wave / (1 + rv / 299792.458)
    spectra = [
        Synthetic().synthesise({"teff": t, "logg": g, "vsini": vsini}, rest) for t, g in truth
    ]
    flux = np.stack(spectra) * (1 + tilt * np.linspace(-1, 1, N_PIXEL))
    flux += 0.01 * rng.standard_normal(flux.shape)
    inputs = inputs_of(flux, np.full(flux.shape, 1e4))
    return Sample(
        labels=tuple(definition(name) for name in TWO),
        truth=truth,
        truth_error=np.full(truth.shape, np.nan),
        inputs=replace(inputs, wave_aa=wave),
        star_id=np.array([f"{seed}-{k}" for k in range(n)]),
        resolving_power=28_000.0,
        simulated=True,
    )


class Made(Sme):
    """SME with that synthesis code."""

    def synthesiser(self):
        return Synthetic()

    def checksum(self):
        return "fixed"


def made_sme(**options):
    settings = method_settings("sme", {"labels": list(TWO), **options})
    sample = synthesised(60, 1)
    return Made.train(sample, sample, settings=settings, seed=0)


def off(method, sample):
    found = method.apply(sample.inputs)
    error = (found.labels - sample.truth) / found.sigma
    return np.abs(np.median(error, axis=0)).max(), found


def test_sme_fits_velocity_and_continuum_with_the_labels():
    moved = synthesised(60, 2, rv=10.0, tilt=0.008)
    with_them, found = off(made_sme(rv_error_kms=6.0), moved)
    without, _ = off(made_sme(nuisances=False), moved)
    assert with_them < 0.7
    assert without > 1.5 * with_them
    assert set(found.label_names) == set(TWO)
    assert set(found.further) == {"teff_pixel_error", "logg_pixel_error"}
    # Of single pixels, not of all together.
    assert (found.further["teff_pixel_error"] > found.sigma[:, 0]).mean() > 0.9
    assert not made_sme(empirical=False).apply(moved.inputs).further
    blank = replace(moved.inputs, ivar=np.zeros_like(moved.inputs.ivar))
    assert np.isnan(made_sme().apply(blank).further["teff_pixel_error"]).all()


def test_sme_frees_rotation_where_it_is_no_label():
    broad = synthesised(60, 3, vsini=18.0)
    assert off(made_sme(free=["vsini"]), broad)[0] < 0.8
    assert off(made_sme(), broad)[0] > 2.0


def test_sme_fits_segments_alone():
    sample = synthesised(40, 4)
    method = made_sme(segments=[[6505.0, 6528.0]])
    flux = sample.inputs.flux.copy()
    flux[:, sample.wave_aa > 6528.5] = 0.3
    whole, cut = sample.inputs, replace(sample.inputs, flux=flux)
    same = method.apply(whole).labels, method.apply(cut).labels
    np.testing.assert_allclose(*same, rtol=1e-3)
    with pytest.raises(ConfigError, match="lies in the segments"):
        _ = made_sme(segments=[[7000.0, 7010.0]]).window


def test_sme_of_earlier_versions_fits_as_it_did():
    method = made_sme(free=["vsini"])
    arrays, about = method.to_arrays()
    del about["fits_more"]
    earlier = Made.from_arrays(arrays, about, settings=method.settings, label_names=TWO)
    assert earlier.model.label_names == TWO
    assert not earlier.apply(synthesised(3, 5).inputs).further
