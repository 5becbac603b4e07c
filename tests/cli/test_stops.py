"""Ctrl-C and SIGTERM: at any moment, of any command, one line that says how to go on."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from builders.catalogues import write_catalogue
from builders.command_lines import run_commands
from builders.training_survey import write_survey

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0"
STOPPED = b"stopped; run the same command again, it goes on where it can\n"

AT_IMPORT = """
import signal, sys
left = [int(sys.argv.pop(1))]
def look(event, arguments):
    if event == "import":
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
sys.addaudithook(look)
from maury.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [40, 150, 300, 600, 800])
def test_ctrl_c_during_imports(tmp_path, number):
    arguments = ["info", str(GOLDEN / "observed.zarr")]
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, str(number), *arguments],
        capture_output=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr, done.stdout) == (130, STOPPED, b"")


def inputs(folder: Path) -> list[list[str]]:
    """Commands that make something, each ready to run."""
    write_survey(folder / "survey.zarr", n=80)
    write_catalogue(folder / "labels.parquet")
    np.savez(folder / "flux.npz", flux=np.ones((9, 16), "f4"), ivar=np.ones((9, 16), "f4"))
    (folder / "flux.toml").write_text(
        'simulated = true\n[spectra]\nfile = "flux.npz"\nflux = "flux"\nivar = "ivar"\n'
        'orientation = "rows"\n[wavelength]\nmedium = "air"\nstart = 8420.0\nstep = 0.4\n'
    )
    (folder / "quick.toml").write_text('[network]\npreset = "starnet"\n[training]\nepochs = 1\n')
    observed, cannon = str(GOLDEN / "observed.zarr"), str(GOLDEN / "cannon.model")
    survey, labels = "survey.zarr", "labels.parquet"
    one = ["--processes", "1", "--members", "1", "--config", "quick.toml"]
    return [
        ["ingest", "toml", "flux.toml", "out.zarr"],
        ["simulate", "made.zarr", "--stars", "5"],
        ["train", survey, "network.model", *one],
        ["train", survey, "cannon.model", "--method", "cannon"],
        ["distil", str(GOLDEN / "maury.model"), "student.model"],
        ["predict", cannon, observed, "out.fits", "--workers", "1"],
        ["drift", cannon, observed, "--json", "drift.json"],
        ["compare", survey, "--methods", "cannon", "--out", "compared"],
        ["report", cannon, "page", "--observed", labels],
        *(["convert", labels, f"out{end}"] for end in (".vot", ".ecsv", ".cds", ".dataset")),
        ["crossmatch", labels, labels, "match.ecsv", "--right", "ra=ra,dec=dec"],
        ["demo", "tour"],
    ]


@pytest.mark.parametrize(
    ("number", "turn"),
    [(signal.SIGINT, 1), pytest.param(signal.SIGTERM, 4, marks=pytest.mark.slow)],
)
def test_every_long_command_says_how_to_go_on_and_leaves_what_a_resume_uses(tmp_path, number, turn):
    commands = inputs(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    said = run_commands(commands, tmp_path, signal=number, turn=turn)
    ended = said.split(b"=== ended with ")
    codes = [part.split(b"\n")[0].decode() for part in ended[1:]]
    assert len(codes) == len(commands), said[-3000:]
    for command, code, part in zip(commands, codes, ended, strict=False):
        # Some make fewer files than that.
        assert code == str(128 + number) or (turn > 1 and code == "0"), (command, part[-2000:])
        assert part.endswith(STOPPED) or code == "0", (command, part[-2000:])
    assert codes.count("0") < len(codes) / 2
    assert b"Traceback" not in said
    left = {path.name for path in tmp_path.iterdir()} - before
    assert not {name for name in left if name.startswith(".") or name.endswith(".tmp")}, left
