"""Catalogues of stellar labels in FITS, Parquet (a file or a directory of parts), VOTable and ECSV.

Name, unit, UCD and description of every column come from `maury.labels.definitions`,
`maury.labels.columns` and `maury.labels.flags`; provenance and the mark of simulated data stand in
the metadata of every format.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.errors import ConfigError, InputFileError
from maury.io.arrays import AnyArray, Float64Array, arrow_array
from maury.io.files import writing
from maury.io.parquet import n_rows, read_table, write_table
from maury.labels import columns as columns_module
from maury.labels.columns import Column
from maury.labels.definitions import Label
from maury.labels.flags import Flag
from maury.prediction import ecsv, fits_table, parquet, votable
from maury.prediction.stored import StoredCatalogue, after, arrow_type, explained, of_table

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.table import Table

logger = logging.getLogger(__name__)

Rows = Mapping[str, AnyArray]
"""Values of some consecutive rows, by column name."""


@dataclass(frozen=True)
class CatalogueSpec:
    """What a catalogue holds: its columns in order, and its metadata (plain JSON)."""

    columns: tuple[Column, ...]
    metadata: Mapping[str, Any]

    @classmethod
    def for_labels(
        cls,
        labels: Sequence[Label],
        *,
        survey_columns: Iterable[str],
        metadata: Mapping[str, Any],
        quantiles: bool = False,
        correlations: bool = False,
        coverage: bool = False,
        further: Sequence[Column] = (),
        error_parts: bool = False,
        by_star: bool = False,
        calibrated: bool = True,
        caution: str = "",
    ) -> "CatalogueSpec":
        """Return the columns of a catalogue of these labels.

        Parameters
        ----------
        labels : sequence of Label
            Labels in the order of the catalogue; each is followed by its 1 sigma error.
        survey_columns : iterable of str
            Columns that the survey has; those of `maury.labels.columns.IN_CATALOGUE` are repeated.
        metadata : mapping
            Provenance; the flags' texts are added.
        quantiles : bool
            Whether each error is followed by the quantiles of the label.
        correlations : bool
            Whether the correlations of the errors of all pairs of labels follow the labels.
        coverage : bool
            Whether the columns of `maury.labels.columns.COVERAGE` follow the flags.
        further : sequence of Column
            Columns of a method's own, after these.
        error_parts : bool
            Whether each error is followed by its two parts, `maury.labels.columns.ERROR_PARTS`.
        by_star : bool
            Whether a row is a star, with the number of its spectra.
        calibrated : bool
            Whether errors are calibrated; else their columns have another name.
        caution : str
            Added to the description of each error.
        """
        known = columns_module.known(labels)
        present = set(survey_columns)
        pairs = combinations(labels, 2) if correlations else ()
        groups = chain.from_iterable(
            _label_columns(label, quantiles, error_parts, calibrated, caution) for label in labels
        )
        chosen = (
            known["id"],
            *((columns_module.N_SPECTRA,) if by_star else ()),
            *groups,
            *(columns_module.for_correlation(*pair) for pair in pairs),
            columns_module.FLAGS,
            columns_module.WARN,
            *(columns_module.COVERAGE if coverage else ()),
            *further,
            known["snr"],
            *(known[name] for name in columns_module.IN_CATALOGUE if name in present),
        )
        flags = {
            str(flag.name): {"bit": bit, "warns": flag.warns, "text": flag.text}
            for bit, flag in enumerate(Flag)
        }
        return cls(chosen, {**metadata, "flags": flags})


def _label_columns(
    label: Label, quantiles: bool, error_parts: bool, calibrated: bool, caution: str
) -> list[Column]:
    error = columns_module.for_label_error if calibrated else columns_module.for_label_formal_error
    stated = error(label)
    if caution:
        stated = replace(stated, description=f"{stated.description}, {caution}")
    columns = [columns_module.for_label(label), stated]
    if error_parts:
        columns += [
            columns_module.for_error_part(label, *part) for part in columns_module.ERROR_PARTS
        ]
    if quantiles:
        columns += [
            columns_module.for_label_quantile(label, suffix, percent)
            for suffix, percent in columns_module.QUANTILES
        ]
    return columns


@dataclass(frozen=True)
class Catalogue:
    """A catalogue in memory.

    Attributes
    ----------
    table : astropy.table.Table
        One row per spectrum, in the order of the survey.
    metadata : mapping
        Provenance, flags, and the mark of simulated data.

    Examples
    --------
    >>> catalogue = Catalogue.read("labels.fits")  # doctest: +SKIP
    >>> good = catalogue.table[~catalogue.table["warn"]]  # doctest: +SKIP
    """

    table: "Table"
    metadata: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> StoredCatalogue:
        """Open a catalogue that `maury` wrote, whatever its format, and read its rows in blocks.

        Memory does not grow with its rows. A file that another program has written anew, in VOTable
        or FITS, may be read at once.

        Raises
        ------
        ConfigError
            If the suffix is not one of a known format.
        InputFileError
            If the file cannot be read.
        """
        path = Path(path)
        opened = _format(path).open
        with explained(path):
            catalogue = opened(path)
            if not isinstance(catalogue.metadata, dict):
                raise InputFileError(f"{path} has metadata that maury did not write")
            metadata = with_stated_flags(catalogue.metadata, str(path))
        # Flags of earlier versions have 32 bits, too few for what theirs are asked for.
        kinds = {("flags", "int32"): "int64"}
        columns = (replace(c, kind=kinds.get((c.name, c.kind), c.kind)) for c in catalogue.columns)
        return replace(catalogue, columns=tuple(columns), metadata=metadata)

    @classmethod
    def read(cls, path: Path | str) -> "Catalogue":
        """Read a catalogue, as of `open`, into memory."""
        catalogue = cls.open(path)
        return cls(catalogue.table(), catalogue.metadata)

    def __len__(self) -> int:
        return len(self.table)

    def _repr_html_(self) -> str:
        """Show rows, each label with its range, and flags by count, in a notebook."""
        from maury.io.notebook import as_html

        mark = "SIMULATED " if self.metadata.get("simulated") else ""
        flags = np.asarray(self.table["flags"])
        warned = int(np.asarray(self.table["warn"]).sum())
        lines = [f"{mark}Catalogue: {len(self)} rows, {warned} with a warning"]
        counts = {str(one.name): int(((flags & one.value) > 0).sum()) for one in Flag}
        lines += [f"{name}: {n} ({Flag[name].text})" for name, n in counts.items() if n]
        header = ("column", "unit", "known", "missing", "lowest", "median", "highest")
        return as_html(lines, [header, *map(self._range, self._label_names())])

    def _label_names(self) -> list[str]:
        names = self.table.colnames
        return [name for name in names if f"{name}_error" in names and name != "parallax"]

    def _range(self, name: str) -> tuple[str, ...]:
        masked: Any = np.ma.asarray(self.table[name], dtype=float)
        values: Float64Array = np.ma.filled(masked, np.nan)
        known = values[np.isfinite(values)]
        counts = (str(known.size), str(len(values) - known.size))
        low, middle, high = np.percentile(known, (0, 50, 100)) if known.size else [np.nan] * 3
        numbers = (f"{low:.4g}", f"{middle:.4g}", f"{high:.4g}")
        return name, str(self.table[name].unit or ""), *counts, *numbers

    def kiel(self, ax: Any = None, *, warned: bool = False) -> Any:
        """Draw log g against Teff, coloured by [M/H] or else [Fe/H], and return the axes.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default new axes of pyplot.
        warned : bool
            Draw rows with a warning flag as well.
        """
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.figure(figsize=(4.5, 4.0), layout="constrained").subplots()
        rows = np.ones(len(self), bool) if warned else ~np.asarray(self.table["warn"], bool)
        table = self.table[rows]
        iron = next((name for name in ("m_h", "fe_h") if name in table.colnames), "")
        colour = table[iron] if iron else None
        points = ax.scatter(table["teff"], table["logg"], c=colour, s=6, lw=0)
        if colour is not None:
            ax.figure.colorbar(points, ax=ax, label={"m_h": "[M/H]", "fe_h": "[Fe/H]"}[iron])
        ax.set(xlabel="Teff [K]", ylabel="log g [dex]")
        ax.invert_xaxis()
        ax.invert_yaxis()
        mark = "SIMULATED, " if self.metadata.get("simulated") else ""
        ax.set_title(f"{mark}{len(table)} of {len(self)} rows", loc="left")
        return ax

    def __str__(self) -> str:
        return str(self.stored())

    def __repr__(self) -> str:
        mark = "SIMULATED " if self.simulated else ""
        warned = int(np.asarray(self.table["warn"]).sum())
        labels = ", ".join(self._label_names())
        return f"<{mark}Catalogue: {len(self)} rows, {warned} with a warning; labels: {labels}>"

    def stored(self, path: Path | str = "the catalogue") -> StoredCatalogue:
        """Return it as one that is read in blocks, under a name for messages."""
        return of_table(Path(path), self.table, self.metadata)

    @property
    def simulated(self) -> bool:
        """Whether the spectra were simulated."""
        return bool(self.metadata.get("simulated", False))


def with_stated_flags(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return metadata without ``flags`` where they are not stated as maury states them.

    Parameters
    ----------
    metadata : mapping
        Of a catalogue of any origin.
    name : str
        What the warning calls the catalogue.
    """
    flags = metadata.get("flags", {})
    if isinstance(flags, Mapping) and all(map(_is_stated, flags.values())):
        return metadata
    logger.warning(
        "%s: its metadata do not state bit, text and kind of each flag, and are not used for them",
        name,
    )
    return {key: value for key, value in metadata.items() if key != "flags"}


def _is_stated(about: Any) -> bool:
    return (
        isinstance(about, Mapping)
        and isinstance(about.get("bit"), int)
        # Of a signed integer of 64 bits: a shift by any number takes as many bits of memory.
        and 0 <= about["bit"] < 63
        and isinstance(about.get("warns"), bool)
        and isinstance(about.get("text"), str)
    )


def check_suffix(path: Path | str) -> None:
    """Raise `ConfigError` unless the suffix of `path` names a catalogue format."""
    _format(Path(path))


def write_part(path: Path, spec: CatalogueSpec, rows: Rows) -> None:
    """Write some rows as one Parquet file, atomically.

    Parameters
    ----------
    path : Path
        File to write; replaced if it exists.
    spec : CatalogueSpec
        Columns and metadata.
    rows : mapping of str to (n,) array
        Values of every column.
    """
    # A part is done once its file exists, so that it may never be there half written.
    with writing(path, overwrite=True) as partial:
        write_table(partial, _arrow(spec, rows))


def is_whole(part: Path, n_row: int) -> bool:
    """Whether a part can be read, agrees with its checksums, and has this number of rows."""
    try:
        # All of it is read: the footer alone would not show a page that a full disk or a crash has
        # damaged.
        return len(read_table(part)) == n_row
    except (OSError, ValueError) as error:
        logger.warning("%s is made again: %s", part, error)
        return False


def read_parts(parts: Sequence[Path]) -> dict[str, AnyArray]:
    """Read the columns of some parts, in order, into memory."""
    import pyarrow as pa

    whole = pa.concat_tables(read_table(part) for part in parts)
    return {name: whole[name].to_numpy() for name in whole.column_names}


def count_true(part: Path, name: str) -> int:
    """Count the rows of a part whose boolean column is true."""
    import pyarrow.compute as pc

    return pc.sum(read_table(part, [name])[name]).as_py() or 0


def count_flags(parts: Sequence[Path]) -> dict[str, int]:
    """Count the rows of parts with each flag, by its name; flags of no row are left out."""
    counts = dict.fromkeys(Flag, 0)
    for part in parts:
        for chunk in read_table(part, ["flags"])["flags"].chunks:
            # `to_numpy`, and any number given to pyarrow, would have pandas imported.
            mask = np.asarray(np.from_dlpack(chunk), dtype=np.int64)
            for flag in counts:
                counts[flag] += int(np.count_nonzero(mask & flag.value))
    return {str(flag.name): count for flag, count in counts.items() if count}


def assemble(
    parts: Sequence[Path], path: Path, *, spec: CatalogueSpec, overwrite: bool = False
) -> None:
    """Join parts, in order, into one catalogue in the format that the suffix of `path` names.

    All formats are written part by part, so that only one part is in memory. A
    ``.dataset`` is a directory that holds the parts themselves, as Parquet.

    Raises
    ------
    ConfigError
        If the suffix is not one of a known format.
    OutputExists
        If `path` exists and `overwrite` is false.
    """
    if _format(path).write is parquet.write_dataset:
        with writing(path, overwrite=overwrite) as partial:
            partial.mkdir()
            for number, part in enumerate(parts):
                shutil.copyfile(part, partial / parquet.part_name(number))
        return
    write_stored(of_parts(parts, path, spec), path, overwrite)


def of_parts(parts: Sequence[Path], path: Path, spec: CatalogueSpec) -> StoredCatalogue:
    """Return parts, in order, as one catalogue that is read in blocks, named `path` in messages."""

    def read(names: list[str], start: int) -> "Iterator[pa.Table]":
        return after(start, (read_table(part, names) for part in parts))

    return StoredCatalogue(path, spec.columns, spec.metadata, sum(map(n_rows, parts)), read)


def write_stored(catalogue: StoredCatalogue, path: Path, overwrite: bool = False) -> None:
    """Write a catalogue in the format that the suffix of `path` names, block by block.

    Raises
    ------
    ConfigError
        If the suffix is not one of a known format.
    OutputExists
        If `path` exists and `overwrite` is false.
    InputFileError
        If a column holds anything but one number, truth or text in a row.
    """
    write = _format(path).write
    for column in catalogue.columns:
        if column.kind == "other":
            raise InputFileError(
                f"{catalogue.path}, column {column.name!r} holds lists or the like; a catalogue "
                "has one number or text in a row, so take the column out"
            )
    with writing(path, overwrite=overwrite) as partial:
        write(partial, catalogue)


def _arrow(spec: CatalogueSpec, rows: Rows) -> "pa.Table":
    import pyarrow as pa

    arrays = {c.name: arrow_array(rows[c.name]).cast(arrow_type(c)) for c in spec.columns}
    kinds = votable.kinds_of_blocks(spec.columns, [pa.table(arrays)])
    schema = parquet.schema(spec.columns, spec.metadata, kinds)
    return pa.Table.from_arrays(list(arrays.values()), schema=schema)


@dataclass(frozen=True)
class _Format:
    write: Callable[[Path, StoredCatalogue], None]
    open: Callable[[Path], StoredCatalogue]


_FORMATS = {
    ".fits": _Format(fits_table.write_fits, fits_table.open_catalogue),
    ".parquet": _Format(parquet.write_parquet, parquet.open_catalogue),
    ".vot": _Format(votable.write_votable, votable.open_catalogue),
    ".ecsv": _Format(ecsv.write_ecsv, ecsv.open_catalogue),
    ".dataset": _Format(parquet.write_dataset, parquet.open_catalogue),
}

SUFFIXES: tuple[str, ...] = tuple(_FORMATS)
"""Suffixes of the formats that a catalogue may have."""


def _format(path: Path) -> _Format:
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(
            f"cannot tell the format of the catalogue {path.name!r}: "
            f"its name must end in {', '.join(_FORMATS)}"
        )
    return _FORMATS[path.suffix.lower()]
