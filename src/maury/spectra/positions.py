"""Where stars are, and where they are at another epoch.

Stars move uniformly on straight lines: the direction at time t is that of u + v (t - t0), with u
the unit vector and v the proper motion at epoch t0. That is the standard model of The Hipparcos and
Tycho Catalogues (ESA SP-1200, 1997, vol. 1, sect. 1.2.8) without parallax and radial velocity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import ConfigError, LengthMismatch
from maury.io.arrays import BoolArray, Float64Array
from maury.spectra.rows import row_numbers

ARCSEC = np.pi / (180.0 * 3600.0)
"""In radians."""
_MAS = ARCSEC / 1000.0
_EPOCHS_YR = (1800.0, 2200.0)
"""Julian years in which catalogues may be; other numbers are modified Julian dates, or nonsense."""


@dataclass(frozen=True, eq=False)
class Positions:
    """Where the stars of a catalogue are, and how they move.

    Attributes
    ----------
    ra_deg, dec_deg : (n,) float64
        Right ascension and declination (ICRS), in degrees; NaN where missing.
    epoch_yr : float or (n,) float64
        When the stars were there, as a Julian year; NaN where unknown: such stars are compared as
        measured.
    pmra_masyr, pmdec_masyr : (n,) float64, optional
        Proper motion, in mas/yr, that in right ascension times cos(dec); NaN where missing.
    magnitude : (n,) float64, optional
        Of a band that both catalogues have; NaN where missing.

    Raises
    ------
    LengthMismatch
        If the arrays differ in length.
    ConfigError
        If an epoch is no Julian year.
    """

    ra_deg: Float64Array
    dec_deg: Float64Array
    epoch_yr: Float64Array | float
    pmra_masyr: Float64Array | None = None
    pmdec_masyr: Float64Array | None = None
    magnitude: Float64Array | None = None

    def __post_init__(self) -> None:
        """Copy, check and lock the arrays."""
        n = np.size(self.ra_deg)
        missing = np.full(n, np.nan)
        for name in ("ra_deg", "dec_deg", "epoch_yr", "pmra_masyr", "pmdec_masyr", "magnitude"):
            value = getattr(self, name)
            array = np.array(missing if value is None else value, dtype=np.float64)
            if name == "epoch_yr" and array.ndim == 0:
                array = np.full(n, float(array))
            if array.shape != (n,):
                raise LengthMismatch(
                    f"{name} has shape {array.shape}, the right ascensions have {n} rows; "
                    "give one value a row"
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        epochs = np.asarray(self.epoch_yr)
        known = epochs[np.isfinite(epochs)]
        if known.size and (known.min() < _EPOCHS_YR[0] or known.max() > _EPOCHS_YR[1]):
            raise ConfigError(
                f"epoch_yr must be Julian years between {_EPOCHS_YR[0]:.0f} and "
                f"{_EPOCHS_YR[1]:.0f}, got {known.min()} to {known.max()}; give e.g. 2016.0"
            )

    def __len__(self) -> int:
        return int(self.ra_deg.size)

    @property
    def usable(self) -> BoolArray:
        """Whether a row has a position on the sphere, shape (n,)."""
        return np.isfinite(self.ra_deg) & (np.abs(self.dec_deg) <= 90.0)

    @property
    def moving(self) -> BoolArray:
        """Whether a row can be moved to another epoch, shape (n,)."""
        motion = np.asarray(self.pmra_masyr) + np.asarray(self.pmdec_masyr)
        return np.asarray(np.isfinite(motion + np.asarray(self.epoch_yr)))

    def vectors(self, epoch_yr: ArrayLike | None = None) -> Float64Array:
        """Return unit vectors, shape (n, 3) float64, NaN where there is no position.

        Parameters
        ----------
        epoch_yr : float or (n,), optional
            Rows with a proper motion are moved to then; as measured by default.
        """
        at, velocity = self.start()
        if epoch_yr is None:
            return at
        years = np.where(self.moving, np.asarray(epoch_yr) - np.asarray(self.epoch_yr), 0.0)
        return unit(at + velocity * years[:, None])

    def start(self) -> tuple[Float64Array, Float64Array]:
        """Return unit vectors, and velocities in radians a year, 0 where unknown; both (n, 3)."""
        ra = np.radians(self.ra_deg)
        dec = np.radians(np.where(self.usable, self.dec_deg, np.nan))
        sa, ca, sd, cd = np.sin(ra), np.cos(ra), np.sin(dec), np.cos(dec)
        at = np.stack([cd * ca, cd * sa, sd], axis=1)
        moving = self.moving
        # East is (-sin ra, cos ra, 0), north (-sin dec cos ra, -sin dec sin ra, cos dec).
        east = np.where(moving, np.asarray(self.pmra_masyr), 0.0) * _MAS
        north = np.where(moving, np.asarray(self.pmdec_masyr), 0.0) * _MAS
        return at, np.stack(
            [-sa * east - sd * ca * north, ca * east - sd * sa * north, cd * north], axis=1
        )

    def take(self, rows: ArrayLike | slice) -> Positions:
        """Return the positions of some rows: numbers, of which negative count from the end, a mask.

        Raises
        ------
        RowError
            If there is no such row, or a mask has another length.
        """
        rows = row_numbers(rows, len(self), what="the positions")
        return Positions(
            self.ra_deg[rows],
            self.dec_deg[rows],
            np.asarray(self.epoch_yr)[rows],
            pmra_masyr=np.asarray(self.pmra_masyr)[rows],
            pmdec_masyr=np.asarray(self.pmdec_masyr)[rows],
            magnitude=np.asarray(self.magnitude)[rows],
        )


def unit(vectors: Float64Array) -> Float64Array:
    """Return vectors (n, 3) of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def common_epoch(left: Positions, right: Positions) -> float:
    """Return the median epoch of the catalogue where more stars cannot be moved.

    That of the right one if all can; of the other one if none of its epochs is known.
    """
    still = [float(np.mean(~side.moving)) if len(side) else 0.0 for side in (left, right)]
    sides = (left, right) if still[0] > still[1] else (right, left)
    for side in sides:
        epochs = np.asarray(side.epoch_yr)
        for chosen in (epochs[~side.moving] if any(still) else epochs, epochs):
            known = chosen[np.isfinite(chosen)]
            if known.size:
                return float(np.median(known))
    return 2000.0
