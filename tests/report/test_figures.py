"""Figures: what they show, not how they look."""

import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from maury.errors import LengthMismatch, OutputExists, UnknownName
from maury.evaluation.sensitivity import Sensitivity
from maury.labels.definitions import LABELS, Label, select
from maury.labels.statistics import residual_statistics
from maury.report import figures
from maury.report.figures import audit as audit_module
from maury.report.figures import cartography, checks, planes, training
from maury.report.figures.stars import DENSE
from maury.report.figures.style import OKABE_ITO, SIMULATED, count_text, number_text

TEFF, LOGG, M_H, ALPHA_M = select(["teff", "logg", "m_h", "alpha_m"])


def stars(n: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, prediction and quoted error of `n` made-up stars, each of shape (n, 9)."""
    rng = np.random.default_rng(seed)
    low, high = np.array([label.range for label in LABELS]).T
    truth = low + (high - low) * (0.5 + 0.13 * rng.normal(size=(n, 9)))
    sigma = 0.02 * (high - low)
    return truth, truth + sigma * rng.normal(size=(n, 9)), np.tile(sigma, (n, 1))


def texts(thing) -> list[str]:
    return [t.get_text() for t in thing.findobj(matplotlib.text.Text) if t.get_text()]


def n_marks(thing) -> int:
    return texts(thing).count(SIMULATED)


def offsets(ax) -> np.ndarray:
    """Positions of all points drawn as scatter, shape (n, 2)."""
    parts = [np.asarray(c.get_offsets()) for c in ax.collections]
    return np.concatenate([p.reshape(-1, 2) for p in parts if len(p)])


def draw(figure: Figure) -> None:
    figure.draw_without_rendering()


def test_kiel_axes_run_as_astronomers_draw_them() -> None:
    truth, _, _ = stars(500)
    figure = figures.kiel_figure(truth[:, 0], truth[:, 1], truth[:, 2])
    ax, bar = figure.axes
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    assert left > truth[:, 0].max() > truth[:, 0].min() > right
    assert bottom > truth[:, 1].max() > truth[:, 1].min() > top
    assert "[M/H]" in texts(bar)
    assert "K" in ax.get_xlabel()
    assert "dex" in ax.get_ylabel()
    drawn = offsets(ax)
    assert sorted(drawn[:, 0]) == sorted(truth[:, 0])


def test_kiel_of_few_stars_has_their_errors_as_bars_within_the_axes() -> None:
    teff, logg = np.array([5000.0, 5800.0, 4300.0]), np.array([3.0, 4.4, np.nan])
    errors = (np.array([80.0, 60.0, 90.0]), np.array([0.3, 0.2, 0.2]))
    ax = figures.kiel_figure(teff, logg, np.zeros(3), errors=errors).axes[0]
    (bars,) = ax.containers
    ends = np.concatenate([one for bar in bars[2] for one in bar.get_segments()])
    assert sorted(set(ends[:, 0])) == [4920.0, 5000.0, 5080.0, 5740.0, 5800.0, 5860.0]
    assert ends[:, 1].max() == pytest.approx(4.6)
    low, high = sorted(ax.get_ylim())
    assert low < ends[:, 1].min() < ends[:, 1].max() < high
    many = [np.full(101, 5000.0), np.full(101, 3.0), np.zeros(101)]
    bare = figures.kiel_figure(*many, errors=(np.ones(101), np.ones(101))).axes[0]
    assert not bare.containers


def test_kiel_leaves_out_stars_without_place_and_greys_those_without_colour() -> None:
    truth, _, _ = stars(100)
    truth[:7, 0] = np.nan
    truth[7:10, 1] = np.inf
    truth[10:25, 2] = np.nan
    ax = figures.kiel_figure(truth[:, 0], truth[:, 1], truth[:, 2]).axes[0]
    grey, coloured = (len(c.get_offsets()) for c in ax.collections)
    assert (grey, coloured) == (15, 75)


def test_one_wild_star_does_not_squeeze_the_others() -> None:
    truth, _, _ = stars(3000)
    truth[0, 0] = 1e6
    left, right = figures.kiel_figure(*truth[:, :3].T).axes[0].get_xlim()
    assert left - right < 2 * np.ptp(truth[1:, 0])


@pytest.mark.parametrize("n", [0, 1])
def test_kiel_of_next_to_nothing_is_still_a_figure(n: int) -> None:
    figure = figures.kiel_figure(np.full(n, 5000.0), np.full(n, 3.0), np.zeros(n), simulated=True)
    draw(figure)
    assert n_marks(figure) == 1


def test_kiel_of_many_stars_draws_the_median_of_each_cell() -> None:
    n = DENSE + 1
    truth, _, _ = stars(n)
    wild = np.where(np.arange(n) % 10 == 0, 1e6, 0.25)
    figure = figures.kiel_figure(truth[:, 0], truth[:, 1], wild)
    drawn = np.concatenate(
        [np.asarray(c.get_array()) for c in figure.axes[0].collections if c.get_array() is not None]
    )
    assert drawn.size < 64 * 90
    assert np.median(drawn) == 0.25


@pytest.mark.slow
def test_every_kind_of_figure_bears_the_mark_only_if_simulated() -> None:
    truth, predicted, error = stars(60)
    measured = residual_statistics(truth, predicted, error, labels=LABELS)
    for simulated in (True, False):
        expected = {
            figures.kiel_figure(*truth[:, :3].T, simulated=simulated): 1,
            figures.abundance_figure(*truth[:, 2:4].T, simulated=simulated): 1,
            figures.residual_figure(truth, predicted, LABELS, simulated=simulated): 9,
            figures.demo_banner(predicted, measured, simulated=simulated): 3,
        }
        for figure, count in expected.items():
            assert n_marks(figure) == count * simulated


@pytest.mark.parametrize("with_error", [True, False])
def test_one_to_one_prints_the_measured_bias_and_scatter(with_error: bool) -> None:
    truth, predicted, error = stars(200)
    predicted = predicted + np.array([123.0, *[0.0] * 8])
    columns = truth[:, :1], predicted[:, :1], error[:, :1]
    figure = figures.residual_figure(
        columns[0], columns[1], [TEFF], error=columns[2] if with_error else None
    )
    (measured,) = residual_statistics(*columns, labels=[TEFF])
    title = figure.axes[0].get_title(loc="left")
    assert f"bias {measured.bias:.0f} K" in title
    assert f"{measured.scatter:.0f} K, robust {measured.scatter_robust:.0f} K" in title
    assert "n = 200" in title
    assert (f"{100 * measured.coverage_1sigma:.0f} % within" in title) == with_error
    assert abs(measured.bias - 123) < 30


def test_residual_panel_shows_every_row_once_and_shares_the_axis() -> None:
    truth, predicted, _ = stars(150)
    predicted[:4, 1] += 50.0
    predicted[4:6, 1] -= 50.0
    predicted[6:11, 1] = np.nan
    upper, below = figures.residual_figure(truth[:, 1:2], predicted[:, 1:2], [LOGG]).axes
    assert upper.get_xlim() == below.get_xlim()
    assert len(offsets(upper)) == 145
    drawn = offsets(below)
    assert len(drawn) == 145
    low, high = below.get_ylim()
    assert np.all((drawn[:, 1] > low) & (drawn[:, 1] < high)), "nothing is hidden by the frame"
    top = drawn[drawn[:, 1] > 0.9 * high]
    assert set(truth[:4, 1]) <= set(top[:, 0])


def test_running_median_follows_a_trend_and_error_lines_the_errors() -> None:
    rng = np.random.default_rng(5)
    truth = rng.uniform(0, 5, 4000)
    predicted = truth - 0.2 * (truth - 2.5) + rng.normal(0, 0.1, 4000)
    figure = figures.residual_figure(
        truth[:, None], predicted[:, None], [LOGG], error=np.full((4000, 1), 0.07)
    )
    lines = {
        (line.get_linestyle(), line.get_linewidth()): line for line in figure.axes[1].lines[1:]
    }
    x, y = lines[("-", 1.2)].get_data()
    assert np.allclose(y, -0.2 * (x - 2.5), atol=0.03)
    assert np.allclose(np.abs(lines[("--", 0.8)].get_ydata()), 0.07)


@pytest.mark.slow
def test_residuals_all_missing_or_all_zero_are_still_a_figure() -> None:
    nothing = np.full((4, 9), np.nan)
    draw(figures.residual_figure(nothing, nothing, LABELS, error=nothing, simulated=True))
    truth, _, _ = stars(30)
    draw(figures.residual_figure(truth, truth, LABELS))


def test_residual_figure_wants_one_column_per_label() -> None:
    truth, predicted, error = stars(10)
    with pytest.raises(LengthMismatch, match="3 labels"):
        figures.residual_figure(truth, predicted, LABELS[:3])
    with pytest.raises(LengthMismatch):
        figures.residual_figure(truth, predicted, LABELS, error=error[:, :2])


def test_one_to_one_needs_axes_of_a_grid() -> None:
    ax = figures.new_figure().add_axes((0, 0, 1, 1))
    with pytest.raises(ValueError, match="subplot grid"):
        figures.one_to_one(ax, [1.0], [1.0], label=TEFF)


def test_banner_shows_the_coverage_of_every_label() -> None:
    truth, predicted, error = stars(100)
    error = error * 0.3
    measured = residual_statistics(truth, predicted, error, labels=LABELS)
    figure = figures.demo_banner(predicted, measured)
    right = next(ax for ax in figure.axes if "fraction" in ax.get_xlabel())
    within = {c.get_label(): c for c in right.containers}
    x = within["within 1$\\sigma$"].lines[0].get_xdata()
    assert np.array_equal(x, [s.coverage_1sigma for s in measured])
    assert np.mean(x) < 0.4
    labels = [t.get_text() for t in right.get_yticklabels()]
    assert len(labels) == 9
    assert labels[2] == "[M/H]"
    assert r"\alpha" in labels[4]


def test_banner_without_errors_or_with_missing_labels() -> None:
    truth, predicted, _ = stars(50)
    predicted[::3] = np.nan
    measured = residual_statistics(truth, predicted, labels=LABELS)
    draw(figures.demo_banner(predicted, measured, simulated=True))
    with pytest.raises(UnknownName, match="alpha_m"):
        figures.demo_banner(predicted[:, :3], measured[:3], labels=LABELS[:3])


def test_symbols_come_from_the_definitions() -> None:
    assert figures.axis_text(M_H) == "[M/H]"
    assert figures.axis_text(TEFF).endswith(" [K]")
    own = Label(name="ca_fe", symbol="[Ca/Fe]", unit="dex", description="Ca", range=(-0.4, 0.6))
    figure = figures.residual_figure(np.zeros((3, 1)), np.zeros((3, 1)), [own])
    assert figure.axes[0].get_ylabel() == "predicted [Ca/Fe]"


def test_numbers_have_the_digits_their_label_deserves() -> None:
    assert number_text(-94.4, TEFF) == "\N{MINUS SIGN}94"
    assert number_text(0.0494, ALPHA_M) == "0.049"
    assert number_text(-0.0001, M_H) == "0.000"
    assert number_text(float("nan"), M_H) == "unknown"


def test_pyplot_and_the_global_settings_stay_untouched() -> None:
    before = dict(matplotlib.rcParams)
    had_pyplot = "matplotlib.pyplot" in sys.modules
    truth, predicted, _ = stars(40)
    figures.residual_figure(truth, predicted, LABELS)
    figures.kiel_figure(*truth[:, :3].T)
    assert dict(matplotlib.rcParams) == before
    assert had_pyplot or "matplotlib.pyplot" not in sys.modules


def test_inputs_are_not_written_to() -> None:
    arrays = stars(40)
    for array in arrays:
        array.flags.writeable = False
    figures.residual_figure(arrays[0], arrays[1], LABELS, error=arrays[2])
    figures.kiel_figure(*arrays[0][:, :3].T)


@pytest.mark.slow
def test_saved_files_are_a_png_of_column_width_and_a_pdf(tmp_path) -> None:
    truth, _, _ = stars(40)
    figure = figures.kiel_figure(*truth[:, :3].T)
    png, pdf = figures.save(figure, tmp_path / "new" / "kiel.png")
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(data[16:20], "big") == pytest.approx(
        figures.COLUMN_MM / 25.4 * 300, abs=1
    )
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert b"%%EOF" in pdf.read_bytes()[-20:]
    assert sorted(p.name for p in png.parent.iterdir()) == ["kiel.pdf", "kiel.png"]


def test_saving_never_overwrites_silently(tmp_path) -> None:
    figure = figures.new_figure()
    (tmp_path / "a.v2.pdf").write_text("precious")
    with pytest.raises(OutputExists, match=r"a\.v2\.pdf"):
        figures.save(figure, tmp_path / "a.v2.pdf")
    assert not (tmp_path / "a.v2.png").exists()
    png, pdf = figures.save(figure, tmp_path / "a.v2.png", overwrite=True)
    assert pdf.read_bytes().startswith(b"%PDF")
    assert png.read_bytes() == figures.save(figure, png, overwrite=True)[0].read_bytes()


def test_many_cases_never_look_alike():
    sizes = {f"method {k}": np.array([1.0 + k, 2.0]) for k in range(14)}
    errors = {name: np.zeros(2) for name in sizes}
    figure = figures.relative_figure(
        sizes, errors, LABELS[:2], basis=np.ones(2), text="scatter / scatter"
    )
    (ax,) = figure.axes
    handles, names = ax.get_legend_handles_labels()
    assert names == list(sizes)
    looks = {(one.lines[0].get_marker(), one.lines[0].get_color()) for one in handles}
    assert len(looks) == 14
    assert ax.get_xscale() == "log"


@pytest.mark.slow
def test_checks_of_a_fit_bear_the_mark_only_if_simulated() -> None:
    rng = np.random.default_rng(2)
    z, names = rng.normal(size=(300, 4)), [TEFF, LOGG, M_H, ALPHA_M]
    snr, logg, m_h = rng.uniform(10, 90, 300), rng.uniform(0, 5, 300), rng.normal(-0.3, 0.5, 300)
    clusters = np.repeat(["M 67", "NGC 188", "one star"], [149, 150, 1])
    for simulated in (True, False):
        expected = {
            checks.coverage_figure(z, names, simulated=simulated): 1,
            checks.z_figure(z, names, simulated=simulated): 4,
            checks.regime_figure(z, checks.regimes(snr, logg, m_h), names, simulated=simulated): 1,
            checks.trends_figure(
                z, np.column_stack([snr, logg]), labels=names, names=["S/N", "g"],
                simulated=simulated,
            ): 1,
            checks.clusters_figure(
                clusters, z, np.ones_like(z), labels=names, simulated=simulated
            ): 4,
        }  # fmt: skip
        for figure, count in expected.items():
            assert n_marks(figure) == count * simulated


def test_panels_without_a_label_are_empty() -> None:
    z = np.random.default_rng(2).normal(size=(50, 4))
    figure = checks.z_figure(z, [TEFF, LOGG, M_H, ALPHA_M])
    assert [ax.axison for ax in figure.axes] == [True] * 4 + [False] * 2


def test_a_cluster_of_one_star_has_no_mean() -> None:
    values = np.array([[5000.0], [5100.0], [5200.0], [np.nan]])
    figure = checks.clusters_figure(
        ["a", "a", "b", "b"], values, np.full((4, 1), 50.0), labels=[TEFF]
    )
    (ax,) = figure.axes
    means = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
    assert [x.tolist() for x in means] == [[5050.0]]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]


def test_losses_and_distributions_say_what_they_lack() -> None:
    history = {
        "member 000": np.array([[1.0, np.nan], [0.5, np.nan]]),
        "member 001": np.ones((3, 2)),
    }
    kept = {"member 000": True, "member 001": False}
    samples = {"training": np.ones((9, 2)), "observed": np.column_stack([[2.0] * 4, [np.nan] * 4])}
    for simulated in (True, False):
        lost = training.losses_figure(history, kept=kept, simulated=simulated)
        spread = training.distributions_figure(samples, [TEFF, LOGG], simulated=simulated)
        assert n_marks(lost) == simulated
        assert n_marks(spread) == 2 * simulated
    (ax,) = lost.axes
    assert ax.get_legend_handles_labels()[1] == ["member 000", "member 001, not kept"]
    assert [ax.get_visible() for ax in spread.axes] == [True, True, False]
    first, second = (ax.get_legend_handles_labels()[1] for ax in spread.axes[:2])
    assert first == ["training (9)", "observed (4)"]
    assert second == ["training (9)"]


@pytest.mark.slow
@pytest.mark.parametrize("simulated", [True, False])
def test_kiel_diagrams_side_by_side_share_their_colours(simulated) -> None:
    n = DENSE + 1
    truth, _, _ = stars(n)
    few = planes.Panel("few", *truth[:40, :2].T, np.full(40, 0.25))
    many = planes.Panel("many", *truth[:, :2].T, np.full(n, 0.25))
    figure = planes.kiel_grid([few, many], across=2, label=M_H, simulated=simulated)
    assert n_marks(figure) == 2 * simulated
    shown = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in shown] == ["few; n = 40", f"many; n = {n}"]
    drawn = [one for ax in shown for one in ax.collections if one.get_array() is not None]
    assert {one.get_clim() for one in drawn} == {M_H.range}, "of one colour alone, its whole range"
    assert [len(one.get_array()) == 40 for one in drawn] == [True, False]
    assert len(drawn[1].get_array()) < n


def rendered(figure: Figure, wanted) -> list:
    """Boxes of some texts on paper, in points."""
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.findobj(matplotlib.text.Text) if wanted(t)]
    return [box.transformed(figure.dpi_scale_trans.inverted()) for box in boxes]


@pytest.mark.slow
def test_names_of_lines_do_not_touch_on_paper() -> None:
    wave = np.linspace(8420.0, 8780.0, 120)
    ones = np.ones((9, wave.size))
    star = Sensitivity(
        "Sun-like dwarf",
        9,
        5772.0,
        4.4,
        0.0,
        50.0,
        LABELS,
        wave,
        ones,
        ones,
        *([np.ones(9)] * 3),
        "air",
    )
    figure = figures.sensitivity_figure(star)
    elements = {"Mg", "Al", "Si", "Ca II", "Ti", "Fe", "Ni"}
    boxes = rendered(figure, lambda text: text.get_text() in elements)
    # Every element that is marked for a label is named there.
    assert len(boxes) >= 9 * 2
    for k, one in enumerate(boxes):
        for other in boxes[:k]:
            across = min(one.x1, other.x1) - max(one.x0, other.x0)
            up = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert across <= 0 or up <= 0


def test_lines_are_marked_where_they_are_in_the_medium_of_the_spectra() -> None:
    wave = np.linspace(8420.0, 8780.0, 120)
    ones = np.ones((9, wave.size))
    drawn = {}
    for medium in ("air", "vacuum"):
        star = Sensitivity(
            "dwarf", 9, 5772.0, 4.4, 0.0, 50.0, LABELS, wave, ones, ones, *[np.ones(9)] * 3, medium
        )
        figure = figures.sensitivity_figure(star)
        ax = next(ax for ax in figure.axes if "log" in ax.get_ylabel())
        upright = (line.get_xdata() for line in ax.lines)
        drawn[medium] = sorted(x[0] for x in upright if len(x) == 2 and x[0] == x[1])
        assert medium in figure.axes[-1].get_xlabel()
    # Ca II in vacuum: NIST Atomic Spectra Database.
    assert drawn["air"] == pytest.approx([8498.02, 8542.09, 8662.14], abs=0.01)
    assert drawn["vacuum"] == pytest.approx([8500.35, 8544.44, 8664.52], abs=0.02)


def test_trends_write_what_is_sure_and_the_values_that_they_run_along() -> None:
    rng = np.random.default_rng(4)
    true = np.column_stack([rng.uniform(4000, 6000, 1600), rng.standard_normal(1600)])
    residual = np.column_stack([rng.standard_normal(1600) + (true[:, 0] - 5000) / 1000, true[:, 1]])
    residual[:, 1] = rng.standard_normal(1600)
    figure = figures.trends_figure(residual, true, labels=[TEFF, LOGG], names=["Teff", "log g"])
    ax = figure.axes[0]
    written = [t for t in ax.texts if t.get_text()]
    assert [round(t.get_position()[1]) for t in written] == [0], "one strip alone has a trend"
    assert abs(float(written[0].get_text().replace("\N{MINUS SIGN}", "-"))) > 0.6
    name, low, high = ax.get_xticklabels()[0].get_text().split("\n")
    assert name == "Teff"
    assert float(low) == pytest.approx(4125, abs=30)
    assert float(high) == pytest.approx(5875, abs=30)
    assert "0.18" in ax.get_title(loc="left"), "twice the root of pi / 2 over 200 stars a bin"


def test_stars_beyond_the_frame_are_counted_apart() -> None:
    x, y = [0.1, 0.9, 5.0, np.nan], [0.1, 0.2, 0.3, 0.4]
    assert count_text(x, y, ((1.0, 0.0), (0.0, 1.0))) == "n = 2, 1 beyond"
    assert count_text(x[:2], y[:2], ((0.0, 1.0), (0.0, 1.0))) == "n = 2"


# How who lacks the red or the green cones sees linear light (Machado et al. 2009, IEEE TVCG 15,
# 1291, severity 1).
BLIND = {
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
              [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip


def lab(colours, blind) -> np.ndarray:
    """CIELAB (D65) of colours as the colour-blind see them, shape (n, 3)."""
    rgb = np.array([matplotlib.colors.to_rgb(one) for one in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(BLIND[blind]).T, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = seen @ np.array(to_xyz).T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize("blind", list(BLIND))
@pytest.mark.parametrize(
    "colours",
    [
        OKABE_ITO,
        [colour for _, colour in audit_module._MARKS.values()],
        [colour for colour, _ in cartography._GROUP_LOOK.values()],
        list(training.SAMPLE_COLOURS.values()),
    ],
)
def test_colours_of_one_figure_differ_for_the_colour_blind(colours, blind) -> None:
    seen = lab(colours, blind)
    apart = np.linalg.norm(seen[:, None] - seen, axis=2)[np.triu_indices(len(seen), 1)]
    # A difference of 2.3 is just noticed side by side (Mahy et al. 1994); marks lie apart.
    assert apart.min() > 10


@pytest.mark.slow
def test_axes_bear_the_names_of_the_columns_that_they_show() -> None:
    from astropy.table import Table

    teff, logg = np.linspace(4000, 6500, 60), np.linspace(1, 4.5, 60)
    rng = np.random.default_rng(2)
    table = Table({"fe_h": rng.normal(0, 0.2, 60), "mg_fe": rng.normal(0, 0.1, 60)})
    table["Zr II"] = rng.normal(0, 0.1, 60)
    iron, magnesium, own = table["fe_h"], table["mg_fe"], table["Zr II"]
    panel = figures.Panel("", teff, logg, iron)
    plane = figures.Panel("", iron, magnesium)
    for figure, wanted in [
        (figures.kiel_figure(teff, logg, iron), {"[Fe/H]"}),
        (figures.kiel_figure(teff, logg, own), {"Zr II"}),
        (figures.kiel_figure(teff, logg, np.asarray(iron), label="fe_h"), {"[Fe/H]"}),
        (figures.kiel_grid([panel], across=1), {"[Fe/H]"}),
        (figures.abundance_figure(iron, magnesium), {"[Fe/H]", "[Mg/Fe]"}),
        (figures.plane_grid([plane], across=1), {"[Fe/H]", "[Mg/Fe]"}),
    ]:
        written = " ".join(texts(figure))
        assert all(word in written for word in wanted)
        assert "[M/H]" not in written
        draw(figure)
    # Arrays have no name: the default, as documented, and what is given counts above a name.
    assert "[M/H]" in " ".join(texts(figures.kiel_figure(teff, logg, np.asarray(iron))))
    given = figures.kiel_figure(teff, logg, iron, label="m_h")
    assert "[M/H]" in " ".join(texts(given))
    with pytest.raises(UnknownName, match="did you mean 'fe_h'"):
        figures.kiel_figure(teff, logg, iron, label="feh")


def test_regimes_are_called_by_the_metallicity_that_there_is() -> None:
    parts = checks.regimes([50.0], [2.0], [-0.7], symbol="[Fe/H]")
    assert [one.name for one in parts if "H]" in one.name and one.rows[0]] == [
        "[Fe/H] < \N{MINUS SIGN}0.5"
    ]


def test_ticks_are_numbers_that_there_are() -> None:
    losses = np.column_stack([np.linspace(3, 1, 20), np.linspace(3, 1, 20)])
    figure = figures.losses_figure({"a": losses}, kept={"a": True})
    draw(figure)
    assert np.array_equal(
        figure.axes[0].get_xticks() % 1, np.zeros(figure.axes[0].get_xticks().size)
    )
    rng = np.random.default_rng(5)
    x, y = rng.normal(0, 0.1, (2, 4000))
    figure = figures.plane_grid([figures.Panel("", x, y)], across=1)
    draw(figure)
    bar = next(ax for ax in figure.axes if ax.get_ylabel() == "stars per cell")
    low, high = bar.get_ylim()
    shown = [value for value in bar.get_yticks() if low <= value <= high]
    assert len(shown) >= 2, "one number tells no scale"
    assert {5.0, 10.0} & set(shown)
