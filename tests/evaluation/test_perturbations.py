"""Perturbations: the physics of each, on spectra whose right change is known."""

from dataclasses import replace

import numpy as np
import pytest

from maury.evaluation import perturbations as change
from maury.evaluation.library import Library
from maury.labels.columns import BANDS
from maury.spectra.batch import Batch
from maury.spectra.observables import band, band_extinction
from maury.spectra.operators import SPEED_OF_LIGHT_KMS
from maury.spectra.spectra import Spectra
from maury.survey.store import Survey

N = 40
WAVE = 8420.0 + 0.4 * np.arange(912)
LINE_AA = 8600.0


def gaussian(depth=0.5, centre=LINE_AA, sigma=1.0):
    """One spectrum (1, 912) with a Gaussian line."""
    return 1.0 - depth * np.exp(-0.5 * ((WAVE - centre) / sigma) ** 2)[None]


def area(flux):
    """Equivalent width in angstrom, (n_star,)."""
    return np.sum(1.0 - flux, axis=1) * 0.4


@pytest.fixture
def batch() -> Batch:
    flux = np.repeat(gaussian(), N, axis=0).astype(np.float32)
    rng = np.random.default_rng(0)
    columns = {one.column: rng.uniform(8.0, 12.0, N) for one in BANDS}
    columns |= {"parallax": rng.uniform(1.0, 5.0, N), "a_v": np.full(N, 0.3)}
    columns |= {"snr": np.full(N, 50.0), "id": np.array([f"s{k}" for k in range(N)])}
    ivar = np.full_like(flux, 2500.0)
    return Batch(Spectra.from_arrays(WAVE, flux, ivar), columns)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def colour(batch, blue, red):
    return batch.columns[band(blue).column] - batch.columns[band(red).column]


@pytest.mark.parametrize(
    ("how", "share"),
    [
        (lambda b, rng: change.without_ends(b, 0.094, 0.0), 0.094),
        (lambda b, rng: change.without_ends(b, 0.2, 0.2), 0.4),
        (lambda b, rng: change.without_random(b, rng, 0.4), 0.4),
        (lambda b, rng: change.without_gaps(b, rng, 1, 52), 52 / 912),
        (lambda b, rng: change.without_all_but(b, 8460.0, 8700.0), 1 - 600 / 912),
    ],
)
def test_pixels_are_lost_in_the_share_that_is_asked(batch, rng, how, share):
    lost = ~how(batch, rng).spectra.good
    assert lost.mean() == pytest.approx(share, abs=0.005)
    assert batch.spectra.good.all()


def test_ends_and_range_lose_the_right_pixels(batch):
    blue = change.without_ends(batch, 0.5, 0.0).spectra.good[0]
    assert not blue[:456].any()
    assert blue[456:].all()
    kept = WAVE[change.without_all_but(batch, 8460.0, 8700.0).spectra.good[0]]
    assert kept[[0, -1]] == pytest.approx([8460.0, 8700.0])


def test_gaps_are_runs_that_differ_from_star_to_star(batch, rng):
    lost = ~change.without_gaps(batch, rng, 2, 40).spectra.good
    edges = np.abs(np.diff(np.pad(lost, ((0, 0), (1, 1))).astype(int), axis=1)).sum(axis=1)
    assert set(edges) <= {2, 4}
    assert lost.sum(axis=1).max() == 80
    assert len({tuple(row) for row in lost}) == N


def test_reddening_moves_colours_by_the_law_and_a_v_where_it_is_told(batch):
    law = dict(zip(("J", "Ks"), band_extinction([0.5], ("J", "Ks"))[0], strict=True))
    red = change.reddened(batch, 0.5, told=False)
    moved = colour(red, "J", "Ks") - colour(batch, "J", "Ks")
    assert moved == pytest.approx(np.full(N, law["J"] - law["Ks"]))
    # Gordon et al. (2023): E(J - Ks) is .16 to .19 of A_V for R_V = 3.1.
    assert moved[0] / 0.5 == pytest.approx(0.17, abs=0.03)
    assert red.columns["a_v"] == pytest.approx(batch.columns["a_v"])
    assert change.reddened(batch, 0.5, told=True).columns["a_v"] == pytest.approx(np.full(N, 0.8))


def test_two_equal_stars_are_three_quarters_of_a_magnitude_brighter():
    assert change.added_magnitude(np.array([8.0]), np.array([8.0])) == pytest.approx(
        [8.0 - 2.5 * np.log10(2.0)]
    )
    assert np.isnan(change.added_magnitude(np.array([8.0]), np.array([np.nan]))).all()


def test_light_of_a_companion_dilutes_lines_and_keeps_the_noise(batch, rng):
    clean = np.repeat(gaussian(), N, axis=0).astype(np.float32)
    noise = change.correlated_noise(clean / 50.0**2, (0.44, 0.05), rng)
    noisy = change.with_flux(batch, clean + noise)
    light = np.full(N, 0.5)
    second = np.repeat(gaussian(centre=8500.0), N, axis=0)
    both = change.blended(
        noisy, rng, clean, second, light=light, correlation=(0.44, 0.05)
    ).spectra.flux
    right = (clean + 0.5 * second) / 1.5
    assert area(right) == pytest.approx(area(clean), rel=1e-3)
    assert (both - right).mean(axis=0) == pytest.approx(np.zeros(912), abs=5 * 0.02 / np.sqrt(N))
    far = np.abs(WAVE - LINE_AA) > 10.0
    assert (both - right)[:, far].std() == pytest.approx(0.02, rel=0.03)
    pairs = (both - right)[:, far]
    assert np.mean(pairs[:, 1:] * pairs[:, :-1]) / pairs.var() == pytest.approx(0.44, abs=0.03)


def test_broadening_keeps_equivalent_widths_and_adds_variances():
    flux = gaussian()
    kms = SPEED_OF_LIGHT_KMS / LINE_AA
    wide = change.broadened(WAVE, flux, sigma_kms=2.0 * kms)
    assert area(wide) == pytest.approx(area(flux), rel=1e-4)
    assert wide == pytest.approx(gaussian(depth=0.5 / np.sqrt(5.0), sigma=np.sqrt(5.0)), abs=1e-3)


def test_rotation_has_the_second_moment_of_its_profile():
    flux, speed = gaussian(depth=0.2), 60.0
    wide = change.broadened(WAVE, flux, rotation_kms=speed)

    def moment(spectrum):
        depth = 1.0 - spectrum[0]
        return np.sum(depth * (WAVE - LINE_AA) ** 2) / np.sum(depth)

    # Gray's profile is 2 (1 - e) (1 - x^2)^1/2 + (pi e / 2) (1 - x^2), over pi (1 - e / 3).
    e = 0.6
    x2 = ((1.0 - e) / 4.0 + e * 2.0 / 15.0) / (1.0 - e / 3.0)
    added = x2 * (speed * LINE_AA / SPEED_OF_LIGHT_KMS) ** 2
    assert moment(wide) - moment(flux) == pytest.approx(added, rel=0.03)
    assert area(wide) == pytest.approx(area(flux), rel=1e-4)


@pytest.mark.parametrize("speed", [3.0, -200.0])
def test_a_receding_star_has_its_lines_to_the_red(speed):
    moved = change.broadened(WAVE, gaussian(), rv_kms=np.array([speed]))
    depth = 1.0 - moved[0]
    centre = np.sum(WAVE * depth) / np.sum(depth)
    assert centre - LINE_AA == pytest.approx(LINE_AA * speed / SPEED_OF_LIGHT_KMS, rel=0.005)


def test_a_lower_resolving_power_is_reached_by_its_gaussian():
    width = SPEED_OF_LIGHT_KMS / (2.0 * np.sqrt(2.0 * np.log(2.0)))
    extra = change.resolution_sigma_kms(7500.0, 0.9)
    assert np.hypot(extra, width / 7500.0) == pytest.approx(width / 6750.0)


def test_line_strengths_are_fields_that_many_stars_share(rng):
    flux = np.full((16, 912), 0.7)
    factor = (1.0 - change.line_strengths(WAVE, flux, rng, 0.15)) / 0.3
    near = np.min(np.abs(WAVE - np.array(change.CALCIUM_AA)[:, None]), axis=0)
    assert factor[:, near > 9.0].mean() == pytest.approx(1.0, abs=0.02)
    assert factor[:, near > 9.0].std() == pytest.approx(0.15, rel=0.1)
    assert factor[:, near < 6.0] == pytest.approx(np.ones((16, np.sum(near < 6.0))))
    assert factor[:8] == pytest.approx(factor[8:])
    assert not np.allclose(factor[0], factor[1])


def test_scattered_light_fills_lines_and_leaves_the_continuum():
    changed = change.scattered(gaussian(depth=0.5), 0.06)
    assert changed.max() == pytest.approx(1.0)
    assert 1.0 - changed.min() == pytest.approx(0.5 / 1.06)


def test_fringes_have_their_amplitude(rng):
    changed = change.fringes(WAVE, np.ones((N, 912)), rng, 0.02)
    assert changed.std() == pytest.approx(0.02 / np.sqrt(2.0), rel=0.02)


def test_cores_and_emission_change_the_triplet_alone():
    deep = change.calcium_cores(WAVE, np.ones((1, 912)), np.array([0.1]))
    near = np.min(np.abs(WAVE - np.array(change.CALCIUM_AA)[:, None]), axis=0)
    assert deep.min() == pytest.approx(0.9, abs=0.005)
    assert deep[0, near > 4.0] == pytest.approx(np.ones(np.sum(near > 4.0)), abs=1e-4)
    assert -area(change.emission(WAVE, np.ones((1, 912)), np.array([1.2]))) == pytest.approx(
        [1.2], rel=1e-3
    )


def test_photometry_gets_the_noise_that_is_told(batch, rng):
    many = change.noisier_bands(batch, rng, ("J", "Ks"), rms=0.05, told=True)
    assert (many.columns["j_m"] - batch.columns["j_m"]).std() == pytest.approx(0.05, rel=0.3)
    assert many.columns["j_m_error"] == pytest.approx(np.full(N, 0.05))
    assert many.columns["h_m"] is batch.columns["h_m"]
    again = change.noisier_bands(many, rng, ("J",), rms=0.05, told=True)
    assert again.columns["j_m_error"] == pytest.approx(np.full(N, 0.05 * np.sqrt(2.0)))
    silent = change.noisier_bands(batch, rng, ("J",), rms=0.05, told=False)
    assert "j_m_error" not in silent.columns


def test_each_input_is_lost_by_itself_in_the_share_that_is_asked(batch, rng):
    lost = change.without_some(batch, rng, 0.5)
    gone = np.isnan([lost.columns[one.column] for one in BANDS])
    assert gone.mean() == pytest.approx(0.5, abs=0.1)
    assert len({tuple(star) for star in gone.T}) > N / 2


def test_one_band_of_each_star_is_off(batch, rng):
    off = change.one_band_off(batch, rng, -0.3)
    shift = np.array([off.columns[b.column] - batch.columns[b.column] for b in BANDS])
    assert np.sum(np.abs(shift) > 1e-9, axis=0).tolist() == [1] * N
    assert shift.sum(axis=0) == pytest.approx(np.full(N, -0.3))


def test_parallaxes_scatter_by_the_share_that_is_told(batch, rng):
    changed = change.noisier_parallax(batch, rng, relative=0.2, told=True)
    ratio = changed.columns["parallax"] / batch.columns["parallax"]
    assert ratio.std() == pytest.approx(0.2, rel=0.3)
    assert changed.columns["parallax_error"] == pytest.approx(0.2 * batch.columns["parallax"])


def test_a_lower_snr_is_the_noise_of_the_spectrum_and_is_told(batch, rng):
    clean = np.repeat(gaussian(), N, axis=0).astype(np.float32)
    noisy = change.with_flux(batch, clean + change.correlated_noise(clean / 2500.0, (0.44,), rng))
    snr = np.full(N, 15.0)
    changed = change.at_snr(noisy, rng, clean, snr=snr, correlation=(0.44,))
    far = np.abs(WAVE - LINE_AA) > 10.0
    assert (changed.spectra.flux - clean)[:, far].std() == pytest.approx(1 / 15.0, rel=0.03)
    assert changed.columns["snr"] == pytest.approx(snr)
    assert np.median(changed.spectra.ivar) == pytest.approx(225.0, rel=0.05)


def test_an_overstated_snr_changes_no_flux(batch):
    changed = change.overstated_snr(batch, 2.0)
    assert np.array_equal(changed.spectra.flux, batch.spectra.flux)
    assert changed.columns["snr"] == pytest.approx(np.full(N, 100.0))
    assert changed.spectra.ivar == pytest.approx(4.0 * batch.spectra.ivar)


def test_swapped_photometry_is_that_of_one_other_star(batch, rng):
    changed = change.swapped_photometry(batch, rng)
    assert sorted(changed.columns["j_m"]) == sorted(batch.columns["j_m"])
    assert colour(changed, "J", "Ks") == pytest.approx(
        colour(batch, "J", "Ks")[np.argsort(batch.columns["j_m"])][
            np.argsort(np.argsort(changed.columns["j_m"]))
        ]
    )
    assert not np.array_equal(changed.columns["j_m"], batch.columns["j_m"])


def test_changed_light_keeps_the_level_and_the_noise_of_the_spectrum(batch, rng):
    counts = replace(
        batch,
        spectra=batch.spectra.replace(
            flux=np.float32(300.0) * batch.spectra.flux, ivar=batch.spectra.ivar / 9e4
        ),
    )
    clean = np.repeat(gaussian(), N, axis=0).astype(np.float32)
    changed = change.changed_light(counts, clean, 1.0 - 1.1 * (1.0 - clean))
    assert (changed.spectra.flux / 300.0).min() == pytest.approx(0.45, abs=1e-3)
    assert np.median(changed.spectra.flux) == pytest.approx(300.0)


@pytest.fixture(scope="module")
def survey(default_survey) -> Survey:
    return Survey.open(default_survey)


@pytest.fixture(scope="module")
def library(survey) -> Library:
    return Library.of(survey)


def test_clean_spectra_are_nearer_to_the_truth_than_the_observed_ones(survey, library):
    batch = survey.rows(np.arange(100))
    clean = library.clean(batch)
    noise = 1.0 / np.nanmedian(batch.columns["snr"])
    apart = batch.spectra.flux - clean
    assert clean.shape == (100, survey.n_pixel)
    # What is left is the noise of the star itself: its neighbours do not share it.
    assert noise < np.std(apart) < 2.0 * noise
    assert np.std(np.diff(clean, axis=1)) < np.std(np.diff(batch.spectra.flux, axis=1))


def test_companions_are_fainter_and_cooler_and_add_their_light(survey, library, rng):
    batch = survey.rows(np.arange(300))
    pairs = library.paired(batch, rng, light=(0.1, 0.5), speed_kms=(0.0, 10.0))
    assert 0 < len(pairs) <= 300
    single = {star: row for row, star in enumerate(batch.columns["id"])}
    rows = np.array([single[name] for name in pairs.columns["id"]])

    def brighter(name):
        name = band(name).column
        return pairs.columns[name] - batch.columns[name][rows]

    # RP is the band of the Ca II triplet: 1.1 to 1.5 times the light of the star.
    light = 10.0 ** (-0.4 * brighter("RP"))
    assert light.min() >= 1.1 - 1e-6
    assert light.max() <= 1.5 + 1e-6
    # A cooler companion gives more of the light in the infrared than at 0.5 micron.
    assert np.median(brighter("Ks") - brighter("BP")) < -0.02
    assert pairs.columns["teff"] == pytest.approx(batch.columns["teff"][rows])
