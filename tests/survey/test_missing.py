"""Numbers that mean "missing" do so wherever a column is read: labels, cuts, positions, motions."""

from pathlib import Path

import numpy as np
import pytest

from maury.io.source_table import SourceTable
from maury.survey.archives.cuts import Cut, apply_cuts
from maury.survey.crossmatch.tables import table_positions
from maury.survey.readers.values import MISSING, stands_for_missing


def table(**arrays):
    return SourceTable.of_arrays(Path("t.fits"), arrays)


@pytest.mark.parametrize("number", MISSING)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stand_ins_in_single_precision_are_known(number, dtype):
    values = np.array([number, number * 1.001, 5.0, np.nan], dtype=dtype).astype(np.float64)
    assert stands_for_missing(values, None).tolist() == [True, False, False, False]
    assert stands_for_missing(values, (5.0,)).tolist() == [False, False, True, False]
    assert not stands_for_missing(values, ()).any()


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_cuts_without_stated_stand_ins_take_the_usual_ones(dtype):
    values = table(x=np.array([-9999, -5, 5], dtype=dtype))
    below = Cut(name="x", column="x", max=0.0, why="low", source="https://a.b")
    assert apply_cuts([below], values).keep.tolist() == [False, True, False]
    assert apply_cuts([below], values).flow()[0].n_missing == 1
    assert apply_cuts([below], values, missing=()).keep.tolist() == [True, True, False]


def test_a_motion_that_is_missing_moves_no_star():
    ra, dec, epoch = np.array([10.0, 20.0]), np.array([1.0, -9999.0]), np.full(2, 2016.0)
    arrays = {"ra": ra, "dec": dec, "epoch": epoch, "pmra": [-9999.0, 5.0], "pmdec": [-999.0, 5.0]}
    keys = {name: name for name in arrays}
    places = table_positions(table(**{k: np.asarray(v) for k, v in arrays.items()}), keys)
    assert places.usable.tolist() == [True, False]
    still = table_positions(
        table(ra=ra, dec=dec, epoch=epoch), {n: n for n in ("ra", "dec", "epoch")}
    )
    np.testing.assert_allclose(
        places.vectors(2000.0)[0], still.vectors(2000.0)[0], rtol=0, atol=1e-15
    )
