import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from maury.errors import ConfigError, UnknownName
from maury.model.engines.engine import TorchEngine
from maury.model.networks.published import (
    PRESETS,
    PassDropout,
    build,
    network_config,
    network_config_of,
    thinned,
)
from maury.training.member import TrainingConfig, TrainingTensors, train_member

torch.set_num_threads(1)

# The preset that trains on simulated stars takes and gives other things: test_default_network.py.
# So does the invertible network, whose output is a flow: test_paper_presets.py.
LEARNT = sorted(name for name in PRESETS if not PRESETS[name].simulates and name != "candebat2024")
SHORT = {"candebat2024": {"kernels": (8, 4, 8, 4), "filters": (4, 4, 4, 4), "draws": 8}}
"""Settings of networks that do not fit spectra of 400 pixels."""


def make(name="guiglion2020", n_pixel=912, n_observable=9, n_label=9, **options):
    torch.manual_seed(3)
    config = network_config(name, options)
    return config, build(config, n_pixel, n_observable if config.photometry else 0, n_label)


def inputs(n=5, n_pixel=912, n_observable=9):
    generator = torch.Generator().manual_seed(1)
    flux = torch.rand(n, n_pixel, generator=generator)
    return flux, torch.rand(n, n_observable, generator=generator)


def test_published_number_of_parameters():
    _, network = make()
    assert sum(p.numel() for p in network.parameters()) == 58_549


def test_published_network_agrees_with_plain_numpy():
    config, network = make()
    flux, observables = inputs()
    weights = {k: v.double().numpy() for k, v in network.state_dict().items()}
    with torch.no_grad():
        got = network.eval()(flux, observables).numpy()

    def leaky(x):
        return np.maximum(x, config.negative_slope * x)

    for row in range(len(flux)):
        signal = flux[row].double().numpy()[None]
        for layer in ("conv1", "conv2", "conv3"):
            kernel, bias = weights[f"spectrum.{layer}.weight"], weights[f"spectrum.{layer}.bias"]
            signal = leaky(
                np.array(
                    [
                        sum(np.correlate(s, k, "valid") for s, k in zip(signal, ks, strict=True))
                        + b
                        for ks, b in zip(kernel, bias, strict=True)
                    ]
                )
            )
        spectrum = leaky(
            weights["spectrum.dense.weight"] @ signal.T.ravel() + weights["spectrum.dense.bias"]
        )
        photometry = leaky(
            weights["photometry.dense.weight"] @ observables[row].double().numpy()
            + weights["photometry.dense.bias"]
        )
        hidden = leaky(
            weights["head.hidden.weight"] @ np.concatenate([spectrum, photometry])
            + weights["head.hidden.bias"]
        )
        expected = weights["head.out.weight"] @ hidden + weights["head.out.bias"]
        np.testing.assert_allclose(got[row], expected, atol=2e-5)


def test_initial_weights_are_glorot_uniform_with_zero_bias():
    _, network = make()
    weight = network.state_dict()["spectrum.dense.weight"].numpy()
    limit = np.sqrt(6 / (1770 + 32))
    assert np.abs(weight).max() <= limit
    assert np.std(weight) == pytest.approx(limit / np.sqrt(3), rel=0.02)
    biases = [v for k, v in network.state_dict().items() if k.endswith("bias")]
    assert all(torch.all(bias == 0) for bias in biases)


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("photometry", [True, False])
def test_every_preset_with_and_without_photometry(name, photometry):
    config, network = make(name, n_pixel=64, n_observable=4, n_label=3, photometry=photometry)
    flux, observables = inputs(6, 64, 4)
    network.eval()
    with torch.no_grad():
        mean, variance = config.moments(network(flux, observables))
        other, _ = config.moments(network(flux, observables + 1.0))
    assert mean.shape == (6, 3)
    assert variance is None or bool((variance > 0).all())
    assert torch.equal(mean, other) is not photometry
    assert config.paper
    assert config.bibtex_key
    assert config.licence


@pytest.mark.parametrize("name", LEARNT)
def test_loss_ignores_missing_labels(name):
    config, network = make(name, n_pixel=64, n_observable=4, n_label=3, photometry=False)
    flux, observables = inputs(6, 64, 4)
    target = torch.rand(6, 3)
    target[:, 1] = torch.nan
    output = network.eval()(flux, observables)
    loss = config.loss(output, target, torch.zeros(6, 3))
    loss.backward()
    columns = torch.tensor([0, 2])
    kept = torch.cat([part[:, columns] for part in output.detach().split(3, dim=1)], dim=1)
    expected = config.loss(kept, target[:, columns], torch.zeros(6, 2))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_likelihood_is_least_at_the_true_variance():
    config = network_config("astronn")
    generator = torch.Generator().manual_seed(0)
    target = 0.1 * torch.randn(20_000, 1, generator=generator)
    label_variance = torch.full_like(target, 0.06**2)
    trial = np.linspace(0.04, 0.16, 121)
    losses = [
        config.loss(
            torch.cat(
                [torch.zeros_like(target), torch.full_like(target, float(2 * np.log(s)))], dim=1
            ),
            target,
            label_variance,
        ).item()
        for s in trial
    ]
    assert float(trial[int(np.argmin(losses))]) == pytest.approx(0.08, abs=0.003)


def test_astronn_sees_spectra_less_the_mean_of_the_training_spectra():
    config, network = make("astronn", n_pixel=64, n_observable=0)
    flux, observables = inputs(50, 64, 0)
    network.eval()
    before = network(flux - flux.mean(dim=0), observables)
    config.settle(network, flux)
    torch.testing.assert_close(network(flux, observables), before, rtol=1e-4, atol=1e-5)
    assert "spectrum.centre.mean" in network.state_dict()


def test_thinned_network_is_the_same_for_every_batch_and_differs_by_seed():
    _, network = make("astronn", n_pixel=64, n_observable=0)
    flux, observables = inputs(6, 64, 0)
    network.eval()
    with torch.no_grad():
        with thinned(network, 5):
            whole = network(flux, observables)
            parts = torch.cat([network(flux[k : k + 1], observables[k : k + 1]) for k in range(6)])
        with thinned(network, 6):
            other = network(flux, observables)
        plain = network(flux, observables)
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(whole, other)
    assert not torch.allclose(whole, plain)


@pytest.mark.parametrize(
    ("name", "filters", "units", "n_out"),
    [("starnet", (4, 16), (256, 128), 9), ("astronn", (2, 4), (192, 96), 18)],
)
def test_padded_convolutions_keep_the_pixels_as_in_the_code_of_the_authors(
    name, filters, units, n_out
):
    """Layers by hand, written down from the papers; each kernel of 8 sees three pixels before."""
    _, network = make(name, n_pixel=40, n_observable=0)
    network.eval()
    flux, observables = inputs(3, 40, 0)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    signal = flux.numpy()[:, None]
    for number, n_filter in enumerate(filters, start=1):
        weight, bias = (state[f"spectrum.conv{number}.{part}"] for part in ("weight", "bias"))
        assert weight.shape == (n_filter, signal.shape[1], 8)
        padded = np.pad(signal, [(0, 0), (0, 0), (3, 4)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 8, axis=2)
        signal = np.maximum(np.einsum("ncpk,fck->nfp", windows, weight) + bias[:, None], 0)
        assert signal.shape == (3, n_filter, 40)
    pooled = signal.reshape(3, filters[1], 10, 4).max(axis=3).reshape(3, -1)
    for part, n_unit in zip(("spectrum.dense", "head.hidden"), units, strict=True):
        pooled = np.maximum(pooled @ state[f"{part}.weight"].T + state[f"{part}.bias"], 0)
        assert pooled.shape == (3, n_unit)
    expected = pooled @ state["head.out.weight"].T + state["head.out.bias"]
    assert expected.shape == (3, n_out)
    with torch.no_grad():
        found = network(flux, observables).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_models_of_before_padding_are_read_as_they_were():
    for name in ("starnet", "astronn"):
        assert network_config_of({"name": name}).padding == "valid"
        written = {"name": name, **network_config(name).model_dump(mode="json")}
        assert network_config_of(written).padding == "same"
    assert network_config_of({"name": "bialek2020"}).padding == "same"


def test_initial_weights_of_astronn_are_those_of_its_authors():
    _, network = make("astronn", n_pixel=400, n_observable=0)
    weights = [p for n, p in network.named_parameters() if n.endswith("dense.weight")]
    assert float(weights[0].detach().std()) == pytest.approx(0.05, rel=0.02)


def test_unknown_keys_and_values_are_all_named_with_suggestions():
    with pytest.raises(ConfigError) as caught:
        network_config("guiglion2020", {"kernal": 8, "dropout": 1.5})
    assert "did you mean 'kernel'" in str(caught.value)
    assert "dropout" in str(caught.value)
    with pytest.raises(UnknownName, match="did you mean 'guiglion2024'"):
        network_config("guiglion2002")


def test_a_network_that_cannot_be_built_says_why():
    with pytest.raises(ConfigError, match="observables"):
        build(network_config("guiglion2020"), 912, 0, 9)
    with pytest.raises(ConfigError, match="20 pixels"):
        build(network_config("guiglion2020"), 20, 9, 9)


def test_astronn_has_the_three_dropouts_of_its_authors_and_four_in_earlier_models():
    spectrum = torch.rand(1, 64)
    _, network = make("astronn", n_pixel=64, n_observable=0)
    rates = [layer.p for layer in network.modules() if isinstance(layer, PassDropout)]
    assert rates == [0.3, 0.3, 0.3, 0.0]
    stored = {"name": "astronn", "dropout": 0.2, "mc_passes": 5}
    earlier = network_config_of(stored)
    assert earlier.head_dropout
    assert earlier.padding == "valid"
    older = build(earlier, 64, 0, 9)
    assert [layer.p for layer in older.modules() if isinstance(layer, PassDropout)] == [0.2] * 4
    _, valid = make("astronn", n_pixel=64, n_observable=0, padding="valid")
    older.load_state_dict(valid.state_dict())
    with torch.no_grad():
        none = torch.zeros(1, 0)
        torch.testing.assert_close(older.eval()(spectrum, none), valid.eval()(spectrum, none))
    written = {"name": "astronn", **network_config("astronn").model_dump(mode="json")}
    assert not network_config_of(written).head_dropout


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_networks_are_float32_whatever_the_process_says(name):
    config = network_config(name, {"photometry": True, **SHORT.get(name, {})})
    rng = np.random.default_rng(1)
    flux, observables = (rng.random((6, n), dtype=np.float32) for n in (400, 4))
    found = []
    for dtype in (torch.float32, torch.float64):
        with default_dtype(dtype):
            torch.manual_seed(4)
            network = build(config, 400, 4, 3).eval()
            assert {p.dtype for p in network.parameters()} == {torch.float32}
            found.append(TorchEngine(config, [network]).predict(flux, flux + 1, observables))
    np.testing.assert_array_equal(found[0].mean, found[1].mean)
    spreads = [one.variance for one in found if one.variance is not None]
    assert len(spreads) in (0, 2)
    assert not spreads or np.array_equal(*spreads)


@pytest.mark.two_threads
def test_weights_are_the_same_bits_whatever_the_process_says():
    network = network_config("guiglion2020", {"filters": (4, 2), "kernel": 4})
    generator = torch.Generator().manual_seed(1)
    arrays = [torch.randn(24, n, generator=generator, dtype=torch.float32) for n in (60, 5, 2)]
    stars = TrainingTensors(*arrays, torch.zeros(24, 2, dtype=torch.float32))
    found = []
    for dtype in (torch.float32, torch.float64):
        with default_dtype(dtype):
            config = TrainingConfig(epochs=2)
            found.append(train_member(stars, stars, network, config=config, seed=3).weights)
    for name, weight in found[0].items():
        assert torch.equal(weight, found[1][name]), name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("maury", {"depth": 10**9}),
        ("maury", {"width": 10**9}),
        ("student", {"stem": 10**9}),
        ("guiglion2020", {"filters": (10**9,)}),
        ("guiglion2020", {"filters": (2,) * 1000}),
        ("starnet", {"kernel": 10**9}),
        ("starnet", {"units": (4, 10**9)}),
        ("astronn", {"mc_passes": 10**9}),
    ],
)
def test_a_network_beyond_all_measure_is_refused_before_it_is_built(name, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        network_config(name, options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maury", "student", "guiglion2020", "starnet"])
def test_a_network_without_values_brings_no_compiler(name):
    code = (
        "import sys, torch\n"
        "from maury.model.networks.published import build, network_config\n"
        "with torch.device('meta'):\n"
        f"    network = build(network_config({name!r}), 500, 4, 3)\n"
        "assert all(one.is_meta for one in network.parameters())\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False"], done.stderr
