import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from maury.model.networks.default import (
    DefaultConfig,
    LabelPosterior,
    ResidualBlock,
    lower_median,
)
from maury.model.networks.published import PRESETS, build, network_config

torch.set_num_threads(1)
N_PIXEL, N_OBSERVABLE, N_LABEL = 40, 5, 3
SMALL = {"stem": 8, "width": 16}


def make(n_observable=N_OBSERVABLE, **options):
    config = network_config("maury", {**SMALL, "photometry": n_observable > 0, **options})
    torch.manual_seed(4)
    network = build(config, N_PIXEL, n_observable, N_LABEL).eval()
    # The last layer starts at zero, where every spectrum has one answer.
    torch.nn.init.normal_(network.out.weight, 0.0, 0.3)
    return config, network


def inputs(n=6, n_observable=N_OBSERVABLE):
    generator = torch.Generator().manual_seed(1)
    flux = 1 - 0.3 * torch.rand(n, N_PIXEL, generator=generator)
    ivar = 2000 * torch.rand(n, N_PIXEL, generator=generator) + 1000
    return flux, ivar, torch.randn(n, n_observable, generator=generator)


def ask(config, network, *tensors):
    with torch.no_grad():
        return config.predict(network, *tensors)


@given(st.integers(0, 2**31), st.integers(0, 3))
def test_likelihood_agrees_with_the_full_covariance(seed, rank):
    rng = np.random.default_rng(seed)
    n, k = 4, 5
    mean, target = rng.normal(size=(2, n, k))
    variance, error = rng.uniform(0.1, 2.0, (2, n, k))
    factor = rng.normal(size=(n, k, rank))
    target[rng.random((n, k)) < 0.3] = np.nan
    posterior = LabelPosterior(*(torch.from_numpy(x) for x in (mean, variance, factor)))
    loss = posterior.negative_log_likelihood(torch.from_numpy(target), torch.from_numpy(error))
    expected = 0.0
    for star in range(n):
        known = np.isfinite(target[star])
        if known.any():
            covariance = np.diag(variance[star] + error[star]) + factor[star] @ factor[star].T
            normal = multivariate_normal(
                mean[star, known], covariance[np.ix_(known, known)], allow_singular=False
            )
            expected -= normal.logpdf(target[star, known])
            expected -= 0.5 * known.sum() * np.log(2 * np.pi)
    assert float(loss) == pytest.approx(expected / n, abs=1e-9)


def test_covariance_is_positive_and_its_diagonal_the_variance():
    answer = ask(*make(), *inputs(50))
    assert answer.covariance.shape == (50, N_LABEL, N_LABEL)
    assert answer.features.shape == (50, SMALL["width"])
    assert float(torch.linalg.eigvalsh(answer.covariance).min()) > 0
    diagonal = torch.diagonal(answer.covariance, dim1=1, dim2=2)
    torch.testing.assert_close(diagonal, answer.variance)
    assert float((answer.covariance - torch.diag_embed(diagonal)).abs().max()) > 1e-3


def test_bad_pixels_and_missing_observables_carry_nothing():
    config, network = make()
    flux, ivar, observables = inputs()
    ivar[:, 5:9] = 0.0
    observables[:, 2] = torch.nan
    wild = flux.clone()
    wild[:, 5:9] = 1e6
    first, second = (ask(config, network, f, ivar, observables) for f in (flux, wild))
    assert torch.equal(first.mean, second.mean)
    assert torch.isfinite(first.mean).all()
    present = observables.clone()
    present[:, 2] = 0.0
    assert not torch.allclose(first.mean, ask(config, network, flux, ivar, present).mean)


def test_it_answers_with_either_input_or_none():
    config, network = make()
    flux, ivar, observables = inputs()
    dark, unseen = torch.zeros_like(ivar), torch.full_like(observables, torch.nan)
    both = ask(config, network, flux, ivar, observables).mean
    photometry = ask(config, network, flux, dark, observables).mean
    spectrum = ask(config, network, flux, ivar, unseen).mean
    neither = ask(config, network, flux, dark, unseen).mean
    assert torch.equal(photometry, ask(config, network, flux + 1, dark, observables).mean)
    assert not torch.allclose(both, photometry)
    assert not torch.allclose(both, spectrum)
    assert torch.equal(neither, neither[:1].expand_as(neither))


def test_a_pixel_far_noisier_than_the_others_counts_less():
    config, network = make()
    flux, ivar, observables = inputs()
    bright = flux.clone()
    bright[:, 7] += 0.5
    shifts = []
    for weight in (2000.0, 100.0, 1.0):
        ivar[:, 7] = weight
        pair = [ask(config, network, f, ivar, observables).mean for f in (flux, bright)]
        shifts.append(float((pair[1] - pair[0]).abs().max()))
    assert shifts[0] > 2 * shifts[1] > 4 * shifts[2] > 0


def test_the_answer_does_not_depend_on_the_batch():
    config, network = make()
    tensors = inputs(20)
    whole = ask(config, network, *tensors).mean
    alone = torch.cat(
        [ask(config, network, *(t[k : k + 1] for t in tensors)).mean for k in range(20)]
    )
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-6)


def test_spectra_only():
    config, network = make(n_observable=0)
    flux, ivar, _ = inputs(4, 0)
    assert ask(config, network, flux, ivar, torch.zeros(4, 0)).mean.shape == (4, N_LABEL)
    assert not any("observables" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize("n", [0, 1])
def test_no_star_and_one_star(n):
    answer = ask(*make(), *inputs(n))
    assert answer.mean.shape == (n, N_LABEL)
    assert answer.covariance.shape == (n, N_LABEL, N_LABEL)


def test_a_block_starts_as_the_identity_up_to_its_bias():
    block = ResidualBlock(4)
    torch.nn.init.zeros_(block.outer.bias)
    features = torch.randn(3, 4)
    assert torch.equal(block(features), features)


def test_it_is_the_preset_maury_with_observables_from_all_pairs_of_bands():
    assert PRESETS["maury"] is DefaultConfig
    colours = DefaultConfig.preparation_defaults["observables"][1]["pairs"]
    assert len({tuple(sorted(pair)) for pair in colours}) == len(colours) == 28


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_the_lower_median_is_that_of_torch(holes):
    generator = torch.Generator().manual_seed(2)
    ivar = torch.rand((40, 33), generator=generator)
    ivar[torch.rand(ivar.shape, generator=generator) < holes] = 0.0
    ivar[3], ivar[4, 1:] = 0.0, 0.0
    typical, present = lower_median(ivar)
    expected = torch.where(ivar > 0, ivar, torch.nan).nanmedian(dim=1).values
    expected[3] = 1.0
    assert torch.equal(typical[:, 0], expected)
    assert present[:, 0].tolist() == [row != 3 for row in range(40)]
