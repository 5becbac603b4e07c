"""Spectra unlike those of the training sample, told by models without a theory."""

import numpy as np
import pytest

from builders.method_samples import draw_labels, inputs_of, lines
from builders.untrained_model import untrained
from maury.errors import ModelFileError
from maury.prediction.detectors import FALSE_ALARM
from maury.prediction.spectrum_likeness import LIKENESS, SpectrumLikeness


def spectra(n, seed):
    """Spectra of three labels with noise, and the numbers of their stars."""
    rng = np.random.default_rng(seed)
    clean = lines(draw_labels(n, rng)[0])
    snr = rng.uniform(30, 100, n)
    flux = clean + rng.standard_normal(clean.shape) / snr[:, None]
    ivar = np.broadcast_to(snr[:, None] ** 2, clean.shape)
    return inputs_of(flux, ivar), rng.integers(1, 2**60, n)


@pytest.fixture(scope="module")
def fitted():
    return SpectrumLikeness.fit(*spectra(1000, 1))


def changed(inputs, **fields):
    return type(inputs)(**{**inputs.__dict__, **fields})


def test_like_spectra_are_rarely_flagged_and_faults_are(fitted):
    inputs, _ = spectra(4000, 2)
    # Two scores, a quarter of a percent each.
    assert fitted.unlike(inputs).mean() < 6 * FALSE_ALARM
    pixel = np.arange(inputs.flux.shape[1])
    extra = 0.4 * np.exp(-0.5 * ((pixel - 3.0) / 2.0) ** 2).astype(np.float32)
    assert fitted.unlike(changed(inputs, flux=inputs.flux - extra)).mean() > 0.95
    rolled = np.roll(inputs.flux, 6, axis=1)
    assert fitted.unlike(changed(inputs, flux=rolled)).mean() > 0.95


def test_no_training_star_is_its_own_neighbour(fitted):
    inputs, star = spectra(1000, 1)
    alone = fitted.unlike(inputs, star)
    assert fitted.unlike(inputs).sum() <= alone.sum() <= 4 * FALSE_ALARM * 1000
    assert not fitted.unlike(inputs, star)[np.asarray(inputs.flags) != 0].any()


def test_rows_without_spectrum_have_a_flag_of_their_own(fitted):
    inputs, star = spectra(5, 3)
    flux = inputs.flux.copy()
    flux[2] = np.nan
    assert not fitted.unlike(changed(inputs, flux=flux))[2]
    nothing = changed(inputs, flux=np.full_like(flux, np.nan))
    assert not fitted.unlike(nothing, star).any()


def test_too_few_spectra_or_constant_ones_teach_nothing():
    assert SpectrumLikeness.fit(*spectra(99, 4)) is None
    inputs, star = spectra(120, 5)
    same = changed(inputs, flux=np.ones_like(inputs.flux))
    assert SpectrumLikeness.fit(same, star) is None


def test_what_is_written_is_read_and_damage_is_one_clear_error(tmp_path, fitted):
    model = untrained(tmp_path, ("teff", "logg"))
    weights = [{"a.weight": np.ones((2, 3), "f4")}]
    assert SpectrumLikeness.load(model) is None
    # That model has eight pixels, and not those of these spectra.
    wrong = model.with_arrays(LIKENESS, fitted.to_arrays())
    with pytest.raises(ModelFileError, match=r"damaged.*centre"):
        SpectrumLikeness.load(wrong.save(tmp_path / "b", weights=weights))
    fitted._check(120)
    again = SpectrumLikeness(**fitted.to_arrays())
    inputs, star = spectra(50, 6)
    np.testing.assert_array_equal(again.unlike(inputs, star), fitted.unlike(inputs, star))
