"""Files of every released version open, and predict what they predicted then. All are simulated."""

import json
from pathlib import Path

import numpy as np
import pytest

from maury.io.migrations import MODEL, SURVEY
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork
from maury.prediction.catalogue import Catalogue
from maury.prediction.streaming import predict
from maury.prediction.uncertainty import UncertaintyModel
from maury.survey.store import Survey

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir())
MODELS = [(v, path.stem) for v in VERSIONS for path in sorted((GOLDEN / v).glob("*.model"))]


@pytest.mark.parametrize("version", VERSIONS)
def test_old_surveys_open(version):
    survey = Survey.open(GOLDEN / version / "observed.zarr")
    assert survey.simulated
    assert len(survey) == 12
    batch = survey.batch(0, 12)
    assert np.isfinite(batch.spectra.flux).all()
    assert np.all(batch.column("snr") > 0)


@pytest.mark.slow
@pytest.mark.parametrize(("version", "name"), MODELS)
def test_old_models_predict_what_they_did(version, name, tmp_path):
    folder = GOLDEN / version
    then = Catalogue.read(folder / f"{name}.ecsv").table
    model = Model.open(folder / f"{name}.model")
    out = tmp_path / "now.ecsv"
    now = predict(model, Survey.open(folder / "observed.zarr"), out).table
    assert now["id"].tolist() == then["id"].tolist()
    assert now["flags"].tolist() == then["flags"].tolist()
    for label in model.labels:
        error = np.asarray(then[f"{label.name}_error"])
        # Other libraries and processors round otherwise; 1 % of an error is nothing.
        moved = (np.asarray(now[label.name]) - np.asarray(then[label.name])) / error
        known = np.isfinite(error) & (error > 0)
        assert known.any()
        assert np.abs(moved[known]).max() < 0.01
        # What was never calibrated is not called an error any more; its values are as they were.
        name = label.error_name if model.errors_calibrated else label.formal_error_name
        np.testing.assert_allclose(now[name], error, rtol=0.01)
        assert (label.error_name in now.colnames) == model.errors_calibrated


def test_the_formats_of_today_are_among_them():
    """Whoever raises a format version adds golden files that were written by it."""
    heads = [json.loads(path.read_text()) for path in GOLDEN.glob("*/*.model/model.json")]
    assert MODEL.version in {head["format_version"] for head in heads}
    stores = [json.loads(path.read_text()) for path in GOLDEN.glob("*/observed.zarr/zarr.json")]
    found = {store["attributes"]["maury"]["format_version"] for store in stores}
    assert SURVEY.version in found


@pytest.mark.parametrize("version", VERSIONS)
def test_the_calibration_of_the_default_model_is_kept(version):
    model = Model.open(GOLDEN / version / "maury.model")
    uncertainty = UncertaintyModel.load(model, EnsembleNetwork(model))
    assert uncertainty is not None
    assert np.isfinite(uncertainty.calibration.global_scale).all()
