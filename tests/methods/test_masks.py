"""Masked pixels: every method gives labels without bias, and errors that hold and grow."""

from dataclasses import replace

import numpy as np
import pytest

from builders.method_samples import draw_labels, inputs_of, lines, sample_of
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag
from maury.labels.statistics import robust_sigma
from maury.methods.athos import Athos, AthosSettings
from maury.methods.cannon import Cannon, CannonSettings
from maury.methods.fitting.completion import SpectrumStatistics
from maury.methods.matisse import Matisse, MatisseSettings
from maury.methods.registry import METHODS, method_class, method_settings
from maury.methods.training import MethodConfig, collect, fit_method
from maury.spectra.operators import fill_bad_pixels
from maury.survey.store import Survey

MASKS = (0.02, 0.1, 0.3, "gap")
CA_II_AA = 8662.14
SMALL_AXES = {"axes": ["teff", "logg", "m_h"]}
OPTIONS = {
    "athos": {"ratios": 10},
    "cannon": {"labels": ["teff", "logg", "m_h"]},
    "dd-payne": {
        "labels": ["teff", "logg", "m_h", "fe_h"],
        "steps": 400,
        "guides": 300,
        "hidden": 40,
    },
    "ferre": {},
    "gaufre": SMALL_AXES,
    "gauguin": SMALL_AXES,
    "matisse": {},
    "payne": {},
    "payne-photometry": {},
    "space": {},
}
QUICK = ("athos", "cannon", "matisse")
SYNTHETIC = ("sme", "synspec")


def masked(inputs, kind, centre_aa=CA_II_AA):
    """Mask a share of the pixels, or 17 over a line, and fill them as the preparation does."""
    pixel_aa = np.median(np.diff(inputs.wave_aa))
    bad = np.abs(inputs.wave_aa - centre_aa) <= 8.3 * pixel_aa
    if kind != "gap":
        bad = np.random.default_rng(5).random(inputs.ivar.shape) < kind
    ivar = np.where(bad, 0, inputs.ivar).astype(np.float32)
    return replace(inputs, flux=fill_bad_pixels(inputs.flux, ivar), ivar=ivar)


def check(method, inputs, truth, *, centre_aa=CA_II_AA, shrinks=0.0):
    """Compare labels and errors under masks with those of the whole spectra."""
    whole = method.apply(inputs)
    for kind in MASKS:
        found = method.apply(masked(inputs, kind, centre_aa))
        for k, name in enumerate(method.label_names):
            both = np.isfinite(found.sigma[:, k]) & np.isfinite(whole.sigma[:, k])
            # Some stars have no good pixel left in the windows of an element.
            assert both.mean() > 0.85, (kind, name)
            sigma = found.sigma[both, k]
            moved = (found.labels - whole.labels)[both, k] / sigma
            assert abs(np.median(moved)) < 0.2, (kind, name)
            z = robust_sigma((found.labels[both, k] - truth[both, k]) / sigma)
            before = robust_sigma((whole.labels - truth)[both, k] / whole.sigma[both, k])
            assert z < 1.25 * max(before, 1.0), (kind, name, z, before)
            growth = np.median(sigma / whole.sigma[both, k])
            assert growth > 1.0 - shrinks, (kind, name, growth)


@pytest.fixture(scope="module")
def survey(default_survey):
    return Survey.open(default_survey)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in OPTIONS],
)
def test_labels_and_errors_of_simulated_stars_hold_under_masks(survey, name):
    options = OPTIONS[name]
    config = MethodConfig.resolve(name, {"method": options})
    names = options.get("labels", LABEL_NAMES)
    stars = collect(survey, names, preparation=config.preparation, split=config.split, seed=0)
    method = fit_method(config, stars, seed=0)
    some = stars.sample.rows(np.arange(150))
    truth = some.truth[:, [some.label_names.index(n) for n in method.label_names]]
    # Of 150 stars some go to another node, or take another velocity, with another error; pixels
    # completed from all others have less noise, which shows in the scatter among ratios. The
    # Cannon weighs no misfit that pixels have in common, so that its errors may fall with them.
    check(method, some.inputs, truth, shrinks=0.04 if name in ("athos", "cannon") else 0.02)


class Analytic:
    """A synthesis code of two labels, for tests."""

    def synthesise(self, labels, wave_aa):
        depth = 0.4 - (labels["teff"] - 5000) / 5000
        broad = 1.0 + 0.3 * labels.get("logg", 1.0)
        second = 0.2 * np.exp(-0.5 * ((wave_aa - 8440) / 1.5) ** 2) * (1 - depth)
        return 1 - depth * np.exp(-0.5 * ((wave_aa - 8430) / broad) ** 2) - second


def test_a_synthesis_fits_masked_spectra():
    from maury.methods.sme import Sme

    class Quick(Sme):
        def synthesiser(self):
            return Analytic()

        def checksum(self):
            return "fixed"

    rng = np.random.default_rng(2)
    truth = np.column_stack([rng.uniform(4200, 5800, 200), rng.uniform(1, 4, 200)])
    wave = 8420 + 0.4 * np.arange(80)
    clean = [Analytic().synthesise({"teff": t, "logg": g}, wave) for t, g in truth]
    noisy = np.stack(clean) + 0.01 * rng.normal(size=(200, 80))
    sample = sample_of(truth, noisy, np.full(noisy.shape, 1e4), names=("teff", "logg"))
    settings = method_settings("sme", {"labels": ["teff", "logg"]})
    check(
        Quick.train(sample, sample, settings=settings, seed=0),
        sample.inputs,
        truth,
        centre_aa=8440.0,
    )


def test_a_synthesised_grid_fits_masked_spectra(tmp_path):
    folder = tmp_path / "grid"
    folder.mkdir()
    wave = np.arange(8415.0, 8460.0, 0.1)
    rows = ["file,teff,logg"]
    for teff in np.arange(4000.0, 6001.0, 250.0):
        for logg in np.arange(0.5, 4.6, 0.5):
            flux = Analytic().synthesise({"teff": teff, "logg": logg}, wave)
            np.savetxt(folder / f"{teff:.0f}_{logg}.txt", np.column_stack([wave, flux]))
            rows.append(f"{teff:.0f}_{logg}.txt,{teff},{logg}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    rng = np.random.default_rng(4)
    truth = np.column_stack([rng.uniform(4400, 5600, 200), rng.uniform(1, 4, 200)])
    pixels = 8420 + 0.4 * np.arange(80)
    clean = [Analytic().synthesise({"teff": t, "logg": g}, pixels) for t, g in truth]
    noisy = np.stack(clean) + 0.01 * rng.normal(size=(200, 80))
    sample = sample_of(truth, noisy, np.full(noisy.shape, 1e4), names=("teff", "logg"))
    options = {"directory": str(folder), "axes": ["teff", "logg"], "components": 0}
    # The spectra of the directory have the widths of the survey already.
    options |= {"resolving_power": 0.0}
    settings = method_settings("synspec", options | {"nuisances": False})
    method = method_class("synspec").train(sample, sample, settings=settings, seed=0)
    check(method, sample.inputs, truth, centre_aa=8440.0)


def test_every_registered_method_is_tried_under_masks():
    assert {*OPTIONS, *SYNTHETIC} == set(METHODS)


def made(n, seed, *, snr=60.0):
    rng = np.random.default_rng(seed)
    scaled, truth = draw_labels(n, rng)
    clean = lines(scaled)
    return truth, clean + rng.standard_normal(clean.shape) / snr, np.full(clean.shape, snr**2)


TRAIN = {
    "athos": lambda s: Athos.train(
        s, s, settings=AthosSettings(ratios=8, widths=(3, 6), reach_aa=20.0), seed=0
    ),
    "cannon": lambda s: Cannon.train(s, s, settings=CannonSettings(), seed=0),
    "matisse": lambda s: Matisse.train(
        s, s, settings=MatisseSettings(nodes=4, neighbours=300), seed=0
    ),
}


@pytest.mark.parametrize(("name", "growth"), [("athos", 1.03), ("cannon", 1.3), ("matisse", 1.2)])
def test_lines_that_alone_tell_of_a_label_are_missed_in_its_error(name, growth):
    """Two lines follow each label: the error grows without one of them."""
    truth, flux, ivar = made(900, 1)
    method = TRAIN[name](sample_of(truth, flux, ivar))
    truth, flux, ivar = made(900, 2)
    whole = method.apply(inputs_of(flux, ivar))
    ivar[:, 4:22] = 0.0
    flux[:, 4:22] = 1.0
    found = method.apply(inputs_of(flux, ivar))
    assert np.median(found.sigma[:, 0] / whole.sigma[:, 0]) > growth
    z = (found.labels - truth) / found.sigma
    assert 0.7 < robust_sigma(z[:, 0]) < 1.3
    assert abs(np.median(z[:, 0])) < 0.15


@pytest.mark.parametrize("name", ["athos", "matisse"])
def test_models_without_statistics_of_spectra_quote_larger_errors(name):
    sample = sample_of(*made(300, 3))
    method = TRAIN[name](sample)
    old = replace(method, spectra=None)
    arrays, about = old.to_arrays()
    assert not any(key.startswith("spectra") for key in arrays)
    again = type(old).from_arrays(arrays, about, settings=old.settings, label_names=old.label_names)
    seen = sample.inputs
    assert (again.apply(seen).labels == method.apply(seen).labels).all()
    gap = masked(seen, "gap", seen.wave_aa[16])
    assert (again.apply(gap).sigma[:, 0] > method.apply(gap).sigma[:, 0]).all()


def test_statistics_of_spectra_give_the_mean_and_variance_of_what_is_masked():
    """Against the conditional normal distribution, and the law of the labels in dense algebra."""
    rng = np.random.default_rng(6)
    patterns = rng.normal(size=(3, 40)).astype(np.float32) * 0.1
    rest = np.full(40, 1e-4, dtype=np.float32)
    known = SpectrumStatistics(np.ones(40, dtype=np.float32), patterns, rest)
    bad = np.zeros(40, dtype=bool)
    bad[10:18] = bad[30] = True
    ivar = np.where(bad, 0, rng.uniform(500, 2000, 40)).astype(np.float32)[None]
    flux = (1 + rng.normal(size=(1, 3)) @ patterns).astype(np.float32)
    found = known.complete(np.where(bad, np.float32(np.nan), flux), ivar)
    covariance = patterns.T @ patterns + np.diag(rest)
    noise = np.diag(1 / ivar[0, ~bad])
    seen = covariance[np.ix_(~bad, ~bad)] + noise
    gain = covariance[np.ix_(bad, ~bad)] @ np.linalg.inv(seen)
    expected = 1 + gain @ (flux[0, ~bad] - 1)
    assert found.flux[0, bad] == pytest.approx(expected, abs=1e-4)
    function = rng.normal(size=(40, 2))
    effective = known.effective(found, function)
    whole = np.zeros((40, 40))
    whole[np.ix_(~bad, ~bad)] = np.eye((~bad).sum())
    whole[np.ix_(bad, ~bad)] = gain
    # The error of the function of the completed spectrum: what it is less what it should be.
    wrong = whole - np.eye(40)
    expected = np.diag(function.T @ wrong @ covariance @ wrong.T @ function)
    assert effective.variance[0] == pytest.approx(expected, rel=1e-3)
    assert effective.coefficients[0] == pytest.approx(whole.T @ function, abs=1e-4)


def test_completed_spectra_may_have_any_level():
    _, flux, ivar = made(500, 7)
    known = SpectrumStatistics.learn(flux.astype(np.float32), ivar.astype(np.float32))
    cut = ivar.copy()
    cut[:, 30:40] = 0
    one = known.complete(flux[:20].astype("f4"), cut[:20].astype("f4"), scaled=True)
    three = known.complete(3 * flux[:20].astype("f4"), cut[:20].astype("f4") / 9, scaled=True)
    assert three.flux == pytest.approx(3 * one.flux, rel=1e-4)
    assert three.scale == pytest.approx(3 * one.scale, rel=1e-4)
    assert np.abs(one.flux - flux[:20])[:, 30:40].std() < 2 / 60


@pytest.mark.slow
def test_iron_lines_that_are_too_few_leave_the_library_as_it_is(survey):
    config = MethodConfig.resolve("gaufre", {"method": {**SMALL_AXES, "mode": "ew"}})
    stars = collect(survey, LABEL_NAMES, preparation=config.preparation, split=config.split, seed=0)
    method = fit_method(config, stars, seed=0)
    inputs = stars.sample.rows(np.arange(20)).inputs
    at_rest = replace(method, settings=method.settings.model_copy(update={"velocity_range_kms": 0}))
    windows = (method.iron.windows[3:] > 0).any(axis=0)
    few = replace(inputs, ivar=np.where(windows, 0, inputs.ivar).astype(np.float32))
    found, library = at_rest.apply(few), replace(at_rest, iron=None).apply(few)
    np.testing.assert_allclose(found.labels, library.labels)
    assert ((found.flags & Flag.NOT_CONVERGED.value) != 0).all()
    assert (found.sigma[:, :3] > 0).all()
