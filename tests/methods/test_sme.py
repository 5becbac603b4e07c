"""SME with PySME itself, the atmospheres and lines of the reference data, and simulated spectra.

PySME asks for an older astropy than the rest: MAURY_PYSME names an interpreter that has it beside
this package.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from builders.surveys import copy_survey
from maury.methods.fitting.atmospheres import LINE_COLUMNS, AtmosphereNodes, read_lines
from maury.prediction.catalogue import Catalogue
from maury.survey.store import Survey

PYSME = Path(os.environ.get("MAURY_PYSME", "none"))
needs_pysme = pytest.mark.skipif(
    not PYSME.exists(), reason="MAURY_PYSME names no interpreter with pysme-astro"
)
SPECTRUM = """
import json, sys
import numpy as np
from pathlib import Path
from maury.methods.fitting.synthesis import PySmeSynthesiser
lines, nodes, labels, wave, out = sys.argv[1:]
code = PySmeSynthesiser(Path(lines), nodes, 20000.0)
flux = [code.synthesise(one, np.load(wave)) for one in json.loads(labels)]
np.save(out, flux)
"""


@pytest.fixture(scope="module")
def nodes(shared, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("atmospheres") / "nodes.npz"
    with np.load(shared / "data/synthesis/atmos_nodes.npz") as file:
        np.savez(
            path,
            labels=file["teff_logg_feh"],
            log_tau5000=file["logtau5000"],
            structure=file["logT_logPe_logPg"],
        )
    return path


def write_lines(shared: Path, path: Path, *, weakest: float) -> Path:
    """Write lines of the Gaia-ESO list that may be seen at 5000 K, by log gf - theta E."""
    rows, species = [",".join(LINE_COLUMNS)], ""
    for line in (shared / "data/synthesis/ges_lines_8395_8810.list").read_text().splitlines():
        if line.startswith("'"):
            named = re.match(r"'([A-Z][a-z]?) (I+) ", line)
            species = f"{named[1]} {len(named[2])}" if named else species
            continue
        wave, excitation, log_gf, damping, _, radiative = map(float, line.split()[:6])
        if log_gf - 5040 / 5000 * excitation < weakest:
            continue
        width = np.log10(radiative) if radiative > 0 else 0.0
        waals = damping if damping < 0 or damping > 20 else 0.0
        rows.append(f"{species},{wave},{excitation},{log_gf},{width:.3f},0,{waals}")
    path.write_text("\n".join(rows) + "\n")
    return path


def run(*arguments: str) -> None:
    done = subprocess.run([PYSME, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


def test_atmospheres_are_interpolated_between_their_nodes(nodes):
    made = AtmosphereNodes.read(nodes)
    k = 100
    teff, logg, m_h = made.labels[k]
    at = made.at(teff, logg, m_h)
    np.testing.assert_allclose(np.log10(at.temperature), made.structure[k, :, 0], atol=1e-5)
    # Hydrostatic equilibrium, dP/dm = g, and the perfect gas.
    slope = np.gradient(at.gas_pressure, at.mass_column)
    np.testing.assert_allclose(slope, 10.0**logg, rtol=1e-6)
    ideal = (at.atoms + at.electrons) * 1.380649e-16 * at.temperature
    np.testing.assert_allclose(ideal, at.gas_pressure)
    hotter = made.at(teff + 100.0, logg, m_h)
    deep = made.log_tau5000 > -1
    assert np.all(hotter.temperature[deep] > at.temperature[deep])
    left_out = AtmosphereNodes(
        np.delete(made.labels, k, 0), made.log_tau5000, np.delete(made.structure, k, 0)
    )
    apart = left_out.at(teff, logg, m_h).temperature / at.temperature - 1
    assert np.abs(apart[deep]).max() < 0.02


@pytest.mark.peer
@needs_pysme
def test_pysme_agrees_with_another_code(shared, nodes, tmp_path):
    """Spectra of Turbospectrum with the same lines and atmospheres, and CN, which is not here."""
    with np.load(shared / "data/synthesis/synthetic_spectra.npz") as file:
        labels, names = file["labels"], [str(name) for name in file["label_names"]]
        known = dict(zip(names, labels.T, strict=True))
        plain = ~file["designed"] & (known["Teff"] > 4800) & (np.abs(known["alphaM"]) < 0.05)
        stars = np.flatnonzero(plain)[[5, 500]]
        expected = file["flux_u16"][stars] * float(file["flux_scale"])
    wave = 8404 + 0.2 * np.arange(expected.shape[1])
    np.save(tmp_path / "wave.npy", wave)
    given = [
        {
            "teff": float(known["Teff"][k]),
            "logg": float(known["logg"][k]),
            "m_h": float(known["MH"][k]),
            "vmic": float(known["vmic_kms"][k]),
        }
        for k in stars
    ]
    lines = write_lines(shared, tmp_path / "lines.csv", weakest=-99.0)
    wave_file, out = str(tmp_path / "wave.npy"), str(tmp_path / "flux.npy")
    run("-c", SPECTRUM, str(lines), str(nodes), json.dumps(given), wave_file, out)
    flux = np.load(out)
    for mine, theirs in zip(flux, expected, strict=True):
        assert np.corrcoef(mine, theirs)[0, 1] > 0.99
        assert np.sqrt(np.mean((mine - theirs) ** 2)) < 0.1 * np.sqrt(np.mean((1 - theirs) ** 2))


@pytest.mark.peer
@needs_pysme
def test_abundances_are_those_of_another_code(shared, nodes, tmp_path):
    """Metal-poor stars whose abundances vary independently; a label of 0 changes nothing."""
    with np.load(shared / "data/synthesis/synthetic_spectra.npz") as file:
        labels, names = file["labels"], [str(name) for name in file["label_names"]]
        known = dict(zip(names, labels.T, strict=True))
        off = known["MgFe"] + known["FeH"] - known["MH"]
        poor = (known["MH"] < -0.7) & (known["Teff"] > 4800) & (np.abs(off) > 0.15)
        stars = np.flatnonzero(poor)[:2]
        expected = file["flux_u16"][stars] * float(file["flux_scale"])
    wave = 8404 + 0.2 * np.arange(expected.shape[1])
    np.save(tmp_path / "wave.npy", wave)
    keys = {"Teff": "teff", "logg": "logg", "MH": "m_h", "vmic_kms": "vmic"}
    bare = [{ours: float(known[key][k]) for key, ours in keys.items()} for k in stars]
    keys |= {"FeH": "fe_h", "alphaM": "alpha_m", "MgFe": "mg_fe", "SiFe": "si_fe"}
    keys |= {"AlFe": "al_fe", "NiFe": "ni_fe"}
    whole = [{ours: float(known[key][k]) for key, ours in keys.items()} for k in stars]
    solar = [one | dict.fromkeys(("mg_fe", "si_fe", "alpha_m"), 0.0) for one in bare]
    lines = write_lines(shared, tmp_path / "lines.csv", weakest=-99.0)
    wave_file, out = str(tmp_path / "wave.npy"), str(tmp_path / "flux.npy")
    run("-c", SPECTRUM, str(lines), str(nodes), json.dumps(bare + whole + solar), wave_file, out)
    plain, right, zero = np.load(out).reshape(3, 2, -1)
    np.testing.assert_allclose(zero, plain, atol=1e-4)
    # Mg I 8736 and 8806.8 angstrom.
    magnesium = (np.abs(wave - 8736.0) < 1.5) | (np.abs(wave - 8806.8) < 1.5)
    for flux, without, theirs in zip(right, plain, expected, strict=True):
        assert np.sqrt(np.mean((flux - theirs) ** 2)) < 0.015
        width, before, wanted = ((1 - one)[magnesium].sum() for one in (flux, without, theirs))
        assert abs(width - wanted) < 0.5 * abs(before - wanted)


@pytest.mark.peer
@needs_pysme
def test_sme_is_trained_and_predicts(shared, nodes, tiny_survey, tmp_path):
    lines = write_lines(shared, tmp_path / "lines.csv", weakest=-4.5)
    config = tmp_path / "sme.toml"
    config.write_text(
        f'[method]\nline_list = "{lines}"\natmosphere = "{nodes}"\n'
        'labels = ["teff", "logg", "m_h"]\nmax_steps = 4\n'
    )
    model, catalogue = tmp_path / "model", tmp_path / "out.fits"
    command = ("-m", "maury", "train", str(tiny_survey), str(model), "--method", "sme")
    run(*command, "--config", str(config))
    survey = Survey.open(tiny_survey)
    truth = survey.labels(("teff", "m_h"))
    row = int(np.argmin(np.abs(truth[:, 0] - 5200) / 100 - survey.column("snr") / 20))
    one = copy_survey(tiny_survey, tmp_path / "one.zarr", rows=np.array([row]))
    run("-m", "maury", "predict", str(model), str(one), str(catalogue))
    table = Catalogue.read(catalogue).table
    assert len(table) == 1
    assert abs(table["teff"][0] - truth[row, 0]) < 300
    # Weak lines are left out here, which the fitted continuum takes for metals.
    assert abs(table["m_h"][0] - truth[row, 1]) < 0.4
    assert 0 < table["teff_formal_error"][0] < 300
    assert np.isfinite(table["chi2_reduced"][0])


def test_lines_and_atmospheres_that_are_none_are_refused(tmp_path, nodes):
    from maury.errors import InputFileError

    with np.load(nodes) as file:
        arrays = dict(file)
    for change in (
        {"labels": arrays["labels"][:3], "structure": arrays["structure"][:3]},
        {"log_tau5000": arrays["log_tau5000"][::-1]},
        {"structure": arrays["structure"][:, :5]},
        {"structure": np.full_like(arrays["structure"], np.nan)},
    ):
        np.savez(tmp_path / "bad.npz", **(arrays | change))
        with pytest.raises(InputFileError, match=r"bad\.npz"):
            AtmosphereNodes.read(tmp_path / "bad.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InputFileError, match="no model atmospheres"):
        AtmosphereNodes.read(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", labels=np.array([{}], dtype=object))
    with pytest.raises(InputFileError, match="no model atmospheres"):
        AtmosphereNodes.read(tmp_path / "objects.npz")
    (tmp_path / "lines.csv").write_text("species,wavelength_aa\nFe 1,8500\n")
    with pytest.raises(InputFileError, match="log_gf"):
        read_lines(tmp_path / "lines.csv")


def test_lines_come_in_the_order_of_wavelength(shared, tmp_path):
    path = write_lines(shared, tmp_path / "lines.csv", weakest=-4.0)
    lines = read_lines(path)
    assert np.all(np.diff(lines["wavelength_aa"]) >= 0)
    assert "Ca 2" in set(lines["species"])
    assert lines["log_gf"].dtype == np.float64
