import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maury.labels.columns import BANDS
from maury.spectra.star_identity import (
    KnownStars,
    StarMarks,
    group_stars,
    linked,
    plain_identifiers,
)

BAND_COLUMNS = [band.column for band in BANDS]


def marks_of(n, **columns):
    return StarMarks.of({"id": [f"v{k}" for k in range(n)], **columns}, n)


def stars_of(n, **columns):
    return group_stars(marks_of(n, **columns))[0].tolist()


def means_of(n, **columns):
    return group_stars(marks_of(n, **columns))[1].tolist()


def sky(rng, n):
    return rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))


def test_visits_at_one_position_are_one_star(rng):
    ra, dec = sky(rng, 200)
    visit = rng.permutation(np.repeat(np.arange(200), 3))
    offset = rng.uniform(-0.2, 0.2, (2, 600)) / 3600
    star = stars_of(
        600,
        ra=(ra[visit] + offset[0] / np.cos(np.radians(dec[visit]))) % 360,
        dec=np.clip(dec[visit] + offset[1], -90, 90),
    )
    same = visit[:, None] == visit[None, :]
    assert np.array_equal(np.array(star)[:, None] == np.array(star)[None, :], same)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ((0.0001, 10.0), (359.9999, 10.0), True),
        ((10.0, 89.99999), (190.0, 89.99999), True),
        ((10.0, -90.0), (250.0, -90.0), True),
        ((10.0, 60.0), (10.0 + 1.9 / 3600, 60.0), True),
        ((10.0, 20.0), (10.0, 20.0 + 1.1 / 3600), False),
        ((0.0, 0.0), (0.0, 0.0), False),
        ((np.nan, 5.0), (np.nan, 5.0), False),
    ],
)
def test_the_edges_of_the_sky(a, b, same):
    ra, dec = zip(a, b, strict=True)
    assert len(set(stars_of(2, ra=ra, dec=dec))) == (1 if same else 2)


def test_groups_are_transitive_and_named_by_their_first_spectrum():
    dec = np.arange(6) * 0.8 / 3600
    assert stars_of(6, ra=np.full(6, 5.0), dec=dec[::-1]) == ["v0"] * 6


def test_a_fast_star_is_found_at_another_epoch():
    years, pm = 16.0, 1000.0
    ra, dec = [10.0, 10.0, 10.0], [30.0 - pm * years / 3.6e6, 30.0, 30.0 - 4.0 / 3600]
    columns = {"ra": ra, "dec": dec, "pmra": [0.0] * 3, "pmdec": [pm, pm, 0.0]}
    assert len(set(stars_of(3, **columns))) == 3, "epochs are not known"
    moving = {**columns, "epoch": [2000.0, 2016.0, 2016.0]}
    assert stars_of(3, **moving) == ["v0", "v0", "v2"]
    still = {**moving, "pmra": [np.nan, 0.0, 0.0], "pmdec": [np.nan, pm, 0.0]}
    assert stars_of(3, **still) == ["v0", "v0", "v2"], "the one that moves comes to the other"


def test_identifiers_decide_before_positions_and_positions_before_photometry():
    light = {name: [11.1] * 4 for name in BAND_COLUMNS}
    columns = {
        "star_id": ["A", "B", "", ""],
        "ra": [5.0, 5.0, 5.0, 6.0],
        "dec": [5.0, 5.0, 5.0, 5.0],
        "parallax": [1.234] * 4,
        **light,
    }
    assert stars_of(4, **columns) == ["A", "B", "A", "v3"]
    assert means_of(4, **columns) == ["identifier", "identifier", "position", "position"]
    without = {**columns, "ra": [5.0, 5.0, np.nan, np.nan], "star_id": ["", "", "", ""]}
    assert stars_of(4, **without) == ["v0"] * 4
    assert means_of(4, **without) == ["position", "position", "photometry", "photometry"]
    assert means_of(2, parallax=[1.0, 1.0]) == ["spectrum"] * 2


def test_photometry_is_compared_as_far_as_it_is_written(rng):
    n = 300
    light = np.column_stack([rng.lognormal(0, 1, n), rng.uniform(8, 15, (n, 8))])
    names = ["parallax", *BAND_COLUMNS]
    rounded = [
        light,
        np.round(light, 5),
        np.column_stack([np.round(light[:, 0], 2), np.round(light[:, 1:], 3)]),
        light.astype(np.float32).astype(float),
    ]
    rounded.append(light.copy())
    rounded[-1][:, 4:] = np.nan
    table = np.vstack(rounded)
    star = stars_of(len(table), **dict(zip(names, table.T, strict=True)))
    assert star == [f"v{k}" for k in range(n)] * len(rounded)


def test_other_photometry_is_another_star():
    light = {"parallax": [1.2345, 1.2346], "j_m": [9.123, 9.123], "h_m": [9.1, 9.1]}
    assert len(set(stars_of(2, **light))) == 2
    assert len(set(stars_of(2, **{**light, "parallax": [1.23, 1.2346]}))) == 1
    assert len(set(stars_of(2, **{**light, "parallax": [np.nan, np.nan]}))) == 2
    assert len(set(stars_of(2, **{**light, "parallax": [1.0, 1.0], "h_m": [9.1, 9.2]}))) == 2
    assert len(set(stars_of(2, parallax=[1.0, 1.0], j_m=[9.1, 9.1]))) == 2, "one band alone"


def test_a_crowd_at_one_place_needs_no_pairs():
    n = 20000
    assert set(stars_of(n, ra=np.full(n, 1.0), dec=np.full(n, 1.0))) == {"v0"}
    assert len(set(stars_of(n, ra=np.zeros(n), dec=np.zeros(n)))) == n


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=15),
        )
    )
)
def test_linked_is_transitive(case):
    n, pairs = case
    i, j = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    reach = np.eye(n, dtype=bool)
    reach[i, j] = reach[j, i] = True
    for _ in range(n):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    group = linked(n, i, j)
    assert np.array_equal(group[:, None] == group[None, :], reach)


def test_stars_are_known_again_in_another_survey(rng):
    n = 400
    ra, dec = sky(rng, n)
    light = np.column_stack([rng.lognormal(0, 1, n), rng.uniform(8, 15, (n, 8))])
    light_columns = dict(zip(["parallax", *BAND_COLUMNS], light.T, strict=True))
    whole = marks_of(n, ra=ra, dec=dec, **light_columns)
    known = KnownStars(StarMarks.from_json(whole.take(slice(0, 200)).to_json()))
    first = np.arange(n) < 200
    by_place = marks_of(n, ra=ra, dec=dec)
    assert np.array_equal(known.among(by_place), first)
    assert np.array_equal(known.among(marks_of(n, **light_columns)), first)
    assert not known.among(marks_of(n)).any()
    assert not KnownStars(marks_of(n)).among(whole).any()


def test_what_a_model_stores_is_precise_and_complete(rng):
    n = 50
    ra, dec = sky(rng, n)
    marks = marks_of(
        n, ra=ra, dec=dec, pmra=rng.normal(0, 99, n), pmdec=np.full(n, np.nan), epoch=[2015.5] * n
    )
    again = StarMarks.from_json(marks.to_json())
    order, back = np.argsort(marks.place[:, 0]), np.argsort(again.place[:, 0])
    np.testing.assert_allclose(again.place[back], marks.place[order], atol=1e-3)
    np.testing.assert_allclose(again.place[back][:, :2], marks.place[order][:, :2], atol=1.01e-7)
    assert not again.has_light.any()


@pytest.mark.parametrize("data", [{}, {"place": "no base64", "light": ""}, {"place": "AAAA"}])
def test_a_damaged_record_is_refused(data):
    with pytest.raises((ValueError, KeyError)):
        StarMarks.from_json(data)


def test_identifiers_of_gaia():
    names = ["Gaia DR3 4295806720", "GAIA EDR3 4295806720 ", " 4295806720", "Gaia DR2 4295806720"]
    assert plain_identifiers(names).tolist() == ["4295806720"] * 3 + ["Gaia DR2 4295806720"]
    assert plain_identifiers(["", "gaia", "Gaia BH1"]).tolist() == ["", "gaia", "Gaia BH1"]
    assert plain_identifiers([]).size == 0


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_real_stars_are_known_by_their_photometry(shared):
    """Spectra of RAVE, of which 208 stars have several, and of the same stars in another window."""
    rave = shared / "data" / "rave_like"
    names = list(csv.DictReader((rave / "training_sample_labels.csv").read_text().splitlines()))
    ids = np.array([row["RAVE_OBS_ID"] for row in names])
    path = rave / "training_sample_parameters.csv"
    light = np.genfromtxt(path, delimiter=",", skip_header=1)[:, :9]
    columns = ["parallax", *BAND_COLUMNS]
    stars = StarMarks.of({"id": ids, **dict(zip(columns, light.T, strict=True))}, ids.size)
    star_id, means = group_stars(stars)
    _, counts = np.unique(star_id, return_counts=True)
    assert (ids.size, counts.size, (counts > 1).sum(), counts.max()) == (3669, 3352, 208, 9)
    assert set(means) == {"photometry"}

    galah = shared / "data" / "galah_like"
    rows = list(csv.DictReader((galah / "photometry.csv").read_text().splitlines()))
    other = np.array([[float(v or "nan") for v in [*row.values()][2:11]] for row in rows])
    pairs = csv.DictReader((galah / "labels.csv").read_text().splitlines())
    same = {row["sobject_id"]: row["rave_obs_id"] for row in pairs}
    trained = star_id[::2]
    star_of = dict(zip(ids.tolist(), star_id.tolist(), strict=True))
    expected = np.isin([star_of[same[row["sobject_id"]]] for row in rows], trained)
    known = KnownStars(StarMarks.from_json(stars.take(slice(None, None, 2)).to_json()))
    for written in (other, np.round(other, 2), other.astype(np.float32).astype(float)):
        there = dict(zip(columns, written.T, strict=True))
        assert np.array_equal(known.among(StarMarks.of(there, len(rows))), expected)
    assert 0 < expected.sum() < len(rows)
