"""Every tutorial runs from its first cell to its last, and shows its figures."""

import os
import re
from pathlib import Path

import pytest

from builders.docs_site import DOCS, build_site, cells, run_page

PAGES = [page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.md")]
TUTORIALS = {page.as_posix() for page in PAGES if any(True for _ in cells(DOCS / f"{page}.md"))}
LEAST_FIGURES = {
    "start/ten_minutes": 3,
    "start/own_survey": 3,
    "start/gaia_rvs": 3,
    "start/measured": 4,
    "start/cannon_payne": 4,
    "start/ten_million": 1,
    "start/extend": 2,
    "guides/figures": 18,
}


QUICK = (
    "start/ten_minutes",
    "start/ten_million",
    "start/own_survey",
    "start/gaia_rvs",
    "start/extend",
    "start/measured",
    "start/cannon_payne",
)
"""Tutorials that run with the long tests: 52, 46, 41, 37, 16, 53 and 43 s of processor time,
measured. Only the page of figures, which the tests of figures cover, is left to the whole site."""
ASKED = "MAURY_TUTORIALS"
"""Variable that asks for the whole site with all of them, as it is published."""


def test_every_tutorial_is_known() -> None:
    assert set(LEAST_FIGURES) == TUTORIALS


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if not os.environ.get(ASKED):
        pytest.skip(f"tutorials run for many minutes: set {ASKED}=1 to run them")
    return build_site(tmp_path_factory.mktemp("site"), run=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_tutorial_runs_from_its_first_cell_to_its_last(name, tmp_path) -> None:
    assert run_page(DOCS / f"{name}.md", tmp_path) >= LEAST_FIGURES[name]


@pytest.mark.slow
def test_tutorials_run_and_show_figures(site) -> None:
    for name, least in LEAST_FIGURES.items():
        page = (site / f"{name}.html").read_text("utf-8")
        images = re.findall(r'<img[^>]*src="([^"]*_images/[0-9a-f]+\.png)"', page)
        assert len(set(images)) >= least, name
        assert all((site / name).parent.joinpath(image).stat().st_size > 5000 for image in images)
        assert "Traceback" not in page, name
        # Colours of a terminal are letters in a page.
        assert "\x1b[" not in page, name
