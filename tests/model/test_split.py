import hashlib
import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from maury.errors import ConfigError, UnknownName
from maury.model.split import (
    SplitConfig,
    SplitRecord,
    held_out_fold,
    split_folds,
    split_published,
    split_rows,
    split_stars,
    star_hashes,
)
from maury.spectra.star_identity import StarMarks

ids = st.lists(st.sampled_from([f"star {k}" for k in range(30)]), min_size=3, max_size=120)
fractions = st.tuples(st.floats(0.01, 0.4), st.floats(0.01, 0.4)).map(
    lambda pair: (1.0 - sum(pair), *pair)
)


@given(ids.filter(lambda rows: len(set(rows)) >= 3), fractions, st.integers(0, 2**32))
def test_no_split_divides_a_star_and_no_row_is_lost(star_id, fraction, seed):
    split = split_stars(star_id, fractions=fraction, seed=seed)
    parts = [split.train, split.validation, split.test]
    assert all(part.size for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(star_id)))
    stars = [{star_id[row] for row in part} for part in parts]
    assert not stars[0] & stars[1]
    assert not stars[0] & stars[2]
    assert not stars[1] & stars[2]


@given(ids.filter(lambda rows: len(set(rows)) >= 3), st.integers(0, 2**32), st.randoms())
def test_the_order_of_rows_does_not_matter(star_id, seed, random):
    shuffled = list(star_id)
    random.shuffle(shuffled)
    tested = [
        {rows[k] for k in split_stars(rows, fractions=(0.8, 0.1, 0.1), seed=seed).test}
        for rows in (star_id, shuffled)
    ]
    assert tested[0] == tested[1]


def test_fractions_and_seeds():
    star_id = [f"s{k}" for k in range(1000)]
    config = SplitConfig()
    split = split_rows(star_id, config=config, seed=1)
    assert [split.part(p).size for p in ("train", "validation", "test")] == [820, 80, 100]
    assert not np.array_equal(split.test, split_rows(star_id, config=config, seed=2).test)


def test_rows_without_star_are_stars_of_their_own():
    star_id = np.array([""] * 50 + ["a"] * 5 + ["b"] * 5)
    split = split_stars(star_id, fractions=(0.5, 0.25, 0.25), seed=0)
    assert 10 <= split.test.size <= 25
    assert len({part.size for part in (split.train, split.validation, split.test)}) > 1


def test_published_split_is_the_one_of_scikit_learn(caplog):
    rows = np.arange(3904)
    train, test = train_test_split(rows, test_size=0.06, random_state=42)
    star_id = np.array([f"s{k // 2}" for k in rows])
    with caplog.at_level(logging.WARNING, logger="maury.model.split"):
        split = split_rows(star_id, config=SplitConfig(rule="published"), seed=9)
    assert (split.train.size, split.test.size) == (3669, 235)
    np.testing.assert_array_equal(split.train, train)
    np.testing.assert_array_equal(split.test, test)
    np.testing.assert_array_equal(split.validation, test)
    assert split.n_shared_stars == np.intersect1d(star_id[train], star_id[test]).size > 0
    assert "no independent test" in caplog.text
    assert str(split.n_shared_stars) in SplitRecord.of(split, star_id).warning


@pytest.mark.parametrize("n", [2, 17, 50, 101, 2499])
def test_published_split_of_any_length(n):
    train, test = train_test_split(np.arange(n), test_size=0.06, random_state=42)
    split = split_published([f"s{k}" for k in range(n)])
    np.testing.assert_array_equal(split.train, train)
    np.testing.assert_array_equal(split.test, test)


def test_record_finds_the_stars_again():
    star_id = np.array([f"s{k // 3}" for k in range(300)])
    split = split_stars(star_id, fractions=(0.6, 0.2, 0.2), seed=3)
    record = SplitRecord.from_json(SplitRecord.of(split, star_id).to_json())
    for part in ("train", "validation", "test"):
        expected = np.isin(np.arange(300), split.part(part))
        np.testing.assert_array_equal(record.contains(part, star_id), expected)
    np.testing.assert_array_equal(record.took_part(star_id), ~record.contains("test", star_id))
    assert not record.took_part(["another star"]).any()
    blank = np.where(np.arange(300) < 30, "", star_id)
    unnamed = SplitRecord.of(split_stars(blank, fractions=(0.6, 0.2, 0.2), seed=3), blank)
    assert not unnamed.took_part([""]).any()
    assert record.warning == ""
    assert star_hashes(["s1"])[0] == hashlib.sha256(b"s1").hexdigest()[:16]


def test_record_finds_the_stars_of_another_survey():
    rng = np.random.default_rng(0)
    n = 300
    visits = np.repeat(np.arange(n), 2)
    ra, dec = rng.uniform(0, 360, n)[visits], rng.uniform(-80, 80, n)[visits]
    light = {"parallax": rng.lognormal(0, 1, n)[visits], "j_m": rng.uniform(8, 12, n)[visits]}
    light["h_m"] = light["j_m"] - rng.uniform(0.1, 0.4, n)[visits]
    ids = np.arange(2 * n).astype(str)
    stars = StarMarks.of({"star_id": visits.astype(str), "ra": ra, "dec": dec, **light}, 2 * n)
    split = split_stars(stars.star_id, fractions=(0.6, 0.2, 0.2), seed=3)
    record = SplitRecord.from_json(json.loads(json.dumps(SplitRecord.of(split, stars).to_json())))
    train = np.isin(np.arange(2 * n), split.train)
    for known in ({"ra": ra, "dec": dec}, light):
        elsewhere = StarMarks.of({"star_id": np.char.add("other ", ids), **known}, 2 * n)
        assert np.array_equal(record.contains("train", elsewhere), train)
        assert np.array_equal(
            record.contains("validation", elsewhere)[split.validation],
            [True] * len(split.validation),
        )
        assert not record.is_known(elsewhere)[split.test].any()
    assert not record.contains("train", np.char.add("other ", ids)).any()
    assert record.contains("train", np.char.add("Gaia DR3 ", ids)).sum() == 0
    with pytest.raises(UnknownName, match="unknown part 'training'"):
        record.contains("training", stars)


def test_a_star_with_two_identifiers_on_both_sides_is_said(caplog):
    place = {"ra": np.repeat(np.arange(60.0), 2), "dec": np.full(120, 10.0)}
    visits = StarMarks.of({"star_id": np.arange(120).astype(str), **place}, 120)
    split = split_stars(visits.star_id, fractions=(0.6, 0.2, 0.2), seed=3)
    shared = np.isin(split.test // 2, split.train // 2).sum()
    record = SplitRecord.of(split, visits)
    assert shared > 10
    assert f"{shared} test spectra have the position" in record.warning
    assert record.warning in caplog.text
    stars = StarMarks.of({"star_id": (np.arange(120) // 2).astype(str), **place}, 120)
    split = split_stars(stars.star_id, fractions=(0.6, 0.2, 0.2), seed=3)
    assert SplitRecord.of(split, stars).warning == ""


def test_record_counts_by_what_stars_were_identified():
    means = np.array(["identifier"] * 5 + ["position"] * 3 + ["photometry"] * 2)
    stars = StarMarks.of({"star_id": np.arange(10).astype(str), "star_id_from": means}, 10)
    split = split_stars(stars.star_id, fractions=(0.6, 0.2, 0.2), seed=3)
    usable = np.arange(10) != 0
    record = SplitRecord.of(split, stars, usable=usable)
    assert record.identified == {"identifier": 4, "position": 3, "photometry": 2}
    assert SplitRecord.from_json(record.to_json()).identified == record.identified


def test_records_of_older_versions_are_read():
    star_id = ["Gaia DR3 4295806720", "b", "c", "d"]
    data = SplitRecord.of(
        split_stars(star_id, fractions=(0.5, 0.25, 0.25), seed=0), star_id
    ).to_json()
    whole = [name for name in star_id if SplitRecord.from_json(data).is_known([name])]
    old = {**data, "star_hashes": {}, "sha256": {}}
    for part in ("train", "validation", "test"):
        record = SplitRecord.from_json(data)
        names = [name for name in star_id if record.contains(part, [name])[0]]
        old["star_hashes"][part] = "".join(sorted(star_hashes(names)))
        old["sha256"][part] = hashlib.sha256(old["star_hashes"][part].encode()).hexdigest()
    del old["stars"], old["identified"]
    record = SplitRecord.from_json(old)
    assert [name for name in star_id if record.is_known([name])[0]] == whole
    assert record.marks == record.identified == {}


def test_a_changed_record_is_refused():
    data = SplitRecord.of(
        split_stars(["a", "b", "c"], fractions=(0.4, 0.3, 0.3), seed=0), ["a", "b", "c"]
    ).to_json()
    data["star_hashes"]["test"] = data["star_hashes"]["train"]
    with pytest.raises(ValueError, match="checksum"):
        SplitRecord.from_json(data)


def test_errors():
    with pytest.raises(ConfigError, match="at least 3 stars, got 2"):
        split_stars(["a", "a", "b"], fractions=(0.8, 0.1, 0.1), seed=0)
    with pytest.raises(ValueError, match=r"must be 1, got 1\.5"):
        SplitConfig(train=0.5, validation=0.5, test=0.5)


@given(
    ids.filter(lambda rows: len(set(rows)) >= 6),
    st.integers(2, 6),
    st.floats(0.05, 0.5),
    st.integers(0, 2**32),
)
def test_folds_test_every_star_once_and_divide_none(star_id, folds, validation, seed):
    splits = [
        split_folds(star_id, folds=folds, fold=k, validation=validation, seed=seed)
        for k in range(folds)
    ]
    tested = np.concatenate([split.test for split in splits])
    assert sorted(tested) == list(range(len(star_id)))
    for split in splits:
        parts = [split.train, split.validation, split.test]
        assert all(part.size for part in parts)
        assert sorted(np.concatenate(parts)) == list(range(len(star_id)))
        stars = [{star_id[row] for row in part} for part in parts]
        for one, two in ((0, 1), (0, 2), (1, 2)):
            assert not stars[one] & stars[two]


def test_each_member_spares_a_share_of_whole_stars():
    star_id = np.array([f"star {k // 2}" for k in range(4000)])
    share = held_out_fold(star_id, n_fold=8, seed=3)
    assert np.array_equal(share[::2], share[1::2]), "both spectra of a star"
    counts = np.bincount(share[::2], minlength=8)
    assert counts.size == 8
    assert counts.min() > 200, "of 250 expected, with a deviation of 15"
    some = np.array([5, 77, 1234])
    assert np.array_equal(held_out_fold(star_id[some], n_fold=8, seed=3), share[some])
    assert np.mean(held_out_fold(star_id, n_fold=8, seed=4) == share) < 0.2


def test_folds_are_asked_for_in_the_settings():
    star_id = [f"s{k}" for k in range(100)]
    config = SplitConfig(folds=4, fold=1)
    split = split_rows(star_id, config=config, seed=3)
    assert split.test.size == 25
    assert split.validation.size == round(75 * 0.08 / 0.90)
    with pytest.raises(ValueError, match="below folds"):
        SplitConfig(folds=4, fold=4)
    with pytest.raises(ValueError, match="need the rule"):
        SplitConfig(folds=4, rule="published")
    with pytest.raises(ConfigError, match="at least 10 stars, got 5"):
        split_folds(star_id[:5], folds=10, fold=0, validation=0.1, seed=0)
