"""VOTables of catalogues: declared from columns, rows streamed as BINARY2.

The same declaration without rows is what VOParquet keeps in the metadata of a Parquet file.
"""

import base64
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from maury.io.parquet import n_rows, read_table
from maury.io.units import written
from maury.labels.columns import Column

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.io.votable.tree import Field
    from astropy.table import Table

NULLS = {"int32": -(2**31), "int64": -(2**63)}
"""What stands for a missing integer of a kind, in VOTable and FITS."""

_HEAD = """<?xml version="1.0" encoding="utf-8"?>
<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:schemaLocation="http://www.ivoa.net/xml/VOTable/v1.3 http://www.ivoa.net/xml/VOTable/v1.3">
 <RESOURCE type="results">
"""
_FOOT = "  </TABLE>\n </RESOURCE>\n</VOTABLE>\n"
_STREAM = b'<STREAM encoding="base64">'
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_BASE64_LINE = 57
"""Bytes of a line of base64, as the standard library writes it."""
_TYPES = {"bool": "boolean", "int32": "int", "int64": "long"}
_FORMS = {"boolean": "S1", "int": ">i4", "long": ">i8", "double": ">f8"}
_POSITIONS = ("pos.eq.ra", "pos.eq.dec")


def without_data(
    columns: Sequence[Column],
    metadata: Mapping[str, Any],
    kinds: Mapping[str, tuple[str, str]],
) -> str:
    """Return the VOTable of a catalogue that keeps its rows elsewhere.

    Parameters
    ----------
    columns, metadata
        As of `write_votable`.
    kinds : mapping
        As of `string_kinds`; the lengths are stated as the largest.
    """
    largest = {name: (kind, f"{size}*") for name, (kind, size) in kinds.items()}
    return _declaration(columns, metadata, largest) + _FOOT


def write_votable(
    path: Path, columns: Sequence[Column], metadata: Mapping[str, Any], parts: Sequence[Path]
) -> None:
    """Write Parquet files of rows, in order, as one VOTable; only one is in memory.

    Parameters
    ----------
    path : Path
        File to write.
    columns : sequence of Column
        Columns in order; every part has them.
    metadata : mapping
        Plain JSON, kept in an ``INFO``.
    parts : sequence of Path
        Parquet files.
    """
    kinds = string_kinds(columns, strings_of(columns, parts))
    total = sum(n_rows(part) for part in parts)
    head = _declaration(columns, metadata, kinds, n_row=total)
    rest = b""
    with path.open("wb") as file:
        file.write(f"{head}   <DATA>\n    <BINARY2>\n     ".encode() + _STREAM + b"\n")
        for part in parts:
            rows = rest + _binary(columns, read_table(part), kinds).tobytes()
            # Only whole lines are encoded: base64 of pieces joins to that of the whole at multiples
            # of three bytes.
            whole = len(rows) - len(rows) % _BASE64_LINE
            file.write(base64.encodebytes(rows[:whole]))
            rest = rows[whole:]
        file.write(base64.encodebytes(rest))
        file.write(b"     </STREAM>\n    </BINARY2>\n   </DATA>\n" + _FOOT.encode())


def read_votable(path: Path) -> "tuple[Table, dict[str, Any] | None]":
    """Read the first table of a VOTable, and what an ``INFO`` says of it, or None.

    Rows that were written by `write_votable` are read at once, others by astropy.
    """
    from astropy.io.votable import parse

    content = path.read_bytes()
    begin = content.find(_STREAM)
    end = content.find(b"</STREAM>", begin)
    streams = (content.count(b"<STREAM"), content.count(b"<BINARY2>"))
    fast = 0 < begin < end and streams == (1, 1)
    header = content[: begin + len(_STREAM)] + content[end:] if fast else content
    document = parse(io.BytesIO(header))
    infos = [i.value for r in document.resources for i in r.infos if i.name == "maury"]
    about = json.loads(infos[0]) if infos else None
    first = document.get_first_table()
    if not fast or about is None:
        whole = parse(io.BytesIO(content)).get_first_table()
        return whole.to_table(use_names_over_ids=True), about
    record = _record_of(first.fields)
    rows = base64.b64decode(content[begin + len(_STREAM) : end])
    if record is None or len(rows) % record.itemsize:
        whole = parse(io.BytesIO(content)).get_first_table()
        return whole.to_table(use_names_over_ids=True), about
    return _table(first.fields, np.frombuffer(rows, record)), about


def _declaration(
    columns: Sequence[Column],
    metadata: Mapping[str, Any],
    kinds: Mapping[str, tuple[str, str]],
    *,
    n_row: int | None = None,
) -> str:
    """Return everything before the rows."""
    simulated = bool(metadata.get("simulated", False))
    spectra = "SIMULATED spectra" if simulated else "spectra"
    infos = {"maury": json.dumps(dict(metadata)), "simulated": str(simulated).lower()}
    lines = [f"  <DESCRIPTION>Stellar labels of {spectra}, by maury</DESCRIPTION>"]
    lines += [f"  <INFO name={_quoted(k)} value={_quoted(v)}/>" for k, v in infos.items()]
    placed = any(column.ucd.startswith(_POSITIONS) for column in columns)
    if placed:
        lines.append('  <COOSYS ID="icrs" system="ICRS"/>')
    count = "" if n_row is None else f' nrows="{n_row}"'
    lines.append(f'  <TABLE name="labels"{count}>')
    lines += [_field(column, kinds.get(column.name)) for column in columns]
    return _HEAD + "\n".join(lines) + "\n"


def _field(column: Column, kind: tuple[str, str] | None) -> str:
    datatype, size = kind or (_TYPES.get(column.kind, "double"), "")
    attributes = {"ID": column.name, "name": column.name, "datatype": datatype}
    if size:
        attributes["arraysize"] = size
    unit, note = written(column.unit, "vounit")
    if unit:
        attributes["unit"] = unit
    attributes["ucd"] = column.ucd
    if column.ucd.startswith(_POSITIONS):
        attributes["ref"] = "icrs"
    text = " ".join(f"{k}={_quoted(v)}" for k, v in attributes.items())
    missing = NULLS.get(column.kind)
    null = "" if missing is None else f'\n    <VALUES null="{missing}"/>'
    described = escape(_CONTROL.sub(" ", column.description + note))
    return f"   <FIELD {text}>\n    <DESCRIPTION>{described}</DESCRIPTION>{null}\n   </FIELD>"


def _quoted(value: str) -> str:
    # XML 1.0 forbids these characters even as references.
    return quoteattr(_CONTROL.sub(" ", value))


def string_kinds(
    columns: Sequence[Column], tables: "Iterable[pa.Table]"
) -> dict[str, tuple[str, str]]:
    """Return VOTable's type and length of each column of strings: the longest sets the length."""
    import pyarrow.compute as pc

    names = [column.name for column in columns if column.kind == "str"]
    width, plain = dict.fromkeys(names, 1), dict.fromkeys(names, True)
    for table in tables:
        for name in names:
            longest = pc.max(pc.utf8_length(table[name])).as_py() or 0
            if pc.all(pc.string_is_ascii(table[name])).as_py() is False:
                plain[name] = False
                texts = table[name].to_pylist()
                # unicodeChar counts units of UTF-16, of which a character beyond the basic plane
                # takes two.
                longest = max(len(text.encode("utf-16-be")) // 2 for text in texts)
            width[name] = max(width[name], longest)
    return {n: ("char" if plain[n] else "unicodeChar", str(width[n])) for n in names}


def strings_of(columns: Sequence[Column], parts: Iterable[Path]) -> "Iterator[pa.Table]":
    """Yield the columns of strings of Parquet files."""
    names = [column.name for column in columns if column.kind == "str"]
    for part in parts if names else ():
        yield read_table(part, names)


def _record(columns: Sequence[Column], kinds: Mapping[str, tuple[str, str]]) -> np.dtype[Any]:
    """Type of a row in BINARY2: a bit per column that may say null, then the values."""
    fields: list[Any] = [("", "u1", (-(-len(columns) // 8),))]
    for column in columns:
        datatype, size = kinds.get(column.name) or (_TYPES.get(column.kind, "double"), "")
        fields.append((column.name, _form(datatype, size)))
    return np.dtype(fields)


def _form(datatype: str, size: str) -> str:
    if datatype in ("char", "unicodeChar"):
        return f"S{int(size) * (1 if datatype == 'char' else 2)}"
    return _FORMS[datatype]


def _binary(
    columns: Sequence[Column], data: "pa.Table", kinds: Mapping[str, tuple[str, str]]
) -> NDArray[np.void]:
    record = _record(columns, kinds)
    rows = np.zeros(len(data), dtype=record)
    for column in columns:
        values = data[column.name]
        if column.kind == "bool":
            rows[column.name] = np.where(values.to_numpy(), b"T", b"F")
        elif column.kind == "str":
            rows[column.name] = _text(values, kinds[column.name][0])
        else:
            rows[column.name] = values.to_numpy()
    return rows


def _text(values: "pa.ChunkedArray", datatype: str) -> NDArray[np.bytes_]:
    """Encode strings as ASCII, or as big-endian UTF-16."""
    code = "ascii" if datatype == "char" else "utf-16-be"
    return np.array([text.encode(code) for text in values.to_pylist()], dtype=np.bytes_)


def _record_of(fields: "Sequence[Field]") -> np.dtype[Any] | None:
    """Type of a row of these fields; None if a row has no fixed length."""
    record: list[Any] = [("", "u1", (-(-len(fields) // 8),))]
    for field in fields:
        size, text = str(field.arraysize or ""), field.datatype in ("char", "unicodeChar")
        if text and size.isdecimal():
            record.append((str(field.name), _form(field.datatype, size)))
        elif field.datatype in _FORMS and not size:
            record.append((str(field.name), _FORMS[field.datatype]))
        else:
            return None
    return np.dtype(record)


def _table(fields: "Sequence[Field]", rows: NDArray[np.void]) -> "Table":
    from astropy.table import Table

    table = Table()
    for field in fields:
        name, values = str(field.name), rows[str(field.name)]
        if field.datatype == "char":
            table[name] = np.char.decode(values, "utf-8")
        elif field.datatype == "unicodeChar":
            # numpy strips trailing null bytes, and the last byte of a character such as U+0100 is
            # one.
            texts = [t + b"\0" * (len(t) % 2) for t in values.tolist()]
            table[name] = np.array([t.decode("utf-16-be") for t in texts], dtype=np.str_)
        elif field.datatype == "boolean":
            table[name] = values == b"T"
        else:
            table[name] = values.astype(values.dtype.newbyteorder("="))
        table[name].unit = field.unit
        table[name].description = field.description
        table[name].meta["ucd"] = field.ucd or ""
    return table
