"""Networks from labels to spectra that others have trained: The Payne's own files, our models.

The authors' code (The_Payne, github.com/tingyuansen/The_Payne) writes the network of Ting et al.
(2019, ApJ 879, 69) as an NPZ file with ``w_array_0`` to ``b_array_2``, ``x_min`` and ``x_max``,
which names neither the labels nor the wavelengths. A TOML file tells them::

    network = "NN_normalized_spectra.npz"
    wavelength = "apogee_wavelength.npz"     # array "wavelength", angstrom
    medium = "vacuum"                        # "air" by default
    resolving_power = 22500
    labels = ["teff", "logg", "Vturb", "[C/H]", "[Mg/H]", "[Fe/H]", "Vmacro"]
    fixed = { Vturb = 1.5, Vmacro = 4.0 }    # labels that the survey does not have
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from maury.errors import ConfigError, InputFileError
from maury.io.arrays import Float32Array, Float64Array
from maury.io.config_files import read_toml, validated
from maury.io.limits import check_regular
from maury.methods.fitting.spectral_network import SpectralNetwork
from maury.methods.fitting.synthesis import composition
from maury.methods.registry import load_method
from maury.model.directory import Model
from maury.model.split import SplitRecord
from maury.spectra.operators import vacuum_to_air
from maury.spectra.star_identity import StarMarks
from maury.survey.readers.planes import npz_array

__all__ = ["HasSpectra", "TrainedPayne", "plain_label", "read_network"]

_LAYERS = tuple(f"{kind}_array_{k}" for k in range(3) for kind in ("w", "b"))
_RATIO = re.compile(r"\[?([A-Za-z]{1,2})[/_](h|fe)\]?", re.IGNORECASE)
"""[Mg/H], mg_fe and the like."""
_GLOBAL = ("teff", "logg", "m_h", "fe_h", "alpha_m", "vmic")
_ALIASES = {"vturb": "vmic", "vmicro": "vmic", "alphafe": "alpham", "metals": "mh"}
_SPREAD = 0.35
"""Of the draws about the stars, in units of the difference of two of them: their scatter grows by a
tenth, so that the polynomial is held at its ends. Chosen, not measured."""
_BLOCK = 256
"""Spectra that are computed at a time: 256 of 8575 pixels are 9 MB."""


@runtime_checkable
class HasSpectra(Protocol):
    """A method that knows the spectrum of any labels."""

    def as_theory(self) -> TrainedPayne:
        """Return what gives noise-free spectra by its labels."""


class _Description(BaseModel):
    """What the TOML file of a network says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    network: str
    wavelength: str
    labels: tuple[str, ...] = Field(min_length=1)
    medium: Literal["air", "vacuum"] = "air"
    resolving_power: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    fixed: dict[str, float] = {}


@dataclass(frozen=True, eq=False)
class TrainedPayne:
    """A trained network, or a method that has one, as a source of noise-free spectra.

    Attributes
    ----------
    names : tuple of str
        Of its labels, as its file spells them.
    bounds : (n_label, 2) float64
        Range of the labels that it was trained with.
    wave_aa : (n_pixel,) float64
        Angstrom in air.
    resolving_power : float
        Of its spectra; infinite where it is not stated.
    spectra : callable
        From labels (n, n_label) to flux (n, n_pixel), continuum = 1.
    fixed : mapping of str to float
        Values of labels that stars do not have.
    split : SplitRecord or None
        Of the stars that it was trained on, where it is known.
    """

    names: tuple[str, ...]
    bounds: Float64Array
    wave_aa: Float64Array
    resolving_power: float
    spectra: Callable[[Float64Array], Float32Array]
    fixed: Mapping[str, float] = field(default_factory=dict)
    split: SplitRecord | None = None

    @classmethod
    def read(cls, path: Path | str) -> TrainedPayne | None:
        """Read the TOML file of a network of The Payne, or the directory of a trained model.

        Returns
        -------
        TrainedPayne or None
            None if it is neither, but may be a file or folder of spectra.

        Raises
        ------
        ConfigError
            If the TOML file is wrong, or the model has no spectra.
        InputFileError, ModelFileError
            If network, wavelengths or model cannot be read, or do not fit each other.
        """
        path = Path(path)
        if path.suffix.lower() == ".toml":
            return cls._described(path)
        return cls._of_model(path) if (path / "model.json").is_file() else None

    @classmethod
    def _of_model(cls, path: Path) -> TrainedPayne:
        model = Model.open(path)
        method: object = load_method(model) if model.is_method else None
        if not isinstance(method, HasSpectra):
            raise ConfigError(
                f"{path} is a model of {model.network['name']}, which gives no spectra; give one "
                "of payne, payne-photometry or dd-payne, or a file of synthetic spectra"
            )
        return replace(method.as_theory(), split=model.split)

    @classmethod
    def _described(cls, path: Path) -> Self:
        problems: list[str] = []
        about = validated(read_toml(path, what="the description"), _Description, problems)
        if about is None:
            raise ConfigError(
                f"the description {path} of a network is wrong: {'; '.join(problems)}"
            )
        file = path.parent / about.network
        network = read_network(file)
        if network.lowest.size != len(about.labels):
            raise InputFileError(
                f"{file} takes {network.lowest.size} labels, and {path} names "
                f"{len(about.labels)}; name all of them, in the order in which it was trained"
            )
        unknown = [name for name in about.fixed if name not in about.labels]
        if unknown:
            raise ConfigError(f"{path}: fixed has {', '.join(unknown)}, which labels does not name")
        wave = _wavelengths(path.parent / about.wavelength, network.bias_2.size)
        return cls(
            names=about.labels,
            bounds=np.stack([network.lowest, network.highest], axis=1),
            wave_aa=wave if about.medium == "air" else np.asarray(vacuum_to_air(wave)),
            resolving_power=about.resolving_power or np.inf,
            spectra=lambda labels: network.evaluate(labels, jacobian=False).flux,
            fixed=about.fixed,
        )

    def refuse_known(self, test: StarMarks, origin: object) -> None:
        """Raise `ConfigError` if it has learnt from a test star, and would steer a model by it."""
        if self.split is None:
            return
        known = self.split.took_part(test)
        if known.any():
            raise ConfigError(
                f"{origin} has learnt from {known.sum()} of {known.size} test stars; train it on "
                "this survey with the same seed and split"
            )

    def inputs(self, names: Sequence[str], labels: Float64Array) -> Float64Array:
        """Labels (n, n_own) of the network, of stars with labels (n, n_label) of a survey.

        A label is the one of its name; an abundance follows from those that there are, as in a
        synthesis (`maury.methods.fitting.synthesis.composition`); of others `fixed` tells the
        value, or it is the middle of the range.
        """
        known = {plain_label(name): labels[:, k] for k, name in enumerate(names)}
        abundance = _abundances(names, labels)
        columns = []
        for name, (low, high) in zip(self.names, self.bounds, strict=True):
            value = known.get(plain_label(name))
            if name in self.fixed:
                value = np.full(len(labels), self.fixed[name])
            elif value is None:
                value = abundance(name)
            columns.append(np.full(len(labels), 0.5 * (low + high)) if value is None else value)
        return np.column_stack(columns)

    def drawn(
        self, names: Sequence[str], stars: Float64Array, *, count: int, seed: int
    ) -> tuple[list[int], Float64Array, Float32Array]:
        """Draw labels around those of stars, within the range of the network, and their spectra.

        Parameters
        ----------
        names : sequence of str
            Labels of the survey.
        stars : (n_star, n_label) float64
            Of its stars, finite.
        count : int
            Spectra wanted; fewer if the range holds fewer of four times as many draws.
        seed : int

        Returns
        -------
        list of int
            Numbers of the labels that the network knows, among `names`.
        (n, n_shared) float64
            These labels.
        (n, n_pixel) float32
            Flux on the wavelengths of the network.
        """
        rng = np.random.default_rng(seed)
        one, two, three = rng.integers(0, len(stars), (3, 4 * count))
        # A difference of two stars keeps what goes together among stars, as alpha and iron do.
        labels = stars[one] + _SPREAD * (stars[two] - stars[three])
        own = self.inputs(names, labels)
        low, high = self.bounds.T
        inside = np.flatnonzero(((own >= low) & (own <= high)).all(axis=1))[:count]
        columns = self._shared(names, stars)
        return columns, labels[inside][:, columns], self._flux(own[inside])

    def _shared(self, names: Sequence[str], labels: Float64Array) -> list[int]:
        """Numbers of the labels of a survey that move a label of the network."""
        here = self.inputs(names, labels)
        found = []
        for k in range(len(names)):
            moved = labels.copy()
            moved[:, k] += 0.01 * (np.ptp(labels[:, k]) or 1.0)
            if not np.array_equal(self.inputs(names, moved), here):
                found.append(k)
        # Metals and iron are nearly one label among stars: a network that knows one of them tells
        # of both, and the polynomial has its high degrees in the first.
        metals = [names.index(name) for name in ("m_h", "fe_h") if name in names]
        return sorted({*found, *metals}) if set(metals) & set(found) else found

    def _flux(self, own: Float64Array) -> Float32Array:
        starts = range(0, max(len(own), 1), _BLOCK)
        return np.concatenate([self.spectra(own[k : k + _BLOCK]) for k in starts])


def read_network(path: Path) -> SpectralNetwork:
    """Read a network as The Payne writes it.

    Raises
    ------
    InputFileError
        If it is no NPZ file with such arrays, or their shapes do not fit each other.
    """
    check_regular(path)
    arrays: dict[str, Any] = {}
    for name in (*_LAYERS, "x_min", "x_max"):
        array = npz_array(path, name)
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise InputFileError(f"{path}: {name} must hold finite numbers")
        arrays[name] = array
    first = arrays["w_array_0"]
    if first.ndim == 3:
        raise InputFileError(
            f"{path} holds a network for each pixel, as the code of 2018 wrote them, w_array_0 "
            f"{first.shape}; give one network of all pixels, w_array_0 (n_neuron, n_label)"
        )
    lowest, highest = (arrays[name].astype(np.float64) for name in ("x_min", "x_max"))
    if lowest.shape != highest.shape or lowest.ndim != 1 or not (highest > lowest).all():
        raise InputFileError(f"{path}: x_min and x_max must be ranges of the labels")
    layers = {
        # The file has a row for each neuron, as torch has.
        f"weight_{k}": np.ascontiguousarray(arrays[f"w_array_{k}"].T, dtype=np.float32)
        for k in range(3)
    } | {f"bias_{k}": arrays[f"b_array_{k}"].astype(np.float32) for k in range(3)}
    try:
        return SpectralNetwork(lowest, highest, **layers, activation="leaky_relu")
    except ValueError as error:
        raise InputFileError(f"{path} is no network of The Payne: {error}") from error


def plain_label(name: str) -> str:
    """Return the name of a label without signs: ``[Fe/H]``, ``FeH`` and ``fe_h`` are one."""
    plain = re.sub(r"[^a-z0-9]", "", str(name).lower())
    return _ALIASES.get(plain, plain)


def _wavelengths(path: Path, n_pixel: int) -> Float64Array:
    check_regular(path)
    wave = npz_array(path, "wavelength")
    fine = wave.dtype.kind in "fiu" and wave.shape == (n_pixel,) and np.isfinite(wave).all()
    if not fine or not (np.diff(wave) > 0).all():
        raise InputFileError(
            f"{path}: wavelength must be {n_pixel} increasing numbers, one for each pixel of the "
            f"network, got {wave.dtype} {wave.shape}"
        )
    return wave.astype(np.float64)


def _abundances(names: Sequence[str], labels: Float64Array) -> Callable[[str], Float64Array | None]:
    """Return what gives [X/H] or [X/Fe] by the name of a label, None for any other label."""
    given: dict[str, Any] = {
        name: labels[:, k]
        for k, name in enumerate(names)
        if name in _GLOBAL or name.endswith("_fe")
    }
    # Metals follow iron where only iron is known, and the other way round.
    metals = given.get("m_h", given.get("fe_h"))
    if metals is None:
        return lambda name: None
    pattern = composition({**given, "m_h": metals})
    iron = given.get("fe_h", metals)

    def of(name: str) -> Float64Array | None:
        plain = plain_label(name)
        if plain in ("mh", "feh"):
            return np.asarray(metals if plain == "mh" else iron)
        if plain == "alpham":
            return np.zeros(len(labels))
        if not (parts := _RATIO.fullmatch(name)):
            return None
        element, reference = parts[1].capitalize(), parts[2].lower()
        over_hydrogen = metals + pattern.get(element, 0.0)
        return np.asarray(over_hydrogen if reference == "h" else over_hydrogen - iron)

    return of
