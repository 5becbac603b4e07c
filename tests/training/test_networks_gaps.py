"""Published networks on samples with gaps: masked pixels, missing labels, 2 and 14 labels."""

import numpy as np
import pytest

from builders.any_window import FOURTEEN, TWO, made
from maury.labels.statistics import robust_sigma
from maury.prediction.streaming import predict_rows
from maury.survey.store import Survey, SurveyWriter
from maury.training.ensemble import train

NETWORKS = {
    "starnet": {},
    "bialek2020": {},
    "astronn": {"mc_passes": 3, "filters": (8, 16), "dropout": 0.1},
    "leung2019": {"mc_passes": 3, "filters": (8, 16), "dropout": 0.1},
}
# Initial weights of .05 are made for thousands of pixels: on few ones, in a few hundred steps, more
# filters and a higher rate must make up for it.
RATE = {
    name: {"learning_rate": 4e-3 if "mc_passes" in NETWORKS[name] else 7e-4} for name in NETWORKS
}
N_TRAIN, N_TEST = 300, 60


def survey_of(path, names, *, missing=0.0, masked=0.0):
    """Stars whose first ones are learnt from; the last `N_TEST` twice, without and with gaps."""
    rng = np.random.default_rng(7)
    stars = made(names, N_TRAIN + N_TEST, 1, snr=60.0)
    twice = np.r_[: N_TRAIN + N_TEST, N_TRAIN : N_TRAIN + N_TEST]
    flux, ivar = stars.inputs.flux[twice].copy(), stars.inputs.ivar[twice].copy()
    truth = stars.truth[twice].copy()
    bad = rng.random(flux.shape) < masked
    bad[N_TRAIN : N_TRAIN + N_TEST] = False
    flux[bad], ivar[bad] = 1.4, 0.0
    ivar[-1] = 0.0
    truth[:N_TRAIN][rng.random((N_TRAIN, len(names))) < missing] = np.nan
    # Test stars have no labels, so that no split can make them training stars.
    truth[N_TRAIN:] = np.nan
    columns = {"id": [f"s{k}" for k in range(len(twice))], "star_id": [f"t{k}" for k in twice]}
    columns |= {name: truth[:, k] for k, name in enumerate(names)}
    with SurveyWriter(
        path,
        n_star=len(twice),
        wave_aa=stars.inputs.wave_aa,
        medium="air",
        columns=list(names),
        labels=stars.labels,
        simulated=True,
    ) as writer:
        writer.write(0, flux, ivar, **columns)
    return Survey.open(path), stars.truth[N_TRAIN:]


@pytest.mark.slow
@pytest.mark.parametrize("names", [TWO, FOURTEEN], ids=["2", "14"])
@pytest.mark.parametrize("preset", NETWORKS)
def test_gaps_in_labels_and_pixels_are_no_labels_and_no_pixels(tmp_path, preset, names):
    survey, truth = survey_of(tmp_path / "s.zarr", names, missing=0.3, masked=0.1)
    config = {
        "network": {"preset": preset, **NETWORKS[preset]},
        "training": {
            "epochs": 30,
            "patience": 30,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "plateau": 0,
        },
        "ensemble": {"members": 1},
    }
    model = train(survey, tmp_path / "m", config=config, seed=1, n_processes=1)
    assert [label.name for label in model.labels] == list(names)
    rows = np.arange(N_TRAIN, len(survey))
    table = predict_rows(model, survey, rows)
    whole, gappy = (
        np.stack([table[name] for name in names], axis=1)[part]
        for part in (slice(0, N_TEST), slice(N_TEST, 2 * N_TEST))
    )
    assert np.isfinite(whole).all()
    # A star without a good pixel has no labels, and all others have.
    assert np.isnan(gappy[-1]).all()
    assert np.isfinite(gappy[:-1]).all()
    for k in range(2):
        spread = truth[:, k].std()
        assert robust_sigma(whole[:, k] - truth[:, k]) < 0.85 * spread
        # What stands in a masked pixel is not seen: labels move by less than their own scatter.
        moved = (gappy - whole)[:-1, k]
        assert abs(np.median(moved)) < 0.25 * spread
        assert robust_sigma(moved) < 0.8 * spread
