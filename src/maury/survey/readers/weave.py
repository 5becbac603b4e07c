"""WEAVE level 1 spectra of single fibres: exposures, stacks and superstacks.

One FITS file per arm: images ``<ARM>_DATA``, ``<ARM>_IVAR`` and ``<ARM>_SENSFUNC`` (pixels by
fibres; ``<ARM>`` is ``BLUE``, ``GREEN`` or ``RED``) and a table ``FIBTABLE`` with a row per fibre
(WEAVE core processing system; Jin et al. 2024, MNRAS 530, 2688, section on data products).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import InputFileError, LengthMismatch, WavelengthError
from maury.io.arrays import AnyArray, BoolArray, Float64Array, IndexArray, StrArray
from maury.io.fits_values import image
from maury.io.opening import find_hdu, open_fits, reading, says_simulated
from maury.io.source_table import SourceTable
from maury.io.tables import fits_table
from maury.spectra.spectra import Medium
from maury.survey.readers.block_files import Block, BlockFiles, RowReader
from maury.survey.readers.grids import header_grid, header_medium
from maury.survey.readers.sources import list_files, stem, tolerating

_ARMS = ("BLUE", "GREEN", "RED")
_SKY = "S"


def open_weave(
    path: Path, stack: ExitStack, *, arm: str | None = None, skip_bad: bool = False
) -> BlockFiles:
    """Open level 1 files of WEAVE until `stack` closes.

    A spectrum is called by its file and ``Nspec``; ``CNAME`` and the other columns of ``FIBTABLE``
    are its facts. Fibres on the sky (``TARGUSE = 'S'``) are left out. The flux is the counts times
    the sensitivity function over its median, so that it is in counts on average.

    Parameters
    ----------
    path : Path
        A file, or a folder.
    stack : ExitStack
    arm : {"blue", "green", "red"}, optional
        Files of other arms are passed over; without it, all must be of one.
    skip_bad : bool
        Keep a file that cannot be read, as one row of bad pixels.

    Raises
    ------
    InputFileError
        If there is none, or one is damaged or of another kind.
    WavelengthError
        If a header gives no wavelengths, or arms are mixed.
    """
    blocks: list[Block] = []
    media: set[Medium | None] = set()
    found: set[str] = set()
    for item in list_files(path):
        lost: dict[Path, str] = {}
        with tolerating(item, lost, skip=skip_bad), reading(item):
            hdus = open_fits(item, stack)
            here = _arm(hdus, item)
            # A folder may hold files of all arms.
            if arm is not None and here != arm.upper():
                continue
            found.add(here)
            block, medium = _block(hdus, here, item)
            if block.ids.size:
                blocks.append(block)
                media.add(medium)
        blocks += [Block.lost(item, why) for why in lost.values()]
    if not blocks:
        raise InputFileError(f"{path} holds no fibre on a target{f' of arm {arm}' if arm else ''}")
    if len(found) > 1 or len(media) > 1:
        raise WavelengthError(
            f"{path} holds the arms {', '.join(sorted(found))}; name one by its reader, such as "
            "'weave-l1-red', or join them by [[arm]]"
        )
    paths = [block.path for block in blocks]
    return BlockFiles.of(path, paths, blocks, medium=media.pop(), skip_bad=skip_bad)


def _arm(hdus: Any, path: Path) -> str:
    names = {str(hdu.name).upper() for hdu in hdus}
    for arm in _ARMS:
        if f"{arm}_DATA" in names:
            return arm
    raise InputFileError(
        f"{path} has no image BLUE_DATA, GREEN_DATA or RED_DATA; give level 1 files of WEAVE"
    )


def _block(hdus: Any, arm: str, path: Path) -> tuple[Block, Medium | None]:
    data, ivar = (find_hdu(hdus, f"{arm}_{end}", path, image=True) for end in ("DATA", "IVAR"))
    names = {str(hdu.name).upper() for hdu in hdus}
    sens = hdus[f"{arm}_SENSFUNC"] if f"{arm}_SENSFUNC" in names else None
    table = fits_table(find_hdu(hdus, "FIBTABLE", path, image=False), path)
    shape = tuple(data.shape or ())
    if len(shape) == 1:
        shape = (1, *shape)
    if len(shape) != 2:
        raise InputFileError(f"{path}: {arm}_DATA has shape {data.shape}; cubes are not read")
    if tuple(ivar.shape) != tuple(data.shape) or table.n_row != shape[0]:
        raise LengthMismatch(
            f"{path}: {arm}_DATA is {tuple(data.shape)}, {arm}_IVAR {tuple(ivar.shape)}, and "
            f"FIBTABLE has {table.n_row} rows; they must describe the same fibres"
        )
    wave_aa = header_grid(data.header, 1, shape[1])
    if wave_aa is None:
        raise WavelengthError(f"{path}: {arm}_DATA has no wavelength cards (CRVAL1, CDELT1)")
    fibres = np.flatnonzero(_on_target(table))
    read = _reader([data, ivar, sens], fibres, shape)
    ids, told = _ids(table, path)[fibres], says_simulated(hdus)
    block = Block(ids, _rows_of(table, fibres), read, wave_aa, path, simulated=told)
    return block, header_medium(data.header)


def _column(table: SourceTable, name: str) -> str | None:
    """Name of a column, whose case differs between releases."""
    return next((own for own in table.names if own.upper() == name), None)


def _on_target(table: SourceTable) -> BoolArray:
    name = _column(table, "TARGUSE")
    if name is None:
        return np.ones(table.n_row, dtype=np.bool_)
    return np.asarray(table.texts(name) != _SKY, dtype=np.bool_)


def _ids(table: SourceTable, path: Path) -> StrArray:
    name = _column(table, "NSPEC")
    numbers = table.texts(name) if name else np.arange(1, table.n_row + 1).astype(np.str_)
    return np.array([f"{stem(path)}_{number}" for number in numbers], dtype=np.str_)


def _rows_of(table: SourceTable, rows: IndexArray) -> SourceTable:
    return SourceTable(
        table.path, table.names, rows.size, table.units, lambda name: table.raw(name)[rows]
    )


def _reader(hdus: Sequence[Any], fibres: IndexArray, shape: tuple[int, ...]) -> RowReader:
    def read(start: int, stop: int) -> tuple[AnyArray, AnyArray]:
        rows = fibres[start:stop]
        data, ivar = (_rows(hdu, rows, shape) for hdu in hdus[:2])
        if hdus[2] is not None:
            sens = _rows(hdus[2], rows, shape)
            good = np.isfinite(sens) & (sens > 0)
            # Over its median, so that counts stay counts on average.
            middle = np.nanmedian(np.where(good, sens, np.nan), axis=1, keepdims=True)
            scale = np.where(good, sens, np.nan) / middle
            data, ivar = data * scale, np.where(good, ivar / scale**2, 0.0)
        return data, ivar

    return read


def _rows(hdu: Any, rows: IndexArray, shape: tuple[int, ...]) -> Float64Array:
    """Return rows of an image; one row alone is that of every fibre."""
    lines = image(hdu).reshape(-1, shape[1])
    return np.asarray(lines[rows if len(lines) == shape[0] else rows * 0], dtype=np.float64)
