"""FITS files: images and tables of spectra, and wavelengths beside them."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from maury.io.arrays import Float64Array
from maury.io.fits_values import column_floats, image
from maury.io.limits import current
from maury.io.opening import open_fits, reading
from maury.io.tables import fits_table
from maury.survey.guessing import naming
from maury.survey.guessing.document import Entry, unknown_grid
from maury.survey.guessing.seen import LEAST_PIXELS, Seen
from maury.survey.readers.grids import header_grid, header_medium


def look_at_fits(path: Path) -> Seen:
    """Look at a FITS file: the first HDU that can be spectra tells, else the first table."""
    with reading(path), ExitStack() as stack:
        hdus = open_fits(path, stack, memmap=True)
        tables = [hdu for hdu in hdus if hasattr(hdu, "columns")]
        for hdu in tables:
            found = _vectors(path, hdus, hdu) or _pixel_rows(path, hdu)
            if found is not None:
                return found
        for hdu in hdus:
            found = _picture(path, hdus, hdu)
            if found is not None:
                return found
        if tables:
            names = " ".join(tables[0].columns.names)
            return Seen(path, "table", n_star=int(tables[0].header["NAXIS2"]), names=names)
    return Seen(path, "other", why="it holds neither spectra nor a table")


def _width(hdu: Any, name: str) -> int:
    """Return how many numbers a column holds a row; 0 for texts."""
    kind = hdu.columns.dtype[name]
    base = kind.base if kind.subdtype else kind
    return 0 if base.kind not in "fiu" else math.prod(kind.shape)


def _vectors(path: Path, hdus: Any, hdu: Any) -> Seen | None:
    """Return spectra that stand row by row in columns of arrays."""
    names = [n for n in hdu.columns.names if n]
    long = {n: width for n in names if (width := _width(hdu, n)) >= LEAST_PIXELS}
    flux, doubtful = naming.flux_among(list(long))
    if flux is None:
        return None
    same = [n for n in long if long[n] == long[flux] and n != flux]
    entries = [
        Entry("format", "fits-table"),
        Entry("hdu", hdu.name or hdus.index(hdu), "The table that holds the spectra."),
        Entry("flux", flux, f"Columns of {long[flux]} numbers: {', '.join(long)}.", doubtful),
        *_noise(same),
    ]
    n_star = int(hdu.header["NAXIS2"])
    own = naming.wave_among(same)
    if own is not None:
        table = fits_table(hdu, path)
        wave, unit = column_floats(hdu, own)[0], table.units.get(own)
        keys: tuple[Entry, ...] = (Entry("values", own, "Wavelengths stand beside each flux."),)
    else:
        keys, wave, unit = _elsewhere(path, hdus, long[flux])
    return Seen(
        path,
        "spectra",
        n_star=n_star,
        spectra=tuple(entries),
        wavelength=keys,
        wave=wave,
        unit=unit,
        medium=header_medium(hdu.header) or header_medium(hdus[0].header),
        names=" ".join(names),
        is_table=True,
    )


def _noise(names: Sequence[str]) -> list[Entry]:
    found = naming.noise_among(names)
    return [] if found is None else [Entry(*found, f"Its name sounds like {found[0]}.")]


def _elsewhere(
    path: Path, hdus: Any, n_pixel: int
) -> tuple[tuple[Entry, ...], Float64Array | None, str | None]:
    """Find wavelengths in another HDU: a column or an image of as many numbers as pixels."""
    for hdu in hdus:
        if hasattr(hdu, "columns") and int(hdu.header["NAXIS2"]) == n_pixel:
            name = naming.wave_among([n for n in hdu.columns.names if n])
            if name is not None:
                value = {"hdu": hdu.name or hdus.index(hdu), "name": name}
                entry = Entry("values", value, f"A table of {n_pixel} wavelengths.")
                return (entry,), column_floats(hdu, name), fits_table(hdu, path).units.get(name)
        if (
            hdu.is_image
            and math.prod(hdu.shape or (0,)) == n_pixel
            and naming.wave_among([hdu.name])
        ):
            entry = Entry("values", {"hdu": hdu.name}, f"An image of {n_pixel} numbers.")
            return (entry,), np.asarray(image(hdu), dtype=np.float64).ravel(), None
    return unknown_grid(path.name), None, None


def _pixel_rows(path: Path, hdu: Any) -> Seen | None:
    """Return the spectrum of one star that stands pixel by pixel in columns of numbers."""
    names = [n for n in hdu.columns.names if n and _width(hdu, n) == 1]
    named = naming.wave_among(names)
    rest = [n for n in names if n != named]
    flux, doubtful = naming.flux_among([n for n in rest if "flux" in n.lower()])
    if named is None or flux is None or int(hdu.header["NAXIS2"]) < LEAST_PIXELS:
        return None
    return Seen(
        path,
        "spectrum",
        spectra=(
            Entry("flux", flux, f"Columns are {', '.join(names)}.", doubtful),
            *_noise([n for n in rest if n != flux]),
        ),
        wavelength=(Entry("values", named, "The column of the wavelengths."),),
        wave=column_floats(hdu, named),
        unit=fits_table(hdu, path).units.get(named),
        medium=header_medium(hdu.header),
        names=" ".join(names),
    )


def _picture(path: Path, hdus: Any, hdu: Any) -> Seen | None:
    """Return spectra that an image holds: one, or one a row or a column."""
    axes = [size for size in (hdu.shape or ()) if size > 1] if hdu.is_image else []
    if len(axes) == 1 and axes[0] >= LEAST_PIXELS:
        return _line(path, hdus, hdu, axes[0])
    if len(axes) == 2 and len(hdu.shape) == 2 and max(axes) >= LEAST_PIXELS:
        return _plane(path, hdus, hdu)
    return None


def _line(path: Path, hdus: Any, hdu: Any, n_pixel: int) -> Seen | None:
    grid = header_grid(hdu.header, 1, n_pixel)
    keys: tuple[Entry, ...] = (Entry(why="The header gives the wavelengths (CRVAL, CDELT)."),)
    # A header's wavelengths come out in angstrom, whatever its unit.
    wave: Float64Array | None = grid
    unit: str | None = "Angstrom"
    if grid is None:
        keys, wave, unit = _elsewhere(path, hdus, n_pixel)
    alike = [
        h.name for h in hdus if h is not hdu and h.is_image and h.shape == hdu.shape and h.name
    ]
    return Seen(
        path,
        "spectrum",
        spectra=tuple(_noise(alike)),
        wavelength=keys,
        wave=wave,
        unit=unit,
        medium=header_medium(hdu.header),
    )


def _plane(path: Path, hdus: Any, hdu: Any) -> Seen | None:
    if math.prod(hdu.shape) > current().unfolded_bytes:
        return None
    found = [header_grid(hdu.header, axis, hdu.shape[2 - axis]) is not None for axis in (1, 2)]
    entries: list[Entry] = []
    keys: tuple[Entry, ...] = ()
    number = hdus.index(hdu)
    if number:
        entries.append(Entry("hdu", hdu.name or number, "The image of the spectra."))
    rows, wave, unit = True, None, None
    if "WAVE0" in hdu.header or sum(found) != 1:
        rows, orientation = _by_pixels(hdus, hdu)
        entries.append(orientation)
    else:
        rows = found[0]
    n_star, n_pixel = hdu.shape if rows else hdu.shape[::-1]
    if any(found):
        keys = (Entry(why="The header gives the wavelengths."),)
        wave, unit = header_grid(hdu.header, 1 if rows else 2, n_pixel), "Angstrom"
    else:
        keys, wave, unit = _elsewhere(path, hdus, n_pixel)
    alike = [
        h.name for h in hdus if h is not hdu and h.is_image and h.shape == hdu.shape and h.name
    ]
    return Seen(
        path,
        "spectra",
        n_star=n_star,
        spectra=(Entry("format", "fits-image"), *entries, *_noise(alike)),
        wavelength=keys,
        wave=wave,
        unit=unit,
        medium=header_medium(hdu.header, 1 if rows else 2),
    )


def _by_pixels(hdus: Any, hdu: Any) -> tuple[bool, Entry]:
    """Tell by which axis neighbours are alike: pixels of one spectrum are, stars are not."""
    sizes = [int(h.header.get("NAXIS2", 0)) for h in hdus if hasattr(h, "columns")]
    shape = tuple(hdu.shape)
    for n_star in sizes:
        if shape.count(n_star) == 1:
            rows = shape[0] == n_star
            why = f"A table of the file has {n_star} rows, as many as one axis of {shape}."
            return rows, Entry("orientation", "rows" if rows else "columns", why)
    corner = np.asarray(hdu.section[: min(shape[0], 200), : min(shape[1], 200)], dtype=np.float64)
    along = [float(np.nanmedian(np.abs(np.diff(corner, axis=axis)))) for axis in (1, 0)]
    rows = along[0] <= along[1]
    why = (
        f"Neighbours along one axis of {shape} differ by {min(along):.3g}, along the other by "
        f"{max(along):.3g} (medians): the first are pixels of one spectrum."
    )
    return rows, Entry("orientation", "rows" if rows else "columns", why, doubtful=True)
