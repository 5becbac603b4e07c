"""Catalogues of stellar labels in FITS, Parquet (a file or a directory of parts), VOTable and ECSV.

Name, unit, UCD and description of every column come from `maury.labels.definitions`,
`maury.labels.columns` and `maury.labels.flags`; provenance and the mark of simulated data stand in
the metadata of every format.
"""

import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maury.errors import ConfigError, InputFileError
from maury.io.arrays import AnyArray
from maury.io.files import writing
from maury.io.limits import check_columns
from maury.io.opening import check_ecsv, check_votable, open_fits
from maury.io.parquet import column_sizes, n_rows, read_table, write_table
from maury.io.source_table import check_text_width
from maury.io.tables import check_parquet_column, open_parquet
from maury.io.units import described, written
from maury.labels import columns as columns_module
from maury.labels.columns import Column
from maury.labels.definitions import Label
from maury.labels.flags import FLAG_DTYPE, Flag
from maury.prediction import votable

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
        error_parts: bool = False,
        by_star: bool = False,
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
        error_parts : bool
            Whether each error is followed by its two parts, `maury.labels.columns.ERROR_PARTS`.
        by_star : bool
            Whether a row is a star, with the number of its spectra.
        """
        known = columns_module.known(labels)
        present = set(survey_columns)
        pairs = combinations(labels, 2) if correlations else ()
        groups = chain.from_iterable(
            _label_columns(label, quantiles, error_parts) for label in labels
        )
        chosen = (
            known["id"],
            *((columns_module.N_SPECTRA,) if by_star else ()),
            *groups,
            *(columns_module.for_correlation(*pair) for pair in pairs),
            columns_module.FLAGS,
            columns_module.WARN,
            *(columns_module.COVERAGE if coverage else ()),
            known["snr"],
            *(known[name] for name in columns_module.IN_CATALOGUE if name in present),
        )
        flags = {
            str(flag.name): {"bit": bit, "warns": flag.warns, "text": flag.text}
            for bit, flag in enumerate(Flag)
        }
        return cls(chosen, {**metadata, "flags": flags})


def _label_columns(label: Label, quantiles: bool, error_parts: bool) -> list[Column]:
    columns = [columns_module.for_label(label), columns_module.for_label_error(label)]
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
    def read(cls, path: Path | str) -> "Catalogue":
        """Read a catalogue that `maury` wrote, whatever its format.

        Raises
        ------
        ConfigError
            If the suffix is not one of a known format.
        InputFileError
            If the file cannot be read.
        """
        path = Path(path)
        read = _format(path).read
        try:
            table, metadata = read(path)
        except (ConfigError, InputFileError):
            raise
        except Exception as error:
            raise InputFileError(f"cannot read the catalogue {path}: {error}") from error
        if not isinstance(metadata, dict):
            raise InputFileError(f"{path} has metadata that maury did not write")
        if "flags" in table.colnames and table["flags"].dtype.kind in "iu":
            # Those of earlier versions have 32 bits, too few for what their flags are asked for.
            about = table["flags"].info
            table["flags"] = table["flags"].astype(FLAG_DTYPE)
            table["flags"].info = about
        return cls(table, metadata)

    def __len__(self) -> int:
        return len(self.table)

    def __str__(self) -> str:
        mark = "SIMULATED " if self.simulated else ""
        lines = [
            f"  {name:<16} {self.table[name].unit or '':<6} {self.table[name].description}"
            for name in self.table.colnames
        ]
        return "\n".join([f"{mark}catalogue of {len(self)} rows", *lines])

    @property
    def simulated(self) -> bool:
        """Whether the spectra were simulated."""
        return bool(self.metadata.get("simulated", False))


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
    write = _format(path).write
    with writing(path, overwrite=overwrite) as partial:
        write(partial, spec, parts)


def _arrow_type(column: Column) -> "pa.DataType":
    import pyarrow as pa

    return {
        "str": pa.string(),
        "bool": pa.bool_(),
        "int32": pa.int32(),
        "int64": pa.int64(),
    }.get(column.kind, pa.float64())


def _schema(spec: CatalogueSpec, kinds: Mapping[str, tuple[str, str]]) -> "pa.Schema":
    """Return types and metadata; `kinds` are those of strings, of `maury.prediction.votable`."""
    import pyarrow as pa

    fields = [
        pa.field(
            column.name,
            _arrow_type(column),
            metadata={"unit": column.unit, "ucd": column.ucd, "description": column.description},
        )
        for column in spec.columns
    ]
    declared = votable.without_data(spec.columns, spec.metadata, kinds)
    return pa.schema(
        fields,
        metadata={
            "maury": json.dumps(dict(spec.metadata)),
            # VOParquet 1.0: units and UCDs that Parquet has no place for travel as a VOTable
            # without rows.
            "IVOA.VOTable-Parquet.version": "1.0",
            "IVOA.VOTable-Parquet.content": declared,
            # astropy reads the widths of strings here.
            **{f"table::len::{name}": size for name, (_, size) in kinds.items()},
        },
    )


def _arrow(spec: CatalogueSpec, rows: Rows) -> "pa.Table":
    import pyarrow as pa

    arrays = {c.name: pa.array(rows[c.name], type=_arrow_type(c)) for c in spec.columns}
    kinds = votable.string_kinds(spec.columns, [pa.table(arrays)])
    return pa.Table.from_arrays(list(arrays.values()), schema=_schema(spec, kinds))


def _tables(spec: CatalogueSpec, parts: Iterable[Path]) -> Iterator["Table"]:
    """Yield parts as astropy tables with units, UCDs and descriptions."""
    for part in parts:
        yield _astropy_table(spec.columns, read_table(part))


def _astropy_table(columns: Sequence[Column], data: "pa.Table") -> "Table":
    """Return arrow columns as an astropy table."""
    from astropy.table import Table

    table = Table()
    for column in columns:
        values = data[column.name].to_numpy()
        if column.kind == "str":
            values = values.astype(np.str_)
        table[column.name] = values
        table[column.name].description = column.description
        table[column.name].meta["ucd"] = column.ucd
        if column.unit:
            table[column.name].unit = column.unit
    return table


def _write_parquet(path: Path, spec: CatalogueSpec, parts: Sequence[Path]) -> None:
    import pyarrow.parquet as pq

    kinds = votable.string_kinds(spec.columns, votable.strings_of(spec.columns, parts))
    schema = _schema(spec, kinds)
    with (
        path.open("wb") as file,
        pq.ParquetWriter(file, schema, write_page_checksum=True) as writer,
    ):
        for part in parts:
            writer.write_table(read_table(part).cast(schema))


def _write_dataset(path: Path, spec: CatalogueSpec, parts: Sequence[Path]) -> None:
    """Write a directory of Parquet files, whose names sort in the order of the rows."""
    path.mkdir()
    for number, part in enumerate(parts):
        shutil.copyfile(part, path / f"part-{number:06d}.parquet")


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def _check_parts(path: Path) -> None:
    """Refuse Parquet files that unfold to absurdly many bytes in memory."""
    for part in _files(path):
        with ExitStack() as stack:
            sizes = column_sizes(part)
            check_columns(sizes, part)
            for name in open_parquet(part, stack).schema_arrow.names:
                check_parquet_column(sizes, name, part)


_ARROW_KINDS = {"string": "str", "bool": "bool", "int32": "int32", "int64": "int64"}


def _read_parquet(path: Path) -> "tuple[Table, dict[str, Any]]":
    import pyarrow as pa

    _check_parts(path)
    tables = [read_table(part) for part in _files(path)]
    data = pa.concat_tables(tables) if tables else pa.table({})
    for name in data.column_names:
        check_text_width(data[name], f"{path}, column {name!r}")
    header = (data.schema.metadata or {}).get(b"maury")
    if header is None:
        raise InputFileError(f"{path} is a Parquet file, but not a catalogue written by maury")
    columns = []
    for field in data.schema:
        about = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        kind = _ARROW_KINDS.get(str(field.type), "float64")
        columns.append(Column(field.name, about["unit"], about["ucd"], about["description"], kind))
    return _astropy_table(columns, data), json.loads(header)


_FITS_BLOCK = 2880
"""Bytes of a block of a FITS file (FITS standard 4.0, section 3.1)."""


def _write_fits(path: Path, spec: CatalogueSpec, parts: Sequence[Path]) -> None:
    """Write a binary table part by part: only one part is in memory."""
    widths = _string_widths(spec, parts)
    # FITS is big-endian, and a logical is the letter T or F in one byte (standard 4.0, section
    # 7.3).
    kinds = {"float64": ">f8", "int32": ">i4", "int64": ">i8", "bool": "S1"}
    forms = [kinds.get(c.kind) or f"S{widths[c.name]}" for c in spec.columns]
    record = np.dtype([(c.name, form) for c, form in zip(spec.columns, forms, strict=True)])
    size = 0
    with path.open("wb") as file:
        file.write(_primary_header(spec))
        file.write(_table_header(spec, record, sum(map(n_rows, parts))))
        for part in parts:
            data = read_table(part)
            rows = np.empty(len(data), dtype=record)
            for column in spec.columns:
                rows[column.name] = _fits_values(data[column.name], column.kind)
            file.write(rows.tobytes())
            size += rows.nbytes
        # A data unit is filled up to whole blocks, else readers call the file truncated.
        file.write(b"\0" * (-size % _FITS_BLOCK))


def _string_widths(spec: CatalogueSpec, parts: Sequence[Path]) -> dict[str, int]:
    """Longest string of each column of strings, at least 1, as FITS encodes it."""
    names = [column.name for column in spec.columns if column.kind == "str"]
    widths = dict.fromkeys(names, 1)
    for part in parts:
        data = read_table(part, names)
        for name in names:
            widths[name] = max(widths[name], _fits_text(data[name]).itemsize)
    return widths


def _fits_values(values: Any, kind: str) -> AnyArray:
    """Return an arrow column as FITS has it, but for the order of bytes."""
    if kind == "str":
        return _fits_text(values)
    if kind == "bool":
        return np.where(values.to_numpy(), b"T", b"F")
    return np.asarray(values.to_numpy())


def _fits_text(values: Any) -> NDArray[np.bytes_]:
    """Encode an arrow column of strings for FITS: what is not ASCII is a backslash escape."""
    import pyarrow.compute as pc

    text = values.to_numpy().astype(np.str_)
    plain = pc.all(pc.string_is_ascii(values)).as_py()
    # A backslash in plain text would be taken for an escape when it is read, so that it is escaped
    # as well.
    if plain is not False and not pc.any(pc.match_substring(values, "\\")).as_py():
        return np.asarray(text.astype(np.bytes_))
    return np.asarray(np.char.encode(text, "unicode_escape"))


def _table_header(spec: CatalogueSpec, record: np.dtype[Any], n_row: int) -> bytes:
    """Return the header of the binary table of rows of the type `record`."""
    from astropy.io import fits

    codes = {"float64": "D", "int32": "J", "int64": "K", "bool": "L"}
    columns = [
        fits.Column(
            column.name,
            codes.get(column.kind) or f"{record[column.name].itemsize}A",
            unit=written(column.unit, "fits")[0] or None,
            null=votable.NULLS.get(column.kind),
        )
        for column in spec.columns
    ]
    header = fits.BinTableHDU.from_columns(columns, nrows=0, name="LABELS").header
    assert header["NAXIS1"] == record.itemsize
    header["NAXIS2"] = n_row
    header["SIMULATE"] = _simulated_card(spec)
    for number, column in enumerate(spec.columns, start=1):
        header[f"TUCD{number}"] = column.ucd
        header[f"TCOMM{number}"] = column.description + written(column.unit, "fits")[1]
    return bytes(header.tostring().encode("ascii"))


def _primary_header(spec: CatalogueSpec) -> bytes:
    from astropy.io import fits

    header = fits.PrimaryHDU().header
    header["ORIGIN"] = ("maury", "program that wrote this file")
    header["SIMULATE"] = _simulated_card(spec)
    for name, about in spec.metadata.get("flags", {}).items():
        kind = "warns" if about["warns"] else "informs"
        header.add_comment(f"flags bit {about['bit']} ({kind}) {name}: {about['text']}")
    text = json.dumps(dict(spec.metadata), ensure_ascii=True)
    # A HISTORY card holds 72 characters, of which trailing blanks are lost: hence the bar at its
    # end.
    for first in range(0, len(text), 60):
        header.add_history("maury:" + text[first : first + 60] + "|")
    return bytes(header.tostring().encode("ascii"))


def _simulated_card(spec: CatalogueSpec) -> tuple[bool, str]:
    return bool(spec.metadata.get("simulated", False)), "whether the spectra are simulated"


def _read_fits(path: Path) -> "tuple[Table, dict[str, Any]]":
    from astropy.table import Table

    with ExitStack() as stack:
        hdus = open_fits(path, stack)
        header = hdus[0].header
        lines = [str(line) for line in header.get("HISTORY", [])]
        text = "".join(line[6:].removesuffix("|") for line in lines if line.startswith("maury:"))
        if not text or len(hdus) < 2:
            raise InputFileError(f"{path} is a FITS file, but not a catalogue written by maury")
        about = hdus[1].header
        table = Table(hdus[1].data)
    for number, name in enumerate(table.colnames, start=1):
        column = table[name]
        if column.dtype.kind in "SU":
            escaped = np.char.encode(np.asarray(column).astype(np.str_), "ascii")
            table[name] = np.char.decode(escaped, "unicode_escape")
        unit, words = about.get(f"TUNIT{number}"), about.get(f"TCOMM{number}", "")
        table[name].unit, table[name].description = described(unit, words)
        table[name].meta["ucd"] = about.get(f"TUCD{number}", "")
    return table, json.loads(text)


def _write_ecsv(path: Path, spec: CatalogueSpec, parts: Sequence[Path]) -> None:
    """Write text part by part; each but the first leaves out its header."""
    with path.open("w", encoding="utf-8") as file:
        for number, table in enumerate(_tables(spec, parts)):
            table.meta = {"maury": dict(spec.metadata)}
            buffer = io.StringIO()
            table.write(buffer, format="ascii.ecsv")
            text = buffer.getvalue()
            if number:
                names = re.search(r"^[^#].*\n", text, flags=re.MULTILINE)
                text = text[names.end() :] if names else ""
            file.write(text)


def _read_ecsv(path: Path) -> "tuple[Table, dict[str, Any]]":
    from astropy.table import Table

    check_ecsv(path)
    table = Table.read(path, format="ascii.ecsv", encoding="utf-8")
    if "maury" not in table.meta:
        raise InputFileError(f"{path} is an ECSV file, but not a catalogue written by maury")
    return _filled(table), dict(table.meta["maury"])


def _write_votable(path: Path, spec: CatalogueSpec, parts: Sequence[Path]) -> None:
    votable.write_votable(path, spec.columns, spec.metadata, parts)


def _read_votable(path: Path) -> "tuple[Table, dict[str, Any]]":
    check_votable(path)
    table, metadata = votable.read_votable(path)
    if metadata is None:
        raise InputFileError(f"{path} is a VOTable, but not a catalogue written by maury")
    table = _filled(table)
    for name in table.colnames:
        unit, text = str(table[name].unit or ""), str(table[name].description)
        table[name].unit, table[name].description = described(unit or None, text)
    return table, metadata


def _filled(table: "Table") -> "Table":
    """Turn masked values into NaN or empty strings, which is how a catalogue says missing."""
    for name in table.colnames:
        if hasattr(table[name], "mask"):
            kind = table[name].dtype.kind
            empty: Any = np.nan if kind == "f" else "" if kind in "UO" else 0
            table[name] = table[name].filled(empty)
        if table[name].dtype.kind == "O":
            table[name] = np.asarray(table[name]).astype(np.str_)
    return table


@dataclass(frozen=True)
class _Format:
    write: Callable[[Path, CatalogueSpec, Sequence[Path]], None]
    read: Callable[[Path], "tuple[Table, dict[str, Any]]"]


_FORMATS = {
    ".fits": _Format(_write_fits, _read_fits),
    ".parquet": _Format(_write_parquet, _read_parquet),
    ".vot": _Format(_write_votable, _read_votable),
    ".ecsv": _Format(_write_ecsv, _read_ecsv),
    ".dataset": _Format(_write_dataset, _read_parquet),
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
