"""Spectra of one star, combined: errors hold, and no row is lost."""

import numpy as np
import pytest

from maury.labels.definitions import LABELS
from maury.labels.flags import Flag
from maury.prediction.by_star import combine_stars

TEFF, LOGG = LABELS[:2]


def spectra(n_star, n_each, *, own, common, seed=0):
    """Rows of stars whose labels err by a common part and by a part of each spectrum."""
    rng = np.random.default_rng(seed)
    star = np.repeat(np.arange(n_star), n_each)
    own = np.broadcast_to(own, star.shape).astype(float)
    shared = common * rng.standard_normal(n_star)[star]
    error = np.hypot(own, common)
    rows = {
        "id": np.array([f"spectrum {k}" for k in range(star.size)]),
        "star_id": np.array([f"star {k}" for k in star]),
        "flags": np.zeros(star.size, np.int32),
        "warn": np.zeros(star.size, bool),
        "snr": np.full(star.size, 30.0),
        "chi2_reduced": rng.uniform(0.9, 1.1, star.size),
        "worst_wavelength": rng.uniform(8420.0, 8780.0, star.size),
    }
    for label, unit in ((TEFF, 1.0), (LOGG, 0.01)):
        value = unit * (shared + own * rng.standard_normal(star.size))
        rows[label.name], rows[label.error_name] = value, unit * error
        rows[f"{label.error_name}_own"] = unit * own
        rows[f"{label.error_name}_common"] = np.full(star.size, unit * common)
        for suffix, away in (("q02", -2), ("q16", -1), ("q50", 0.1), ("q84", 1), ("q98", 2)):
            rows[f"{label.name}_{suffix}"] = value + away * unit * error
    rows["teff_logg_corr"] = np.full(star.size, 0.3)
    return rows


def test_errors_of_eight_spectra_hold_where_those_of_a_formal_mean_do_not():
    rows = spectra(4000, 8, own=20.0, common=50.0)
    out = combine_stars(rows, (TEFF, LOGG))
    assert len(out["id"]) == 4000
    assert (out["n_spectra"] == 8).all()
    assert np.std(out["teff"] / out["teff_error"]) == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(out["teff_error_own"], 20.0 / np.sqrt(8))
    np.testing.assert_allclose(out["teff_error_common"], 50.0)
    formal = rows["teff"].reshape(-1, 8).mean(axis=1) / (rows["teff_error"][0] / np.sqrt(8))
    assert np.std(formal) > 2.4
    np.testing.assert_allclose(out["snr"], 30.0 * np.sqrt(8))
    np.testing.assert_allclose(out["teff_q50"], out["teff"] + 0.1 * out["teff_error"])
    np.testing.assert_allclose(out["teff_logg_corr"], 0.3)


def test_better_spectra_count_more():
    own = np.tile([10.0, 40.0], 3000)
    out = combine_stars(spectra(3000, 2, own=own, common=15.0), (TEFF, LOGG))
    assert np.std(out["logg"] / out["logg_error"]) == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(out["teff_error_own"], (10.0**-2 + 40.0**-2) ** -0.5)


def test_stars_keep_their_order_and_spectra_without_a_star_stay_alone():
    rows = spectra(3, 2, own=1.0, common=1.0)
    rows["star_id"] = np.array(["b", "", "a", "b", "", "a"])
    out = combine_stars(rows, (TEFF, LOGG))
    assert out["star_id"].tolist() == ["b", "", "a", ""]
    assert out["id"].tolist() == ["spectrum 0", "spectrum 1", "spectrum 2", "spectrum 4"]
    assert out["n_spectra"].tolist() == [2, 1, 2, 1]
    assert out["teff"][1] == pytest.approx(rows["teff"][1])
    assert out["teff_error"][1] == pytest.approx(rows["teff_error"][1])


def test_spectra_that_a_flag_warns_of_count_only_where_there_are_no_others():
    rows = spectra(2, 2, own=1.0, common=0.5)
    bad = np.array([False, True, True, True])
    rows["warn"], rows["flags"] = bad, np.where(bad, Flag.LOW_SNR, 0).astype(np.int32)
    rows["teff"][1] = 1e6
    out = combine_stars(rows, (TEFF, LOGG))
    assert out["n_spectra"].tolist() == [1, 2]
    assert out["warn"].tolist() == [False, True]
    assert out["teff"][0] == pytest.approx(rows["teff"][0])


def test_a_star_without_labels_is_a_row_of_nan():
    rows = spectra(2, 2, own=1.0, common=0.5)
    for name in ("teff", "teff_error", "teff_error_own", "teff_error_common"):
        rows[name][:2] = np.nan
    rows["teff"][2] = rows["teff_error_own"][2] = np.nan
    out = combine_stars(rows, (TEFF, LOGG))
    assert np.isnan(out["teff"]).tolist() == [True, False]
    assert np.isnan(out["teff_error"]).tolist() == [True, False]
    assert out["teff"][1] == pytest.approx(rows["teff"][3])
    assert np.isfinite(out["logg"]).all()
