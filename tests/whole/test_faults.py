"""Kills, full disks, two runs at once, clocks that go back: nothing lost, nothing half written."""

import errno
import fcntl
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from builders import faults
from maury.errors import OutputBusy, OutputError, OutputExists, ResumeMismatch
from maury.io import files
from maury.io.files import making, publish, tidy, work_folder, writing
from maury.survey.store import Survey
from maury.survey.writer import SurveyWriter

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0" / "guiglion2020"


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    found = faults.compiled(tmp_path_factory.mktemp("faults"))
    if found is None:
        pytest.skip("needs Linux and a C compiler, which puts faults under the C library")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("ingest", {"most": 4}),
        ("ingest", {"most": 2, "exists": True}),
        slow("train", {"most": 2}),
        slow("predict", {"most": 3, "output": "labels.parquet"}),
        slow("predict", {"most": 2, "output": "labels.dataset", "exists": True}),
        slow("report", {"most": 2, "model": f"{GOLDEN}.model", "observed": f"{GOLDEN}.ecsv"}),
    ],
)
def test_kills_and_full_disks_leave_nothing_half_written(library, tmp_path, stage, settings):
    outcomes = faults.sweep(stage, tmp_path, library=library, **settings)
    assert len(outcomes) >= 2 * settings["most"]
    assert {one.first for one in outcomes} >= {"killed", "told"}
    bad = [one for one in outcomes if not one.good]
    assert not bad, bad[0]
    if settings.get("exists"):
        assert {one.between for one in outcomes} <= {"old", "new"}


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(path, *arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    target = tmp_path / "table.csv"
    monkeypatch.setattr(files, "settle", full)
    told = pytest.raises(OutputError, match=r"table\.csv cannot be written: No space.*free some")
    with told, writing(target, overwrite=False) as partial:
        partial.write_text("1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_parquet_on_a_full_disk_is_the_same_error(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    # By a name, pyarrow would remove what it could not write.
    told = pytest.raises(OutputError, match="free some space")
    with told, files.explaining(tmp_path / "a"), pa.OSFile("/dev/full", "wb") as full:
        pq.write_table(pa.table({"a": np.arange(1000)}), full)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_numpy_on_a_full_disk_is_the_same_error(tmp_path):
    told = pytest.raises(OutputError, match="No space left on device; free some space")
    with told, files.explaining(tmp_path / "a"), open("/dev/full", "wb", buffering=0) as full:
        np.zeros(10_000).tofile(full)


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_a_figure_on_a_full_disk_is_the_same_error(tmp_path, monkeypatch, ending):
    """Matplotlib, stopped by a full disk in mid-file, fails once more as it tidies up."""
    from matplotlib.figure import Figure

    from maury.report.figures import save

    real = Path.write_bytes

    def full(path, data):
        if path.suffix == f".{ending}":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    figure = Figure()
    figure.add_subplot().text(0.5, 0.5, "a font")
    with pytest.raises(OutputError, match=rf"plot\.{ending} cannot be written: No space"):
        save(figure, tmp_path / "plot")
    assert not list(tmp_path.glob(f"*.{ending}"))


def test_other_errors_of_the_system_are_not_renamed(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "a", overwrite=False):
        (tmp_path / "input").read_text()


def test_a_limit_on_the_size_of_files_is_told(tmp_path):
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from pathlib import Path; from maury.errors import OutputError\n"
        "from maury.io.files import writing\n"
        "try:\n"
        "    with writing(Path(sys.argv[1]), overwrite=False) as partial:\n"
        "        partial.write_bytes(bytes(8192))\n"
        "except OutputError as error:\n"
        "    sys.exit(3 if 'ulimit -f' in str(error) else 4)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert done.returncode == 3
    assert list(tmp_path.iterdir()) == []


def hold(out):
    """Hold an output in another process until its input ends; return it once it does."""
    code = (
        "import sys; from maury.io.files import making\n"
        "with making(sys.argv[1]):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(out)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_run_on_an_output_is_told_of_the_first(tmp_path):
    out = tmp_path / "model"
    with hold(out) as process:
        with pytest.raises(OutputBusy, match=f"process {process.pid} on"), making(out):
            raise AssertionError("two processes hold it")
        process.send_signal(signal.SIGKILL)
        process.wait()
        with making(out):
            pass
    assert list(tmp_path.iterdir()) == []


def test_where_the_system_cannot_lock_the_process_tells(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    out, lock = tmp_path / "model", tmp_path / ".model.lock"
    with making(out):
        assert lock.read_text().split("\n")[0] == str(os.getpid())
        with pytest.raises(OutputBusy, match=f"process {os.getpid()} on"), making(out):
            raise AssertionError("the process of the lock lives")
    assert not lock.exists()
    lock.write_text(f"{os.getpid()}\nanother\n")
    with pytest.raises(OutputBusy, match="on another"), making(out):
        raise AssertionError("nobody knows of that machine")
    lock.write_text(f"{dead_process()}\n{platform.node()}\n")
    with making(out):
        pass
    assert not lock.exists()


def test_whoever_waits_while_a_lock_file_is_removed_does_not_hold_the_removed_one(
    tmp_path, monkeypatch
):
    """Between opening and locking, the holder ends and takes its file's name away."""
    out, real = tmp_path / "model", fcntl.flock
    events: list[str] = []
    first = making(out)
    first.__enter__()

    def flock(file, operation):
        if operation & fcntl.LOCK_EX and not events:
            events.append("ended")
            first.__exit__(None, None, None)
        return real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with making(out):
        assert (tmp_path / ".model.lock").exists()
        with pytest.raises(OutputBusy), making(out):
            raise AssertionError("two hold it")
    assert events == ["ended"]


def dead_process():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def test_what_dead_processes_left_is_tidied_and_the_rest_is_not(tmp_path):
    out = tmp_path / "labels.fits"
    node = files.platform.node()
    left = tmp_path / f".labels.{node}-{dead_process()}.tmp.fits"
    alive = tmp_path / f".labels.{node}-{os.getpid()}.tmp.fits"
    elsewhere = tmp_path / ".labels.other-1.tmp.fits"
    mine = tmp_path / ".labels.notes.fits"
    for one in (left, alive, elsewhere, mine):
        one.write_text("x")
    tidy(out)
    assert sorted(tmp_path.iterdir()) == sorted([alive, elsewhere, mine])


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_is_replaced_in_one_step(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    publish(tmp_path / "new", tmp_path / "old", overwrite=True)
    assert (tmp_path / "old" / "file").read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["old"]


def test_an_output_caught_between_two_names_is_put_back(tmp_path, caplog):
    aside = tmp_path / ".model.old"
    aside.mkdir()
    (aside / "file").write_text("the user's")
    with making(tmp_path / "model"):
        assert (tmp_path / "model" / "file").read_text() == "the user's"
    assert "put back" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_not_ours_is_never_removed(tmp_path, kind):
    out, work = tmp_path / "survey.zarr", tmp_path / "survey.zarr.part"
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    if kind == "folder":
        shutil.copytree(precious, work)
    elif kind == "file":
        work.write_text("half a download")
    else:
        work.symlink_to(precious)
    before = faults.digest(tmp_path)
    with pytest.raises(ResumeMismatch, match="not of maury's making"):
        work_folder(out, "key", holds="another run", overwrite=True)
    with pytest.raises(ResumeMismatch, match="not of maury's making"):
        SurveyWriter(
            out, n_star=1, wave_aa=np.arange(4) + 8420.0, medium="air", simulated=True,
            overwrite=True,
        )  # fmt: skip
    assert faults.digest(tmp_path) == before


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"key": 1}', "\0\0\0"])
def test_a_torn_stamp_only_costs_the_work(tmp_path, content):
    work = work_folder(tmp_path / "out", "key", holds="another run", overwrite=False)
    (work / "run.json").write_text(content)
    (work / "part").write_text("x")
    overwrite = content == '{"key": 1}'
    again = work_folder(tmp_path / "out", "key", holds="another run", overwrite=overwrite)
    assert json.loads((again / "run.json").read_text())["key"] == "key"
    assert not (again / "part").exists()


def write_some(path, stop, *, n=40, chunk=4, close=False):
    wave = 8420.0 + 0.4 * np.arange(8)
    target = SurveyWriter(
        path, n_star=n, wave_aa=wave, medium="air", columns=["snr"], simulated=True, chunk=chunk,
        resume_key="a",
    )  # fmt: skip
    for start in range(target.done, stop, chunk):
        flux = np.full((chunk, 8), start, np.float32)
        ids = [f"s{k}" for k in range(start, start + chunk)]
        target.write(start, flux, flux, id=ids, star_id=ids, snr=np.ones(chunk))
    if close:
        target.__exit__(None, None, None)
    return target


def test_what_a_machine_wrote_just_before_it_lost_its_power_is_written_again(tmp_path, monkeypatch):
    from maury.survey import writer as store

    monkeypatch.setattr(store, "COLUMN_CHUNK_STARS", 16)
    path = tmp_path / "s.zarr"
    write_some(path, 24)
    (tmp_path / "s.zarr.part" / "flux" / "c" / "5" / "0").write_bytes(b"")  # Rows 20 to 23.
    monkeypatch.setattr(store, "_boot", lambda: "after")
    again = write_some(path, 0)
    assert again.done == 16
    del again
    write_some(path, 40, close=True)
    flux = Survey.open(path).batch(0, 40).spectra.flux[:, 0]
    np.testing.assert_array_equal(flux, np.arange(40) // 4 * 4)


@pytest.mark.parametrize("moment", [0.0, 1e9, 4e9])
def test_dates_of_files_decide_nothing(tmp_path, moment):
    path = tmp_path / "s.zarr"
    write_some(path, 40, close=True)
    before = Survey.open(path).fingerprint
    for file in path.rglob("*"):
        os.utime(file, (moment, moment))
    assert Survey.open(path).fingerprint == before


def test_a_clock_that_goes_back_changes_no_model(tmp_path, monkeypatch):
    from builders.faulty_stages import QUICK
    from builders.training_survey import write_survey
    from maury.training.ensemble import train

    survey = write_survey(tmp_path / "s.zarr", n=60)
    train(survey, tmp_path / "one", config=QUICK, n_processes=1)
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began - 1e6 * (time.monotonic() % 7))
    train(survey, tmp_path / "two", config=QUICK, n_processes=1)
    assert faults.digest(tmp_path / "one") == faults.digest(tmp_path / "two")


def test_two_runs_at_once_make_one_store(tmp_path):
    with write_some(tmp_path / "s.zarr", 40), pytest.raises(OutputBusy):
        write_some(tmp_path / "s.zarr", 40)
    with pytest.raises(OutputExists):
        write_some(tmp_path / "s.zarr", 40)
    assert [one.name for one in tmp_path.iterdir()] == ["s.zarr"]
