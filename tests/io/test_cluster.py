import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import maury
import maury.io.cluster
import maury.prediction.streaming
from builders import cluster_tasks
from maury.errors import ClusterError, ConfigError, MissingExtra, WorkerLost
from maury.io.cluster import choose_device, connect
from maury.model.directory import Model
from maury.prediction.catalogue import Catalogue
from maury.prediction.streaming import predict
from maury.simulation.surveys import simulate_survey
from maury.training.ensemble import train

pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PART = 8


class Site:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder):
        self.file = folder / "scheduler.json"
        self.folder = folder
        self.processes = []

    def run(self, *arguments, **environment):
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)} | environment
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, "--scheduler-file", str(self.file)],
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self.processes.append(process)
        return process

    def start(self, workers, **environment):
        local = ("--host", "127.0.0.1", "--no-dashboard")
        scheduler = self.run("scheduler", *local, "--port", "0", **environment)
        for number in range(workers):
            self.add_worker(f"w{number}")
        return scheduler

    def add_worker(self, name, **environment):
        options = ("--host", "127.0.0.1", "--no-dashboard", "--no-nanny", "--nthreads", "1")
        while not self.file.exists():
            time.sleep(0.05)
        return self.run("worker", "--name", name, *options, **environment)

    def names(self):
        """Names of the workers that the scheduler knows now."""
        from distributed import Client

        with Client(scheduler_file=str(self.file), set_as_default=False) as client:
            known = client.scheduler_info(n_workers=-1)["workers"]
        return {one["name"] for one in known.values()}

    def stop(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    site.start(workers=2)
    yield site
    site.stop()


@pytest.fixture(scope="module")
def cluster(site):
    with connect(site.file, workers=2, timeout_s=60) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(maury.prediction.streaming, "PART_STARS", PART)


@pytest.fixture(scope="module")
def local(tmp_path_factory, tiny_model, observed_survey):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maury.prediction.streaming, "PART_STARS", PART)
        return predict(tiny_model, observed_survey, tmp_path_factory.mktemp("c") / "a.parquet")


def assert_same(catalogue, other):
    assert catalogue.table.colnames == other.table.colnames
    for name in catalogue.table.colnames:
        np.testing.assert_array_equal(catalogue.table[name], other.table[name])
    assert catalogue.metadata == other.metadata


def assert_same_files(path, other):
    files = {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    others = {p.relative_to(other): p.read_bytes() for p in other.rglob("*") if p.is_file()}
    assert files == others


@pytest.mark.slow
@pytest.mark.two_threads
def test_a_cluster_predicts_what_one_process_does(
    tmp_path, cluster, local, tiny_model, observed_survey
):
    told = []
    out = tmp_path / "labels.dataset"
    catalogue = predict(
        tiny_model, observed_survey, out, cluster=cluster, progress=lambda *rows: told.append(rows)
    )
    assert_same(catalogue, local)
    assert len(list(out.glob("*.parquet"))) == -(-90 // PART)
    assert told == sorted(told)
    assert told[-1] == (90, 90)
    assert not list(tmp_path.glob("*.part"))


def test_other_libraries_read_the_parts_as_one_table(tmp_path, local, tiny_model, observed_survey):
    import pyarrow.dataset as ds

    out = tmp_path / "labels.dataset"
    predict(tiny_model, observed_survey, out)
    table = ds.dataset(out, format="parquet").to_table()
    np.testing.assert_array_equal(table["teff"].to_numpy(), local.table["teff"])
    assert table["id"].to_pylist() == local.table["id"].tolist()
    assert_same(Catalogue.read(out), local)


@pytest.mark.slow
@pytest.mark.two_threads
def test_members_train_on_workers_to_the_same_bits(tmp_path, cluster, tiny_model, tiny_survey):
    heard = []
    config = {"training": {"batch_size": 32, "epochs": 3}, "ensemble": {"members": 2}}
    train(
        tiny_survey,
        tmp_path / "model",
        preset="guiglion2020",
        config=config,
        seed=5,
        cluster=cluster,
        progress=heard.append,
    )
    there, here = Model.open(tmp_path / "model"), Model.open(tiny_model)
    for member in here.members:
        weights = there.weights(there.members[here.members.index(member)])
        for name, values in here.weights(member).items():
            np.testing.assert_array_equal(weights[name], values)
    assert {(event.member, event.epoch) for event in heard} == {
        (member, epoch) for member in range(2) for epoch in (1, 2, 3)
    }


@pytest.mark.slow
@pytest.mark.two_threads
def test_simulated_bytes_do_not_depend_on_the_cluster(tmp_path, monkeypatch, cluster):
    monkeypatch.setattr("maury.survey.writer.COLUMN_CHUNK_STARS", 256)
    monkeypatch.setattr("maury.simulation.surveys.CHUNK_STARS", 256)
    done = []
    for name, workers in (("here", None), ("there", cluster)):
        simulate_survey(
            tmp_path / name,
            n_star=700,
            seed=3,
            cluster=workers,
            progress=lambda *rows: done.append(rows),
        )
    assert done[-1] == (700, 700)
    assert_same_files(tmp_path / "here", tmp_path / "there")


def test_a_lost_worker_costs_its_task_alone(tmp_path, site, cluster):
    site.add_worker("spare")
    tasks = [(str(tmp_path / f"begun-{k}"), str(tmp_path / f"done-{k}")) for k in range(6)]
    for begun, _ in tasks[1:]:
        Path(begun).write_text("")
    killed = []

    def kill(number, pid):
        killed.append((number, pid))
        os.kill(pid, signal.SIGKILL)

    cluster.run_tasks(
        cluster_tasks.hang_once,
        tasks,
        unfinished=lambda task: not Path(task[1]).exists(),
        told=kill,
    )
    assert [number for number, _ in killed] == [0]
    assert str(killed[0][1]) != Path(tasks[0][1]).read_text()


@pytest.mark.slow
def test_kill_of_a_worker_midway_leaves_the_catalogue_as_it_is(
    tmp_path, site, cluster, local, tiny_model, observed_survey
):
    victim = site.add_worker("victim")
    with connect(site.file, workers=3, timeout_s=60):
        pass
    done = []

    def kill(rows, total):
        if rows < total and victim.poll() is None:
            done.append(rows)
            victim.kill()
            victim.wait()

    out = tmp_path / "labels.fits"
    catalogue = predict(tiny_model, observed_survey, out, cluster=cluster, progress=kill)
    assert done
    assert done[0] < 90
    assert_same(catalogue, Catalogue.read(out))
    for name in local.table.colnames:
        np.testing.assert_array_equal(catalogue.table[name], local.table[name])


@pytest.mark.slow
def test_after_a_lost_scheduler_the_rest_is_done(tmp_path, local, tiny_model, observed_survey):
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(folder)
    scheduler = site.start(workers=1)
    out = tmp_path / "labels.parquet"

    def kill(rows, total):
        if rows >= 2 * PART:
            scheduler.kill()

    try:
        with (
            connect(site.file, timeout_s=60) as cluster,
            pytest.raises(ClusterError, match="run the same command again"),
        ):
            predict(tiny_model, observed_survey, out, cluster=cluster, progress=kill)
    finally:
        site.stop()
    written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("labels.parquet.part/part-*")}
    assert 0 < len(written) < 12
    kept = []

    def look(rows, total):
        kept.append(all(p.exists() and p.stat().st_mtime_ns == t for p, t in written.items()))

    with connect("local", workers=1) as cluster:
        catalogue = predict(tiny_model, observed_survey, out, cluster=cluster, progress=look)
    assert kept
    assert all(kept)
    assert_same(catalogue, local)


def test_what_is_wrong_with_workers_is_said(tmp_path, site, cluster, monkeypatch):
    with pytest.raises(ClusterError, match="does not see /nowhere/at/all"):
        cluster.require_paths(["/nowhere/at/all", tmp_path])
    with pytest.raises(ClusterError, match=r"failed 3 times .* ZeroDivisionError: as a bug would"):
        list(cluster.results(cluster_tasks.fail, [1]))
    monkeypatch.setattr(maury.io.cluster, "_VISIBLE_S", 0.3)
    with pytest.raises(ClusterError, match="its output is not seen from here"):
        cluster.run_tasks(cluster_tasks.write_nothing, ["x"], unfinished=lambda task: True)


def test_workers_of_another_version_are_named(tmp_path, site):
    stub = tmp_path / "maury"
    stub.mkdir()
    (stub / "__init__.py").write_text('__version__ = "0.0.1"\n')
    other = site.add_worker("other", PYTHONPATH=str(tmp_path))
    try:
        # By its name: a worker that another test has started may join meanwhile, too.
        while "other" not in site.names():
            time.sleep(0.05)
        with (
            pytest.raises(ClusterError, match=rf"has maury 0\.0\.1, .* {maury.__version__}"),
            connect(site.file, timeout_s=60),
        ):
            pass
    finally:
        other.kill()
        other.wait()


def test_a_task_that_kills_workers_is_given_up(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(folder)
    site.start(workers=1, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    try:
        with (
            connect(site.file, timeout_s=60) as cluster,
            pytest.raises(WorkerLost, match="for want of memory"),
        ):
            list(cluster.results(cluster_tasks.die, [1]))
    finally:
        site.stop()


@pytest.mark.parametrize(
    ("scheduler", "match"),
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9"),
        ("nonsense://a:1", "no Dask scheduler answers at nonsense://a:1"),
        ("/nowhere/scheduler.json", "there is no scheduler file /nowhere/scheduler.json"),
    ],
)
def test_a_scheduler_that_is_not_there(scheduler, match):
    with pytest.raises(ClusterError, match=match), connect(scheduler, timeout_s=0.5):
        pass


def test_options_are_checked(monkeypatch):
    with pytest.raises(ConfigError, match="at least 1, got 0"), connect(workers=0):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtra, match=r"maury\[dask\]"), connect():
        pass


@pytest.mark.parametrize(
    ("name", "visible", "n_devices", "expected"),
    [
        ("w-5", None, 4, "1"),
        (3, None, 4, "3"),
        ("tcp://10.0.0.1:4242", None, 4, "0"),
        ("worker", None, 4, "0"),
        ("w-5", None, 1, None),
        ("w-5", None, 0, None),
        ("w-5", "7", 4, None),
        ("w-5", "", 4, None),
        (1, "4, 6", 8, "6"),
        (1, "1,2,3,0", 4, "1"),
        (2, "2,3,0,1", 4, "2"),
        (0, "GPU-b,GPU-a", 4, "GPU-b"),
    ],
)
def test_a_worker_takes_its_device(name, visible, n_devices, expected):
    assert choose_device(name, visible, n_devices=n_devices) == expected
