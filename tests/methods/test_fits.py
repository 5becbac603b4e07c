"""Methods that fit theory: trained on a small simulated survey, saved, applied, and honest."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest

from builders.method_samples import inputs_of
from builders.training_survey import write_survey
from maury.errors import (
    ConfigError,
    InputFileError,
    MissingExtra,
    ModelFileError,
    TrainingError,
    UnknownName,
)
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag
from maury.labels.statistics import robust_sigma
from maury.methods.fitting.synthesis import (
    CommandSynthesiser,
    PySmeSynthesiser,
    SynthesiserModel,
    composition,
)
from maury.methods.fitting.theory import draw_nuisances
from maury.methods.gaufre import cross_correlate
from maury.methods.lines import LineModel
from maury.methods.protocols import External
from maury.methods.registry import METHODS, load_method, method_class, method_settings
from maury.methods.training import MethodConfig, collect, fit_method
from maury.model.directory import Model
from maury.prediction.streaming import predict, predict_rows
from maury.simulation.bound import cramer_rao
from maury.spectra.noise import RAVE_CORRELATION
from maury.survey.store import Survey
from maury.training.runs import train

SMALL_AXES = {"axes": ["teff", "logg", "m_h"]}
OPTIONS = {
    "payne": {},
    "payne-photometry": {},
    "ferre": {},
    "gauguin": SMALL_AXES,
    "gaufre": {**SMALL_AXES, "mode": "ew"},
    "space": {},
}


@pytest.fixture(scope="module")
def stars(default_survey):
    config = MethodConfig.resolve("payne")
    survey = Survey.open(default_survey)
    return collect(survey, LABEL_NAMES, preparation=config.preparation, split=config.split, seed=0)


@pytest.fixture(scope="module")
def payne(stars):
    return fit_method(MethodConfig.resolve("payne"), stars, seed=0)


def test_the_payne_is_a_theory_for_others(payne, stars):
    theory = payne.as_theory()
    assert theory.names == LABEL_NAMES
    some = stars.sample.rows(np.arange(50))
    own = theory.spectra(some.truth) - some.inputs.flux
    of_others = theory.spectra(np.roll(some.truth, 1, axis=0)) - some.inputs.flux
    chi2 = [np.mean(apart**2 * some.inputs.ivar) for apart in (own, of_others)]
    # Spectra of typical stars of these labels: what is left is noise, continuum and broadening.
    assert chi2[0] < 1.5
    assert chi2[0] < 0.7 * chi2[1]


def own_spectra(chain, nine, *, snr, seed, rv=1.3):
    """Spectra simulated from a chain itself, its nuisances drawn from their priors."""
    rng = np.random.default_rng(seed)
    labels = draw_nuisances(chain, nine, rv, rng)
    clean = chain.evaluate(labels, jacobian=False).flux
    white = rng.normal(size=(len(clean), clean.shape[1] + 2))
    unit = (white[:, 1:-1] + 0.247 * (white[:, 2:] + white[:, :-2])) / np.sqrt(1 + 2 * 0.247**2)
    ivar = snr**2 / np.maximum(clean, 0.05)
    flux = clean + unit * np.sqrt(1 / ivar + chain.own_variance)
    return inputs_of(flux, ivar, noise_correlation=RAVE_CORRELATION)


def test_all_methods_are_known_by_name():
    for name in METHODS:
        assert method_class(name).name == name
        assert method_class(name).paper
        assert method_class(name).bibtex_key
    with pytest.raises(UnknownName, match="did you mean 'payne'"):
        method_class("paine")
    with pytest.raises(ConfigError, match="rv_error_kms"):
        method_settings("payne", {"rv_error_km": 1.0})


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_trained_saved_and_applied(tmp_path, default_survey, name):
    path = tmp_path / "model"
    model = train(default_survey, path, method=name, config={"method": OPTIONS[name]}, seed=3)
    assert model.is_method
    assert name in repr(model)
    assert model.label_names == LABEL_NAMES
    survey = Survey.open(default_survey)
    star = survey.star_id
    rows = np.flatnonzero(model.split.contains("test", star))
    table = predict_rows(Model.open(path), survey, rows)
    truth = survey.labels(LABEL_NAMES)[rows]
    for k, limit in ((1, 0.6), (2, 0.5 if name == "gaufre" else 0.25)):
        label = LABEL_NAMES[k]
        assert np.median(np.abs(table[label] - truth[:, k])) < limit, label
        assert (table[f"{label}_error"] > 0).all()
    assert np.isfinite(table["chi2_reduced"]).all()
    method = load_method(model)
    again = type(method).from_arrays(
        *method.to_arrays(), settings=method.settings, label_names=method.label_names
    )
    inputs = model.preparation.apply(survey.rows(rows[:5]))
    assert (again.apply(inputs).labels == method.apply(inputs).labels).all()


@pytest.mark.slow
def test_errors_hold_on_spectra_of_the_model_and_are_near_the_bound(payne, stars):
    nine = np.repeat(stars.part("train").truth, 2, axis=0)
    # Wider than among real stars, so that the bounds and the wide prior are not what is measured.
    nine[:, 5:] += 0.15 * np.random.default_rng(4).standard_normal((len(nine), 4))
    low, high = payne.chain.bounds[:9].T
    nine = np.clip(nine, low + 0.05 * (high - low), high - 0.05 * (high - low))
    inputs = own_spectra(payne.chain, nine, snr=100.0, seed=1)
    found = payne.apply(inputs)
    fine = (found.flags & Flag.NOT_CONVERGED.value) == 0
    assert fine.mean() > 0.97
    error = (found.labels - nine)[fine]
    bound = cramer_rao(nine[fine], 100.0)
    for k, name in enumerate(LABEL_NAMES):
        z = robust_sigma(error[:, k] / found.sigma[fine, k])
        assert 0.9 < z < 1.1, (name, z)
    ratio = [robust_sigma(error[:, k] / bound[:, k]) for k in range(9)]
    assert np.median(ratio) < 1.3
    assert np.median(found.chi2_reduced) == pytest.approx(1.0, abs=0.05)


def test_an_external_gravity_is_kept_or_weighed(payne, stars):
    some = stars.part("test").rows(np.arange(8))
    truth = some.truth[:, 1]
    exact = payne.apply(some.inputs, external={"logg": External(truth, np.full(8, np.nan))})
    assert exact.labels[:, 1] == pytest.approx(truth)
    assert (exact.sigma[:, 1] == 0).all()
    weighed = payne.apply(some.inputs, external={"logg": External(truth, np.full(8, 0.03))})
    free = payne.apply(some.inputs)
    assert (weighed.sigma[:, 1] < 0.031).all()
    assert (weighed.sigma[:, 0] < free.sigma[:, 0]).all()
    missing = payne.apply(some.inputs, external={"logg": External(truth * np.nan, truth * np.nan)})
    assert missing.labels == pytest.approx(free.labels)


@pytest.mark.slow
def test_an_external_column_is_taken_from_the_survey(tmp_path, default_survey):
    config = {"method": {"external": ["logg"], **SMALL_AXES}}
    model = train(default_survey, tmp_path / "m", method="ferre", config=config)
    survey = Survey.open(default_survey)
    table = predict_rows(model, survey, np.arange(6))
    given, error = survey.column("logg")[:6], survey.column("logg_error")[:6]
    assert table["logg"] == pytest.approx(given, abs=3 * error.max())
    # Fits that are given a label are other fits, star by star: their errors are the formal ones.
    assert (table["logg_formal_error"] <= error).all()


@pytest.mark.slow
def test_a_row_without_spectrum_is_nan_and_the_catalogue_says_how_errors_were_made(
    tmp_path, default_survey
):
    model = train(default_survey, tmp_path / "m", method="ferre", config={"method": SMALL_AXES})
    catalogue = predict(model, default_survey, tmp_path / "c.parquet", correlations=True)
    assert "teff_logg_corr" in catalogue.table.colnames
    assert "residuals of training and validation stars" in catalogue.metadata["errors"]
    inputs = model.preparation.apply(Survey.open(default_survey).rows([0, 1]))
    blank = replace(inputs, ivar=inputs.ivar * np.array([[0], [1]], dtype=np.float32))
    found = load_method(model).apply(blank)
    assert np.isnan(found.labels[0]).all()
    assert np.isfinite(found.labels[1]).all()


@pytest.mark.slow
def test_theory_serves_where_labels_are_few(tmp_path, tiny_survey):
    survey = Survey.open(tiny_survey)
    config = MethodConfig.resolve("payne", {"method": {"calibrate": False}})
    few = collect(
        survey, ("teff", "logg"), preparation=config.preparation, split=config.split, seed=0
    )
    method = fit_method(config, few, seed=0)
    assert method.label_names == ("teff", "logg")
    part = few.part("test")
    error = method.apply(part.inputs).labels - part.truth
    assert np.median(np.abs(error[:, 0])) < 150


def test_spectra_beyond_the_emulator_are_refused(stars):
    part = stars.part("train")
    far = replace(part, inputs=replace(part.inputs, wave_aa=part.wave_aa - 1000))
    emulator = method_settings("payne", {"theory": "emulator"})
    with pytest.raises(ConfigError, match="emulator"):
        method_class("payne").train(far, far, settings=emulator, seed=0)


@pytest.mark.parametrize("velocity", [-240.0, -31.0, 0.0, 87.5])
def test_velocities_by_cross_correlation(payne, stars, velocity):
    nine = stars.part("test").truth[:4]
    labels = np.zeros((4, len(payne.chain.label_names)))
    labels[:, :9] = nine
    templates = payne.chain.evaluate(labels, jacobian=False).flux
    wave = payne.chain.wave_aa
    rest = wave / (1 + velocity / 299792.458)
    moved = np.stack([np.interp(rest, wave, row) for row in templates])
    rng = np.random.default_rng(1)
    noisy = (moved + 0.02 * rng.normal(size=moved.shape)).astype(np.float32)
    ivar = np.full(noisy.shape, 2500.0, dtype=np.float32)
    found = cross_correlate(wave, noisy, ivar, templates, range_kms=300.0)
    assert found == pytest.approx(velocity, abs=3.0)
    # A gap over a strong line, wherever it is now, with anything in it.
    gap = np.abs(wave - 8662.14 * (1 + velocity / 299792.458)) < 3.5
    spoilt = np.where(gap, np.float32(2.0), noisy)
    cut = np.where(gap, 0, ivar).astype(np.float32)
    found = cross_correlate(wave, spoilt, cut, templates, range_kms=300.0)
    assert found == pytest.approx(velocity, abs=3.0)


@pytest.mark.slow
def test_lines_have_the_derivatives_of_their_polynomials(stars):
    method = fit_method(MethodConfig.resolve("space"), stars, seed=0)
    model = method.lines
    assert isinstance(model, LineModel)
    labels = stars.part("test").truth[:4]
    jacobian = model.evaluate(labels).jacobian
    for k, step in enumerate([5.0] + [0.01] * 8):
        move = step * np.eye(9)[k]
        ends = [model.evaluate(labels + s * move).flux.astype(float) for s in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert jacobian[:, k] == pytest.approx(numeric, abs=0.01 * np.abs(numeric).max())


class Analytic:
    """A synthesis code of two labels, for tests."""

    def synthesise(self, labels, wave_aa):
        depth = 0.4 - (labels["teff"] - 5000) / 5000
        broad = 1.0 + 0.3 * labels["logg"]
        return 1 - depth * np.exp(-0.5 * ((wave_aa - 8430) / broad) ** 2)


def test_a_synthesis_is_differentiated_inwards():
    bounds = np.array([[4000.0, 6000.0], [0.0, 5.0]])
    model = SynthesiserModel(Analytic(), ("teff", "logg"), bounds, 8420 + 0.4 * np.arange(50))
    labels = np.array([[6000.0, 5.0], [5000.0, 2.0]])
    jacobian = model.evaluate(labels).jacobian
    expected = np.exp(-0.5 * ((model.wave_aa - 8430) / 2.5) ** 2) / 5000
    assert jacobian[0, 0] == pytest.approx(expected, rel=0.02, abs=1e-7)


def test_sme_fits_by_synthesis(tmp_path, stars, monkeypatch):
    from maury.methods.sme import Sme

    class Quick(Sme):
        def synthesiser(self):
            return Analytic()

        def checksum(self):
            return "fixed"

    rng = np.random.default_rng(2)
    wave = 8420 + 0.4 * np.arange(60)
    truth = np.column_stack([rng.uniform(4200, 5800, 80), rng.uniform(1, 4, 80)])
    code = Analytic()
    clean = np.stack([code.synthesise({"teff": t, "logg": g}, wave) for t, g in truth])
    noisy = clean + 0.01 * rng.normal(size=clean.shape)
    from builders.method_samples import sample_of

    sample = sample_of(truth, noisy, np.full(noisy.shape, 1e4), names=("teff", "logg"))
    settings = method_settings("sme", {"labels": ["teff", "logg"]})
    method = Quick.train(sample, sample, settings=settings, seed=0)
    found = method.apply(sample.inputs)
    z = (found.labels - truth) / found.sigma
    assert 0.8 < robust_sigma(z[:, 0]) < 1.2
    changed = replace(method, source="other")
    with pytest.raises(ModelFileError, match="has changed"):
        changed.apply(sample.inputs)
    with pytest.raises(ConfigError, match="line list"):
        Sme.train(sample, sample, settings=settings, seed=0)
    with pytest.raises(ConfigError, match="cannot do without logg"):
        Sme.train(sample, sample, settings=method_settings("sme", {"labels": ["teff"]}), seed=0)


def test_pysme_is_asked_for_what_the_labels_say(monkeypatch, tmp_path):
    asked = {}

    class Abundances:
        """As in PySME: read with [M/H], written without."""

        elem = ("Mg", "Fe")

        def __init__(self, monh, pattern):
            self.monh, self.pattern = monh, {"Mg": 7.5, "Fe": 7.4}

        def __getitem__(self, element):
            return self.pattern[element] + self.monh

        def update_pattern(self, new):
            self.pattern |= new

    def synthesize_spectrum(sme):
        asked.update(vars(sme), mg=sme.abund["Mg"])
        sme.synth = [np.ones(sme.wave.size)]
        return sme

    parts = {
        "sme": types.SimpleNamespace(
            SME_Structure=lambda: types.SimpleNamespace(atmo=types.SimpleNamespace())
        ),
        "abund": types.SimpleNamespace(Abund=Abundances),
        "linelist.vald": types.SimpleNamespace(ValdFile=lambda path: f"lines of {path}"),
        "synthesize": types.SimpleNamespace(synthesize_spectrum=synthesize_spectrum),
    }
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, f"pysme.{name}", part)
    for name in ("pysme", "pysme.linelist"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    code = PySmeSynthesiser(tmp_path / "x.lin", "marcs2012.sav", 7500.0)
    labels = {"teff": 5000.0, "logg": 3.0, "m_h": -0.2, "vmic": 1.4, "mg_fe": 0.3}
    assert code.synthesise(labels, np.arange(8420.0, 8430.0)).shape == (10,)
    assert asked["teff"] == 5000.0
    assert asked["vmic"] == 1.4
    assert asked["mg"] == pytest.approx(7.5 - 0.2 + 0.3)
    code.synthesise(
        {"teff": 5000.0, "logg": 3.0, "m_h": -1.0, "mg_fe": 0.0}, np.arange(8420.0, 8430.0)
    )
    assert asked["mg"] == pytest.approx(6.5)
    with pytest.raises(ConfigError, match="no element Zz"):
        code.synthesise({"teff": 5000.0, "logg": 3.0, "zz_fe": 0.0}, np.arange(8420.0, 8430.0))
    assert asked["ipres"] == 7500.0


def test_abundances_of_a_synthesis_are_those_of_the_labels():
    assert composition({"teff": 5000.0, "m_h": -1.0}) == {}
    found = composition({"m_h": -1.0, "fe_h": -1.1, "alpha_m": 0.2, "mg_fe": 0.4})
    assert found == pytest.approx(
        {
            **dict.fromkeys(("Fe", "Cr", "Al", "Ni"), -0.1),
            **dict.fromkeys(("O", "Si", "S", "Ca", "Ti"), 0.2),
            "Mg": 0.3,
        }
    )
    assert composition({"m_h": -1.0, "si_fe": 0.0}) == {"Si": 0.0}
    with pytest.raises(ConfigError, match="not c_m"):
        composition({"teff": 5000.0, "c_m": 0.1})


def test_without_pysme_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pysme", None)
    code = PySmeSynthesiser(tmp_path / "x.lin", "marcs2012.sav", 7500.0)
    with pytest.raises(MissingExtra, match=r"maury\[sme\]"):
        code.synthesise({"teff": 5000.0, "logg": 3.0}, np.arange(8420.0, 8430.0))


COMMAND = (
    "import sys, math\n"
    "teff, metals = float(sys.argv[1]), float(sys.argv[2])\n"
    "for k in range(1200):\n"
    "    w = 8415 + 0.05 * k\n"
    "    d = 0.4 + 0.1 * metals - (teff - 5000) / 10000\n"
    "    print(w, 1 - d * math.exp(-0.5 * ((w - 8430) / 1.5) ** 2))\n"
)


def test_synspec_runs_a_command_at_each_node(tmp_path):
    script = tmp_path / "synspec.py"
    script.write_text(COMMAND)
    command = f"{sys.executable} {script} {{teff}} {{m_h}}"
    code = CommandSynthesiser(command)
    wave = 8420 + 0.4 * np.arange(60)
    rng = np.random.default_rng(3)
    truth = np.column_stack([rng.uniform(4800, 5200, 40), rng.uniform(-0.4, 0.1, 40)])
    from builders.method_samples import sample_of

    few = truth[:3]
    clean = [code.synthesise({"teff": t, "m_h": m}, wave) for t, m in few]
    sample = sample_of(few, np.stack(clean), np.full((3, 60), 1e5), names=("teff", "m_h"))
    options = {"axes": ["teff", "m_h"], "command": command, "components": 0}
    options |= {"interpolation": "linear", "nuisances": False}
    settings = method_settings("synspec", options)
    method = method_class("synspec").train(sample, sample, settings=settings, seed=0)
    found = method.apply(sample.inputs)
    model = method.core.grid.evaluate(found.labels, jacobian=False).flux
    assert model == pytest.approx(sample.inputs.flux, abs=0.005)
    with pytest.raises(ConfigError, match="cannot run"):
        CommandSynthesiser("/no/such/program {teff}").synthesise({"teff": 1.0}, wave)
    with pytest.raises(ConfigError, match="is wrong"):
        CommandSynthesiser("x {logg}").synthesise({"teff": 1.0}, wave)
    with pytest.raises(InputFileError, match="no spectrum"):
        code.synthesise({"teff": 5000.0, "m_h": 0.0}, wave + 100)
    with pytest.raises(ConfigError, match=r"does not take m_h: name each axis as \{m_h\}"):
        deaf = method_settings("synspec", options | {"command": "synspec {teff}"})
        method_class("synspec").train(sample, sample, settings=deaf, seed=0)
    with pytest.raises(ConfigError, match="needs spectra"):
        bare = method_settings("synspec")
        method_class("synspec").train(sample, sample, settings=bare, seed=0)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"preparatoin": {}}, r"no section \[preparatoin\]; did you mean 'preparation'"),
        ({"method": {"name": "sme"}}, "the settings are not those of the method payne"),
        ({"method": ["order", 2]}, "a section must be keys and values, got"),
        ({"method": {"rv_error_kms": -1.0}}, r"greater than 0, got -1.0$"),
        ({"split": {"train": 0.9, "validation": 0.9}}, r"the section \[split\] is wrong"),
    ],
)
def test_settings_of_another_form_are_refused(config, words):
    with pytest.raises(ConfigError, match=words):
        MethodConfig.resolve("payne", config)


def test_settings_may_be_given_as_what_they_become():
    first = MethodConfig.resolve("payne", {"method": {"calibrate": False}}, split="published")
    again = MethodConfig.resolve(
        "payne",
        {"method": first.method, "split": first.split, "preparation": first.preparation.to_json()},
    )
    assert again == first
    assert first.split.rule == "published"


def test_what_cannot_be_learnt_is_said_before_it_is_tried(tmp_path):
    config = MethodConfig.resolve("payne")
    options = {"preparation": config.preparation, "split": config.split, "seed": 0}
    nothing = np.full(20, np.nan)
    bare = write_survey(tmp_path / "bare.zarr", n=20, teff=nothing, logg=nothing)
    with pytest.raises(TrainingError, match=r"no labels to learn .teff asked for.; ingest it with"):
        collect(bare, ("teff",), **options)
    with pytest.raises(TrainingError, match=r"no labels to learn .none asked for."):
        collect(write_survey(tmp_path / "some.zarr", n=20), (), **options)
    dark = write_survey(tmp_path / "dark.zarr", n=20, ivar=np.zeros((20, 64), "f4"))
    with pytest.raises(TrainingError, match=r"no train star of .*dark.zarr can be used"):
        collect(dark, ("teff",), **options)
    with pytest.raises(ConfigError, match="unknown label 'vsini'"):
        wrong = {"method": {"labels": ["teff", "vsini"]}}
        train(bare, tmp_path / "m", method="payne", config=wrong)
    assert not (tmp_path / "m").exists()
