import sys

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import Distance
from hypothesis import given
from hypothesis import strategies as st

from maury.errors import MissingExtra, UnknownName
from maury.labels.columns import BANDS
from maury.spectra import observables as obs

NAMES = [band.name for band in BANDS]


@given(st.floats(1e-3, 1000), st.floats(0, 25))
def test_absolute_magnitude_agrees_with_astropy(parallax, magnitude):
    modulus = Distance(parallax=parallax * u.mas).distmod.value
    np.testing.assert_allclose(obs.distance_modulus(parallax), modulus, atol=1e-9)
    got = obs.absolute_magnitude(magnitude, parallax)
    np.testing.assert_allclose(got, magnitude - modulus, atol=1e-9)


def test_a_star_at_ten_parsec_has_equal_magnitudes():
    assert obs.absolute_magnitude(4.83, 100.0) == pytest.approx(4.83)


def test_no_magnitude_without_a_positive_parallax():
    parallax = np.array([np.nan, 0.0, -1.0, np.inf, -np.inf, 2.0])
    got = obs.absolute_magnitude(np.full(6, 10.0), parallax)
    assert np.isnan(got[:5]).all()
    assert np.isfinite(got[5])
    assert np.isnan(obs.absolute_magnitude([np.nan, np.inf], [1.0, 1.0])).all()


def test_errors_are_those_of_drawn_parallaxes_and_magnitudes():
    rng = np.random.default_rng(0)
    parallax, parallax_error, magnitude_error = 2.0, 0.06, 0.03
    drawn = obs.absolute_magnitude(
        rng.normal(11, magnitude_error, 200_000), rng.normal(parallax, parallax_error, 200_000)
    )
    expected = obs.absolute_magnitude_error(magnitude_error, parallax, parallax_error)
    assert drawn.std() == pytest.approx(float(expected), rel=0.01)
    only_distance = obs.distance_modulus_error(parallax, parallax_error)
    assert float(expected) ** 2 == pytest.approx(float(only_distance) ** 2 + 0.03**2)


@pytest.mark.parametrize("bad", [np.nan, -0.1, np.inf])
def test_an_unknown_error_stays_unknown(bad):
    assert np.isnan(obs.distance_modulus_error(1.0, bad))
    assert np.isnan(obs.absolute_magnitude_error(bad, 1.0, 0.1))
    assert np.isnan(obs.absolute_magnitude_error(0.1, 1.0, bad))


def test_colour_and_parallax_snr():
    np.testing.assert_allclose(obs.colour([11.0, np.inf], [10.2, 1.0]), [0.8, np.nan])
    got = obs.parallax_snr([2.0, -1.0, 1.0, np.nan], [0.1, 0.5, 0.0, 0.1])
    np.testing.assert_allclose(got, [20.0, -2.0, np.nan, np.nan])


def test_unknown_band_gets_a_suggestion():
    with pytest.raises(UnknownName, match="did you mean 'Ks'"):
        obs.band("Kss")


# the parallax zero point


def zero_point(**changes):
    values = {
        "phot_g_mean_mag": np.array([12.0]),
        "nu_eff_used_in_astrometry": np.array([1.5]),
        "pseudocolour": np.array([np.nan]),
        "ecl_lat_deg": np.array([30.0]),
        "astrometric_params_solved": np.array([31]),
    } | {name: np.atleast_1d(value) for name, value in changes.items()}
    return obs.parallax_zero_point(
        values.pop("phot_g_mean_mag"),
        values.pop("nu_eff_used_in_astrometry"),
        values.pop("pseudocolour"),
        **values,
    )


@pytest.mark.parametrize(
    ("magnitude", "coefficients"), [(17.5, (-29.18, -0.09, 2.41)), (19.0, (-18.40, 5.98, -6.46))]
)
def test_zero_point_by_hand(magnitude, coefficients):
    """Lindegren et al. (2021), table 9: at nu_eff = 1.48 only q00, q01 and q02 count."""
    pytest.importorskip("zero_point")
    for latitude in (-60.0, 0.0, 45.0):
        sine = np.sin(np.radians(latitude))
        by_hand = np.dot(coefficients, [1, sine, sine**2 - 1 / 3]) / 1000
        got = zero_point(
            phot_g_mean_mag=magnitude, nu_eff_used_in_astrometry=1.48, ecl_lat_deg=latitude
        )
        np.testing.assert_allclose(got, by_hand, atol=1e-6)


def test_zero_point_is_missing_where_its_inputs_are():
    pytest.importorskip("zero_point")
    assert np.isfinite(zero_point()).all()
    assert np.isfinite(zero_point(phot_g_mean_mag=4.0)).all()
    np.testing.assert_array_equal(zero_point(phot_g_mean_mag=4.0), zero_point(phot_g_mean_mag=6.0))
    six = {"astrometric_params_solved": 95, "nu_eff_used_in_astrometry": np.nan}
    assert np.isfinite(zero_point(**six, pseudocolour=1.5)).all()
    for bad in (
        {"phot_g_mean_mag": np.nan},
        {"nu_eff_used_in_astrometry": np.nan},
        {"nu_eff_used_in_astrometry": 2.5},
        {"ecl_lat_deg": np.inf},
        {"astrometric_params_solved": 3},
        {"astrometric_params_solved": np.nan},
        six | {"pseudocolour": np.nan},
        six | {"pseudocolour": 1.9},
    ):
        assert np.isnan(zero_point(**bad)).all(), bad


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    obs._zero_point_recipe.cache_clear()
    obs._relative_extinction.cache_clear()
    monkeypatch.setitem(sys.modules, "zero_point.zpt", None)
    monkeypatch.setitem(sys.modules, "dust_extinction.parameter_averages", None)
    with pytest.raises(MissingExtra, match=r"maury\[gaia\]"):
        zero_point()
    with pytest.raises(MissingExtra, match=r"maury\[dust\]"):
        obs.band_extinction([1.0], ["G"])


# extinction


def test_extinction_is_linear_falls_with_wavelength_and_agrees_with_another_law():
    pytest.importorskip("dust_extinction")
    from dust_extinction.parameter_averages import F19

    got = obs.band_extinction([1.0, 2.5, np.nan], NAMES)
    np.testing.assert_allclose(got[1], 2.5 * got[0])
    assert np.isnan(got[2]).all()
    order = np.argsort([band.effective_wavelength_um for band in BANDS])
    assert np.all(np.diff(got[0][order]) < 0)
    # The two laws differ by up to some .03 A_V between the optical and 2.2 micron.
    law = F19(Rv=3.1)
    other = [float(law(band.effective_wavelength_um * u.um)) for band in BANDS[:6]]
    np.testing.assert_allclose(got[0, :6], other, atol=0.05)


def test_a_larger_r_v_makes_extinction_greyer():
    pytest.importorskip("dust_extinction")
    steep = obs.band_extinction([1.0], ["BP", "Ks"], r_v=2.5)[0]
    grey = obs.band_extinction([1.0], ["BP", "Ks"], r_v=5.0)[0]
    assert grey[0] - grey[1] < steep[0] - steep[1]
