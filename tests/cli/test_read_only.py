"""Places where nobody may write: one clear error of every command that writes."""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from builders.catalogues import write_catalogue
from builders.command_lines import run_commands
from builders.training_survey import write_survey

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0"
SYSTEM = Path("/sys/kernel")
"""A directory of Linux in which nobody can make files, not even root, as whom tests may run."""


def forbidden() -> bool:
    try:
        os.close(os.open(SYSTEM / "maury-probe", os.O_CREAT | os.O_WRONLY))
    except OSError:
        return SYSTEM.is_dir()
    return False


@pytest.mark.slow
@pytest.mark.skipif(not forbidden(), reason="needs a directory that root cannot write either")
def test_every_command_that_writes_says_so_in_one_line(tmp_path):
    write_survey(tmp_path / "survey.zarr", n=80)
    write_catalogue(tmp_path / "labels.parquet")
    np.savez(tmp_path / "flux.npz", flux=np.ones((9, 16), "f4"), ivar=np.ones((9, 16), "f4"))
    (tmp_path / "flux.toml").write_text(
        'simulated = true\n[spectra]\nfile = "flux.npz"\nflux = "flux"\nivar = "ivar"\n'
        'orientation = "rows"\n[wavelength]\nmedium = "air"\nstart = 8420.0\nstep = 0.4\n'
    )
    (tmp_path / "quick.toml").write_text('[network]\npreset = "starnet"\n[training]\nepochs = 1\n')
    cannon, observed, labels = (
        str(GOLDEN / "cannon.model"), str(GOLDEN / "observed.zarr"), "labels.parquet",
    )  # fmt: skip
    out = str(SYSTEM / "maury-test")
    one = ["--processes", "1", "--members", "1", "--config", "quick.toml"]
    ends = (".fits", ".vot", ".ecsv", ".parquet", ".dataset", ".cds")
    commands = [
        *(["convert", labels, f"{out}{end}"] for end in ends),
        *(["convert", labels, f"{out}/deeper/labels{end}"] for end in ends),
        *(["predict", cannon, observed, f"{out}{end}", "--workers", "1"] for end in ends[:-1]),
        ["ingest", "toml", "flux.toml", f"{out}.zarr"],
        ["simulate", f"{out}.zarr", "--stars", "5"],
        ["train", "survey.zarr", f"{out}.model", "--method", "cannon"],
        ["train", "survey.zarr", f"{out}.model", *one],
        ["distil", str(GOLDEN / "maury.model"), f"{out}.model"],
        ["drift", cannon, observed, "--json", f"{out}.json"],
        ["compare", "survey.zarr", "--methods", "cannon", "--out", out],
        ["report", cannon, out, "--observed", labels],
        ["crossmatch", labels, labels, f"{out}.ecsv", "--right", "ra=ra,dec=dec"],
        ["crossmatch", labels, labels, f"{out}.parquet", "--right", "ra=ra,dec=dec"],
        ["demo", out],
        ["fetch", "apogee-dr17", "--to", out, "--yes"],
    ]
    # An extra: without it the command says so before it writes.
    if find_spec("mocpy"):
        commands += [["footprint", labels, f"{out}{suffix}"] for suffix in (".json", ".fits")]
    said = run_commands(commands, tmp_path).decode()
    parts = said.split("=== ended with ")
    assert len(parts) == len(commands) + 1, said
    for command, part, after in zip(commands, parts, parts[1:], strict=False):
        assert after.startswith("1\n"), (command, part[-2000:])
        told = part.split(f"=== {command[0]}\n")[1].splitlines()
        errors = [line for line in told if line.startswith("error: ")]
        assert len(errors) == 1, (command, part[-2000:])
        assert "cannot be written" in errors[0], (command, errors)
        assert "Traceback" not in part, (command, part[-2000:])
