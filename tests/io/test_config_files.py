"""Configurations in TOML: one reader, one wording of mistakes."""

import pytest
from pydantic import BaseModel, ConfigDict, Field

from maury.errors import ConfigError
from maury.io.config_files import parse_json, parse_toml, read_toml, settings_of, validated


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 3


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    rows: tuple[Inner, ...] = ()
    name: str = Field(alias="title")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbf[inner]\r\nwidth = 4\r\n")
    assert read_toml(path, what="settings") == {"inner": {"width": 4}}


def test_what_is_not_utf8_is_told_with_its_place():
    with pytest.raises(ConfigError, match=r"a\.toml: byte 9 is not UTF-8; save it in UTF-8"):
        parse_toml("title = 'é'".encode("latin-1"), what="a.toml")
    with pytest.raises(ConfigError, match="byte 0 is not UTF-8"):
        parse_toml("title = 'x'".encode("utf-16"), what="a.toml")


def test_every_mistake_is_told_at_once_with_the_nearest_key():
    problems = []
    document = {"iner": 1, "inner": {"widht": 2}, "rows": [{"width": "wide"}]}
    assert validated(document, Outer, problems) is None
    assert problems == [
        "inner.widht: unknown key; did you mean 'width'? (known: width)",
        "rows.0.width: Input should be a valid integer, unable to parse string as an integer, "
        "got 'wide'",
        "title: must be given",
        "iner: unknown key; did you mean 'inner'? (known: inner, rows, title)",
    ]
    assert validated({"title": "x", "inner": {"width": 5}}, Outer, problems).inner.width == 5


def test_settings_are_a_mapping_a_file_or_nothing(tmp_path):
    (tmp_path / "s.toml").write_text("[split]\nseed = 1\n")
    given = {"split": {"seed": 1}}
    assert settings_of(tmp_path / "s.toml") == settings_of(str(tmp_path / "s.toml")) == given
    copy = settings_of(given)
    copy.clear()
    assert given == {"split": {"seed": 1}}
    assert settings_of(None) == {}


@pytest.mark.parametrize(
    "number", ["9" * 400, "9" * 30, "0x" + "f" * 6000, "9" * 5000, "-" + "9" * 30, str(2**63)]
)
@pytest.mark.parametrize("form", ["x = {}", "[a]\nb = {}", "[[a]]\nb = [[1, {}]]"])
def test_an_integer_of_more_than_64_bits_is_one_error(tmp_path, number, form):
    path = tmp_path / "big.toml"
    path.write_text(form.format(number))
    with pytest.raises(ConfigError, match=r"64 bits|integer string conversion") as error:
        read_toml(path, what="settings")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("number", ["9" * 400, "9" * 30, "9" * 5000, "-" + "9" * 30, str(2**63)])
def test_json_has_integers_of_64_bits(number):
    with pytest.raises(ValueError, match="64 bits"):
        parse_json(f'{{"a": [1, {number}]}}')
    assert parse_json(f"[{2**63 - 1}, {-(2**63)}]") == [2**63 - 1, -(2**63)]


def test_settings_given_in_python_have_integers_of_64_bits():
    problems = []
    assert validated({"a": {"b": [10**400]}}, BaseModel, problems) is None
    assert problems == ["it holds an integer of more than 64 bits; write a smaller one"]
