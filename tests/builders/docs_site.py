"""The documentation, built by Sphinx with warnings as errors."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
NEEDS = ("sphinx", "myst_nb", "sphinx_design", "sphinx_copybutton", "furo")
CELL = re.compile(r"^```\{code-cell\} ipython3\n((?::.*\n)*)(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"bash": "bash", "writefile": "toml"}


def build_site(out: Path, *, run: bool) -> Path:
    """Folder of the pages; with `run` every tutorial runs from its first cell to its last."""
    for module in NEEDS:
        pytest.importorskip(module)
    mode = "force" if run else "off"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-D", f"nb_execution_mode={mode}", "-d", str(out / "doctrees")]
    done = subprocess.run(
        [*command, str(DOCS), str(out / "html")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


def cells(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of the cells of a tutorial, without the first line of magic ones."""
    for _, text in CELL.findall(page.read_text("utf-8")):
        magic = re.match(r"%%(\w+).*\n", text)
        if magic is None:
            yield "python", re.sub(r"^%.*\n", "", text, flags=re.MULTILINE)
        else:
            yield KINDS[magic[1]], text[magic.end() :]


def run_page(page: Path, folder: Path) -> int:
    """Run the cells of a page in a folder, and return how many figures they show.

    A cell that fails raises, with its text and its error.
    """
    nbclient = pytest.importorskip("nbclient")
    read = pytest.importorskip("myst_nb.core.read").read_myst_markdown_notebook
    notebook = read(page.read_text("utf-8"))
    resources = {"metadata": {"path": str(folder)}}
    with pytest.MonkeyPatch.context() as patch:
        # Cells of bash call `maury`, which lies beside the interpreter.
        beside = Path(sys.executable).parent
        patch.setenv("PATH", f"{beside}{os.pathsep}{os.environ['PATH']}")
        # None: a busy machine may take its time.
        nbclient.NotebookClient(notebook, timeout=None, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)
