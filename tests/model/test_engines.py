"""The compiled engine against PyTorch and NumPy; stacked members against members one by one."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maury.errors import MissingExtra, UnknownName
from maury.model.engines import engine as engine_module
from maury.model.engines.engine import (
    BLOCK_ROWS,
    CompiledEngine,
    EnsembleOutput,
    TorchEngine,
    make_engine,
)
from maury.model.engines.kernels import Graph, Pool
from maury.model.engines.llvm import Activation
from maury.model.engines.machine import Machine
from maury.model.inference import EnsembleNetwork
from maury.model.networks.published import build, network_config
from maury.prediction.predictor import BLOCK_STARS

N_PIXEL, N_OBSERVABLE, N_LABEL = 120, 5, 3
STACKED = {
    "maury": {},
    "maury without photometry": {"photometry": False},
    "maury narrow": {"stem": 37, "width": 29, "depth": 3, "rank": 0},
    "student": {"width": 31},
}
COMPILED = {
    "guiglion2020": {},
    "guiglion2020 without photometry": {"photometry": False, "negative_slope": 0.1},
    "starnet": {"padding": "valid"},
    "starnet with photometry": {"photometry": True, "pool": 3, "kernel": 5, "padding": "valid"},
    "astronn": {"mc_passes": 0, "padding": "valid"},
}


def members(preset, n=3, *, one_scale=False, **options):
    """Configuration and randomly drawn members that tell their inputs apart.

    They share the scale of the flux only with `one_scale`.
    """
    config = network_config(preset.split()[0], options)
    n_observable = N_OBSERVABLE if config.photometry else 0
    networks = []
    for seed in range(n):
        torch.manual_seed(seed)
        network = build(config, N_PIXEL, n_observable, N_LABEL).eval()
        with torch.no_grad():
            for name, value in network.named_parameters():
                value += 0.1 * torch.randn_like(value)
                if preset == "astronn" and name.endswith("bias"):
                    # Its few filters would else be dead on spectra that are not centred.
                    value += 1.0
            if one_scale:
                torch.manual_seed(99)
            if hasattr(network, "flux_scale"):
                network.flux_centre += 1.0 + 0.01 * torch.randn(N_PIXEL)
                network.flux_scale *= 0.05 + 0.02 * torch.rand(N_PIXEL)
        networks.append(network)
    return config, networks, {"n_pixel": N_PIXEL, "n_observable": n_observable}


def stars(n=53, *, n_observable=N_OBSERVABLE, seed=0, holes=True):
    """Inputs with bad and noisy pixels, stars without a spectrum and, if `holes`, gaps."""
    rng = np.random.default_rng(seed)
    flux = (1 + 0.1 * rng.normal(size=(n, N_PIXEL))).astype(np.float32)
    ivar = rng.gamma(2.0, 800.0, size=flux.shape).astype(np.float32)
    ivar[::3] *= rng.random((len(ivar[::3]), N_PIXEL)) > 0.2
    ivar[5::11] = 0.0
    observables = rng.normal(size=(n, n_observable)).astype(np.float32)
    if holes:
        observables[rng.random(observables.shape) < 0.2] = np.nan
    return flux, ivar, observables


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_and_torch_agree(name):
    config, networks, sizes = members(name, **COMPILED[name])
    inputs = stars(n_observable=sizes["n_observable"], holes=config.takes_missing)
    expected = TorchEngine(config, networks).predict(*inputs)
    assert_alike(CompiledEngine(config, networks, **sizes).predict(*inputs), expected)


@pytest.mark.parametrize("one_scale", [False, True])
@pytest.mark.parametrize("name", STACKED)
def test_stacked_members_give_what_each_gives_alone(name, one_scale):
    config, networks, sizes = members(name, one_scale=one_scale, **STACKED[name])
    inputs = stars(n_observable=sizes["n_observable"])
    answer = TorchEngine(config, networks).predict(*inputs)
    with torch.inference_mode():
        tensors = [torch.from_numpy(array) for array in inputs]
        each = [config.predict(network, *tensors) for network in networks]
    parts = ("mean", "variance", "covariance")
    found = {name: np.stack([getattr(one, name).numpy() for one in each]) for name in parts}
    features = None if each[0].features is None else each[0].features.numpy()
    assert_alike(answer, EnsembleOutput(**found, features=features))


def assert_alike(answer, expected):
    spread = np.ptp(expected.mean, axis=1).min()
    assert spread > 1e-3
    np.testing.assert_allclose(answer.mean, expected.mean, rtol=0, atol=1e-4 * spread + 1e-6)
    for part in ("variance", "covariance", "features"):
        wanted, got = getattr(expected, part), getattr(answer, part)
        assert (wanted is None) == (got is None)
        if wanted is not None:
            np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=1e-4 * np.ptp(wanted))


def engines_of(name, n_member):
    config, networks, sizes = members(name, n_member)
    yield config, TorchEngine(config, networks)
    if not config.stacks:
        yield config, CompiledEngine(config, networks, **sizes)


def assert_no_star_sees_another(name, n_member, n_thread):
    """Equal bits of a star in any subset, in any order, at any place of any block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_thread)
    try:
        n = 2 * BLOCK_ROWS + 77
        for config, engine in engines_of(name, n_member):
            inputs = stars(n, holes=config.takes_missing)
            whole = engine.predict(*inputs)
            rng = np.random.default_rng(1)
            for size in (1, 2, 31, BLOCK_ROWS, BLOCK_ROWS + 1, n):
                order = rng.permutation(n)[:size]
                some = engine.predict(*(array[order] for array in inputs))
                np.testing.assert_array_equal(some.mean, whole.mean[:, order])
                if whole.covariance is not None:
                    np.testing.assert_array_equal(some.covariance, whole.covariance[:, order])
            none = engine.predict(*(array[:0] for array in inputs))
            assert none.mean.shape == (n_member, 0, N_LABEL)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n_thread", [1, 2])
@pytest.mark.parametrize("n_member", [1, 4])
@pytest.mark.parametrize("name", ["maury", "student", "guiglion2020"])
def test_a_star_is_predicted_to_the_same_bits_whatever_stands_beside_it(name, n_member, n_thread):
    assert_no_star_sees_another(name, n_member, n_thread)


def test_blocks_of_a_prediction_are_whole_blocks_of_the_engine():
    assert BLOCK_STARS % BLOCK_ROWS == 0


@pytest.mark.slow
def test_so_it_is_with_the_vectors_of_older_processors():
    narrow = {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    code = "import test_engines as t; t.assert_no_star_sees_another('maury', 4, 1)"
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, **narrow, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_threads_of_the_compiled_engine_share_the_stars_and_change_nothing():
    config, networks, sizes = members("guiglion2020")
    inputs = stars(200, holes=False)
    one = CompiledEngine(config, networks, **sizes, n_thread=1).predict(*inputs)
    three = CompiledEngine(config, networks, **sizes, n_thread=3).predict(*inputs)
    np.testing.assert_array_equal(one.mean, three.mean)


def test_inputs_are_left_as_they_are_and_a_bad_star_harms_no_other():
    config, networks, sizes = members("guiglion2020")
    engine = CompiledEngine(config, networks, **sizes)
    flux, ivar, observables = stars(holes=False)
    good = engine.predict(flux, ivar, observables).mean
    flux[7] = np.nan
    kept = flux.copy()
    answer = engine.predict(flux, ivar, observables).mean
    np.testing.assert_array_equal(flux, kept)
    assert np.isnan(answer[:, 7]).all()
    np.testing.assert_array_equal(np.delete(answer, 7, 1), np.delete(good, 7, 1))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    n_in=st.integers(1, 6),
    n_out=st.integers(1, 40),
    n_tap=st.integers(1, 9),
    n_position=st.integers(1, 20),
    lanes=st.sampled_from([4, 8, 16]),
    seed=st.integers(0, 99),
)
def test_a_convolution_is_the_sum_over_taps(n_in, n_out, n_tap, n_position, lanes, seed):
    rng = np.random.default_rng(seed)
    n_pixel = n_position + n_tap - 1
    kernel = rng.normal(size=(n_out, n_in, n_tap)).astype(np.float32)
    bias = rng.normal(size=n_out).astype(np.float32)
    signal = rng.normal(size=(23, n_pixel, n_in)).astype(np.float32)
    graph = Graph()
    source = graph.load(n_pixel * n_in)
    relu = Activation("leaky", 0.0)
    out = graph.convolve(source, kernel, bias, n_position=n_position, activation=relu)
    graph.store(out, n_position * n_out)
    got = Machine([graph], lanes=lanes)(signal.reshape(23, -1))[0]
    expected = np.zeros((23, n_position, n_out)) + bias
    for tap in range(n_tap):
        expected += np.einsum("spc,oc->spo", signal[:, tap : tap + n_position], kernel[:, :, tap])
    expected = np.maximum(expected, 0.0).reshape(23, -1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


@settings(max_examples=15, deadline=None)
@given(n_in=st.integers(1, 70), n_out=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_dense_layer_is_a_matrix_product(n_in, n_out, seed):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(n_out, n_in)).astype(np.float32)
    values = rng.normal(size=(19, n_in)).astype(np.float32)
    graph = Graph()
    source = graph.load(n_in)
    bias = np.arange(n_out, dtype=np.float32)
    graph.store(graph.dense(source, weight, bias), n_out)
    got = Machine([graph])(values)[0]
    np.testing.assert_allclose(got, values @ weight.T + bias, rtol=1e-5, atol=5e-5)


def test_pooling_takes_the_largest_of_each_channel():
    values = np.random.default_rng(3).normal(size=(18, 12)).astype(np.float32)
    graph = Graph()
    source, target = graph.load(12), graph.rows(12)
    graph.put(np.zeros(1))
    graph.steps.append(Pool(source, target, 2, 3, 2))
    graph.store(target, 4)
    pooled = values.reshape(18, 2, 3, 2).max(axis=2).reshape(18, 4)
    np.testing.assert_array_equal(Machine([graph])(values)[0], pooled)


@pytest.mark.parametrize(
    ("preset", "options", "reason"),
    [
        ("astronn", {"mc_passes": 2}, "dropout masks"),
        ("maury", {}, "'maury' is not known to it"),
        ("starnet", {}, "a layer ConstantPad1d"),
    ],
)
def test_networks_it_lacks_run_on_torch_and_the_log_says_why(caplog, preset, options, reason):
    config, networks, sizes = members(preset, n=1, **options)
    with caplog.at_level(logging.INFO):
        engine = make_engine("compiled", config, networks, **sizes)
    assert isinstance(engine, TorchEngine)
    assert reason in caplog.text


def test_engines_are_chosen_by_name_and_by_what_is_installed(monkeypatch):
    config, networks, sizes = members("guiglion2020", n=1)
    assert isinstance(make_engine("torch", config, networks, **sizes), TorchEngine)
    assert isinstance(make_engine("compiled", config, networks, **sizes), CompiledEngine)
    assert isinstance(make_engine("auto", config, networks, **sizes), CompiledEngine)
    default = members("maury", n=2)
    assert isinstance(make_engine("auto", *default[:2], **default[2]), TorchEngine)
    with pytest.raises(UnknownName, match="torsh"):
        make_engine("torsh", config, networks, **sizes)
    monkeypatch.setattr(engine_module, "available", lambda: False)
    assert isinstance(make_engine("auto", config, networks, **sizes), TorchEngine)
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    with pytest.raises(MissingExtra, match="pip install llvmlite"):
        make_engine("compiled", config, networks, **sizes)


@pytest.mark.slow
def test_published_networks_agree_within_their_tolerance(shared, tmp_path):
    from maury.model.keras import import_keras
    from maury.spectra.preparation import Inputs

    model = import_keras(shared / "data" / "published_networks", tmp_path / "model")
    rng = np.random.default_rng(5)
    scaling = model.scaling.observables
    low, high = scaling.minimum, scaling.maximum
    observables = rng.uniform(low, high, size=(100, 9)).astype(np.float32)
    flux = rng.uniform(0.4, 1.1, size=(100, model.n_pixel)).astype(np.float32)
    inputs = Inputs(
        flux=flux,
        ivar=np.ones_like(flux),
        observables=observables,
        observable_errors=np.zeros_like(observables),
        flags=np.zeros(100, np.int32),
        snr=np.full(100, 50.0),
        wave_aa=model.wave_aa,
        medium="air",
    )
    answers = [
        EnsembleNetwork(model, engine=name).predict(inputs) for name in ("torch", "compiled")
    ]
    labels = model.scaling.labels
    away = np.abs(answers[0].mean - answers[1].mean) / (labels.maximum - labels.minimum)
    assert away.max() < 1e-4
    np.testing.assert_allclose(answers[1].sigma, answers[0].sigma, rtol=1e-3)
