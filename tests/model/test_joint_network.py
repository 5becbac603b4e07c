"""One body and a stage for each survey: what each adds, and how a network is taken apart."""

import numpy as np
import pytest
import torch

from maury.errors import ModelFileError
from maury.model.networks.default import DefaultConfig, DefaultNetwork
from maury.model.networks.joint import JointNetwork, once, output_rows
from maury.model.networks.published import build

CONFIG = DefaultConfig(stem=6, width=8, depth=1, rank=2, blocks=4)
PIXELS = {"red": 40, "blue": 24}
LABELS = ("teff", "logg", "m_h")


@pytest.fixture
def network():
    torch.manual_seed(3)
    joint = JointNetwork(CONFIG, PIXELS, n_observable=5, n_label=len(LABELS))
    with torch.no_grad():
        for parameter in joint.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name in PIXELS:
            joint.stage(name).flux_centre.add_(1.0)
            joint.stage(name).flux_scale.mul_(0.1)
    return joint.eval()


def stars(n=7, lost=()):
    rng = np.random.default_rng(1)
    spectra = {}
    for name, n_pixel in PIXELS.items():
        flux = torch.from_numpy(rng.normal(1, 0.1, (n, n_pixel)).astype("f4"))
        ivar = torch.full((n, n_pixel), 0.0 if name in lost else 2500.0)
        spectra[name] = (flux, ivar)
    return spectra, torch.from_numpy(rng.normal(size=(n, 5)).astype("f4"))


def same(one, two):
    return all(
        torch.allclose(getattr(one, k), getattr(two, k), atol=1e-5)
        for k in ("mean", "variance", "factor")
    )


def test_a_survey_that_did_not_see_a_star_adds_nothing(network):
    spectra, observables = stars(lost=("blue",))
    assert same(network(spectra, observables), network({"red": spectra["red"]}, observables))


def test_both_spectra_say_more_than_one(network):
    spectra, observables = stars()
    assert not same(network(spectra, observables), network({"red": spectra["red"]}, observables))


@pytest.mark.parametrize("name", ["blue", "red"])
def test_alone_it_is_a_network_of_the_default_preset(network, name):
    rows = output_rows(LABELS, ("m_h", "teff"), CONFIG.rank)
    alone = build(CONFIG, PIXELS[name], 5, 2)
    assert isinstance(alone, DefaultNetwork)
    alone.load_state_dict(network.alone(name, rows))
    spectra, observables = stars()
    found = alone.eval()(*spectra[name], observables)
    whole = network({name: spectra[name]}, observables)
    assert torch.allclose(found.mean, whole.mean[:, [2, 0]], atol=1e-5)
    assert torch.allclose(
        found.covariance(), whole.covariance()[:, [2, 0]][:, :, [2, 0]], atol=1e-5
    )


def test_put_together_again_from_its_parts(network):
    rows = output_rows(LABELS, LABELS, CONFIG.rank)
    alone = {k: {n: t.numpy() for n, t in network.alone(k, rows).items()} for k in PIXELS}
    shared = {n: t.numpy() for n, t in network.shared_weights().items()}
    again = JointNetwork.assemble(CONFIG, alone, shared, n_observable=5, n_label=3)
    spectra, observables = stars()
    assert same(network(spectra, observables), again(spectra, observables))
    for chosen in ({"red": spectra["red"]}, {"blue": spectra["blue"]}):
        assert same(network(chosen, observables), again(chosen, observables))


def test_weights_stand_once(network):
    weights = once(network.state_dict(), "red")
    assert len(weights) < len(network.state_dict())
    other = JointNetwork(CONFIG, PIXELS, n_observable=5, n_label=3).take_all(weights).eval()
    spectra, observables = stars()
    assert same(network(spectra, observables), other(spectra, observables))
    assert other.stage("blue").body is other.stage("red").body


def test_weights_of_another_network_are_refused(network):
    weights = once(network.state_dict(), "red")
    with pytest.raises(ModelFileError, match="another joint network"):
        network.take_all({k: v for k, v in weights.items() if k != "bias"})
    with pytest.raises(ModelFileError, match="do not fit"):
        network.take_all(weights | {"bias": torch.zeros(3)})
    shared = {n: t.numpy() for n, t in network.shared_weights().items()}
    rows = output_rows(LABELS, LABELS, CONFIG.rank)
    alone = {k: {n: t.numpy() for n, t in network.alone(k, rows).items()} for k in PIXELS}
    del shared["norm.weight"]
    with pytest.raises(ModelFileError, match="shared weights"):
        JointNetwork.assemble(CONFIG, alone, shared, n_observable=5, n_label=3)
