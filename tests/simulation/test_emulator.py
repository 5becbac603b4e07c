import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from maury.errors import ModelFileError, OutputExists
from maury.simulation.emulator import Emulator
from maury.simulation.quantities import DISSOCIATION, EMULATOR_LABELS, quantities

EMULATOR = Emulator.load()
NAMES = list(EMULATOR_LABELS)
SUN = np.array([5772.0, 4.44] + [0.0] * 7 + [1.0] + [0.0] * 6)
GIANT = np.array([4700.0, 2.4] + [0.0] * 7 + [1.5] + [0.0] * 6)
METAL_POOR_GIANT = np.array([4800.0, 2.2, -0.8, -0.8, 0.2, 0, 0, 0, 0, 1.5, 0, 0, 0, 0, 0, 0])

ELEMENT_LINES = {
    "mg_fe": (8468.8, 8473.7, 8710.2, 8712.7, 8717.8, 8736.0),
    "si_fe": (8444.0, 8501.5, 8502.2, 8536.2, 8556.8, 8648.5, 8728.0, 8742.4, 8752.0, 8790.4),
    "al_fe": (8772.9, 8773.9),
    "ni_fe": (8417.2, 8501.8, 8606.4, 8637.0, 8702.5, 8770.7),
    "d_ti": (8412.4, 8426.5, 8435.0, 8435.7, 8438.9, 8518.2, 8675.4, 8683.0, 8692.3, 8734.7),
    "d_cr": (8450.3, 8455.3, 8543.7, 8548.9, 8636.2, 8643.0, 8687.5, 8707.4, 8708.0),
    "d_ca": (8498.0, 8542.1, 8662.1),
}
WINGS_AA = {"d_ca": 15.0, "mg_fe": 4.0, "si_fe": 2.0}
# Mg I 8806.8 and Ni I 8809.4 lie beyond the grid, but their wings do not.
LAST_AA = 8790.0


def label_rows(n: int, seed: int = 0) -> np.ndarray:
    low, high = EMULATOR.bounds.T
    return np.random.default_rng(seed).uniform(low, high, (n, 16))


def stars_like(base: np.ndarray, **changes: float) -> np.ndarray:
    row = base.copy()
    for name, value in changes.items():
        row[NAMES.index(name)] = value
    return row


def oracle_flux(labels: np.ndarray) -> np.ndarray:
    """One star at a time, in float64, member by member."""
    weights = {k: np.asarray(v, dtype=np.float64) for k, v in EMULATOR.tensors.as_dict().items()}
    rows = []
    for star in labels:
        x = (quantities(star[None])[0] - weights["centre"]) / weights["scale"]
        total = np.zeros(weights["basis"].shape[0])
        n_member = len(weights["weight_0"])
        for member in range(n_member):
            hidden = x
            for layer in range(3):
                pre = weights[f"weight_{layer}"][member].T @ hidden
                pre = pre + weights[f"bias_{layer}"][member, 0]
                hidden = pre / (1 + np.exp(-pre))
            total += weights["weight_out"][member].T @ hidden + weights["bias_out"][member, 0]
        rows.append(weights["mean"] + weights["basis"].T @ (total / n_member))
    return np.array(rows)


in_bounds = st.lists(st.floats(0, 1), min_size=16, max_size=16).map(
    lambda u: EMULATOR.bounds[:, 0] + np.array(u) * np.ptp(EMULATOR.bounds, axis=1)
)


def test_quantities_follow_the_synthesis():
    row = np.arange(1.0, 17.0)
    row[0] = 5040.0
    value = dict(zip(NAMES, row, strict=True))
    got = quantities(row[None])[0]
    assert got[0] == 1.0
    expected = {
        4: value["fe_h"] + value["mg_fe"],
        7: value["fe_h"] + value["ni_fe"],
        8: value["fe_h"] + value["d_cr"],
        9: value["m_h"] + value["alpha_m"] + value["d_ca"],
        12: value["m_h"] + value["alpha_m"],
        13: value["m_h"] + value["d_c"] - 0.15,
        14: value["m_h"] + value["d_n"] + 0.25,
        15: value["m_h"],
    }
    for index, total in expected.items():
        assert got[index] == total


def test_dwarfs_keep_their_carbon_and_nitrogen():
    dwarf, giant = quantities([stars_like(SUN, logg=3.5), stars_like(SUN, logg=2.5)])
    np.testing.assert_allclose(dwarf[13:15], 0.0)
    np.testing.assert_allclose(giant[13:15], [-0.15, 0.25])


@pytest.mark.parametrize("d_c", [-1.0, 0.0, 0.26, 0.6])
def test_free_carbon_obeys_mass_action(d_c):
    got = quantities([stars_like(GIANT, logg=3.5, d_c=d_c)])[0, 16:]
    carbon = 0.538 * 10**d_c
    for (at_zero, by_theta, by_logg, _), log_free in zip(DISSOCIATION, got, strict=True):
        constant = 10 ** (at_zero + by_theta * (5040 / 4700 - 1.1) + by_logg)
        bound = carbon - 10**log_free
        assert 10**log_free * (1 - bound) == pytest.approx(constant * bound, rel=1e-6)


def test_grid_is_uniform_in_log_wavelength():
    step = np.diff(np.log(EMULATOR.wave_aa))
    np.testing.assert_allclose(step, EMULATOR.step_kms / 299792.458, rtol=1e-8)
    assert EMULATOR.wave_aa.size == 2048
    assert EMULATOR.wave_aa[0] <= 8404.0001
    assert EMULATOR.wave_aa[-1] >= 8799.9999


def test_flux_agrees_with_an_independent_float64_forward_pass():
    labels = label_rows(150)
    difference = EMULATOR.flux(labels) - oracle_flux(labels)
    assert np.abs(difference).max() < 2e-5


# An example of C/O near one, where carbon monoxide makes the flux most curved.
@example(stars_like(GIANT, d_c=0.2, alpha_m=-0.1, d_o=-0.1))
@settings(max_examples=15, deadline=None)
@given(in_bounds)
def test_jacobian_agrees_with_finite_differences(star):
    jacobian = EMULATOR.jacobian(star[None])[0]
    for j, width in enumerate(np.ptp(EMULATOR.bounds, axis=1)):
        step = np.zeros(16)
        step[j] = 1e-5 * width
        both = oracle_flux(np.array([star + step, star - step]))
        slope = (both[0] - both[1]) / 2e-5
        np.testing.assert_allclose(jacobian[:, j] * width, slope, rtol=1e-3, atol=5e-5)


def test_rows_do_not_depend_on_their_neighbours():
    labels = label_rows(300)
    together = EMULATOR.flux(labels)
    alone = np.concatenate([EMULATOR.flux(row[None]) for row in labels[::37]])
    np.testing.assert_allclose(together[::37], alone, atol=5e-6)
    slopes = EMULATOR.jacobian(labels[:70]) * np.ptp(EMULATOR.bounds, axis=1)
    lone = EMULATOR.jacobian(labels[69:70])[0] * np.ptp(EMULATOR.bounds, axis=1)
    np.testing.assert_allclose(slopes[69], lone, atol=5e-5)


def test_same_labels_give_the_same_bits():
    labels = label_rows(200)
    assert np.array_equal(EMULATOR.flux(labels), Emulator.load().flux(labels))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4), st.integers(0, 15), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_bad_row_is_nan_and_harms_no_other(row, column, value):
    labels = label_rows(5)
    good = EMULATOR.flux(labels)
    labels[row, column] = value
    flux, slopes = EMULATOR.flux(labels), EMULATOR.jacobian(labels)
    others = np.arange(5) != row
    assert np.isnan(flux[row]).all()
    assert np.isnan(slopes[row]).all()
    assert np.array_equal(flux[others], good[others])
    assert np.isfinite(slopes[others]).all()


def test_a_temperature_that_is_not_positive_gives_nan():
    assert np.isnan(EMULATOR.flux([stars_like(SUN, teff=0.0), stars_like(SUN, teff=-5.0)])).all()


def test_labels_far_beyond_any_star_raise_nothing():
    assert EMULATOR.flux(np.full((2, 16), 1e200)).shape == (2, 2048)
    assert EMULATOR.jacobian(np.full((1, 16), 1e30)).shape == (1, 2048, 16)


def test_no_rows_give_no_rows():
    assert EMULATOR.flux(np.empty((0, 16))).shape == (0, 2048)
    assert EMULATOR.jacobian(np.empty((0, 16))).shape == (0, 2048, 16)


def test_arguments_are_left_alone_and_weights_are_frozen():
    labels = label_rows(3)
    labels[1, 2] = np.nan
    before = labels.copy()
    EMULATOR.flux(labels)
    EMULATOR.jacobian(labels)
    EMULATOR.clip(labels)
    np.testing.assert_array_equal(labels, before)
    with pytest.raises(ValueError, match="read-only"):
        EMULATOR.wave_aa[0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        EMULATOR.tensors.basis[0, 0] = 1.0


@pytest.mark.parametrize("shape", [(16,), (2, 15), (1, 2, 16)])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(n_star, 16\)"):
        EMULATOR.flux(np.zeros(shape))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=16, max_size=16))
def test_clipped_labels_are_inside_and_clipping_moves_only_what_is_outside(values):
    labels = np.array([values])
    clipped = EMULATOR.clip(labels)
    assert EMULATOR.inside(clipped).all()
    assert np.array_equal(EMULATOR.clip(clipped), clipped)
    assert EMULATOR.inside(labels)[0] == np.array_equal(clipped, labels)


def test_missing_labels_are_outside_and_stay_missing():
    labels = stars_like(SUN, mg_fe=np.nan)[None]
    assert not EMULATOR.inside(labels)[0]
    assert np.isnan(EMULATOR.clip(labels)[0, NAMES.index("mg_fe")])


def test_save_and_load_give_the_same_emulator(tmp_path):
    path = tmp_path / "copy.safetensors"
    EMULATOR.save(path)
    again = Emulator.load(path)
    assert again.spec == EMULATOR.spec
    assert np.array_equal(again.flux(SUN[None]), EMULATOR.flux(SUN[None]))
    with pytest.raises(OutputExists):
        EMULATOR.save(path)


def parts(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    with safe_open(path, framework="numpy") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        return tensors, json.loads(handle.metadata()["emulator"])


def write_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def write_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))


def write_text(path: Path) -> None:
    path.write_text("no weights here")


def write_empty(path: Path) -> None:
    path.write_bytes(b"")


def write_bare(path: Path) -> None:
    save_file(parts(path)[0], path)


def write_next_version(path: Path) -> None:
    tensors, spec = parts(path)
    save_file(tensors, path, metadata={"emulator": json.dumps(spec | {"format_version": 2})})


def write_reordered_labels(path: Path) -> None:
    tensors, spec = parts(path)
    spec["label_names"] = spec["label_names"][::-1]
    save_file(tensors, path, metadata={"emulator": json.dumps(spec)})


def write_without_basis(path: Path) -> None:
    tensors, spec = parts(path)
    del tensors["basis"]
    save_file(tensors, path, metadata={"emulator": json.dumps(spec)})


def write_other_grid(path: Path) -> None:
    tensors, spec = parts(path)
    save_file(tensors, path, metadata={"emulator": json.dumps(spec | {"n_pixel": 1024})})


def write_nan(path: Path) -> None:
    tensors, spec = parts(path)
    tensors["mean"] = tensors["mean"] * np.float32(np.nan)
    save_file(tensors, path, metadata={"emulator": json.dumps(spec)})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, "cannot read"),
        (write_cut, "cannot read"),
        (write_text, "cannot read"),
        (write_empty, "cannot read"),
        (write_flipped, "checksum"),
        (write_bare, "no 'emulator' metadata"),
        (write_next_version, "format_version"),
        (write_reordered_labels, "label_names"),
        (write_without_basis, "basis"),
        (write_other_grid, "expected"),
        (write_nan, "not finite"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(tmp_path, damage, says):
    path = tmp_path / "weights.safetensors"
    EMULATOR.save(path)
    damage(path)
    with pytest.raises(ModelFileError, match=says) as caught:
        Emulator.load(path)
    assert "weights.safetensors" in str(caught.value)
    assert "train_emulator.py" in str(caught.value)


def near(lines: tuple[float, ...], within_aa: float) -> np.ndarray:
    return (np.abs(EMULATOR.wave_aa[:, None] - np.array(lines)) < within_aa).any(axis=1)


@pytest.mark.parametrize("base", [SUN, GIANT, METAL_POOR_GIANT], ids=["sun", "giant", "poor"])
@pytest.mark.parametrize("label", ELEMENT_LINES)
def test_an_element_acts_on_its_own_lines(label, base):
    response = EMULATOR.jacobian(base[None])[0, :, NAMES.index(label)]
    # Only what deepens: electrons of Mg and Si raise the continuous opacity, and weaken all lines.
    response = np.where(EMULATOR.wave_aa < LAST_AA, np.minimum(response, 0.0), 0.0)
    lines = ELEMENT_LINES[label]
    assert near(lines, 3.0 if label == "d_ca" else 0.5)[np.argmin(response)]
    own = near(lines, WINGS_AA.get(label, 1.0))
    assert np.sum(response[own] ** 2) > 0.5 * np.sum(response**2)


@pytest.mark.parametrize("base", [SUN, GIANT], ids=["sun", "giant"])
def test_more_of_an_element_deepens_its_lines(base):
    for label in ("mg_fe", "si_fe", "al_fe", "d_ti", "d_ca"):
        lines = ELEMENT_LINES[label]
        more, less = EMULATOR.flux([stars_like(base, **{label: x}) for x in (0.15, -0.15)])
        core = near(lines, 0.25)
        assert np.mean(more[core]) < np.mean(less[core]) - 0.003


def test_calcium_triplet_wings_grow_with_gravity_in_dwarfs_and_metallicity():
    wing = near((8542.1,), 4.0) & ~near((8542.1,), 1.0)
    stars = [SUN, stars_like(SUN, logg=4.8), stars_like(SUN, m_h=-0.5, fe_h=-0.5)]
    sun, dense, poor = EMULATOR.flux(stars)[:, wing].mean(axis=1)
    assert dense < sun - 0.002
    assert poor > sun + 0.01


@pytest.fixture(scope="module")
def held_out(shared):
    with np.load(shared / "data/synthesis/synthetic_spectra.npz", allow_pickle=False) as archive:
        rows = EMULATOR.tensors.holdout_rows
        flux = archive["flux_u16"][rows] * float(archive["flux_scale"])
        wave = 8404.0 + 0.2 * np.arange(flux.shape[1])
        return wave, flux, archive["labels"][rows].astype(float), archive["designed"][rows]


def test_holdout_is_a_tenth_of_real_and_a_sixth_of_designed_stars(held_out):
    designed = held_out[3]
    assert np.unique(EMULATOR.tensors.holdout_rows).size == designed.size
    assert np.sum(~designed) >= 330
    assert np.sum(designed) >= 70


@pytest.mark.parametrize("group", ["real", "designed"])
def test_accuracy_on_held_out_stars_at_the_resolving_power_of_rave(held_out, group):
    wave, flux, labels, designed = held_out
    rows = designed == (group == "designed")
    fwhm = np.sqrt(7500.0**-2 - 20000.0**-2) * 299792.458
    sigma = fwhm / 2.3548 / EMULATOR.step_kms
    truth = CubicSpline(wave, flux[rows], axis=1)(EMULATOR.wave_aa)
    difference = gaussian_filter1d(EMULATOR.flux(labels[rows]) - truth, sigma, axis=1)
    difference = difference[:, (EMULATOR.wave_aa > 8420) & (EMULATOR.wave_aa < 8784.4)]
    rms = np.sqrt(np.mean(difference**2))
    p99 = np.percentile(np.abs(difference), 99)
    recorded = EMULATOR.spec.accuracy[group]
    assert rms < 0.002
    assert p99 < 0.01
    assert rms == pytest.approx(recorded.rms, rel=0.02)
    assert p99 == pytest.approx(recorded.p99, rel=0.04)
    assert recorded.n_star == np.sum(rows)


def test_error_is_the_rms_on_held_out_stars(held_out):
    wave, flux, labels, designed = held_out
    difference = EMULATOR.flux(labels) - CubicSpline(wave, flux, axis=1)(EMULATOR.wave_aa)
    variance = [np.mean(difference[designed == group] ** 2) for group in (False, True)]
    assert np.sqrt(np.mean(EMULATOR.error**2)) == pytest.approx(np.sqrt(np.mean(variance)), rel=0.1)
