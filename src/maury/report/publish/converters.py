"""Surveys, spectra and catalogues as objects of astropy, xarray and specutils."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import ConfigError, MissingExtra
from maury.io.arrays import AnyArray
from maury.labels import columns as columns_module
from maury.labels.columns import Column
from maury.labels.definitions import LABELS, Label
from maury.prediction.catalogue import Catalogue
from maury.spectra.batch import Batch
from maury.spectra.rows import row_numbers
from maury.spectra.spectra import Spectra
from maury.survey.store import Survey

if TYPE_CHECKING:
    import xarray as xr
    from astropy.table import Table
    from specutils import SpectrumList

SPECUTILS_LIMIT = 100_000
"""Most spectra that are turned into objects at a time."""


def to_table(source: Survey | Batch | Spectra | Catalogue) -> "Table":
    """Return an astropy table: one row per spectrum, with units, UCDs and descriptions.

    Parameters
    ----------
    source : Survey, Batch, Spectra or Catalogue
        Of a survey all columns, without the pixels; of a batch or of spectra also ``flux`` and
        ``ivar`` (n_star, n_pixel), and ``wave_aa`` in the metadata. A catalogue is copied.

    Returns
    -------
    astropy.table.Table
        Its ``meta`` has ``simulated`` where it is known.
    """
    from astropy.table import Table

    if isinstance(source, Catalogue):
        table = source.table.copy()
        table.meta = {"simulated": source.simulated, "maury": dict(source.metadata)}
        return table
    if isinstance(source, Survey):
        values = {name: source.column(name) for name in _ordered(source.column_names)}
        table = _described(Table(values), source.label_definitions)
        table.meta["simulated"] = source.simulated
        table.meta["provenance"] = source.provenance
        return table
    columns = source.columns if isinstance(source, Batch) else {}
    spectra = source.spectra if isinstance(source, Batch) else source
    table = _described(Table({name: columns[name] for name in _ordered(columns)}), LABELS)
    table["flux"], table["ivar"] = spectra.flux, spectra.ivar
    table["flux"].description, table["ivar"].description = "Flux", "Inverse variance of the flux"
    table.meta |= {"wave_aa": spectra.wave_aa, "medium": spectra.medium}
    return table


def to_xarray(source: Survey | Batch | Spectra | Catalogue) -> "xr.Dataset":
    """Return an xarray dataset with the dimension ``star``, and ``pixel`` where there are spectra.

    Parameters
    ----------
    source : Survey, Batch, Spectra or Catalogue
        A survey stays on disk, and is read lazily.

    Returns
    -------
    xarray.Dataset
        Variables have the attributes ``units``, ``description`` and ``ucd``.
    """
    import xarray as xr

    if isinstance(source, Survey):
        return source.dataset.copy()
    table = to_table(source)
    data: dict[str, Any] = {}
    for name in table.colnames:
        dims = ("star", "pixel") if table[name].ndim == 2 else ("star",)
        data[name] = (dims, np.asarray(table[name]), _attributes(table[name]))
    attributes = {key: table.meta[key] for key in ("simulated", "medium") if key in table.meta}
    if "wave_aa" in table.meta:
        about = {"units": "Angstrom", "description": "Wavelength"}
        data["wave"] = (("pixel",), np.asarray(table.meta["wave_aa"]), about)
    return xr.Dataset(data, attrs=attributes)


def to_specutils(
    source: Survey | Batch | Spectra, rows: ArrayLike | slice | None = None
) -> "SpectrumList":
    """Return spectra as a `specutils.SpectrumList`, one `specutils.Spectrum` per row.

    Flux has no unit, its uncertainty is an inverse variance, and pixels that are bad (of inverse
    variance 0) are masked. ``meta`` holds the columns of the row, ``simulated`` where it is known,
    and ``medium``; the wavelengths are as they are stored, in air or in vacuum.

    Parameters
    ----------
    source : Survey, Batch or Spectra
        At most `SPECUTILS_LIMIT` rows are taken.
    rows : slice, (n,) int or (n_star,) bool array_like, optional
        Row numbers (negative ones count from the end) or a mask; all by default.

    Raises
    ------
    MissingExtra
        If ``specutils`` is not installed.
    ConfigError
        If there are too many rows.
    RowError
        If there is no such row, or a mask has another length.
    """
    try:
        from specutils import Spectrum, SpectrumList
    except ImportError as error:
        raise MissingExtra("specutils is not installed: pip install 'maury[specutils]'") from error
    from astropy import units
    from astropy.nddata import InverseVariance

    batch, about = _chosen(source, rows)
    wave = batch.spectra.wave_aa * units.AA
    out = SpectrumList()
    for star in range(len(batch)):
        ivar = batch.spectra.ivar[star]
        columns = {name: values[star].item() for name, values in batch.columns.items()}
        out.append(
            Spectrum(
                flux=batch.spectra.flux[star] * units.dimensionless_unscaled,
                spectral_axis=wave,
                uncertainty=InverseVariance(ivar.copy()),
                mask=ivar <= 0,
                meta={**columns, **about},
            )
        )
    return out


def _chosen(
    source: Survey | Batch | Spectra, rows: ArrayLike | slice | None
) -> tuple[Batch, dict[str, Any]]:
    """Return the rows that are wanted, and what is common to them."""
    n_row = len(source)
    index = row_numbers(slice(None) if rows is None else rows, n_row, what="the spectra")
    if index.size > SPECUTILS_LIMIT:
        raise ConfigError(
            f"{index.size} spectra are too many to become objects (at most {SPECUTILS_LIMIT}); "
            "name the rows that you want"
        )
    if isinstance(source, Survey):
        about = {"simulated": source.simulated, "survey": source.path.name}
        return source.rows(index), {**about, "medium": source.medium}
    spectra = source.spectra if isinstance(source, Batch) else source
    columns: Mapping[str, AnyArray] = source.columns if isinstance(source, Batch) else {}
    part = spectra.take(index)
    chosen = {name: values[index] for name, values in columns.items()}
    return Batch(part, chosen), {"medium": spectra.medium}


def _ordered(names: Any) -> list[str]:
    """Return names in the order of their definitions, unknown ones last."""
    order = list(columns_module.known())
    return sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n))


def _described(table: "Table", labels: tuple[Label, ...]) -> "Table":
    known: dict[str, Column] = columns_module.known(labels)
    for name in table.colnames:
        column = known.get(name)
        if column is not None:
            table[name].unit = column.unit or None
            table[name].description = column.description
            table[name].meta["ucd"] = column.ucd
    return table


def _attributes(column: Any) -> dict[str, str]:
    about = {
        "units": str(column.unit or ""),
        "description": str(column.description or ""),
        "ucd": str(column.meta.get("ucd", "")),
    }
    return {name: text for name, text in about.items() if text}
