"""The Payne with a network of its own: trained on theory of the user, many labels, any window."""

import numpy as np
import pytest

from builders.any_window import FIVE, SIZE, TWO, made
from builders.method_samples import lines
from maury.errors import ConfigError, TrainingError
from maury.io.workers import one_thread
from maury.labels.statistics import robust_sigma
from maury.methods.dd_payne_training import train_on_spectra
from maury.methods.fitting.trained_payne import TrainedPayne
from maury.methods.payne import Payne, PayneSettings

QUICK = {"hidden": 48, "steps": 600, "spectra": 800, "learning_rate": 0.01}
WAVE = 6500.0 + 0.1 * np.arange(320)


def clean(labels, names=TWO):
    centre, scale = np.array([SIZE.get(name, (0.0, 0.3)) for name in names]).T
    return lines((labels - centre) / scale, WAVE.size)


def library(path, names=TWO, n=600, *, stronger=1.0):
    """A user's own grid: spectra somewhat beyond the pixels, at labels that lie anywhere."""
    rng = np.random.default_rng(8)
    centre, scale = np.array([SIZE.get(name, (0.0, 0.3)) for name in names]).T
    labels = centre + scale * rng.uniform(-1.2, 1.2, (n, len(names)))
    flux = 1 - stronger * (1 - clean(labels, names))
    wave = np.concatenate([WAVE[:1] - 1.0, WAVE, WAVE[-1:] + 1.0])
    flux = np.pad(flux, [(0, 0), (1, 1)], constant_values=1.0)
    np.savez(path, wave=wave, flux=flux, labels=labels, label_names=np.array(names))
    return str(path)


def trained(sample, **options):
    return Payne.train(sample, sample, settings=PayneSettings(**QUICK, **options), seed=0)


def scatters(method, test):
    found = method.apply(test.inputs)
    columns = [test.label_names.index(name) for name in found.label_names]
    error = found.labels - test.truth[:, columns]
    return error, np.array([robust_sigma(column) for column in (error / found.sigma).T])


@pytest.mark.slow
def test_a_network_learns_the_spectra_that_it_is_given():
    rng = np.random.default_rng(1)
    labels = np.column_stack([rng.uniform(4200, 5800, 900), rng.uniform(2, 4, 900)])
    flux = clean(labels).astype(np.float32)
    options = {"hidden": 48, "steps": 800, "batch_size": 64, "learning_rate": 0.01, "seed": 3}
    network = train_on_spectra(labels[:800], flux[:800], **options)
    error = np.abs(network.evaluate(labels[800:], jacobian=False).flux - flux[800:])
    assert error.mean() < 2e-3
    with one_thread():
        again = train_on_spectra(labels[:800], flux[:800], **options)
    np.testing.assert_array_equal(network.weight_2, again.weight_2)


def test_spectra_of_the_user_alone_give_labels_that_they_have(tmp_path):
    """Four hundred stars of five labels, a grid of two: the others are not given."""
    path = library(tmp_path / "grid.npz")
    sample, test = made(TWO, 300, 1), made(TWO, 200, 2)
    method = trained(sample, synthetic=path, calibrate=False)
    assert method.label_names == TWO
    error, z = scatters(method, test)
    assert robust_sigma(error[:, 0]) < 60
    assert robust_sigma(error[:, 1]) < 0.08
    assert ((z > 0.75) & (z < 1.3)).all()


@pytest.mark.slow
def test_stars_correct_theory_of_the_user_unless_it_is_taken_as_it_is(tmp_path):
    """Lines of the grid are a tenth too strong."""
    path = library(tmp_path / "grid.npz", stronger=1.1)
    sample, test = made(TWO, 400, 1), made(TWO, 200, 2)
    bias = []
    for calibrate in (False, True):
        method = trained(sample, synthetic=path, calibrate=calibrate, nuisances=False)
        error, _ = scatters(method, test)
        bias.append(np.abs(np.median(error, axis=0) / test.truth.std(axis=0)).max())
    assert bias[0] > 0.1
    assert bias[1] < 0.3 * bias[0]


@pytest.mark.slow
def test_a_network_of_the_payne_is_read_and_fitted(tmp_path):
    """As the authors' code writes it; here one of ours, turned round."""
    rng = np.random.default_rng(1)
    labels = np.column_stack([rng.uniform(3800, 6200, 900), rng.uniform(1.5, 4.5, 900)])
    options = {"hidden": 40, "steps": 600, "batch_size": 64, "learning_rate": 0.01, "seed": 3}
    network = train_on_spectra(labels, clean(labels).astype(np.float32), **options)
    arrays = {f"w_array_{k}": getattr(network, f"weight_{k}").T for k in range(3)}
    arrays |= {f"b_array_{k}": getattr(network, f"bias_{k}") for k in range(3)}
    wave = np.linspace(WAVE[0] - 0.5, WAVE[-1] + 0.5, 640)
    # The file of a network is on its own wavelengths.
    to_own = np.array([np.interp(wave, WAVE, row) for row in np.eye(WAVE.size)]).T
    arrays["w_array_2"] = to_own @ arrays["w_array_2"]
    arrays["b_array_2"] = to_own @ arrays["b_array_2"]
    np.savez(tmp_path / "net.npz", x_min=network.lowest, x_max=network.highest, **arrays)
    np.savez(tmp_path / "wave.npz", wavelength=wave)
    told = 'network = "net.npz"\nwavelength = "wave.npz"\nlabels = ["Teff", "logg"]\n'
    (tmp_path / "payne.toml").write_text(told, "utf-8")
    method = trained(made(TWO, 400, 1), synthetic=str(tmp_path / "payne.toml"))
    error, z = scatters(method, made(TWO, 200, 2))
    assert robust_sigma(error[:, 0]) < 80
    assert robust_sigma(error[:, 1]) < 0.1
    assert z.max() < 1.5


@pytest.mark.slow
def test_twenty_five_labels_are_fitted_at_once():
    names = ("teff", "logg", "m_h", "alpha_m", *(f"x{k:02d}_fe" for k in range(21)))
    assert len(names) == 25
    sample, test = made(names, 1500, 1), made(names, 100, 2)
    method = trained(sample)
    assert method.label_names == names
    error, z = scatters(method, test)
    assert np.isfinite(error).all()
    assert robust_sigma(error[:, 0]) < 0.6 * test.truth[:, 0].std()
    assert np.median(z) < 2.0


def test_it_survives_saving_and_is_a_theory_for_others():
    method = trained(made(FIVE, 300, 1))
    arrays, about = method.to_arrays()
    again = Payne.from_arrays(
        arrays, about, settings=method.settings, label_names=method.label_names
    )
    some = made(FIVE, 4, 2)
    np.testing.assert_array_equal(again.apply(some.inputs).labels, method.apply(some.inputs).labels)
    theory = method.as_theory()
    assert isinstance(theory, TrainedPayne)
    assert theory.names == FIVE
    near = np.clip(some.truth, *theory.bounds.T)
    assert np.abs(theory.spectra(near) - clean(near, FIVE)).max() < 0.1
    assert method.calibrated_by == "validation"


def test_too_few_stars_and_theory_twice_are_refused(tmp_path):
    with pytest.raises(TrainingError):
        trained(made(TWO, 20, 1))
    with pytest.raises(ConfigError, match="takes the place"):
        trained(made(TWO, 300, 1), theory="emulator", synthetic=library(tmp_path / "g.npz"))
