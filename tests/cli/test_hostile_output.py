"""Names, units, citations and identifiers of strangers, through every command, to the terminal."""

import json
import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.table import Table
from typer.main import get_command

from builders.catalogues import write_catalogue
from builders.command_lines import run_commands
from builders.surveys import copy_survey
from maury.__main__ import main
from maury.cli.app import app
from maury.errors import ConfigError
from maury.io.printing import CleanStream, clean_streams, raw_stream

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0"
HOSTILE = "a\x1b]0;title\x07b\x9b31m\u202ec\rd"
SHOWN = r"a\x1b]0;title\x07b\x9b31m\u202ec\rd"
STEERING = (b"\x1b]0;", b"\x07", "\x9b".encode(), "\u202e".encode(), b"c\rd")


def hostile_survey(path: Path) -> Path:
    names = np.array([f"{HOSTILE}{k}" for k in range(12)])
    copy_survey(GOLDEN / "observed.zarr", path, id=names, star_id=names)
    header = path / "zarr.json"
    document = json.loads(header.read_text())
    document["attributes"]["provenance"] = {"name": HOSTILE, "origin": HOSTILE, "citation": HOSTILE}
    header.write_text(json.dumps(document))
    shutil.rmtree(path / "manifest", ignore_errors=True)
    return path


def hostile_model(path: Path) -> Path:
    shutil.copytree(GOLDEN / "cannon.model", path)
    document = json.loads((path / "model.json").read_text())
    document["provenance"] |= dict.fromkeys(("licence", "citation", "bibtex_key"), HOSTILE)
    document["provenance"]["survey"] = {"name": HOSTILE}
    (path / "model.json").write_text(json.dumps(document))
    (path / "SHA256SUMS").unlink(missing_ok=True)
    return path


def hostile_table(path: Path) -> Path:
    """A table with hostile text wherever Parquet has a text."""
    table = Table({"id": [f"{HOSTILE}{k}" for k in range(3)], "ra": [1.0, 2.0, 3.0]})
    table["dec"] = [1.0, 2.0, 3.0]
    table["teff"] = [5000.0, 5100.0, 5200.0]
    table["teff"].unit = units.def_unit(HOSTILE)
    table["teff"].description = HOSTILE
    table[HOSTILE] = [HOSTILE] * 3
    table.meta = {"model": {"citation": HOSTILE, "name": HOSTILE}, "errors": HOSTILE, HOSTILE: 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.write(path)
    return path


def hostile_files(folder: Path) -> None:
    hostile_survey(folder / "survey.zarr")
    hostile_model(folder / "hostile.model")
    hostile_table(folder / TABLE)
    hostile_table(folder / CATALOGUE)
    write_catalogue(folder / LABELS, model={"citation": HOSTILE, "name": HOSTILE}, errors=HOSTILE)
    text = json.dumps(HOSTILE)
    (folder / "bad.toml").write_text(f"{text} = {text}\n[table]\npath = {text}\nmedium = {text}\n")
    (folder / "recipe.toml").write_text(
        f'name = "mine"\ntitle = {text}\ncitation = {text}\nlicence = {text}\n'
        f"documentation = {text}\nacknowledgement = {text}\n"
        f"[[file]]\nname = {text}\nurl = {text}\nnote = {text}\n"
    )
    for name in ("taken", "released"):
        (folder / name).mkdir()
    (folder / "released" / f"{HOSTILE}_spectra.fits").write_bytes(HOSTILE.encode())
    (folder / "released" / f"{HOSTILE}.h5").write_bytes(HOSTILE.encode())


SURVEY, MODEL, TABLE = "survey.zarr", "hostile.model", "table.parquet"
LABELS, CATALOGUE = "labels.parquet", "table.ecsv"
COMMANDS = [
    ["init", "released", "--out", "guessed.toml"],
    ["check", "bad.toml"],
    ["surveys", "recipe.toml"],
    ["surveys", HOSTILE],
    ["fetch", "recipe.toml", "--dry-run"],
    ["crossmatch", TABLE, LABELS, "match.ecsv", "--left", f"id={HOSTILE}"],
    ["crossmatch", TABLE, LABELS, "match.parquet", "--right", "ra=ra,dec=dec"],
    ["build", "bad.toml", "built.zarr"],
    ["ingest", "toml", "bad.toml", "in.zarr"],
    ["ingest", "released", "released", "in.zarr"],
    ["ingest", "recipe", "recipe.toml", "released", "in.zarr"],
    ["simulate", "taken", "--stars", "3"],
    ["simulate-xp", SURVEY, "taken"],
    ["train", SURVEY, "new.model", "--method", "cannon"],
    ["train", SURVEY, "new.model", "--config", "bad.toml"],
    ["methods"],
    ["transfer", MODEL, SURVEY, "new.model"],
    ["adapt", MODEL, SURVEY, "new.model"],
    ["suspects", MODEL, SURVEY],
    ["joint", "train", "new.joint", f"one={SURVEY}", f"two={SURVEY}"],
    ["joint", "add", MODEL, "new.joint", f"one={SURVEY}"],
    ["joint", "predict", MODEL, f"{HOSTILE}={SURVEY}", "--out", "out.fits"],
    ["joint", "validate", MODEL, f"one={HOSTILE}"],
    ["distil", MODEL, SURVEY, "new.model"],
    *(["info", path] for path in (SURVEY, MODEL, LABELS, CATALOGUE, "bad.toml", HOSTILE)),
    ["validate", MODEL, SURVEY],
    ["suspects", MODEL, SURVEY],
    ["audit", MODEL, SURVEY],
    ["coverage", MODEL, SURVEY, "--suggest", "5"],
    ["compare", SURVEY, "--methods", HOSTILE],
    ["compare", SURVEY, "--methods", "cannon", "--out", "compared"],
    ["drift", MODEL, SURVEY],
    ["predict", MODEL, SURVEY, "out.fits", "--workers", "1"],
    ["predict", MODEL, SURVEY, "out.fits", "--without", HOSTILE],
    ["explore", "bad.toml"],
    ["report", MODEL, "taken"],
    ["convert", LABELS, "out.vot"],
    *(["convert", CATALOGUE, f"out{end}"] for end in (".fits", ".ecsv", ".parquet", ".cds")),
    ["convert", TABLE, "out.cds"],
    ["footprint", CATALOGUE, "out.json"],
    ["card", MODEL],
    ["card", MODEL, "--json"],
    *(["cite", what] for what in (MODEL, SURVEY, LABELS, HOSTILE, "recipe.toml")),
    ["import-keras", "released", "keras.model"],
    ["demo", "taken"],
]


def test_every_command_is_attacked():
    assert {command[0] for command in COMMANDS} == set(get_command(app).commands)


@pytest.mark.parametrize(
    "terminal",
    [pytest.param(False, id="pipe"), pytest.param(True, id="terminal", marks=pytest.mark.slow)],
)
def test_no_command_lets_a_file_steer_the_terminal(tmp_path, terminal):
    hostile_files(tmp_path)
    said = run_commands(COMMANDS, tmp_path, terminal=terminal)
    assert said.count(b"=== ended with") + said.count(b"Traceback") == len(COMMANDS)
    assert b"Traceback" not in said, said.decode(errors="replace")[-4000:]
    # What was hostile is there, written out, in dozens of places.
    assert said.count(rb"\x1b]0;title\x07") > 20
    for sequence in STEERING:
        assert sequence not in said, said[max(0, said.find(sequence) - 300) :][:400]
    if not terminal:
        assert set(said) >= {10}
        assert not {code for code in said if code < 32} - {10}, "only ends of lines"


def test_what_libraries_print_is_written_out(monkeypatch, capsys):
    monkeypatch.setattr("maury.cli.app.app", lambda: failing())

    def failing():
        sys.stdout.write(HOSTILE)
        warnings.warn(HOSTILE, UserWarning, stacklevel=1)
        logging.StreamHandler().emit(
            logging.LogRecord("x", logging.WARNING, "", 0, HOSTILE, (), None)
        )
        sys.stderr.writelines([HOSTILE, "\n"])
        raise ConfigError(HOSTILE)

    with warnings.catch_warnings(), pytest.raises(SystemExit):
        warnings.simplefilter("always")
        # pytest keeps warnings to itself; this is what shows them elsewhere.
        monkeypatch.setattr(warnings, "showwarning", lambda text, *_: sys.stderr.write(str(text)))
        main()
    out, error = capsys.readouterr()
    assert "\x1b" not in out + error
    assert (out.count(SHOWN), error.count(SHOWN)) == (1, 4)


def test_a_traceback_is_written_out():
    code = (
        "from maury.cli import app; import maury.__main__\n"
        f"def stop(): raise RuntimeError({HOSTILE!r})\n"
        "app.app = stop; maury.__main__.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().endswith(f"RuntimeError: {SHOWN}\n")


def test_messages_of_errors_cannot_steer_a_notebook():
    assert str(ConfigError(HOSTILE)) == SHOWN


def test_a_clean_stream_is_a_stream_of_text(capsys):
    clean_streams()
    clean_streams()
    assert isinstance(sys.stdout, CleanStream)
    assert not isinstance(raw_stream(sys.stdout), CleanStream)
    assert raw_stream(raw_stream(sys.stdout)) is sys.stdout.raw
    assert not sys.stdout.isatty()
    assert sys.stdout.encoding == sys.stdout.raw.encoding
    with pytest.raises(TypeError):
        sys.stdout.write(b"")
    assert sys.stdout.write("a\nb") == 3
    assert capsys.readouterr().out == "a\nb"
