"""Networks of other papers: sizes, what is theirs alone, and that each learns data of its shape."""

import numpy as np
import pytest
import torch

from builders.lined_spectra import (
    COARSE_HR15N,
    HR10_HR21,
    HR15N,
    KNOWN,
    RVS,
    UVES,
    line_places,
    lithium,
    write_lined_survey,
    xp_columns,
)
from maury.errors import ColumnError, ConfigError
from maury.labels.columns import part_names
from maury.model.directory import Model
from maury.model.networks.invertible import Coupling
from maury.model.networks.probabilistic import pixel_windows
from maury.model.networks.published import build, network_config
from maury.model.posterior import posterior_samples
from maury.prediction.predictor import hide
from maury.prediction.streaming import predict_rows
from maury.spectra.batch import Batch
from maury.spectra.preparation import Preparation, XpCoefficients
from maury.spectra.spectra import Spectra
from maury.survey.store import Survey
from maury.training.ensemble import train
from maury.training.settings import EnsembleConfig

SMALL_FLOW = {
    "filters": [8, 8, 8, 4],
    "kernels": [16, 4, 8, 4],
    "condition_units": [[32, 32], [16, 16], [32, 32]],
    "deep_units": [16, 32, 32],
    "last_units": 16,
    "hidden": 64,
    "draws": 128,
}


def n_weights(name, n_pixel, n_observable, n_label, **options):
    config = network_config(name, options)
    # Shapes alone: no memory is taken.
    with torch.device("meta"):
        network = build(config, n_pixel, n_observable, n_label)
    return sum(parameter.numel() for parameter in network.parameters())


def test_guiglion2024_has_three_branches():
    convolutions = (10 + 1) * 8 + (80 + 1) * 4 + (40 + 1) * 2
    spectrum = convolutions + (2 * (801 - 27) + 1) * 32
    others = (4 + 1) * 27 + (110 + 1) * 32
    head = (32 + 27 + 32 + 1) * 16 + (16 + 1) * 5
    assert n_weights("guiglion2024", 801, 114, 5) == spectrum + others + head == 55_306
    settings = EnsembleConfig.model_validate({"network": {"preset": "guiglion2024"}})
    names = settings.preparation.observable_names
    assert len(names) == 4 + 110
    assert names[:5] == (
        "phot_g_mean_mag",
        "phot_bp_mean_mag",
        "phot_rp_mean_mag",
        "parallax",
        "bp_00/G",
    )
    assert (settings.training.batch_size, settings.training.learning_rate) == (16, 1e-3)


def test_nepal2023_takes_the_published_pixels():
    assert len(HR15N) == 6861
    spectrum = 494 + (2 * ((6861 - 27) // 2) + 1) * 32
    assert n_weights("nepal2023", 6861, 0, 4) == spectrum + 33 * 16 + 17 * 4 == 219_810


def test_bialek2020_is_starnet_with_a_variance():
    spectrum = (8 + 1) * 4 + (4 * 8 + 1) * 16 + (4000 // 4 * 16 + 1) * 256
    head = 257 * 128 + 129 * 2 * 6
    assert n_weights("bialek2020", 4000, 0, 6) == spectrum + head == 4_131_264
    config = network_config("bialek2020")
    settings = EnsembleConfig.model_validate({"network": {"preset": "bialek2020"}})
    assert settings.ensemble.percentile == 100
    assert (settings.training.batch_size, settings.training.learning_rate) == (32, 7e-4)
    mean, variance = config.moments(torch.tensor([[1.0, 2.0, -50.0, 3.0]]))
    assert mean.tolist() == [[1.0, 2.0]]
    # softplus(3) = log(1 + e^3).
    np.testing.assert_allclose(variance, [[1e-3, np.log1p(np.exp(3.0)) + 1e-3]], rtol=1e-5)


def test_bialek2020_loss_is_the_gaussian_likelihood():
    config = network_config("bialek2020")
    output, target = torch.tensor([[0.5, 0.0]]), torch.tensor([[1.5]])
    variance = np.log(2.0) + 1e-3 + 0.25
    expected = 0.5 * (1.0 / variance + np.log(variance))
    found = config.loss(output, target, torch.tensor([[0.25]]))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_leung2019_has_the_published_layers():
    windows = [[(10, 20)], [(100, 110), (300, 310)], [(500, 530)]]
    whole = (8 + 1) * 2 + (16 + 1) * 4 + (7514 // 4 * 4 + 1) * 192 + 193 * 96
    whole += 97 * 6 + 97 * 2
    elements = sum((n + 1) * 32 + 33 * 16 + (16 + 5 + 1) * 2 for n in (10, 20, 30))
    assert n_weights("leung2019", 7514, 0, 6, windows=windows) == whole + elements == 1_465_618
    # Carbon and nitrogen: 256 and 64 units.
    wide = n_weights("leung2019", 7514, 0, 6, windows=windows, wide=[0])
    narrow = 11 * 32 + 33 * 16 + 22 * 2
    assert wide - whole - elements == 11 * 256 + 257 * 64 + (64 + 6) * 2 - narrow
    with pytest.raises(ConfigError, match="2 labels have windows, and 3 need them"):
        n_weights("leung2019", 7514, 0, 6, windows=windows[:2])
    with pytest.raises(ConfigError, match="start < stop"):
        network_config("leung2019", {"windows": [[(20, 10)]]})


def test_leung2019_sees_of_an_element_its_windows_alone():
    torch.manual_seed(1)
    options = {"windows": [[(10, 20)], [(30, 40)]], "full": 1, "mc_passes": 0}
    config = network_config("leung2019", options)
    network = build(config, 64, 0, 3).eval()
    flux = torch.rand(1, 64, requires_grad=True)
    output = network(flux, torch.zeros(1, 0))
    assert output.shape == (1, 6)
    features = network.whole(flux, torch.zeros(1, 0)).detach()
    seen = []
    for element in network.elements:
        full = torch.zeros(1, 3)
        mean, _ = element(flux, full)
        (slope,) = torch.autograd.grad(mean.sum(), flux)
        seen.append(torch.nonzero(slope[0]).ravel())
    assert seen[0].min() >= 10
    assert seen[0].max() < 20
    assert seen[1].min() >= 30
    assert seen[1].max() < 40
    assert features.shape == (1, 96)


def test_windows_in_wavelength_become_pixels():
    wave = 5000.0 + np.arange(100)
    found = pixel_windows(wave, [[(5010.0, 5019.0)], [(5030.5, 5032.0), (5099.0, 5099.0)]])
    assert found == (((10, 20),), ((31, 33), (99, 100)))
    with pytest.raises(ValueError, match=r"5200\.0 and 5300"):
        pixel_windows(wave, [[(5200.0, 5300.0)]])


def test_candebat2024_has_the_published_layers():
    n1 = (8000 - 64) // 2 + 1
    n2 = (n1 // 4 - 16) // 2 + 1
    n3 = n2 - 127
    n4 = (n3 - 4) // 2 + 1
    convolutions = 65 * 256 + (256 * 16 + 1) * 256 + (256 * 128 + 1) * 256 + (256 * 4 + 1) * 16
    heads = (256 * (n2 // 4) + 1) * 256 + 257 * 256
    heads += (256 * n3 + 1) * 16 + 17 * 32 + (16 * n4 + 1) * 512 + 513 * 256
    heads += (16 * n4 + 1) * 64 + 65 * 128 + 129 * 256 + 257 * 32
    # Nine labels in halves of four and five; scale and shift of each besides.
    couplings = sum((9 + 2 * c + 2) * 512 + 513 * 2 * 9 + 18 for c in (256, 32, 256, 32))
    found = n_weights("candebat2024", 8000, 0, 9)
    assert found == convolutions + heads + couplings
    with pytest.raises(ConfigError, match="two labels"):
        n_weights("candebat2024", 8000, 0, 1)


@pytest.mark.parametrize("n_label", [2, 5])
def test_a_coupling_is_inverted_and_knows_its_determinant(n_label):
    torch.manual_seed(2)
    coupling = Coupling(n_label, 3, 16, 1.9, seed=1).double()
    for parameter in coupling.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    labels, condition = torch.randn(4, n_label).double(), torch.randn(4, 3).double()
    latent, grown = coupling(labels, condition)
    np.testing.assert_allclose(
        coupling.inverse(latent, condition).detach(), labels, rtol=1e-9, atol=1e-9
    )
    for row in range(4):
        one = condition[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda x, one=one: coupling(x[None], one)[0][0], labels[row]
        )
        assert torch.logdet(jacobian.abs() if n_label == 1 else jacobian @ jacobian.T).item() == (
            pytest.approx(2 * grown[row].item(), rel=1e-8)
        )


def test_candebat2024_draws_have_the_density_that_trains_it():
    torch.manual_seed(3)
    config = network_config("candebat2024", {**SMALL_FLOW, "draws": 2000})
    network = build(config, 240, 0, 2).eval()
    for parameter in network.couplings.parameters():
        torch.nn.init.normal_(parameter, std=0.12)
    flux = torch.rand(1, 240)
    with torch.no_grad():
        grid = torch.linspace(-8, 8, 161)
        labels = torch.cartesian_prod(grid, grid)
        flow = network(flux.repeat(len(labels), 1), torch.zeros(len(labels), 0))
        weight = flow.log_density(labels).exp().double() * 0.1**2
        output = config.predict(network, flux, flux, torch.zeros(1, 0))
    labels, weight = labels.double().numpy(), weight.numpy()
    assert weight.sum() == pytest.approx(1.0, abs=0.01)
    mean = weight @ labels
    covariance = (weight[:, None] * (labels - mean)).T @ (labels - mean)
    # 2000 draws: 2 % of each standard deviation.
    sigma = np.sqrt(covariance.diagonal())
    np.testing.assert_allclose(output.mean[0].numpy() / sigma, mean / sigma, atol=0.1)
    found = output.covariance[0].numpy() / np.outer(sigma, sigma)
    np.testing.assert_allclose(found, covariance / np.outer(sigma, sigma), atol=0.12)


def test_candebat2024_loss_leaves_out_stars_that_lack_a_label():
    torch.manual_seed(4)
    config = network_config("candebat2024", SMALL_FLOW)
    network = build(config, 240, 0, 3).eval()
    flux, none = torch.rand(5, 240), torch.zeros(5, 0)
    target = torch.randn(5, 3)
    some = target.clone()
    some[3, 1] = torch.nan
    kept = [0, 1, 2, 4]
    expected = config.loss(network(flux[kept], none[kept]), target[kept], target[kept])
    found = config.loss(network(flux, none), some, some)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    nothing = config.loss(network(flux, none), torch.full((5, 3), torch.nan), some)
    assert nothing.item() == 0.0


PRESETS_OF_PAPERS = {
    "guiglion2024": (RVS, ("teff", "logg", "m_h", "alpha_m"), {}, 30),
    "nepal2023": (COARSE_HR15N, ("teff", "logg", "fe_h", "a_li"), {}, 30),
    "bialek2020": (UVES, ("teff", "logg", "m_h"), {}, 30),
    "leung2019": (UVES, ("teff", "logg", "fe_h", "mg_fe"), {"mc_passes": 5}, 40),
    "candebat2024": (HR10_HR21, ("teff", "logg", "fe_h"), SMALL_FLOW, 30),
}
RATE = 3e-3
"""Higher than the published ones, so that some hundred steps are enough."""


def trained(tmp_path, name):
    wave, labels, network, epochs = PRESETS_OF_PAPERS[name]
    n = 600 if name == "bialek2020" else 240
    survey = write_lined_survey(tmp_path / "s.zarr", wave, labels, n, xp=name == "guiglion2024")
    if name == "leung2019":
        places = line_places(wave, 4)[3]
        network = {**network, "windows": [[(int(k) - 6, int(k) + 7) for k in places]]}
    training = {"epochs": epochs, "patience": 60, "batch_size": 16, "learning_rate": RATE}
    if name == "bialek2020":
        # Its spectra are not centred, so that the published rate is as fast as it goes.
        training["learning_rate"] = 7e-4
    config = {
        "network": {"preset": name, **network},
        "training": training,
        "ensemble": {"members": 1, "labels": list(labels)},
    }
    return survey, labels, train(survey, tmp_path / "m", config=config, seed=1, n_processes=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS_OF_PAPERS)
def test_each_learns_data_of_its_shape(tmp_path, name):
    survey, labels, model = trained(tmp_path, name)
    again = Model.open(tmp_path / "m")
    assert again.checksum == model.checksum
    rows = np.flatnonzero(model.split.contains("test", survey.star_id))
    assert len(rows) > 15
    found = predict_rows(again, survey, rows)
    truth = survey.labels(labels)[rows]
    for k, label in enumerate(labels):
        correlation = np.corrcoef(found[label], truth[:, k])[0, 1]
        # Of labels that nothing tells it would be 0 +- .2.
        assert correlation > 0.8, (label, correlation)
    if name in ("bialek2020", "leung2019", "candebat2024"):
        # `ensemble.train` alone calibrates nothing.
        error = found[KNOWN["teff"].formal_error_name]
        pull = np.abs(found["teff"] - truth[:, 0]) / error
        assert np.all(error > 0)
        assert 0.05 < np.median(pull) < 3.0
    if name == "candebat2024":
        inputs = again.preparation.apply(survey.rows(rows))
        samples = posterior_samples(again, inputs, 400, seed=1)
        mean, error = np.asarray(found["teff"]), np.asarray(error)
        assert samples.shape == (len(rows), 400, 3)
        sigma = samples.std(axis=1)
        assert np.all(np.abs(samples.mean(axis=1)[:, 0] - mean) < 0.4 * sigma[:, 0])
        assert float(np.median(sigma[:, 0] / error)) == pytest.approx(1.0, abs=0.15)
        np.testing.assert_array_equal(samples, posterior_samples(again, inputs, 400, seed=1))


def test_only_invertible_networks_have_posteriors(tiny_model, tiny_survey):
    model, survey = Model.open(tiny_model), Survey.open(tiny_survey)
    inputs = model.preparation.apply(survey.batch(0, 4))
    with pytest.raises(ConfigError, match="no posterior"):
        posterior_samples(model, inputs, 10, seed=1)


def test_lithium_is_a_label_of_the_users_own():
    assert lithium().name == "a_li"


def xp_batch(**changes):
    rng = np.random.default_rng(5)
    none = np.zeros((6, len(UVES)), np.float32)
    columns = {"id": np.array([f"s{k}" for k in range(6)]), **xp_columns(rng.random((6, 2)), rng)}
    return Batch(Spectra(UVES, none, none, "air"), {**columns, **changes})


def test_xp_coefficients_are_over_the_flux_in_g():
    batch = xp_batch()
    values, errors = XpCoefficients().measure(batch)
    assert values.shape == errors.shape == (6, 110)
    flux = 10 ** (-0.4 * (batch.column("phot_g_mean_mag") - 25.6873668671))
    np.testing.assert_allclose(values[:, 57], batch.column("rp_02") / flux, rtol=1e-6)
    np.testing.assert_allclose(errors, 1e-4, rtol=1e-6)
    assert np.abs(values).max() < 2
    preparation = Preparation.from_json({"observables": [{"observable": "xp"}]})
    assert preparation.observable_names[0] == "bp_00/G"
    assert preparation.source_names == ("xp",)
    assert Preparation.from_json(preparation.to_json()) == preparation


def test_xp_coefficients_beyond_the_relevant_bases_are_zero():
    known = {"bp_n_relevant_bases": np.array([3.0, 55, np.nan, 0, 10, 10])}
    batch = xp_batch(**known)
    values, errors = XpCoefficients().measure(batch)
    whole, _ = XpCoefficients(truncate=False).measure(batch)
    np.testing.assert_array_equal(values[0, :3], whole[0, :3])
    assert np.all(values[0, 3:55] == 0)
    assert np.isnan(errors[0, 3:55]).all()
    np.testing.assert_array_equal(values[1:3], whole[1:3])
    assert np.all(values[3, :55] == 0)
    # Nothing is said of RP, and the noise is that of all, cut or not.
    np.testing.assert_array_equal(values[:, 55:], whole[:, 55:])


def test_noise_of_xp_is_told_in_decades():
    batch = xp_batch()
    told = XpCoefficients(noise=True).measure(batch)[0][:, 110]
    np.testing.assert_allclose(told, np.log10(1e-4 / 1.5e-5), rtol=1e-6)
    none = {f"{part}_error": np.full(6, np.nan) for part in part_names("bp", 55)}
    some = xp_batch(**none, rp_03_error=np.full(6, 1e9))
    np.testing.assert_allclose(XpCoefficients(noise=True).measure(some)[0][:, 110], told, rtol=1e-6)
    none |= {f"{part}_error": np.full(6, np.nan) for part in part_names("rp", 55)}
    assert np.isnan(XpCoefficients(noise=True).measure(xp_batch(**none))[0][:, 110]).all()
    mapping = Preparation.from_json(
        {"observables": [{"observable": "xp", "noise": True}]}
    ).observable_map
    assert mapping.error_columns.tolist() == [110]
    assert "noise" not in XpCoefficients().names[-1]


def test_xp_stay_where_g_is_hidden_as_an_input():
    batch = xp_batch()
    preparation = Preparation.from_json({"observables": [{"observable": "xp"}]})
    seen = hide(batch, ("G", "BP"), further=preparation.further_sources)
    assert np.isnan(seen.get("phot_g_mean_mag")).all()
    expected = preparation.apply(batch).observables
    np.testing.assert_array_equal(preparation.apply(seen).observables, expected)
    gone = hide(batch, ("xp",), further=preparation.further_sources)
    assert np.isnan(preparation.apply(gone).observables).all()


def test_a_star_without_g_or_xp_has_no_coefficients():
    names = part_names("bp", 55)
    magnitude = np.array([10.0, np.nan, 11, 12, 13, 14])
    batch = xp_batch(phot_g_mean_mag=magnitude, **{names[4]: np.full(6, np.nan)})
    values, _ = XpCoefficients().measure(batch)
    assert np.isnan(values[1]).all()
    assert np.isnan(values[:, 4]).all()
    assert np.isfinite(values[0, :4]).all()
    with pytest.raises(ConfigError, match="over"):
        Preparation.from_json({"observables": [{"observable": "xp", "over": "bp_00"}]})
    preparation = Preparation.from_json({"observables": [{"observable": "xp"}]})
    with pytest.raises(ColumnError, match="bp_00"):
        preparation.require_columns(["snr", "bp_01"], what="it")
