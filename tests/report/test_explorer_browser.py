"""The explorer's page, in real headless Chromium."""

import json
import os
import shutil
import statistics

import numpy as np
import pytest
from astropy.table import Table

from builders.catalogues import catalogue_rows, write_catalogue
from maury.labels.flags import Flag
from maury.prediction.catalogue import Catalogue
from maury.prediction.streaming import predict
from maury.report.cartography.places import galactic
from maury.report.explorer import Explorer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

N, SURVEY = 4000, 420_165
LEFT, TOP, RIGHT, BOTTOM = 52, 10, 12, 40
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    """Chromium as MAURY_CHROMIUM names it, as the system has it, or as playwright installed it."""
    named = os.environ.get("MAURY_CHROMIUM")
    path = named or next(filter(None, map(shutil.which, NAMES)), None)
    # Chromium refuses to run as root inside its sandbox.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        try:
            one = driver.chromium.launch(executable_path=path, args=arguments)
        except playwright.Error as error:
            if named:
                raise
            pytest.skip(f"no Chromium (install it, or name it in MAURY_CHROMIUM): {error.message}")
        yield one
        one.close()


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Catalogue:
    return write_catalogue(tmp_path_factory.mktemp("catalogue") / "stars.parquet", N)


@pytest.fixture(scope="module")
def explorer(catalogue):
    with Explorer(catalogue, name="stars.parquet") as one:
        yield one


class Sight:
    """One open page, and whatever it complained of."""

    def __init__(self, browser, explorer, *, expect=(), **settings) -> None:
        settings = {"viewport": {"width": 1400, "height": 900}} | settings
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.complaints = []
        self.asked = []
        self.expect = expect
        note = self.complaints.append
        self.page.on("console", lambda m: note(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: note(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = explorer.address
        self.page.goto(explorer.link)
        self.page.wait_for_selector("body[data-ready]", timeout=60_000)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.context.close()
        if kind is None:
            left = [c for c in self.complaints if not any(word in c for word in self.expect)]
            assert left == []
            assert all(url.startswith((self.address, "blob:")) for url in self.asked), self.asked

    def panel(self, name):
        return self.page.locator(f"#panel-{name} .overlay")

    def at(self, name, x, y):
        """Page pixel of a place in a panel, as shares of its width and height."""
        box = self.panel(name).bounding_box()
        inner = box["width"] - LEFT - RIGHT, box["height"] - TOP - BOTTOM
        return box["x"] + LEFT + x * inner[0], box["y"] + TOP + y * inner[1]

    def drag(self, name, start, end, *, steps=6):
        self.page.mouse.move(*self.at(name, *start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(name, *end), steps=steps)
        self.page.mouse.up()
        self.settle()

    def settle(self):
        self.page.wait_for_function("() => document.body.getAttribute('aria-busy') !== 'true'")
        self.page.evaluate(
            "() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        )

    def count(self) -> str:
        return self.page.inner_text("#count")

    def selected(self) -> int:
        return int(self.count().split()[0].replace(",", ""))

    def save(self, kind, path) -> Catalogue:
        self.page.select_option("#format", kind)
        with self.page.expect_download() as waiting:
            self.page.click("#save")
        waiting.value.save_as(path / waiting.value.suggested_filename)
        return Catalogue.read(path / waiting.value.suggested_filename)


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))


def test_the_private_file_opens_the_page(browser, explorer) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(explorer.opening_file.as_uri())
    page.wait_for_selector("body[data-ready]", timeout=60_000)
    assert page.url == explorer.address
    context.close()


def test_the_header_calls_simulated_data_simulated(browser, explorer) -> None:
    with Sight(browser, explorer) as sight:
        assert sight.page.inner_text("#mark") == "SIMULATED spectra"
        assert sight.page.title().startswith("SIMULATED stars.parquet")
        assert sight.count() == "4,000 rows"
        assert sight.page.locator(".panel").count() == 4
        assert explorer.key not in sight.page.url


@pytest.mark.parametrize("name", ["kiel", "plane", "sky", "map"])
def test_a_box_in_one_panel_selects_in_all(browser, explorer, catalogue, tmp_path, name) -> None:
    with Sight(browser, explorer) as sight:
        before = sight.page.evaluate(PICTURES)
        sight.drag(name, (0.3, 0.3), (0.7, 0.72))
        chosen = sight.selected()
        assert 0 < chosen < N
        after = sight.page.evaluate(PICTURES)
        assert all(old != new for old, new in zip(before, after, strict=True))
        saved = sight.save("fits", tmp_path)
        assert len(saved) == chosen
        assert set(saved.table["id"]) <= set(catalogue.table["id"])
        sight.page.click("#clear")
        sight.settle()
        assert sight.count() == "4,000 rows"
        assert sight.page.evaluate(PICTURES) == before


COUNT = "document.querySelector('#count').textContent"
PICTURES = "() => [...document.querySelectorAll('.density')].map(c => c.toDataURL())"


def test_the_box_holds_the_stars_within_its_corners(browser, explorer, catalogue, tmp_path) -> None:
    with Sight(browser, explorer) as sight:
        box = sight.panel("kiel").bounding_box()
        sight.drag("kiel", (0.25, 0.2), (0.6, 0.8))
        saved = sight.save("parquet", tmp_path)
    about = {c["name"]: c for c in json.loads(explorer.about)["columns"]}
    inner = box["width"] - LEFT - RIGHT, box["height"] - TOP - BOTTOM
    corner = {}
    for name, shares, size in (("teff", (0.25, 0.6), inner[0]), ("logg", (0.2, 0.8), inner[1])):
        low, high = about[name]["low"], about[name]["high"]
        pad = 0.05 * (high - low)
        ends = [high + pad - share * (high - low + 2 * pad) for share in shares]
        if name == "logg":
            ends = [low - pad + share * (high - low + 2 * pad) for share in shares]
        # Half a pixel is what the browser may round a pointer's place by.
        corner[name] = min(ends), max(ends), 1.01 * (high - low + 2 * pad) / size
    teff, logg = np.asarray(catalogue.table["teff"]), np.asarray(catalogue.table["logg"])

    def inside(grow):
        ranges = [(v, *corner[n]) for n, v in (("teff", teff), ("logg", logg))]
        sure = [(v > a - grow * d) & (v < b + grow * d) for v, a, b, d in ranges]
        return set(catalogue.table["id"][sure[0] & sure[1]])

    assert inside(-1) <= set(saved.table["id"]) <= inside(1)
    assert len(inside(-1)) > 100


def test_filters_and_boxes_are_joined_and_saved_exactly(
    browser, explorer, catalogue, tmp_path
) -> None:
    table = catalogue.table
    with Sight(browser, explorer) as sight:
        sight.page.locator("#filter-snr").fill("30")
        sight.page.select_option("#flag-TRAINING_STAR", "without")
        sight.settle()
        limit = json.loads(explorer.about)["columns"]
        limit = next(c["high"] for c in limit if c["name"] == "snr") * 0.3
        passed = (np.asarray(table["snr"]) >= limit) & (
            (np.asarray(table["flags"]) & Flag.TRAINING_STAR.value) == 0
        )
        assert sight.selected() == passed.sum()
        for kind in ("fits", "votable", "parquet"):
            saved = sight.save(kind, tmp_path)
            assert saved.table["id"].tolist() == table["id"][passed].tolist()
            assert saved.table.colnames == table.colnames
            for name in table.colnames:
                np.testing.assert_array_equal(saved.table[name], table[name][passed])
            assert saved.simulated
        sight.page.select_option("#flag-TRAINING_STAR", "only")
        sight.page.locator("summary", has_text="Errors at most").click()
        sight.page.locator("#filter-teff_error").fill("50")
        high = next(
            c["high"] for c in json.loads(explorer.about)["columns"] if c["name"] == "teff_error"
        )
        only = (np.asarray(table["flags"]) & Flag.TRAINING_STAR.value) != 0
        only &= (np.asarray(table["snr"]) >= limit) & (np.asarray(table["teff_error"]) <= high / 4)
        sight.page.wait_for_function(f"() => {COUNT}.startsWith('{only.sum()} of')")
        sight.page.click("#reset-filters")
        sight.settle()
        assert sight.count() == "4,000 rows"


def test_a_lasso_selects_and_its_outline_does_not_matter_outside(browser, explorer) -> None:
    with Sight(browser, explorer) as sight:
        sight.page.check("input[value=lasso]")
        corners = [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8), (0.2, 0.2)]
        sight.page.mouse.move(*sight.at("kiel", *corners[0]))
        sight.page.mouse.down()
        for corner in corners[1:]:
            sight.page.mouse.move(*sight.at("kiel", *corner), steps=5)
        sight.page.mouse.up()
        sight.settle()
        by_lasso = sight.selected()
        sight.page.check("input[value=box]")
        sight.drag("kiel", (0.2, 0.2), (0.8, 0.8))
        assert abs(sight.selected() - by_lasso) <= 0.01 * N
        assert by_lasso > 0.1 * N


def test_axes_of_the_plane_can_be_chosen(browser, explorer) -> None:
    with Sight(browser, explorer) as sight:
        sight.drag("plane", (0.2, 0.2), (0.5, 0.5))
        assert sight.selected() < N
        before = sight.page.evaluate(PICTURES)[1]
        sight.page.get_by_label("x axis").select_option("mg_fe")
        sight.page.wait_for_function(
            "() => document.querySelector('#count').textContent[1] === ','"
        )
        sight.settle()
        assert sight.count() == "4,000 rows"
        assert sight.page.evaluate(PICTURES)[1] != before
        sight.page.select_option("#colour", "m_h")
        sight.settle()
        assert number(sight.page.inner_text("#low")) < number(
            sight.page.inner_text("#high").split()[0]
        )


def test_everything_works_by_keyboard(browser, explorer, catalogue) -> None:
    with Sight(browser, explorer) as sight:
        sight.panel("kiel").focus()
        press = sight.page.keyboard.press
        for key in (*["ArrowLeft"] * 4, *["ArrowUp"] * 4, " ", *["ArrowRight"] * 8):
            press(key)
        for _ in range(8):
            press("ArrowDown")
        press(" ")
        sight.settle()
        assert 0 < sight.selected() < N
        press("Enter")
        sight.page.wait_for_selector("#star:not([hidden])")
        assert sight.page.inner_text("#star-title") in set(catalogue.table["id"])
        press("Escape")
        sight.page.wait_for_selector("#star", state="hidden")
        assert sight.panel("kiel").evaluate("e => e === document.activeElement")
        for key in ("+", "-", "0", "Escape"):
            press(key)
        sight.settle()
        assert sight.count() == "4,000 rows"


def test_controls_have_names(browser, explorer) -> None:
    with Sight(browser, explorer) as sight:
        nameless = sight.page.evaluate(
            """() => [...document.querySelectorAll('button, select, input, [role], summary')]
            .filter(e => e.checkVisibility())
            .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
              || e.textContent.trim() || (e.labels && e.labels.length)))
            .map(e => e.outerHTML)"""
        )
        assert nameless == []


def test_the_hammer_projection_is_equal_in_area_and_can_be_undone(browser, explorer) -> None:
    code = """async () => {
      const { hammer, unproject } = await import('/static/geometry.js');
      const out = [];
      for (let l = 1; l < 360; l += 13) for (let b = -88; b < 90; b += 11) {
        const [x, y] = hammer(l, b), back = unproject(x, y), h = 1e-4;
        const [x1, y1] = hammer(l + h, b), [x2, y2] = hammer(l, b + h);
        const area = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / (h * Math.PI / 180) ** 2;
        out.push([l, b, back[0], back[1], -area / Math.cos(b * Math.PI / 180)]);
      }
      return out;
    }"""
    with Sight(browser, explorer) as sight:
        lon, lat, l_back, b_back, area = np.array(sight.page.evaluate(code)).T
    np.testing.assert_allclose(l_back, lon, atol=1e-6)
    np.testing.assert_allclose(b_back, lat, atol=1e-6)
    np.testing.assert_allclose(area, 1.0, atol=2e-3)


def test_a_click_opens_the_star_with_everything(
    browser, tmp_path_factory, tiny_survey, tiny_model
) -> None:
    path = tmp_path_factory.mktemp("learnt") / "labels.fits"
    predict(tiny_model, tiny_survey, path)
    with (
        Explorer(path, survey=tiny_survey, model=tiny_model) as explorer,
        Sight(browser, explorer) as sight,
    ):
        table = explorer.content.catalogue.table()
        sight.page.fill("#find-id", str(table["id"][3]))
        sight.page.press("#find-id", "Enter")
        sight.page.wait_for_selector(".swatch.optimal", timeout=60_000)
        assert sight.page.inner_text("#star-title") == table["id"][3]
        star = sight.page.inner_text("#star")
        for flag in Flag:
            assert (str(flag.name) in star) == bool(int(table["flags"][3]) & flag.value)
        assert "SIMULATED spectrum" in star
        assert "best fit" in star
        assert "Nearest training stars" in star
        row = sight.page.locator("#star tr", has_text="Teff").first.inner_text().split("\t")
        assert abs(number(row[1]) - table["teff"][3]) <= 1
        assert sight.page.locator(".spectrum").evaluate(
            "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)"
        )
        sight.page.locator("#star .link").first.click()
        sight.page.wait_for_function(
            f"() => document.querySelector('#star-title').textContent !== {str(table['id'][3])!r}"
        )
        sight.page.get_by_label("Close").click()
        sight.page.wait_for_selector("#star", state="hidden")
        sight.page.mouse.click(*sight.at("kiel", 0.5, 0.5))


def test_what_is_not_there_is_said(browser, explorer) -> None:
    with Sight(browser, explorer, expect=("404",)) as sight:
        sight.page.fill("#find-id", "<b>nobody</b>")
        sight.page.press("#find-id", "Enter")
        sight.page.wait_for_selector("#message:not([hidden])")
        assert sight.page.inner_text("#message") == "no star or spectrum is called '<b>nobody</b>'"


@pytest.mark.parametrize("case", ["empty", "nan", "few"])
def test_poor_catalogues_are_shown_without_an_error(browser, tmp_path, case) -> None:
    rows = catalogue_rows(0 if case == "empty" else 9)
    if case == "nan":
        for values in rows.values():
            if values.dtype.kind == "f":
                values[:] = np.nan
    if case == "few":
        rows = {name: rows[name] for name in ("id", "snr", "teff", "teff_error")}
    with (
        Explorer(write_catalogue(tmp_path / "poor.fits", rows=rows)) as explorer,
        Sight(browser, explorer) as sight,
    ):
        assert sight.count() == f"{len(rows['id'])} rows"
        for panel in sight.page.locator(".overlay").all():
            box = panel.bounding_box()
            sight.page.mouse.move(box["x"] + 80, box["y"] + 40)
            sight.page.mouse.down()
            sight.page.mouse.move(box["x"] + 200, box["y"] + 150, steps=3)
            sight.page.mouse.up()
            panel.focus()
            sight.page.keyboard.press("Enter")
        sight.settle()


def test_a_phone_shows_all_panels_without_scrolling_sideways(browser, explorer) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
    with Sight(browser, explorer, has_touch=True, is_mobile=True, **phone) as sight:
        width = sight.page.evaluate("() => document.documentElement.scrollWidth")
        assert width <= 390
        assert sight.page.locator(".panel").count() == 4
        small = sight.page.evaluate(
            """() => [...document.querySelectorAll('button, select')]
            .filter(e => e.checkVisibility()).filter(e => e.offsetHeight < 40).map(e => e.id)"""
        )
        assert small == []
        assert sight.page.is_checked("input[value=look]")
        x, y = sight.at("kiel", 0.5, 0.5)
        sight.page.touchscreen.tap(x, y)
        sight.page.wait_for_selector("#star:not([hidden])")
        assert sight.page.locator("#star").bounding_box()["width"] == 390


@pytest.fixture(scope="module")
def large():
    """As many stars as RAVE has, in two clumps."""
    rng = np.random.default_rng(8)
    giant = rng.uniform(size=SURVEY) < 0.5
    table = Table()
    table["id"] = np.char.add("star ", np.arange(SURVEY).astype("U6"))
    table["teff"] = np.where(giant, 4700, 5900) + rng.normal(0, 250, SURVEY)
    table["logg"] = np.where(giant, 2.4, 4.3) + rng.normal(0, 0.25, SURVEY)
    table["m_h"] = rng.normal(-0.3, 0.3, SURVEY)
    table["alpha_m"] = 0.1 - 0.15 * table["m_h"] + rng.normal(0, 0.05, SURVEY)
    for name, error in (("teff", 60.0), ("logg", 0.1), ("m_h", 0.05), ("alpha_m", 0.03)):
        table[f"{name}_error"] = error * rng.lognormal(0, 0.3, SURVEY)
    table["snr"] = rng.lognormal(3.9, 0.4, SURVEY)
    table["flags"] = (rng.integers(0, 20, SURVEY) == 0).astype(np.int32) * Flag.EMISSION.value
    table["ra"] = rng.uniform(0, 360, SURVEY)
    table["dec"] = np.degrees(np.arcsin(rng.uniform(-1, 0.1, SURVEY)))
    table["parallax"] = rng.lognormal(0.3, 0.6, SURVEY)
    with Explorer(Catalogue(table, {"simulated": True}), name="large") as explorer:
        yield explorer


@pytest.mark.slow
def test_420_165_stars_are_fluid(browser, large) -> None:
    first = []
    for _ in range(3):
        with Sight(browser, large) as sight:
            mark = "performance.getEntriesByName('maury-first-view')[0].startTime"
            first.append(sight.page.evaluate(mark))
    # Far above what idle cores take (docs/guides/explore.md): these guard against hanging.
    assert min(first) <= 15_000
    with Sight(browser, large) as sight:
        assert sight.count() == "420,165 rows"
        sight.page.mouse.move(*sight.at("kiel", 0.3, 0.3))
        sight.page.mouse.down()
        for step in range(20):
            sight.page.mouse.move(*sight.at("kiel", 0.4 + 0.015 * step, 0.4 + 0.015 * step))
            sight.settle()
        sight.page.mouse.up()
        took = sight.page.evaluate(
            "performance.getEntriesByName('maury-update').map(e => e.duration)"
        )
        assert len(took) >= 15
        assert statistics.median(took) <= 1500
        assert 0 < sight.selected() < SURVEY


def test_the_sky_is_where_it_should_be(browser, explorer, catalogue) -> None:
    longitude, latitude = galactic(catalogue.table["ra"], catalogue.table["dec"])
    with Sight(browser, explorer) as sight:
        sight.drag("sky", (0.0, 0.0), (1.0, 0.5))
        north = sight.selected()
    assert abs(north - np.sum(np.asarray(latitude) > 0)) <= 0.01 * N
    assert longitude.size == N
