import shutil
import subprocess
import sys

import numpy as np
import pytest

import maury.prediction
from maury.catalogue import SUFFIXES
from maury.errors import ConfigError, GridMismatch, OutputExists, ResumeMismatch, SurveyFileError
from maury.flags import Flag, names
from maury.labels import LABEL_NAMES
from maury.model import Model
from maury.prediction import predict, predict_rows
from maury.survey import Survey, SurveyWriter
from surveys import copy_survey


def flagged(table, row):
    return set(names(int(table["flags"][row])))


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory, tiny_model, observed_survey):
    out = tmp_path_factory.mktemp("catalogue") / "labels.fits"
    return predict(tiny_model, observed_survey, out)


def test_rows_out_are_rows_in(catalogue, observed_survey):
    survey = Survey.open(observed_survey)
    assert catalogue.table["id"].tolist() == survey.id.tolist()
    for name in ("snr", "ra", "dec", "parallax", "parallax_error"):
        np.testing.assert_array_equal(catalogue.table[name], survey.column(name))
    assert catalogue.simulated
    assert catalogue.metadata["model"]["trained_on_simulated_spectra"]


def test_labels_are_the_mean_and_errors_the_spread_of_the_networks(
    catalogue, tiny_model, observed_survey
):
    import torch

    from maury.inference import load_members
    from maury.networks import network_config

    model = Model.open(tiny_model)
    inputs = model.preparation.apply(Survey.open(observed_survey).batch(0, 90))
    observables = torch.from_numpy(model.scaling.observables.forward(inputs.observables))
    with torch.no_grad():
        outputs = [net(torch.from_numpy(inputs.flux), observables) for net in load_members(model)]
    physical = np.stack([model.scaling.labels.inverse(output.numpy()) for output in outputs])
    known = ~np.isnan(np.asarray(catalogue.table["teff"]))
    assert known.sum() > 80
    assert network_config("guiglion2020").n_passes == 0
    for position, name in enumerate(LABEL_NAMES):
        expected = physical[:, known, position]
        np.testing.assert_allclose(
            catalogue.table[name][known], expected.mean(axis=0), rtol=2e-5, atol=2e-5
        )
        np.testing.assert_allclose(
            catalogue.table[f"{name}_error"][known], expected.std(axis=0, ddof=1), rtol=2e-3
        )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_formats_hold_the_same_numbers(
    tmp_path, catalogue, tiny_model, observed_survey, suffix
):
    other = predict(tiny_model, observed_survey, tmp_path / f"labels{suffix}")
    for name in catalogue.table.colnames:
        np.testing.assert_array_equal(other.table[name], catalogue.table[name])


def test_batch_size_and_order_change_nothing_beyond_rounding(
    tmp_path, catalogue, tiny_model, observed_survey
):
    small = predict(tiny_model, observed_survey, tmp_path / "a.parquet", batch_size=7).table
    order = np.random.default_rng(0).permutation(len(small))
    shuffled = predict_rows(tiny_model, observed_survey, order)
    for name in LABEL_NAMES:
        scale = np.nanstd(catalogue.table[name])
        np.testing.assert_allclose(small[name], catalogue.table[name], atol=1e-4 * scale)
        np.testing.assert_allclose(shuffled[name], small[name][order], atol=1e-4 * scale)
    np.testing.assert_array_equal(shuffled["flags"], small["flags"][order])


def test_many_rows_are_predicted_in_pieces(monkeypatch, tiny_model, observed_survey):
    every = np.arange(90)
    whole = predict_rows(tiny_model, observed_survey, every)
    asked, read = [], Survey.rows

    def rows(survey, index):
        asked.append(np.asarray(index))
        return read(survey, index)

    monkeypatch.setattr(maury.prediction, "_READ_ROWS", 7)
    monkeypatch.setattr(Survey, "rows", rows)
    pieces = predict_rows(tiny_model, observed_survey, every)
    assert len(asked) > 3
    assert max(map(len, asked)) == 7
    np.testing.assert_array_equal(np.concatenate(asked), every)
    for name in LABEL_NAMES:
        scale = np.nanstd(whole[name])
        np.testing.assert_allclose(pieces[name], whole[name], atol=1e-4 * scale)
    np.testing.assert_array_equal(pieces["flags"], whole["flags"])
    assert pieces["id"].tolist() == whole["id"].tolist()


def test_training_stars_are_known_again(tmp_path, tiny_model, tiny_survey):
    table = predict(tiny_model, tiny_survey, tmp_path / "a.parquet").table
    trained = (table["flags"] & Flag.TRAINING_STAR.value) != 0
    model = Model.open(tiny_model)
    held_out = model.split.contains("test", np.asarray(table["star_id"]))
    assert held_out.sum() == 16
    np.testing.assert_array_equal(trained, ~held_out)


def test_a_killed_run_goes_on_and_ends_the_same(
    tmp_path, monkeypatch, catalogue, tiny_model, observed_survey
):
    monkeypatch.setattr(maury.prediction, "PART_STARS", 32)
    out = tmp_path / "labels.fits"

    def stop(done, total):
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(tiny_model, observed_survey, out, batch_size=32, progress=stop)
    assert not out.exists()
    assert len(list((tmp_path / "labels.fits.part").glob("part-*.parquet"))) == 1
    seen = []
    whole = predict(
        tiny_model, observed_survey, out, batch_size=32, progress=lambda done, _: seen.append(done)
    )
    assert seen == [32, 64, 90]
    assert [p.name for p in tmp_path.iterdir()] == ["labels.fits"]
    assert whole.table["id"].tolist() == catalogue.table["id"].tolist()


def test_a_partial_catalogue_of_another_survey_is_in_the_way(
    tmp_path, tiny_model, tiny_survey, observed_survey
):
    out = tmp_path / "labels.fits"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(tiny_model, observed_survey, out, progress=stop)
    with pytest.raises(ResumeMismatch, match="another model or survey"):
        predict(tiny_model, tiny_survey, out)
    assert len(predict(tiny_model, tiny_survey, out, overwrite=True)) == 160


def test_outputs_are_never_overwritten_silently(tmp_path, tiny_model, observed_survey):
    out = tmp_path / "labels.fits"
    out.write_text("precious")
    with pytest.raises(OutputExists):
        predict(tiny_model, observed_survey, out)
    assert out.read_text() == "precious"
    with pytest.raises(ConfigError, match="must end in"):
        predict(tiny_model, observed_survey, tmp_path / "labels.txt")


def test_hostile_spectra_are_flags(tmp_path, tiny_model, observed_survey):
    def spoil(flux):
        flux[0] = np.nan
        flux[1] = 0.0
        flux[2] = -1.0
        flux[3] = np.inf
        flux[4, ::2] = np.nan
        flux[5] *= 1e30
        flux[6, 100] = 50.0
        flux[7] = np.float32(1e-42)
        flux[8] = 1.0
        return flux

    def unweight(ivar):
        ivar[9] = -ivar[9]
        ivar[10] = np.nan
        ivar[11] = np.inf
        return ivar

    path = copy_survey(observed_survey, tmp_path / "s.zarr", flux=spoil, ivar=unweight)
    table = predict(tiny_model, path, tmp_path / "a.parquet").table
    assert len(table) == 90
    for row in (0, 1, 2, 3, 8, 9, 10, 11):
        assert "NO_SPECTRUM" in flagged(table, row), row
    assert "BAD_PIXELS" in flagged(table, 4)
    silent = [row for row in range(12) if row != 6 and not table["warn"][row]]
    assert not silent, [flagged(table, row) for row in silent]
    for name in LABEL_NAMES:
        values = np.asarray(table[name])
        assert np.isnan(values[[0, 1, 2, 3, 8, 9, 10, 11]]).all()
        assert np.isfinite(values[20:]).mean() > 0.9
        assert not np.isinf(values).any()


def test_missing_photometry_is_a_flag_with_its_reason(tmp_path, tiny_model, observed_survey):
    survey = Survey.open(observed_survey)
    parallax = survey.column("parallax").copy()
    magnitude = survey.column("ks_m").copy()
    extinction = survey.column("a_v").copy()
    error = survey.column("parallax_error").copy()
    parallax[0], parallax[1], parallax[2] = np.nan, 0.0, -3.0
    magnitude[3], extinction[4] = np.nan, np.nan
    error[5], error[6] = np.nan, 0.5 * parallax[6]
    path = copy_survey(
        observed_survey,
        tmp_path / "s.zarr",
        parallax=parallax,
        ks_m=magnitude,
        a_v=extinction,
        parallax_error=error,
    )
    table = predict(tiny_model, path, tmp_path / "a.parquet").table
    for row in (0, 1, 2):
        assert {"NO_PARALLAX", "INPUT_REQUIRED"} <= flagged(table, row)
    assert {"MAGNITUDE_MISSING", "INPUT_REQUIRED"} <= flagged(table, 3)
    assert {"A_V_MISSING", "INPUT_REQUIRED"} <= flagged(table, 4)
    assert "PARALLAX_ERROR_UNKNOWN" in flagged(table, 5)
    assert "PARALLAX_POOR" in flagged(table, 6)
    for row in range(5):
        assert table["warn"][row]
        assert np.isnan(table["teff"][row])
        assert np.isnan(table["teff_error"][row])
    assert np.isfinite(table["teff"][5])


def test_no_photometry_at_all(tmp_path, tiny_model, observed_survey):
    survey = Survey.open(observed_survey)
    keep = {"id", "star_id", "snr", "ra", "dec"}
    path = copy_survey(observed_survey, tmp_path / "s.zarr", drop=set(survey.column_names) - keep)
    table = predict(tiny_model, path, tmp_path / "a.parquet").table
    assert "parallax" not in table.colnames
    assert np.isnan(table["teff"]).all()
    assert table["warn"].all()


def test_observables_outside_the_training_range(tmp_path, tiny_model, observed_survey):
    magnitude = Survey.open(observed_survey).column("j_m").copy()
    magnitude[0] = 40.0
    path = copy_survey(observed_survey, tmp_path / "s.zarr", j_m=magnitude)
    table = predict(tiny_model, path, tmp_path / "a.parquet").table
    assert "OBSERVABLE_OUTSIDE" in flagged(table, 0)
    assert table["warn"][0]


def test_an_empty_survey_is_an_empty_catalogue(tmp_path, tiny_model, observed_survey):
    path = copy_survey(observed_survey, tmp_path / "s.zarr", rows=np.array([], dtype=int))
    assert len(predict(tiny_model, path, tmp_path / "a.fits")) == 0


@pytest.mark.parametrize("n_pixel", [900, 912])
def test_another_grid_is_one_clear_error(tmp_path, tiny_model, n_pixel):
    start = 8420.0 if n_pixel == 900 else 8430.0
    with SurveyWriter(
        tmp_path / "s.zarr",
        n_star=1,
        wave_aa=start + 0.4 * np.arange(n_pixel),
        medium="air",
        simulated=True,
    ) as writer:
        flux = np.ones((1, n_pixel))
        writer.write(0, flux, flux, id=["a"], star_id=["a"])
    with pytest.raises(GridMismatch, match=rf"expects 912 pixels.*got {n_pixel} pixels"):
        predict(tiny_model, tmp_path / "s.zarr", tmp_path / "a.fits")
    assert not list(tmp_path.glob("a.fits*"))


def test_a_torn_chunk_is_one_clear_error(tmp_path, tiny_model, observed_survey):
    path = tmp_path / "s.zarr"
    shutil.copytree(observed_survey, path)
    chunk = path / "flux" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:1000])
    with pytest.raises(SurveyFileError, match="flux"):
        predict(tiny_model, path, tmp_path / "a.fits")


def test_the_public_function_wins_over_the_module():
    code = "import maury.prediction, maury; assert callable(maury.predict); print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ok\n"
