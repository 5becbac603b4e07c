"""What `maury info` says of a catalogue."""

import numpy as np
from astropy.table import Table
from typer.testing import CliRunner

from maury.cli.app import app
from maury.prediction.catalogue import Catalogue, write_stored


def test_labels_of_ones_own_are_shown_with_their_range(tmp_path):
    columns = {"id": ["a", "b", "c"], "teff": [4000.0, 5000.0, 6000.0], "teff_error": [50.0] * 3}
    columns |= {"ti_fe": [-0.1, 0.2, np.nan], "ti_fe_error": [0.05, 0.05, np.nan]}
    columns |= {"parallax": [1.0, 2.0, 3.0], "parallax_error": [0.1] * 3}
    catalogue = Catalogue(Table(columns), {"simulated": True})
    write_stored(catalogue.stored(), tmp_path / "labels.fits")
    done = CliRunner().invoke(app, ["info", str(tmp_path / "labels.fits")], env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line.split() for line in done.output.splitlines() if line.split()}
    assert rows["teff"][2:4] == ["3", "-"]
    assert rows["ti_fe"][1:4] == ["dex", "2", "1"]
    table = done.output[done.output.rindex("lowest") :]
    assert "parallax" not in table


def test_a_path_that_is_not_there_is_told_as_such(tmp_path):
    done = CliRunner().invoke(app, ["info", str(tmp_path / "absent.zarr")])
    assert "there is no such file or directory" in str(done.exception)
