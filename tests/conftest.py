"""Fixtures shared by all tests."""

import os
import signal
from pathlib import Path

import pytest

# A shell that runs the tests in the background has them ignore Ctrl-C, and so every process that
# they start; some tests are about Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REFERENCE = Path(os.environ.get("MAURY_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Directory of the reference data, or skip."""
    if not (REFERENCE / "data").is_dir():
        pytest.skip(f"reference data are not at {REFERENCE} (set MAURY_SHARED to their place)")
    return REFERENCE


@pytest.fixture(scope="session")
def tiny_survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled simulated survey of 160 stars."""
    from maury.simulation.surveys import simulate_survey

    path = tmp_path_factory.mktemp("survey") / "labelled.zarr"
    simulate_survey(path, n_star=160, seed=11)
    return path


@pytest.fixture(scope="session")
def observed_survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Observed simulated survey of 90 stars, without labels."""
    from maury.simulation.surveys import simulate_survey

    path = tmp_path_factory.mktemp("survey") / "observed.zarr"
    simulate_survey(path, n_star=90, seed=12, observed=True)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_survey: Path) -> Path:
    """Two members of the published network after three epochs: fast, and no good."""
    from maury.training.ensemble import train

    path = tmp_path_factory.mktemp("model") / "model"
    config = {"training": {"batch_size": 32, "epochs": 3}, "ensemble": {"members": 2}}
    train(tiny_survey, path, preset="guiglion2020", config=config, seed=5)
    return path


@pytest.fixture(scope="session")
def default_survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled simulated survey of 500 stars, enough to calibrate and to cover."""
    from maury.simulation.surveys import simulate_survey

    path = tmp_path_factory.mktemp("survey") / "labelled.zarr"
    simulate_survey(path, n_star=500, seed=21)
    return path


@pytest.fixture(scope="session")
def default_model(tmp_path_factory: pytest.TempPathFactory, default_survey: Path) -> Path:
    """Default preset after a few steps, calibrated and covered: whole, and no good."""
    from maury.prediction import uncertainty
    from maury.training.runs import train

    path = tmp_path_factory.mktemp("model") / "default"
    config = {"training": {"steps": 60, "stars": 1000}, "ensemble": {"members": 2}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "N_SIMULATED", 1000)
        train(default_survey, path, config=config, seed=5)
    return path
