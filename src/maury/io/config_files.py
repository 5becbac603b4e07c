"""TOML and JSON that may be anything: size and depth are limited, and errors are of one class."""

import json
import tomllib
from pathlib import Path
from typing import Any

from maury.errors import ConfigError
from maury.io.limits import current

_MOST_DOTS = 1000


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
            content = stream.read(limits.toml_bytes + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {what} {path}: {error}") from error
    return parse_toml(content, what=f"{what} {path}")


def parse_toml(content: bytes, *, what: str) -> dict[str, Any]:
    """Parse TOML that may be anything, see `read_toml`."""
    limits = current()
    if len(content) > limits.toml_bytes:
        raise ConfigError(f"{what} is larger than {limits.toml_bytes} bytes")
    try:
        text = content.decode("utf-8")
        # A dotted key takes time in the square of its parts.
        if any(line.count(".") > _MOST_DOTS for line in text.split("\n")):
            raise ConfigError(f"{what} has a line of more than {_MOST_DOTS} dots; break it")
        document = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {what}: {error or type(error).__name__}") from error
    if not shallow(document, limits.depth):
        raise ConfigError(f"{what} is nested deeper than {limits.depth} levels")
    return document


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
    if text.count(",") + text.count("[") + text.count("{") > limits.json_items:
        raise ValueError(f"it holds more than {limits.json_items} values")
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not shallow(document, limits.depth):
        raise ValueError(f"it is nested deeper than {limits.depth} levels")
    return document


def shallow(document: Any, depth: int) -> bool:
    """Whether lists and mappings are nested in at most `depth` levels."""
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


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")
