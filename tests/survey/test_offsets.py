"""Offsets between simulated reference surveys: what was put in comes out, within its errors."""

import json

import numpy as np
import pytest

from maury.errors import ConfigError, TrainingError, UnknownName
from maury.survey.assembly.offsets import ReferenceLabels, fit_offsets, merge

NAMES = ("teff", "logg", "fe_h", "mg_fe")
ERRORS = np.array([30.0, 0.05, 0.02, 0.03])
SCATTER = np.array([40.0, 0.04, 0.03, 0.0])
CONSTANT = np.array([-60.0, 0.1, 0.05, -0.02])
SLOPES = np.array(
    [[20.0, 0.0, 0.0, 0.0], [0.0, 0.05, 0.0, 0.0], [0.04, 0.0, -0.1, 0.0], [0.0, 0.0, 0.05, 0.0]]
)
"""By label, per 1000 K, dex, dex about `MIDDLE`."""
MIDDLE = np.array([5000.0, 3.0, -0.3, 0.0])
UNITS = np.array([1000.0, 1.0, 1.0, 1.0])


def true_offset(x, slopes=SLOPES):
    return CONSTANT + ((x - MIDDLE) / UNITS) @ slopes.T


def two_surveys(n, seed, *, slopes=SLOPES, outliers=0.0, ratio=2.0):
    """Simulated stars that both surveys have; the second has `ratio` times the errors."""
    rng = np.random.default_rng(seed)
    x = MIDDLE + rng.normal(size=(n, 4)) * [600.0, 1.0, 0.35, 0.12]
    e, f = ERRORS * np.ones((n, 4)), ratio * ERRORS * rng.uniform(0.7, 1.5, (n, 4))
    first = x + e * rng.normal(size=(n, 4))
    second = x + true_offset(x, slopes) + np.hypot(f, SCATTER) * rng.normal(size=(n, 4))
    wrong = rng.random(n) < outliers
    second[wrong] += 12 * ERRORS * rng.normal(size=(wrong.sum(), 4)) + 8 * ERRORS
    return x, ReferenceLabels("one", NAMES, first, e), ReferenceLabels("two", NAMES, second, f)


def test_constant_offsets_come_out_within_their_errors() -> None:
    pulls = []
    for seed in range(60):
        _, first, second = two_surveys(80, seed, slopes=0 * SLOPES)
        fit = fit_offsets(first, second)
        pulls.append(
            [
                (fit[n].coefficients[0] - c) / fit[n].errors[0]
                for n, c in zip(NAMES, CONSTANT, strict=True)
            ]
        )
    pulls = np.array(pulls)
    assert np.abs(pulls.mean(axis=0)).max() < 4 / np.sqrt(60)
    assert 0.85 < np.std(pulls) < 1.15


def test_the_scatter_beyond_the_errors_comes_out() -> None:
    fits = [fit_offsets(*two_surveys(400, seed, slopes=0 * SLOPES)[1:]) for seed in range(10)]
    scatter2 = np.mean([[fit[name].scatter ** 2 for name in NAMES] for fit in fits], axis=0)
    np.testing.assert_allclose(np.sqrt(scatter2)[:3], SCATTER[:3], rtol=0.15)
    assert np.sqrt(scatter2[3]) < 0.5 * ERRORS[3]
    pull = [(fit["teff"].scatter - SCATTER[0]) / fit["teff"].scatter_error for fit in fits]
    assert np.abs(np.mean(pull)) < 1.0


@pytest.mark.slow
def test_linear_offsets_come_out_within_their_errors() -> None:
    """Also with noise in the terms, half of which would pass for a slope of the difference."""
    pulls = []
    for seed in range(30):
        _, first, second = two_surveys(150, 1000 + seed)
        fit = fit_offsets(first, second, terms=("teff", "logg", "fe_h"))
        for k, name in enumerate(NAMES):
            one = fit[name]
            expected = true_offset(np.append(one.pivots, 0.0)[None])[0, k]
            truth = [expected, *SLOPES[k, :3]]
            pulls.append((one.coefficients - truth) / one.errors)
    pulls = np.array(pulls).reshape(30, 4, 4)
    assert np.abs(pulls.mean(axis=0)).max() < 0.6, pulls.mean(axis=0)
    assert 0.85 < np.std(pulls) < 1.2


@pytest.mark.slow
def test_a_regression_on_the_first_survey_alone_would_find_slopes_that_are_not_there() -> None:
    """The reason for the weighted means: the plain way is off by many of its errors."""
    naive, ours = [], []
    for seed in range(10):
        _, first, second = two_surveys(400, seed, slopes=0 * SLOPES, ratio=1.0)
        difference = second.values[:, 3] - first.values[:, 3]
        naive.append(np.polyfit(first.values[:, 3], difference, 1)[0])
        fit = fit_offsets(first, second, terms=("mg_fe",))
        ours.append(fit["mg_fe"].coefficients[1])
    assert np.mean(naive) < -0.04
    assert abs(np.mean(ours)) < 0.015


def test_outliers_are_found_and_do_not_rule() -> None:
    shifts, plain = [], []
    for seed in range(12):
        _, first, second = two_surveys(200, seed, slopes=0 * SLOPES, outliers=0.1)
        fit = fit_offsets(first, second)
        shifts.append(
            [
                (fit[n].coefficients[0] - c) / e
                for n, c, e in zip(NAMES, CONSTANT, ERRORS, strict=True)
            ]
        )
        plain.append((second.values - first.values).mean(axis=0)[0] - CONSTANT[0])
        assert 0.01 < fit["mg_fe"].outliers < 0.25
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.3
    assert np.abs(np.mean(plain)) / ERRORS[0] > 0.5


def test_moved_labels_are_on_the_first_scale_with_honest_errors() -> None:
    _, first, second = two_surveys(300, 5)
    fit = fit_offsets(first, second, terms=("teff", "logg", "fe_h"))
    x, _, fresh = two_surveys(2000, 6)
    moved = fit.apply(fresh)
    pull = (moved.values - x) / moved.errors
    np.testing.assert_allclose(pull.mean(axis=0), 0.0, atol=0.25)
    np.testing.assert_allclose(pull.std(axis=0), 1.0, atol=0.1)
    assert np.all(moved.errors > fresh.errors)


def test_a_star_without_a_term_keeps_its_labels_and_pays_in_error() -> None:
    _, first, second = two_surveys(300, 7)
    fit = fit_offsets(first, second, terms=("teff", "logg", "fe_h"))
    values = second.values[:2].copy()
    values[1, 2] = np.nan
    moved = fit.apply(ReferenceLabels("two", NAMES, values, second.errors[:2]))
    assert np.isnan(moved.values[1, 2])
    assert np.isnan(moved.errors[1, 2])
    assert np.isfinite(moved.values[1, [0, 1, 3]]).all()
    whole = fit.apply(ReferenceLabels("two", NAMES, second.values[:2], second.errors[:2]))
    assert moved.errors[1, 3] > whole.errors[1, 3]


def test_merging_takes_the_first_survey_that_has_a_star() -> None:
    _, first, second = two_surveys(100, 8, slopes=0 * SLOPES)
    offsets = fit_offsets(first, second)
    one, two = first.values.copy(), second.values.copy()
    one[50:] = np.nan
    two[90:] = np.nan
    a = ReferenceLabels("one", NAMES, one, first.errors)
    b = ReferenceLabels("two", NAMES, two, second.errors)
    merged = merge([a, b], {"two": offsets})
    assert merged.survey.tolist() == ["one"] * 50 + ["two"] * 40 + [""] * 10
    np.testing.assert_array_equal(merged.labels.values[:50], one[:50])
    np.testing.assert_array_equal(merged.labels.values[50:90], offsets.apply(b).values[50:90])
    assert np.isnan(merged.labels.values[90:]).all()


def test_offsets_are_plain_json() -> None:
    _, first, second = two_surveys(100, 9)
    fit = fit_offsets(first, second, terms=("logg",))
    content = json.loads(json.dumps(fit.to_dict(), allow_nan=False))
    assert (content["first"], content["second"]) == (fit.first, fit.second)
    for label, offset in zip(content["labels"], fit.labels, strict=True):
        assert label["coefficients"] == offset.coefficients.tolist()
        assert (label["n_star"], label["terms"]) == (offset.n_star, list(offset.terms))


def test_residuals_that_go_together_show_in_the_correlation() -> None:
    _, first, second = two_surveys(400, 10, slopes=0 * SLOPES)
    values = second.values.copy()
    common = np.random.default_rng(0).normal(size=400)
    values[:, 0] += 200 * common
    values[:, 1] += 0.4 * common
    fit = fit_offsets(first, ReferenceLabels("two", NAMES, values, second.errors))
    assert fit.correlation[0, 1] > 0.7
    assert abs(fit.correlation[2, 3]) < 0.2


def test_too_few_common_stars_and_unknown_terms_are_one_clear_error() -> None:
    _, first, second = two_surveys(25, 11)
    fit_offsets(first, second)
    with pytest.raises(TrainingError, match="30 common stars are needed"):
        fit_offsets(first, second, terms=("teff",))
    with pytest.raises(UnknownName, match="did you mean 'teff'"):
        fit_offsets(first, second, terms=("tef",))
    with pytest.raises(ConfigError, match="one column for each"):
        ReferenceLabels("one", NAMES, first.values[:, :2], first.errors)


def test_errors_that_are_unknown_go_into_the_scatter() -> None:
    _, first, second = two_surveys(300, 12, slopes=0 * SLOPES)
    unknown = np.full(first.errors.shape, np.nan)
    fit = fit_offsets(
        ReferenceLabels("one", NAMES, first.values, unknown),
        ReferenceLabels("two", NAMES, second.values, unknown),
    )
    spread = (second.values - first.values).std(axis=0)
    np.testing.assert_allclose([fit[n].scatter for n in NAMES], spread, rtol=0.1)
