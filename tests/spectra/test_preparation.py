import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from builders.surveys import changed
from maury.errors import ColumnError, ConfigError, GridMismatch
from maury.labels.columns import BANDS
from maury.labels.flags import Flag
from maury.spectra.batch import Batch
from maury.spectra.observables import absolute_magnitude, band_extinction, parallax_zero_point
from maury.spectra.operators import (
    air_to_vacuum,
    doppler_factor,
    fill_bad_pixels,
    normalise_continuum,
    to_rest_frame,
)
from maury.spectra.preparation import (
    AV,
    BAD_PIXEL_SHARE,
    LOW_SNR,
    RAVE_GRID,
    AbsoluteMagnitudes,
    ChebyshevContinuum,
    CheckGrid,
    Colours,
    LinearGrid,
    ListedGrid,
    MaskCosmics,
    NoContinuum,
    Noise,
    ParallaxSnr,
    Preparation,
    Resample,
    RestFrame,
    RunningQuantileContinuum,
    ToMedium,
)
from maury.spectra.spectra import Spectra

WAVE = RAVE_GRID.wavelengths()
EVERYTHING = Preparation(
    steps=(
        CheckGrid(),
        Noise(),
        MaskCosmics(n_sigma=7.0),
        ToMedium(to="vacuum"),
        RestFrame(grid=LinearGrid(start_aa=8425.0, step_aa=0.5, n_pixel=700)),
        Resample(grid=ListedGrid(wave_aa=tuple(np.geomspace(8430, 8770, 400)))),
        ChebyshevContinuum(degree=3),
        RunningQuantileContinuum(window=151),
        NoContinuum(),
    ),
    observables=(
        AbsoluteMagnitudes(bands=("G", "Ks"), deredden=True),
        Colours(),
        ParallaxSnr(),
        AV(),
    ),
    noise_correlation=(0.3,),
)


def made_up_batch(n_star=8, *, seed=0, snr=60.0):
    """Return simulated spectra with lines and noise, and complete columns."""
    rng = np.random.default_rng(seed)
    lines = np.exp(-0.5 * ((WAVE - rng.uniform(8420, 8784, (30, 1))) / 0.6) ** 2)
    flux = np.exp(-rng.uniform(0, 0.3, (n_star, 30)) @ lines)
    noise = rng.normal(size=flux.shape) * np.sqrt(flux) / snr
    columns = {
        "id": np.array([f"s{k}" for k in range(n_star)]),
        "snr": np.full(n_star, snr),
        "radial_velocity": rng.normal(0, 40, n_star),
        "parallax": rng.uniform(1, 4, n_star),
        "parallax_error": np.full(n_star, 0.02),
        "a_v": rng.uniform(0, 1, n_star),
        "nu_eff_used_in_astrometry": rng.uniform(1.3, 1.6, n_star),
        "pseudocolour": np.full(n_star, np.nan),
        "ecl_lat": rng.uniform(-80, 80, n_star),
        "astrometric_params_solved": np.full(n_star, 31.0),
    }
    columns |= {band.column: rng.uniform(9, 12, n_star) for band in BANDS}
    columns |= {f"{band.column}_error": np.full(n_star, 0.02) for band in BANDS}
    return Batch(Spectra.from_arrays(WAVE, flux + noise, snr**2 / flux), columns)


def has(inputs, flag):
    return (inputs.flags & flag.value) != 0


# the published chain


def test_published_inputs_are_the_spectrum_and_nine_values():
    batch = made_up_batch()
    inputs = Preparation.published().apply(batch)
    assert Preparation.published().observable_names == (
        *("M_G", "M_BP", "M_RP", "M_J", "M_H", "M_Ks", "M_W1", "M_W2"),
        "a_v",
    )
    np.testing.assert_array_equal(inputs.flux, batch.spectra.flux)
    np.testing.assert_array_equal(inputs.wave_aa, WAVE)
    parallax = batch.columns["parallax"]
    for column, band in enumerate(BANDS):
        expected = batch.columns[band.column] + 5 * (np.log10(parallax / 1000) + 1)
        np.testing.assert_allclose(inputs.observables[:, column], expected, rtol=1e-6)
    np.testing.assert_allclose(inputs.observables[:, 8], batch.columns["a_v"], rtol=1e-6)
    assert inputs.flux.dtype == inputs.ivar.dtype == inputs.observables.dtype == np.float32
    assert not inputs.flags.any()


def test_published_chain_reproduces_the_published_scaling(shared):
    """The extremes of the released training sample stand in the reference data's description."""
    table = np.genfromtxt(
        shared / "data" / "rave_like" / "training_sample_parameters.csv",
        delimiter=",",
        skip_header=1,
    )
    batch = Batch(
        Spectra.from_arrays(WAVE, np.ones((len(table), 912), np.float32)),
        {"parallax": table[:, 0], "a_v": table[:, 9]}
        | {band.column: table[:, 1 + k] for k, band in enumerate(BANDS)},
    )
    observables = Preparation.published().apply(batch).observables
    least = [-3.033822, -2.200069, -4.066158, -5.636847, -6.491847, -6.770847, -6.958847, -6.765847]
    most = [9.449080, 10.688704, 8.371729, 6.946641, 6.396641, 6.076641, 5.919641, 5.841641]
    np.testing.assert_allclose(observables.min(axis=0), [*least, 0.0], atol=2e-6)
    np.testing.assert_allclose(observables.max(axis=0), [*most, 3.089904], atol=2e-6)


# recording


@pytest.mark.parametrize("chain", [Preparation(), Preparation.published(), EVERYTHING])
def test_a_chain_survives_json_and_replays_identically(chain):
    text = json.dumps(chain.to_json(), allow_nan=False)
    for again in (Preparation.from_json(text), Preparation.from_json(json.loads(text))):
        assert again == chain
        assert again.to_json() == chain.to_json()
    batch = made_up_batch()
    first, second = chain.apply(batch), Preparation.from_json(text).apply(batch)
    for name in ("flux", "ivar", "observables", "observable_errors", "flags", "snr"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"stepss": []}, "'stepss'; did you mean 'steps'"),
        ({"steps": [{"step": "resampel"}]}, "'resampel'; did you mean 'resample'"),
        ({"steps": [{"step": "mask_cosmics", "n_sigm": 5}]}, "'n_sigm'; did you mean 'n_sigma'"),
        ({"steps": [{"step": "continuum", "method": "chebishev"}]}, "did you mean 'chebyshev'"),
        ({"steps": [{"step": "medium", "to": "water"}]}, "'air' or 'vacuum'"),
        ({"observables": [{"observable": "colors"}]}, "'colors'; did you mean 'colours'"),
        ({"observables": [{"observable": "a_v"}, {"observable": "a_v"}]}, "listed twice: a_v"),
        ({"steps": [{"step": "resample", "grid": {"wave_aa": [2, 1]}}]}, "increase"),
        ({"steps": [{"step": "continuum", "method": "none", "degree": 3}]}, "degree"),
        ({"steps": [{"n_sigma": 3}]}, "step"),
        ({"steps": 3}, "steps"),
        ("{not json", "preparation is wrong"),
        ("[]", "preparation is wrong"),
    ],
)
def test_wrong_settings_raise_one_clear_error(document, message):
    with pytest.raises(ConfigError, match=message):
        Preparation.from_json(document)


def test_all_mistakes_are_named_at_once():
    document = {
        "steps": [{"step": "mask_cosmics", "n_sigm": 5}, {"step": "medium", "to": "water"}],
        "noise_correlation": ["a"],
    }
    with pytest.raises(ConfigError) as error:
        Preparation.from_json(document)
    for part in ("n_sigma", "air", "noise_correlation"):
        assert part in str(error.value)


def test_configurations_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Noise().only_if_unknown = False


# the grid


def test_another_grid_is_refused_with_the_remedy():
    batch = made_up_batch()
    short = Batch(Spectra.from_arrays(WAVE[:900], batch.spectra.flux[:, :900]), dict(batch.columns))
    with pytest.raises(
        GridMismatch, match=r"expects 912 pixels.*got 900 pixels.*give spectra on this grid"
    ):
        Preparation.published().apply(short)
    vacuum = Spectra.from_arrays(WAVE, batch.spectra.flux, medium="vacuum")
    with pytest.raises(GridMismatch, match="vacuum"):
        Preparation.published().apply(Batch(vacuum, {}))


def test_vacuum_spectra_on_another_grid_reach_the_grid_of_the_model():
    batch = made_up_batch()
    wave = air_to_vacuum(np.arange(8400, 8800, 0.1))
    flux = np.stack([np.interp(wave, air_to_vacuum(WAVE), row) for row in batch.spectra.flux])
    chain = Preparation(
        steps=(ToMedium(to="air"), Resample(grid=RAVE_GRID), *Preparation.published().steps)
    )
    fine = Batch(Spectra.from_arrays(wave, flux, medium="vacuum"), dict(batch.columns))
    inputs = chain.apply(fine)
    np.testing.assert_array_equal(inputs.wave_aa, WAVE)
    assert inputs.medium == "air"
    inner = slice(3, -3)
    scatter = inputs.flux[:, inner] - batch.spectra.flux[:, inner]
    # A pixel is the mean over its width of what was interpolated between noisy pixels.
    assert np.std(scatter) < 0.6 / 60


@pytest.mark.parametrize("chain", [Preparation(), Preparation.published(), EVERYTHING])
def test_prepared_grid_is_told_beforehand(chain):
    batch = made_up_batch()
    inputs = chain.apply(batch)
    wave, medium = chain.prepared_grid(batch.spectra)
    np.testing.assert_array_equal(wave, inputs.wave_aa)
    assert medium == inputs.medium


# spectral steps


def test_steps_run_in_order_and_equal_the_operators():
    batch = made_up_batch()
    chain = Preparation(steps=(RestFrame(), ChebyshevContinuum(degree=3)), observables=())
    inputs = chain.apply(batch)
    flux, ivar = to_rest_frame(
        batch.spectra.flux,
        batch.spectra.ivar,
        batch.columns["radial_velocity"],
        wave_in_aa=WAVE,
        wave_out_aa=WAVE,
        noise_correlation=chain.noise_correlation,
    )
    flux, ivar = normalise_continuum(flux, ivar, degree=3)
    np.testing.assert_array_equal(inputs.flux, fill_bad_pixels(flux, ivar))
    np.testing.assert_array_equal(inputs.ivar, ivar)
    assert inputs.observables.shape == (8, 0)


def test_a_shifted_star_comes_back_to_rest():
    rv_kms = np.array([-120.0, 0.0, 200.0])
    centre = 8542.09 * doppler_factor(rv_kms)
    flux = 1 - 0.6 * np.exp(-0.5 * ((WAVE - centre[:, None]) / 0.8) ** 2)
    batch = Batch(Spectra.from_arrays(WAVE, flux), {"radial_velocity": rv_kms})
    inputs = Preparation(steps=(RestFrame(),), observables=()).apply(batch)
    np.testing.assert_allclose(WAVE[inputs.flux.argmin(axis=1)], 8542.09, atol=0.4)
    assert np.abs(inputs.flux - inputs.flux[1]).max() < 0.05


def test_a_row_without_velocity_is_kept_unshifted_and_warned_of():
    batch = made_up_batch(3)
    chain = Preparation(steps=(RestFrame(),))
    inputs = chain.apply(changed(batch, radial_velocity=[5.0, np.nan, np.inf]))
    np.testing.assert_array_equal(has(inputs, Flag.NO_RADIAL_VELOCITY), [False, True, True])
    np.testing.assert_allclose(inputs.flux[1:], batch.spectra.flux[1:], rtol=1e-6)
    at_rest = chain.apply(changed(batch, without=["radial_velocity"]))
    np.testing.assert_array_equal(at_rest.flux, batch.spectra.flux)
    assert not at_rest.flags.any()


def test_spikes_are_removed_once_the_noise_is_known():
    batch = made_up_batch(20)
    spiked = batch.spectra.flux.copy()
    spiked[:10, 400] += 0.6
    unknown = changed(batch, flux=spiked, ivar=np.ones_like(spiked))
    blind = Preparation(steps=(MaskCosmics(),)).apply(unknown)
    assert not has(blind, Flag.SPIKES).any()
    inputs = Preparation(steps=(Noise(), MaskCosmics())).apply(unknown)
    np.testing.assert_array_equal(has(inputs, Flag.SPIKES)[:10], True)
    assert has(inputs, Flag.SPIKES)[10:].sum() <= 1
    assert not inputs.ivar[:10, 399:402].any()
    assert np.abs(inputs.flux[:10, 400] - batch.spectra.flux[:10, 400]).max() < 0.3


def test_noise_that_is_known_is_left_alone_unless_told():
    batch = made_up_batch(snr=60.0)
    kept = Preparation(steps=(Noise(),)).apply(changed(batch, snr=np.full(8, 10.0)))
    np.testing.assert_array_equal(kept.ivar, batch.spectra.ivar)
    always = Preparation(steps=(Noise(only_if_unknown=False),))
    replaced = always.apply(changed(batch, snr=np.full(8, 10.0)))
    assert np.median(replaced.ivar) == pytest.approx(100, rel=0.2)
    estimated = always.apply(changed(batch, without=["snr"]))
    np.testing.assert_allclose(
        np.median(estimated.ivar, axis=1), np.median(estimated.snr) ** 2, rtol=0.6
    )


@pytest.mark.parametrize("level", [1.0, 3e4])
def test_missing_snr_is_estimated_whatever_the_flux_scale(level):
    batch = made_up_batch(200, snr=50.0)
    flux = level * batch.spectra.flux
    chain = Preparation(noise_correlation=())
    inputs = chain.apply(changed(batch, flux=flux, ivar=np.ones_like(flux), without=["snr"]))
    assert np.median(inputs.snr) == pytest.approx(50, rel=0.05)
    given = chain.apply(changed(batch, snr=np.where(np.arange(200) < 100, 33.0, np.nan)))
    np.testing.assert_array_equal(given.snr[:100], 33.0)
    assert np.median(given.snr[100:]) == pytest.approx(50, rel=0.05)


# observables


def test_dereddened_and_corrected_magnitudes():
    pytest.importorskip("zero_point")
    pytest.importorskip("dust_extinction")
    batch = made_up_batch()
    group = AbsoluteMagnitudes(bands=("BP", "W2"), zero_point=True, deredden=True)
    inputs = Preparation(observables=(group,)).apply(batch)
    zero_point = parallax_zero_point(
        batch.columns["phot_g_mean_mag"],
        batch.columns["nu_eff_used_in_astrometry"],
        batch.columns["pseudocolour"],
        ecl_lat_deg=batch.columns["ecl_lat"],
        astrometric_params_solved=batch.columns["astrometric_params_solved"],
    )
    for column, band in enumerate((BANDS[1], BANDS[7])):
        intrinsic = (
            batch.columns[band.column] - band_extinction(batch.columns["a_v"], [band.name])[:, 0]
        )
        expected = absolute_magnitude(intrinsic, batch.columns["parallax"] - zero_point)
        np.testing.assert_allclose(inputs.observables[:, column], expected, rtol=1e-6)
    assert Preparation(observables=(group,)).observable_names == ("M_BP_0", "M_W2_0")


def test_colours_their_errors_and_the_parallax_snr():
    batch = made_up_batch()
    chain = Preparation(observables=(Colours(pairs=(("BP", "Ks"),)), ParallaxSnr()))
    inputs = chain.apply(batch)
    assert chain.observable_names == ("BP-Ks", "parallax_snr")
    colour = batch.columns["phot_bp_mean_mag"] - batch.columns["ks_m"]
    np.testing.assert_allclose(inputs.observables[:, 0], colour, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        inputs.observables[:, 1], batch.columns["parallax"] / 0.02, rtol=1e-6
    )
    np.testing.assert_allclose(inputs.observable_errors[:, 0], 0.02 * np.sqrt(2), rtol=1e-6)


def test_an_option_without_its_columns_is_one_clear_error():
    batch = made_up_batch()
    with pytest.raises(ColumnError, match="needs the columns a_v"):
        EVERYTHING.apply(changed(batch, without=["a_v"]))
    chain = Preparation(observables=(ParallaxSnr(zero_point=True),))
    with pytest.raises(ColumnError, match="ecl_lat"):
        chain.apply(changed(batch, without=["ecl_lat"]))


def test_each_shortcoming_has_its_flag():
    batch = made_up_batch(9)
    flux, ivar = batch.spectra.flux.copy(), batch.spectra.ivar.copy()
    parallax, error, a_v, snr, magnitude = (
        batch.columns[name].copy()
        for name in ("parallax", "parallax_error", "a_v", "snr", "w1mpro")
    )
    expected = {
        1: Flag.NO_SPECTRUM,
        2: Flag.BAD_PIXELS,
        3: Flag.LOW_SNR,
        4: Flag.NO_PARALLAX,
        5: Flag.PARALLAX_ERROR_UNKNOWN,
        6: Flag.PARALLAX_POOR,
        7: Flag.MAGNITUDE_MISSING,
        8: Flag.A_V_MISSING,
    }
    flux[1], ivar[2, :100], snr[3], parallax[4] = np.nan, 0, 19.0, -1.0
    error[5], error[6], magnitude[7], a_v[8] = np.nan, 0.21 * parallax[6], np.nan, np.inf
    inputs = Preparation().apply(
        changed(
            batch,
            flux=flux,
            ivar=ivar,
            parallax=parallax,
            parallax_error=error,
            a_v=a_v,
            snr=snr,
            w1mpro=magnitude,
        )
    )
    for row in range(9):
        assert inputs.flags[row] == expected.get(row, 0), (row, expected.get(row))
    quiet = Preparation(observables=()).apply(changed(batch, without=["parallax", "a_v"]))
    assert not quiet.flags.any()


def test_flat_spectra_and_shares_of_bad_pixels_are_told_row_by_row():
    batch = made_up_batch(4)
    flux, ivar = batch.spectra.flux.copy(), batch.spectra.ivar.copy()
    bare = Preparation(observables=())
    flux[0] = 0.7
    inputs = bare.apply(changed(batch, flux=flux, ivar=ivar))
    assert has(inputs, Flag.NO_SPECTRUM).tolist() == [True, False, False, False]
    # The same where some pixels are bad: the good ones decide.
    flux[0, 5], ivar[0, 5] = 9.0, 0.0
    few = int(BAD_PIXEL_SHARE * flux.shape[1])
    ivar[1, :few] = 0.0
    ivar[2, : few + 1] = 0.0
    inputs = bare.apply(changed(batch, flux=flux, ivar=ivar))
    assert has(inputs, Flag.NO_SPECTRUM).tolist() == [True, False, False, False]
    assert has(inputs, Flag.BAD_PIXELS).tolist() == [False, False, True, False]


def test_low_snr_begins_below_its_limit_and_small_ones_are_believed():
    snr = np.array([LOW_SNR, np.nextafter(LOW_SNR, 0), 0.5, 0.0])
    inputs = Preparation(observables=()).apply(changed(made_up_batch(4), snr=snr))
    assert has(inputs, Flag.LOW_SNR)[:3].tolist() == [False, True, True]
    np.testing.assert_array_equal(inputs.snr[:3], snr[:3])
    assert inputs.snr[3] > 1, "0 is no S/N, and estimated"


def test_missing_extinction_is_flagged_where_it_is_used():
    batch = changed(made_up_batch(4), a_v=[0.1, np.nan, 0.2, 0.3])
    dark = [False, True, False, False]
    assert has(Preparation().apply(batch), Flag.A_V_MISSING).tolist() == dark
    plain = Preparation(observables=(AbsoluteMagnitudes(), Colours()))
    assert not has(plain.apply(batch), Flag.A_V_MISSING).any()
    corrected = Preparation(observables=(AbsoluteMagnitudes(deredden=True),))
    assert has(corrected.apply(batch), Flag.A_V_MISSING).tolist() == dark


def test_the_zero_point_decides_on_a_parallax_near_nothing():
    batch = made_up_batch(3)
    shift = parallax_zero_point(
        [11.0], [1.5], [np.nan], ecl_lat_deg=[10.0], astrometric_params_solved=[31]
    )[0]
    assert shift < 0
    near = changed(
        batch,
        parallax=[0.5 * shift, 1.0, 1.0],
        phot_g_mean_mag=np.full(3, 11.0),
        nu_eff_used_in_astrometry=np.full(3, 1.5),
        ecl_lat=np.full(3, 10.0),
    )
    plain = Preparation(observables=(AbsoluteMagnitudes(),)).apply(near)
    assert has(plain, Flag.NO_PARALLAX).tolist() == [True, False, False]
    corrected = Preparation(observables=(AbsoluteMagnitudes(zero_point=True),)).apply(near)
    assert not has(corrected, Flag.NO_PARALLAX).any()


def test_a_failed_continuum_is_flagged():
    batch = made_up_batch(3)
    flux = batch.spectra.flux.copy()
    flux[1] = -1
    inputs = Preparation(steps=(ChebyshevContinuum(),)).apply(changed(batch, flux=flux))
    np.testing.assert_array_equal(has(inputs, Flag.CONTINUUM_FAILED), [False, True, False])
    np.testing.assert_array_equal(inputs.flux[1], 1.0)


# any rows whatever


def test_no_rows_in_no_rows_out():
    batch = made_up_batch()
    empty = Batch(
        Spectra(WAVE, batch.spectra.flux[:0], batch.spectra.ivar[:0]),
        {name: values[:0] for name, values in batch.columns.items()},
    )
    inputs = EVERYTHING.apply(empty)
    assert inputs.flux.shape == (0, 400)
    assert inputs.observables.shape == (0, len(EVERYTHING.observable_names))
    assert len(inputs) == 0


BAD_ROWS = {
    "nan": lambda row: np.full_like(row, np.nan),
    "inf": lambda row: np.full_like(row, np.inf),
    "negative": lambda row: -row,
    "constant": np.ones_like,
    "zero": np.zeros_like,
    "huge": lambda row: row * np.float32(1e30),
    "tiny": lambda row: row * np.float32(1e-30),
    "half nan": lambda row: np.where(np.arange(row.size) % 2, row, np.nan).astype(np.float32),
    "one pixel": lambda row: np.where(np.arange(row.size) == 7, row, np.nan).astype(np.float32),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", list(BAD_ROWS))
@pytest.mark.parametrize("chain", [Preparation.published(), EVERYTHING], ids=["published", "all"])
def test_a_bad_row_costs_nobody_else_anything(kind, chain):
    batch = made_up_batch(5)
    clean = chain.apply(batch)
    flux = batch.spectra.flux.copy()
    flux[2] = BAD_ROWS[kind](flux[2])
    columns = {
        name: np.where(np.arange(5) == 2, np.nan, values)
        for name, values in batch.columns.items()
        if name != "id"
    }
    inputs = chain.apply(changed(batch, flux=flux, **columns))
    assert len(inputs) == 5
    assert np.isfinite(inputs.flux).all()
    assert np.isfinite(inputs.ivar).all()
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(inputs.flux[others], clean.flux[others], rtol=1e-6)
    np.testing.assert_array_equal(inputs.observables[others], clean.observables[others])
    np.testing.assert_array_equal(inputs.flags[others], clean.flags[others])
    assert np.isnan(inputs.observables[2]).all()
    assert inputs.flags[2] & Flag.NO_PARALLAX.value


@given(st.permutations(range(6)))
@settings(max_examples=10, deadline=None)
def test_rows_keep_their_order(order):
    order = list(order)
    batch = made_up_batch(6)
    moved = Batch(
        Spectra(WAVE, batch.spectra.flux[order], batch.spectra.ivar[order]),
        {name: values[order] for name, values in batch.columns.items()},
    )
    expected, got = EVERYTHING.apply(batch), EVERYTHING.apply(moved)
    np.testing.assert_allclose(got.flux, expected.flux[order], rtol=1e-6)
    np.testing.assert_array_equal(got.observables, expected.observables[order])
    np.testing.assert_array_equal(got.flags, expected.flags[order])


def test_the_batch_is_not_written_to():
    batch = made_up_batch(4)
    for array in (batch.spectra.flux, batch.spectra.ivar, *batch.columns.values()):
        array.setflags(write=False)
    before = batch.spectra.flux.copy()
    EVERYTHING.apply(batch)
    np.testing.assert_array_equal(batch.spectra.flux, before)
