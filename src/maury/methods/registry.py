"""Methods by name; a method's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from maury.errors import ConfigError
from maury.methods.protocols import Method, MethodSettings
from maury.naming import check_known, suggestion

__all__ = ["METHODS", "method_class", "method_settings"]

METHODS: dict[str, str] = {
    "athos": "athos:Athos",
    "cannon": "cannon:Cannon",
    "dd-payne": "dd_payne:DDPayne",
    "ferre": "ferre:Ferre",
    "gaufre": "gaufre:Gaufre",
    "gauguin": "gauguin:Gauguin",
    "matisse": "matisse:Matisse",
    "payne": "payne:Payne",
    "payne-photometry": "payne:PaynePhotometry",
    "sme": "sme:Sme",
    "space": "space:Space",
    "synspec": "synspec:Synspec",
}
"""Module and class of every method."""


def method_class(name: str) -> type[Method]:
    """Return the class of the method `name`.

    Raises
    ------
    UnknownName
        If there is no such method.
    """
    module, _, attribute = METHODS[check_known("method", name, METHODS)].partition(":")
    found: type[Method] = getattr(import_module(f"maury.methods.{module}"), attribute)
    assert found.name == name, "a method is registered under its own name"
    return found


def method_settings(name: str, options: Mapping[str, Any] | None = None) -> MethodSettings:
    """Return the settings of the method `name`, with `options` instead of defaults.

    Raises
    ------
    UnknownName
        If there is no such method.
    ConfigError
        If an option is unknown or a value out of range; all of them are listed.
    """
    cls = method_class(name).settings_class
    try:
        return cls.model_validate(dict(options or {}))
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            unknown = item["type"] == "extra_forbidden"
            hint = suggestion(key, cls.model_fields) if unknown else ""
            known = f" (known: {', '.join(cls.model_fields)})" if hint else ""
            problems.append(f"[method] {key}: {item['msg']}, got {item['input']!r}{hint}{known}")
        raise ConfigError(f"the settings of {name} are wrong: " + "; ".join(problems)) from error
