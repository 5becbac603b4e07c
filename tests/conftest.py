"""Fixtures shared by all tests."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from threadpoolctl import ThreadpoolController

# A shell that runs the tests in the background has them ignore Ctrl-C, and so every process that
# they start; some tests are about Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Once = Callable[[str, Callable[[Path], object]], Path]

REFERENCE = Path(os.environ.get("MAURY_SHARED", Path(__file__).resolve().parents[2] / "shared"))

MOST_PROCESSES = 8
"""Processes of `pytest` at most: each holds torch and a model, up to 1.7 GB (measured)."""
TWO_THREADS = "two_threads"
"""Mark of tests of results that must not depend on the number of threads: it shows only where
there are two. For others they are a waste where processes are as many as cores: each thread of a
pool turns round and round until the others get a core (on a busy machine, simulating 700 stars took
1.6 s of processor time on two threads, and .1 s on one)."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Say how many processes run the tests, for ``-n auto``: one per core that may be used."""
    from maury.io.workers import n_cores

    return min(n_cores(), MOST_PROCESSES)


_HEAVY = ("scipy.linalg", "torch")
"""Modules that bring thread pools of their own."""
_limited: dict[str, int] = {}
"""Threads that the pools of each module were last given."""
_most: dict[str, int] = {}
"""Threads that each pool had at first."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Divide the cores among the processes of a run, before fixtures compute."""
    from maury.io.workers import n_cores

    share = n_cores() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = max(share, 2 if item.get_closest_marker(TWO_THREADS) else 1)
    wanted = {name: threads for name in _HEAVY if name in sys.modules}
    if wanted == _limited:
        return
    for pool in ThreadpoolController().lib_controllers:
        # Never more than there were: whoever runs the tests may ask for one thread.
        most = _most.setdefault(pool.filepath, pool.num_threads)
        pool.set_num_threads(min(most, threads))
    _limited.update(wanted)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Directory of the reference data, or skip."""
    if not (REFERENCE / "data").is_dir():
        pytest.skip(f"reference data are not at {REFERENCE} (set MAURY_SHARED to their place)")
    return REFERENCE


@pytest.fixture(scope="session")
def once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Once:
    """Return ``once(name, make)``: the path that `make` writes, once for all processes of a run.

    What is made so is for all tests, which read it and write nothing there.
    """
    base = tmp_path_factory.getbasetemp()
    # Each process of pytest-xdist has a folder of its own in the folder of the run.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"

    def made(name: str, make: Callable[[Path], object]) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Surveys and models appear whole or not at all, so that a path that exists is ready.
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not path.exists():
                make(path)
        return path

    return made


@pytest.fixture(scope="session")
def tiny_survey(once: Once) -> Path:
    """Labelled simulated survey of 160 stars."""
    from maury.simulation.surveys import simulate_survey

    return once("tiny/labelled.zarr", lambda path: simulate_survey(path, n_star=160, seed=11))


@pytest.fixture(scope="session")
def observed_survey(once: Once) -> Path:
    """Observed simulated survey of 90 stars, without labels."""
    from maury.simulation.surveys import simulate_survey

    return once(
        "tiny/observed.zarr", lambda path: simulate_survey(path, n_star=90, seed=12, observed=True)
    )


@pytest.fixture(scope="session")
def tiny_model(once: Once, tiny_survey: Path) -> Path:
    """Two members of the published network after three epochs: fast, and no good."""
    from maury.training.ensemble import train

    config = {"training": {"batch_size": 32, "epochs": 3}, "ensemble": {"members": 2}}
    return once(
        "tiny/model",
        lambda path: train(tiny_survey, path, preset="guiglion2020", config=config, seed=5),
    )


@pytest.fixture(scope="session")
def default_survey(once: Once) -> Path:
    """Labelled simulated survey of 500 stars, enough to calibrate and to cover."""
    from maury.simulation.surveys import simulate_survey

    return once("default/labelled.zarr", lambda path: simulate_survey(path, n_star=500, seed=21))


@pytest.fixture(scope="session")
def default_model(once: Once, default_survey: Path) -> Path:
    """Default preset after a few steps, calibrated and covered: whole, and no good."""
    from maury.prediction import uncertainty
    from maury.training.runs import train

    config = {"training": {"steps": 60, "stars": 1000}, "ensemble": {"members": 2}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "N_SIMULATED", 1000)
        return once(
            "default/default", lambda path: train(default_survey, path, config=config, seed=5)
        )
