"""Conversions of abundance labels against sums done by hand and Monte Carlo."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maury.errors import ConfigError, UnknownName
from maury.labels import abundances as conventions
from maury.labels import solar
from maury.labels.abundances import Convention, convert

NAMES = ("teff", "fe_h", "mg_fe", "si_fe", "m_h", "alpha_m")
ROW = np.array([[4800.0, -0.4, 0.2, 0.1, -0.35, 0.15]])


def test_ratios_are_sums_of_the_given_labels() -> None:
    made = convert(ROW, NAMES, ["teff", "mg_h", "mg_m", "alpha_fe", "alpha_h", "fe_m"])
    wanted = [4800.0, -0.2, 0.15, 0.2, -0.2, -0.05]
    np.testing.assert_allclose(made.values[0], wanted, atol=1e-12)
    assert made.how["mg_m"] == "- m_h + fe_h + mg_fe"
    assert np.isnan(made.covariance).all()
    assert made.assumed == "no errors were given"


def test_the_solar_scale_moves_labels_by_the_tables() -> None:
    old, new = Convention.of("grevesse2007"), Convention.of("asplund2021")
    made = convert(ROW, NAMES, ["fe_h", "mg_fe", "m_h"], source=old, target=new)
    fe, mg = 7.45 - 7.46, 7.53 - 7.55
    np.testing.assert_allclose(made.values[0], [-0.4 + fe, 0.2 + mg - fe, -0.35 + fe], atol=1e-12)
    back = convert(made.values, made.names, made.names, source=new, target=old)
    np.testing.assert_allclose(back.values[0], [-0.4, 0.2, -0.35], atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.permutations(sorted(solar.SCALES)), st.sampled_from(["fe_h", "mg_fe", "si_h", "ni_m"]))
def test_a_way_over_a_third_scale_is_the_direct_way(order, label) -> None:
    a, b, c = (Convention.of(name) for name in order[:3])
    direct = conventions.scale_shift(label, a, c)
    detour = conventions.scale_shift(label, a, b) + conventions.scale_shift(label, b, c)
    assert direct == pytest.approx(detour, abs=1e-12)


def test_covariance_is_that_of_many_draws() -> None:
    rng = np.random.default_rng(1)
    root = rng.normal(0, 0.05, (6, 6))
    covariance = root @ root.T
    wanted = ["mg_h", "alpha_fe", "si_m", "fe_h"]
    made = convert(ROW, NAMES, wanted, covariance=covariance[None])
    draws = convert(rng.multivariate_normal(ROW[0], covariance, 40_000), NAMES, wanted).values
    np.testing.assert_allclose(made.covariance[0], np.cov(draws.T), rtol=0.05, atol=2e-4)
    assert made.assumed == ""


def test_assumed_correlations_change_errors_and_are_told() -> None:
    errors = np.full((1, 6), 0.03)
    free = convert(ROW, NAMES, ["mg_h"], errors=errors)
    matrix = np.eye(6)
    matrix[1, 2] = matrix[2, 1] = -0.5
    tied = convert(ROW, NAMES, ["mg_h"], errors=errors, correlation=matrix)
    assert free.errors[0, 0] == pytest.approx(0.03 * np.sqrt(2))
    assert tied.errors[0, 0] == pytest.approx(0.03)
    assert free.assumed == "errors taken as independent"
    assert "matrix" in tied.assumed
    with pytest.raises(ConfigError, match="contradict"):
        convert(ROW, NAMES, ["mg_h"], errors=errors, correlation=-0.9)


def test_salaris_metallicity_and_its_error() -> None:
    values = np.array([[-1.0, 0.4], [-0.5, 0.0]])
    covariance = np.array([[[0.01, 0.002], [0.002, 0.0025]]] * 2)
    made = convert(values, ["fe_h", "alpha_fe"], ["m_h"], covariance=covariance, salaris=True)
    np.testing.assert_allclose(
        made.values[:, 0], [-1 + np.log10(0.638 * 2.5119 + 0.362), -0.5], atol=1e-5
    )
    draws = np.random.default_rng(0).multivariate_normal(values[0], covariance[0], 40_000)
    spread = conventions.metallicity_from_alpha(*draws.T).std()
    assert made.errors[0, 0] == pytest.approx(spread, rel=0.02)
    assert np.isnan(convert(values, ["fe_h", "alpha_fe"], ["m_h"]).values).all()


def test_alpha_is_the_weighted_mean_of_its_elements() -> None:
    names = ["fe_h", "mg_fe", "si_fe", "alpha_fe"]
    values = np.array([[-0.5, 0.4, 0.1, 0.9]])
    errors = np.full((1, 4), 0.02)
    source = Convention.of(alpha=["o", "mg", "si", "ca"])
    target = Convention.of(alpha={"mg": 2.0, "si": 1.0})
    made = convert(values, names, ["alpha_fe"], errors=errors, source=source, target=target)
    assert made.values[0, 0] == pytest.approx(0.3)
    assert made.errors[0, 0] == pytest.approx(0.02 * np.sqrt(5) / 3)
    assert made.how["alpha_fe"] == "0.667 mg_fe + 0.333 si_fe"
    same = convert(values, names, ["alpha_fe"], source=source, target=source)
    assert same.values[0, 0] == 0.9
    values[0, 2] = np.nan
    other = convert(values, names, ["alpha_fe"], source=source, target=target)
    assert np.isnan(other.values).all()
    assert other.how["alpha_fe"] == "not derivable"


def test_a_missing_label_is_gone_round_or_missing_and_never_spreads() -> None:
    values = np.vstack([ROW, ROW, ROW])
    values[1, NAMES.index("m_h")] = np.nan
    values[2, NAMES.index("fe_h")] = np.nan
    errors = np.full(values.shape, 0.01)
    errors[0, NAMES.index("mg_fe")] = np.nan
    made = convert(values, NAMES, ["mg_h", "m_h", "si_fe"], errors=errors)
    assert np.isfinite(made.values).tolist() == [
        [True, True, True],
        [True, False, True],
        [False, True, True],
    ]
    assert np.isfinite(made.errors[0]).tolist() == [False, True, True]
    assert np.isfinite(made.errors[1]).tolist() == [True, False, True]
    assert np.array_equal(values[0], ROW[0])


def test_what_cannot_be_moved_is_one_clear_error() -> None:
    target = Convention.of("asplund2021")
    with pytest.raises(ConfigError, match="its own is not stated"):
        convert(ROW, NAMES, ["fe_h"], target=target)
    with pytest.raises(ConfigError, match="no abundance of Eu"):
        convert([[0.1]], ["eu_h"], ["eu_h"], source=Convention.of("anders1989"), target=target)
    with pytest.raises(ConfigError, match="alpha elements"):
        convert(ROW, NAMES, ["alpha_m"], source=Convention.of("anders1989"), target=target)
    # An abundance that is not wanted is in nobody's way.
    made = convert(
        [[0.1, -0.2]],
        ["eu_h", "fe_h"],
        ["fe_h"],
        source=Convention.of("anders1989"),
        target=target,
    )
    assert made.values[0, 0] == pytest.approx(-0.2 + 7.67 - 7.46)
    with pytest.raises(UnknownName, match="asplund2009"):
        Convention.of("asplund2008")
    with pytest.raises(ConfigError, match="no element"):
        Convention.of(alpha=["mgg"])


def test_names_that_are_no_abundances_pass() -> None:
    assert conventions.parse("logg") is None
    assert conventions.parse("m_m") is None
    assert conventions.parse("qq_fe") is None
    made = convert(
        ROW, NAMES, ["teff"], source=Convention.of(), target=Convention.of("asplund2009")
    )
    assert made.values[0, 0] == 4800.0


def test_scales_are_the_published_ones() -> None:
    """Iron, whose values are the best known, and elements that changed most."""
    iron = {name: scale["fe"] for name, scale in solar.SCALES.items()}
    assert iron == {
        "anders1989": 7.67,
        "grevesse1998": 7.50,
        "grevesse2007": 7.45,
        "asplund2009": 7.50,
        "asplund2021": 7.46,
    }
    oxygen = [solar.SCALES[name]["o"] for name in iron]
    assert oxygen == [8.93, 8.83, 8.66, 8.69, 8.69]


def test_conventions_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ConfigError, match="the weight of 'mg' must be positive"):
        Convention.of(alpha={"mg": 0.0})
    errors = np.full((1, 6), 0.03)
    with pytest.raises(ConfigError, match="either errors or covariances, not both"):
        convert(ROW, NAMES, ["mg_h"], errors=errors, covariance=np.eye(6)[None])


@pytest.mark.parametrize("matrix", [np.eye(3), np.triu(np.full((6, 6), 0.1)), 2.0 * np.eye(6)])
def test_what_is_no_matrix_of_correlations_is_refused(matrix) -> None:
    with pytest.raises(ConfigError, match="one number, or a symmetric matrix with diagonal 1"):
        convert(ROW, NAMES, ["mg_h"], errors=np.full((1, 6), 0.03), correlation=matrix)


@pytest.mark.parametrize("salaris", [True, False])
def test_labels_that_cannot_be_derived_are_missing(salaris) -> None:
    iron = ROW[:, :2]
    made = convert(iron, NAMES[:2], ["logg", "m_h", "fe_h"], salaris=salaris)
    np.testing.assert_array_equal(made.values, [[np.nan, np.nan, -0.4]])
    assert made.how["logg"] == made.how["m_h"] != made.how["fe_h"]
    alpha = convert(ROW[:, [1, 2]], ("fe_h", "mg_fe"), ["m_h"], salaris=salaris)
    assert np.isnan(alpha.values).all()
