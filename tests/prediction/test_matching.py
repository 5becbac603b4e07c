"""Spectra on another grid, in another medium, at another resolving power than a model's."""

import logging

import numpy as np
import pytest

from builders.surveys import copy_survey
from maury.errors import GridMismatch
from maury.model.directory import Model
from maury.prediction.matching import matched
from maury.prediction.predictor import Predictor
from maury.prediction.streaming import predict
from maury.spectra.noise import filtered_noise
from maury.spectra.operators import air_to_vacuum, broadening
from maury.spectra.preparation import Preparation
from maury.spectra.preparation_steps import Broaden
from maury.survey.store import Survey, SurveyWriter


def write(path, wave, flux, *, medium="air", ivar=None, power=None, **columns):
    n = len(flux)
    names = [name for name in columns if name not in ("id", "star_id")]
    with SurveyWriter(
        path,
        n_star=n,
        wave_aa=wave,
        medium=medium,
        columns=names,
        simulated=True,
        resolving_power=power,
    ) as writer:
        ids = {"id": [f"s{k}" for k in range(n)], "star_id": [f"star{k}" for k in range(n)]}
        ivar = np.full(flux.shape, 1e4) if ivar is None else ivar
        writer.write(0, flux, ivar, **(ids | columns))
    return Survey.open(path)


def test_lines_are_broadened_to_the_lower_resolving_power():
    wave = 8420.0 * np.exp(np.arange(2000) / 60_000)
    centre, power, to = wave[1000], 20_000.0, 7500.0

    def line(resolving_power):
        """Lines of one equivalent width."""
        sigma = centre / resolving_power / 2.3548
        return 0.1 / sigma * np.exp(-0.5 * ((wave - centre) / sigma) ** 2)

    matrix = broadening(wave, power, to)
    np.testing.assert_allclose(matrix @ (1 - line(power)), 1 - line(to), atol=1e-3)
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1.0)
    with pytest.raises(ValueError, match="not lowered"):
        broadening(wave, to, power)


@pytest.mark.slow
def test_noise_of_broadened_spectra_is_as_quoted(tmp_path):
    rng = np.random.default_rng(0)
    wave = 8420.0 * np.exp(np.arange(500) / 60_000)
    noise = rng.normal(0, 0.02, (3000, 502))
    # A correlation of .4 / (1 + .16) = .345 at one pixel.
    noise = (noise[:, 1:-1] + 0.4 * noise[:, :-2]) / np.sqrt(1.16)
    ivar = np.full(noise.shape, 0.02**-2)
    ivar[:, 100:140] = 0.0
    ivar[::7, 300] = 0.0
    survey = write(tmp_path / "s.zarr", wave, 1 + noise, ivar=ivar)
    steps = (Broaden(resolving_power=20_000.0, to=7500.0),)
    preparation = Preparation(steps=steps, observables=(), noise_correlation=(0.345,))
    inputs = preparation.apply(survey.rows(np.arange(3000)))
    good = (inputs.ivar > 0).all(axis=0)
    assert not good[104:136].any()
    assert good[300]
    assert good.sum() > 440
    score = (inputs.flux - 1) * np.sqrt(inputs.ivar)
    np.testing.assert_allclose(score[:, good].std(axis=0).mean(), 1.0, rtol=0.02)
    middle = score[:, 200:290]
    for lag, expected in enumerate(inputs.noise_correlation[:4], start=1):
        got = np.mean(middle[:, lag:] * middle[:, :-lag])
        assert got == pytest.approx(expected, abs=0.03)
    assert filtered_noise(np.array([1.0]), (0.345,)) == (1.0, pytest.approx((0.345,)))


@pytest.mark.slow
def test_another_medium_and_finer_pixels_give_the_same_labels(
    tiny_model, observed_survey, tmp_path, caplog
):
    """Spectra in vacuum, and repeated on pixels of half the width."""
    given = Survey.open(observed_survey)
    some = given.rows(np.arange(20))
    names = [name for name in given.column_names if name not in ("star_id_from", "id", "star_id")]
    columns = {name: some.columns[name] for name in names}
    fine = np.sort(np.concatenate([given.wave_aa - 0.1, given.wave_aa + 0.1]))
    ids = {"id": some.columns["id"], "star_id": some.columns["star_id"]}
    twice = (np.repeat(part, 2, axis=1) for part in (some.spectra.flux, some.spectra.ivar / 2))
    flux, ivar = twice
    other = write(
        tmp_path / "v.zarr",
        air_to_vacuum(fine),
        flux,
        medium="vacuum",
        ivar=ivar,
        **(columns | ids),
    )
    plain = predict(
        tiny_model,
        copy_survey(observed_survey, tmp_path / "a.zarr", rows=np.arange(20)),
        tmp_path / "a.fits",
    ).table
    with caplog.at_level(logging.WARNING):
        found = predict(tiny_model, other.path, tmp_path / "v.fits").table
    (told,) = [one for one in caplog.messages if "averaged" in one]
    assert "vacuum" in told
    assert "given in air" in told
    assert "100 % of its pixels" in told
    for name in ("teff", "logg"):
        scatter = np.std(plain[name])
        np.testing.assert_allclose(found[name], plain[name], atol=0.03 * scatter)


def test_what_would_have_to_be_made_up_is_refused(tiny_model, tmp_path):
    model = Model.open(tiny_model)
    wave = model.wave_aa
    flux = np.ones((1, wave.size // 2))
    coarse = write(tmp_path / "c.zarr", wave[: 2 * flux.shape[1] : 2], flux)
    with pytest.raises(GridMismatch, match=r"2\.0 times as wide"):
        matched(model, coarse, None)
    beyond = write(tmp_path / "b.zarr", wave + 0.7 * (wave[-1] - wave[0]), np.ones((1, wave.size)))
    with pytest.raises(GridMismatch, match="reach 30 % of its pixels"):
        matched(model, beyond, None)
    blunt = write(tmp_path / "r.zarr", wave + 0.1, np.ones((1, wave.size)), power=5000.0)
    with pytest.raises(GridMismatch, match="cannot be made sharper"):
        matched(model, blunt, 7500.0)


def test_a_part_of_the_pixels_is_missing_where_spectra_end(tiny_model, tmp_path):
    model = Model.open(tiny_model)
    short = model.wave_aa[: int(0.8 * model.wave_aa.size)] + 0.05
    survey = write(tmp_path / "s.zarr", short, np.ones((2, short.size)), power=20_000.0)
    preparation = matched(model, survey, 7500.0)
    assert [step.step for step in preparation.steps[:2]] == ["broaden", "resample"]
    inputs = preparation.apply(survey.rows(np.arange(2)))
    assert inputs.flux.shape == (2, model.wave_aa.size)
    # The first pixel begins before the spectra do.
    assert (inputs.ivar[:, 1 : short.size - 10] > 0).all()
    assert not (inputs.ivar[:, short.size + 1 :] > 0).any()
    again = Predictor(model).taking(survey)
    assert again.model.checksum == model.checksum


def test_sharper_spectra_on_the_same_pixels_are_broadened(tiny_model, tmp_path):
    model = Model.open(tiny_model)
    survey = write(
        tmp_path / "s.zarr", model.wave_aa, np.ones((1, model.wave_aa.size)), power=9000.0
    )
    assert matched(model, survey, 9000.0) is model.preparation
    assert matched(model, survey, None) is model.preparation
    (first, *_) = matched(model, survey, 7500.0).steps
    assert (first.step, first.resolving_power, first.to) == ("broaden", 9000.0, 7500.0)
