"""Missing labels, drawn as stars of such labels have them, or estimated from their spectra."""

import numpy as np

from maury.simulation.missing_labels import fill_from_spectra, fill_labels
from maury.simulation.population import Population


def test_drawn_labels_scatter_as_the_stars_do_and_means_scatter_less():
    labels = Population.load().sample(1600, np.random.default_rng(0)).labels[:, :9]
    reference, truth = labels[:800], labels[800:]
    holes = truth.copy()
    holes[:, 6] = np.nan
    holes[::2, 8] = np.nan
    drawn = fill_labels(holes, reference, np.random.default_rng(1))
    mean = fill_labels(holes, reference)
    known = np.isfinite(holes)
    np.testing.assert_array_equal(drawn[known], truth[known])
    for column, rows in ((6, slice(None)), (8, slice(0, None, 2))):
        spread = truth[rows, column].std()
        assert abs(drawn[rows, column].std() / spread - 1) < 0.15
        assert mean[rows, column].std() < 0.95 * spread
        assert abs(np.mean(drawn[rows, column] - truth[rows, column])) < 0.2 * spread


def test_labels_of_one_star_are_drawn_together():
    """[Si/Fe] is twice [Mg/Fe] in all stars; so it is in those that lack both."""
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(400, 9))
    labels[:, 5] = 2 * labels[:, 7]
    holes = labels.copy()
    holes[:, [5, 7]] = np.nan
    drawn = fill_labels(holes, labels, rng)
    np.testing.assert_allclose(drawn[:, 5], 2 * drawn[:, 7], atol=1e-6)


def test_stars_without_what_structures_them_stay_unknown():
    labels = np.random.default_rng(0).normal(size=(100, 9))
    holes = labels[:4].copy()
    holes[0, 0] = holes[1, 1] = np.nan
    holes[2, 2:4] = np.nan
    holes[3, 2] = np.nan
    filled = fill_labels(holes, labels, np.random.default_rng(1))
    assert np.isnan(filled[:3]).all()
    assert np.isfinite(filled[3]).all()


def test_upper_limits_are_estimated_below_themselves():
    """A line whose depth tells the label, measured where it is stronger than a threshold."""
    rng = np.random.default_rng(0)
    teff, abundance = rng.normal(size=(2, 900))
    pixel = np.arange(60)
    line = np.exp(-0.5 * ((pixel - 20) / 2.0) ** 2) * (0.3 + 0.1 * abundance[:, None])
    other = np.exp(-0.5 * ((pixel - 45) / 3.0) ** 2) * (0.4 + 0.1 * teff[:, None])
    flux = (1 - line - other + rng.normal(0, 0.05, (900, 60))).astype(np.float32)
    ivar = np.full(flux.shape, 400.0, np.float32)
    # The limit of each star lies somewhat above its value, as a threshold of noise does.
    limited = abundance < -0.5
    limits = np.full((900, 2), np.nan)
    limits[limited, 1] = abundance[limited] + rng.uniform(0.0, 0.8, limited.sum())
    labels = np.column_stack([teff, np.where(limited, np.nan, abundance)])
    training = np.arange(900) < 700
    nothing = np.zeros((900, 1))
    told = fill_from_spectra(labels, flux, ivar, nothing, training, limits)
    untold = fill_from_spectra(labels, flux, ivar, nothing, training)
    np.testing.assert_array_equal(told[~limited], labels[~limited])
    assert (told[limited, 1] <= limits[limited, 1]).all()

    def off(values):
        return np.sqrt(np.mean((values[limited, 1] - abundance[limited]) ** 2))

    assert off(told) < 0.7 * off(limits)
    assert off(told) < 0.7 * off(untold)
