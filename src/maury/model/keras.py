"""Read the Keras networks that the authors of the RAVE CNN released, without Keras.

Guiglion et al. (2020, A&A 644, A168) released ten networks as HDF5 files of Keras 2. Their layers
are named differently in every file, so the order is read from the stored graph. The files are data
here: nothing in them is executed, and links to other files are refused.
"""

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors
from numpy.typing import ArrayLike
from safetensors.numpy import load, save

from maury.errors import InputFileError
from maury.io.arrays import Float32Array
from maury.io.config_files import parse_json
from maury.io.files import refuse_existing
from maury.io.limits import current
from maury.labels import definitions as labels_module
from maury.model.directory import Affine, Member, Model, Scaling
from maury.model.split import SplitRecord
from maury.spectra.preparation import RAVE_GRID, Preparation
from maury.version import __version__

logger = logging.getLogger(__name__)
MAX_FILES = 1000
"""Networks read at once; the release has ten."""
# A released network has 58 549 weights, 0.23 MB in float32.
MAX_FILE_BYTES = 64 * 2**20
"""Largest file that is opened, far beyond a released network; chosen."""
# The largest weight, the dense layer of 1770 x 32, takes 0.23 MB; a chunk of a damaged file may
# claim gigabytes.
_MAX_WEIGHT_BYTES = 4 * 2**20
"""Largest array of weights in such a file; chosen."""
# The graph of a dozen layers is some kilobytes of JSON; a parser needs many times the length of its
# text.
_MAX_GRAPH_BYTES = 2**20
"""Largest description of a network in such a file; chosen."""


@dataclass(frozen=True)
class _Layer:
    """One expected layer: its kind, the settings that matter, and the names of its weights."""

    kind: str
    name: str
    settings: Mapping[str, Any]
    kernel_shape: tuple[int, ...]


def _convolution(name: str, n_in: int, n_out: int) -> _Layer:
    settings = {
        "filters": n_out,
        "kernel_size": [10],
        "strides": [1],
        "padding": "valid",
        "dilation_rate": [1],
        "groups": 1,
        "data_format": "channels_last",
        "activation": "linear",
        "use_bias": True,
    }
    return _Layer("Conv1D", name, settings, (10, n_in, n_out))


def _dense(name: str, n_in: int, n_out: int) -> _Layer:
    settings = {"units": n_out, "activation": "linear", "use_bias": True}
    return _Layer("Dense", name, settings, (n_in, n_out))


_SPECTRUM = (
    _convolution("spectrum.conv1", 1, 8),
    _convolution("spectrum.conv2", 8, 4),
    _convolution("spectrum.conv3", 4, 2),
    _dense("spectrum.dense", 1770, 32),
)
_PHOTOMETRY = (_dense("photometry.dense", 9, 27),)
_HEAD = (_dense("head.hidden", 59, 16), _dense("head.out", 16, 9))
_NETWORK = {
    "name": "guiglion2020",
    "photometry": True,
    "filters": [8, 4, 2],
    "kernel": 10,
    "negative_slope": 0.3,
    "dropout": 0.2,
    "spectrum_units": 32,
    "photometry_units": 27,
    "head_units": 16,
}


def import_keras(directory: Path | str, model: Path | str, *, overwrite: bool = False) -> Model:
    """Turn a directory of released networks into a model directory.

    The model answers with the mean of all the networks, for the files do not say which of them
    the authors kept, and with the published scaling, which the files lack.

    Parameters
    ----------
    directory : path-like
        Directory with the ``.h5`` files.
    model : path-like
        Model directory to write.
    overwrite : bool
        Replace an existing model.

    Returns
    -------
    Model
        The model as written.

    Raises
    ------
    InputFileError
        If there are no such files, or one is damaged, links elsewhere, or holds another network.
    OutputExists
        If `model` exists and `overwrite` is false.
    """
    directory, model = Path(directory), Path(model)
    refuse_existing(model, overwrite=overwrite)
    files = sorted(directory.glob("*.h5"))
    if not files:
        raise InputFileError(f"{directory} holds no .h5 files; give the directory of the networks")
    if len(files) > MAX_FILES:
        raise InputFileError(f"{directory} holds {len(files)} .h5 files, at most {MAX_FILES} go in")
    weights = _read_apart(files)
    scaling, preparation = _published_scaling(), Preparation.published()
    converted = Model(
        labels=labels_module.select(_published()["labels"]["names"]),
        network=_NETWORK,
        preparation=preparation,
        scaling=scaling,
        wave_aa=RAVE_GRID.wavelengths(),
        medium="air",
        tensors={name: array.shape for name, array in weights[0].items()},
        members=tuple(Member.numbered(number) for number in range(len(files))),
        split=SplitRecord.unknown(
            "the stars of these networks are not known to the model; those of the published "
            "training sample trained and chose them"
        ),
        simulated=False,
        provenance=_provenance(files),
    )
    saved = converted.save(model, weights=weights, overwrite=overwrite)
    logger.warning(
        "%s: imported networks cannot judge their labels: errors are not calibrated, no spectrum "
        "is computed from the labels, and their training stars are not known; a spectrum is "
        "compared with simulated ones alone (flag SPECTRUM_UNLIKE)",
        model,
    )
    return saved


def read_keras(path: Path) -> dict[str, Float32Array]:
    """Weights of one released network under the names of the preset `guiglion2020`.

    Keras stores kernels as (pixel, in, out) and (in, out); here they are (out, in, pixel) and
    (out, in). Both flatten the last convolution pixel by pixel, so nothing else moves. The file is
    read by a process of its own.

    Raises
    ------
    InputFileError
        If the file cannot be read, links elsewhere, or holds another network.
    """
    return _read_apart([path])[0]


_CHILD = "import sys; from maury.model.keras import answer; sys.exit(answer(sys.argv[1:]))"
# Files of 0.23 MB take no seconds: what runs longer hangs in the HDF5 library. The second bound is
# of the clock, for a process that waits and uses no processor. Chosen, not measured.
_CPU_SECONDS, _SECONDS = 8, 120


def _read_apart(paths: Sequence[Path]) -> list[dict[str, Float32Array]]:
    """Read files in another process: damaged ones can hang the HDF5 library, or crash it."""
    # The child finds the package where this process has it, installed or not.
    search = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")])
    )
    command = [sys.executable, "-c", _CHILD, *(str(path.absolute()) for path in paths)]
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    # HDF5 loads the libraries of filters that a file names from there: a file could run code.
    environment.pop("HDF5_PLUGIN_PATH", None)
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_SECONDS, check=False, env=environment
        )
        code, out = done.returncode, done.stdout
        # The child names a file before it reads it, so that the last name is that of the culprit.
        said = done.stderr.decode("utf-8", "replace").strip()
    except subprocess.TimeoutExpired:
        code, out, said = -1, b"", ""
    if code == _REFUSED:
        raise InputFileError(said.rpartition(_REFUSAL)[2])
    if code != 0:
        last = said.rpartition(_READING)[2].split("\n")[0] or str(paths[0])
        raise InputFileError(
            f"{last} makes the HDF5 library fail or hang; it is damaged, take it from the release "
            "again"
        )
    weights: list[dict[str, Float32Array]] = [{} for _ in paths]
    for key, array in load(out).items():
        number, _, name = key.partition("/")
        weights[int(number)][name] = array
    return weights


_REFUSED = 3
"""Exit status of the reading process for a file that it refuses; 1 and 2 are those of Python."""
_READING, _REFUSAL = "maury reads ", "maury refuses: "


def answer(paths: Sequence[str]) -> int:
    """Read files in this process, and write their weights to the standard output as tensors."""
    weights: dict[str, Float32Array] = {}
    _limit_this_process(_CPU_SECONDS + len(paths) // 10)
    for number, path in enumerate(paths):
        sys.stderr.write(f"{_READING}{path}\n")
        # A crash of the library would lose what is still in the buffer.
        sys.stderr.flush()
        try:
            found = read_here(Path(path))
        except InputFileError as error:
            sys.stderr.write(f"{_REFUSAL}{error}")
            return _REFUSED
        weights |= {f"{number}/{name}": array for name, array in found.items()}
    sys.stdout.buffer.write(save(weights))
    return 0


def _limit_this_process(seconds: int) -> None:
    try:
        import resource
    # Windows has no such limits; the bound of the clock holds there.
    except ImportError:
        return
    most = current().unfolded_bytes
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    # The interpreter and its libraries take a share before any file is read.
    resource.setrlimit(resource.RLIMIT_DATA, (2 * most, 2 * most))


def read_here(path: Path) -> dict[str, Float32Array]:
    """Weights of one released network, read by this process; see `read_keras`."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputFileError(
                f"{path} is larger than {MAX_FILE_BYTES} bytes; it is no such network"
            )
        with h5py.File(path, "r") as file:
            graph = _Graph(file, path)
            layers = dict(graph.matched())
            return _converted(graph, layers)
    except InputFileError:
        raise
    except Exception as error:
        raise InputFileError(
            f"{path} cannot be read as a Keras 2 network: {error}; take it from the release again"
        ) from error


def _converted(graph: "_Graph", layers: Mapping[str, _Layer]) -> dict[str, Float32Array]:
    weights: dict[str, Float32Array] = {}
    for keras_name, layer in layers.items():
        kernel = graph.weight(keras_name, "kernel:0", layer.kernel_shape)
        # Keras keeps (tap, in, out) and (in, out), torch (out, in, tap) and (out, in).
        order = (2, 1, 0) if layer.kind == "Conv1D" else (1, 0)
        weights[f"{layer.name}.weight"] = np.ascontiguousarray(kernel.transpose(order))
        weights[f"{layer.name}.bias"] = graph.weight(keras_name, "bias:0", layer.kernel_shape[-1:])
    return weights


class _Graph:
    """The layers of one file, walked from the output to both inputs."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file = file
        self._path = path
        text = file.attrs["model_config"]
        if len(text) > _MAX_GRAPH_BYTES:
            raise self._other("a small graph of layers", f"{len(text)} bytes")
        config = parse_json(text)["config"]
        self._layers = {layer["name"]: layer for layer in config["layers"]}
        self._inputs = [entry[0] for entry in config["input_layers"]]
        self._output = config["output_layers"][0][0]
        if len(config["output_layers"]) != 1 or len(self._inputs) != 2:
            raise self._other("one output and two inputs", "another number of them")

    def matched(self) -> Iterator[tuple[str, _Layer]]:
        """Pairs of Keras name and expected layer, for all layers with weights."""
        name, pairs = self._chain(self._output, _HEAD, dense_last=True)
        yield from pairs
        if self._kind(name) != "Concatenate" or self._config(name).get("axis") not in (-1, 1):
            raise self._other("a Concatenate layer below the head", self._describe(name))
        spectrum, photometry = self._parents(name, 2)
        for start, expected, size in (
            (spectrum, _SPECTRUM, RAVE_GRID.n_pixel),
            (photometry, _PHOTOMETRY, 9),
        ):
            end, pairs = self._chain(start, expected, dense_last=False)
            yield from pairs
            shape = self._config(end).get("batch_input_shape", [])
            if self._kind(end) != "InputLayer" or shape[1:] != [size, 1]:
                raise self._other(f"an input of {size} values", self._describe(end))

    def _chain(
        self, name: str, expected: tuple[_Layer, ...], *, dense_last: bool
    ) -> tuple[str, list[tuple[str, _Layer]]]:
        """Walk down from `name` through the expected layers; return where the walk ends."""
        pairs = []
        for position, layer in enumerate(reversed(expected)):
            if not (dense_last and position == 0):
                name = self._through_activation(self._through_inactive(name))
            name = self._through_inactive(name)
            if self._kind(name) != layer.kind:
                raise self._other(f"a {layer.kind} layer as {layer.name}", self._describe(name))
            self._check(name, layer.settings)
            pairs.append((name, layer))
            name = self._parents(name, 1)[0]
        return self._through_inactive(name), pairs

    def _through_activation(self, name: str) -> str:
        config = self._config(name)
        slope = config.get("alpha", -1.0)
        # Keras wrote the slope as a float32, which is not 0.3.
        if self._kind(name) != "LeakyReLU" or not abs(float(slope) - 0.3) < 1e-6:
            raise self._other("a LeakyReLU layer of slope 0.3", self._describe(name))
        return self._parents(name, 1)[0]

    def _through_inactive(self, name: str) -> str:
        # At most once a layer: a graph that is damaged may run in a circle.
        for _ in self._layers:
            if self._kind(name) == "Flatten":
                self._check(name, {"data_format": "channels_last"})
            elif self._kind(name) != "Dropout":
                break
            name = self._parents(name, 1)[0]
        return name

    def _check(self, name: str, settings: Mapping[str, Any]) -> None:
        config = self._config(name)
        for key, value in settings.items():
            # A key that a file lacks has its default: Keras got groups only later.
            if config.get(key, value) != value:
                raise self._other(f"{key} = {value} in layer {name!r}", repr(config[key]))

    def _kind(self, name: str) -> str:
        return str(self._layers[name]["class_name"])

    def _config(self, name: str) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self._layers[name]["config"]
        return config

    def _parents(self, name: str, n: int) -> list[str]:
        nodes = self._layers[name]["inbound_nodes"]
        parents = [str(entry[0]) for entry in nodes[0]] if len(nodes) == 1 else []
        if len(parents) != n:
            raise self._other(f"{n} inputs of layer {name!r}", str(len(parents)))
        return parents

    def _describe(self, name: str) -> str:
        return f"{self._kind(name)} {name!r}"

    def _other(self, expected: str, got: str) -> InputFileError:
        return InputFileError(
            f"{self._path} is not one of the released RAVE networks: expected {expected}, got "
            f"{got}; only the architecture of Guiglion et al. (2020) can be imported"
        )

    def weight(self, layer: str, name: str, shape: tuple[int, ...]) -> Float32Array:
        """Read one weight, float32; every step of its path must be inside the file."""
        group: Any = self._file
        for part in ("model_weights", layer, layer, name):
            link = group.get(part, getlink=True)
            # Soft and external links would read another place, or any file of this machine.
            if not isinstance(link, h5py.HardLink):
                raise InputFileError(f"{self._path}: {part!r} is a link or missing; it is refused")
            group = group[part]
        return self._data(group, f"{layer}/{name}", shape)

    def _data(self, data: Any, name: str, shape: tuple[int, ...]) -> Float32Array:
        if not isinstance(data, h5py.Dataset) or data.shape != shape or data.dtype.kind != "f":
            raise self._other(f"weights {name!r} of shape {shape}", str(data))
        if data.external or data.is_virtual:
            raise InputFileError(f"{self._path}: {name!r} lies in another file; it is refused")
        # HDF5 unpacks whole chunks, which may be larger than the array that is in them.
        chunk = data.dtype.itemsize * math.prod(data.chunks or (0,))
        if max(data.nbytes, chunk) > _MAX_WEIGHT_BYTES:
            raise self._other(f"small weights {name!r}", f"{max(data.nbytes, chunk)} bytes")
        values: Float32Array = np.asarray(data[()], dtype=np.float32)
        if not np.all(np.isfinite(values)):
            raise InputFileError(f"{self._path}: {name!r} has values that are not finite")
        return values


def _published() -> Any:
    text = resources.files("maury.model").joinpath("guiglion2020.json").read_text("utf-8")
    return json.loads(text)


def _published_scaling() -> Scaling:
    published = _published()
    return Scaling(_between(**published["observables"]), _between(**published["labels"]))


def _between(names: list[str], minimum: ArrayLike, maximum: ArrayLike) -> Affine:
    del names
    return Affine.measure(np.array([minimum, maximum], dtype=np.float64))


def _provenance(files: list[Path]) -> dict[str, Any]:
    return {
        "maury": __version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
        "licence": "MIT, (c) 2020 gguiglion",
        "citation": "Guiglion et al. 2020, A&A 644, A168",
        "bibtex_key": "2020A&A...644A.168G",
        "imported": [file.name for file in files],
        "training": "real RAVE DR6 spectra and APOGEE DR16 labels, by the authors",
    }
