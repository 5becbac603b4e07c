"""Grids: interpolation, derivatives, compression, and their files."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline, RegularGridInterpolator

from builders.method_samples import inputs_of
from builders.training_survey import WAVE as SURVEY_WAVE
from builders.training_survey import write_survey
from maury.errors import ConfigError, InputFileError
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.grid import Grid
from maury.methods.fitting.grid_files import read_ferre_grid, read_synspec_grid
from maury.methods.fitting.gridded import GridFit, GridSettings, Pattern, axes_around
from maury.methods.fitting.theory import typical_labels
from maury.methods.storage import read_fields, write_fields
from maury.methods.training import MethodConfig, collect, fit_method

WAVE = 8420.0 + 0.4 * np.arange(60)
AXES = {
    "teff": np.linspace(4000, 6000, 6),
    "logg": np.array([1.0, 1.5, 2.5, 4.0, 5.0]),
    "m_h": np.linspace(-2, 0.5, 6),
}


def synthesise(labels):
    teff, logg, metals = labels.T[:, :, None]
    strength = 0.4 + 0.2 * metals / 2 - 0.1 * (teff - 5000) / 1000 + 0.03 * logg
    line = np.exp(-0.5 * ((WAVE - 8430) / 1.0) ** 2)
    other = np.exp(-0.5 * ((WAVE - 8437) / (1.0 + 0.1 * logg)) ** 2)
    return (1 - strength * line - 0.3 * np.exp(0.5 * metals) * other).astype(np.float32)


def grid(interpolation, components=0):
    return Grid.build(AXES, synthesise, WAVE, interpolation=interpolation, components=components)


GRIDS = {
    (kind, count): grid(kind, count)
    for kind in ("linear", "quadratic", "cubic")
    for count in (0, 12)
}


def places(n, seed):
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(axis[0], axis[-1], n) for axis in AXES.values()])


def test_linear_interpolation_is_that_of_scipy():
    nodes = GRIDS["linear", 0].nodes.reshape(6, 5, 6, -1)
    expected = RegularGridInterpolator(tuple(AXES.values()), nodes)(places(50, 1))
    assert GRIDS["linear", 0].evaluate(places(50, 1)).flux == pytest.approx(expected, abs=1e-5)


def test_cubic_interpolation_is_a_hermite_spline_with_the_slopes_of_neighbours():
    axis = np.array([0.0, 1.0, 2.5, 3.0, 4.0])
    values = np.array([1.0, 0.5, 2.0, 1.5, 0.0])
    slopes = np.array(
        [-0.5, *((values[2:] - values[:-2]) / (axis[2:] - axis[:-2])), values[-1] - values[-2]]
    )
    one = Grid.build(
        {"teff": axis},
        lambda x: np.interp(x, axis, values).astype(np.float32),
        WAVE[:1],
        interpolation="cubic",
    )
    x = np.linspace(0, 4, 41)
    expected = CubicHermiteSpline(axis, values, slopes)(x)
    assert one.evaluate(x[:, None]).flux[:, 0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("key", GRIDS)
def test_nodes_are_met(key):
    nodes = np.stack(np.meshgrid(*AXES.values(), indexing="ij"), axis=-1).reshape(-1, 3)
    assert GRIDS[key].evaluate(nodes).flux == pytest.approx(synthesise(nodes), abs=2e-4)


@pytest.mark.parametrize("key", GRIDS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_derivatives(key, seed):
    labels = places(20, seed)
    jacobian = GRIDS[key].evaluate(labels).jacobian
    for k, (axis, step) in enumerate(zip(AXES.values(), (5.0, 0.01, 0.01), strict=True)):
        # A linear interpolation has no derivative at its nodes, where cells meet.
        clear = np.abs(labels[:, k, None] - axis).min(axis=1) > step
        move = step * np.eye(3)[k]
        ends = [GRIDS[key].evaluate(labels + sign * move).flux.astype(float) for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * step)
        scale = np.abs(numeric).max()
        assert jacobian[clear, k] == pytest.approx(numeric[clear], abs=0.01 * scale)


def test_curves_are_closer_than_lines():
    labels = places(200, 2)
    error = {
        kind: np.abs(GRIDS[kind, 0].evaluate(labels).flux - synthesise(labels)).mean()
        for kind in ("linear", "quadratic", "cubic")
    }
    assert max(error["quadratic"], error["cubic"]) < 0.5 * error["linear"]


def test_what_components_lose_is_part_of_the_variance():
    plain, short = GRIDS["cubic", 0], grid("cubic", 2)
    lost = np.mean((plain.nodes - (short.nodes @ short.basis + short.mean)) ** 2, axis=0)
    assert short.own_variance == pytest.approx(lost, rel=0.1, abs=1e-9)


def test_the_nearest_node_is_found():
    some = GRIDS["cubic", 12]
    nodes = np.array([[4400.0, 2.5, -1.0], [5600.0, 4.0, 0.0]])
    found = some.nearest(synthesise(nodes), np.ones((2, WAVE.size), dtype=np.float32))
    assert found == pytest.approx(nodes)


def test_it_survives_saving():
    for (kind, _), one in GRIDS.items():
        arrays = one.axis_arrays("g") | write_fields(one, "g.")[0]
        given = Grid.not_stored(arrays, "g", label_names=one.label_names, interpolation=kind)
        again = read_fields(Grid, arrays, {}, given, "g.")
        assert (again.evaluate(places(3, 3)).flux == one.evaluate(places(3, 3)).flux).all()


def test_irregular_grids_are_refused():
    one = GRIDS["linear", 0]
    with pytest.raises(ValueError, match="do not fill"):
        Grid(one.label_names, one.axes, one.nodes[1:], None, one.mean, WAVE, one.mean)


def test_errors_of_grid_fits_hold():
    rng = np.random.default_rng(5)
    truth = places(400, 6)
    flux = synthesise(truth) + 0.01 * rng.normal(size=(400, WAVE.size)).astype(np.float32)

    fit = GridFit(GRIDS["cubic", 12], None, (), 1.3)
    found = fit.fit(inputs_of(flux, np.full(flux.shape, 1e4)))
    inside = found.flags == 0
    z = ((found.labels - truth) / found.sigma)[inside]
    assert inside.mean() > 0.8
    assert np.all(np.abs(1.4826 * np.median(np.abs(z), axis=0) - 1) < 0.12)


def test_kinks_of_a_linear_grid_are_no_failure_to_converge():
    """Few nodes and little noise: the minimum of many stars is at a node, without a zero slope."""
    rng = np.random.default_rng(9)
    wave = np.linspace(0.0, 1.0, 200)
    axes = {"teff": np.linspace(4000.0, 6000.0, 3), "logg": np.linspace(0.0, 4.0, 3)}

    def curved(labels):
        x, y = (labels[:, 0, None] - 5000) / 1000, (labels[:, 1, None] - 2) / 2
        first, second, third = (np.exp(-(((wave - at) / 0.1) ** 2)) for at in (0.25, 0.5, 0.75))
        depth = np.exp(-2 * x) * first + 0.5 * np.exp(1.6 * y) * third + np.exp(x - y) * second
        return (1 - 0.1 * depth).astype(np.float32)

    grid = Grid.build(axes, curved, wave, interpolation="linear")
    truth = np.column_stack([rng.uniform(4200, 5800, 200), rng.uniform(0.4, 3.6, 200)])
    flux = curved(truth) + 0.005 * rng.normal(size=(200, 200)).astype(np.float32)
    ivar = np.full(flux.shape, 0.005**-2, dtype=np.float32)
    start = np.tile([4900.0, 1.7], (200, 1))
    fitter = Fitter(grid, tolerance=0.05)
    found = fitter.fit(flux, ivar, start)
    converged = (found.flags & Flag.NOT_CONVERGED.value) == 0
    assert converged.mean() > 0.98
    near = found.labels + rng.normal(size=(12, 200, 2)) * np.array([40.0, 0.1])
    best = fitter.fit(flux, ivar, np.clip(near, *grid.bounds.T))
    assert np.mean(found.chi2[converged] > best.chi2[converged] + 0.5) < 0.05


def test_more_starts_are_never_worse():
    rng = np.random.default_rng(7)
    truth = places(60, 8)
    flux = synthesise(truth) + 0.02 * rng.normal(size=(60, WAVE.size)).astype(np.float32)

    inputs = inputs_of(flux, np.full(flux.shape, 2500))
    one, four = (GridFit(GRIDS["cubic", 0], None, (), 1.3, k).fit(inputs) for k in (1, 4))
    assert (four.chi2 <= one.chi2 + 1e-3).all()


def test_axes_keep_to_their_steps_and_to_a_size():
    axes = axes_around(("teff", "m_h"), np.array([[4000.0, 5100.0], [-1.0, 0.0]]))
    assert axes["teff"].tolist() == [4000, 4220, 4440, 4660, 4880, 5100]
    assert np.diff(axes["m_h"]).max() <= 0.25
    every = ("teff", "logg", "m_h", "alpha_m", "si_fe", "al_fe")
    wide = np.array([[4000, 7000], [0, 5], [-2, 0.5], [-0.2, 0.5], [-1, 1], [-1, 1]])
    with pytest.raises(ConfigError, match="take fewer axes"):
        axes_around(every, wide)


def test_unknown_axes_are_refused():
    with pytest.raises(ValueError, match="axes must be"):
        GridSettings(axes=("teff", "teff"))
    with pytest.raises(ValueError, match="external labels must be axes"):
        GridSettings(axes=("teff",), external=("logg",))


def test_patterns_keep_the_core_and_follow_the_sample():
    truth = typical_labels(3000, 9)
    pattern = Pattern.learn(("teff", "logg", "m_h", "alpha_m"), LABEL_NAMES, truth)
    core = truth[:, [0, 1, 2, 4]]
    nine = pattern.complete(core)
    assert nine[:, [0, 1, 2, 4]] == pytest.approx(core)
    assert np.std(nine[:, 3] - truth[:, 3]) < 0.1
    step = np.array([0.0, 0.0, 0.01, 0.0])
    numeric = (pattern.complete(core[:5] + step) - pattern.complete(core[:5] - step)) / 0.02
    assert pattern.slopes(core[:5])[:, :, 2] == pytest.approx(numeric, abs=0.05)


HEADER = """ &SYNTH
 SYNTHFILE_INTERNAL = 'made.dat'
 ID = 'made'
 N_OF_DIM = 2
 N_P = {sizes}
 NPIX = 120
 LLIMITS = 4000. -1.0
 STEPS = 500. 0.5
 LABEL(1) = 'TEFF'
 LABEL(2) = 'METALS'
 WAVE = {wave}
 LOGW = {log}
 RESOLUTION = 20000.
 /
"""


def write_ferre(path, *, sizes="3 4", wave="8415.0 0.3", log=0, rows=12):
    first, step = (float(x) for x in wave.split())
    pixels = first + step * np.arange(120)
    pixels = 10**pixels if log == 1 else pixels
    lines = []
    for teff in (4000, 4500, 5000):
        for metals in (-1, -0.5, 0, 0.5):
            depth = 0.3 + 0.1 * metals - 0.05 * (teff - 4500) / 500
            flux = 1 - depth * np.exp(-0.5 * ((pixels - 8430) / 1.0) ** 2)
            lines.append(" ".join(f"{x:.6e}" for x in flux))
    head = HEADER.format(sizes=sizes, wave=wave, log=log)
    path.write_text(head + "\n".join(lines[:rows]) + "\n")
    return path


INNER = 8420.0 + 0.4 * np.arange(60)


@pytest.mark.parametrize(
    ("wave", "log"), [("8415.0 0.3", 0), (f"{np.log10(8415.0):.9f} 0.0000155", 1)]
)
def test_a_grid_of_ferre_is_read(tmp_path, wave, log):
    path = write_ferre(tmp_path / "f_made.dat", wave=wave, log=log)
    found = read_ferre_grid(path, wave_aa=INNER)
    assert found.label_names == ("teff", "m_h")
    assert found.axes[1].tolist() == [-1, -0.5, 0, 0.5]
    flux = found.evaluate(np.array([[4500.0, 0.5]])).flux[0]
    expected = 1 - 0.35 * np.exp(-0.5 * ((INNER - 8430) / 1.0) ** 2)
    assert flux == pytest.approx(expected, abs=0.01)


def test_a_grid_is_broadened_to_the_survey(tmp_path):
    path = write_ferre(tmp_path / "f_made.dat")
    sharp, broad = (read_ferre_grid(path, wave_aa=INNER, resolving_power=r) for r in (0, 3000))
    place = np.array([[4500.0, 0.0]])
    depth = [1 - one.evaluate(place).flux[0] for one in (sharp, broad)]
    sigma2 = (8430 / 2.3548) ** 2 * (3000.0**-2 - 20000.0**-2)
    assert depth[1].max() / depth[0].max() == pytest.approx(1 / np.sqrt(1 + sigma2), rel=0.02)
    assert depth[1].sum() == pytest.approx(depth[0].sum(), rel=0.01)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": 11}, "holds 11 spectra"),
        ({"wave": "8425.0 0.3"}, "less than the pixels"),
        ({"sizes": "3 x"}, "N_P"),
    ],
)
def test_damaged_grids_are_named(tmp_path, change, said):
    path = write_ferre(tmp_path / "f_made.dat", **change)
    with pytest.raises(InputFileError, match=said):
        read_ferre_grid(path, wave_aa=INNER)


def test_other_files_are_no_grids(tmp_path):
    path = tmp_path / "x.dat"
    path.write_text("1 2 3\n")
    with pytest.raises(InputFileError, match="SYNTH"):
        read_ferre_grid(path, wave_aa=INNER)
    with pytest.raises(InputFileError, match="cannot read"):
        read_ferre_grid(tmp_path / "none.dat", wave_aa=INNER)


def write_synspec(folder, skip=None):
    pixels = np.arange(8410, 8460, 0.05)
    rows = ["file,teff,[M/H]"]
    for teff in (5000, 4000):
        for metals in (-1.0, 0.0):
            name = f"t{teff}m{metals}.7"
            if name == skip:
                continue
            depth = 0.3 + 0.1 * metals - 0.05 * (teff - 4500) / 500
            flux = 1 - depth * np.exp(-0.5 * ((pixels - 8430) / 1.0) ** 2)
            np.savetxt(folder / name, np.column_stack([pixels, flux]))
            rows.append(f"{name},{teff},{metals}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_a_directory_of_synspec_is_read(tmp_path):
    found = read_synspec_grid(write_synspec(tmp_path), wave_aa=INNER)
    assert found.label_names == ("teff", "m_h")
    flux = found.evaluate(np.array([[4000.0, 0.0]])).flux[0]
    assert flux == pytest.approx(1 - 0.35 * np.exp(-0.5 * ((INNER - 8430) / 1.0) ** 2), abs=0.005)


def test_a_missing_spectrum_is_named(tmp_path):
    with pytest.raises(InputFileError, match="3 spectra for 4 combinations"):
        read_synspec_grid(write_synspec(tmp_path, skip="t4000m0.0.7"), wave_aa=INNER)
    with pytest.raises(InputFileError, match=r"index\.csv"):
        read_synspec_grid(tmp_path / "none", wave_aa=INNER)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (" RESOLUTION", " NPCA = 4\n NPIX = 3\n RESOLUTION", "spectra where its header says"),
        ("1.000000e+00", "nan", "flux that is not finite"),
        (" LABEL(1)", "", "cannot read"),
        (" STEPS", " STAPS", "has no STEPS"),
    ],
)
def test_grids_that_cannot_serve_are_named(tmp_path, old, new, said):
    path = write_ferre(tmp_path / "f_made.dat")
    text = path.read_text()
    assert old in text
    lines = new or "x = 1\n" * 2000
    path.write_text(text.replace(old, lines))
    with pytest.raises(InputFileError, match=said):
        read_ferre_grid(path, wave_aa=INNER)


def test_a_grid_in_natural_logarithms_is_read(tmp_path):
    path = write_ferre(tmp_path / "f_made.dat", wave=f"{np.log10(8415.0):.9f} 0.0000155", log=1)
    wave = f"WAVE = {np.log(8415.0):.9f} {0.0000155 * np.log(10):.12f}"
    text = re.sub("WAVE = .*", wave, path.read_text()).replace("LOGW = 1", "LOGW = 2")
    (tmp_path / "ln.dat").write_text(text)
    place = np.array([[4200.0, 0.1]])
    one, two = (
        read_ferre_grid(tmp_path / name, wave_aa=INNER) for name in ("f_made.dat", "ln.dat")
    )
    np.testing.assert_allclose(one.evaluate(place).flux, two.evaluate(place).flux, atol=1e-5)


def test_a_grid_is_not_sharpened(tmp_path):
    path = write_ferre(tmp_path / "f_made.dat")
    place = np.array([[4500.0, 0.0]])
    as_it_is, sharper = (
        read_ferre_grid(path, wave_aa=INNER, resolving_power=r).evaluate(place).flux
        for r in (0, 50_000)
    )
    np.testing.assert_array_equal(as_it_is, sharper)


def test_spectra_of_one_column_are_named(tmp_path):
    write_synspec(tmp_path)
    (tmp_path / "t4000m0.0.7").write_text("1.0\n2.0\n")
    with pytest.raises(InputFileError, match=r"t4000m0.0.7 has no two columns of wavelength and"):
        read_synspec_grid(tmp_path, wave_aa=INNER)


def samples_of(survey, names, **settings):
    config = MethodConfig.resolve("ferre", {"preparation": {"steps": []}, "method": settings})
    stars = collect(survey, names, preparation=config.preparation, split=config.split, seed=0)
    return config, stars


def test_ferre_fits_a_grid_of_its_users_own(tmp_path):
    path = write_ferre(tmp_path / "f_made.dat")
    grid = read_ferre_grid(path, wave_aa=SURVEY_WAVE)
    truth = np.random.default_rng(0).uniform((4050, 0), (4950, 5), (60, 2))
    place = np.column_stack([truth[:, 0], np.zeros(60)])
    noise = np.random.default_rng(1).normal(0, 1e-3, (60, 64))
    survey = write_survey(
        tmp_path / "s.zarr", n=60, teff=truth[:, 0], logg=truth[:, 1],
        flux=(grid.evaluate(place).flux + noise).astype("f4"), ivar=np.full((60, 64), 1e6, "f4"),
    )  # fmt: skip
    config, stars = samples_of(survey, ("teff", "logg"), grid=str(path), rv_error_kms=0.1)
    method = fit_method(config, stars, seed=0)
    assert method.label_names == ("teff",)
    part = stars.part("train")
    fitted = method.apply(part.inputs)
    assert fitted.label_names == ("teff",)
    # The one line of the grid tells temperature and metallicity together.
    teff, metals = method.core.fit(part.inputs).labels.T
    np.testing.assert_array_equal(fitted.labels[:, 0], teff)
    depth = 0.1 * metals - 1e-4 * (teff - part.truth[:, 0])
    assert np.median(np.abs(depth)) < 2e-3
    arrays, about = method.to_arrays()
    again = type(method).from_arrays(arrays, about, settings=config.method, label_names=("teff",))
    np.testing.assert_array_equal(again.apply(part.inputs).labels, fitted.labels)
    config, stars = samples_of(survey, ("logg",), grid=str(path))
    with pytest.raises(ConfigError, match=r"none of which is a label of the survey .logg."):
        fit_method(config, stars, seed=0)


def write_parts(folder, *, compressed, binary, gap=0.0):
    """Write a grid of two stretches of wavelengths, and what it holds."""
    wave = [8415.0 + 0.2 * np.arange(90), 8433.0 + gap + 0.25 * np.arange(80)]
    spectra = []
    for teff in (4000, 4500, 5000):
        for metals in (-1, -0.5, 0, 0.5):
            depth = 0.3 + 0.1 * metals - 0.05 * (teff - 4500) / 500
            spectra.append([1 - depth * np.exp(-0.5 * ((w - 8430) / 1.0) ** 2) for w in wave])
    pixels = np.hstack([np.array([one[k] for one in spectra]) for k in (0, 1)])
    axes = "N_P = 3 4\n LLIMITS = 4000 -1\n STEPS = 500 0.5\n"
    axes += " LABEL(1) = 'TEFF'\n LABEL(2) = 'METALS'\n"
    rows, more, before = pixels, "", np.zeros((0, 170))
    if compressed:
        pieces = (100, 70)
        mean, parts, strength = pixels.mean(0), [], []
        for piece in (slice(0, 100), slice(100, 170)):
            _, _, axis = np.linalg.svd(pixels[:, piece] - mean[piece], full_matrices=False)
            parts.append(axis[:3])
            strength.append((pixels[:, piece] - mean[piece]) @ axis[:3].T)
        before = np.vstack([mean, 0 * mean, np.hstack(parts)])
        rows, more = np.hstack(strength), f" NPCA = {pieces[0]} {pieces[1]}\n NPIX = 6\n"
    head = f" &SYNTH\n MULTI = 2\n{more} {axes} /\n"
    for one in wave:
        head += f" &SYNTH\n NPIX = {one.size}\n WAVE = {one[0]} {one[1] - one[0]}\n LOGW = 0\n"
        head += " RESOLUTION = 20000\n /\n"
    text = [" ".join(f"{x:.8e}" for x in row) for row in before]
    if binary:
        rows.astype("<f4").tofile(folder / "made.unf")
        (folder / "made.hdr").write_text(head + "\n".join(text) + "\n")
        return folder / "made.hdr"
    text += [" ".join(f"{x:.8e}" for x in row) for row in rows]
    (folder / "made.dat").write_text(head + "\n".join(text) + "\n")
    return folder / "made.dat"


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_grids_in_parts_compressed_or_binary_are_read(tmp_path, compressed, binary):
    path = write_parts(tmp_path, compressed=compressed, binary=binary)
    found = read_ferre_grid(path, wave_aa=INNER)
    assert found.axes[0].tolist() == [4000, 4500, 5000]
    flux = found.evaluate(np.array([[4500.0, 0.5]])).flux[0]
    expected = 1 - 0.35 * np.exp(-0.5 * ((INNER - 8430) / 1.0) ** 2)
    seen = found.own_variance < 1
    assert seen.mean() > 0.95
    assert flux[seen] == pytest.approx(expected[seen], abs=0.01)


def test_pixels_between_the_parts_of_a_grid_have_no_weight(tmp_path):
    path = write_parts(tmp_path, compressed=False, binary=True, gap=3.0)
    found = read_ferre_grid(path, wave_aa=INNER)
    gap = (INNER > 8433.0) & (INNER < 8436.0)
    assert (found.own_variance[gap] > 1e5).all()
    assert (found.own_variance[~gap] < 1).mean() > 0.95
    noise = np.random.default_rng(0).normal(0, 0.01, (20, INNER.size))
    flux = found.evaluate(np.tile([4300.0, -0.2], (20, 1))).flux + noise
    flux[:, gap] = 0.2
    inputs = inputs_of(flux.astype("f4"), np.full(flux.shape, 1e4))
    place = GridFit(found, None, (), 1.3).fit(replace(inputs, wave_aa=INNER)).labels
    depth = 0.1 * (place[:, 1] + 0.2) - 1e-4 * (place[:, 0] - 4300)
    assert np.abs(np.median(depth)) < 0.01


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.replace("NPCA = 100 70", "NPCA = 100 71"), "should be"),
        (lambda t: t.replace("MULTI = 2", "MULTI = 5000"), "MULTI = 5000"),
        (lambda t: t.replace("NPIX = 80", "NPIX = 81"), "made.hdr is damaged"),
        (lambda t: t.replace("NPIX = 6", "NPIX = 7"), "no multiple of 7"),
        (lambda t: t.replace("N_P = 3 4", "N_P = 3 5"), "where its header says 15"),
    ],
)
def test_damaged_compressed_grids_are_named(tmp_path, change, said):
    path = write_parts(tmp_path, compressed=True, binary=True)
    path.write_text(change(path.read_text()))
    with pytest.raises(InputFileError, match=said):
        read_ferre_grid(path, wave_aa=INNER)
    (tmp_path / "made.unf").unlink()
    with pytest.raises(InputFileError):
        read_ferre_grid(path, wave_aa=INNER)


@pytest.mark.slow
def test_a_markov_chain_gives_the_errors_of_the_covariance_where_that_is_right():
    place = 0.25 * places(40, 3) + 0.75 * places(4000, 9).mean(axis=0)
    made = GRIDS["cubic", 0]
    clean = made.evaluate(place).flux
    flux = clean + np.random.default_rng(4).normal(0, 0.01, clean.shape)
    inputs = inputs_of(flux.astype("f4"), np.full(flux.shape, 1e4))
    fit = GridFit(made, None, (), 1.3)
    plain, chained = fit.fit(inputs), fit.fit(inputs, chain=3000)
    np.testing.assert_array_equal(plain.labels, chained.labels)
    ratio = chained.sigma / plain.sigma
    assert np.median(ratio, axis=0) == pytest.approx(1.0, abs=0.15)
    again = fit.fit(inputs, chain=3000)
    np.testing.assert_array_equal(again.covariance, chained.covariance)
    none = fit.fit(inputs, truth=place, chain=10)
    assert (none.sigma == 0).all()
