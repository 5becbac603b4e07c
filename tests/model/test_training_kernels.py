"""Convolutions in vector code: values and gradients against PyTorch."""

import pytest
import torch

from maury.errors import ConfigError, MissingExtra
from maury.model.engines import llvm
from maury.model.engines.training_kernels import compiled_forward
from maury.model.networks.published import build, network_config
from maury.training.member import TrainingConfig, TrainingTensors, train_member
from maury.training.settings import EnsembleConfig


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
    forward = compiled_forward(config, network, 120)
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
    forward = compiled_forward(config, network, 120)
    stars = torch.randn(8, 120), torch.randn(8, 5)
    assert not torch.equal(forward(*stars), forward(*stars))
    network.eval()
    torch.testing.assert_close(forward(*stars), network(*stars), rtol=1e-4, atol=1e-5)


def test_other_networks_and_a_missing_compiler_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="trains the preset 'guiglion2020'"):
        EnsembleConfig.model_validate(
            {"network": {"preset": "starnet"}, "training": {"engine": "compiled"}}
        )
    asked = {"network": {"preset": "guiglion2020"}, "training": {"engine": "compiled"}}
    assert EnsembleConfig.model_validate(asked).training.engine == "compiled"
    monkeypatch.setattr(llvm, "available", lambda: False)
    with pytest.raises(MissingExtra, match=r"pip install llvmlite"):
        EnsembleConfig.model_validate(asked)


def trained(config):
    network = network_config("guiglion2020", {"filters": (4, 2), "kernel": 4})
    generator = torch.Generator().manual_seed(1)
    arrays = [torch.randn(24, n, generator=generator) for n in (60, 5, 2)]
    stars = TrainingTensors(*arrays, torch.zeros(24, 2))
    return train_member(stars, stars, network, config=config, seed=3).weights


def test_weights_do_not_depend_on_what_is_installed(monkeypatch):
    """Without being asked, training computes by PyTorch whether a compiler is there or not."""
    config = TrainingConfig(epochs=2)
    here = trained(config)
    monkeypatch.setattr(llvm, "available", lambda: False)
    there = trained(config)
    for name, weight in here.items():
        assert torch.equal(weight, there[name]), name


def test_the_compiled_engine_trains_when_asked_to():
    """Other masks of dropout, of which the loss does not hang."""
    compiled = trained(TrainingConfig(epochs=2, engine="compiled"))
    assert any(
        not torch.equal(w, compiled[n]) for n, w in trained(TrainingConfig(epochs=2)).items()
    )
    assert all(torch.isfinite(weight).all() for weight in compiled.values())
