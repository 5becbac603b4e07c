"""TOML and JSON that may be anything: size and depth are limited, and errors are of one class."""

import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

from maury.errors import ConfigError, suggestion
from maury.io.limits import VARIABLE, current

Settings = TypeVar("Settings", bound=BaseModel)
_INTEGERS = range(-(2**63), 2**63)
"""Those that TOML has, and that arrays and generators of random numbers take."""
_MOST_DIGITS = 20
"""Of such an integer, with its sign."""
_HUGE = "an integer of more than 64 bits; write a smaller one"
_MOST_DOTS = 1000
"""In one line: tomllib takes time in the square of the parts of a dotted key, and at a thousand
parts still answers at once; no configuration has ten."""


def read_toml(path: Path | str, *, what: str) -> dict[str, Any]:
    """Read a TOML file.

    Parameters
    ----------
    path : path-like
    what : str
        What the message calls it, for example "the configuration".

    Raises
    ------
    ConfigError
        If it cannot be read, is not TOML, is larger than a configuration can be, or is nested
        deeper.
    """
    path, limits = Path(path), current()
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"cannot read {what} {path}: it is no regular file")
        with path.open("rb") as stream:
            # One byte more than allowed tells that there are more, without reading them.
            content = stream.read(limits.toml_bytes + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {what} {path}: {error}") from error
    return parse_toml(content, what=f"{what} {path}")


def settings_of(config: Mapping[str, Any] | Path | str | None) -> dict[str, Any]:
    """Return settings, given as a mapping by section, as a TOML file, or not at all."""
    if isinstance(config, Path | str):
        return read_toml(config, what="settings")
    if shallow(dict(config or {}), current().depth) and not _integers_fit(config or {}):
        raise ConfigError(f"the settings hold {_HUGE}")
    return dict(config or {})


def parse_toml(content: bytes, *, what: str) -> dict[str, Any]:
    """Parse TOML that may be anything, see `read_toml`."""
    limits = current()
    if len(content) > limits.toml_bytes:
        raise ConfigError(f"{what} is larger than {limits.toml_bytes} bytes")
    try:
        # Editors of Windows put a byte order mark before the text, which TOML has no word for.
        text = content.decode("utf-8-sig")
        # A dotted key takes time in the square of its parts.
        if any(line.count(".") > _MOST_DOTS for line in text.split("\n")):
            raise ConfigError(f"{what} has a line of more than {_MOST_DOTS} dots; break it")
        document = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"cannot read {what}: byte {error.start} is not UTF-8; save it in UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {what}: {error or type(error).__name__}") from error
    if not shallow(document, limits.depth):
        raise ConfigError(f"{what} is nested deeper than {limits.depth} levels")
    if not _integers_fit(document):
        raise ConfigError(f"{what} holds {_HUGE}")
    return document


def at_most(name: str) -> AfterValidator:
    """Return what refuses a number, or a sequence of more items, above the limit of this name.

    For `typing.Annotated` in pydantic models: the limit is looked up when a value comes.
    """

    def check(value: Any) -> Any:
        size = value if isinstance(value, int | float) else len(value)
        if size > getattr(current(), name):
            raise ValueError(
                f"should be at most {getattr(current(), name)} (raise it by {VARIABLE}='{name}=...'"
                " if it is right)"
            )
        return value

    return AfterValidator(check)


def validated(
    document: Mapping[str, Any], model: type[Settings], problems: list[str]
) -> Settings | None:
    """Return a document as a pydantic model, or None and what is wrong with it.

    Parameters
    ----------
    document : mapping
        As read from TOML or JSON, or given by keyword.
    model : type of pydantic model
    problems : list of str
        Appended to, one text for each mistake.
    """
    if shallow(document, current().depth) and not _integers_fit(document):
        problems.append(f"it holds {_HUGE}")
        return None
    try:
        return model.model_validate(dict(document))
    except ValidationError as error:
        problems += mistakes(error, model)
    except RecursionError:
        problems.append("it is nested too deeply")
    return None


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return each mistake of a document in words: where, what, and the nearest known key."""
    return [_in_words(item, model) for item in error.errors()]


def _in_words(error: Any, model: type[BaseModel]) -> str:
    place = ".".join(map(str, error["loc"])) or "file"
    if error["type"] == "extra_forbidden":
        fields = _fields_at(error["loc"][:-1], model)
        hint = suggestion(str(error["loc"][-1]), fields)
        return f"{place}: unknown key{hint} (known: {', '.join(fields)})"
    if error["type"] == "missing":
        return f"{place}: must be given"
    text = f"{place}: {error['msg'].removeprefix('Value error, ')}"
    # Of a whole table, which begins somewhere and is cut short, the text has said what is wrong.
    whole = isinstance(error["input"], dict | list | tuple) and error["type"] == "value_error"
    return text if whole else f"{text}, got {error['input']!r:.60}"


def _fields_at(location: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    for key in location:
        if isinstance(key, str) and key in model.model_fields:
            model = _model_in(model.model_fields[key].annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    parts = typing.get_args(annotation)
    if not parts and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(_model_in, parts) if found is not None), None)


def parse_json(content: bytes | str) -> Any:
    """Parse JSON of a stranger: no NaN, no infinity, of limited size, depth and number of values.

    Raises
    ------
    ValueError
        Saying why not.
    """
    limits = current()
    if len(content) > limits.json_bytes:
        raise ValueError(f"it is larger than {limits.json_bytes} bytes")
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    # Counted in the text, as a parser makes all values before any of them can be looked at.
    if text.count(",") + text.count("[") + text.count("{") > limits.json_items:
        raise ValueError(f"it holds more than {limits.json_items} values")
    try:
        document = json.loads(text, parse_constant=_refuse_constant, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not shallow(document, limits.depth):
        raise ValueError(f"it is nested deeper than {limits.depth} levels")
    return document


def shallow(document: Any, depth: int) -> bool:
    """Whether lists and mappings are nested in at most `depth` levels."""
    # Level by level: recursion would end at the depth that is to be refused.
    level = [document]
    for _ in range(depth + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(v for v in value.values() if isinstance(v, dict | list))
            elif isinstance(value, list):
                inner.extend(v for v in value if isinstance(v, dict | list))
        if not inner:
            return True
        level = inner
    return False


def _integers_fit(document: Any) -> bool:
    """Whether all integers of a document that is not nested too deeply have 64 bits."""
    if isinstance(document, Mapping):
        return all(_integers_fit(value) for value in document.values())
    if isinstance(document, list | tuple):
        return all(_integers_fit(value) for value in document)
    return not isinstance(document, int) or document in _INTEGERS


def _integer(text: str) -> int:
    # Longer ones take time in the square of their digits.
    if len(text) > _MOST_DIGITS or (value := int(text)) not in _INTEGERS:
        raise ValueError(f"it holds {_HUGE}")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")
