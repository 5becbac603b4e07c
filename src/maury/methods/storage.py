"""Fitted methods as arrays and plain JSON: written and read from the fields of their dataclasses.

An array is stored under the name of its field, a dataclass within another one under the name of
its field and a dot, and everything else as JSON. `stored` renames a field in the file, or leaves it
out. One mechanism for all methods, so that a new array of a method is a new field and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from maury.io.arrays import AnyArray

__all__ = ["Arrays", "read_fields", "stored", "write_fields"]

Arrays = dict[str, AnyArray]
_KEY = "stored"
_NOWHERE = "-"


def stored(key: str | None) -> dict[str, str]:
    """Return the metadata of a dataclass field that files hold under another name.

    Parameters
    ----------
    key : str or None
        Name in files; "" puts the fields of a dataclass beside those of its owner; None stores
        nothing, so that whoever reads the file gives the value.

    Examples
    --------
    >>> from dataclasses import field
    >>> wave: Any = field(metadata=stored("wave_aa"))
    """
    return {_KEY: _NOWHERE if key is None else key}


def write_fields(thing: Any, prefix: str = "") -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays and the plain JSON of a dataclass.

    Parameters
    ----------
    thing : dataclass
    prefix : str
        Before the names of its arrays.

    Returns
    -------
    arrays : dict of str to array
        Those that are None are left out.
    about : dict
        Fields that are no arrays, by name; tuples become lists.
    """
    arrays: Arrays = {}
    about: dict[str, Any] = {}
    for one in fields(thing):
        key, value = _key(one), getattr(thing, one.name)
        if key == _NOWHERE or value is None:
            continue
        if isinstance(value, np.ndarray):
            arrays[prefix + key] = value
        elif is_dataclass(value):
            inner, more = write_fields(value, prefix + (f"{key}." if key else ""))
            arrays |= inner
            about |= more
        elif isinstance(value, Mapping):
            arrays |= {f"{prefix}{key}.{name}": array for name, array in value.items()}
        else:
            about[key] = list(value) if isinstance(value, tuple) else value
    return arrays, about


def read_fields(
    cls: type[Any],
    arrays: Mapping[str, AnyArray],
    about: Mapping[str, Any],
    given: Mapping[str, Any],
    prefix: str = "",
) -> Any:
    """Make a dataclass of what `write_fields` gave.

    Parameters
    ----------
    cls : type of dataclass
    arrays, about
        From `write_fields`.
    given : mapping of str to object
        Fields that are not stored; for a dataclass within this one, a dict of such fields of it.
    prefix : str
        Before the names of its arrays.

    Raises
    ------
    KeyError, ValueError, TypeError
        If something is missing, or does not fit.
    """
    values: dict[str, Any] = {}
    # Annotations are texts where a module imports them from `__future__`.
    hints = get_type_hints(cls)
    for one in fields(cls):
        key, kind = _key(one), hints[one.name]
        optional = type(None) in get_args(kind)
        parts: tuple[Any, ...] = (kind, *get_args(kind))
        inner: Any = next((part for part in parts if is_dataclass(part)), None)
        known = given.get(one.name)
        if inner is not None and (known is None or isinstance(known, dict)):
            start = prefix + (f"{key}." if key else "")
            # An optional part was None when no array of it is there.
            there = not optional or any(name.startswith(start) for name in arrays)
            part = read_fields(inner, arrays, about, known or {}, start) if there else None
            values[one.name] = part
        elif one.name in given:
            values[one.name] = known
        elif key == _NOWHERE:
            if one.default is MISSING and one.default_factory is MISSING:
                raise TypeError(f"{cls.__name__} needs {one.name}")
        elif _is_array(kind):
            found = arrays.get(prefix + key) if optional else arrays[prefix + key]
            values[one.name] = None if found is None else np.asarray(found)
        elif get_origin(kind) in (Mapping, dict):
            values[one.name] = _below(arrays, f"{prefix}{key}.")
        else:
            value = about[key]
            values[one.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _below(arrays: Mapping[str, AnyArray], start: str) -> Arrays:
    """Arrays whose names begin so, by the rest of their names."""
    return {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}


def _key(one: Field[Any]) -> str:
    return str(one.metadata.get(_KEY, one.name))


def _is_array(kind: Any) -> bool:
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return any(get_origin(part) is np.ndarray for part in parts)
