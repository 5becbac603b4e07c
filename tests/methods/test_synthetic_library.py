"""Synthetic spectra of a user: read, seen as the survey sees them, and taken into a theory."""

import numpy as np
import pytest

from maury.errors import InputFileError
from maury.methods.fitting.synthetic_library import SyntheticLibrary
from maury.simulation.learnt_theory import LearntTheory, Synthetic

WAVE = 5000.0 + 0.02 * np.arange(2001)
PIXELS = 5005.0 + 0.1 * np.arange(300)
NAMES = ("Teff", "log g", "[Fe/H]", "vmic")


def spectra(labels):
    t, g, m = ((labels[:, :3] - (5000, 3.0, -0.2)) / (500, 0.8, 0.3)).T
    out = np.ones((len(labels), WAVE.size))
    for k, centre in enumerate(np.arange(5006.0, 5034.0, 1.9)):
        depth = 0.3 + 0.06 * m - 0.04 * t * (k % 2) + 0.02 * g * (k % 3)
        out -= np.outer(depth, np.exp(-0.5 * ((WAVE - centre) / 0.06) ** 2))
    return out


@pytest.fixture(scope="module")
def labels():
    rng = np.random.default_rng(0)
    return rng.normal((5000, 3.0, -0.2, 1.3), (500, 0.8, 0.3, 0.3), (300, 4))


@pytest.fixture(scope="module")
def file(labels, tmp_path_factory):
    path = tmp_path_factory.mktemp("library") / "spectra.npz"
    np.savez(path, wave=WAVE, flux=spectra(labels), labels=labels, label_names=np.array(NAMES))
    return path


def read(path, power=20_000):
    return SyntheticLibrary.read(path, wave_aa=PIXELS, resolving_power=power)


def test_an_npz_file_is_seen_as_the_survey_sees_it(file, labels):
    library = read(file)
    assert library.names == NAMES
    np.testing.assert_array_equal(library.labels, labels)
    # Light is kept, and lines are as wide as line spread and own width together.
    area = (1 - library.flux[0]).sum() * 0.1
    assert area == pytest.approx((1 - spectra(labels[:1])[0]).sum() * 0.02, rel=0.02)
    sigma = np.hypot(0.06, 5006.0 / 20_000 / 2.3548)
    near = np.abs(PIXELS - 5007.9) < 0.8
    depth = 1 - library.flux[0][near]
    width = np.sqrt(np.sum(depth * (PIXELS[near] - 5007.9) ** 2) / depth.sum())
    assert width == pytest.approx(np.hypot(sigma, 0.1 / np.sqrt(12)), rel=0.03)


def test_a_folder_of_stars_that_fill_no_grid(labels, tmp_path):
    rows = ["file,teff,logg,fe_h"]
    for k, spectrum in enumerate(spectra(labels[:25])):
        np.savetxt(tmp_path / f"{k}.txt", np.column_stack([WAVE, spectrum]))
        rows.append(f"{k}.txt,{','.join(map(str, labels[k, :3]))}")
    (tmp_path / "index.csv").write_text("\n".join(rows), "utf-8")
    library = read(tmp_path)
    assert library.flux.shape == (25, PIXELS.size)
    assert library.names == ("teff", "logg", "fe_h")
    rows[3] = rows[3].replace("2.txt", "../2.txt")
    (tmp_path / "index.csv").write_text("\n".join(rows), "utf-8")
    with pytest.raises(InputFileError):
        read(tmp_path)


def test_labels_are_known_by_any_spelling_and_stars_unlike_are_left_out(file, labels):
    names = ("al_fe", "teff", "fe_h")
    stars = np.array([[0.0, 4800.0, -0.3], [0.1, 5600.0, 0.2]])
    columns, near = read(file).near(names, stars)
    assert columns == [1, 2]
    assert near.names == ("teff", "fe_h")
    assert 20 <= len(near.labels) < 300
    assert near.labels[:, 0].min() >= 4800 - 0.25 * 800
    with pytest.raises(InputFileError, match="at least one must be the same"):
        read(file).near(("age",), stars[:, :1])
    with pytest.raises(InputFileError, match="0 of 300 synthetic spectra"):
        read(file).near(("teff",), stars[:, 1:2] + 20_000)


def test_what_is_no_library_is_one_clear_error(file, labels, tmp_path):
    np.savez(tmp_path / "a.npz", wave=WAVE, flux=spectra(labels[:2]))
    with pytest.raises(InputFileError, match="lacks label_names, labels"):
        read(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", wave=WAVE, flux=WAVE, labels=labels, label_names=np.array(NAMES))
    with pytest.raises(InputFileError, match="do not fit each other"):
        read(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_text("no archive", "utf-8")
    with pytest.raises(InputFileError, match="cannot read"):
        read(tmp_path / "c.npz")
    with pytest.raises(InputFileError, match="covers 5000"):
        SyntheticLibrary.read(file, wave_aa=PIXELS + 500, resolving_power=None)


def test_few_labelled_stars_correct_a_theory_that_is_nearly_right(file):
    library = read(file)
    rng = np.random.default_rng(3)
    few = rng.normal((5000, 3.0, -0.2), (500, 0.8, 0.3), (150, 3))
    names = ("teff", "logg", "fe_h")

    def true(labels):
        padded = np.column_stack([labels, np.ones(len(labels))])
        seen = SyntheticLibrary.read(path_of(padded), wave_aa=PIXELS, resolving_power=20_000).flux
        # As the sky differs from theory: all lines deeper.
        return 1 - 1.15 * (1 - seen)

    def path_of(labels):
        path = file.with_name("true.npz")
        np.savez(path, wave=WAVE, flux=spectra(labels), labels=labels, label_names=np.array(NAMES))
        return path

    flux = (true(few) + rng.normal(0, 0.03, (150, PIXELS.size))).astype(np.float32)
    ivar = np.full_like(flux, 0.03**-2)
    columns, near = library.near(names, few)
    synthetic = Synthetic(tuple(columns), near.labels, near.flux)
    new = rng.normal((5000, 3.0, -0.2), (400, 0.6, 0.25), (100, 3))
    error = {}
    for title, known in (("alone", None), ("with", synthetic)):
        theory, _ = LearntTheory.fit(
            flux, ivar, labels=few, names=names, noise_correlation=(), synthetic=known
        )
        error[title] = np.sqrt(np.mean((theory.flux(new) - true(new)) ** 2))
    plain = np.sqrt(
        np.mean(
            (
                SyntheticLibrary.read(
                    path_of(np.column_stack([new, np.ones(100)])),
                    wave_aa=PIXELS,
                    resolving_power=20_000,
                ).flux
                - true(new)
            )
            ** 2
        )
    )
    assert error["with"] < 0.85 * error["alone"]
    assert error["with"] < 0.5 * plain
