"""Networks of others as theory: files as The Payne writes them."""

import numpy as np
import pytest

from maury.errors import ConfigError, InputFileError
from maury.methods.fitting.synthetic_library import SyntheticLibrary
from maury.methods.fitting.trained_payne import TrainedPayne, read_network
from maury.spectra.operators import vacuum_to_air

NAMES = ("Teff", "logg", "Vturb", "[C/H]", "[Mg/H]", "[Fe/H]", "Vmacro")
LOWEST = np.array([4000.0, 0.0, 0.5, -1.5, -1.5, -1.5, 0.0])
HIGHEST = np.array([6500.0, 5.0, 3.5, 0.5, 0.5, 0.5, 10.0])
WAVE = 5000.0 + 0.02 * np.arange(2001)
PIXELS = 5004.0 + 0.1 * np.arange(300)
SURVEY = ("teff", "logg", "m_h", "fe_h", "mg_fe", "age")


def weights(rng, n_label=7, first=5, second=6, n_pixel=WAVE.size):
    """A network as the authors' code writes it: a row for each neuron."""
    return {
        "w_array_0": rng.normal(size=(first, n_label)),
        "b_array_0": rng.normal(size=first),
        "w_array_1": rng.normal(size=(second, first)),
        "b_array_1": rng.normal(size=second),
        "w_array_2": 0.01 * rng.normal(size=(n_pixel, second)),
        "b_array_2": 1 + 0.01 * rng.normal(size=n_pixel),
        "x_min": LOWEST[:n_label],
        "x_max": HIGHEST[:n_label],
    }


def authors_flux(arrays, labels):
    """As `get_spectrum_from_neural_net` of The_Payne defines it, star by star."""

    def leaky(z):
        return np.maximum(0, z) + 0.01 * np.minimum(0, z)

    out = []
    for one in labels:
        x = (one - arrays["x_min"]) / (arrays["x_max"] - arrays["x_min"]) - 0.5
        for k in range(2):
            x = leaky(arrays[f"w_array_{k}"] @ x + arrays[f"b_array_{k}"])
        out.append(arrays["w_array_2"] @ x + arrays["b_array_2"])
    return np.array(out)


def describe(folder, *, arrays=None, wave=WAVE, text=""):
    arrays = weights(np.random.default_rng(0)) if arrays is None else arrays
    np.savez(folder / "net.npz", **arrays)
    np.savez(folder / "wave.npz", wavelength=wave)
    names = ", ".join(f'"{name}"' for name in NAMES[: len(arrays["x_min"])])
    told = f'network = "net.npz"\nwavelength = "wave.npz"\nlabels = [{names}]\n{text}'
    (folder / "payne.toml").write_text(told, "utf-8")
    return folder / "payne.toml"


def stars(n, seed=1):
    rng = np.random.default_rng(seed)
    fe_h = rng.normal(-0.3, 0.2, n)
    columns = (
        rng.normal(5000, 300, n),
        rng.normal(3.0, 0.5, n),
        fe_h + rng.normal(0, 0.02, n),
        fe_h,
        0.1 - 0.2 * fe_h + rng.normal(0, 0.03, n),
        rng.uniform(1, 12, n),
    )
    return np.column_stack(columns)


def test_flux_and_derivatives_are_those_of_the_authors_code(tmp_path):
    arrays = weights(np.random.default_rng(3))
    np.savez(tmp_path / "net.npz", **arrays)
    network = read_network(tmp_path / "net.npz")
    labels = np.random.default_rng(4).uniform(LOWEST, HIGHEST, (20, 7))
    found = network.evaluate(labels)
    np.testing.assert_allclose(found.flux, authors_flux(arrays, labels), atol=2e-6)
    for k in range(7):
        step = np.zeros(7)
        step[k] = 1e-5 * (HIGHEST - LOWEST)[k]
        ends = [authors_flux(arrays, labels + sign * step) for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * step[k])
        scale = np.abs(found.jacobian[:, k]).max()
        # Beside a kink of the activation a difference is between two slopes.
        close = np.abs(found.jacobian[:, k] - numeric) < 1e-3 * scale
        assert close.all(axis=1).mean() > 0.9


def test_labels_of_the_network_follow_from_those_of_the_survey(tmp_path):
    theory = TrainedPayne.read(describe(tmp_path, text="fixed = { Vmacro = 4.0 }"))
    own = theory.inputs(SURVEY, stars(5))
    truth = dict(zip(SURVEY, stars(5).T, strict=True))
    np.testing.assert_array_equal(own[:, :2], stars(5)[:, :2])
    # The middle of the range where nothing tells; carbon follows the metals.
    np.testing.assert_allclose(own[:, 2], 2.0)
    np.testing.assert_allclose(own[:, 3], truth["m_h"])
    np.testing.assert_allclose(own[:, 4], truth["fe_h"] + truth["mg_fe"])
    np.testing.assert_allclose(own[:, 5], truth["fe_h"])
    np.testing.assert_allclose(own[:, 6], 4.0)
    # Without metals of its own a survey has those of iron; without magnesium it follows alpha.
    few = np.column_stack([truth["fe_h"], truth["mg_fe"]])
    again = theory.inputs(("fe_h", "alpha_m"), few)
    np.testing.assert_allclose(again[:, 3], truth["fe_h"])
    np.testing.assert_allclose(again[:, 4], truth["fe_h"] + truth["mg_fe"])


def test_spectra_are_drawn_around_the_stars_and_seen_by_the_survey(tmp_path):
    arrays = weights(np.random.default_rng(0))
    vacuum = WAVE * 1.0002787
    path = describe(
        tmp_path, arrays=arrays, wave=vacuum, text='medium = "vacuum"\nresolving_power = 50000'
    )
    theory, known = TrainedPayne.read(path), stars(200)
    np.testing.assert_allclose(theory.wave_aa, vacuum_to_air(vacuum))
    library = SyntheticLibrary.drawn(
        theory, SURVEY, known, wave_aa=PIXELS, resolving_power=50_000, seed=1, origin=path
    )
    assert library.names == SURVEY[:-1]
    assert len(library.labels) == 2000
    np.testing.assert_allclose(library.labels.mean(axis=0), known[:, :5].mean(axis=0), rtol=0.05)
    # The scatter of iron about metals stays that of the stars, and no star is twice there.
    apart = library.labels[:, 2] - library.labels[:, 3]
    assert apart.std() == pytest.approx(0.02 * np.sqrt(1 + 2 * 0.35**2), rel=0.1)
    assert len(np.unique(library.labels[:, 0])) > 1950
    whole = np.column_stack([library.labels, np.zeros(2000)])
    own = theory.inputs(SURVEY, whole)
    assert ((own >= LOWEST) & (own <= HIGHEST)).all()
    # Five pixels of the network are one of the survey, whose mean is the integral over it.
    fine = authors_flux(arrays, own[:3])
    edges = PIXELS[100] + np.array([-0.05, 0.05])
    inside = (theory.wave_aa > edges[0]) & (theory.wave_aa < edges[1])
    np.testing.assert_allclose(library.flux[:3, 100], fine[:, inside].mean(axis=1), atol=0.004)


def test_a_network_that_knows_no_such_stars_says_so(tmp_path):
    path = describe(tmp_path)
    hot = stars(50) + np.array([9000.0, 0, 0, 0, 0, 0])
    with pytest.raises(InputFileError, match=r"Teff 4000 to 6500, stars near 1\.4e\+04"):
        SyntheticLibrary.drawn(
            TrainedPayne.read(path),
            SURVEY,
            hot,
            wave_aa=PIXELS,
            resolving_power=None,
            seed=1,
            origin=path,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_array_1": np.zeros((6, 4))}, "is no network of The Payne: weight_1"),
        ({"b_array_2": np.zeros((2, 3))}, "is no network of The Payne"),
        ({"x_max": LOWEST}, "x_min and x_max must be ranges"),
        ({"x_min": LOWEST[:3]}, "x_min and x_max must be ranges"),
        ({"b_array_0": np.full(5, np.nan)}, "b_array_0 must hold finite numbers"),
        ({"w_array_0": np.zeros((2001, 5, 7))}, "a network for each pixel"),
        ({"w_array_0": np.array(["a"])}, "w_array_0 must hold finite numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, message):
    np.savez(tmp_path / "net.npz", **(weights(np.random.default_rng(0)) | change))
    with pytest.raises(InputFileError, match=message):
        read_network(tmp_path / "net.npz")


def test_pickles_and_missing_arrays_are_refused(tmp_path):
    arrays = weights(np.random.default_rng(0))
    np.savez(tmp_path / "a.npz", **(arrays | {"x_min": np.array([{}], dtype=object)}))
    with pytest.raises(InputFileError):
        read_network(tmp_path / "a.npz")
    del arrays["b_array_1"]
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(InputFileError, match="no array 'b_array_1'"):
        read_network(tmp_path / "b.npz")


def test_a_description_that_is_wrong_is_one_clear_error(tmp_path):
    path = describe(tmp_path, text="resolving_pwr = 5")
    with pytest.raises(ConfigError, match="resolving_pwr"):
        TrainedPayne.read(path)
    with pytest.raises(ConfigError, match="fixed has Vsini"):
        TrainedPayne.read(describe(tmp_path, text="fixed = { Vsini = 4.0 }"))
    with pytest.raises(InputFileError, match="wavelength must be 2001 increasing numbers"):
        TrainedPayne.read(describe(tmp_path, wave=WAVE[:-1]))
    path = describe(tmp_path)
    path.write_text(path.read_text("utf-8").replace(', "Vmacro"', ""), "utf-8")
    with pytest.raises(InputFileError, match=r"takes 7 labels, and .* names 6"):
        TrainedPayne.read(path)
    with pytest.raises(InputFileError, match="names neither labels nor wavelengths"):
        SyntheticLibrary.read(tmp_path / "net.npz", wave_aa=PIXELS, resolving_power=None)
