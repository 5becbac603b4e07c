"""What reaches a terminal: nothing that steers it, in any encoding, and a word after Ctrl-C."""

import ast
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from astropy.table import Table

import maury.cli
from maury.cli import terminal
from maury.labels.flags import Flag
from maury.prediction.catalogue import Catalogue
from maury.survey.store import Survey

HOSTILE = "a\x1b]0;title\x07b\x9b31m\u202e c"
SHOWN = r"a\x1b]0;title\x07b\x9b31m\u202e c"
GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0"


def test_what_could_steer_a_terminal_is_written_out(capsys):
    terminal.say(HOSTILE, 5, end="!\n")
    assert capsys.readouterr().out == f"{SHOWN} 5!\n"
    terminal._show_table([("id", HOSTILE), ("[red]x[/red]", HOSTILE)])
    out = capsys.readouterr().out
    assert "\x1b]" not in out
    assert "\x9b" not in out
    assert out.count(SHOWN) == 2
    assert "[red]x[/red]" in out


def test_commands_print_by_one_door_only():
    for path in Path(maury.cli.__file__).parent.glob("*.py"):
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        printing = [call for call in calls if getattr(call.func, "id", "") == "print"]
        assert len(printing) == (path.name == "terminal.py"), path
        echoes = [call for call in calls if getattr(call.func, "attr", "") in ("echo", "secho")]
        assert not echoes, path


def maury_command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "maury", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )


@pytest.mark.slow
def test_a_terminal_in_ascii_shows_other_letters_as_escapes(tmp_path):
    shutil.copytree(GOLDEN / "observed.zarr", tmp_path / "súrvey.zarr")
    done = maury_command("info", tmp_path / "súrvey.zarr", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert rb"s\xfarvey.zarr" in done.stdout
    done = maury_command("info", tmp_path / "missíng.zarr", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert rb"miss\xedng" in done.stderr


@pytest.mark.slow
def test_commands_run_with_warnings_as_errors(tmp_path):
    model, out = GOLDEN / "maury.model", tmp_path / "labels.fits"
    for command in (
        ("predict", model, GOLDEN / "observed.zarr", out),
        ("info", out),
        ("convert", out, tmp_path / "labels.vot"),
        ("crossmatch", out, tmp_path / "labels.vot", tmp_path / "match.fits"),
        ("drift", model, GOLDEN / "observed.zarr"),
    ):
        more = ("--left", "ra=ra,dec=dec", "--right", "ra=ra,dec=dec")
        arguments = (*command, *more) if command[0] == "crossmatch" else command
        done = maury_command(*arguments, PYTHONWARNINGS="error")
        assert done.returncode == 0, (command[0], done.stderr[-2000:])
    for name in ("labels.fits", "labels.vot", "match.fits"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(Table.read(tmp_path / name)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["labels.fits", "labels.vot", "labels.parquet", "labels.dataset"])
def test_catalogues_are_written_where_the_locale_cannot_decode_their_path(tmp_path, name):
    """A broken locale in ASCII: every byte beyond it comes as a surrogate, which UTF-8 lacks."""
    (tmp_path / "síde").mkdir()
    out, broken = tmp_path / "síde" / name, {"LC_ALL": "xx_YY.broken", "PYTHONUTF8": "0"}
    survey, model = GOLDEN / "observed.zarr", GOLDEN / "maury.model"
    for command in (("predict", model, survey, out), ("info", out)):
        done = maury_command(*command, **broken, PYTHONCOERCECLOCALE="0")
        assert done.returncode == 0, (command[0], done.stderr[-2000:])
    assert len(Catalogue.read(out).table) == len(Survey.open(survey))


def test_a_warning_is_told_once():
    once = terminal.Once()

    def record(level, text):
        return logging.LogRecord("maury", level, "", 0, text, (), None)

    assert [once.filter(record(logging.WARNING, "a")) for _ in range(2)] == [True, False]
    assert once.filter(record(logging.WARNING, "b"))
    assert all(once.filter(record(logging.INFO, "a")) for _ in range(2))


def test_the_commonest_warnings_are_told_with_what_to_do(capsys):
    counts = {"LOW_SNR": 2, "CONTINUUM_BAD": 40, "A_V_MISSING": 50, "HOT_STAR": 2, "EMISSION": 1}
    terminal.show_commonest_flags(counts, 50)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines[:3]] == [
        "CONTINUUM_BAD",
        "LOW_SNR",
        "HOT_STAR",
    ]
    assert "40 (80.0%)" in lines[0]
    assert Flag.CONTINUUM_BAD.remedy in lines[0]
    assert "1 flag more" in lines[3]


def test_messages_name_arguments_of_python_only_as_such():
    """A reader of the command line cannot give an argument of a function."""
    found = []
    for path in sorted(Path(maury.cli.__file__).parents[1].rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                texts = [
                    one.value
                    for one in ast.walk(node.exc)
                    if isinstance(one, ast.Constant) and isinstance(one.value, str)
                ]
                said = " ".join(texts)
                leak = re.search(r"""\b[a-z_]+=['"]""", said)
                if leak and "in Python" not in said[: leak.start()]:
                    found.append(f"{path.name}:{node.lineno}: {leak.group()}")
    assert found == []


def test_a_table_in_a_file_is_cut_nowhere(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    header = tuple(f"column number {k}" for k in range(9))
    terminal.show_values([header, tuple("x" * 14 for _ in header)])
    out = capsys.readouterr().out
    assert all(name in out for name in header)
    assert "…" not in out
