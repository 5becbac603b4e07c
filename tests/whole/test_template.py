"""The package of the guide to own parts: installed, it reads, trains and predicts by its names."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from builders.training_survey import WAVE, write_survey

TEMPLATE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "template"
USE = """
import json, sys
import numpy as np
import maury
from maury.training import ensemble

survey = maury.Survey.open("survey.zarr")
quick = {"network": {"preset": "line"}, "training": {"epochs": 2}}
told = {}
every = {"line": {"config": quick, "members": 1}, "nearest": {"method": "nearest"}}
for name, options in every.items():
    model = maury.train(survey, f"{name}.model", seed=1, n_processes=1, **options)
    told[name] = np.isfinite(maury.predict(model, survey, f"{name}.fits").table["teff"]).mean()
told["read"] = maury.ingest_toml("plain.toml", "plain.zarr").id.tolist()
theory = {"training": {"synthetic": "two-lines", "steps": 20, "stars": 200}}
model = ensemble.train(survey, "theory.model", members=1, n_processes=1, config=theory)
told["theory"] = model.training["theory"]["reason"]
json.dump(told, sys.stdout)
"""
LATER = """
import maury
model = maury.Model.open("nearest.model")
again = maury.predict(model, maury.Survey.open("survey.zarr"), "again.fits")
print(again.metadata["model"]["preset"])
print("my_parts" in __import__("sys").modules)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder on Python's path that holds what pip makes of the template."""
    folder = tmp_path_factory.mktemp("site-packages")
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text("utf-8"))
    (module,) = project["tool"]["setuptools"]["py-modules"]
    shutil.copy(TEMPLATE / f"{module}.py", folder)
    about = project["project"]
    info = folder / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    )
    groups = about["entry-points"]
    kinds = ("networks", "methods", "readers", "theories")
    assert set(groups) == {f"maury.{kind}" for kind in kinds}
    lines = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def run(code: str, folder: Path, installed: Path) -> str:
    path = os.pathsep.join([str(installed), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_every_part_of_the_template_works_by_its_name(tmp_path, installed):
    write_survey(tmp_path / "survey.zarr", n=300)
    (tmp_path / "stars").mkdir()
    for number in range(2):
        header = fits.Header({"CRVAL1": 8420.0, "CDELT1": 0.4, "CRPIX1": 1.0})
        header.update(SNR=50.0, OBJECT=f"star {number}")
        hdu = fits.PrimaryHDU(np.ones(WAVE.size, dtype=np.float32), header)
        hdu.writeto(tmp_path / "stars" / f"{number}.fits")
    (tmp_path / "plain.toml").write_text('[spectra]\nfolder = "stars"\nreader = "plain"\n')
    told = json.loads(run(USE, tmp_path, installed).splitlines()[-1])
    assert told["line"] == 1.0
    assert told["nearest"] == 1.0
    assert told["read"] == ["star 0", "star 1"]
    assert "two-lines" in told["theory"]
    # In another session, which nobody told of the package.
    assert run(LATER, tmp_path, installed).split() == ["nearest", "True"]
