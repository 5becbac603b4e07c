import io
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

import maury
from maury.cli import app as cli
from maury.cli import terminal
from maury.prediction.catalogue import Catalogue

runner = CliRunner()


def maury_command(*arguments, **options):
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "maury", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        **options,
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys, maury.__main__ as program; sys.argv = ['maury', '--help']\n"
        "try:\n"
        "    program.main()\n"
        "finally:\n"
        "    heavy = {'torch', 'numpy', 'scipy', 'astropy', 'matplotlib', 'pyarrow', 'zarr'}\n"
        "    print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "train" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_maury_does_nothing():
    code = (
        "import sys; before = set(sys.modules); import maury; "
        "print(sorted(n for n in set(sys.modules) - before if n.startswith('maury')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['maury']"


@pytest.mark.parametrize("name", [n for n in maury.__all__ if n != "__version__"])
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(maury, name)
    assert isinstance(value, tuple) or value.__doc__


def test_unknown_public_names():
    with pytest.raises(AttributeError, match="attribute nothing"):
        maury.nothing  # noqa: B018


def test_version():
    assert runner.invoke(cli.app, ["--version"]).stdout.strip() == f"maury {maury.__version__}"


def test_the_whole_journey(tmp_path):
    labelled, observed = tmp_path / "l.zarr", tmp_path / "o.zarr"
    config = tmp_path / "c.toml"
    config.write_text(
        "[network]\nwidth = 32\n[training]\nsteps = 100\nstars = 500\n[ensemble]\nmembers = 2\n"
    )
    steps = [
        ("simulate", labelled, "--stars", 120, "--seed", 3),
        ("simulate", observed, "--stars", 20, "--seed", 3, "--observed"),
        ("train", labelled, tmp_path / "m", "--config", config),
        ("validate", tmp_path / "m", labelled, "--json", tmp_path / "v.json"),
        ("validate", tmp_path / "m", labelled, "--stress", "--json", tmp_path / "s.json"),
        ("predict", tmp_path / "m", observed, tmp_path / "labels.vot"),
        ("predict", tmp_path / "m", observed, tmp_path / "a.fits", "--without", "Ks"),
        ("info", tmp_path / "m"),
        ("info", labelled),
        ("info", tmp_path / "labels.vot"),
    ]
    for step in steps:
        result = runner.invoke(cli.app, list(map(str, step)))
        assert result.exit_code == 0, (step, result.output, result.exception)
        assert re.search("simulated", result.output, re.IGNORECASE), step
    assert len(Catalogue.read(tmp_path / "labels.vot")) == 20
    assert json.loads((tmp_path / "v.json").read_text())["simulated"] is True
    assert json.loads((tmp_path / "s.json").read_text())["lines"][0]["name"] == "nothing"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "nowhere", "nothing.zarr", "out.fits"), "nothing.zarr is not a survey store"),
        (("train", "nothing.zarr", "m"), "not a survey store"),
        (("train", "nothing.zarr", "m", "--preset", "starnett"), "did you mean 'starnet'"),
        (("ingest", "released", ".", "out.zarr"), "_spectra.fits"),
        (("ingest", "toml", "no.toml", "out.zarr"), "no.toml"),
        (("import-keras", ".", "m"), ".h5"),
        (("info", "what"), "what"),
    ],
)
def test_errors_are_one_line_without_a_traceback(tmp_path, arguments, message):
    done = maury_command(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_bar_of_bytes_shows_one_file_at_a_time(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with terminal.bytes_bar() as progress:
        progress("a.fits", 10, 4_000)
        progress("a.fits", 4_000, 4_000)
        first = shown.tell()
        progress("b.fits", 5, 0)
    assert "a.fits" in shown.getvalue()
    assert "b.fits" in shown.getvalue()[first:]
    assert "a.fits" not in shown.getvalue()[first:].split("b.fits", 1)[1]


def test_workers_are_asked_for_where_they_shall_be(monkeypatch):
    asked = []

    @contextmanager
    def connect(scheduler, *, workers):
        asked.append((scheduler, workers))
        yield "a cluster"

    monkeypatch.setattr("maury.io.cluster.connect", connect)
    for scheduler, workers, local, wanted in (
        (None, None, True, None),
        (None, 2, False, None),
        (None, 2, True, ("local", 2)),
        ("tcp://host:8786", None, False, ("tcp://host:8786", None)),
    ):
        asked.clear()
        with terminal.cluster(scheduler, workers, local=local) as found:
            assert found == (None if wanted is None else "a cluster")
        assert asked == ([] if wanted is None else [wanted])


def test_cautions_of_reports_are_printed(capsys):
    header = ("label", "unit", "n", "bias", "sigma", "robust sigma", "slope", "in 1 sigma")
    row = ("Teff", "K", "90", "1", "70", "60", "1.0", "0.7")
    report = SimpleNamespace(
        title="A report", warning="trained on these", bounds=(), bounds_as_observed=(),
        rows=lambda: [header, row],
    )  # fmt: skip
    terminal.show_report(report)
    said = capsys.readouterr().out
    assert said.startswith("A report\nwarning: trained on these\n")
    assert "Teff" in said
    report.warning = ""
    terminal.show_report(report)
    assert "warning" not in capsys.readouterr().out


def test_an_audit_is_printed_without_the_tables_that_it_does_not_have(capsys):
    report = SimpleNamespace(
        title="An audit", warning="", note="few stars", remarks=("and old",), grounds="on luck",
        rows=lambda: [("label", "unit", "gain"), ("Teff", "K", "2.0")],
        labels=[SimpleNamespace(basis="shuffled spectra")],
        swap_rows=lambda: [("label", "response")],
        magnitude_rows=lambda: [("label", "kept"), ("Teff", "1.1")],
        further_rows=lambda: [("label", "all inputs")],
        sensitivity_rows=lambda: [("label", "correlation")],
    )  # fmt: skip
    terminal.show_audit(report)
    said = capsys.readouterr().out
    assert said.startswith(
        "An audit\nnote: few stars\nnote: and old\nverdicts on luck\n"
        "Scatter, by what the networks see; gain over"
    )
    assert "absolute magnitudes" in said
    assert "spectra of other stars" not in said
    assert "linear estimator" not in said


def test_a_census_without_flags_is_one_line(capsys):
    class Census:
        simulated, warned = True, 0.0

        def __len__(self):
            return 12

        def shares(self):
            return {}

    terminal.show_census(Census())
    assert capsys.readouterr().out == "12 SIMULATED spectra, 0.0% of them with a warning flag\n"


def numbers_of_commands():
    """Flag, kind and option of each number that a command takes, with the command's name."""
    groups = [("", cli.app.registered_commands), ("ingest ", cli.ingest_app.registered_commands)]
    for before, commands in groups:
        for command in commands:
            name = before + (command.name or command.callback.__name__)
            for hint in get_type_hints(command.callback, include_extras=True).values():
                kind = next(iter(get_args(hint)), hint)
                kinds = {int, float} & {kind, *get_args(kind)}
                option = getattr(hint, "__metadata__", [None])[0]
                for kind in kinds:
                    yield pytest.param(kind, option, id=f"{name} {option.default}")


def test_every_command_is_asked_for_its_numbers():
    found = {one.id for one in numbers_of_commands()}
    assert {"simulate --stars", "train --seed", "ingest recipe --workers"} <= found
    assert {"crossmatch --radius", "footprint --order", "predict --workers"} <= found


@pytest.mark.parametrize(("kind", "option"), list(numbers_of_commands()))
def test_no_command_believes_a_number_of_any_size(kind, option):
    # Infinitely many megabytes: never ask.
    never = [] if option.default == "--ask-above" else [float("inf")]
    for value in (-1, *([10**30] if kind is int else [float("nan"), *never])):
        with pytest.raises(typer.BadParameter, match="it must be from"):
            option.callback(value)
    assert option.callback(None) is None


def test_numbers_beyond_a_limit_are_one_line_and_the_limit_can_be_raised(tmp_path, monkeypatch):
    for digits in (9, 30, 6000):
        words = ["simulate", str(tmp_path / "s.zarr"), "--stars", "9" * digits]
        done = runner.invoke(cli.app, words)
        assert done.exit_code == 2
        assert "Invalid value for '--stars'" in done.output
        assert len(done.output) < 1000 or digits == 6000
    asked = []
    monkeypatch.setattr(
        "maury.simulation.surveys.simulate_survey", lambda *_, **more: asked.append(more["n_star"])
    )
    monkeypatch.setenv("MAURY_LIMITS", "rows=2e9")
    runner.invoke(cli.app, [*words[:-1], "1" + "0" * 9])
    assert asked == [10**9]
    assert not (tmp_path / "s.zarr").exists()


def test_the_program_does_not_go_through_the_objects_of_libraries_at_its_end():
    code = (
        "import gc, sys, maury.__main__ as program\n"
        "sys.argv = ['maury', '--version']\n"
        "try:\n"
        "    program.main()\n"
        "finally:\n"
        "    print(gc.get_freeze_count() > 1000, gc.get_threshold()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split()[-2:] == ["True", "20000"]
