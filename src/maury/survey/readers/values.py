"""Values of columns: what counts as missing, and units."""

from collections.abc import Sequence

import numpy as np

from maury.errors import ColumnError
from maury.io.arrays import BoolArray, Float64Array
from maury.io.units import to_unit
from maury.labels.columns import Column
from maury.spectra.operators import SPEED_OF_LIGHT_KMS

MISSING: tuple[float, ...] = (-9999.0, -9999.99, -999.0, -999.99)
"""Numbers that mean "missing" in any column unless the configuration says otherwise."""

MISSING_MAGNITUDES: tuple[float, ...] = (99.0, 99.9, 99.99, 99.999)
"""The same, in columns of magnitudes only."""

_RELATIVE = 1e-6
"""A stand-in stored in single precision is off by 6e-8, one printed in seven digits by 5e-7."""
_REDSHIFT = ("redshift", "z")


def without_missing(
    values: Float64Array, column: Column, missing: Sequence[float] | None = None
) -> Float64Array:
    """Return values with NaN in place of stand-ins for missing ones, and of negative errors.

    Parameters
    ----------
    values : (n,) float64
        As read.
    column : Column
        What they are.
    missing : sequence of float, optional
        Numbers that mean "missing"; by default `MISSING`, and `MISSING_MAGNITUDES` in magnitudes.
    """
    if missing is None:
        missing = MISSING + (MISSING_MAGNITUDES if column.unit == "mag" else ())
    bad = ~np.isfinite(values) | stands_for_missing(values, missing)
    if column.name.endswith("_error"):
        # Surveys write -1 for "no error known".
        bad |= values < 0
    return np.where(bad, np.nan, values)


def stands_for_missing(values: Float64Array, missing: Sequence[float] | None) -> BoolArray:
    """Return where values (n,) are numbers that mean "missing", by default `MISSING`.

    Single precision of such a number counts as well.
    """
    found = np.zeros(np.shape(values), dtype=np.bool_)
    for number in MISSING if missing is None else missing:
        found |= np.isclose(values, number, rtol=_RELATIVE, atol=0.0)
    return found


def converted(values: Float64Array, column: Column, unit: str | None, *, what: str) -> Float64Array:
    """Return values in the unit of `column`.

    Parameters
    ----------
    values : (n,) float64
        In `unit`.
    column : Column
        What they are.
    unit : str, optional
        Their unit; the column's own if not given.
    what : str
        Where they come from, for the message.

    Raises
    ------
    ColumnError
        If the unit is unknown, or cannot be converted.
    """
    if unit is None:
        return values
    if unit.strip().lower() in _REDSHIFT and column.unit == "km/s":
        return _velocity_kms(values)
    try:
        return to_unit(values, unit, column.unit)
    except ValueError as error:
        raise ColumnError(
            f"{what}: unit {unit!r} cannot be converted to {column.unit or 'a pure number'} of "
            f"{column.name!r}; write the true unit as 'unit' in the mapping, or take another column"
        ) from error


def _velocity_kms(redshift: Float64Array) -> Float64Array:
    """Return the velocity whose relativistic Doppler factor is 1 + z, as `to_rest_frame` takes it.

    (1 + z)^2 = (1 + v/c) / (1 - v/c); at 300 km/s that is .15 km/s less than c z.
    """
    square = (1.0 + redshift) ** 2
    return SPEED_OF_LIGHT_KMS * (square - 1.0) / (square + 1.0)
