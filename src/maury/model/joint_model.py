"""The directory of a joint model: one model a survey, and what they share.

``joint.json`` names the surveys and all their labels; ``joint.safetensors`` holds the weights that
they share and the calibration of stars that several surveys saw. Beside them lies, under the
name of each survey, a model directory like any other (`maury.model.directory`), which predicts,
validates and reports by itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints
from safetensors.numpy import save

from maury.errors import ModelFileError
from maury.io.arrays import AnyArray, Float32Array
from maury.io.config_files import at_most
from maury.io.migrations import JOINT_MODEL
from maury.io.tensors import check_sum, damaged, read_tensor_file, write_sums
from maury.labels import definitions as labels_module
from maury.labels.definitions import Label
from maury.model.directory import Model, read_head

__all__ = ["SURVEY_NAME", "JointModel", "is_joint"]

HEADER, TENSORS = "joint.json", "joint.safetensors"
SURVEY_NAME = r"^[a-z][a-z0-9_]{0,31}$"
"""It names a directory and tensors: neither separators nor dots, which could lead elsewhere."""
_SHARED = "shared"


@dataclass(frozen=True, repr=False, eq=False)
class JointModel:
    """One model for several surveys.

    Attributes
    ----------
    models : mapping of str to Model
        Of each survey by itself, in the order in which they came in.
    labels : tuple of Label
        Of all surveys together.
    arrays : mapping of str to array
        Shared weights, ``shared/<member>/<name>``, and further ones.
    about : mapping
        Plain JSON: offsets between the labels of the surveys, settings, what was measured.
    path : Path or None
        Where it lies; None if it is not saved yet.
    """

    models: Mapping[str, Model]
    labels: tuple[Label, ...]
    arrays: Mapping[str, AnyArray]
    about: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the surveys."""
        return tuple(self.models)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(label.name for label in self.labels)

    @property
    def simulated(self) -> bool:
        """Whether spectra of any survey that trained it are simulated."""
        return any(model.simulated for model in self.models.values())

    @property
    def n_member(self) -> int:
        """Networks."""
        return len(next(iter(self.models.values())).kept)

    def __repr__(self) -> str:
        mark = "SIMULATED " if self.simulated else ""
        names = ", ".join(f"{k} ({', '.join(m.label_names)})" for k, m in self.models.items())
        return f"<{mark}JointModel {self.path}: {self.n_member} networks; surveys: {names}>"

    def shared(self, member: int) -> dict[str, Float32Array]:
        """Weights of one network that all surveys have in common."""
        return self.group(f"{_SHARED}/{member:03d}")

    def group(self, name: str) -> dict[str, AnyArray]:
        """Arrays whose names begin with ``name/``, without that."""
        head = f"{name}/"
        return {k.removeprefix(head): v for k, v in self.arrays.items() if k.startswith(head)}

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read a joint model and check every file in it.

        Raises
        ------
        ModelFileError
            If it is no joint model, of a newer format, or damaged.
        """
        path = Path(path)
        document = _read(path)
        models = {}
        for one in document.surveys:
            if (path / one.name).is_symlink():
                raise damaged(path / one.name, "it is a link, and a joint model may hold none")
            models[one.name] = Model.open(path / one.name)
            if models[one.name].checksum != one.checksum:
                raise damaged(path / one.name, "it is another model than joint.json says")
        arrays = read_tensor_file(path / TENSORS, sha256=document.sha256)
        for name, values in arrays.items():
            if name.startswith(f"{_SHARED}/") and not np.all(np.isfinite(values)):
                raise damaged(path / TENSORS, f"{name!r} has values that are not finite")
        check_sum(path / HEADER)
        try:
            labels = labels_module.parse(document.labels)
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(path / HEADER, str(error)) from error
        names = {label.name for label in labels}
        members = {len(model.kept) for model in models.values()}
        if any(not names.issuperset(model.label_names) for model in models.values()):
            raise damaged(path / HEADER, "a survey has labels that it does not name")
        if len(members) != 1:
            raise damaged(path / HEADER, "its surveys have different numbers of networks")
        return cls(
            MappingProxyType(models),
            labels,
            MappingProxyType(arrays),
            MappingProxyType(document.about),
            path,
        )

    def write(self, directory: Path) -> None:
        """Write all but the models, which lie in `directory` already."""
        data: bytes = save({k: np.ascontiguousarray(v) for k, v in self.arrays.items()})
        (directory / TENSORS).write_bytes(data)
        document = {
            "format": JOINT_MODEL.name,
            "format_version": JOINT_MODEL.version,
            "surveys": [
                {"name": name, "checksum": model.checksum} for name, model in self.models.items()
            ],
            "labels": [label.model_dump(mode="json") for label in self.labels],
            "sha256": hashlib.sha256(data).hexdigest(),
            "about": _finite(dict(self.about)),
        }
        (directory / HEADER).write_text(json.dumps(document, indent=1, allow_nan=False), "utf-8")
        write_sums(directory)


def is_joint(path: Path | str) -> bool:
    """Whether a directory holds a joint model."""
    return (Path(path) / HEADER).is_file()


def shared_name(member: int, name: str) -> str:
    """Name of a shared weight of a network among the arrays."""
    return f"{_SHARED}/{member:03d}/{name}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _SurveyDocument(_Strict):
    name: Annotated[str, StringConstraints(pattern=SURVEY_NAME)]
    checksum: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _JointDocument(_Strict):
    format: Literal["maury joint model"]
    format_version: int
    surveys: Annotated[list[_SurveyDocument], Field(min_length=1), at_most("surveys")]
    labels: Annotated[list[dict[str, JsonValue]], Field(min_length=1), at_most("labels")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    about: dict[str, JsonValue]


def _read(path: Path) -> _JointDocument:
    file = path / HEADER
    if not file.is_file() or file.is_symlink():
        raise ModelFileError(
            f"{path} is not a joint model (it holds no {HEADER}); make one with 'maury joint train'"
        )
    found = read_head(file, JOINT_MODEL, _JointDocument, what="joint model")
    names = [one.name for one in found.surveys]
    if len(set(names)) != len(names):
        raise damaged(file, "two surveys have the same name")
    return found


def _finite(value: Any) -> Any:
    """Plain JSON in which no number is infinite or unknown."""
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
