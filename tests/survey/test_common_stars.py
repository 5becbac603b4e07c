"""Stars that surveys have in common, and their labels on one scale."""

import numpy as np
import pytest

from builders.training_survey import write_survey
from maury.errors import ConfigError, LengthMismatch
from maury.spectra.star_identity import StarMarks, shared_stars
from maury.survey.common_stars import CommonStars


def marks(**columns):
    n = len(next(iter(columns.values())))
    return StarMarks.of({k: np.asarray(v) for k, v in columns.items()}, n)


def test_stars_are_known_by_position():
    one = marks(star_id=["a", "b", "a"], ra=[10.0, 20.0, 10.0], dec=[5.0, 6.0, 5.0])
    two = marks(star_id=["x", "y"], ra=[20.0, 30.0], dec=[6.00002, 6.0])
    first, second = shared_stars([one, two])
    assert first[0] == first[2] != first[1]
    assert second[0] == first[1]
    assert second[1] not in first


def test_equal_identifiers_do_not_join_stars_that_positions_tell_apart():
    one = marks(star_id=["7", "8"], ra=[10.0, 20.0], dec=[5.0, 6.0])
    two = marks(star_id=["7", "9"], ra=[50.0, 20.0], dec=[5.0, 6.0])
    first, second = shared_stars([one, two])
    assert second[0] not in first
    assert second[1] == first[1]


def test_identifiers_join_where_nothing_else_is_known():
    one, two = marks(star_id=["Gaia DR3 12345678", "", "b"]), marks(star_id=["12345678", ""])
    first, second = shared_stars([one, two])
    assert second[0] == first[0]
    assert len({*first.tolist(), *second.tolist()}) == 4


@pytest.fixture
def surveys(tmp_path):
    first = write_survey(tmp_path / "one.zarr", n=200, seed=4)
    second = write_survey(
        tmp_path / "two.zarr",
        n=200,
        seed=4,
        id=[f"t{k}" for k in range(200)],
        star_id=[f"other{k // 2}" for k in range(200)],
    )
    return {"one": first, "two": second}


def test_photometry_ties_surveys_that_name_stars_differently(surveys):
    common = CommonStars.of(surveys)
    assert common.shared("one", "two").size == 100
    assert common.offsets == {}
    assert np.array_equal(common.star["one"], common.star["two"])


def test_labels_are_put_on_the_scale_of_the_first(surveys):
    rng = np.random.default_rng(0)
    teff = surveys["two"].column("teff")
    surveys["two"] = surveys["two"].with_columns(
        {"teff": teff + 80.0 + np.repeat(rng.normal(0, 20, 100), 2)}
    )
    common = CommonStars.of(surveys)
    offset = common.offsets["two"]["teff"]
    assert offset.coefficients[0] == pytest.approx(80.0, abs=4 * offset.errors[0])
    moved = common.surveys["two"].labels(["teff"])[:, 0]
    assert abs(np.median(moved - surveys["one"].column("teff"))) < 8.0
    # What is stored stays.
    assert np.median(surveys["two"].column("teff") - surveys["one"].column("teff")) > 70.0


def test_a_star_lends_its_labels_to_its_other_spectra(surveys):
    logg = surveys["two"].column("logg").copy()
    logg[:60] = np.nan
    surveys["two"] = surveys["two"].with_columns({"logg": logg})
    common = CommonStars.of(surveys)
    assert common.lent == {"one": 0, "two": 60}
    found = common.surveys["two"].labels(["logg"])[:, 0]
    assert np.allclose(found, surveys["one"].column("logg"), atol=1e-4)


def test_units_must_agree(surveys):
    header = surveys["two"]._header
    labels = [{**row, "unit": "kK"} if row["name"] == "teff" else row for row in header["labels"]]
    surveys["two"]._header = {**header, "labels": labels}
    with pytest.raises(ConfigError, match="teff is in K in one and in kK in two"):
        CommonStars.of(surveys)


def test_columns_over_a_store(surveys):
    one = surveys["one"]
    twice = one.with_columns({"teff": 2 * one.column("teff"), "mass": np.ones(200)})
    assert "mass" in twice.column_names
    assert "mass" not in one.column_names
    assert np.array_equal(twice.batch(10, 20).columns["teff"], 2 * one.column("teff")[10:20])
    assert np.array_equal(twice.labels(["teff"])[:, 0], 2 * one.column("teff"))
    with pytest.raises(LengthMismatch, match="must have 200 rows"):
        one.with_columns({"mass": np.ones(3)})
