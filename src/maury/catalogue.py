"""Catalogues of stellar labels in FITS, Parquet (a file or a directory of parts), VOTable and ECSV.

Name, unit, UCD and description of every column come from `maury.labels`, `maury.columns` and
`maury.flags`; provenance and the mark of simulated data stand in the metadata of every format.
"""

import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maury import columns as columns_module
from maury.columns import Column
from maury.errors import ConfigError, InputFileError
from maury.files import writing
from maury.flags import Flag
from maury.labels import Label

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.table import Table

Rows = Mapping[str, NDArray[Any]]
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
    ) -> "CatalogueSpec":
        """Return the columns of a catalogue of these labels.

        Parameters
        ----------
        labels : sequence of Label
            Labels in the order of the catalogue; each is followed by its 1 sigma error.
        survey_columns : iterable of str
            Columns that the survey has; those of `maury.columns.IN_CATALOGUE` are repeated.
        metadata : mapping
            Provenance; the flags' texts are added.
        quantiles : bool
            Whether each error is followed by the quantiles of the label.
        correlations : bool
            Whether the correlations of the errors of all pairs of labels follow the labels.
        coverage : bool
            Whether the columns of `maury.columns.COVERAGE` follow the flags.
        """
        known = columns_module.known(labels)
        present = set(survey_columns)
        pairs = combinations(labels, 2) if correlations else ()
        groups = chain.from_iterable(_label_columns(label, quantiles) for label in labels)
        chosen = (
            known["id"],
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


def _label_columns(label: Label, quantiles: bool) -> list[Column]:
    columns = [columns_module.for_label(label), columns_module.for_label_error(label)]
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
    import pyarrow.parquet as pq

    with writing(path, overwrite=True) as partial:
        pq.write_table(_arrow(spec, rows), partial)


def count_true(part: Path, name: str) -> int:
    """Count the rows of a part whose boolean column is true."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    return pc.sum(pq.read_table(part, columns=[name])[name]).as_py() or 0


def assemble(
    parts: Sequence[Path], path: Path, *, spec: CatalogueSpec, overwrite: bool = False
) -> None:
    """Join parts, in order, into one catalogue in the format that the suffix of `path` names.

    FITS and Parquet are streamed part by part; VOTable and ECSV are built in memory. A
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

    return {"str": pa.string(), "bool": pa.bool_(), "int32": pa.int32()}.get(
        column.kind, pa.float64()
    )


def _schema(spec: CatalogueSpec) -> "pa.Schema":
    import pyarrow as pa

    fields = [
        pa.field(
            column.name,
            _arrow_type(column),
            metadata={"unit": column.unit, "ucd": column.ucd, "description": column.description},
        )
        for column in spec.columns
    ]
    return pa.schema(fields, metadata={"maury": json.dumps(dict(spec.metadata))})


def _arrow(spec: CatalogueSpec, rows: Rows) -> "pa.Table":
    import pyarrow as pa

    schema = _schema(spec)
    return pa.Table.from_arrays(
        [pa.array(rows[c.name], type=_arrow_type(c)) for c in spec.columns], schema=schema
    )


def _tables(spec: CatalogueSpec, parts: Iterable[Path]) -> Iterator["Table"]:
    """Yield parts as astropy tables with units, UCDs and descriptions."""
    import pyarrow.parquet as pq

    for part in parts:
        yield _astropy_table(spec.columns, pq.read_table(part))


def _astropy_table(columns: Sequence[Column], data: "pa.Table") -> "Table":
    from astropy.table import Table

    table = Table()
    for column in columns:
        values = data[column.name].to_numpy()
        table[column.name] = values.astype(np.str_) if column.kind == "str" else values
        table[column.name].description = column.description
        table[column.name].meta["ucd"] = column.ucd
        if column.unit:
            table[column.name].unit = column.unit
    return table


def _write_parquet(path: Path, spec: CatalogueSpec, parts: Sequence[Path]) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, _schema(spec)) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part, schema=_schema(spec)))


def _write_dataset(path: Path, spec: CatalogueSpec, parts: Sequence[Path]) -> None:
    """Write a directory of Parquet files, whose names sort in the order of the rows."""
    path.mkdir()
    for number, part in enumerate(parts):
        shutil.copyfile(part, path / f"part-{number:06d}.parquet")


def _read_parquet(path: Path) -> "tuple[Table, dict[str, Any]]":
    import pyarrow.parquet as pq

    data = pq.read_table(path)
    header = (data.schema.metadata or {}).get(b"maury")
    if header is None:
        raise InputFileError(f"{path} is a Parquet file, but not a catalogue written by maury")
    columns = []
    for field in data.schema:
        about = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        kind = {"string": "str", "bool": "bool", "int32": "int32"}.get(str(field.type), "float64")
        columns.append(Column(field.name, about["unit"], about["ucd"], about["description"], kind))
    return _astropy_table(columns, data), json.loads(header)


_FITS_BLOCK = 2880


def _write_fits(path: Path, spec: CatalogueSpec, parts: Sequence[Path]) -> None:
    """Write a binary table part by part: only one part is in memory."""
    widths = _string_widths(spec, parts)
    with path.open("wb") as file:
        file.write(_primary_header(spec))
        header, total = b"", 0
        start = file.tell()
        for table in _tables(spec, parts):
            this_header, data = _fits_bytes(_table_hdu(spec, table, widths))
            if not header:
                header = this_header
                file.write(header)
            file.write(data)
            total += len(table)
        file.write(b"\0" * (-(file.tell() - start) % _FITS_BLOCK))
        file.seek(start)
        file.write(_with_row_count(header, total))


def _string_widths(spec: CatalogueSpec, parts: Sequence[Path]) -> dict[str, int]:
    import pyarrow.parquet as pq

    names = [column.name for column in spec.columns if column.kind == "str"]
    widths = dict.fromkeys(names, 1)
    for part in parts:
        data = pq.read_table(part, columns=names)
        for name in names:
            widths[name] = max(widths[name], _fits_text(data[name].to_numpy()).itemsize)
    return widths


def _fits_text(values: NDArray[Any]) -> NDArray[np.bytes_]:
    """Encode strings for FITS, which takes ASCII only: others become backslash escapes."""
    return np.char.encode(values.astype(np.str_), "unicode_escape")


def _table_hdu(spec: CatalogueSpec, table: "Table", widths: Mapping[str, int]) -> Any:
    from astropy.io import fits

    codes = {"float64": "D", "int32": "J", "bool": "L"}
    columns = []
    for column in spec.columns:
        values = np.asarray(table[column.name])
        if column.kind == "str":
            values = _fits_text(values)
            form = f"{widths[column.name]}A"
        else:
            form = codes[column.kind]
        columns.append(fits.Column(column.name, form, array=values, unit=column.unit or None))
    hdu = fits.BinTableHDU.from_columns(columns, name="LABELS")
    for number, column in enumerate(spec.columns, start=1):
        hdu.header[f"TUCD{number}"] = column.ucd
        hdu.header[f"TCOMM{number}"] = column.description
    return hdu


def _fits_bytes(hdu: Any) -> tuple[bytes, bytes]:
    """Return the header and the unpadded data of a binary table as they stand on disk."""
    from astropy.io import fits

    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(buffer)
    raw = buffer.getvalue()
    with fits.open(io.BytesIO(raw)) as hdus:
        place = hdus[1].fileinfo()
        size = hdus[1].header["NAXIS1"] * hdus[1].header["NAXIS2"]
    start = place["datLoc"]
    return raw[place["hdrLoc"] : start], raw[start : start + size]


def _with_row_count(header: bytes, rows: int) -> bytes:
    from astropy.io import fits

    changed = fits.Header.fromstring(header)
    changed["NAXIS2"] = rows
    return bytes(changed.tostring().encode("ascii"))


def _primary_header(spec: CatalogueSpec) -> bytes:
    from astropy.io import fits

    header = fits.PrimaryHDU().header
    header["ORIGIN"] = ("maury", "program that wrote this file")
    header["SIMULATE"] = (bool(spec.metadata.get("simulated", False)), "simulated spectra")
    for name, about in spec.metadata.get("flags", {}).items():
        kind = "warns" if about["warns"] else "informs"
        header.add_comment(f"flags bit {about['bit']} ({kind}) {name}: {about['text']}")
    text = json.dumps(dict(spec.metadata), ensure_ascii=True)
    for first in range(0, len(text), 60):
        header.add_history("maury:" + text[first : first + 60] + "|")
    return bytes(header.tostring().encode("ascii"))


def _read_fits(path: Path) -> "tuple[Table, dict[str, Any]]":
    from astropy.io import fits
    from astropy.table import Table

    with path.open("rb") as file, fits.open(file, memmap=False) as hdus:
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
        table[name].unit = about.get(f"TUNIT{number}")
        table[name].description = about.get(f"TCOMM{number}", "")
        table[name].meta["ucd"] = about.get(f"TUCD{number}", "")
    return table, json.loads(text)


def _whole(spec: CatalogueSpec, parts: Sequence[Path]) -> "Table":
    from astropy.table import vstack

    return vstack(list(_tables(spec, parts)), join_type="exact", metadata_conflicts="silent")


def _write_ecsv(path: Path, spec: CatalogueSpec, parts: Sequence[Path]) -> None:
    table = _whole(spec, parts)
    table.meta = {"maury": dict(spec.metadata)}
    table.write(path, format="ascii.ecsv")


def _read_ecsv(path: Path) -> "tuple[Table, dict[str, Any]]":
    from astropy.table import Table

    table = Table.read(path, format="ascii.ecsv")
    if "maury" not in table.meta:
        raise InputFileError(f"{path} is an ECSV file, but not a catalogue written by maury")
    return _filled(table), dict(table.meta["maury"])


def _write_votable(path: Path, spec: CatalogueSpec, parts: Sequence[Path]) -> None:
    from astropy.io.votable import tree

    table = _whole(spec, parts)
    for column in spec.columns:
        # VOUnit has no dex: the number is as it is, and the text says so.
        if column.unit == "dex":
            table[column.name].unit = None
            table[column.name].description = f"{column.description} (dex)"
    document = tree.VOTableFile.from_table(table)
    resource = document.resources[0]
    resource.infos.append(tree.Info(name="maury", value=json.dumps(dict(spec.metadata))))
    resource.tables[0].name = "labels"
    resource.tables[0].format = "binary2"
    document.to_xml(str(path))


def _read_votable(path: Path) -> "tuple[Table, dict[str, Any]]":
    from astropy.io.votable import parse

    document = parse(path)
    infos = [i.value for r in document.resources for i in r.infos if i.name == "maury"]
    if not infos:
        raise InputFileError(f"{path} is a VOTable, but not a catalogue written by maury")
    table = _filled(document.get_first_table().to_table(use_names_over_ids=True))
    for name in table.colnames:
        if str(table[name].description).endswith(" (dex)"):
            table[name].description = table[name].description.removesuffix(" (dex)")
            table[name].unit = "dex"
    return table, json.loads(infos[0])


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
