"""Parts that others add: of installed packages, and of modules that the user names.

A model file names its network or method and never brings code. The name is looked up among
`maury`'s own parts, then in the modules that the user named (``maury --import MODULE``), then among
the entry points of installed packages; nothing else is ever imported.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from maury.errors import ConfigError

VARIABLE = "MAURY_IMPORT"
"""Environment variable with the modules that the user named, commas between; workers inherit it."""
Part = TypeVar("Part")


def name_modules(names: Iterable[str]) -> None:
    """Import modules that add parts, here and in the workers that this process starts.

    Parameters
    ----------
    names : iterable of str
        As ``import`` takes them: on Python's path, or in the current folder.

    Raises
    ------
    ConfigError
        If one cannot be imported.
    """
    os.environ[VARIABLE] = ",".join(names)
    import_named()


def import_named() -> None:
    """Import the modules that the user named, once each.

    Raises
    ------
    ConfigError
        If one cannot be imported.
    """
    for name in filter(None, os.environ.get(VARIABLE, "").split(",")):
        if name in sys.modules:
            continue
        # A program that is installed does not look into the current folder, unlike `python`.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            import_module(name)
        # A module of someone else may raise whatever it likes.
        except Exception as error:
            raise ConfigError(
                f"--import {name}: the module cannot be imported ({error}); run maury where it "
                "lies, or install it"
            ) from error


class Parts(MutableMapping[str, Part]):
    """Parts by name: those given, those that a module adds, and those of installed packages.

    Parameters
    ----------
    group : str
        Group of entry points, such as ``maury.networks``.
    own : mapping of str to Part
        Parts that are there from the start.
    """

    def __init__(self, group: str, own: Mapping[str, Part]) -> None:
        self._group = group
        self._own = dict(own)

    def _installed(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self._group)}

    def __getitem__(self, name: str) -> Part:
        if name not in self._own:
            import_named()
        if name not in self._own:
            entry = self._installed()[name]
            try:
                part: Part = entry.load()
            except Exception as error:
                raise ConfigError(
                    f"{name!r} ({entry.value}, of {self._group}) cannot be loaded: {error}; mend "
                    "or remove the package that it is of"
                ) from error
            # The module may have added it by itself.
            self._own.setdefault(name, part)
        return self._own[name]

    def __setitem__(self, name: str, part: Part) -> None:
        self._own[name] = part

    def __delitem__(self, name: str) -> None:
        del self._own[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or any(name == one for one in self)

    def __iter__(self) -> Iterator[str]:
        import_named()
        return iter(dict.fromkeys([*self._own, *self._installed()]))

    def __len__(self) -> int:
        return len(list(iter(self)))
