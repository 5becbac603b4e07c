"""Model atmospheres and line lists of the user, as plain tables, for a synthesis on demand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from scipy.interpolate import RBFInterpolator

from maury.errors import InputFileError
from maury.io.arrays import AnyArray, Float64Array

__all__ = ["LINE_COLUMNS", "Atmosphere", "AtmosphereNodes", "read_lines"]


# erg / K, exact by definition of the SI (2019).
_BOLTZMANN = 1.380649e-16
# Atomic mass unit, g (CODATA 2018).
_ATOMIC_MASS_G = 1.66053907e-24
_MASS_PER_NUCLEUS = 1.25
"""Atomic masses per nucleus of the solar mixture (X = 0.738, Y = 0.249; Asplund et al. 2009)."""
# A linear trend in three labels needs four; one more to say anything.
_FEWEST_NODES = 5

LINE_COLUMNS = (
    "species",
    "wavelength_aa",
    "excitation_ev",
    "log_gf",
    "log_gamma_radiative",
    "log_gamma_stark",
    "van_der_waals",
)
"""Columns of a line list in CSV or ECSV, with the meaning they have in VALD: ``species`` such as
``Fe 1``, wavelength in air, damping as log10 at 10 000 K per perturber, and 0 where unknown."""


@dataclass(frozen=True, eq=False)
class Atmosphere:
    """One plane-parallel model atmosphere, cgs; each array (n_depth,), from the surface inwards.

    The mass column follows from hydrostatic equilibrium, P = g m, without turbulence or radiation;
    densities from the ideal gas law, P = n k T.
    """

    gravity: float
    tau5000: Float64Array
    temperature: Float64Array
    electron_pressure: Float64Array
    gas_pressure: Float64Array

    @property
    def mass_column(self) -> Float64Array:
        """Mass above each depth, g cm^-2."""
        return self.gas_pressure / self.gravity

    @property
    def electrons(self) -> Float64Array:
        """Electrons, cm^-3."""
        return self.electron_pressure / (_BOLTZMANN * self.temperature)

    @property
    def atoms(self) -> Float64Array:
        """Nuclei, cm^-3."""
        heavy = self.gas_pressure - self.electron_pressure
        return heavy / (_BOLTZMANN * self.temperature)

    @property
    def density(self) -> Float64Array:
        """Mass density, g cm^-3."""
        return self.atoms * _MASS_PER_NUCLEUS * _ATOMIC_MASS_G


@dataclass(frozen=True, eq=False)
class AtmosphereNodes:
    """Model atmospheres at scattered Teff, log g, [M/H], and between them.

    Attributes
    ----------
    labels : (n_node, 3) float64
        Teff in K, log g, [M/H].
    log_tau5000 : (n_depth,) float64
        Common to all.
    structure : (n_node, n_depth, 3) float64
        log10 of temperature, electron pressure and gas pressure, cgs.
    """

    labels: Float64Array
    log_tau5000: Float64Array
    structure: Float64Array

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an NPZ file of arrays named as the attributes.

        Raises
        ------
        InputFileError
            If it is no such file, or its arrays do not fit each other.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = [
                    np.asarray(file[name], dtype=np.float64)
                    for name in ("labels", "log_tau5000", "structure")
                ]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputFileError(
                f"{path} holds no model atmospheres ({error}); give an NPZ file with the arrays "
                "labels (n, 3), log_tau5000 (d,) and structure (n, d, 3)"
            ) from error
        labels, depth, structure = arrays
        fit = labels.shape == (len(labels), 3) and structure.shape == (len(labels), depth.size, 3)
        whole = all(bool(np.isfinite(one).all()) for one in arrays)
        if depth.ndim != 1 or not fit or not whole or len(labels) < _FEWEST_NODES:
            raise InputFileError(
                f"{path}: shapes {labels.shape}, {depth.shape}, {structure.shape}; expected finite "
                f"arrays (n, 3), (d,), (n, d, 3) of at least {_FEWEST_NODES} atmospheres"
            )
        if not np.all(np.diff(depth) > 0):
            raise InputFileError(f"{path}: log_tau5000 does not increase")
        return cls(labels, depth, structure)

    @cached_property
    def _surface(self) -> RBFInterpolator:
        flat = self.structure.reshape(len(self.labels), -1)
        return RBFInterpolator(self._scaled(self.labels), flat, kernel="linear", degree=1)

    def _scaled(self, labels: Float64Array) -> Float64Array:
        scale: Float64Array = np.maximum(np.ptp(self.labels, axis=0), 1e-6)
        return labels / scale

    def at(self, teff: float, logg: float, m_h: float) -> Atmosphere:
        """Interpolate the logarithms at equal optical depth, by radial basis functions."""
        place = np.array([[teff, logg, m_h]])
        logs = self._surface(self._scaled(place)).reshape(-1, 3)
        temperature, electrons, gas = 10.0**logs.T
        return Atmosphere(10.0**logg, 10.0**self.log_tau5000, temperature, electrons, gas)


def read_lines(path: Path) -> dict[str, AnyArray]:
    """Read a line list with `LINE_COLUMNS` from CSV or ECSV, in the order of wavelength.

    Raises
    ------
    InputFileError
        If it cannot be read, or a column is missing or not a number.
    """
    from astropy.table import Table

    try:
        table = Table.read(
            path, format="ascii.ecsv" if path.suffix == ".ecsv" else "ascii.csv", encoding="utf-8"
        )
        table.sort("wavelength_aa")
        return {
            name: np.asarray(table[name], dtype=np.str_ if name == "species" else np.float64)
            for name in LINE_COLUMNS
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputFileError(
            f"cannot read the line list {path}: {error}; expected columns {', '.join(LINE_COLUMNS)}"
        ) from error
