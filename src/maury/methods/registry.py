"""Methods by name; a method's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from pydantic import ValidationError

from maury.errors import ConfigError, ModelFileError, check_known, suggestion
from maury.io.arrays import BoolArray, Float64Array
from maury.io.own_parts import Parts
from maury.methods.protocols import NO_EXTERNAL, External, FitResult, Method, MethodSettings
from maury.model.directory import METHOD, Model
from maury.model.output import Prediction, has_spectrum
from maury.spectra.batch import Batch
from maury.spectra.preparation import Inputs

__all__ = [
    "METHODS",
    "MethodNetwork",
    "as_prediction",
    "load_method",
    "method_class",
    "method_settings",
]

_OWN: Mapping[str, str | type[Method[Any]]] = {
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
METHODS: Parts[str | type[Method[Any]]] = Parts("maury.methods", _OWN)
"""Module and class of every method; of one that others add, the class itself."""


def method_class(name: str) -> type[Method[Any]]:
    """Return the class of the method `name`.

    Raises
    ------
    UnknownName
        If there is no such method.
    """
    part = METHODS[check_known("method", name, METHODS)]
    if isinstance(part, str):
        module, _, attribute = part.partition(":")
        part = getattr(import_module(f"maury.methods.{module}"), attribute)
    found: type[Method[Any]] = part
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
            problems.append(
                f"[method] {key}: {item['msg']}, got {item['input']!r:.100}{hint}{known}"
            )
        raise ConfigError(f"the settings of {name} are wrong: " + "; ".join(problems)) from error


def load_method(model: Model) -> Method[Any]:
    """Read the method of a model.

    Raises
    ------
    ModelFileError
        If the method is not known, or its arrays do not fit it.
    """
    options = {name: value for name, value in model.network.items() if name != "name"}
    name = str(model.network["name"])
    try:
        settings = method_settings(name, options)
        return method_class(name).from_arrays(
            model.arrays(METHOD),
            model.attachments[METHOD].metadata,
            settings=settings,
            label_names=model.label_names,
        )
    except ConfigError as error:
        raise ModelFileError(f"{model.path}: {error}; use a newer maury") from error
    except (KeyError, ValueError, TypeError) as error:
        raise ModelFileError(f"{model.path}: the method '{name}' is damaged: {error}") from error


class MethodNetwork:
    """The method of a model, where an ensemble has its networks.

    Parameters
    ----------
    model : Model
        A saved model that `maury.methods.training` made.
    """

    needs_spectrum = True

    def __init__(self, model: Model) -> None:
        self.model = model
        self.method = load_method(model)

    @property
    def needs(self) -> set[str]:
        """Inputs without which no star is answered."""
        return {"spectrum"}

    def predict(self, inputs: Inputs, external: Mapping[str, External] = NO_EXTERNAL) -> Prediction:
        """Labels, errors and covariances; a row without a spectrum is NaN.

        Parameters
        ----------
        inputs : Inputs
            Prepared by the preparation of the model.
        external : mapping of str to External
            Labels known from elsewhere, as from `external`.
        """
        return as_prediction(self.method.apply(inputs, external=external), inputs)

    def external(self, batch: Batch) -> dict[str, External]:
        """Labels that the method takes from columns of the survey."""
        names = self.method.external_names
        return {name: External(batch.column(name), batch.column(f"{name}_error")) for name in names}


def as_prediction(result: FitResult, inputs: Inputs) -> Prediction:
    """Turn the result of a method into what a model says."""
    # The preparation fills pixels: a method cannot see by the flux that there was no spectrum.
    blank = ~has_spectrum(inputs)
    labels = np.where(blank[:, None], np.nan, result.labels)
    covariance = np.where(blank[:, None, None], np.nan, result.covariance)
    fitted = result.flux is not None
    # A fit that did not converge may have a covariance that is none: its errors are unknown.
    with np.errstate(invalid="ignore"):
        sigma = np.sqrt(np.einsum("nii->ni", covariance))
    return Prediction(
        mean=labels,
        sigma=np.asarray(sigma),
        covariance=covariance,
        flags=np.where(blank, 0, result.flags).astype(result.flags.dtype),
        chi2_reduced=np.where(blank, np.nan, result.chi2_reduced) if fitted else None,
        worst_wavelength_aa=_worst(result, inputs, blank) if fitted else None,
        further={name: np.where(blank, np.nan, one) for name, one in result.further.items()},
    )


def _worst(result: FitResult, inputs: Inputs, blank: BoolArray) -> Float64Array:
    """Wavelength (n_star,) of the pixel farthest from the best fit, in units of its noise."""
    assert result.flux is not None, "only a fit has a worst pixel"
    distance = np.abs(inputs.flux - result.flux) * np.sqrt(inputs.ivar)
    distance = np.where(np.isfinite(distance), distance, 0.0)
    return np.where(blank, np.nan, inputs.wave_aa[distance.argmax(axis=1)])
