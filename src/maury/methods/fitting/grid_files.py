"""Grids of spectra in files: FERRE's format, and directories of spectra as Synspec writes them.

A FERRE grid is one text file: a header ``&SYNTH ... /`` of Fortran assignments, then one spectrum
per line, the last dimension varying fastest (FERRE user guide, "Structure of the grid files"). Or a
``.hdr`` of headers, and beside it a ``.unf`` of the spectra in 4-byte floats. With ``MULTI`` a
header for each stretch of wavelengths follows the first. With ``NPCA``, the number of pixels of
each piece, spectra are coefficients of principal components, ``NPIX`` in all, and the headers are
followed by the mean spectrum, one more line that nothing is made of, and the components (as the
libraries of APOGEE are written, Garcia Perez et al. 2016, AJ 151, 144, section 4).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from maury.errors import InputFileError
from maury.io.arrays import BoolArray, Float32Array, Float64Array
from maury.io.limits import check_regular
from maury.methods.fitting.grid import Grid, Interpolation
from maury.spectra.operators import FWHM_PER_SIGMA, Resampler, vacuum_to_air

__all__ = ["LABEL_ALIASES", "read_ferre_grid", "read_synspec_grid"]


LABEL_ALIASES: dict[str, str] = {
    "teff": "teff",
    "log(g)": "logg",
    "logg": "logg",
    "metals": "m_h",
    "[m/h]": "m_h",
    "[fe/h]": "fe_h",
    "o mg si s ca ti": "alpha_m",
    "[alpha/m]": "alpha_m",
    "[alpha/fe]": "alpha_m",
    "log10vdop": "log_vmic",
    "vmicro": "vmic",
}
"""Names that grid files give to labels, in lower case."""
# Far more lines than a header of this format has: what goes on is another file.
_MAX_HEADER_LINES = 1000
# Longest header line, characters: a damaged file is not read whole into memory.
_LONGEST_LINE = 65536
_MOST_PARTS = 100
"""Stretches of wavelengths of a grid: spectrographs have a few, echelles a hundred orders."""
_UNKNOWN_VARIANCE = 1e6
"""Of the flux of pixels that a grid does not reach: they have no weight beside any noise."""


def read_ferre_grid(
    path: Path,
    *,
    wave_aa: Float64Array,
    resolving_power: float = 0.0,
    interpolation: Interpolation = "cubic",
    components: int = 0,
) -> Grid:
    """Read a grid in FERRE's format, seen on the pixels of a survey.

    Parameters
    ----------
    path : Path
        A text file, or the ``.hdr`` beside a ``.unf``.
    wave_aa : (n_pixel,) float64
        Pixels, angstrom in air.
    resolving_power : float
        To which the spectra are broadened; 0 leaves them as they are.
    interpolation, components
        As of `maury.methods.fitting.grid.Grid.build`.

    Raises
    ------
    InputFileError
        If it is no such file, is cut short, or does not reach over the pixels.
    """
    try:
        return _from_file(path, _read_file(path), wave_aa, resolving_power).grid(
            path, interpolation, components
        )
    except InputFileError:
        raise
    # A damaged header gives sizes of any kind, which numpy refuses in all these ways.
    except (ValueError, ArithmeticError, IndexError, MemoryError) as error:
        raise InputFileError(f"the header of {path} is damaged: {error}") from error


class _File(NamedTuple):
    """What a grid file holds: headers, lines before the spectra, spectra or coefficients."""

    headers: list[dict[str, str]]
    before: Float32Array
    rows: Float32Array


class _Seen(NamedTuple):
    """Spectra on the pixels of a survey, and which pixels they reach."""

    axes: dict[str, Float64Array]
    flux: Float32Array
    wave_aa: Float64Array
    reached: BoolArray

    def grid(self, path: Path, interpolation: Interpolation, components: int) -> Grid:
        """Return the grid, in which pixels that it does not reach have no weight."""
        grid = _as_grid(path, self.axes, self.flux, self.wave_aa, (interpolation, components))
        own = np.where(self.reached, grid.own_variance, _UNKNOWN_VARIANCE).astype(np.float32)
        return replace(grid, own_variance=own)


def _from_file(path: Path, file: _File, wave_aa: Float64Array, resolving_power: float) -> _Seen:
    header, *parts = file.headers
    sizes = [int(value) for value in _numbers(header, "N_P", path)]
    starts, steps = _numbers(header, "LLIMITS", path), _numbers(header, "STEPS", path)
    labels = [header.get(f"LABEL({k + 1})", f"label_{k + 1}") for k in range(len(sizes))]
    if min(sizes, default=0) < 1 or math.prod(sizes) != len(file.rows):
        raise InputFileError(
            f"{path} holds {len(file.rows)} spectra where its header says {math.prod(sizes)}"
        )
    axes = {
        _label_name(name): np.asarray(start + step * np.arange(size), dtype=np.float64)
        for name, start, step, size in zip(labels, starts, steps, sizes, strict=True)
    }
    spectra = _expanded(path, file)
    flux = np.ones((len(spectra), wave_aa.size), dtype=np.float32)
    reached = np.zeros(wave_aa.size, dtype=np.bool_)
    first = 0
    for part in parts or [header]:
        last = first + int(_numbers(part, "NPIX", path)[0]) if parts else spectra.shape[1]
        wave = _wavelengths({**header, **part}, last - first, path)
        half = 0.5 * np.gradient(wave_aa)
        inside = np.ones(wave_aa.size, dtype=np.bool_)
        if parts:
            # Pixels between two stretches belong to neither, and are left out.
            inside = (wave_aa - half >= wave[0]) & (wave_aa + half <= wave[-1]) & ~reached
        if np.count_nonzero(inside) > 1:
            power = _numbers({**header, **part}, "RESOLUTION", path, [np.inf])[0]
            flux[:, inside] = on_pixels(
                path, wave, spectra[:, first:last], wave_aa[inside], (power, resolving_power)
            )
            reached |= inside
        first = last
    if first != spectra.shape[1]:
        raise InputFileError(f"{path} holds {spectra.shape[1]} pixels, and its headers {first}")
    if not reached[[0, -1]].all():
        raise InputFileError(
            f"{path} does not reach over the pixels {wave_aa[0]:.1f}-{wave_aa[-1]:.1f}; cut the "
            "survey in the preparation"
        )
    return _Seen(axes, flux, wave_aa, reached)


def _expanded(path: Path, file: _File) -> Float32Array:
    """Spectra (n, n_pixel): the rows themselves, or what their coefficients make."""
    pieces = [int(value) for value in _numbers(file.headers[0], "NPCA", path, [0.0])]
    if not any(pieces):
        return file.rows
    count, rest = divmod(file.rows.shape[1], len(pieces))
    wanted = (2 + count, sum(pieces))
    if rest or min(pieces) < 1 or file.before.shape != wanted:
        raise InputFileError(
            f"{path}: of {len(pieces)} pieces (NPCA) and {file.rows.shape[1]} coefficients the "
            f"mean and the components should be {wanted}, got {file.before.shape}"
        )
    mean, components = file.before[0], file.before[2:]
    out = np.empty((len(file.rows), mean.size), dtype=np.float32)
    edges = np.concatenate([[0], np.cumsum(pieces)])
    for k in range(len(pieces)):
        part = slice(edges[k], edges[k + 1])
        strength = file.rows[:, k * count : (k + 1) * count]
        out[:, part] = mean[part] + strength @ components[:, part]
    return out


def read_synspec_grid(
    directory: Path,
    *,
    wave_aa: Float64Array,
    resolving_power: float = 0.0,
    interpolation: Interpolation = "cubic",
    components: int = 0,
) -> Grid:
    """Read a directory of synthetic spectra, as Synspec writes them, seen on a survey's pixels.

    ``index.csv`` has a column ``file``, and one per label; each file has two columns, wavelength
    (angstrom in air) and flux, continuum = 1. All combinations of the labels' values must be there.

    Parameters
    ----------
    directory : Path
    wave_aa, resolving_power, interpolation, components
        As of `read_ferre_grid`.

    Raises
    ------
    InputFileError
        If a file is missing or damaged, or a combination is not there.
    """
    rows = read_index(directory / "index.csv")
    names = [name for name in rows[0] if name != "file"]
    try:
        values = np.array([[float(row[name]) for name in names] for row in rows])
    except (TypeError, ValueError) as error:
        raise InputFileError(f"{directory / 'index.csv'}: a label is no number: {error}") from error
    axes = {_label_name(n): np.unique(values[:, k]) for k, n in enumerate(names)}
    places = np.column_stack(
        [np.searchsorted(axis, values[:, k]) for k, axis in enumerate(axes.values())]
    )
    sizes = [axis.size for axis in axes.values()]
    order = np.ravel_multi_index(tuple(places.T), sizes)
    if len(rows) != np.prod(sizes) or np.unique(order).size != len(rows):
        raise InputFileError(
            f"{directory} has {len(rows)} spectra for {np.prod(sizes)} combinations of "
            f"{', '.join(names)}; a grid needs each of them once"
        )
    seen = np.empty((len(rows), wave_aa.size), dtype=np.float32)
    for row, place in zip(rows, order, strict=True):
        file = inside(directory, row["file"])
        table = load_text(file)
        if table.shape[1] < 2:
            raise InputFileError(f"{file} has no two columns of wavelength and flux")
        spectrum = table[:, 1][None].astype(np.float32)
        seen[place] = on_pixels(file, table[:, 0], spectrum, wave_aa, (np.inf, resolving_power))
    return _as_grid(directory, axes, seen, wave_aa, (interpolation, components))


def inside(directory: Path, name: Any) -> Path:
    """Return a file of a directory; names and links that lead out of it are refused."""
    file = directory / str(name)
    if not name or "\0" in str(name) or not file.resolve().is_relative_to(directory.resolve()):
        raise InputFileError(
            f"{directory / 'index.csv'} names {name!r}, which is not in its folder"
        )
    return file


def _as_grid(
    path: Path,
    axes: Mapping[str, Float64Array],
    seen: Float32Array,
    wave_aa: Float64Array,
    options: tuple[Interpolation, int],
) -> Grid:
    none = np.zeros(wave_aa.size, dtype=np.float32)
    try:
        grid = Grid(tuple(axes), tuple(axes.values()), seen, None, none, wave_aa, none, options[0])
    except ValueError as error:
        raise InputFileError(f"{path} is no regular grid: {error}") from error
    return grid.compressed(options[1]) if options[1] else grid


def _read_file(path: Path) -> _File:
    try:
        check_regular(path)
        with path.open(encoding="ascii") as file:
            headers = [_header(file, path)]
            several = int(_numbers(headers[0], "MULTI", path, [0.0])[0])
            if not 0 <= several <= _MOST_PARTS:
                raise InputFileError(f"{path} has MULTI = {several}")
            headers += [_header(file, path) for _ in range(several)]
            table = _lines(file, path)
        pieces = [int(value) for value in _numbers(headers[0], "NPCA", path, [0.0])]
        width = int(_numbers(headers[0], "NPIX", path, [0.0])[0]) if any(pieces) else 0
        if path.suffix.lower() == ".hdr":
            width = width or sum(
                int(_numbers(part, "NPIX", path)[0]) for part in headers[1:] or headers
            )
            return _File(headers, _equal(table, path), _binary(path.with_suffix(".unf"), width))
        n_before = 2 + width // len(pieces) if width else 0
        before, rows = _equal(table[:n_before], path), _equal(table[n_before:], path)
    except (OSError, ValueError) as error:
        raise InputFileError(f"cannot read {path}: {error}") from error
    return _File(headers, before, rows)


def _header(file: TextIO, path: Path) -> dict[str, str]:
    header: dict[str, str] = {}
    if "&SYNTH" not in file.readline(_LONGEST_LINE).upper():
        raise InputFileError(f"{path} does not begin with &SYNTH, so it is no FERRE grid")
    for _ in range(_MAX_HEADER_LINES):
        line = file.readline(_LONGEST_LINE)
        # A slash ends a namelist of Fortran.
        if not line or line.strip() == "/":
            break
        key, _, value = line.partition("=")
        header[key.strip().upper().replace(" ", "")] = value.strip().strip("'\"").strip()
    return header


def _lines(file: TextIO, path: Path) -> list[Float32Array]:
    """Lines of numbers, which may differ in length."""
    del path
    return [np.array(line.split(), dtype=np.float32) for line in file if line.strip()]


def _equal(lines: list[Float32Array], path: Path) -> Float32Array:
    if not lines:
        return np.zeros((0, 0), dtype=np.float32)
    if len({line.size for line in lines}) > 1:
        raise InputFileError(f"{path} has lines of different lengths")
    return np.stack(lines)


def _binary(path: Path, width: int) -> Float32Array:
    """Rows (n, width) of 4-byte floats of this machine's order, as Fortran writes them unformatted.

    FERRE reads the same: direct access, no marks between records.
    """
    check_regular(path)
    values = np.fromfile(path, dtype="<f4")
    if width < 1 or values.size % width:
        raise InputFileError(f"{path} holds {values.size} numbers, no multiple of {width}")
    return np.asarray(values.reshape(-1, width), dtype=np.float32)


def _numbers(
    header: Mapping[str, str], key: str, path: Path, default: list[float] | None = None
) -> list[float]:
    if key not in header:
        if default is None:
            raise InputFileError(f"the header of {path} has no {key}")
        return default
    try:
        found = [float(text) for text in re.split(r"[\s,]+", header[key].strip()) if text]
    except ValueError as error:
        raise InputFileError(f"the header of {path} has {key} = {header[key]!r}") from error
    if not found:
        raise InputFileError(f"the header of {path} has no number for {key}; correct it")
    return found


def _wavelengths(header: Mapping[str, str], n_pixel: int, path: Path) -> Float64Array:
    first, step = _numbers(header, "WAVE", path)
    wave = first + step * np.arange(n_pixel)
    scale = int(_numbers(header, "LOGW", path, [0.0])[0])
    if scale == 1:
        wave = 10.0**wave
    elif scale == 2:
        wave = np.exp(wave)
    vacuum = int(_numbers(header, "VACUUM", path, [0.0])[0])
    return np.asarray(vacuum_to_air(wave) if vacuum else wave)


def on_pixels(
    path: Path,
    wave: Float64Array,
    spectra: Float32Array,
    wave_aa: Float64Array,
    powers: tuple[float, float],
) -> Float32Array:
    """Broaden spectra from one resolving power to another, and average them over pixels."""
    if not np.isfinite(spectra).all():
        raise InputFileError(f"{path} has flux that is not finite")
    try:
        resampler = Resampler(wave, wave_aa)
    except ValueError as error:
        raise InputFileError(f"{path}: {error}") from error
    before, after = powers
    if after > 0:
        # Widths of Gaussians add in squares; a grid that is broad already cannot be sharpened.
        spectra = _broaden(wave, spectra, np.sqrt(max(after**-2.0 - before**-2.0, 0.0)))
    flux, ivar = resampler(spectra, np.ones_like(spectra))
    if not (ivar > 0).all():
        raise InputFileError(
            f"{path} covers {wave[0]:.1f}-{wave[-1]:.1f} angstrom, which is less than the pixels "
            f"{wave_aa[0]:.1f}-{wave_aa[-1]:.1f}; cut the survey in the preparation"
        )
    return np.asarray(flux, dtype=np.float32)


def _broaden(wave: Float64Array, spectra: Float32Array, inverse_power: float) -> Float32Array:
    """Convolve with a Gaussian whose FWHM is the wavelength times `inverse_power`."""
    if inverse_power == 0.0:
        return spectra
    # Even in ln(lambda), where a constant resolving power is one kernel for all pixels.
    even = np.geomspace(wave[0], wave[-1], 2 * wave.size)
    sigma = inverse_power / FWHM_PER_SIGMA / np.log(even[1] / even[0])
    reach = max(1, int(np.ceil(4 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    out = np.empty_like(spectra)
    for k, row in enumerate(spectra):
        padded = np.pad(np.interp(even, wave, row), reach, mode="edge")
        out[k] = np.interp(wave, even, np.convolve(padded, kernel, mode="valid"))
    return out


def read_index(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputFileError(f"cannot read {path}: {error}") from error
    if not rows or "file" not in rows[0] or len(rows[0]) < 2 or None in rows[0]:
        raise InputFileError(f"{path} needs a column 'file' and one per label")
    return rows


def load_text(path: Path) -> Float64Array:
    try:
        check_regular(path)
        # By its name alone numpy would unpack a file, or ask for it elsewhere.
        with path.open(encoding="ascii") as stream:
            return np.asarray(np.loadtxt(stream, ndmin=2), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise InputFileError(f"cannot read {path}: {error}") from error


def _label_name(text: str) -> str:
    plain = " ".join(text.lower().split())
    return LABEL_ALIASES.get(plain, re.sub(r"[^a-z0-9]+", "_", plain).strip("_") or "label")
