"""Places, gradients and two sequences: what was put in comes out."""

import importlib.util
from itertools import pairwise

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import Galactocentric, SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import kstest

from maury import simulate_survey
from maury.errors import LengthMismatch, UnknownName
from maury.report.cartography import bimodality as two
from maury.report.cartography import distances, gradients, orbits
from maury.report.cartography import places as place
from maury.simulation.galaxy import (
    R_SUN_KPC,
    THICK_DISC,
    THIN_DISC,
    Discs,
    astropy_frame,
    cylindrical,
    galactocentric,
)
from maury.simulation.population import OBSERVED, Population

N_BLOCK = 50


@pytest.fixture(scope="module")
def stars() -> dict[str, np.ndarray]:
    """Simulated stars in discs, with what was put in."""
    blocks = [
        Population.load().sample(256, np.random.default_rng(k), selection=OBSERVED, discs=Discs())
        for k in range(N_BLOCK)
    ]

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(block, name) for block in blocks])

    names = ("ra_deg", "dec_deg", "parallax_mas", "parallax_error_mas", "distance_kpc", "disc")
    return {name: column(name) for name in (*names, "labels", "magnitudes")}


@pytest.fixture(scope="module")
def places(stars) -> place.Places:
    return place.place_stars(
        stars["ra_deg"],
        stars["dec_deg"],
        (stars["parallax_mas"], stars["parallax_error_mas"]),
        rng=np.random.default_rng(1),
        gaia="none",
    )


def test_places_are_those_of_astropy() -> None:
    rng = np.random.default_rng(0)
    ra, dec, distance = 360 * rng.random(50), 180 * rng.random(50) - 90, 5 * rng.random(50)
    there = SkyCoord(ra * units.deg, dec * units.deg, distance * units.kpc)
    xyz = there.transform_to(astropy_frame()).cartesian.xyz.to_value(units.kpc).T
    np.testing.assert_allclose(galactocentric(ra, dec, distance), xyz, atol=1e-12)


def test_the_sun_is_where_it_should_be() -> None:
    radius, height = cylindrical(galactocentric(0.0, 0.0, 0.0))
    assert np.hypot(radius, height) == pytest.approx(R_SUN_KPC, abs=1e-6)
    assert height == pytest.approx(0.0208, abs=1e-6)


def posterior_cdf(r: np.ndarray, parallax: float, error: float, length: float) -> np.ndarray:
    """Distribution function by brute force, on a grid of equal steps in r."""
    grid = np.linspace(1e-3, 60.0, 400_000)
    log_p = 2 * np.log(grid) - grid / length - 0.5 * ((parallax - 1 / grid) / error) ** 2
    cumulative = np.cumsum(np.exp(log_p - log_p.max()))
    return np.interp(r, grid, cumulative / cumulative[-1])


@pytest.mark.parametrize(("parallax", "error"), [(2.0, 0.05), (0.5, 0.2), (-0.1, 0.3)])
def test_sampled_distances_follow_their_posterior(parallax, error) -> None:
    n = 4000
    drawn = distances.sample_distances(
        [parallax], [error], rng=np.random.default_rng(3), n_sample=n, length_kpc=1.35
    )[:, 0]
    assert kstest(drawn, lambda r: posterior_cdf(r, parallax, error, 1.35)).pvalue > 1e-3


def quadrature(distance: float, parallax: float, error: float, length: float) -> float:
    """Distribution function of the posterior by adaptive quadrature, cut at its stationary points.

    Over y = ln r, of r^3 exp(-r / L) times the likelihood, whose stationary points solve
    r^3 / L - 3 r^2 + (parallax / error^2) r - 1 / error^2 = 0.
    """
    roots = np.roots([1 / length, -3.0, parallax / error**2, -1 / error**2])
    still = np.log(np.real(roots[(np.abs(np.imag(roots)) < 1e-9) & (np.real(roots) > 0)]))

    def log_p(y: float) -> float:
        return 3 * y - np.exp(y) / length - 0.5 * ((np.exp(-y) - parallax) / error) ** 2

    top = max(log_p(y) for y in still)
    bend = [
        abs(-np.exp(y) / length - (2 * np.exp(-2 * y) - parallax * np.exp(-y)) / error**2)
        for y in still
    ]
    width = 1 / np.sqrt(np.maximum(bend, 1e-9))
    edges = [y + k * w for y, w in zip(still, width, strict=True) for k in (-40, -8, -3, 0, 3, 8)]
    edges += [y + min(40 * w, 6.0) for y, w in zip(still, width, strict=True)]

    def integral(low: float, high: float) -> float:
        cuts = [low, *sorted(e for e in edges if low < e < high), high]
        return sum(quad(lambda y: np.exp(log_p(y) - top), a, b)[0] for a, b in pairwise(cuts))

    low, high = min(edges), max(edges)
    middle = np.log(distance)
    below = integral(low, middle)
    return below / (below + integral(middle, high))


@pytest.mark.parametrize("length", [0.3, 1.35, 5.0])
@pytest.mark.parametrize(
    "over_error", [-60.0, -20.0, -5.6, -1.0, 0.0, 0.7, 2.5, 4.0, 8.0, 90.0, 5e3]
)
@pytest.mark.parametrize("error", [1e-3, 0.02, 0.09, 0.4, 3.0])
def test_distances_agree_with_quadrature(error, over_error, length) -> None:
    """To .3 % of the probability, from parallaxes far below zero to those of the nearest stars."""
    parallax, zero = np.array([over_error * error]), np.zeros(1)
    found = place.place_stars(
        *(zero, zero, (parallax, np.array([error]))),
        **{"rng": np.random.default_rng(0), "gaia": "none", "length_kpc": length},
    )
    levels = [quadrature(r, parallax[0], error, length) for r in found.distance_kpc[:, 0]]
    np.testing.assert_allclose(levels, [0.16, 0.5, 0.84], atol=3e-3)


def test_a_strongly_negative_parallax_is_not_twice_as_far() -> None:
    """-0.5 +- 0.09 mas: 12.08 kpc by quadrature, where a window about 1 / parallax gave 21."""
    zero = np.zeros(1)
    found = place.place_stars(
        zero, zero, (zero - 0.5, zero + 0.09), rng=np.random.default_rng(0), gaia="none"
    )
    assert found.distance_kpc[1, 0] == pytest.approx(12.08, abs=0.02)


def test_the_zero_point_is_taken_off() -> None:
    kwargs = {"rng": np.random.default_rng(0), "n_sample": 200}
    plain = distances.sample_distances([1.0], [0.001], **kwargs).mean()
    mended = distances.sample_distances([1.0], [0.001], zero_point_mas=-0.029, **kwargs).mean()
    assert plain == pytest.approx(1.0, abs=1e-3)
    assert mended == pytest.approx(1 / 1.029, abs=1e-3)


def test_quantiles_hold_the_true_distance_as_often_as_they_should() -> None:
    rng = np.random.default_rng(8)
    n = 6000
    true = rng.gamma(3.0, distances.LENGTH_KPC, n)
    error = np.full(n, 0.1)
    parallax = 1 / true + error * rng.standard_normal(n)
    zero = np.zeros(n)
    found = place.place_stars(zero, zero, (parallax, error), rng=rng, gaia="none", n_sample=2)
    inside = (true > found.distance_kpc[0]) & (true < found.distance_kpc[2])
    assert inside.mean() == pytest.approx(0.68, abs=4 * np.sqrt(0.68 * 0.32 / n))
    assert (true < found.distance_kpc[1]).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(n))


def test_stars_without_parallax_have_no_place_and_harm_none() -> None:
    parallax, error = np.array([1.0, np.nan, 1.0, 1.0]), np.array([0.1, 0.1, np.nan, -1.0])
    zero = np.zeros(4)
    found = place.place_stars(zero, zero, (parallax, error), rng=np.random.default_rng(0))
    assert np.isfinite(found.radius_kpc).tolist() == [True, False, False, False]
    assert np.isnan(found.xyz_kpc[1:]).all()


def test_wrong_shapes_and_unknown_releases_are_told() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(LengthMismatch):
        distances.sample_distances([1.0, 2.0], [0.1], rng=rng)
    with pytest.raises(LengthMismatch):
        place.place_stars([1.0], [1.0], ([1.0, 2.0], [0.1, 0.1]), rng=rng)
    with pytest.raises(UnknownName, match="DR2"):
        place.place_stars([1.0], [1.0], ([1.0], [0.1]), rng=rng, gaia="DR1")


def test_discs_are_as_dense_as_stated() -> None:
    discs = Discs()
    here = discs.density(R_SUN_KPC, 0.0)
    assert here[1] / here[0] == pytest.approx(0.04)
    up = discs.density(R_SUN_KPC, -0.3)
    assert up[0] / here[0] == pytest.approx(np.exp(-1.0))
    out = discs.density(R_SUN_KPC + 2.0, 0.0)
    assert out[1] / here[1] == pytest.approx(np.exp(-1.0))


def test_simulated_stars_are_seen_between_the_magnitudes_and_at_their_parallax(stars) -> None:
    g = stars["magnitudes"][:, 0]
    assert np.mean((g > 8.5) & (g < 13.5)) > 0.85
    z = (stars["parallax_mas"] - 1 / stars["distance_kpc"]) / stars["parallax_error_mas"]
    assert z.mean() == pytest.approx(0.0, abs=4 / np.sqrt(z.size))
    assert z.std() == pytest.approx(1.0, abs=0.03)


def test_the_shares_of_the_discs_follow_the_densities(stars) -> None:
    place = galactocentric(stars["ra_deg"], stars["dec_deg"], stars["distance_kpc"])
    radius, height = cylindrical(place)
    density = Discs().density(radius, height)
    expected = density[1] / density.sum(axis=0)
    thick = stars["disc"] == 1
    for low, high in ((0.0, 0.3), (0.3, 0.8), (0.8, 4.0)):
        rows = (np.abs(height) >= low) & (np.abs(height) < high)
        error = np.sqrt(np.sum(expected[rows] * (1 - expected[rows]))) / rows.sum()
        assert thick[rows].mean() == pytest.approx(expected[rows].mean(), abs=4 * error)


def noisy_labels(stars, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """[M/H] and [alpha/M] as a good spectrograph would measure them."""
    n = len(stars["disc"])
    m_h = stars["labels"][:, 2] + 0.05 * rng.standard_normal(n)
    return m_h, stars["labels"][:, 4] + 0.02 * rng.standard_normal(n)


def test_gradients_of_a_simulated_survey_are_those_put_in(stars, places) -> None:
    rng = np.random.default_rng(4)
    m_h, _ = noisy_labels(stars, rng)
    for number, disc in enumerate((THIN_DISC, THICK_DISC)):
        rows = stars["disc"] == number
        label, where = m_h[rows], places.rows(rows)
        radial = gradients.gradients(label, where, along="R", edges_kpc=(0.0, 3.0), rng=rng)[0]
        vertical = gradients.gradients(label, where, along="|Z|", edges_kpc=(4.0, 12.0), rng=rng)[0]
        assert abs(radial.slope - disc.radial_gradient) < 3.0 * radial.error
        assert abs(vertical.slope - disc.vertical_gradient) < 3.0 * vertical.error
        assert radial.error < 0.02
        assert vertical.error < 0.02


def test_the_thin_disc_is_found_by_its_abundances_in_bins_of_height(stars, places) -> None:
    rng = np.random.default_rng(5)
    m_h, alpha = noisy_labels(stars, rng)
    low = ~gradients.high_alpha(m_h, alpha)
    found = gradients.gradients(
        m_h[low], places.rows(low), along="R", edges_kpc=gradients.Z_EDGES_KPC, rng=rng
    )
    pull = [(one.slope - THIN_DISC.radial_gradient) / one.error for one in found]
    assert np.all(np.abs(pull) < 3.0)
    assert found[0].slope < -3.0 * found[0].error


def test_the_two_sequences_of_a_simulated_survey_are_those_put_in(stars) -> None:
    rng = np.random.default_rng(6)
    _, alpha = noisy_labels(stars, rng)
    true_m_h = stars["labels"][:, 2]
    rows = (true_m_h > -0.4) & (true_m_h < -0.3)
    found = two.bimodality(alpha[rows], np.full(rows.sum(), 0.02), rng=rng)
    thin, thick = (one.alpha + one.alpha_slope * -0.35 for one in (THIN_DISC, THICK_DISC))
    separation = two.ashman_d([thin, thick], [THIN_DISC.alpha_scatter, THICK_DISC.alpha_scatter])
    assert found.mean == pytest.approx([thin, thick], abs=0.008)
    assert found.width == pytest.approx([0.025, 0.03], abs=0.006)
    assert abs(found.ashman_d - separation) < 3.0 * found.ashman_d_error
    assert found.share[1] == pytest.approx((stars["disc"][rows] == 1).mean(), abs=0.03)
    assert found.clean


@settings(deadline=None, max_examples=15)
@given(st.floats(0.05, 0.3), st.floats(0.2, 0.8), st.floats(0.0, 0.03), st.integers(0, 2**32 - 1))
def test_components_come_out_whatever_the_errors(apart, share, error, seed) -> None:
    rng = np.random.default_rng(seed)
    n = 3000
    upper = rng.random(n) < share
    true = np.where(upper, apart, 0.0) + 0.012 * rng.standard_normal(n)
    found = two.bimodality(
        true + error * rng.standard_normal(n), np.full(n, error), rng=rng, n_bootstrap=0
    )
    if apart > 4.0 * np.hypot(0.012, error):
        assert found.mean == pytest.approx([0.0, apart], abs=0.012)
        assert found.share[1] == pytest.approx(share, abs=0.06)
        assert found.width == pytest.approx([0.012, 0.012], abs=0.012)
    assert found.share.sum() == pytest.approx(1.0)


def test_one_sequence_is_not_taken_for_two() -> None:
    rng = np.random.default_rng(2)
    found = two.bimodality(0.05 * rng.standard_normal(4000), np.full(4000, 0.02), rng=rng)
    assert found.delta_bic < 0
    assert not found.clean


def test_two_components_that_overlap_are_not_called_clean() -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(0.0, 0.04, 5000), rng.normal(0.06, 0.02, 5000)])
    found = two.bimodality(x, np.zeros(x.size), rng=rng)
    assert found.ashman_d < two.CLEAN + 3 * found.ashman_d_error


def test_density_of_components_is_that_of_the_sample() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(0.0, 0.02, 3000), rng.normal(0.2, 0.03, 1000)])
    found = two.bimodality(x, np.zeros(x.size), rng=rng, n_bootstrap=0)
    grid = np.linspace(-0.3, 0.5, 2001)
    density = found.density(grid)
    assert density.sum(axis=0).sum() * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-3)
    below = density.sum(axis=0)[grid < 0.1].sum() * (grid[1] - grid[0])
    assert below == pytest.approx(0.75, abs=0.01)


def test_too_few_stars_have_no_components_and_no_slope() -> None:
    rng = np.random.default_rng(0)
    assert np.isnan(two.bimodality(np.zeros(9), np.zeros(9), rng=rng).ashman_d)
    with pytest.raises(LengthMismatch):
        two.bimodality(np.zeros(9), np.zeros(8), rng=rng)


def test_a_slope_on_mean_places_is_unbiased_where_one_on_inverted_parallaxes_is_flat() -> None:
    rng = np.random.default_rng(7)
    n = 20_000
    ra, dec = np.full(n, 266.4), np.full(n, -29.0)
    distance = rng.gamma(3.0, distances.LENGTH_KPC, n)
    radius, _ = cylindrical(galactocentric(ra, dec, distance))
    error = 0.25 / distance
    parallax = 1 / distance + error * rng.standard_normal(n)
    m_h = -0.06 * radius + 0.1 * rng.standard_normal(n)
    keep = distance < 7.0
    found = place.place_stars(
        ra[keep], dec[keep], (parallax[keep], error[keep]), rng=rng, gaia="none"
    )
    mean_slope = np.polyfit(found.radius_kpc, m_h[keep], 1)[0]
    sample_slope = np.polyfit(found.radius_samples[0], m_h[keep], 1)[0]
    assert abs(mean_slope + 0.06) < 0.012
    assert abs(sample_slope + 0.06) > 2 * abs(mean_slope + 0.06)


def test_maps_hold_the_mean_of_each_cell() -> None:
    rng = np.random.default_rng(0)
    x, y, value = rng.random((3, 500))
    value[3] = np.nan
    edges = (np.linspace(0, 1, 4), np.linspace(0, 1, 3))
    mean, count = gradients.mean_map(x, y, value, edges=edges, least=1)
    rows = (x < 1 / 3) & (y >= 0.5) & np.isfinite(value)
    assert count.sum() == 499
    assert count[0, 1] == rows.sum()
    assert mean[0, 1] == pytest.approx(value[rows].mean())
    assert np.isnan(gradients.mean_map(x, y, value, edges=edges, least=10_000)[0]).all()


def test_a_star_at_rest_moves_as_the_sun_does_not() -> None:
    found = orbits.velocities([10.0], [20.0], [1e-6], pm_masyr=([0.0], [0.0]), rv_kms=[0.0])
    assert found[0] == pytest.approx([-12.9, 245.6, 7.78], abs=0.1)


def test_circular_orbits_are_round() -> None:
    if importlib.util.find_spec("galpy") is None:
        pytest.skip("galpy, an extra, is not installed")
    frame = astropy_frame()
    there = Galactocentric(
        x=-8.3 * units.kpc,
        y=0.0 * units.kpc,
        z=0.0 * units.kpc,
        v_x=0.0 * units.km / units.s,
        v_y=233.4 * units.km / units.s,
        v_z=0.0 * units.km / units.s,
        galcen_distance=frame.galcen_distance,
        z_sun=frame.z_sun,
        galcen_v_sun=frame.galcen_v_sun,
    )
    star = SkyCoord(there).icrs
    found = orbits.orbits(
        [star.ra.deg, 10.0],
        [star.dec.deg, 10.0],
        [star.distance.to_value(units.kpc), np.nan],
        pm_masyr=(
            [star.pm_ra_cosdec.to_value(units.mas / units.yr), 0.0],
            [star.pm_dec.to_value(units.mas / units.yr), 0.0],
        ),
        rv_kms=[star.radial_velocity.to_value(units.km / units.s), 0.0],
    )
    assert found["eccentricity"][0] < 0.02
    assert found["z_max"][0] < 0.05
    assert found["r_apo"][0] == pytest.approx(8.3, abs=0.3)
    assert all(np.isnan(values[1]) for values in found.values())


def test_surveys_in_discs_keep_the_truth_and_others_are_as_before(tmp_path) -> None:
    placed = simulate_survey(tmp_path / "placed.zarr", n_star=300, seed=2, galaxy=True)
    plain = simulate_survey(tmp_path / "plain.zarr", n_star=300, seed=2)
    assert {"true_distance", "true_disc"} <= set(placed.column_names)
    assert not {"true_distance", "true_disc"} & set(plain.column_names)
    assert set(np.unique(placed.column("true_disc"))) == {0, 1}
    assert "discs" not in plain.provenance["simulation"]
    assert len(placed.provenance["simulation"]["discs"]["discs"]) == 2
    place = galactocentric(
        placed.column("ra"), placed.column("dec"), placed.column("true_distance")
    )
    radius, height = cylindrical(place)
    thin = placed.column("true_disc") == 0
    expected = THIN_DISC.m_h - 0.06 * (radius - R_SUN_KPC) - 0.11 * np.abs(height)
    rest = (placed.column("true_m_h") - expected)[thin]
    assert rest.mean() == pytest.approx(0.0, abs=4 * THIN_DISC.m_h_scatter / np.sqrt(thin.sum()))
