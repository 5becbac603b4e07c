"""VOTables of catalogues: declared from columns, rows streamed as BINARY2.

The same declaration without rows is what VOParquet keeps in the metadata of a Parquet file.
"""

import base64
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from maury.errors import InputFileError
from maury.io.arrays import AnyArray
from maury.io.limits import current
from maury.io.units import described, written
from maury.io.votable_guard import check_votable
from maury.labels.columns import Column
from maury.prediction.ecsv import filled
from maury.prediction.stored import BLOCK_ROWS, StoredCatalogue, after, arrow_table, of_table

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.io.votable.tree import Field

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
_TAIL = b"     </STREAM>\n    </BINARY2>\n   </DATA>\n" + _FOOT.encode()
_COUNT = re.compile(rb'(<TABLE name="labels") nrows="([0-9]{1,12})"')
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


def write_votable(path: Path, catalogue: StoredCatalogue) -> None:
    """Write a catalogue as one VOTable, block by block: only one is in memory."""
    kinds = string_kinds(catalogue)
    head = _declaration(catalogue.columns, catalogue.metadata, kinds, n_row=len(catalogue))
    rest = b""
    with path.open("wb") as file:
        file.write(f"{head}   <DATA>\n    <BINARY2>\n     ".encode() + _STREAM + b"\n")
        for block in catalogue.blocks():
            rows = rest + _binary(catalogue.columns, block, kinds).tobytes()
            # Only whole lines are encoded: base64 of pieces joins to that of the whole at multiples
            # of three bytes.
            whole = len(rows) - len(rows) % _BASE64_LINE
            file.write(base64.encodebytes(rows[:whole]))
            rest = rows[whole:]
        file.write(base64.encodebytes(rest))
        file.write(_TAIL)


def open_catalogue(path: Path) -> StoredCatalogue:
    """Open a catalogue in VOTable.

    Rows that `write_votable` has written are read in blocks; those of other programs, which may
    lie anywhere in a document, by astropy, at once.
    """
    from astropy.io.votable import parse

    check_votable(path)
    head = _head(path)
    counted = _COUNT.search(head)
    # astropy makes room for the rows that a table promises.
    content = _COUNT.sub(rb"\1", head) + _TAIL if counted else path.read_bytes()
    document = parse(io.BytesIO(content))
    infos = [i.value for r in document.resources for i in r.infos if i.name == "maury"]
    if not infos:
        raise InputFileError(f"{path} is a VOTable, but not a catalogue written by maury")
    first = document.get_first_table()
    record = _record_of(first.fields) if counted else None
    about = of_table(path, filled(first.to_table(use_names_over_ids=True)), json.loads(infos[0]))
    about = replace(about, columns=tuple(map(_described, about.columns)))
    if counted is None:
        return about
    if record is None:
        raise InputFileError(f"{path} has rows of no fixed length, which maury does not write")

    def read(names: list[str], start: int) -> "Iterator[pa.Table]":
        fields = [field for field in first.fields if field.name in names]
        rows = _decoded(path, len(head), record)
        return after(start, (arrow_table({f.name: _values(f, r) for f in fields}) for r in rows))

    return replace(about, n_row=int(counted[2]), read=read)


def _head(path: Path) -> bytes:
    """Return what stands before the rows that `write_votable` wrote, or nothing."""
    with path.open("rb") as file:
        head = file.read(current().head_bytes)
        file.seek(max(file.seek(0, 2) - len(_TAIL), 0))
        ours = file.read() == _TAIL
    head = head[: head.find(_STREAM) + len(_STREAM)] if ours and _STREAM in head else b""
    return head if (head.count(b"<STREAM"), head.count(b"<BINARY2>")) == (1, 1) else b""


def _decoded(path: Path, begin: int, record: np.dtype[Any]) -> Iterator[NDArray[np.void]]:
    """Yield whole rows of the text in base64 that begins there and ends before the tail."""
    text = rows = b""
    size = BLOCK_ROWS * record.itemsize * 4 // 3
    with path.open("rb") as file:
        left = file.seek(0, 2) - len(_TAIL) - begin
        file.seek(begin)
        while left > 0:
            piece = file.read(min(left, size))
            left -= len(piece)
            text += piece.translate(None, b" \t\r\n")
            whole = len(text) - len(text) % 4
            rows += base64.b64decode(text[:whole], validate=True)
            text = text[whole:]
            n_row = len(rows) // record.itemsize
            yield np.frombuffer(rows, record, n_row)
            rows = rows[n_row * record.itemsize :]
    if text or rows:
        raise InputFileError(f"{path} ends within a row; it is cut short or damaged")


def _described(column: Column) -> Column:
    unit, text = described(column.unit or None, column.description)
    return replace(column, unit=unit or "", description=text)


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


def string_kinds(catalogue: StoredCatalogue) -> dict[str, tuple[str, str]]:
    """Return VOTable's type and length of each column of strings: the longest sets the length."""
    names = [column.name for column in catalogue.columns if column.kind == "str"]
    return kinds_of_blocks(catalogue.columns, catalogue.blocks(names) if names else ())


def kinds_of_blocks(
    columns: Sequence[Column], blocks: "Iterable[pa.Table]"
) -> dict[str, tuple[str, str]]:
    """Return the same of blocks, which have all columns of strings."""
    import pyarrow.compute as pc

    names = [column.name for column in columns if column.kind == "str"]
    width, plain = dict.fromkeys(names, 1), dict.fromkeys(names, True)
    for table in blocks:
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


def _values(field: "Field", rows: NDArray[np.void]) -> AnyArray:
    values = rows[str(field.name)]
    if field.datatype == "char":
        return np.char.decode(values, "utf-8")
    if field.datatype == "unicodeChar":
        # numpy strips trailing null bytes, and the last byte of a character such as U+0100 is one.
        texts = [t + b"\0" * (len(t) % 2) for t in values.tolist()]
        return np.array([t.decode("utf-16-be") for t in texts], dtype=np.str_)
    return values == b"T" if field.datatype == "boolean" else values
