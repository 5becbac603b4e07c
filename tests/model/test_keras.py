import h5py
import numpy as np
import pytest

from builders import keras_oracle
from builders.keras_networks import graph, layer, write
from maury.cli.model import import_keras as import_networks
from maury.errors import InputFileError, OutputExists
from maury.evaluation.card import read_card
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork
from maury.model.keras import import_keras, read_here, read_keras
from maury.model.networks.published import build, network_config
from maury.spectra.preparation import Inputs


def stars(n, seed=1):
    rng = np.random.default_rng(seed)
    low, high = keras_oracle.PHOTOMETRY_MIN, keras_oracle.PHOTOMETRY_MAX
    observables = low + (high - low) * rng.random((n, 9))
    return rng.uniform(0.4, 1.05, (n, 912)), observables


def predict(model, flux, observables):
    n = len(flux)
    inputs = Inputs(
        flux=flux.astype(np.float32),
        ivar=np.ones(flux.shape, np.float32),
        observables=observables.astype(np.float32),
        observable_errors=np.full(observables.shape, np.nan, np.float32),
        flags=np.zeros(n, np.int32),
        snr=np.full(n, 50.0),
        wave_aa=model.wave_aa,
        medium=model.medium,
    )
    answer = EnsembleNetwork(model).predict(inputs)
    return answer.mean, answer.sigma


def assert_agrees(model, files, flux, observables, tolerance):
    expected = keras_oracle.predict(files, flux, observables[:, :8], observables[:, 8])
    mean, error = predict(model, flux, observables)
    span = keras_oracle.LABEL_MAX - keras_oracle.LABEL_MIN
    assert np.abs((mean - expected.mean(axis=0)) / span).max() < tolerance
    assert np.abs((error - expected.std(axis=0, ddof=1)) / span).max() < tolerance


@pytest.mark.slow
def test_made_up_networks_agree_with_the_oracle(tmp_path):
    files = [
        write(tmp_path / f"n{k}.h5", graph(tag), seed=k) for k, tag in enumerate(("", "_7", "x"))
    ]
    model = import_keras(tmp_path, tmp_path / "m")
    assert_agrees(model, files, *stars(20), tolerance=1e-5)


@pytest.mark.slow
def test_released_networks_agree_with_the_oracle(shared, tmp_path):
    directory = shared / "data" / "published_networks"
    model = import_keras(directory, tmp_path / "m")
    files = sorted(directory.glob("*.h5"))
    assert len(model.kept) == len(files) == 10
    flux = _rave_like_flux(shared, 200)
    _, observables = stars(200)
    assert_agrees(model, files, flux, observables, tolerance=1e-5)
    again = Model.open(model.path)
    assert again.label_names == keras_oracle.LABELS
    assert again.provenance["licence"] == "MIT, (c) 2020 gguiglion"
    assert "Guiglion" in again.citation
    assert "not known" in again.split.warning
    assert not again.simulated
    np.testing.assert_allclose(again.wave_aa, 8420.0 + 0.4 * np.arange(912))


def _rave_like_flux(shared, n):
    from astropy.io import fits

    with fits.open(shared / "data" / "rave_like" / "training_sample_spectra.fits") as hdus:
        return np.ascontiguousarray(hdus[0].data[:, :n].T, dtype=np.float64)


def test_the_stored_settings_are_those_of_the_preset(tmp_path):
    write(tmp_path / "a.h5")
    model = import_keras(tmp_path, tmp_path / "m")
    config = network_config("guiglion2020")
    assert dict(model.network) == {"name": config.name, **config.model_dump(mode="json")}
    shapes = {k: tuple(v.shape) for k, v in build(config, 912, 9, 9).state_dict().items()}
    assert dict(model.tensors) == shapes


def changed(**changes):
    """Graph with some settings of some layers changed, as ``layer__setting=value``."""
    config = graph()
    for key, value in changes.items():
        name, _, setting = key.partition("__")
        found = next(one for one in config["layers"] if one["name"] == name)
        found["config"][setting] = value
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed(c1__kernel_size=[5]), "kernel_size"),
        (changed(c0__padding="same"), "padding"),
        (changed(c2__strides=[2]), "strides"),
        (changed(d3__activation="tanh"), "activation"),
        (changed(d0__units=64), "units"),
        (changed(lc1__alpha=0.1), "slope 0.3"),
        (changed(in_a__batch_input_shape=[None, 900, 1]), "input of 912"),
        (changed(in_b__batch_input_shape=[None, 8, 1]), "input of 9"),
        (changed(fa__data_format="channels_first"), "data_format"),
        (changed(join__axis=0), "Concatenate"),
        ({**graph(), "output_layers": []}, "cannot be read|one output"),
        ({**graph(), "layers": graph()["layers"][:-3]}, "cannot be read"),
        ({"layers": []}, "cannot be read"),
    ],
)
def test_other_networks_are_refused(tmp_path, config, said):
    with pytest.raises(InputFileError, match=said):
        read_keras(write(tmp_path / "n.h5", config))


@pytest.mark.slow
def test_a_loop_in_the_graph_is_refused(tmp_path):
    config = graph()
    drop = next(one for one in config["layers"] if one["name"] == "drop")
    drop["inbound_nodes"] = [[["fa", 0, 0, {}]]]
    with pytest.raises(InputFileError, match="expected"):
        read_keras(write(tmp_path / "n.h5", config))


def replace(path, name, make):
    with h5py.File(path, "r+") as file:
        del file[name]
        make(file, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model_weights/d2", "model_weights/d2/d2/kernel:0"])
@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/nowhere")])
def test_links_are_refused(tmp_path, name, link):
    path = write(tmp_path / "n.h5")
    replace(path, name, lambda file, key: file.__setitem__(key, link))
    with pytest.raises(InputFileError, match="link"):
        read_keras(path)


def test_weights_in_other_files_are_refused(tmp_path):
    path = write(tmp_path / "n.h5")
    (tmp_path / "raw").write_bytes(bytes(59 * 16 * 4))

    def external(file, key):
        file.create_dataset(key, (59, 16), "f4", external=[(str(tmp_path / "raw"), 0, 3776)])

    replace(path, "model_weights/d2/d2/kernel:0", external)
    with pytest.raises(InputFileError, match="another file"):
        read_keras(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((59, 15), "f4"), "shape"),
        (np.zeros((59, 16), "i4"), "shape"),
        (np.full((59, 16), np.nan, "f4"), "not finite"),
    ],
)
def test_wrong_weights_are_refused(tmp_path, value, said):
    path = write(tmp_path / "n.h5")
    replace(path, "model_weights/d2/d2/kernel:0", lambda file, key: file.__setitem__(key, value))
    with pytest.raises(InputFileError, match=said):
        read_keras(path)


@pytest.mark.slow
@pytest.mark.parametrize("length", [0, 100, 20_000])
def test_damaged_files_are_refused(tmp_path, length):
    path = write(tmp_path / "n.h5")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputFileError, match="cannot be read"):
        read_keras(path)


def test_empty_directory_and_existing_model(tmp_path):
    with pytest.raises(InputFileError, match=r"no \.h5 files"):
        import_keras(tmp_path, tmp_path / "m")
    write(tmp_path / "n.h5")
    import_keras(tmp_path, tmp_path / "m")
    with pytest.raises(OutputExists):
        import_keras(tmp_path, tmp_path / "m")


def with_layers(*layers):
    """Graph in which layers of the same name are others."""
    config = graph()
    others = {one["name"]: one for one in layers}
    config["layers"] = [others.get(one["name"], one) for one in config["layers"]]
    return config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**graph(), "output_layers": [["d3", 0, 0], ["d2", 0, 0]]}, "one output and two inputs"),
        ({**graph(), "input_layers": [["in_a", 0, 0]]}, "one output and two inputs"),
        (with_layers(layer("Activation", "d1", ["fb"])), "a Dense layer as photometry"),
        (with_layers(layer("Dense", "d2", ["join", "lb"], units=16)), "1 inputs of layer 'd2'"),
        (with_layers(layer("Concatenate", "join", ["la"], axis=-1)), "2 inputs of layer 'join'"),
    ],
)
def test_graphs_of_another_form_are_refused(tmp_path, config, said):
    with pytest.raises(InputFileError, match=said):
        read_here(write(tmp_path / "n.h5", config))


@pytest.mark.parametrize(
    ("limit", "most", "said"),
    [
        ("MAX_FILE_BYTES", 1000, "larger than 1000 bytes; it is no such network"),
        ("_MAX_GRAPH_BYTES", 100, "a small graph of layers.*bytes"),
    ],
)
def test_absurdly_large_networks_are_refused(tmp_path, monkeypatch, limit, most, said):
    path = write(tmp_path / "n.h5")
    assert len(read_here(path)) == 14
    monkeypatch.setattr(f"maury.model.keras.{limit}", most)
    with pytest.raises(InputFileError, match=said):
        read_here(path)


def test_a_directory_of_too_many_networks_is_refused(tmp_path, monkeypatch):
    for k in range(3):
        write(tmp_path / f"n{k}.h5", seed=k)
    monkeypatch.setattr("maury.model.keras.MAX_FILES", 2)
    with pytest.raises(InputFileError, match=r"3 .h5 files, at most 2 go in"):
        import_keras(tmp_path, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_command_writes_a_card_with_licence_scaling_and_limits(tmp_path):
    write(tmp_path / "n.h5", graph())
    import_networks(tmp_path, tmp_path / "m")
    card = read_card(Model.open(tmp_path / "m"))
    assert card.licence == "MIT, (c) 2020 gguiglion"
    assert "A&A 644, A168" in card.citation
    teff = card.labels[0]
    # The scaling of the published training sample, as the authors' table has it.
    assert (teff["minimum"], teff["maximum"]) == pytest.approx((3658.889404, 7286.502930))
    assert any("SPECTRUM_UNLIKE" in limit for limit in card.limits)
    assert any("not calibrated" in limit for limit in card.limits)
    assert not card.simulated
