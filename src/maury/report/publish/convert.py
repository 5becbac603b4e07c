"""Catalogues in the formats in which they are published."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from maury.errors import ConfigError
from maury.io.arrays import AnyArray
from maury.io.files import refuse_existing, writing
from maury.labels.columns import Column, kind_of
from maury.prediction.catalogue import (
    SUFFIXES,
    Catalogue,
    CatalogueSpec,
    assemble,
    check_suffix,
    write_part,
)
from maury.report.publish import cds
from maury.report.publish.cds import Heading

CDS_SUFFIX = ".cds"
"""A directory that holds ``ReadMe`` and ``labels.dat``."""
OUTPUTS = (*SUFFIXES, CDS_SUFFIX)


def convert(
    catalogue: Catalogue | Path | str,
    out: Path | str,
    *,
    heading: Heading | None = None,
    overwrite: bool = False,
) -> int:
    """Write a catalogue in another format.

    Parameters
    ----------
    catalogue : Catalogue or path-like
        A catalogue of `maury.predict`.
    out : path-like
        Its suffix names the format: one of `maury.prediction.catalogue.SUFFIXES`, or ``.cds`` for a
        directory with an aligned ASCII table and its ReadMe (`maury.report.publish.cds`).
    heading : Heading, optional
        Title and authors of the ReadMe.
    overwrite : bool
        Replace what exists at `out`.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    ConfigError
        If the suffix is not one of a known format, or a heading is given for another than ``.cds``.
    InputFileError
        If the catalogue cannot be read.
    MissingExtra
        If the format needs a package that is not installed.
    OutputExists
        If `out` exists and `overwrite` is false.
    """
    out = Path(out)
    as_cds = out.suffix.lower() == CDS_SUFFIX
    if not as_cds:
        check_suffix(out)
        if heading is not None:
            raise ConfigError(f"title and authors stand in a ReadMe; {out.name} has none")
    refuse_existing(out, overwrite=overwrite)
    catalogue = catalogue if isinstance(catalogue, Catalogue) else Catalogue.read(catalogue)
    if as_cds:
        with writing(out, overwrite=overwrite) as partial:
            partial.mkdir()
            cds.write_cds(partial, catalogue.table, catalogue.metadata, heading)
        return len(catalogue)
    spec = spec_of(catalogue)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        part = Path(folder) / "rows.parquet"
        rows = {name: _native(catalogue.table[name]) for name in catalogue.table.colnames}
        write_part(part, spec, rows)
        assemble([part], out, spec=spec, overwrite=overwrite)
    return len(catalogue)


def spec_of(catalogue: Catalogue) -> CatalogueSpec:
    """Return columns and metadata of a catalogue in memory."""
    table = catalogue.table
    columns = [
        Column(
            name,
            str(table[name].unit or ""),
            str(table[name].meta.get("ucd", "")),
            str(table[name].description or ""),
            kind_of(table[name].dtype),
        )
        for name in table.colnames
    ]
    return CatalogueSpec(tuple(columns), catalogue.metadata)


def _native(column: Any) -> AnyArray:
    """Return the values of a column in the byte order of this machine, which Arrow needs."""
    values = np.asarray(column)
    return values.astype(values.dtype.newbyteorder("="))
