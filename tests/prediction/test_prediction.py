import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import active_children

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

import maury.prediction.drift
import maury.prediction.predictor
import maury.prediction.streaming
from builders.clock import ANTI_HANG
from builders.surveys import copy_survey
from maury.errors import (
    ConfigError,
    GridMismatch,
    ModelFileError,
    OutputExists,
    ResumeMismatch,
    SurveyFileError,
    WorkerLost,
)
from maury.labels.columns import BANDS
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag, names
from maury.model.directory import Model
from maury.prediction.catalogue import SUFFIXES, Catalogue
from maury.prediction.streaming import finish, plan, predict, predict_part, predict_rows
from maury.survey.readers import ingest_toml
from maury.survey.store import Survey, SurveyWriter


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

    from maury.model.inference import load_members
    from maury.model.networks.published import network_config

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
        spread = expected.std(axis=0, ddof=1)
        # Where networks agree by chance, rounding of their answers shows.
        rounding = 1e-5 * expected.std()
        np.testing.assert_allclose(
            catalogue.table[f"{name}_formal_error"][known], spread, rtol=2e-3, atol=rounding
        )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_formats_hold_the_same_numbers(
    tmp_path, catalogue, tiny_model, observed_survey, suffix
):
    other = predict(tiny_model, observed_survey, tmp_path / f"labels{suffix}")
    for name in catalogue.table.colnames:
        np.testing.assert_array_equal(other.table[name], catalogue.table[name])


def assert_equal_tables(one, other):
    assert one.colnames == other.colnames
    for name in one.colnames:
        np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(other[name]), name)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [7, 40, 10_000])
def test_batch_size_changes_nothing(tmp_path, monkeypatch, tiny_model, observed_survey, batch_size):
    monkeypatch.setattr(maury.prediction.predictor, "BLOCK_STARS", 16)
    monkeypatch.setattr(maury.prediction.streaming, "BLOCK_STARS", 16)
    monkeypatch.setattr(maury.prediction.drift, "_BLOCK", 16)
    whole = predict(tiny_model, observed_survey, tmp_path / "a.fits").table
    asked, read = [], Survey.batch

    def batch(survey, start, stop):
        asked.append(stop - start)
        return read(survey, start, stop)

    monkeypatch.setattr(Survey, "batch", batch)
    other = predict(tiny_model, observed_survey, tmp_path / "b.fits", batch_size=batch_size)
    assert max(asked) == min(-(-batch_size // 16) * 16, 90)
    assert_equal_tables(whole, other.table)


def test_order_changes_nothing_beyond_rounding(catalogue, tiny_model, observed_survey):
    order = np.random.default_rng(0).permutation(len(catalogue))
    shuffled = predict_rows(tiny_model, observed_survey, order)
    for name in LABEL_NAMES:
        scale = np.nanstd(catalogue.table[name])
        expected = catalogue.table[name][order]
        np.testing.assert_allclose(shuffled[name], expected, atol=1e-4 * scale)
    np.testing.assert_array_equal(shuffled["flags"], catalogue.table["flags"][order])


@pytest.mark.two_threads
@pytest.mark.slow
def test_workers_change_nothing_though_one_is_killed(
    tmp_path, monkeypatch, caplog, default_model, tiny_survey
):
    monkeypatch.setattr(maury.prediction.streaming, "PART_STARS", 8)
    alone = predict(default_model, tiny_survey, tmp_path / "alone.fits").table
    seen, killed = [], []

    def kill(done, total):
        seen.append(done)
        assert total == 160
        if done > 0 and not killed:
            killed.append(active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    together = predict(
        default_model, tiny_survey, tmp_path / "both.fits", workers=2, progress=kill
    ).table
    assert killed
    assert "was killed" in caplog.text
    assert seen[-1] == 160
    assert_equal_tables(alone, together)


_HELD = """
import sys
import time

from maury.io import workers
from maury.prediction import streaming

read = streaming.Survey.batch


def batch(survey, start, stop):
    # A worker goes on after the sixth star when it is told to stop, and never if it is not.
    while start >= 6 and workers._counts is not None and not workers._counts[-1]:
        time.sleep(0.01)
    return read(survey, start, stop)


streaming.PART_STARS, streaming.Survey.batch = 1, batch
if __name__ == "__main__":
    streaming.predict(*sys.argv[1:], workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_process_leaves_no_workers_and_is_resumed(
    tmp_path, monkeypatch, tiny_model, tiny_survey, blow
):
    script, out = tmp_path / "run.py", tmp_path / "labels.parquet"
    script.write_text(_HELD)
    command = [sys.executable, str(script), str(tiny_model), str(tiny_survey), str(out)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    work = tmp_path / "labels.parquet.part"
    while len(list(work.glob("part-*"))) < 3:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(blow)
    # The pipe closes when the last process that holds it has ended.
    running.communicate(timeout=ANTI_HANG)
    assert not out.exists()
    made = {path: path.stat().st_mtime_ns for path in work.glob("part-*")}
    assert 3 <= len(made) <= 8
    monkeypatch.setattr(maury.prediction.streaming, "PART_STARS", 1)
    again, read = [], Survey.batch

    def batch(survey, start, stop):
        again.append((start, stop))
        return read(survey, start, stop)

    monkeypatch.setattr(Survey, "batch", batch)
    resumed = predict(tiny_model, tiny_survey, out).table
    assert len(again) == 160 - len(made)
    assert_equal_tables(resumed, predict(tiny_model, tiny_survey, tmp_path / "b.parquet").table)


def test_parts_of_a_published_catalogue_go_with_the_next_run(
    tmp_path, monkeypatch, tiny_model, observed_survey
):
    def killed(*given):
        raise KeyboardInterrupt

    out = tmp_path / "a.parquet"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(maury.prediction.streaming, "discard", killed)
        predict(tiny_model, observed_survey, out)
    assert sorted(path.name for path in tmp_path.glob("a*")) == ["a.parquet", "a.parquet.part"]
    with pytest.raises(OutputExists):
        predict(tiny_model, observed_survey, out)
    assert [path.name for path in tmp_path.glob("a*")] == ["a.parquet"]


def test_workers_killed_again_and_again_are_one_clear_error(
    tmp_path, monkeypatch, tiny_model, observed_survey
):
    monkeypatch.setattr(maury.prediction.streaming, "PART_STARS", 32)

    def kill(done, total):
        for worker in active_children():
            os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(WorkerLost, match="fewer workers"):
        predict(tiny_model, observed_survey, tmp_path / "a.fits", workers=2, progress=kill)


def test_a_plan_is_picklable_and_its_parts_can_be_done_in_any_order(
    tmp_path, monkeypatch, catalogue, tiny_model, observed_survey
):
    monkeypatch.setattr(maury.prediction.streaming, "PART_STARS", 32)
    planned = plan(tiny_model, observed_survey, tmp_path / "a.fits")
    assert [(part.start, part.stop) for part in planned.parts] == [(0, 32), (32, 64), (64, 90)]
    for part in pickle.loads(pickle.dumps(planned.missing))[::-1]:
        path = predict_part(part)
        stamp = path.stat().st_mtime_ns
        assert predict_part(part) == path
        assert path.stat().st_mtime_ns == stamp
    assert planned.missing == ()
    written = finish(planned)
    assert (written.n_star, written.simulated) == (90, True)
    assert written.n_warned == catalogue.table["warn"].sum() > 0
    set_bits = [name for mask in catalogue.table["flags"] for name in names(int(mask))]
    assert written.flags == Counter(set_bits)
    assert_equal_tables(Catalogue.read(written.path).table, catalogue.table)
    other = replace(planned.parts[0], checksum="0" * 64)
    with pytest.raises(ModelFileError, match="another model"):
        predict_part(other)


@pytest.mark.slow
@pytest.mark.parametrize("noisy", [True, False])
def test_a_folder_of_files_gives_the_same_as_its_store(
    tmp_path, tiny_model, observed_survey, noisy
):
    survey = Survey.open(observed_survey)
    batch = survey.batch(0, 90)
    (tmp_path / "spectra").mkdir()
    for row, name in enumerate(survey.id):
        header = fits.Header({"CRVAL1": 8420.0, "CDELT1": 0.4, "CRPIX1": 1.0, "SIMULATE": True})
        hdus = [
            fits.PrimaryHDU(batch.spectra.flux[row], header),
            fits.ImageHDU(batch.spectra.ivar[row], name="IVAR"),
        ]
        fits.HDUList(hdus).writeto(tmp_path / "spectra" / f"{name}.fits")
    names = ["id", "parallax", "parallax_error", "a_v", *(band.column for band in BANDS)]
    Table({name: survey.column(name) for name in names}).write(tmp_path / "stars.csv")
    columns = "\n".join(f'{name} = "{name}"' for name in names[1:])
    config = tmp_path / "files.toml"
    config.write_text(
        '[spectra]\nfolder = "spectra"\n' + 'ivar = "IVAR"\n' * noisy + "[wavelength]\n"
        'medium = "air"\n[[table]]\nfile = "stars.csv"\nid = "id"\n[columns]\n' + columns
    )
    stored = ingest_toml(config, tmp_path / "s.zarr")
    from_store = predict(tiny_model, stored, tmp_path / "store.fits")
    direct = predict(tiny_model, config, tmp_path / "direct.fits", workers=2, batch_size=16)
    assert direct.simulated
    assert np.isfinite(direct.table["teff"]).sum() > 80
    assert_equal_tables(direct.table, from_store.table)


@pytest.mark.slow
def test_many_rows_are_predicted_in_pieces(monkeypatch, tiny_model, observed_survey):
    every = np.arange(90)
    whole = predict_rows(tiny_model, observed_survey, every)
    asked, read = [], Survey.rows

    def rows(survey, index):
        asked.append(np.asarray(index))
        return read(survey, index)

    monkeypatch.setattr(maury.prediction.streaming, "_READ_ROWS", 7)
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
    monkeypatch.setattr(maury.prediction.streaming, "PART_STARS", 32)
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
        assert np.isnan(table["teff_formal_error"][row])
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
    # Too few of the pixels of the model; nearer grids are converted (`test_matching`).
    start = 8150.0 if n_pixel == 900 else 8730.0
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
    code = "import maury.prediction.streaming, maury; assert callable(maury.predict); print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ok\n"
