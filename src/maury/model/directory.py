"""The model directory: all that passes from learning to applying.

``model.json`` holds the definitions, the preparation, the scaling, the split and the provenance;
``members/000.safetensors`` and so on hold the weights, ``attachments`` further arrays. A model is
data: nothing in it is executed, and every file is checked before it is used.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from safetensors.numpy import save

from maury.errors import MauryError, ModelFileError, check_known
from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.io.config_files import at_most, parse_json
from maury.io.files import refuse_existing, writing
from maury.io.limits import current
from maury.io.migrations import MODEL, Format
from maury.io.tensors import check_sum, damaged, read_tensor_file, write_sums
from maury.labels import definitions as labels_module
from maury.labels.columns import Column
from maury.labels.definitions import Label
from maury.labels.statistics import robust_scale
from maury.model.split import SplitRecord
from maury.spectra.preparation import Preparation
from maury.spectra.spectra import Medium, check_wavelengths, describe_grid

LOSSES = "losses"
"""Attachment of a model: ``member_000`` and so on, (n_epoch, 2) float64, training and validation
loss of each epoch, NaN where there is none."""
THEORY_ONLY = "theory_only"
"""Key of the provenance of a model that theory alone trained (`maury.training.theory_only`)."""
METHOD = "method"
"""Attachment that a model has in place of networks, if `maury.methods` made it."""
FURTHER_COLUMNS = "further_columns"
"""Key of the metadata of that attachment: columns that the method's catalogues have besides."""
RESIDUAL_CALIBRATION = "residual_calibration"
"""Attachment by which errors are calibrated on residuals alone
(`maury.prediction.residual_calibration`)."""
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,63}")
ScalingRule = Literal["min-max", "standard", "robust"]
Head = TypeVar("Head", bound=BaseModel)


@dataclass(frozen=True)
class Affine:
    """Scaling of some quantities: scaled = (value - offset) / scale.

    Attributes
    ----------
    minimum, maximum : (n,) float64
        Range among the training stars, in the unit of each quantity; NaN if none had a value.
    offset, scale : (n,) float64
        In the same units; the scale is positive.
    """

    minimum: Float64Array
    maximum: Float64Array
    offset: Float64Array
    scale: Float64Array

    @classmethod
    def measure(cls, values: ArrayLike, *, rule: ScalingRule = "min-max") -> Self:
        """Measure the scaling of training stars; a quantity that never varies keeps the scale 1.

        Parameters
        ----------
        values : (n_star, n) array_like
            NaN where missing.
        rule : {"min-max", "standard", "robust"}
            ``min-max``: the range becomes 0 to 1. ``standard``: mean 0, standard deviation 1.
            ``robust``: median 0, half the 16-84 % range 1.
        """
        table = np.asarray(values, dtype=np.float64)
        present = np.isfinite(table)
        # Not nanmin and nanmax, which warn of columns without a value.
        count = present.sum(axis=0)
        low = np.where(present, table, np.inf).min(axis=0, initial=np.inf)
        high = np.where(present, table, -np.inf).max(axis=0, initial=-np.inf)
        low, high = np.where(count, low, np.nan), np.where(count, high, np.nan)
        offset, scale = low, high - low
        if rule == "standard":
            total = np.where(present, table, 0.0).sum(axis=0)
            offset = total / np.maximum(count, 1)
            square = np.where(present, (table - offset) ** 2, 0.0).sum(axis=0)
            scale = np.sqrt(square / np.maximum(count, 1))
        elif rule == "robust":
            offset, scale = robust_scale(np.where(present, table, np.nan))
        return cls(
            low, high, np.where(count, offset, 0.0), np.where((count > 0) & (scale > 0), scale, 1.0)
        )

    def forward(self, values: ArrayLike) -> Float32Array:
        """Scaled values, shape (n_star, n), from physical ones."""
        # The difference in float64: rounding 5000 K to float32 first would cost digits of it.
        scaled = (np.asarray(values, dtype=np.float64) - self.offset) / self.scale
        return scaled.astype(np.float32)

    def inverse(self, scaled: ArrayLike) -> Float64Array:
        """Physical values, shape (..., n), from scaled ones."""
        values: Float64Array = np.asarray(scaled, dtype=np.float64) * self.scale
        return values + self.offset

    def to_json(self) -> dict[str, Any]:
        """Return a plain mapping for `model.json`; an unknown range is None."""
        return {
            f.name: [_or_none(value) for value in getattr(self, f.name).tolist()]
            for f in fields(self)
        }


@dataclass(frozen=True)
class Scaling:
    """Scaling of the observables, in the order of the preparation, and of the labels."""

    observables: Affine
    labels: Affine


class Member(BaseModel):
    """One trained network.

    Attributes
    ----------
    file : str
        Path inside the model directory, ``members/000.safetensors``.
    seed : int or None
        Seed that it was trained from; None if not known.
    validation_loss : float or None
        Least loss on the validation stars, in scaled units; None if not known.
    best_epoch, n_epochs : int
        Epoch of its weights, and epochs run; 0 if not known.
    kept : bool
        Whether it takes part in predictions.
    sha256 : str
        Checksum of the file.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    # No other path: a model file of a stranger may not name a file outside its directory.
    file: Annotated[str, StringConstraints(pattern=r"^members/[0-9]{3}\.safetensors$")]
    seed: Annotated[int, Field(ge=0)] | None = None
    validation_loss: Annotated[float, Field(allow_inf_nan=False)] | None = None
    best_epoch: Annotated[int, Field(ge=0)] = 0
    n_epochs: Annotated[int, Field(ge=0)] = 0
    kept: bool = True
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""

    @classmethod
    def numbered(cls, number: int, **values: Any) -> Self:
        """Make the member that lies in the file of this number."""
        return cls(file=f"members/{number:03d}.safetensors", **values)


class Attachment(BaseModel):
    """Named arrays beside the networks, in ``attachments/<name>.safetensors``.

    Attributes
    ----------
    metadata : mapping
        What belongs to the arrays, as plain JSON.
    sha256 : str
        Checksum of the file; empty until it is saved.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    metadata: dict[str, JsonValue] = {}
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""


# It becomes the name of a file: neither separators nor dots, which could lead elsewhere.
AttachmentName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


@dataclass(frozen=True, repr=False, eq=False)
class Model:
    """A trained ensemble, or another trained method, as data.

    Attributes
    ----------
    labels : tuple of Label
        What it predicts, in the order of the networks' outputs.
    network : mapping
        Architecture, or method: its ``name`` and all its settings.
    preparation : Preparation
        Steps from a survey to the networks' inputs.
    scaling : Scaling
        Of observables and labels.
    wave_aa : (n_pixel,) float64
        Wavelengths of the prepared spectra in angstrom.
    medium : {"air", "vacuum"}
        Medium of these wavelengths.
    tensors : mapping of str to tuple of int
        Names and shapes of the weights, equal for all members.
    members : tuple of Member
        The networks; none for a method, whose arrays are the attachment ``method``.
    split : SplitRecord
        Which stars trained, chose and tested them.
    simulated : bool
        Whether the training spectra are simulated.
    seed : int or None
        Seed of the ensemble.
    training : mapping
        Settings of the training and the choice, and the counts of rows that were left out.
    provenance : mapping
        Versions, licence, citation.
    attachments : mapping of str to Attachment
        Further arrays by name, see `arrays` and `with_arrays`.
    path : Path or None
        Where it lies; None if it is not saved yet.

    Examples
    --------
    >>> model = Model.open("rave.model")  # doctest: +SKIP
    >>> [label.name for label in model.labels]  # doctest: +SKIP
    ['teff', 'logg', 'm_h']
    """

    labels: tuple[Label, ...]
    network: Mapping[str, Any]
    preparation: Preparation
    scaling: Scaling
    wave_aa: Float64Array
    medium: Medium
    tensors: Mapping[str, tuple[int, ...]]
    members: tuple[Member, ...]
    split: SplitRecord
    simulated: bool
    seed: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    attachments: Mapping[str, Attachment] = field(default_factory=dict)
    path: Path | None = None
    _unsaved: Mapping[str, Mapping[str, AnyArray]] = field(default_factory=dict)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(label.name for label in self.labels)

    @property
    def citation(self) -> str:
        """What to cite for this model."""
        return str(self.provenance.get("citation", ""))

    @property
    def theory_only(self) -> str:
        """What a model says of its errors that theory alone trained; empty for all others."""
        about = self.provenance.get(THEORY_ONLY)
        if not about:
            return ""
        mismatch = about["mismatch"]
        return (
            "calibrated on SIMULATED stars alone, whose lines differ from theory by "
            f"{mismatch['line_strength']:.0%} (rms), as theory is taken to differ from the sky"
        )

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of everything that determines the predictions, weights included."""
        # The document holds the checksums of all files of weights, so that it stands for them.
        text = json.dumps(_document(self), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def _repr_html_(self) -> str:
        """Show what the model is and its labels, in a notebook."""
        from maury.io.notebook import as_html

        header = ("label", "unit", "what it is")
        rows = [(one.symbol, one.unit, one.description) for one in self.labels]
        return as_html([repr(self).strip("<>")], [header, *rows])

    def __repr__(self) -> str:
        mark = "SIMULATED " if self.simulated else ""
        where = self.path or "not saved"
        grid = describe_grid(self.wave_aa, self.medium)
        made_of = str(self.network["name"])
        if not self.is_method:
            made_of += f", {len(self.kept)} of {len(self.members)} networks kept"
        return f"<{mark}Model {where}: {made_of}, {grid}; labels: {', '.join(self.label_names)}>"

    @property
    def is_method(self) -> bool:
        """Whether it is a method of `maury.methods`, and holds no networks."""
        return METHOD in self.attachments

    @property
    def further_columns(self) -> tuple[Column, ...]:
        """Columns of a method's own in its catalogues.

        Raises
        ------
        ModelFileError
            If the file does not state them as `maury` does.
        """
        if not self.is_method:
            return ()
        stated: Any = self.attachments[METHOD].metadata.get(FURTHER_COLUMNS, [])
        try:
            found = tuple(Column(**one) for one in stated)
        except TypeError as error:
            raise ModelFileError(f"{self.path}: {FURTHER_COLUMNS} is damaged: {error}") from error
        own = {f.name for f in fields(Column)}
        fine = all(isinstance(getattr(one, name), str) for one in found for name in own)
        if not fine or not all(_COLUMN.fullmatch(one.name) for one in found):
            raise ModelFileError(f"{self.path}: {FURTHER_COLUMNS} has names that are none")
        return found

    @property
    def errors_calibrated(self) -> bool:
        """Whether its errors are calibrated on stars that it did not learn from."""
        return not {"calibration", RESIDUAL_CALIBRATION}.isdisjoint(self.attachments)

    @property
    def n_pixel(self) -> int:
        """Number of pixels that the networks take."""
        return self.wave_aa.size

    @property
    def kept(self) -> tuple[Member, ...]:
        """The members that take part in predictions."""
        return tuple(member for member in self.members if member.kept)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read a model directory and check every file in it.

        Raises
        ------
        ModelFileError
            If it is no model, of another format version, damaged or tampered with.
        """
        path = Path(path)
        document = _read_document(path)
        try:
            # A file of a stranger may be wrong in any place and any way: whatever fails means that
            # it is damaged.
            model = cls(**_fields(document), path=path)
        except (
            MauryError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            ArithmeticError,
            IndexError,
        ) as error:
            raise damaged(path / "model.json", str(error)) from error
        # All files now, not when they are first asked for: a model that opens can be used.
        for member in model.members:
            model.weights(member)
        for name in model.attachments:
            model.arrays(name)
        # Last, as the checks above say what is wrong, and this one only that something is.
        check_sum(path / "model.json")
        return model

    def weights(self, member: Member) -> dict[str, Float32Array]:
        """Read the weights of one member and check them.

        Raises
        ------
        ModelFileError
            If the file is missing, a link, damaged, or not what `model.json` says.
        """
        if self.path is None:
            raise ModelFileError("the model is not saved; save it before reading its weights")
        return _read_member(self.path, member, self.tensors)

    def arrays(self, name: str) -> dict[str, AnyArray]:
        """Arrays of the attachment `name`.

        Raises
        ------
        UnknownName
            If there is no such attachment.
        ModelFileError
            If its file is missing, a link, damaged, or not what `model.json` says.
        """
        check_known("attachment", name, self.attachments)
        if name in self._unsaved:
            return dict(self._unsaved[name])
        assert self.path is not None, "an attachment is either saved or at hand"
        return read_tensor_file(
            self.path / _attachment_file(name), sha256=self.attachments[name].sha256
        )

    def with_arrays(
        self,
        name: str,
        arrays: Mapping[str, AnyArray],
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a copy with an attachment, which `save` writes.

        Parameters
        ----------
        name : str
            Lower case letters, digits and underscores.
        arrays : mapping of str to array
            At least one; float, integer or bool.
        metadata : mapping, optional
            Plain JSON.

        Raises
        ------
        ValueError
            If the name or the metadata will not do.
        """
        TypeAdapter(AttachmentName).validate_python(name)
        attachment = Attachment(metadata=dict(metadata or {}))
        return replace(
            self,
            attachments=MappingProxyType({**self.attachments, name: attachment}),
            _unsaved={**self._unsaved, name: dict(arrays)},
        )

    def save(
        self,
        path: Path | str,
        *,
        weights: Sequence[Mapping[str, Float32Array]] | None = None,
        overwrite: bool = False,
        finish: Callable[["Model", str], object] | None = None,
    ) -> "Model":
        """Write the model directory; it appears under its name only when it is complete.

        Parameters
        ----------
        path : path-like
            The directory to write.
        weights : sequence of mappings of str to array, optional
            Weights of each member; read from the directory of this model by default.
        overwrite : bool
            Replace an existing directory.
        finish : callable, optional
            Called with the model, as it is read from where it lies before it gets its name, and
            with that name; what it writes beside it, such as a card, appears in the same step.

        Returns
        -------
        Model
            The same model, with its path and checksums.

        Raises
        ------
        OutputExists
            If `path` exists and `overwrite` is false.
        OutputError
            If the disk is full, or cannot be written.
        """
        path = Path(path)
        refuse_existing(path, overwrite=overwrite)
        if weights is None:
            # Read before the old directory goes: a model may be saved over itself.
            weights = [self.weights(member) for member in self.members]
        assert len(weights) == len(self.members), "one set of weights per member"
        with writing(path, overwrite=overwrite) as partial:
            (partial / "members").mkdir(parents=True)
            members = tuple(
                _write_member(partial, member, arrays)
                for member, arrays in zip(self.members, weights, strict=True)
            )
            saved = replace(
                self,
                members=members,
                attachments=MappingProxyType(_write_attachments(partial, self)),
                path=path,
                _unsaved={},
            )
            lines = (
                f' "{name}": {json.dumps(value, allow_nan=False)}'
                for name, value in _document(saved).items()
            )
            (partial / "model.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
            write_sums(partial)
            if finish is not None:
                finish(Model.open(partial), path.name)
        # As anyone will read it: what cannot be read again fails here, while the weights are at
        # hand.
        return Model.open(path)


Number = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[int, Field(ge=0, le=2**31)]


class _Strict(BaseModel):
    # Strict: a text "1" is no number 1, and a misspelt key no silent default.
    model_config = ConfigDict(extra="forbid", strict=True)


class _AffineDocument(_Strict):
    minimum: list[Number | None]
    maximum: list[Number | None]
    offset: list[Number]
    scale: list[Annotated[float, Field(gt=0.0, allow_inf_nan=False)]]


class _ScalingDocument(_Strict):
    observables: _AffineDocument
    labels: _AffineDocument


class _ModelDocument(_Strict):
    format: Literal["maury model"]
    format_version: int
    labels: Annotated[list[dict[str, JsonValue]], Field(min_length=1), at_most("labels")]
    network: dict[str, JsonValue]
    preparation: dict[str, JsonValue]
    scaling: _ScalingDocument
    wave_aa: Annotated[list[Number], at_most("grid_pixels")]
    medium: Literal["air", "vacuum"]
    tensors: dict[str, Annotated[list[Size], Field(max_length=8)]]
    members: Annotated[list[Member], at_most("members")]
    split: dict[str, JsonValue]
    simulated: bool
    seed: Annotated[int, Field(ge=0)] | None
    training: dict[str, JsonValue]
    provenance: dict[str, JsonValue]
    attachments: dict[AttachmentName, Attachment] = {}


def _document(model: Model) -> dict[str, Any]:
    """Plain mapping of a model, the content of `model.json`."""
    return {
        "format": MODEL.name,
        "format_version": MODEL.version,
        "labels": [label.model_dump(mode="json") for label in model.labels],
        "network": dict(model.network),
        "preparation": model.preparation.to_json(),
        "scaling": {
            "observables": model.scaling.observables.to_json(),
            "labels": model.scaling.labels.to_json(),
        },
        "wave_aa": model.wave_aa.tolist(),
        "medium": model.medium,
        "tensors": {name: list(shape) for name, shape in model.tensors.items()},
        "members": [member.model_dump() for member in model.members],
        "split": model.split.to_json(),
        "simulated": model.simulated,
        "seed": model.seed,
        "training": dict(model.training),
        "provenance": dict(model.provenance),
        "attachments": {name: a.model_dump() for name, a in model.attachments.items()},
    }


def _fields(document: _ModelDocument) -> dict[str, Any]:
    """Fields of a `Model` from a document whose types are right; checks what types cannot say."""
    labels = labels_module.parse(document.labels)
    preparation = Preparation.from_json(document.preparation)
    files = [member.file for member in document.members]
    # The same network twice would count twice, and make the spread of the ensemble too small.
    if len(set(files)) != len(files):
        raise ValueError("two members have the same file")
    if not document.members and METHOD not in document.attachments:
        raise ValueError("it has no members")
    if document.members and not any(member.kept for member in document.members):
        raise ValueError("no member is kept")
    if document.members and not document.tensors:
        raise ValueError("the members have no weights")
    if not isinstance(document.network.get("name"), str):
        raise ValueError("the network has no name")
    n_observable = len(preparation.observable_names)
    return {
        "labels": labels,
        "network": MappingProxyType(document.network),
        "preparation": preparation,
        "scaling": Scaling(
            _affine(document.scaling.observables, n_observable, "observables"),
            _affine(document.scaling.labels, len(labels), "labels"),
        ),
        "wave_aa": check_wavelengths(document.wave_aa),
        "medium": document.medium,
        "tensors": MappingProxyType({k: tuple(v) for k, v in document.tensors.items()}),
        "members": tuple(document.members),
        "split": SplitRecord.from_json(document.split),
        "simulated": document.simulated,
        "seed": document.seed,
        "training": MappingProxyType(document.training),
        "provenance": MappingProxyType(document.provenance),
        "attachments": MappingProxyType(document.attachments),
    }


def _affine(document: _AffineDocument, n: int, what: str) -> Affine:
    arrays = {name: np.array(row, dtype=np.float64) for name, row in document}
    for name, array in arrays.items():
        if array.size != n:
            raise ValueError(f"the scaling has {array.size} values of {name} for {n} {what}")
    return Affine(**arrays)


def _read_document(path: Path) -> _ModelDocument:
    if not path.is_dir():
        raise ModelFileError(f"{path} is not a model directory; train one with 'maury train'")
    file = path / "model.json"
    for part in (file, path / "members", path / "attachments"):
        # What is checked must be what lies here, not what a link points to at another time.
        if part.is_symlink():
            raise damaged(part, "it is a link, and a model directory may hold none")
    if (path / "joint.json").is_file():
        inside = ", ".join(sorted(one.parent.name for one in path.glob("*/model.json")))
        raise ModelFileError(
            f"{path} is a joint model of several surveys; give it to 'maury joint', or give one "
            f"of the models in it ({inside})"
        )
    if not file.is_file():
        raise ModelFileError(f"{path} holds no model.json, so it is no model directory")
    return read_head(file, MODEL, _ModelDocument, what="maury model")


def read_head(file: Path, kind: Format, document: type[Head], *, what: str) -> Head:
    """Read and check the JSON document that heads a directory.

    Parameters
    ----------
    file : Path
        It exists, and is no link.
    kind : Format
    document : type of BaseModel
    what : str
        What it heads, in words.

    Raises
    ------
    ModelFileError
        If it is too large, not JSON, of another format, or has wrong entries.
    """
    if file.stat().st_size > current().json_bytes:
        raise damaged(file, f"it is larger than {current().json_bytes} bytes")
    try:
        content = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(file, f"it is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != kind.name:
        raise ModelFileError(f"{file} is not the head of a {what}")
    content = kind.upgrade(content, str(file.parent), ModelFileError)
    try:
        return document.model_validate(content)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5]
        ]
        raise damaged(file, "; ".join(problems)) from error


def _read_member(
    directory: Path, member: Member, tensors: Mapping[str, tuple[int, ...]]
) -> dict[str, Float32Array]:
    path = directory / member.file
    weights = read_tensor_file(path, sha256=member.sha256, shapes=tensors)
    for name, array in weights.items():
        # One NaN makes all labels NaN, which would look like stars without an answer.
        if not np.all(np.isfinite(array)):
            raise damaged(path, f"the tensor {name!r} has values that are not finite")
    return weights


def _write_member(directory: Path, member: Member, weights: Mapping[str, Float32Array]) -> Member:
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    data: bytes = save(arrays)
    (directory / member.file).write_bytes(data)
    return member.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})


def _attachment_file(name: str) -> str:
    return f"attachments/{name}.safetensors"


def _write_attachments(directory: Path, model: Model) -> dict[str, Attachment]:
    written = {}
    for name, attachment in model.attachments.items():
        arrays = {key: np.ascontiguousarray(a) for key, a in model.arrays(name).items()}
        data: bytes = save(arrays)
        path = directory / _attachment_file(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        written[name] = attachment.model_copy(update={"sha256": digest})
    return written


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
