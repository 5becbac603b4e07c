"""Convolutions in vector code: values and gradients against PyTorch."""

import pytest
import torch

from maury.model.engines import training_kernels as quick_training
from maury.model.engines.training_kernels import quick_forward
from maury.model.networks.published import build, network_config


@pytest.mark.parametrize(
    ("options", "n_star"),
    [
        ({}, 16),
        ({"filters": (5, 3), "kernel": 4, "negative_slope": 0.1}, 37),
        ({"filters": (7,)}, 1),
    ],
)
def test_values_and_gradients_are_those_of_torch(options, n_star):
    config = network_config("guiglion2020", {**options, "dropout": 0.0})
    torch.manual_seed(3)
    network = build(config, 120, 5, 3)
    flux, observables = torch.randn(n_star, 120), torch.randn(n_star, 5)
    forward = quick_forward(config, network, 120)
    weight = torch.randn(n_star, 3)
    found = []
    for call in (network, forward):
        network.zero_grad()
        output = call(flux, observables)
        (output * weight).sum().backward()
        found.append([output.detach(), *(p.grad.clone() for p in network.parameters())])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-4, atol=2e-5 * float(wanted.abs().max()))
        assert wanted.abs().max() > 0


def test_dropout_is_drawn_in_training_alone():
    config = network_config("guiglion2020", {"dropout": 0.5})
    network = build(config, 120, 5, 3)
    forward = quick_forward(config, network, 120)
    stars = torch.randn(8, 120), torch.randn(8, 5)
    assert not torch.equal(forward(*stars), forward(*stars))
    network.eval()
    torch.testing.assert_close(forward(*stars), network(*stars), rtol=1e-4, atol=1e-5)


def test_other_networks_and_a_missing_compiler_leave_it_to_torch(monkeypatch):
    config = network_config("starnet", {})
    assert quick_forward(config, build(config, 120, 5, 3), 120) is None
    config = network_config("guiglion2020", {})
    monkeypatch.setattr(quick_training, "available", lambda: False)
    assert quick_forward(config, build(config, 120, 5, 3), 120) is None
