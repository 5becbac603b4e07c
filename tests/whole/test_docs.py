"""The documentation builds, its links hold, its examples run, its commands exist."""

import ast
import importlib
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from astropy.io import fits

import maury
from builders.docs_site import build_site, cells
from maury.labels import columns, flags
from maury.labels import definitions as labels
from maury.model.networks.published import PRESETS
from maury.survey import archives as surveys

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
SKIP = re.compile(r"<!-- skip: .+ -->\s*\Z")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str, bool]]:
    """Line, text, and whether it is to be skipped, of the fenced blocks of a page."""
    text = page.read_text("utf-8")
    for match in FENCE.finditer(text):
        if match[1] in languages:
            line = text.count("\n", 0, match.start()) + 1
            yield line, match[2], bool(SKIP.search(text[: match.start()]))


def cells_too(page: Path, language: str) -> Iterator[str]:
    """Text of fenced blocks, and of the cells of a tutorial."""
    yield from (text for _, text, _ in blocks(page, language))
    yield from (text for kind, text in cells(page) if kind == language)


EXAMPLES = [
    pytest.param(page, id=page.name) for page in PAGES if any(True for _ in blocks(page, "python"))
]
COMMANDS = [
    pytest.param(command, id=f"{page.name}:{line}:{command[:40]}")
    for page in PAGES
    for line, text, _ in blocks(page, "bash", "console", "sh")
    for command in text.replace("\\\n", " ").splitlines()
    if "maury " in command
]
COMMANDS += [
    pytest.param(command, id=f"{page.name}:{command[:40]}")
    for page in PAGES
    for kind, text in cells(page)
    for command in text.splitlines()
    if kind == "bash" and command.startswith("maury ")
]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return build_site(tmp_path_factory.mktemp("site"), run=False)


@pytest.mark.slow
def test_documentation_builds_without_a_warning(site) -> None:
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file()


@pytest.mark.slow
def test_the_front_page_has_a_picture_and_five_doors(site) -> None:
    page = (site / "index.html").read_text("utf-8")
    assert re.search(r'<img[^>]*src="_images/overview.png"', page)
    doors = dict(
        zip(
            re.findall(r'class="sd-card-title[^>]*>\s*(.*?)\s*</div>', page, re.DOTALL),
            re.findall(r'class="sd-stretched-link[^>]*href="([^"]+)"', page),
            strict=True,
        )
    )
    assert list(doors) == [
        "Try it",
        "My own survey",
        "RAVE, Gaia RVS, GALAH, LAMOST, APOGEE",
        "Understand the errors",
        "From Python",
    ]
    assert all((site / target).is_file() for target in doors.values())


def found_by(site: Path, *words: str) -> set[str]:
    """Pages on which the search of the site finds all words: `searchtools.js` joins them so."""
    stemmer = importlib.import_module("sphinx.search.en").SearchEnglish({})
    text = (site / "searchindex.js").read_text("utf-8")
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    names = index["docnames"]

    def pages(word: str) -> set[str]:
        held = [index[part].get(stemmer.stem(word.lower()), []) for part in ("terms", "titleterms")]
        numbers = [n for one in held for n in (one if isinstance(one, list) else [one])]
        return {names[n] for n in numbers}

    return set.intersection(*(pages(word) for word in words))


@pytest.mark.slow
def test_the_search_finds_what_a_newcomer_types(site) -> None:
    tutorials = {page.stem for page in (DOCS / "start").glob("*.md")} - {"examples"}
    assert len(tutorials) == 7
    assert {f"start/{name}" for name in tutorials} <= found_by(site, "tutorial")
    assert "start/own_survey" in found_by(site, "nanometre")
    assert {"start/own_survey", "reference/labels"} <= found_by(site, "custom", "label")
    assert {"start/own_survey", "guides/ingest"} <= found_by(site, "missing", "value")
    assert not found_by(site, "tutorial", "qwertz")


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site) -> None:
    page = (site / "reference" / "api.html").read_text("utf-8")
    described = set(re.findall(r'<dt class="sig[^"]*"[^>]* id="([\w.]+)"', page))
    listed = extension("maury_api").stubs()
    assert listed["maury"]
    for package, names in listed.items():
        for module, name in names:
            if name != "__version__":
                assert f"{module}.{name}" in described, f"{package}.{name}"
    assert "maury.model.networks.base.NetworkConfig" in described
    assert "maury.survey.store.Survey.batches" in described


@pytest.mark.slow
def test_every_command_is_in_the_reference_with_an_example(site) -> None:
    page = (site / "reference" / "cli.html").read_text("utf-8")
    source = (DOCS / "reference" / "cli.md").read_text("utf-8")
    names = extension("maury_cli").names()
    assert {"train", "ingest toml", "predict"} <= set(names)
    for name in names:
        (section,) = re.findall(rf"^### maury {name}\n(.*?)(?=^##|\Z)", source, re.M | re.S)
        assert f"{{maury-command}} {name}\n" in section
        assert re.search(rf"^maury {name.replace('recipe', '')}", section, re.MULTILINE), name
        assert f"maury {name} " in page
    assert "Networks in the ensemble" in page


@pytest.mark.slow
def test_tables_hold_every_definition(site) -> None:
    page = (site / "reference" / "labels.html").read_text("utf-8")
    for label in labels.LABELS:
        assert label.name in page
        assert label.ucd in page
    for column in columns.OBSERVED:
        assert column.description in page
    for flag in flags.Flag:
        assert str(flag.name) in page
        assert flag.text in page
    catalogue = (site / "guides" / "catalogue.html").read_text("utf-8")
    for name in ("id", "teff_error", "ni_fe", "flags", "warn", "snr", "star_id"):
        assert f">{name}<" in catalogue


def test_links_within_the_repository_hold() -> None:
    for page in PAGES:
        text = FENCE.sub("", page.read_text("utf-8"))
        for target in re.findall(r"\]\((?!https?://|mailto:)([^)#\s]+)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_reachable_from_the_index() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)
    listed = set(re.findall(r"^([a-z_/]+)$", "\n".join(trees), re.MULTILINE))
    assert {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")} - {
        "index"
    } == listed


@pytest.fixture
def workplace(tmp_path) -> Path:
    """Directory where the examples run: ``rave`` in the released layout, and ``survey.toml``."""
    flux = np.random.default_rng(2).normal(0.9, 0.05, (6, 912)).astype(np.float32)
    (tmp_path / "rave").mkdir()
    fits.PrimaryHDU(flux.T).writeto(tmp_path / "rave" / "some_spectra.fits")
    names = ["parallax", *(band.column for band in columns.BANDS), "a_v"]
    table = [",".join(names), *[",".join(["2.0"] * len(names))] * 6]
    (tmp_path / "rave" / "some_parameters.csv").write_text("\n".join(table) + "\n", "utf-8")
    np.savez(tmp_path / "spectra.npz", flux=flux, wave=8420.0 + 0.4 * np.arange(912))
    (tmp_path / "survey.toml").write_text(
        'simulated = false\n[spectra]\nfile = "spectra.npz"\nflux = "flux"\n'
        '[wavelength]\nmedium = "air"\nvalues = "wave"\nunit = "angstrom"\n',
        "utf-8",
    )
    return tmp_path


def make_what_is_named(text: str) -> dict[str, object]:
    """Make ``survey`` (a small simulated one) and ``small.model`` if an example takes them."""
    given: dict[str, object] = {}
    if re.search(r"\bsurvey\b", text) or "small.model" in text:
        given["survey"] = maury.simulate_survey("survey.zarr", n_star=240, seed=1)
    if "small.model" in text and "train(" not in text:
        quick = {
            "network": {"preset": "guiglion2020"},
            "training": {"epochs": 1},
            "ensemble": {"members": 1},
        }
        maury.train(given["survey"], "small.model", config=quick)
    return given


@pytest.mark.slow
@pytest.mark.parametrize("page", EXAMPLES)
def test_examples_run_or_at_least_name_what_exists(page: Path, workplace, monkeypatch) -> None:
    examples = list(blocks(page, "python"))
    for _, text, _ in examples:
        check_names(text)
    running = [(line, text) for line, text, skip in examples if not skip]
    monkeypatch.chdir(workplace)
    namespace = make_what_is_named("\n".join(text for _, text in running))
    for line, text in running:
        exec(compile("\n" * line + text, str(page), "exec"), namespace)


def test_toml_blocks_are_toml() -> None:
    for page in PAGES:
        for text in cells_too(page, "toml"):
            assert tomllib.loads(text), page.name


def test_cells_of_tutorials_name_what_exists() -> None:
    pages = [page for page in PAGES if any(True for _ in cells(page))]
    assert len(pages) > 7
    for page in pages:
        for kind, text in cells(page):
            if kind == "python":
                check_names(text)


def check_names(text: str) -> None:
    """Assert that everything imported from maury, or taken of its modules, exists."""
    modules = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "maury":
            for alias in node.names:
                item = imported(node.module or "", alias.name)
                modules[alias.asname or alias.name] = item
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "maury":
                    module = importlib.import_module(alias.name)
                    modules[alias.asname or alias.name] = module
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = modules.get(node.value.id)
            if owner is not None:
                assert hasattr(owner, node.attr), f"{node.value.id}.{node.attr} does not exist"


def imported(module: str, name: str) -> object:
    owner = importlib.import_module(module)
    try:
        return getattr(owner, name)
    except AttributeError:
        return importlib.import_module(f"{module}.{name}")


def test_the_check_of_names_finds_what_does_not_exist() -> None:
    with pytest.raises(ImportError):
        check_names("from maury import nothing_of_the_kind")
    with pytest.raises(AssertionError, match=r"flags\.names_of"):
        check_names("from maury.labels import flags\nflags.names_of(3)")


def parse_command(command: str) -> None:
    """Assert that a command line of maury names a command and options that exist."""
    import typer

    from maury.cli.app import app

    words = shlex.split(command.lstrip("$ "), comments=True)
    words = words[words.index("maury") + 1 :]
    node = typer.main.get_command(app)
    while words and words[0] in getattr(node, "commands", {}):
        node = node.commands[words.pop(0)]
    if node.name == "ingest" and words and is_recipe(words[0]):
        node = node.commands["recipe"]
    if getattr(node, "commands", None):
        assert words, f"{command!r} has no command"
        assert words[0].startswith("-"), f"{words[0]!r} of {command!r} is no command"
    options = {name for p in node.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
            assert word.split("=")[0] in options, f"{word} of {command!r} is no option"


def is_recipe(word: str) -> bool:
    return word in ("RECIPE", *surveys.names()) or word.endswith(".toml")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_code_blocks_exist(command: str) -> None:
    for part in re.split(r"&&|;|\|", command):
        if re.search(r"(^|\s)maury\s", part):
            parse_command(part.strip())


def test_commands_named_in_the_text_exist() -> None:
    for page in PAGES:
        text = FENCE.sub("", page.read_text("utf-8"))
        for command in re.findall(r"`(maury [a-z-][^`]*)`", text):
            parse_command(command)


def test_the_check_of_commands_finds_what_does_not_exist() -> None:
    parse_command("maury ingest released DIR out.zarr --overwrite")
    for wrong in ("maury fly MODEL", "maury train a b --colour", "maury ingest mars x y"):
        with pytest.raises(AssertionError):
            parse_command(wrong)


def extension(name: str) -> ModuleType:
    """Module of `docs/_ext`."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def cited(text: str) -> set[tuple[str, str]]:
    """(volume, page) of every citation ``Journal volume, page`` of a text."""
    journals = "A&A|AJ|ApJ|ApJS|MNRAS|PASP|Applied Optics"
    text = re.sub(r"\s+", " ", text)
    return set(re.findall(rf"\b(?:{journals}) (\d+), (A?\d+)", text))


def test_every_paper_that_the_code_cites_is_in_the_bibliography() -> None:
    known = extension("maury_tables").references()
    places = {(entry.get("volume", ""), entry.get("pages", "")) for entry in known}
    for path in [*(ROOT / "src").rglob("*.py"), *DOCS.rglob("*.md")]:
        assert cited(path.read_text("utf-8")) <= places, f"{path.name} cites other papers"
    assert ("644", "A168") in places
    keys = {entry["key"] for entry in known}
    own = {"guiglion2020", "starnet", "astronn"}
    assert {PRESETS[name].bibtex_key for name in own} <= keys
    assert all({"author", "year", "title", "url", "note"} <= entry.keys() for entry in known)


@pytest.mark.slow
def test_architecture_shows_every_module(site) -> None:
    page = (site / "explanation" / "architecture.html").read_text("utf-8")
    package = ROOT / "src" / "maury"
    present = {p.stem for p in package.glob("*.py") if p.stem != "__init__"}
    present |= {p.parent.name for p in package.glob("*/__init__.py")}
    shown = set(re.findall(r'<span class="pre">(\w+)</span>', page))
    assert present <= shown, present - shown


def test_version_is_the_same_everywhere() -> None:
    assert f"\nversion: {maury.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\n## {maury.__version__} " in (ROOT / "CHANGELOG.md").read_text("utf-8")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert settings["project"]["version"] == maury.__version__


def test_documentation_names_no_place_of_one_machine() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users)/", text), page.name
        assert os.path.expanduser("~") == "/" or os.path.expanduser("~") not in text
