"""The explorer's selections by expression: a language of its own, which runs nothing."""

import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maury.errors import MauryError
from maury.report.explorer.expression import MOST_CHARACTERS, ExpressionError, parse

NUMBERS = {"m_h": "float64", "snr": "float64", "teff": "float64", "n": "int32", "warn": "bool"}
FLAGS = {"EMISSION": 1 << 40, "LOW_SNR": 2}
COLUMNS = {
    "m_h": np.array([-2.0, -0.5, np.nan, -1.5, 0.2]),
    "snr": np.array([50.0, 60.0, 70.0, 10.0, np.inf]),
    "teff": np.array([4000.0, 5000.0, 6000.0, 5500.0, 4500.0]),
    "n": np.array([1, 2, 3, 4, 5], np.int32),
    "warn": np.array([True, False, False, True, False]),
    "flags": np.array([1 << 40, 0, 2, (1 << 40) | 2, 0]),
}


def passes(text: str) -> list[int]:
    found = parse(text, numbers=NUMBERS, flags=FLAGS)
    assert set(found.names) <= set(COLUMNS)
    return np.flatnonzero(found.passes(COLUMNS)).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("m_h < -1 & snr > 40", [0]),
        ("m_h<-1", [0, 3]),
        # A missing value passes neither a condition nor its opposite.
        ("!(m_h < -1)", [1, 4]),
        ("m_h != 0.2", [0, 1, 3]),
        ("snr > 40", [0, 1, 2]),
        ("m_h < -1 | n >= 3", [0, 2, 3, 4]),
        ("n == 1 | n == 2 & n == 5", [0]),
        ("(n = 1 or n = 2) and not n == 2", [0]),
        ("4500 <= teff < 5500", [1, 4]),
        ("teff / 1000 - 2*n == 0.0 | n * -1 > -2", [0, 2]),
        ("1 + 2 * 3 == 7 && n > 4", [4]),
        ("-(n - 3) > +1", [0]),
        ("1e3 * n > 4.5E3", [4]),
        ("EMISSION & !LOW_SNR", [0]),
        ("~warn", [1, 2, 4]),
        ("((((n))) > 4)", [4]),
        ("1 / (n - 3) > 0", [3, 4]),
        ("8 - 2 - 1 == 5 & 8 / 2 / 2 == 2 & n == 1", [0]),
    ],
)
def test_expressions_select_the_rows_that_they_say(text, rows) -> None:
    assert passes(text) == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "ends too early"),
        ("m_h <", "ends too early"),
        ("m_h < & snr", "'&' at character 7 stands where a column or a number is missing"),
        ("mh < 1", "'mh' at character 1 is no column of numbers and no flag; did you mean 'm_h'"),
        ("m_h", "is a number, not a condition"),
        ("1 < 2", "names no column"),
        ("m_h & snr > 4", "needs a condition"),
        ("warn > 4", "needs a number"),
        ("(m_h < 1", "ends too early: where ) is missing"),
        ("m_h < 1)", "')' at character 8 is not understood here"),
        ("m_h < 1 snr > 2", "'snr' at character 9 is not understood here"),
        ("m_h < 1; import os", "';' at character 8 is no part"),
        ("__import__('os').system('true')", "is no column|is no part"),
        ("snr.__class__ > 1", "'.' at character 4 is no part"),
        ("m_h < and", "'and' at character 7 stands where"),
        ("(" * 200 + "n > 1" + ")" * 200, "brackets within one another"),
        ("-" * 400 + "n > 1", "brackets within one another"),
        ("!" * 400 + "warn", "brackets within one another"),
        ("n > 1 & " * 70 + "n > 1", f"{MOST_CHARACTERS} characters at most"),
        ("n > \u0664", "is no part"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text, said) -> None:
    with pytest.raises(ExpressionError, match=said.replace("(", r"\(").replace(")", r"\)")):
        passes(text)


def test_a_long_flat_expression_is_read() -> None:
    assert passes(" | ".join(f"n == {k}" for k in range(1, 50))) == [0, 1, 2, 3, 4]


PIECES = [*NUMBERS, *FLAGS, *"+-*/()<>=&|!~ ", "<=", "!=", "1", "2.5e3", ".", "'", "\u0130", "and"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_any_text_selects_rows_or_is_refused_in_words(text) -> None:
    try:
        found = parse(text, numbers=NUMBERS, flags=FLAGS)
    except MauryError:
        return
    passed = found.passes(COLUMNS)
    assert passed.shape == (5,)
    assert passed.dtype == np.bool_


SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
whole = st.integers(-3, 8)


@given(whole, st.sampled_from(list(SIGNS)), whole, st.sampled_from(list(SIGNS)))
def test_two_comparisons_are_joined_as_python_joins_them(low, first, high, second) -> None:
    expected = [k for k, n in enumerate(range(1, 6)) if SIGNS[first](n, low) and
                not SIGNS[second](n, high)]  # fmt: skip
    assert passes(f"n {first} {low} & !(n {second} {high})") == expected
