"""A table as read: columns of numbers, texts and vectors, with missing values as NaN."""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from maury.errors import ColumnError, IdentifierError, suggestion
from maury.io.arrays import Float64Array, StrArray
from maury.io.limits import CHARACTER_BYTES, check_text
from maury.io.opening import reading
from maury.io.units import to_unit

_MISSING_TEXT = ("", "NA", "N/A", "null", "NULL", "None", "--", "-", "masked")
_NO_ARRAY = (*_MISSING_TEXT, "NaN", "nan", "[]", "()")
# As Gaia identifiers of 19 digits do: two stars become one.
_LARGEST_EXACT = 2.0**53
"""Beyond, a float64 skips whole numbers, so that an identifier has lost digits."""
# Whole numbers that went through floating point; 4102.5 may be a name.
_FLOAT = re.compile(r"[+-]?\d+(?:\.0*|(?:\.\d+)?[eE][+-]?\d+)")


@dataclass(frozen=True)
class SourceTable:
    """An open table; columns are read when they are asked for.

    Attributes
    ----------
    path : Path
        Its file.
    names : tuple of str
        Column names.
    n_row : int
        Number of rows, at least 1.
    units : mapping of str to str
        Units that the file states.
    raw : callable
        ``raw(name)`` is the column as its format gives it.
    """

    path: Path
    names: tuple[str, ...]
    n_row: int
    units: Mapping[str, str]
    raw: Callable[[str], Any]

    def check(self, name: str) -> str:
        """Return `name` if the table has such a column.

        Raises
        ------
        ColumnError
            With the nearest name.
        """
        if name not in self.names:
            raise ColumnError(
                f"{self.path} has no column {name!r}{suggestion(name, self.names)} "
                f"(it has {', '.join(self.names[:40])})"
            )
        return name

    @classmethod
    def of_arrays(cls, path: Path, arrays: Mapping[str, Any]) -> Self:
        """Wrap arrays in memory, of one length; `path` names them in messages."""
        n_row = len(next(iter(arrays.values())))
        return cls(path, tuple(arrays), n_row, {}, lambda name: np.ma.asanyarray(arrays[name]))

    def floats(self, name: str, *, index: int | None = None) -> Float64Array:
        """Return a column of numbers, shape (n_row,) float64, NaN where missing.

        Parameters
        ----------
        name : str
            The column.
        index : int, optional
            Which element (from 0) of a column that holds a vector a row.

        Raises
        ------
        ColumnError
            If it does not exist, or holds something else than one number a row.
        """
        with reading(self.path):
            values = self._element(self.raw(self.check(name)), name, index)
            what = f"{self.path}, column {name!r}"
            return _arrow_floats(values, what) if _is_arrow(values) else _floats(values, what)

    def converted(
        self, values: Float64Array, name: str, target: str, *, unit: str | None = None
    ) -> Float64Array:
        """Return values of a column in a unit; one that states none is in that unit already.

        Parameters
        ----------
        values : (n,) float64
            Of the column, as read.
        name : str
            The column.
        target : str
            The unit wanted.
        unit : str, optional
            That of the column; what the file states by default.

        Raises
        ------
        ColumnError
            If the column has a unit of another kind.
        """
        stated = self.units.get(name) if unit is None else unit
        try:
            return values if stated is None else to_unit(values, stated, target)
        except ValueError as error:
            raise ColumnError(f"{self.path}, column {name!r}: {error}; correct the unit") from error

    def vectors(self, name: str, size: int) -> Float64Array:
        """Return a column of arrays, shape (n_row, size) float64, NaN where missing.

        In a text table an array is written ``[0.1,0.2]`` or ``(0.1,0.2)``.

        Raises
        ------
        ColumnError
            If it does not exist, or an array has neither `size` values nor none.
        """
        with reading(self.path):
            values = self.raw(self.check(name))
            return _vectors(values, size, f"{self.path}, column {name!r}")

    def plain(self, name: str, *, index: int | None = None) -> Any:
        """Return a column as a masked array of numbers, truth values or texts, shape (n_row,).

        Integers stay integers; texts are free of blanks around them. A text table, which has no
        types, gives numbers where every value is one.

        Raises
        ------
        ColumnError
            As of `floats`.
        """
        with reading(self.path):
            values = self._element(self.raw(self.check(name)), name, index)
            what = f"{self.path}, column {name!r}"
            return _plain(values, what)

    def _element(self, values: Any, name: str, index: int | None) -> Any:
        if index is None:
            return values
        if _is_arrow(values):
            import pyarrow as pa
            from pyarrow import compute

            kind = values.type
            if pa.types.is_dictionary(kind) or not hasattr(kind, "value_type"):
                raise ColumnError(
                    f"{self.path}, column {name!r} holds one value a row; leave out 'index'"
                )
            lengths = compute.min(compute.list_value_length(values)).as_py()
            if index >= (lengths or 0):
                raise ColumnError(
                    f"{self.path}, column {name!r} has no element {index} in each row"
                )
            return compute.list_element(values, index)
        if values.ndim != 2 or index >= values.shape[1]:
            raise ColumnError(
                f"{self.path}, column {name!r} has shape {values.shape[1:]} a row, which has no "
                f"element {index}; correct 'index'"
            )
        return values[:, index]

    def texts(self, name: str) -> StrArray:
        """Return a column as text without blanks around it, shape (n_row,), empty where missing.

        Raises
        ------
        ColumnError
            If it does not exist, or holds something else than one value a row.
        IdentifierError
            If it holds numbers with fractions, or too large to be exact.
        """
        with reading(self.path):
            values = self.raw(self.check(name))
            what = f"{self.path}, column {name!r}"
            return _arrow_texts(values, what) if _is_arrow(values) else _texts(values, what)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_arrow(values: Any) -> bool:
    return type(values).__module__.startswith("pyarrow")


def _arrow_floats(values: Any, what: str) -> Float64Array:
    import pyarrow as pa
    from pyarrow import compute

    values = _short(values, what)
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        text = compute.utf8_trim_whitespace(values.cast(pa.string()))
        missing = compute.is_in(text, pa.array(_MISSING_TEXT))
        values = compute.if_else(missing, None, text)
    elif not (
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    ):
        raise ColumnError(f"{what} must hold one number a row, got {kind}")
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    try:
        # An unsafe cast rounds integers beyond 2^53, as every other format does.
        numbers = values.cast(pa.float64(), safe=False)
    except pa.ArrowInvalid as error:
        raise ColumnError(f"{what} must hold numbers: {error}; correct the file") from error
    return np.array(numbers.to_numpy(), dtype=np.float64)


def _arrow_texts(values: Any, what: str) -> StrArray:
    import pyarrow as pa
    from pyarrow import compute

    values = _short(values, what)
    kind = values.type
    if pa.types.is_floating(kind):
        return _texts(values.to_numpy(), what)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise ColumnError(f"{what} must hold one text a row, got {kind}")
    text = compute.utf8_trim_whitespace(compute.fill_null(values.cast(pa.string()), ""))
    return _whole_numbers(np.array(text.to_numpy(), dtype=np.str_), what)


def _whole_numbers(text: StrArray, what: str) -> StrArray:
    """Return texts; those that are floating-point numbers throughout as whole numbers.

    Programs write integers beside a missing one as 123.0 or 2.05e18, which name nothing.

    Raises
    ------
    IdentifierError
        If digits are lost.
    """
    known = text != ""
    if not (known.any() and _FLOAT.fullmatch(str(text[known.argmax()]))):
        return text
    if not all(_FLOAT.fullmatch(word) for word in text[known].tolist()):
        return text
    return _texts(np.ma.masked_array(np.where(known, text, "0").astype(float), mask=~known), what)


def _short(values: Any, what: str) -> Any:
    """Return arrow values without dictionary, if no text is too long for an identifier.

    Columns of text become as wide as their longest one.
    """
    import pyarrow as pa

    kind = values.type
    encoded = pa.types.is_dictionary(kind)
    if not (encoded or _is_text(kind)):
        return values
    check_text_width(values, what)
    return values.cast(kind.value_type) if encoded else values


def check_text_width(values: Any, what: str) -> None:
    """Refuse an arrow column whose texts are too long, or too unequal, for an array."""
    from pyarrow import compute

    longest = total = 0
    for chunk in getattr(values, "chunks", [values]):
        words = getattr(chunk, "dictionary", chunk)
        if _is_text(words.type):
            lengths = compute.binary_length(words)
            longest = max(longest, compute.max(lengths).as_py() or 0)
            each = lengths if words is chunk else lengths.take(chunk.indices)
            total += compute.sum(each).as_py() or 0
    check_text(longest, total, len(values), what)


def _floats(values: Any, what: str) -> Float64Array:
    import pyarrow as pa

    _one_a_row(values, what)
    if values.dtype.kind in "SUO":
        return _arrow_floats(pa.chunked_array([pa.array(_texts(values, what))]), what)
    if values.dtype.kind not in "fiub":
        raise ColumnError(f"{what} must hold numbers, got {values.dtype}")
    mask = np.ma.getmaskarray(values)
    return np.where(mask, np.nan, np.ma.getdata(values).astype(np.float64))


def _texts(values: Any, what: str) -> StrArray:
    _one_a_row(values, what)
    mask = np.ma.getmaskarray(values)
    data = np.ma.getdata(values)
    kind = data.dtype.kind
    if kind == "f":
        known = np.isfinite(data) & ~mask
        exact = np.where(known, data, 0.0)
        if np.any(exact != np.floor(exact)) or np.any(np.abs(exact) >= _LARGEST_EXACT):
            raise IdentifierError(
                f"{what}: identifiers are stored as floating-point numbers and have lost digits; "
                "store them as integers or text"
            )
        data, mask = exact.astype(np.int64), ~known
    elif kind == "O" and not all(isinstance(value, str | bytes) for value in data[~mask]):
        raise ColumnError(f"{what} holds objects, which are refused; store text or numbers")
    elif kind not in "SUOiu":
        raise ColumnError(f"{what} must hold text or whole numbers, got {data.dtype}")
    if kind in "SU":
        width = data.dtype.itemsize // (CHARACTER_BYTES if kind == "U" else 1)
        check_text(width, width * data.size, data.size, what)
    elif kind == "O":
        lengths = [len(value) for value in data[~mask]]
        check_text(max(lengths, default=0), sum(lengths), data.size, what)
    text = np.array([_decoded(v) for v in data], np.str_) if kind in "OS" else data.astype(np.str_)
    text = np.char.strip(np.where(mask, "", text))
    return text if kind in "fiu" else _whole_numbers(text, what)


def _vectors(values: Any, size: int, what: str) -> Float64Array:
    rows = values.to_pylist() if _is_arrow(values) else values
    out = np.full((len(rows), size), np.nan)
    for number, row in enumerate(rows):
        array = _one_vector(row, what)
        if array.size not in (0, size):
            raise ColumnError(
                f"{what} has {array.size} values in row {number}, expected {size}; correct 'size'"
            )
        if array.size:
            out[number] = array
    return out


def _one_vector(row: Any, what: str) -> Float64Array:
    if row is None or row is np.ma.masked:
        return np.empty(0)
    if isinstance(row, str | bytes):
        return parse_array(_decoded(row), what)
    if isinstance(row, list):
        row = [np.nan if value is None else value for value in row]
    array = np.ma.asanyarray(row)
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise ColumnError(f"{what} must hold an array of numbers a row, got {array.dtype}")
    return np.asarray(np.ma.filled(array.astype(np.float64), np.nan))


def parse_array(text: str, what: str) -> Float64Array:
    """Read an array written ``[0.1,0.2]`` or ``(0.1,0.2)``; a missing text has no values.

    Raises
    ------
    ColumnError
        If it is written otherwise; `what` names it.
    """
    text = text.strip()
    if text in _NO_ARRAY:
        return np.empty(0)
    if (text[0], text[-1]) not in (("[", "]"), ("(", ")")):
        raise ColumnError(f"{what}: expected arrays such as [0.1,0.2], got {text[:30]!r}")
    body = text[1:-1]
    values = _numbers_in(body.replace("null", "nan"))
    if values.size == body.count(",") + 1:
        return values
    words = [word.strip() for word in body.split(",")]
    try:
        return np.array(["nan" if w in _NO_ARRAY else w for w in words], dtype=np.float64)
    except ValueError as error:
        raise ColumnError(f"{what} must hold arrays of numbers: {error}") from error


def _numbers_in(text: str) -> Float64Array:
    """Return numbers with commas between them, or fewer if one of them is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return np.fromstring(text, dtype=np.float64, sep=",")
        except ValueError:
            return np.empty(0)


def _plain(values: Any, what: str) -> Any:
    if _is_arrow(values):
        import pyarrow as pa

        values = _short(values, what)
        kind = values.type
        if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
            null = np.array(values.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)
            filled = values.fill_null(False if pa.types.is_boolean(kind) else 0)
            return np.ma.masked_array(np.array(filled.to_numpy(zero_copy_only=False)), mask=null)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            text = _arrow_texts(values, what)
            return _numbers_of(np.ma.masked_array(text, mask=np.isin(text, _MISSING_TEXT)))
        return np.ma.masked_invalid(_arrow_floats(values, what))
    _one_a_row(values, what)
    if values.dtype.kind in "SUO":
        text = _texts(values, what)
        return np.ma.masked_array(text, mask=text == "")
    if values.dtype.kind not in "fiub":
        raise ColumnError(f"{what} must hold numbers or text, got {values.dtype}")
    data = values.astype(values.dtype.newbyteorder("="))
    return np.ma.masked_array(np.ma.getdata(data), mask=np.ma.getmaskarray(values))


def _numbers_of(text: Any) -> Any:
    """Turn texts that are all numbers into such; a masked array."""
    mask = np.ma.getmaskarray(text)
    words = np.char.lower(np.ma.getdata(text)[~mask])
    if words.size and np.isin(words, ("true", "false")).all():
        return np.ma.masked_array(np.char.lower(np.ma.getdata(text)) == "true", mask=mask)
    if any(len(word) > 1 and word.isdigit() and word[0] == "0" for word in np.unique(words)):
        # A code such as 000 is none of the numbers that it looks like.
        return text
    filled = np.where(mask, "0", np.ma.getdata(text))
    for kind in (np.int64, np.float64):
        try:
            return np.ma.masked_array(filled.astype(kind), mask=mask)
        except (ValueError, OverflowError):
            continue
    return text


def _decoded(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _one_a_row(values: Any, what: str) -> None:
    if values.ndim != 1:
        raise ColumnError(f"{what} must hold one value a row, got an array of {values.shape[1:]}")
