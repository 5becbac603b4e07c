"""Cross-match with a small HATS catalogue made here; needs LSDB, which the tests do not install."""

import warnings
from contextlib import ExitStack

import numpy as np
import pytest
from typer.testing import CliRunner

from maury.cli.app import app
from maury.errors import ColumnError, ConfigError, InputFileError, MissingExtra
from maury.io.tables import open_table
from maury.survey.crossmatch import Positions, match_positions
from maury.survey.crossmatch.allsky import HatsColumns, match_hats

with warnings.catch_warnings():
    # pandas warns of an option that LSDB sets.
    warnings.simplefilter("ignore")
    try:
        import lsdb
    except ImportError:
        lsdb = None

needs_lsdb = pytest.mark.skipif(lsdb is None, reason="LSDB (extra 'allsky') is not installed")
pytestmark = pytest.mark.filterwarnings("default")


def sky(n: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "source_id": np.arange(n) + 4295806720,
        "ra": rng.uniform(0, 360, n),
        "dec": np.degrees(np.arcsin(rng.uniform(-1, 1, n))),
        "pmra": np.where(rng.random(n) < 0.02, 8000.0, rng.normal(0, 30, n)),
        "pmdec": np.where(rng.random(n) < 0.1, np.nan, rng.normal(0, 30, n)),
        "ref_epoch": np.full(n, 2016.0),
    }


@pytest.fixture(scope="module")
def stars() -> dict[str, np.ndarray]:
    return sky(6000, 0)


@pytest.fixture(scope="module")
def hats(stars, tmp_path_factory):
    import pandas as pd

    path = tmp_path_factory.mktemp("hats") / "sky"
    lsdb.from_dataframe(
        pd.DataFrame(stars), ra_column="ra", dec_column="dec", partition_rows=500
    ).write_catalog(path)
    return path


def positions(stars: dict[str, np.ndarray]) -> Positions:
    names = ("ra", "dec", "ref_epoch", "pmra", "pmdec")
    return Positions(*(stars[name] for name in names))


@needs_lsdb
def test_a_hats_catalogue_gives_what_arrays_give(stars, hats):
    right = positions(stars)
    x, y, z = right.vectors(2000.0)[::3].T
    left = Positions(
        np.r_[np.degrees(np.arctan2(y, x)) % 360.0, np.nan],
        np.r_[np.degrees(np.arcsin(z)), 0.0],
        2000.0,
    )
    plain = match_positions(left, right, 2.0, epoch_yr=2000.0)
    match, found = match_hats(left, hats, also=["source_id"])
    assert len(lsdb.open_catalog(hats).get_healpix_pixels()) > 5
    assert plain.matched.sum() == 2000
    np.testing.assert_array_equal(
        match.take(found["source_id"], -1), plain.take(stars["source_id"], -1)
    )
    np.testing.assert_array_equal(match.n_candidate, plain.n_candidate)
    np.testing.assert_array_equal(match.flags, plain.flags)
    np.testing.assert_allclose(match.separation_arcsec, plain.separation_arcsec, atol=1e-6)


@needs_lsdb
def test_no_star_of_ours_means_no_match(hats):
    nowhere = Positions([np.nan], [0.0], 2000.0)
    match, found = match_hats(nowhere, hats)
    assert len(found) == 0
    assert not match.matched.any()


@needs_lsdb
def test_what_is_not_there_is_said(hats, tmp_path):
    left = Positions([1.0], [0.0], 2000.0)
    with pytest.raises(ColumnError, match="did you mean 'pmra'"):
        match_hats(left, hats, columns=HatsColumns(pmra="pmraa"))
    with pytest.raises(InputFileError, match="no HATS catalogue"):
        match_hats(left, tmp_path)


@pytest.mark.skipif(lsdb is not None, reason="LSDB is installed")
def test_without_lsdb_the_extra_is_named(tmp_path):
    with pytest.raises(MissingExtra, match=r"maury\[allsky\]"):
        match_hats(Positions([1.0], [0.0], 2000.0), tmp_path)


@needs_lsdb
def test_the_command_matches_a_table_with_the_whole_sky(stars, hats, tmp_path):
    from astropy.table import Table

    rows = np.arange(0, 6000, 60)
    Table(
        {"name": [f"s{k}" for k in rows], "ra": stars["ra"][rows], "dec": stars["dec"][rows]}
    ).write(tmp_path / "left.fits")
    words = ["crossmatch", str(tmp_path / "left.fits"), str(hats), str(tmp_path / "o.parquet")]
    words += ["--hats", "--left", "ra=ra,dec=dec,epoch=2016"]
    done = CliRunner().invoke(app, [*words, "--take", "source_id,pmra"])
    assert done.exit_code == 0, done.output
    assert "100 of 100 stars matched" in done.output
    with ExitStack() as stack:
        table = open_table(tmp_path / "o.parquet", stack)
        assert table.names[:5] == ("name", "ra", "dec", "source_id", "pmra")
        assert table.texts("source_id").tolist() == stars["source_id"][rows].astype(str).tolist()
        np.testing.assert_array_equal(table.floats("pmra"), stars["pmra"][rows])
    done = CliRunner().invoke(app, [*words, "--overwrite", "--take", "source", "--radius", "1"])
    assert isinstance(done.exception, ColumnError)


def test_the_whole_sky_has_no_identifiers(tmp_path):
    from astropy.table import Table

    Table({"ra": [1.0], "dec": [2.0]}).write(tmp_path / "left.fits")
    words = ["crossmatch", str(tmp_path / "left.fits"), "sky", str(tmp_path / "o.fits"), "--hats"]
    done = CliRunner().invoke(app, [*words, "--right", "id=source_id,ra=ra,dec=dec"])
    assert isinstance(done.exception, ConfigError)
