import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from maury.errors import TrainingError
from maury.model.networks.published import network_config
from maury.training import member
from maury.training.member import TrainingConfig, TrainingTensors, read_tensors, train_member
from maury.training.processes import MemberJob, WorkFolder, run_job, train_members

NETWORK = network_config("guiglion2020", {"kernel": 4, "filters": [2]})


def sample(n, seed=0, n_pixel=24, n_observable=2, n_label=2):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, n_label))
    lines = np.exp(-0.5 * ((np.arange(n_pixel) - np.array([[6], [16]])) / 2) ** 2)
    flux = 1 - 0.5 * truth @ lines[:n_label] + rng.normal(0, 0.01, (n, n_pixel))
    observables = truth.sum(axis=1, keepdims=True) + np.zeros((1, n_observable))
    return flux, observables, truth, np.zeros_like(truth)


def tensors(n, seed=0):
    return TrainingTensors.from_numpy(*sample(n, seed))


def run(config, *, seed=1, network=NETWORK, **options):
    return train_member(tensors(96), tensors(32, 5), network, config=config, seed=seed, **options)


def same(first, second):
    return all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_it_learns():
    result = run(TrainingConfig(epochs=60, learning_rate=5e-3))
    assert result.validation_loss < 0.2 * float(tensors(32, 5).target.var())


@pytest.mark.two_threads
def test_same_seed_same_bits_whatever_was_drawn_before():
    config = TrainingConfig(epochs=3)
    first = run(config)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second = run(config)
    assert same(first, second)
    assert first.validation_loss == second.validation_loss
    assert torch.equal(before, torch.get_rng_state())
    assert not same(first, run(config, seed=2))


def test_the_best_weights_are_kept_and_training_stops():
    losses = []
    config = TrainingConfig(epochs=200, patience=4, learning_rate=0.03)
    result = run(config, on_epoch=lambda epoch, train, validation: losses.append(validation))
    best = int(np.argmin(losses))
    assert result.best_epoch == best + 1
    assert result.validation_loss == losses[best]
    assert result.n_epochs == len(losses) == best + 1 + 4
    shorter = run(TrainingConfig(epochs=best + 1, patience=4, learning_rate=0.03))
    assert same(result, shorter)


def rates_of(config, monkeypatch, losses):
    """Step size of each epoch of a run whose losses are given."""
    found, told = [], iter(losses)
    monkeypatch.setattr(member._Run, "_validate", lambda self: next(told))
    seen = member._Run._pass

    def pass_on(self):
        loss = seen(self)
        found.append(self._optimizer.param_groups[0]["lr"])
        return loss

    monkeypatch.setattr(member._Run, "_pass", pass_on)
    result = run(config)
    return found, result


def test_the_rate_is_halved_on_a_plateau_and_no_further_than_its_least(monkeypatch):
    config = TrainingConfig(
        epochs=9, learning_rate=8e-4, plateau=2, plateau_gain=0.1, least_rate=1.5e-4
    )
    # A fall by less than the gain is none: two such epochs, and again two, and again.
    losses = [1.0, 0.95, 0.92, 0.85, 0.84, 0.83, 0.82, 0.815, 0.81]
    rates, _ = rates_of(config, monkeypatch, losses)
    expected = [8, 8, 8, 4, 4, 4, 2, 2, 1.5]
    np.testing.assert_allclose(rates, 1e-4 * np.array(expected))


def test_without_a_plateau_the_rate_stays(monkeypatch):
    rates, _ = rates_of(TrainingConfig(epochs=5), monkeypatch, [1.0] * 5)
    assert set(rates) == {1e-3}


def test_a_gain_too_small_does_not_count_for_the_patience(monkeypatch):
    losses = [1.0, 0.99, 0.98, 0.97, 0.96, 0.95]
    config = TrainingConfig(epochs=6, patience=3, least_gain=0.05)
    _, result = rates_of(config, monkeypatch, losses)
    assert result.n_epochs == 4
    # The best weights are kept all the same.
    assert result.best_epoch == 4


def test_the_penalty_makes_weights_small_and_leaves_the_validation_loss_alone():
    free, held = (run(TrainingConfig(epochs=30, learning_rate=5e-3, l2=l2)) for l2 in (0.0, 0.1))

    def size(result):
        return sum(float(w.square().sum()) for w in result.weights.values() if w.ndim > 1)

    assert size(held) < 0.5 * size(free)
    losses = []
    run(
        TrainingConfig(epochs=1, l2=10.0),
        on_epoch=lambda epoch, train, validation: losses.append(validation),
    )
    assert losses[0] < 5.0


def test_long_gradients_are_cut(monkeypatch):
    lengths = []
    cut = torch.nn.utils.clip_grad_norm_

    def told(parameters, norm):
        kept = list(parameters)
        cut(kept, norm)
        lengths.append(math.sqrt(sum(float(p.grad.square().sum()) for p in kept)))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", told)
    run(TrainingConfig(epochs=1, gradient_norm=1e-3))
    assert lengths
    assert max(lengths) <= 1e-3 * 1.001


def test_only_the_present_labels_count():
    flux, observables, truth, variance = sample(64)
    truth[::2, 0] = np.nan
    other = truth.copy()
    config = TrainingConfig(epochs=4)
    results = [
        train_member(
            TrainingTensors.from_numpy(flux, observables, target, variance),
            tensors(16, 3),
            NETWORK,
            config=config,
            seed=0,
        )
        for target in (truth, other)
    ]
    assert same(*results)
    assert math.isfinite(results[0].validation_loss)


@pytest.mark.two_threads
@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_a_checkpoint_goes_on_with_the_same_bits(tmp_path, stop_at):
    config = TrainingConfig(
        epochs=9, schedule="one_cycle", weight_decay=1e-3, plateau=1, plateau_gain=1e-2, patience=9
    )
    whole = run(config)

    def stop(epoch, *losses):
        if epoch == stop_at:
            raise KeyboardInterrupt

    options = {"checkpoint": tmp_path / "c.safetensors", "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        run(config, on_epoch=stop, **options)
    seen = []
    resumed = run(config, on_epoch=lambda epoch, *losses: seen.append(epoch), **options)
    # It was told of this epoch, and had not taken it down.
    assert seen == list(range(stop_at, 10))
    assert same(whole, resumed)
    assert (whole.best_epoch, whole.n_epochs) == (resumed.best_epoch, resumed.n_epochs)


@pytest.mark.parametrize("damage", ["cut", "noise", "seed"])
def test_a_damaged_checkpoint_starts_anew(tmp_path, caplog, damage):
    config, path = TrainingConfig(epochs=3), tmp_path / "c.safetensors"
    run(config, checkpoint=path, checkpoint_seconds=0.0, seed=3 if damage == "seed" else 1)
    data = path.read_bytes()
    if damage != "seed":
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"noise" * 100)
    assert same(run(config), run(config, checkpoint=path))
    assert "ignoring the checkpoint" in caplog.text


def test_divergence_is_one_clear_error():
    bad = TrainingTensors.from_numpy(*sample(32))
    bad.flux[3, 3] = math.inf
    with pytest.raises(TrainingError, match="learning_rate"):
        train_member(bad, tensors(8), NETWORK, config=TrainingConfig(epochs=2), seed=0)


def test_schedules():
    cosine = TrainingConfig(schedule="cosine", learning_rate=2.0)
    assert [round(cosine.rate(p), 6) for p in (0.0, 0.5, 1.0)] == [2.0, 1.0, 0.0]
    cycle = TrainingConfig(schedule="one_cycle", learning_rate=2.0)
    rates = [cycle.rate(p) for p in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(2.0)
    assert int(np.argmax(rates)) == 30
    assert min(rates) > 0
    assert TrainingConfig().rate(0.7) == 1e-3


def job(folder, member=0, **settings):
    return MemberJob(
        folder=folder,
        member=member,
        seed=10 + member,
        preset=NETWORK.name,
        network=NETWORK.model_dump(mode="json"),
        training=TrainingConfig(**{"epochs": 5, **settings}),
        checkpoint_seconds=0.0,
    )


@pytest.fixture
def folder(tmp_path):
    folder = WorkFolder(tmp_path)
    folder.put_sample("train", *sample(96))
    folder.put_sample("validation", *sample(32, 5))
    return folder


@pytest.mark.slow
@pytest.mark.two_threads
def test_processes_give_the_same_bits_as_one(folder, tmp_path):
    events = []
    jobs = [job(tmp_path, 0), job(tmp_path, 1)]
    train_members(jobs, n_processes=2, progress=events.append)
    apart = [folder.result(k) for k in range(2)]
    for k in range(2):
        folder.result_file(k).unlink()
    train_members(jobs, n_processes=1, progress=events.append)
    assert all(same(apart[k], folder.result(k)) for k in range(2))
    for k in range(2):
        assert [e.epoch for e in events if e.member == k] == [1, 2, 3, 4, 5] * 2
    done = len(events)
    train_members(jobs, n_processes=1, progress=events.append)
    assert len(events) == done


@pytest.mark.slow
def test_a_member_that_fails_says_why(folder, tmp_path):
    (tmp_path / "train-flux.npy").write_bytes(b"no array")
    with pytest.raises(TrainingError, match=r"member 0 failed: .*member-000\.log"):
        train_members([job(tmp_path)], n_processes=2, progress=lambda event: None)


@pytest.mark.slow
@pytest.mark.two_threads
def test_killed_at_any_moment_it_ends_with_the_same_bits(folder, tmp_path, capfd):
    whole_job = job(tmp_path, epochs=150, patience=150)
    assert run_job(whole_job.model_dump_json()) == 0
    whole = folder.result(0)
    folder.result_file(0).unlink()
    code = "import sys; from maury.training.processes import run_job; run_job(sys.argv[1])"
    reached = [0]
    for wait in (0.0, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", code, whole_job.model_dump_json()],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(2):  # The first is taken down once the second is told.
            process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached.append(read_tensors(folder.checkpoint(0))[1]["epoch"])
    assert 0 < reached[1] <= reached[2] < 150
    train_members([whole_job], n_processes=1, progress=lambda event: None)
    assert same(whole, folder.result(0)), f"killed after epochs {reached}"
    assert not folder.checkpoint(0).exists()
