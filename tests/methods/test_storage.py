"""Fields of dataclasses as arrays and JSON: names in files, absent parts, nested parts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from maury.methods.storage import read_fields, stored, write_fields


@dataclass(frozen=True, eq=False)
class Inner:
    value: NDArray[np.float32]
    name: str = field(metadata=stored(None))


@dataclass(frozen=True, eq=False)
class Outer:
    beside: Inner = field(metadata=stored(""))
    within: Inner = field(metadata=stored("deep"))
    absent: Inner | None
    some: NDArray[np.float64] | None
    none: NDArray[np.float64] | None
    windows: Mapping[str, NDArray[np.float64]] = field(metadata=stored("window"))
    correlation: tuple[float, ...]
    medium: str


@pytest.fixture
def outer() -> Outer:
    return Outer(
        beside=Inner(np.arange(3, dtype=np.float32), "a"),
        within=Inner(np.zeros((0, 2), dtype=np.float32), "b"),
        absent=None,
        some=np.array([1.0]),
        none=None,
        windows={"mg_fe": np.ones(2), "al_fe": np.zeros(2)},
        correlation=(0.44, 0.05),
        medium="air",
    )


def test_what_is_written_is_read(outer):
    arrays, about = write_fields(outer)
    assert set(arrays) == {"value", "deep.value", "some", "window.mg_fe", "window.al_fe"}
    about = json.loads(json.dumps(about))
    assert about == {"correlation": [0.44, 0.05], "medium": "air"}
    given = {"beside": {"name": "a"}, "within": {"name": "b"}}
    again = read_fields(Outer, arrays, about, given)
    assert again.beside.value.dtype == np.float32
    assert again.beside.value.tolist() == [0.0, 1.0, 2.0]
    assert again.within.value.shape == (0, 2)
    assert (again.beside.name, again.within.name) == ("a", "b")
    assert again.absent is None
    assert again.none is None
    assert again.correlation == (0.44, 0.05)
    assert {name: array.tolist() for name, array in again.windows.items()} == {
        "mg_fe": [1.0, 1.0],
        "al_fe": [0.0, 0.0],
    }


def test_what_is_missing_is_named(outer):
    arrays, about = write_fields(outer)
    given = {"beside": {"name": "a"}, "within": {"name": "b"}}
    with pytest.raises(TypeError, match="Inner needs name"):
        read_fields(Outer, arrays, about, {})
    del arrays["deep.value"]
    with pytest.raises(KeyError, match=r"deep\.value"):
        read_fields(Outer, arrays, about, given)
    with pytest.raises(KeyError, match="medium"):
        read_fields(Outer, write_fields(outer)[0], {"correlation": []}, given)
