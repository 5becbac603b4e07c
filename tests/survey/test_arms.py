"""Arms, windows and exposures: several spectra of one star, on one grid of the store."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maury.errors import (
    ConfigError,
    IdentifierError,
    LengthMismatch,
    MauryError,
    WavelengthError,
)
from maury.spectra.operators import (
    Resampler,
    doppler_factor,
    normalise_continuum,
    to_rest_frame,
)
from maury.spectra.preparation import Preparation
from maury.spectra.spectra import arm_slices
from maury.survey.readers import ingest_toml, open_toml
from maury.survey.readers.arms import read_scattered
from maury.survey.readers.exposures import coadd, group_exposures
from maury.survey.readers.grids import Gridder, Layout, join_grids

N = 6
BLUE, RED = 4700.0 + 0.5 * np.arange(80), 5600.0 + 0.8 * np.arange(50)
RNG = np.random.default_rng(8)
FLUX = {"blue": 1 + RNG.normal(0, 0.01, (N, 80)), "red": 5 + RNG.normal(0, 0.05, (N, 50))}
FLUX = {name: flux.astype("f4") for name, flux in FLUX.items()}
IVAR = {"blue": np.full((N, 80), 1e4, "f4"), "red": np.full((N, 50), 400.0, "f4")}
WAVE = {"blue": BLUE, "red": RED}
IDS = np.array([f"s{k}" for k in range(N)])


def write_arm(folder, name, *, rows=range(N), ids=True, noise=True, **more):
    rows = list(rows)
    arrays = {"flux": FLUX[name][rows], "wave": WAVE[name]}
    arrays |= {"id": IDS[rows]} if ids else {}
    arrays |= {"ivar": IVAR[name][rows]} if noise else {}
    np.savez(folder / f"{name}.npz", **(arrays | more))


def arm_toml(name, *, extra="", ids=True, noise=True, medium="air", wave=""):
    return (
        f'[[arm]]\nname = "{name}"\n{extra}\n[arm.spectra]\nfile = "{name}.npz"\n'
        + ('ivar = "ivar"\n' if noise else "")
        + ('id = "id"\n' if ids else "")
        + f'[arm.wavelength]\nmedium = "{medium}"\nvalues = "wave"\n{wave}'
    )


def ingest(folder, text):
    (folder / "s.toml").write_text(text)
    return ingest_toml(folder / "s.toml", folder / "s.zarr", overwrite=True)


def pixels(survey):
    """Pixels of blue, of red, and guards."""
    guard = np.array([80, 81])
    assert survey.n_pixel == 132
    return np.arange(80), 82 + np.arange(50), guard


# The grid


def test_gaps_part_a_grid_into_arms():
    wave, take = join_grids([BLUE, RED], what="test")
    np.testing.assert_array_equal(wave[take >= 0], np.concatenate([BLUE, RED]))
    np.testing.assert_allclose(wave[take < 0], [BLUE[-1] + 0.5, RED[0] - 0.8])
    assert arm_slices(wave) == (slice(0, 81), slice(81, 132))


@pytest.mark.parametrize(
    "wave",
    [
        8420.0 + 0.4 * np.arange(912),
        10.0 ** (4.18 + 6e-6 * np.arange(8575)),
        np.array([5.0, 6.0]),
        np.array([5.0, 6.0, 60.0]),
    ],
)
def test_grids_without_gaps_are_one_arm(wave):
    assert arm_slices(wave) == (slice(0, wave.size),)
    assert Layout.of(wave, (), what="test") is None


@given(
    sizes=st.lists(st.integers(4, 30), min_size=1, max_size=4),
    steps=st.lists(st.floats(0.01, 3.0), min_size=4, max_size=4),
    gap=st.floats(7.0, 100.0),
)
def test_arms_are_found_again(sizes, steps, gap):
    grids, start = [], 4000.0
    for k, n in enumerate(sizes):
        grids.append(start + steps[k] * np.arange(n))
        following = steps[min(k + 1, len(steps) - 1)]
        start = grids[-1][-1] + gap * max(steps[k], following)
    wave, take = join_grids(grids, what="test")
    assert np.all(np.diff(wave) > 0)
    assert len(arm_slices(wave)) == len(sizes)
    np.testing.assert_array_equal(take[take >= 0], np.arange(sum(sizes)))
    assert np.sum(take < 0) == 2 * (len(sizes) - 1)


def test_guards_keep_every_arm_as_if_it_were_alone():
    """Resampling and shifting a joined grid is the same as doing so arm by arm."""
    wave, take = join_grids([BLUE, RED], what="test")
    flux = np.where(take < 0, np.nan, np.hstack([FLUX["blue"], FLUX["red"]])[:, take])
    ivar = np.where(take < 0, 0.0, np.hstack([IVAR["blue"], IVAR["red"]])[:, take])
    rv = np.linspace(-60, 60, N)
    joined = to_rest_frame(flux, ivar, rv, wave_in_aa=wave, wave_out_aa=wave)
    for name, rows in (("blue", slice(0, 80)), ("red", slice(82, None))):
        alone = to_rest_frame(
            FLUX[name], IVAR[name], rv, wave_in_aa=WAVE[name], wave_out_aa=WAVE[name]
        )
        inside = alone[1] > 0
        np.testing.assert_allclose(joined[0][:, rows][inside], alone[0][inside], rtol=1e-6)
        # At its very edge a pixel may be half covered by a guard, which does not count.
        assert np.all(inside[:, 3:-3] == (joined[1][:, rows] > 0)[:, 3:-3])
    target = np.concatenate([4705 + np.arange(20.0), 5605 + np.arange(30.0)])
    out, _ = join_grids([target[:20], target[20:]], what="test")
    moved, _ = Resampler(wave, out)(flux.astype("f4"), ivar.astype("f4"))
    alone, _ = Resampler(BLUE, target[:20])(FLUX["blue"], IVAR["blue"])
    np.testing.assert_allclose(moved[:, :20], alone, rtol=1e-5)
    assert np.all(joined[1][:, 80:82] == 0)


@pytest.mark.parametrize(
    "step",
    [
        {"step": "continuum", "method": "chebyshev", "degree": 2},
        {"step": "continuum", "method": "running_quantile", "window": 21},
    ],
)
def test_the_continuum_is_that_of_each_arm(tmp_path, step):
    for name in WAVE:
        write_arm(tmp_path, name)
    survey = ingest(tmp_path, arm_toml("blue") + arm_toml("red"))
    prepared = Preparation.from_json({"steps": [step], "observables": []}).apply(survey.batch(0, N))
    options = {key: value for key, value in step.items() if key != "step"}
    for name, rows in (("blue", slice(0, 80)), ("red", slice(82, None))):
        alone, _ = normalise_continuum(FLUX[name], IVAR[name], **options)
        np.testing.assert_allclose(np.median(prepared.flux[:, rows]), 1.0, atol=0.03)
        # The guard is a pixel more of the arm, which moves nodes and the unit of pixel number.
        close = 2e-3 if step["method"] == "chebyshev" else 0.012
        np.testing.assert_allclose(prepared.flux[:, rows], alone, atol=close)


# Ingest


def test_arms_stand_side_by_side(tmp_path):
    for name in WAVE:
        write_arm(tmp_path, name)
    survey = ingest(tmp_path, arm_toml("red") + arm_toml("blue"))
    blue, red, guard = pixels(survey)
    spectra = survey.batch(0, N).spectra
    for name, place in (("blue", blue), ("red", red)):
        np.testing.assert_allclose(survey.wave_aa[place], WAVE[name])
        np.testing.assert_array_equal(spectra.flux[:, place], FLUX[name])
        np.testing.assert_array_equal(spectra.ivar[:, place], IVAR[name])
    assert np.all(spectra.ivar[:, guard] == 0)
    assert survey.id.tolist() == IDS.tolist()


def test_arms_are_joined_by_identifier(tmp_path, caplog):
    write_arm(tmp_path, "blue")
    write_arm(tmp_path, "red", rows=[5, 0, 3, 1])
    with caplog.at_level(logging.WARNING):
        survey = ingest(tmp_path, arm_toml("blue") + arm_toml("red"))
    assert "lacks 2 spectra" in caplog.text
    blue, red, _ = pixels(survey)
    spectra = survey.batch(0, N).spectra
    np.testing.assert_array_equal(spectra.flux[:, blue], FLUX["blue"])
    known = [0, 1, 3, 5]
    np.testing.assert_array_equal(spectra.flux[known][:, red], FLUX["red"][known])
    assert np.all(spectra.ivar[[2, 4]][:, red] == 0)
    assert np.all(spectra.ivar[known][:, red] > 0)


def test_arms_without_noise_take_it_each_from_itself(tmp_path):
    for name in WAVE:
        write_arm(tmp_path, name, noise=False)
    survey = ingest(tmp_path, arm_toml("blue", noise=False) + arm_toml("red", noise=False))
    blue, red, _ = pixels(survey)
    ivar = survey.batch(0, N).spectra.ivar
    # White noise of 1 %; the estimate assumes correlated noise, which makes it some tens of
    # percent too large, the same in both arms.
    relative = [
        np.sqrt(np.median(ivar[:, place])) * level for place, level in ((blue, 1), (red, 5))
    ]
    assert 0.7 < relative[0] / relative[1] < 1.4


def test_every_row_can_be_read_in_any_order(tmp_path):
    for name in WAVE:
        write_arm(tmp_path, name)
    (tmp_path / "s.toml").write_text(arm_toml("blue") + arm_toml("red"))
    with open_toml(tmp_path / "s.toml") as files:
        whole = files.batch(0, N).spectra.flux
        np.testing.assert_array_equal(files.batch(2, 5).spectra.flux, whole[2:5])
        order = np.array([-1, 0, 4, 5, -1, 2])
        read = read_scattered(files.source, files.gridder, order)
        known = order >= 0
        np.testing.assert_array_equal(read.flux[known], whole[order[known]])
        assert np.all(read.ivar[~known] == 0)


def test_windows_cut_one_spectrum_into_arms(tmp_path):
    write_arm(tmp_path, "blue")
    text = (
        "windows = [[4702.0, 4710.0], [4720.0, 4730.0]]\n"
        '[spectra]\nfile = "blue.npz"\nivar = "ivar"\nid = "id"\n'
        '[wavelength]\nmedium = "air"\nvalues = "wave"\n'
    )
    survey = ingest(tmp_path, text)
    kept = np.flatnonzero(((BLUE >= 4702) & (BLUE <= 4710)) | ((BLUE >= 4720) & (BLUE <= 4730)))
    assert survey.n_pixel == kept.size + 2
    good = survey.batch(0, N).spectra.ivar[0] > 0
    np.testing.assert_allclose(survey.wave_aa[good], BLUE[kept])
    np.testing.assert_array_equal(survey.batch(0, N).spectra.flux[:, good], FLUX["blue"][:, kept])


def test_a_grid_with_gaps_of_its_own_gets_guards(tmp_path):
    wave = np.concatenate([BLUE, RED])
    np.savez(tmp_path / "both.npz", flux=np.hstack([FLUX["blue"], FLUX["red"]]), wave=wave, id=IDS)
    text = (
        '[spectra]\nfile = "both.npz"\nid = "id"\n[wavelength]\nmedium = "air"\nvalues = "wave"\n'
    )
    survey = ingest(tmp_path, text)
    pixels(survey)
    assert len(arm_slices(survey.wave_aa)) == 2


def test_arms_may_be_resampled_each_to_its_own_grid(tmp_path):
    for name in WAVE:
        write_arm(tmp_path, name)
    extra = "resample = { start = 4705.0, step = 1.0, n = 30 }"
    survey = ingest(tmp_path, arm_toml("blue", extra=extra) + arm_toml("red"))
    flux, _ = Resampler(BLUE, 4705.0 + np.arange(30))(FLUX["blue"], IVAR["blue"])
    np.testing.assert_allclose(survey.batch(0, N).spectra.flux[:, :30], flux, rtol=1e-6)


def drop_ids(folder):
    write_arm(folder, "red", ids=False)
    return arm_toml("blue") + arm_toml("red", ids=False)


def fewer_rows(folder):
    write_arm(folder, "blue", ids=False)
    write_arm(folder, "red", ids=False, rows=range(4))
    return arm_toml("blue", ids=False) + arm_toml("red", ids=False)


def strangers(folder):
    write_arm(folder, "red", id=np.array([f"x{k}" for k in range(N)]))
    return arm_toml("blue") + arm_toml("red")


def twins(folder):
    write_arm(folder, "red", id=np.array(["s0"] * N))
    return arm_toml("blue") + arm_toml("red")


def overlapping(folder):
    write_arm(folder, "red", wave=4730.0 + 0.8 * np.arange(50))
    return arm_toml("blue") + arm_toml("red")


def touching(folder):
    write_arm(folder, "red", wave=4741.0 + 0.8 * np.arange(50))
    return arm_toml("blue") + arm_toml("red")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (drop_ids, IdentifierError, "only one has identifiers"),
        (fewer_rows, LengthMismatch, "holds 6 spectra, 'red' 4"),
        (strangers, IdentifierError, "none of the identifiers"),
        (twins, IdentifierError, "more than once"),
        (overlapping, WavelengthError, "at least 5.200"),
        (touching, WavelengthError, "leave at least"),
        (lambda f: arm_toml("blue") + arm_toml("red", medium="vacuum"), WavelengthError, "media"),
        (lambda f: arm_toml("blue"), ConfigError, "two"),
        (lambda f: arm_toml("blue") + arm_toml("blue"), ConfigError, "different names"),
        (
            lambda f: '[spectra]\nfile = "blue.npz"\n' + arm_toml("blue") + arm_toml("red"),
            ConfigError,
            "leave out spectra",
        ),
        (
            lambda f: arm_toml("blue", extra="window = [1.0, 2.0]") + arm_toml("red"),
            WavelengthError,
            "holds 0 pixels",
        ),
        (
            lambda f: arm_toml("blue", extra="window = [9.0, 2.0]") + arm_toml("red"),
            ConfigError,
            "increase",
        ),
    ],
)
def test_wrong_arms_are_one_clear_error(tmp_path, make, error, words):
    for name in WAVE:
        write_arm(tmp_path, name)
    with pytest.raises(error, match=words):
        ingest(tmp_path, make(tmp_path))
    assert not list(tmp_path.glob("*.zarr*"))


def test_overlapping_arms_are_parted_by_windows(tmp_path):
    write_arm(tmp_path, "blue")
    write_arm(tmp_path, "red", wave=4730.0 + 0.8 * np.arange(50))
    text = arm_toml("blue", extra="window = [4700.0, 4732.0]")
    survey = ingest(tmp_path, text + arm_toml("red", extra="window = [4738.0, 4800.0]"))
    assert len(arm_slices(survey.wave_aa)) == 2


# Exposures

EXPOSURES = (
    '[spectra]\nfile = "e.npz"\nivar = "ivar"\nid = "id"\n'
    '[wavelength]\nmedium = "air"\nvalues = "wave"\n'
    '[[table]]\nfile = "e.csv"\nid = "id"\n'
    '[columns]\nstar_id = "star"\nradial_velocity = "rv"\nparallax = "plx"\nsnr = "snr"\n'
)


def line_spectrum(wave, centre):
    return 1 - 0.5 * np.exp(-0.5 * ((wave - centre) / 1.5) ** 2)


def write_exposures(folder, *, rv=(0.0, 80.0, -80.0, 0.0), level=1.0):
    """Three exposures of star a, mingled with one of star b."""
    wave = 8600.0 + 0.4 * np.arange(300)
    star = ["a", "b", "a", "a"]
    shift = np.array(rv)
    rng = np.random.default_rng(4)
    flux = np.array([line_spectrum(wave, 8660.0 * doppler_factor(v)) for v in shift])
    sigma = np.array([0.02, 0.01, 0.01, 0.04])[:, None]
    flux = flux + sigma * rng.standard_normal(flux.shape)
    flux[2] *= level
    ivar = np.broadcast_to(sigma**-2, flux.shape).copy()
    ivar[2] /= level**2
    np.savez(folder / "e.npz", flux=flux, ivar=ivar, wave=wave, id=[f"x{k}" for k in range(4)])
    lines = ["id,star,rv,plx,snr"]
    lines += [f"x{k},{star[k]},{rv[k]},{1.5 + 0.1 * k},50" for k in range(4)]
    (folder / "e.csv").write_text("\n".join(lines))
    return wave, flux, ivar


def test_repeats_stay_rows_of_one_star(tmp_path):
    write_exposures(tmp_path)
    survey = ingest(tmp_path, EXPOSURES + '[exposures]\nmode = "repeats"\n')
    assert survey.star_id.tolist() == ["a", "b", "a", "a"]
    assert survey.column("radial_velocity")[1] == 80.0


def test_exposures_are_added_at_rest(tmp_path):
    rv = (0.0, 80.0, -80.0, 40.0)
    wave, _, _ = write_exposures(tmp_path, rv=rv)
    text = EXPOSURES + '[exposures]\nmode = "coadd"\nvelocity = "radial_velocity"\n'
    survey = ingest(tmp_path, text)
    assert survey.star_id.tolist() == ["a", "b"]
    assert survey.id.tolist() == ["x0", "x1"]
    assert "radial_velocity" not in survey.column_names
    np.testing.assert_allclose(survey.column("parallax"), [(1.5 + 1.7 + 1.8) / 3, 1.6])
    np.testing.assert_array_equal(survey.column("n_exposures"), [3, 1])
    spectra = survey.batch(0, 2).spectra
    inner = slice(20, -20)
    truth = line_spectrum(wave, 8660.0)
    pull = (spectra.flux - truth) * np.sqrt(spectra.ivar)
    assert np.abs(pull[:, inner].mean()) < 0.15
    assert 0.6 < pull[:, inner].std() < 1.3
    assert survey.column("snr")[0] > 80


def test_exposures_as_they_stand_are_the_weighted_mean(tmp_path):
    _, flux, ivar = write_exposures(tmp_path)
    survey = ingest(tmp_path, EXPOSURES + '[exposures]\nmode = "coadd"\n')
    rows = [0, 2, 3]
    total = ivar[rows].sum(axis=0)
    mean = (ivar[rows] * flux[rows]).sum(axis=0) / total
    spectra = survey.batch(0, 2).spectra
    assert survey.column("radial_velocity").tolist() == [pytest.approx(-80 / 3), 80.0]
    np.testing.assert_allclose(spectra.flux[0], mean, rtol=0.02)
    np.testing.assert_allclose(spectra.ivar[0], total, rtol=0.03)


def test_an_exposure_without_velocity_counts_for_nothing(tmp_path, caplog):
    write_exposures(tmp_path, rv=(0.0, float("nan"), -80.0, 40.0))
    text = EXPOSURES + '[exposures]\nmode = "coadd"\nvelocity = "radial_velocity"\n'
    with caplog.at_level(logging.WARNING):
        survey = ingest(tmp_path, text)
    assert "1 exposures have no velocity" in caplog.text
    assert np.all(survey.batch(0, 2).spectra.ivar[1] == 0)


def test_levels_do_not_tear_a_sum():
    """An exposure three times as bright is scaled to the others, its noise with it."""
    rng = np.random.default_rng(0)
    flux = 1 + rng.normal(0, 0.02, (3, 4000)) * np.array([1, 2, 1])[:, None]
    ivar = np.array([1, 0.25, 1])[:, None] * np.full((3, 4000), 2500.0)
    scale = np.array([1.0, 1.0, 3.0])[:, None]
    plain = coadd(flux, ivar)
    scaled = coadd(flux * scale, ivar / scale**2)
    ratio = np.median(scaled[0] / plain[0])
    np.testing.assert_allclose(scaled[0] / plain[0], ratio, rtol=2e-3)
    np.testing.assert_allclose(scaled[1] * ratio**2, plain[1], rtol=5e-3)
    assert np.std(plain[0]) == pytest.approx(plain[1][0] ** -0.5, rel=0.05)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30))
def test_groups_are_all_rows_once_in_order(stars):
    groups = group_exposures(np.array(stars))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(stars)))
    assert [stars[g[0]] for g in groups] == list(dict.fromkeys(stars))
    assert all(len({stars[k] for k in g}) == 1 and np.all(np.diff(g) > 0) for g in groups)


@pytest.mark.parametrize(
    ("exposures", "words"),
    [
        ('mode = "coadd"\nvelocity = "a_v"', "does not map"),
        ('mode = "repeats"\nvelocity = "radial_velocity"', "leave it out"),
        ('mode = "add"', "repeats"),
        ("", "mode"),
    ],
)
def test_wrong_exposures_are_one_clear_error(tmp_path, exposures, words):
    write_exposures(tmp_path)
    with pytest.raises(MauryError, match=words):
        ingest(tmp_path, EXPOSURES + f"[exposures]\n{exposures}\n")


def test_a_gridder_without_layout_gives_back_what_it_got():
    gridder = Gridder(BLUE, resample=False, medium="air")
    flux, ivar = gridder.place(BLUE, (FLUX["blue"], IVAR["blue"]), what="test")
    assert flux is FLUX["blue"]
    assert ivar is IVAR["blue"]
