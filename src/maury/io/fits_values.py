"""Values of FITS tables and images, with what the standard calls undefined as missing.

In a table ``TNULL`` is the stored integer, before ``TSCAL`` and ``TZERO`` (FITS 4.0, section
7.3.2), as ``BLANK`` is in an image (section 4.4.2.5). astropy hands the first on as a number, and
ignores the second in images of unsigned integers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from maury.errors import ColumnError
from maury.io.arrays import Float64Array

ALL = slice(None)


def column(hdu: Any, name: str, rows: slice = ALL) -> Any:
    """Return rows of a column of a FITS table as astropy has them, undefined integers masked.

    Parameters
    ----------
    hdu : astropy.io.fits.BinTableHDU
    name : str
        The column.
    rows : slice
        Which rows.

    Returns
    -------
    values : array or masked array; of variable length, an array of such arrays

    Raises
    ------
    ColumnError
        If arrays of variable length are scaled, which astropy does not read right.
    """
    about, data = hdu.columns[name], hdu.data[rows]
    stored, null = data.view(np.ndarray)[name], about.null
    scale, zero = about.bscale or 1, about.bzero or 0
    letter = str(getattr(about.format, "format", ""))
    if letter in ("P", "Q"):
        if (scale, zero) != (1, 0):
            raise ColumnError(
                f"column {name!r} holds scaled arrays of variable length (TSCAL, TZERO), which are "
                "not read; write them as they are, or at one length"
            )
        return _each(data[name], null)
    if stored.dtype.kind not in "iu" or letter in ("L", "X"):
        return np.asarray(data[name])
    # Half the range as TZERO stands for unsigned integers, -128 for signed bytes.
    whole = scale == 1 and zero in (0, -128, 1 << (8 * stored.dtype.itemsize - 1))
    # astropy 8.0 fails on 64-bit integers of any other TZERO.
    values = np.asarray(data[name]) if whole else stored.astype(np.float64) * scale + zero
    if not isinstance(null, int | np.integer):
        return values
    return np.ma.masked_array(values, mask=stored == null)


def _each(values: Any, null: Any) -> Any:
    out = np.empty(len(values), dtype=object)
    for number, part in enumerate(map(np.asarray, values)):
        known = null is None or part.dtype.kind not in "iu"
        out[number] = part if known else np.ma.masked_array(part, mask=part == null)
    return out


def column_floats(hdu: Any, name: str, rows: slice = ALL) -> Float64Array:
    """Return rows of a column of numbers as float64, NaN where undefined; see `column`."""
    values = np.ma.asanyarray(column(hdu, name, rows))
    return np.asarray(np.ma.filled(values.astype(np.float64), np.nan))


@dataclass(frozen=True)
class ImageValues:
    """An image that is read in parts: ``image[key]`` has NaN where the image is undefined.

    Attributes
    ----------
    hdu : astropy.io.fits.ImageHDU, PrimaryHDU or CompImageHDU
    """

    hdu: Any

    def __getitem__(self, key: Any) -> Any:
        """Return a part of the image, shape as of numpy."""
        values, blank = self.hdu.section[key], self.hdu.header.get("BLANK")
        if values.dtype.kind != "u" or blank is None:
            return values
        # Unsigned integers are stored minus half their range (BZERO).
        offset = 1 << (8 * values.dtype.itemsize - 1)
        return np.where(values == blank + offset, np.nan, values.astype(np.float64))


def image(hdu: Any) -> Any:
    """Return all of an image, NaN where it is undefined."""
    return ImageValues(hdu)[...]
