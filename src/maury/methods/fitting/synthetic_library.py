"""Synthetic spectra of a user, of any labels: a grid, or stars that lie anywhere.

They are what theory knows of a window that the shipped emulator does not reach
(`maury.simulation.learnt_theory`). Read are FERRE's grids, folders with an ``index.csv`` and a text
file per spectrum, and NPZ files with ``wave``, ``flux``, ``labels`` and ``label_names``; of trained
networks (`maury.methods.fitting.trained_payne`) spectra are drawn.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from maury.errors import ConfigError, InputFileError
from maury.io.arrays import Float32Array, Float64Array
from maury.io.limits import check_regular
from maury.io.own_parts import Parts
from maury.methods.fitting.grid_files import (
    inside,
    load_text,
    on_pixels,
    read_ferre_grid,
    read_index,
)
from maury.methods.fitting.trained_payne import TrainedPayne, plain_label
from maury.simulation.learnt_theory import Synthetic
from maury.spectra.operators import vacuum_to_air
from maury.survey.readers.planes import npz_array

__all__ = ["THEORIES", "SyntheticLibrary", "Theory", "read_synthetic"]

_LEAST_SPECTRA = 20
"""Spectra below which not even slopes by four labels are known; chosen."""
_REACH = 0.25
"""Share of the range of the labelled stars by which spectra may lie beyond it and still count: they
hold the polynomial at its ends. Chosen, not measured."""

_DRAWS = 2000
"""Spectra drawn of a network: two dozen for each of the eighty terms of the largest polynomial."""


@dataclass(frozen=True, eq=False)
class SyntheticLibrary:
    """Noise-free spectra as a survey would see them.

    Attributes
    ----------
    names : tuple of str
        Of the labels.
    labels : (n, n_label) float64
    flux : (n, n_pixel) float32
        Continuum = 1, on the pixels and at the resolving power of the survey.
    """

    names: tuple[str, ...]
    labels: Float64Array
    flux: Float32Array

    @classmethod
    def of_theory(cls, name: str, wave_aa: Float64Array, resolving_power: float | None) -> Self:
        """Ask a theory of `THEORIES` for its spectra.

        Raises
        ------
        ConfigError
            If what it gives are no such spectra.
        """
        given = THEORIES[name](wave_aa, resolving_power)
        flux = np.asarray(given.flux, dtype=np.float32)
        labels = np.asarray(given.labels, dtype=np.float64)
        wanted = (len(labels), wave_aa.size), (len(flux), len(given.names))
        if (flux.shape, labels.shape) != wanted:
            raise ConfigError(
                f"the theory {name!r} gave flux {flux.shape} and labels {labels.shape} for "
                f"{wave_aa.size} pixels and the labels {', '.join(given.names)}; it must give "
                "(n, n_pixel) and (n, n_label)"
            )
        return cls(tuple(given.names), labels, flux)

    @classmethod
    def read(
        cls, path: Path | str, *, wave_aa: Float64Array, resolving_power: float | None
    ) -> Self:
        """Read a file or folder of synthetic spectra, and see them as the survey does.

        Parameters
        ----------
        path : path-like
            FERRE grid, folder with ``index.csv`` (columns ``file``, then one per label), or NPZ
            file. Wavelengths are in angstrom in air, unless an NPZ file has ``medium = "vacuum"``.
        wave_aa : (n_pixel,) float64
            Pixels of the survey, in air.
        resolving_power : float or None
            Of the survey, to which the spectra are broadened; None leaves them as they are. An NPZ
            file may state ``resolving_power``, its own; else it counts as far higher.

        Raises
        ------
        InputFileError
            If it is none of these, is damaged, or does not reach over the pixels.
        """
        path = Path(path)
        power = resolving_power or 0.0
        if path.is_dir():
            return cls._folder(path, wave_aa, power)
        if path.suffix.lower() == ".npz":
            return cls._npz(path, wave_aa, power)
        grid = read_ferre_grid(path, wave_aa=wave_aa, resolving_power=power)
        places = np.stack(np.meshgrid(*grid.axes, indexing="ij"), axis=-1)
        return cls(grid.label_names, places.reshape(-1, len(grid.axes)), grid.nodes)

    @classmethod
    def _folder(cls, path: Path, wave_aa: Float64Array, power: float) -> Self:
        rows = read_index(path / "index.csv")
        names = tuple(name for name in rows[0] if name != "file")
        try:
            labels = np.array([[float(row[name]) for name in names] for row in rows])
        except (TypeError, ValueError) as error:
            raise InputFileError(f"{path / 'index.csv'}: a label is no number: {error}") from error
        flux = np.empty((len(rows), wave_aa.size), dtype=np.float32)
        for place, row in enumerate(rows):
            file = inside(path, row["file"])
            table = load_text(file)
            if table.shape[1] < 2:
                raise InputFileError(f"{file} has no two columns of wavelength and flux")
            spectrum = table[:, 1][None].astype(np.float32)
            flux[place] = on_pixels(file, table[:, 0], spectrum, wave_aa, (np.inf, power))
        return cls(names, labels, flux)

    @classmethod
    def _npz(cls, path: Path, wave_aa: Float64Array, power: float) -> Self:
        check_regular(path)
        try:
            with zipfile.ZipFile(path) as archive:
                there = {name.removesuffix(".npy") for name in archive.namelist()}
        except (OSError, zipfile.BadZipFile) as error:
            raise InputFileError(f"cannot read {path}: {error}") from error
        wanted = {"wave", "flux", "labels", "label_names"}
        if {"w_array_0", "x_min"} <= there:
            raise InputFileError(
                f"{path} is a network of The Payne, which names neither labels nor wavelengths; "
                f'write a TOML file with network = "{path.name}", wavelength, labels, medium and '
                "resolving_power, and give that"
            )
        if not wanted <= there:
            raise InputFileError(
                f"{path} lacks {', '.join(sorted(wanted - there))}; a library of spectra has wave "
                "(n_pixel), flux (n, n_pixel), labels (n, n_label) and label_names (n_label)"
            )
        wave, flux, labels, names = (
            npz_array(path, name) for name in ("wave", "flux", "labels", "label_names")
        )
        sizes = (len(labels), wave.size), (len(flux), names.size)
        if flux.ndim != 2 or labels.ndim != 2 or flux.shape != sizes[0] or labels.shape != sizes[1]:
            raise InputFileError(
                f"{path}: flux {flux.shape}, wave {wave.shape}, labels {labels.shape} and "
                f"label_names {names.shape} do not fit each other"
            )
        if "medium" in there and str(npz_array(path, "medium")) == "vacuum":
            wave = np.asarray(vacuum_to_air(wave))
        own = float(npz_array(path, "resolving_power")) if "resolving_power" in there else np.inf
        seen = on_pixels(
            path, wave.astype(np.float64), flux.astype(np.float32), wave_aa, (own, power)
        )
        return cls(tuple(map(str, names)), labels.astype(np.float64), seen)

    @classmethod
    def drawn(
        cls,
        theory: TrainedPayne,
        names: Sequence[str],
        stars: Float64Array,
        *,
        wave_aa: Float64Array,
        resolving_power: float | None,
        seed: int,
        origin: Path,
    ) -> Self:
        """Draw spectra of a trained network around the stars of a survey.

        Parameters
        ----------
        theory : TrainedPayne
        names, stars
            As of `near`.
        wave_aa, resolving_power
            As of `read`.
        seed : int
            Of the draws.
        origin : Path
            Of the network, for messages.

        Raises
        ------
        InputFileError
            If stars lie outside the range of the network, or it does not reach over the pixels.
        """
        columns, labels, flux = theory.drawn(names, stars, count=_DRAWS, seed=seed)
        if len(labels) < _LEAST_SPECTRA:
            own = np.median(theory.inputs(names, stars), axis=0)
            ranges = zip(theory.names, theory.bounds, own, strict=True)
            told = [f"{n} {a:.4g} to {b:.4g}, stars near {x:.4g}" for n, (a, b), x in ranges]
            raise InputFileError(
                f"{origin} does not know stars like those of the survey: {'; '.join(told)}"
            )
        powers = (theory.resolving_power, resolving_power or 0.0)
        seen = on_pixels(origin, theory.wave_aa, flux, wave_aa, powers)
        return cls(tuple(names[k] for k in columns), labels, seen)

    def near(self, names: Sequence[str], labels: Float64Array) -> tuple[list[int], Self]:
        """Return the labels shared with a survey, and the spectra in the range of its stars.

        Parameters
        ----------
        names : sequence of str
            Labels of the survey; ``Teff``, ``[Fe/H]`` or ``FeH`` are ``teff`` and ``fe_h``.
        labels : (n_star, n_label) float64
            Of its stars.

        Returns
        -------
        list of int
            Numbers of the shared labels among `names`, in the order of the columns returned.
        SyntheticLibrary
            Of the shared labels.

        Raises
        ------
        InputFileError
            If it shares no label, or has too few spectra of such stars.
        """
        plain = [plain_label(name) for name in self.names]
        shared = [k for k, name in enumerate(names) if plain_label(name) in plain]
        columns = [plain.index(plain_label(names[k])) for k in shared]
        if not shared:
            raise InputFileError(
                f"the synthetic spectra have the labels {', '.join(self.names)}, and the survey "
                f"{', '.join(names)}; at least one must be the same"
            )
        own, stars = self.labels[:, columns], labels[:, shared]
        low, high = stars.min(axis=0), stars.max(axis=0)
        margin = _REACH * (high - low)
        inside_range = (own >= low - margin) & (own <= high + margin)
        rows = np.flatnonzero(inside_range.all(axis=1) & np.isfinite(self.flux).all(axis=1))
        if rows.size < _LEAST_SPECTRA:
            raise InputFileError(
                f"{rows.size} of {len(own)} synthetic spectra have labels like those of the survey "
                f"({', '.join(names[k] for k in shared)}); at least {_LEAST_SPECTRA} are needed"
            )
        known = tuple(names[k] for k in shared)
        return shared, type(self)(known, own[rows], self.flux[rows])


class Theory(Protocol):
    """What gives synthetic spectra of one's own, as a survey would see them."""

    def __call__(self, wave_aa: Float64Array, resolving_power: float | None, /) -> SyntheticLibrary:
        """Give spectra on pixels (n_pixel,) in air, at a resolving power; None if it is unknown."""


THEORIES: Parts[Theory] = Parts("maury.theories", {})
"""Theories by name, of installed packages and named modules; `maury` has none of its own here."""


def read_synthetic(
    given: str,
    names: Sequence[str],
    stars: Float64Array,
    *,
    wave_aa: Float64Array,
    resolving_power: float | None,
    seed: int,
    check: Callable[[TrainedPayne], None] = lambda theory: None,
) -> Synthetic:
    """Read a theory of the user as a survey would see it.

    Parameters
    ----------
    given : str
        Name of `THEORIES`, path of spectra, or of a network that gives them.
    names : sequence of str
        Labels of the survey.
    stars : (n_star, n_label) float64
        Of its stars, finite.
    wave_aa, resolving_power
        As of `SyntheticLibrary.read`.
    seed : int
        Of draws from a network.
    check : callable
        Raises if a trained network may not be used.

    Raises
    ------
    ConfigError, InputFileError
        If it cannot be read, or does not know such stars.
    """
    path = Path(given)
    if given in THEORIES:
        library = SyntheticLibrary.of_theory(given, wave_aa, resolving_power)
    elif (theory := TrainedPayne.read(path)) is None:
        library = SyntheticLibrary.read(path, wave_aa=wave_aa, resolving_power=resolving_power)
    else:
        check(theory)
        library = SyntheticLibrary.drawn(
            theory,
            names,
            stars,
            wave_aa=wave_aa,
            resolving_power=resolving_power,
            seed=seed,
            origin=path,
        )
    columns, near = library.near(names, stars)
    return Synthetic(tuple(columns), near.labels, near.flux)
