"""Catalogues in the formats in which they are published."""

from pathlib import Path

import numpy as np

from maury.errors import ConfigError
from maury.io.files import explaining, refuse_existing, writing
from maury.prediction.catalogue import SUFFIXES, Catalogue, check_suffix, write_stored
from maury.prediction.stored import StoredCatalogue, values_of
from maury.report.explorer.expression import parse_selection
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
    where: str = "",
    overwrite: bool = False,
) -> int:
    """Write a catalogue in another format, block by block: memory does not grow with its rows.

    Parameters
    ----------
    catalogue : Catalogue or path-like
        A catalogue of `maury.predict`.
    out : path-like
        Its suffix names the format: one of `maury.prediction.catalogue.SUFFIXES`, or ``.cds`` for a
        directory with an aligned ASCII table and its ReadMe (`maury.report.publish.cds`).
    heading : Heading, optional
        Title and authors of the ReadMe.
    where : str
        Rows to write, as an expression of columns and flags, as the explorer has them
        (`maury.report.explorer.expression.parse`): ``snr > 40 & not TRAINING_STAR``. All without
        one. The metadata keep it (``selection``).
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
    ExpressionError
        If `where` cannot be read.
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
    stored = catalogue.stored() if isinstance(catalogue, Catalogue) else Catalogue.open(catalogue)
    if where:
        stored = _selected(stored, where)
    if as_cds:
        with writing(out, overwrite=overwrite) as partial:
            partial.mkdir()
            cds.write_cds(partial, stored, heading)
    else:
        with explaining(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_stored(stored, out, overwrite)
    return len(stored)


def _selected(catalogue: StoredCatalogue, where: str) -> StoredCatalogue:
    wanted = parse_selection(where, {one.name: one.kind for one in catalogue.columns})
    chosen = [
        wanted.passes({name: values_of(block[name]) for name in wanted.names})
        for block in catalogue.blocks(wanted.names)
    ]
    kept = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.bool_)
    return catalogue.selected(kept, where=where)
