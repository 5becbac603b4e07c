"""Cross-match: astropy and brute force are the oracles."""

import warnings
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from maury.cli.app import app
from maury.errors import (
    ColumnError,
    ConfigError,
    IdentifierError,
    LengthMismatch,
    MauryError,
    OutputExists,
)
from maury.io.source_table import SourceTable
from maury.io.tables import open_table
from maury.survey.crossmatch import (
    Match,
    MatchFlag,
    Positions,
    fill,
    match_identifiers,
    match_positions,
)
from maury.survey.crossmatch.candidates import MOST_CANDIDATES
from maury.survey.crossmatch.tables import table_positions

CENTRES = [(0.0, 0.0), (359.9999, 12.0), (180.0, 90.0), (40.0, -89.9999), (266.4, -28.9)]


def by_astropy(ra, dec, epoch, pmra, pmdec, to) -> SkyCoord:
    """Positions at the epochs `to`."""
    stars = SkyCoord(
        ra=np.asarray(ra) * u.deg,
        dec=np.asarray(dec) * u.deg,
        pm_ra_cosdec=np.asarray(pmra) * u.mas / u.yr,
        pm_dec=np.asarray(pmdec) * u.mas / u.yr,
        obstime=Time(np.asarray(epoch), format="jyear"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stars.apply_space_motion(new_obstime=Time(np.asarray(to), format="jyear"))


def cap(rng, centre, n, size_arcsec):
    """Directions around a centre, in degrees; also around a pole."""
    start = SkyCoord(*centre, unit="deg")
    found = start.directional_offset_by(
        rng.uniform(0, 360, n) * u.deg, size_arcsec * np.sqrt(rng.random(n)) * u.arcsec
    )
    return found.ra.deg, found.dec.deg


def catalogue(rng, centre, n, *, moving=1.0, epochs=(2016.0, 2016.0), magnitude=False):
    ra, dec = cap(rng, centre, n, 30.0)
    pm = rng.normal(0.0, 200.0, (2, n))
    pm[:, rng.random(n) >= moving] = np.nan
    return Positions(
        ra,
        dec,
        rng.uniform(*epochs, n),
        pmra_masyr=pm[0],
        pmdec_masyr=pm[1],
        magnitude=rng.uniform(10, 12, n) if magnitude else None,
    )


def pair_separations(a, b, epoch):
    """Separations (n_a, n_b) by the rule of the documentation, by astropy."""
    shape = (len(a), len(b))

    def grid(values, axis):
        return np.broadcast_to(np.expand_dims(np.asarray(values), axis), shape)

    def at(side, axis, to):
        names = ("ra_deg", "dec_deg", "epoch_yr", "pmra_masyr", "pmdec_masyr")
        ra, dec, since, *pm = (grid(getattr(side, name), axis) for name in names)
        moved = by_astropy(ra, dec, since, *np.nan_to_num(pm), to)
        still = ~grid(side.moving, axis)
        return SkyCoord(np.where(still, ra, moved.ra.deg), np.where(still, dec, moved.dec.deg),
                        unit="deg")  # fmt: skip

    to = np.where(grid(b.moving, 0), epoch, grid(b.epoch_yr, 0))
    to = np.where(grid(a.moving, 1), to, grid(a.epoch_yr, 1))
    return at(a, 1, to).separation(at(b, 0, to)).arcsec


@settings(deadline=None, max_examples=25)
@given(
    ra=st.floats(0, 360),
    dec=st.one_of(st.floats(-89.9, 89.9), st.sampled_from([-89.99, 89.99])),
    pmra=st.floats(-11000, 11000),
    pmdec=st.floats(-11000, 11000),
    years=st.floats(-100, 100),
)
def test_stars_move_as_in_astropy(ra, dec, pmra, pmdec, years):
    one = Positions([ra], [dec], 2016.0, [pmra], [pmdec])
    x, y, z = one.vectors(2016.0 + years)[0]
    moved = by_astropy([ra], [dec], [2016.0], [pmra], [pmdec], [2016.0 + years])[0]
    found = SkyCoord(x=x, y=y, z=z, representation_type="cartesian", frame="icrs")
    assert found.separation(SkyCoord(moved.ra, moved.dec)).mas < 0.01


def test_stars_move_across_the_poles():
    # At the pole the meridian of the right ascension says which way is east.
    north = Positions([0.0, 90.0, 0.0], [90.0, 90.0, -90.0], 2000.0, [1e6, 1e6, 0.0], [0, 0, 1e6])
    tan = np.radians(1000.0 / 3600.0)
    expected = np.array([[0.0, tan, 1.0], [-tan, 0.0, 1.0], [tan, 0.0, -1.0]]) / np.hypot(1, tan)
    np.testing.assert_allclose(north.vectors(2001.0), expected, atol=1e-14)


@pytest.mark.parametrize("centre", CENTRES)
def test_candidates_are_those_of_astropy(centre):
    rng = np.random.default_rng(1)
    left, right = catalogue(rng, centre, 150, epochs=(2000, 2000)), catalogue(rng, centre, 300)
    found = match_positions(left, right, 3.0)
    a, b = (
        by_astropy(s.ra_deg, s.dec_deg, s.epoch_yr, s.pmra_masyr, s.pmdec_masyr, 2016.0)
        for s in (left, right)
    )
    distance = SkyCoord(a.ra, a.dec)[:, None].separation(SkyCoord(b.ra, b.dec)[None, :]).arcsec
    inside = distance <= 3.0
    assert inside.sum() > 100
    np.testing.assert_array_equal(found.n_candidate, inside.sum(axis=1))
    nearest = np.where(inside.any(axis=1), distance.argmin(axis=1), -1)
    np.testing.assert_array_equal(found.index, nearest)
    np.testing.assert_allclose(
        found.separation_arcsec[found.matched], distance.min(axis=1)[found.matched], atol=1e-5
    )
    ranked = np.sort(distance, axis=1)[:, 1]
    several = inside.sum(axis=1) > 1
    np.testing.assert_allclose(found.next_arcsec[several], ranked[several], atol=1e-5)
    assert np.isnan(found.next_arcsec[~several]).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    centre=st.sampled_from(CENTRES),
    moving=st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
    spread=st.sampled_from([0.0, 3.0]),
)
def test_stars_without_a_motion_are_met_at_their_own_epoch(seed, centre, moving, spread):
    rng = np.random.default_rng(seed)
    left = catalogue(rng, centre, 30, moving=moving[0], epochs=(1998, 1998 + spread))
    right = catalogue(rng, centre, 40, moving=moving[1], epochs=(2014, 2014 + spread))
    found = match_positions(left, right, 8.0)
    epoch = found.settings["epoch_yr"]
    distance = pair_separations(left, right, epoch)
    np.testing.assert_array_equal(found.n_candidate, (distance <= 8.0).sum(axis=1))
    best = distance.min(axis=1)
    np.testing.assert_array_equal(found.matched, best <= 8.0)
    np.testing.assert_allclose(
        found.separation_arcsec[found.matched], best[found.matched], atol=1e-5
    )
    for row in np.flatnonzero(found.matched):
        still = not left.moving[row] and not right.moving[found.index[row]]
        assert bool(found.has(MatchFlag.NOT_MOVED)[row]) == still


def test_a_fast_star_is_found_at_the_epoch_of_its_own_photograph():
    # 10 arcsec/yr, and left epochs that differ by 40 years: no common epoch fits all.
    epochs = np.array([1955.0, 1995.0])
    right = Positions([10.0, 50.0], [0.0, 20.0], 2016.0, [0.0, 0.0], [10_000.0, -10_000.0])
    seen = by_astropy(right.ra_deg, right.dec_deg, 2016.0, right.pmra_masyr, right.pmdec_masyr,
                      epochs)  # fmt: skip
    found = match_positions(Positions(seen.ra.deg, seen.dec.deg, epochs), right, 1.0)
    np.testing.assert_array_equal(found.index, [0, 1])
    assert np.all(found.separation_arcsec < 0.001)
    unmoved = Positions(right.ra_deg, right.dec_deg, 2016.0)
    lost = match_positions(Positions(seen.ra.deg, seen.dec.deg, epochs), unmoved, 1.0)
    assert not lost.matched.any()


def test_unusable_positions_are_unmatched_with_a_reason():
    left = Positions([np.nan, 10.0, 10.0, np.inf, 10.0], [0.0, np.nan, 91.0, 0.0, 5.0], 2000.0)
    right = Positions([np.nan, 10.0, 10.0], [0.0, 5.0, 91.0], 2000.0)
    found = match_positions(left, right)
    np.testing.assert_array_equal(found.index, [-1, -1, -1, -1, 1])
    assert found.reasons(0) == ["no usable position"]
    assert found.has(MatchFlag.NO_POSITION).sum() == 4
    assert found.report().counts["NO_POSITION"] == 4
    assert not found.has(MatchFlag.NOT_MOVED).any()


def test_an_unknown_epoch_means_as_measured():
    left = Positions([10.0], [0.0], np.nan)
    right = Positions([10.0], [0.0], 2016.0, [5000.0], [0.0])
    found = match_positions(left, right)
    assert found.settings["epoch_yr"] == 2016.0
    assert found.separation_arcsec[0] < 1e-6
    assert match_positions(left, left).index[0] == 0


def close_stars() -> tuple[Positions, Positions]:
    """Three left rows: two candidates, one candidate, and a rival for the first's nearest."""
    second = 1.0 / 3600.0
    left = Positions([10.0, 20.0, 10.0], [0.0, 0.0, 0.3 * second], 2000.0)
    right = Positions([10.0, 10.0, 20.0], [0.2 * second, -1.5 * second, second], 2000.0)
    return left, right


def test_policies_say_what_becomes_of_doubtful_rows():
    left, right = close_stars()
    flagged = match_positions(left, right)
    np.testing.assert_array_equal(flagged.index, [0, 2, 0])
    np.testing.assert_array_equal(flagged.n_candidate, [2, 1, 2])
    np.testing.assert_array_equal(flagged.certain, [False, True, False])
    assert flagged.has(MatchFlag.CLAIMED).tolist() == [True, False, True]
    dropped = match_positions(left, right, ambiguous="drop")
    np.testing.assert_array_equal(dropped.index, [-1, 2, -1])
    assert dropped.has(MatchFlag.DROPPED).tolist() == [True, False, True]
    assert np.isnan(dropped.separation_arcsec[0])
    clear = match_positions(left, right, ambiguous="drop", lead_arcsec=1.0)
    np.testing.assert_array_equal(clear.index, [0, 2, 0])
    assert clear.has(MatchFlag.SEVERAL)[0]
    assert not clear.has(MatchFlag.AMBIGUOUS).any()
    once = match_positions(left, right, ambiguous="nearest", duplicates="nearest")
    np.testing.assert_array_equal(once.index, [-1, 2, 0])
    assert once.certain.tolist() == [False, True, True]
    assert set(once.reasons(0)) == {
        MatchFlag.SEVERAL.text, MatchFlag.CLAIMED.text, MatchFlag.DROPPED.text
    }  # fmt: skip
    none = match_positions(left, right, ambiguous="nearest", duplicates="drop")
    np.testing.assert_array_equal(none.index, [-1, 2, -1])


def test_magnitudes_set_candidates_aside_only_where_others_agree():
    left, right = close_stars()
    one = Positions(left.ra_deg[:2], left.dec_deg[:2], 2000.0, magnitude=[12.0, 9.0])
    other = Positions(right.ra_deg, right.dec_deg, 2000.0, magnitude=[15.0, 12.1, 15.0])
    found = match_positions(one, other, magnitude_tolerance=0.5)
    np.testing.assert_array_equal(found.index, [1, 2])
    assert found.has(MatchFlag.BY_MAGNITUDE).tolist() == [True, False]
    assert found.n_candidate[0] == 1
    unknown = Positions(right.ra_deg, right.dec_deg, 2000.0, magnitude=[np.nan, 12.1, 15.0])
    np.testing.assert_array_equal(
        match_positions(one, unknown, magnitude_tolerance=0.5).index, [0, 2]
    )


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_rows_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    left = catalogue(rng, (0.0, 0.0), 60, moving=0.5)
    right = catalogue(rng, (0.0, 0.0), 80, moving=0.5, epochs=(2000, 2000))
    one, other = rng.permutation(60), rng.permutation(80)
    plain = match_positions(left, right, 4.0, duplicates="nearest")
    mixed = match_positions(left.take(one), right.take(other), 4.0, duplicates="nearest")
    back = np.where(mixed.matched, other[mixed.index], -1)
    np.testing.assert_array_equal(back, plain.index[one])
    np.testing.assert_array_equal(mixed.flags, plain.flags[one])
    chosen = plain.index[plain.matched]
    assert np.unique(chosen).size == chosen.size


def test_completeness_of_a_simulated_sky():
    rng = np.random.default_rng(5)
    n = 30_000
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    pm = rng.normal(0, 30.0, (2, n))
    then = by_astropy(ra, dec, 2016.0, pm[0], pm[1], 2000.0)
    order = rng.permutation(n)[: n // 2]
    left = Positions(
        then.ra.deg[order] + rng.normal(0, 0.1 / 3600, order.size) / np.cos(then.dec.rad[order]),
        then.dec.deg[order] + rng.normal(0, 0.1 / 3600, order.size),
        2000.0,
    )
    found = match_positions(left, Positions(ra, dec, 2016.0, pm[0], pm[1]))
    assert np.mean(found.index == order) >= 0.9999


identifiers = st.lists(st.sampled_from(["", " ", "a", "b ", "b", "007", "7", "é"]), max_size=12)


@settings(deadline=None)
@given(left=identifiers, right=identifiers)
def test_identifiers_match_as_a_dictionary_would(left, right):
    found = match_identifiers(np.array(left, dtype=np.str_), np.array(right, dtype=np.str_))
    places: dict[str, list[int]] = {}
    for row, name in enumerate(right):
        places.setdefault(name.strip(), []).append(row)
    for row, name in enumerate(left):
        expected = places.get(name.strip(), []) if name.strip() else []
        assert found.n_candidate[row] == len(expected)
        assert found.index[row] == (expected[0] if expected else -1)
        assert bool(found.has(MatchFlag.AMBIGUOUS)[row]) == (len(expected) > 1)
        assert bool(found.has(MatchFlag.NO_IDENTIFIER)[row]) == (not name.strip())


def test_identifiers_of_any_honest_type():
    gaia = np.array([4295806720, 2**63 - 1], dtype=np.int64)
    texts = np.array(["9223372036854775807", "x"])
    np.testing.assert_array_equal(match_identifiers(gaia, texts).index, [-1, 0])
    raw = np.array([b"x ", None, 5], dtype=object)
    found = match_identifiers(raw, texts, ambiguous="drop")
    np.testing.assert_array_equal(found.index, [1, -1, -1])
    assert found.reasons(1) == ["no identifier"]
    with pytest.raises(IdentifierError, match="whole numbers"):
        match_identifiers(np.array([1.0]), texts)
    with pytest.raises(IdentifierError, match="float"):
        match_identifiers(np.array([1.5], dtype=object), texts)


def test_positions_judge_equal_identifiers():
    left, right = close_stars()
    here = Positions(right.ra_deg, right.dec_deg, 2000.0)
    found = match_identifiers(
        ["s", "t", "s"], ["s", "s", "s"], positions=(left, here), radius_arcsec=1.0,
        ambiguous="nearest",
    )  # fmt: skip
    np.testing.assert_array_equal(found.index, [0, -1, 0])
    np.testing.assert_allclose(found.separation_arcsec[[0, 2]], [0.2, 0.1], atol=1e-6)
    far = match_identifiers(["s"], ["s"], positions=(left.take(np.array([1])),
                            here.take(np.array([0]))), radius_arcsec=1.0)  # fmt: skip
    assert far.index[0] == 0
    assert far.has(MatchFlag.FAR)[0]
    assert not far.certain[0]


def test_an_identifier_needs_no_position():
    nowhere = Positions([np.nan, 1.0], [0.0, 0.0], 2000.0)
    found = match_identifiers(["a", "b"], ["b", "a"], positions=(nowhere, nowhere))
    np.testing.assert_array_equal(found.index, [1, 0])
    assert np.isnan(found.separation_arcsec).all()


def test_fill_takes_the_second_where_the_first_knows_no_candidate():
    left, right = close_stars()
    names = match_identifiers(["", "b", "c"], ["c", "x", "c"], ambiguous="drop")
    both = fill(names, match_positions(left, right))
    np.testing.assert_array_equal(both.index, [0, 2, -1])
    assert both.has(MatchFlag.DROPPED).tolist() == [False, False, True]
    shared = fill(match_identifiers(["", "", "c"], ["c", "x", "y"]), match_positions(left, right))
    assert shared.has(MatchFlag.CLAIMED).tolist() == [True, False, True]
    with pytest.raises(LengthMismatch):
        fill(names, match_identifiers(["a"], ["b"]))


def test_columns_come_in_left_order():
    found = match_identifiers(["a", "q", "c"], ["c", "a"])
    np.testing.assert_array_equal(found.take([1.0, 2.0]), [2.0, np.nan, 1.0])
    np.testing.assert_array_equal(found.take(["u", "v"], ""), ["v", "", "u"])
    with pytest.raises(LengthMismatch):
        found.take([1.0])


def test_report_counts_every_row_once():
    left, right = close_stars()
    report = match_positions(left, right, duplicates="drop").report()
    assert (report.n_left, report.n_right, report.n_matched, report.n_certain) == (3, 3, 1, 1)
    assert report.counts["DROPPED"] == 2
    assert ("CLAIMED", "2", "another row is matched to the same star") in report.rows()
    assert "radius_arcsec=2.0" in str(report)


@pytest.mark.parametrize(("n_left", "n_right"), [(0, 0), (0, 3), (3, 0)])
def test_empty_catalogues(n_left, n_right):
    def some(n):
        return Positions(np.arange(n), np.zeros(n), 2000.0)

    found = match_positions(some(n_left), some(n_right))
    assert isinstance(found, Match)
    assert (found.index == -1).all()
    assert len(found.take(np.zeros(n_right))) == n_left
    assert len(match_identifiers(["a"] * n_left, ["b"] * n_right)) == n_left


def test_catalogues_larger_than_a_block(monkeypatch):
    rng = np.random.default_rng(0)
    left, right = catalogue(rng, (0, 0), 300), catalogue(rng, (0, 0), 200)
    whole = match_positions(left, right, 4.0)
    monkeypatch.setattr("maury.survey.crossmatch.candidates._BLOCK", 7)
    parts = match_positions(left, right, 4.0)
    np.testing.assert_array_equal(parts.index, whole.index)
    np.testing.assert_array_equal(parts.flags, whole.flags)


def test_arguments_are_left_alone_and_checked():
    ra = np.array([1.0, 2.0])
    one = Positions(ra, [0.0, 0.0], 2000.0)
    ra[0] = 5.0
    assert one.ra_deg[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        one.ra_deg[0] = 3.0
    with pytest.raises(LengthMismatch, match="dec_deg"):
        Positions(ra, [0.0], 2000.0)
    with pytest.raises(ConfigError, match="Julian"):
        Positions(ra, [0.0, 0.0], 51544.5)
    with pytest.raises(ConfigError, match="radius"):
        match_positions(one, one, 0.0)
    with pytest.raises(ConfigError, match="policy 'first'"):
        match_positions(one, one, ambiguous="first")
    with pytest.raises(ConfigError, match="positions"):
        match_identifiers(["a"], ["a"], ambiguous="nearest")
    with pytest.raises(LengthMismatch, match="identifiers"):
        match_identifiers(["a"], ["a"], positions=(one, one))


@pytest.fixture
def tables(tmp_path):
    """A table without motions of epoch 2000, and one with them of epoch 2016."""
    rng = np.random.default_rng(2)
    ra, dec = rng.uniform(0, 360, 20), rng.uniform(-60, 60, 20)
    pm = rng.normal(0, 300.0, (2, 20))
    then = by_astropy(ra, dec, 2016.0, pm[0], pm[1], 2000.0)
    left = Table({"name": [f"s{k}" for k in range(20)], "RAJ2000": then.ra.deg,
                  "DEJ2000": then.dec.deg})  # fmt: skip
    right = Table(
        {"source_id": np.arange(20) + 4295806720, "ra": ra, "dec": dec, "pmra": pm[0],
         "pmdec": pm[1], "ref_epoch": np.full(20, 2016.0), "twin": [f"s{k}" for k in range(20)]}
    )  # fmt: skip
    left.write(tmp_path / "left.fits")
    right[::-1].write(tmp_path / "right.parquet")
    return tmp_path


@pytest.mark.parametrize("suffix", ["fits", "parquet", "ecsv", "vot"])
def test_the_output_has_both_tables_and_is_a_table_of_ours(tmp_path, suffix):
    left = Table({"id": ["a", "b", "c"], "ra": [10.0, 20.0, 30.0], "dec": [1.0, 2.0, 3.0],
                  "flags": [7, 8, 9], "n": [1, 2, 3]})  # fmt: skip
    right = Table({"ID": np.array([2, 1]), "ra": [20.0, 10.0], "dec": [2.0, 1.0],
                   "teff": np.array([5000.0, 6000.0]), "ok": [True, False]})  # fmt: skip
    right["teff"].unit, left["ra"].unit = "K", "deg"
    left.write(tmp_path / "left.fits")
    right.write(tmp_path / "right.fits")
    out = tmp_path / f"o.{suffix}"
    words = [str(tmp_path / name) for name in ("left.fits", "right.fits")]
    done = CliRunner().invoke(app, ["crossmatch", *words, str(out), "--right", "ra=ra,dec=dec"])
    assert done.exit_code == 0, done.output
    with ExitStack() as stack:
        table = open_table(out, stack)
        assert table.names == (
            "id", "ra", "dec", "left_flags", "n", "right_ID", "right_ra", "right_dec", "teff", "ok",
            "right_row", "separation", "n_candidate", "next_separation", "flags", "certain",
        )  # fmt: skip
        assert table.texts("id").tolist() == ["a", "b", "c"]
        np.testing.assert_array_equal(table.floats("teff"), [6000.0, 5000.0, np.nan])
        assert table.texts("right_ID").tolist() == ["1", "2", ""]
        np.testing.assert_array_equal(table.floats("left_flags"), [7, 8, 9])
        np.testing.assert_array_equal(table.floats("right_row"), [1, 0, -1])
        assert (table.units["teff"], table.units["ra"]) == ("K", "deg")
        assert table.units["separation"] == "arcsec"


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("rad", np.pi / 180), ("hourangle", 1 / 15), ("degrees", 1.0), ("arcmin", 60.0)],
)
@pytest.mark.parametrize("stated", [True, False])
def test_units_of_columns_are_read(unit, factor, stated, tmp_path):
    rng = np.random.default_rng(1)
    ra, dec, pm = rng.uniform(30, 360, 20), rng.uniform(-60, 60, 20), rng.normal(0, 500, 20)
    units = {"r": unit, "pm": "arcsec/yr", "t": "d"} if stated else {}
    columns = {"r": ra * factor, "d": dec, "pm": pm / 1000, "t": np.full(20, 51544.5 + 3652.5)}
    names = {"ra": "r", "dec": "d", "pmra": "pm", "pmdec": "pm", "epoch": "t"}
    if not stated:
        names |= {
            "ra": f"r:{unit}",
            "pmra": "pm:arcsec/yr",
            "pmdec": "pm:arcsec/yr",
            "epoch": "t:d",
        }
    source = SourceTable.of_arrays(tmp_path / "x.fits", columns)
    there = table_positions(replace(source, units=units), names)
    np.testing.assert_allclose(there.ra_deg, ra, atol=1e-10)
    np.testing.assert_allclose(there.pmra_masyr, pm, atol=1e-9)
    np.testing.assert_allclose(there.epoch_yr, 2010.0, atol=1e-9)


def test_a_unit_of_another_kind_is_refused(tmp_path):
    source = SourceTable.of_arrays(tmp_path / "x.fits", {"r": np.ones(2), "d": np.ones(2)})
    with pytest.raises(ColumnError, match=r"x\.fits, column 'r': unit 'km'.*correct the unit"):
        table_positions(replace(source, units={"r": "km"}), {"ra": "r", "dec": "d"})


def test_rows_at_zero_zero_have_no_position_and_are_said(tmp_path, caplog):
    ra, dec = np.zeros(5000), np.zeros(5000)
    ra[0], dec[:2] = 10.0, 10.0
    source = SourceTable.of_arrays(tmp_path / "x.fits", {"ra": ra, "dec": dec})
    place = table_positions(source, {"ra": "ra", "dec": "dec"})
    assert place.usable.sum() == 2
    assert "4998 rows at right ascension 0" in caplog.text
    found = match_positions(place, place)
    assert (found.matched.sum(), found.report().counts["NO_POSITION"]) == (2, 4998)


def test_a_crowd_at_one_place_costs_no_square_and_is_said(monkeypatch, caplog):
    monkeypatch.setattr("maury.survey.crossmatch.candidates._MOST_PAIRS", 10_000)
    n = 4000
    crowd = Positions(np.append(np.full(n, 5.0), 9.0), np.append(np.full(n, 5.0), 9.0), 2000.0)
    found = match_positions(crowd, crowd)
    assert "4000 rows have 100 candidates or more at one place" in caplog.text
    assert found.matched.all()
    assert (found.n_candidate[:n] == MOST_CANDIDATES).all()
    assert found.has(MatchFlag.AMBIGUOUS)[:n].all()
    assert found.certain[n]
    same = match_identifiers(["0"] * n + ["a"], ["0"] * n + ["a"])
    assert (same.n_candidate[:n] == MOST_CANDIDATES).all()
    assert same.index[n] == n


def test_equal_identifiers_in_blocks_are_those_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 30, 200).astype(str), rng.integers(0, 30, 150).astype(str)
    whole = match_identifiers(left, right)
    monkeypatch.setattr("maury.survey.crossmatch.matching._PAIRS_AT_ONCE", 7)
    parts = match_identifiers(left, right)
    np.testing.assert_array_equal(parts.index, whole.index)
    np.testing.assert_array_equal(parts.n_candidate, whole.n_candidate)
    brute = (left[:, None] == right[None, :]).sum(axis=1)
    np.testing.assert_array_equal(whole.n_candidate, brute)


def test_designations_of_gaia_are_their_numbers():
    found = match_identifiers(
        ["Gaia DR3 4295806720", "Gaia DR2 38655544960", "EDR3 5"],
        np.array([38655544960, 4295806720]),
    )
    np.testing.assert_array_equal(found.index, [1, -1, -1])


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (["2.082066666147349e+18", "", "2.05e+18"], "lost digits"),
        (["2082066666147348913.0", ""], "lost digits"),
        (["1.5e0", "2.0e0"], "lost digits"),
    ],
)
def test_identifiers_of_a_text_table_that_were_floats_are_refused(tmp_path, values, error):
    (tmp_path / "x.csv").write_text("id,n\n" + "".join(f'"{v}",1\n' for v in values))
    with ExitStack() as stack, pytest.raises(IdentifierError, match=error):
        open_table(tmp_path / "x.csv", stack).texts("id")


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (["12.0", "", "3.0"], ["12", "", "3"]),
        (["1.2e3"], ["1200"]),
        (["4102.5", "17.0"], ["4102.5", "17.0"]),
        (["12.0", "x"], ["12.0", "x"]),
        (["007", "1e"], ["007", "1e"]),
    ],
)
def test_other_identifiers_of_a_text_table_are_read(tmp_path, values, read):
    (tmp_path / "x.csv").write_text("id,n\n" + "".join(f'"{v}",1\n' for v in values))
    with ExitStack() as stack:
        assert open_table(tmp_path / "x.csv", stack).texts("id").tolist() == read


@pytest.mark.parametrize(
    ("left", "right", "hint"),
    [
        ({"ra": [0.1, 3.0], "dec": [0.2, 1.0]}, "ra=ra,dec=dec", "in radians (ra=ra:rad)"),
        ({"ra": [10.0, 23.0], "dec": [70.0, 3.0]}, "ra=ra,dec=dec", "(ra=ra:hourangle)"),
        ({"ra": [100.0, 230.0], "dec": [70.0, 3.0]}, "ra=ra,dec=dec", "Galactic"),
        ({"id": ["2M0012", "2M0013"]}, "id=source_id", "such as '2M0012', on the right"),
    ],
)
def test_no_match_at_all_is_a_warning_and_a_hint(tables, caplog, left, right, hint):
    Table(left).write(tables / "l.ecsv")
    words = [str(tables / name) for name in ("l.ecsv", "right.parquet", "o.fits")]
    keys = "id=id" if "id" in left else "ra=ra,dec=dec"
    done = CliRunner().invoke(app, ["crossmatch", *words, "--left", keys, "--right", right])
    assert done.exit_code == 0
    assert "none of 2 rows" in caplog.text
    assert hint in caplog.text


def command(tables, *words):
    return CliRunner().invoke(
        app, ["crossmatch", str(tables / "left.fits"), str(tables / "right.parquet"), *words]
    )


@pytest.mark.parametrize("suffix", ["fits", "parquet", "ecsv", "vot"])
def test_the_command_writes_a_row_for_each_star(tables, suffix):
    out = tables / f"out.{suffix}"
    done = command(tables, str(out), "--left", "id=name,ra=RAJ2000,dec=DEJ2000,epoch=2000")
    assert done.exit_code == 0, done.output
    assert "20 of 20 stars matched" in done.output
    found = Table.read(out)
    np.testing.assert_array_equal(found["right_row"], np.arange(20)[::-1])
    assert np.all(found["separation"] < 0.001)
    assert found["certain"].all()
    assert isinstance(command(tables, str(out)).exception, OutputExists)


def test_the_command_matches_identifiers_and_looks_at_positions(tables):
    left = "id=name,ra=RAJ2000,dec=DEJ2000,epoch=2000"
    right = "id=twin,ra=ra,dec=dec,epoch=2016"
    done = command(tables, str(tables / "o.ecsv"), "--left", left, "--right", right,
                   "--radius", "1")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = Table.read(tables / "o.ecsv")
    np.testing.assert_array_equal(found["right_id"], found["left_id"])
    far = (found["flags"] & MatchFlag.FAR.value) != 0
    np.testing.assert_array_equal(far, found["separation"] > 1.0)
    assert far.any()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["o.txt"], "must end in"),
        (["o.fits", "--left", "ra"], "KEY=COLUMN"),
        (["o.fits", "--left", "decl=RAJ2000"], "did you mean 'dec'"),
        (["o.fits", "--left", "ra=RAJ2000"], "of both tables"),
        (["o.fits", "--left", "id=name", "--right", "id=twin", "--lead", "1"], "name no 'id'"),
        (["o.fits", "--left", "ra=ra,dec=dec"], "has no column 'ra'"),
    ],
)
def test_the_command_says_what_is_wrong(tables, words, error):
    failed = command(tables, str(tables / words[0]), *words[1:])
    assert isinstance(failed.exception, MauryError)
    assert error in str(failed.exception)


@pytest.mark.parametrize(
    ("case", "left", "right", "keys"),
    [
        ("crossmatch_units", "left_rad.fits", "gaia.fits", "ra=ra,dec=dec,epoch=2016"),
        ("crossmatch_units", "left_2000.fits", "gaia_arcsec.fits", "ra=ra,dec=dec,epoch=2000"),
        ("crossmatch_units", "left_2000.fits", "gaia.fits", "ra=ra,dec=dec,epoch=2000"),
        ("crossmatch_ids_lost_digits", "designation.csv", "gaia.fits", "id=designation"),
        ("crossmatch_ids_lost_digits", "ids.csv", "gaia.fits", "id=source_id"),
        ("crossmatch_ids_lost_digits", "ids.parquet", "gaia.fits", "id=source_id"),
    ],
)
def test_the_shared_cases(shared, tmp_path, case, left, right, keys):
    place = shared / "cases" / case
    words = [str(place / left), str(place / right), str(tmp_path / "o.fits"), "--left", keys]
    words += ["--right", "id=source_id"] if keys.startswith("id") else []
    done = CliRunner().invoke(app, ["crossmatch", *words])
    if "ids." in left:
        assert isinstance(done.exception, IdentifierError)
        assert "lost digits" in str(done.exception)
    else:
        assert done.output.startswith("20 of 20 stars matched"), done.output
