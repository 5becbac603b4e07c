"""`maury`: stellar labels that can be trusted, from spectra, photometry and astrometry.

Public names are resolved when first used; importing `maury` does nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "Batch": "survey",
    "Catalogue": "catalogue",
    "Emulator": "emulator",
    "Flag": "flags",
    "LABELS": "labels",
    "Label": "labels",
    "MauryError": "errors",
    "Model": "model",
    "Preparation": "preparation",
    "Spectra": "spectra",
    "Survey": "survey",
    "SurveyWriter": "survey",
    "import_keras": "keras_import",
    "ingest_released": "readers",
    "ingest_toml": "readers",
    "predict": "prediction",
    "simulate_survey": "simulate",
    "to_specutils": "converters",
    "to_table": "converters",
    "to_xarray": "converters",
    "train": "learning",
    "validate": "validation",
    "write_report": "report",
}

__all__ = [*sorted(_HOME), "__version__"]

if TYPE_CHECKING:
    from maury.catalogue import Catalogue as Catalogue
    from maury.converters import to_specutils as to_specutils
    from maury.converters import to_table as to_table
    from maury.converters import to_xarray as to_xarray
    from maury.emulator import Emulator as Emulator
    from maury.errors import MauryError as MauryError
    from maury.flags import Flag as Flag
    from maury.keras_import import import_keras as import_keras
    from maury.labels import LABELS as LABELS
    from maury.labels import Label as Label
    from maury.learning import train as train
    from maury.model import Model as Model
    from maury.prediction import predict as predict
    from maury.preparation import Preparation as Preparation
    from maury.readers import ingest_released as ingest_released
    from maury.readers import ingest_toml as ingest_toml
    from maury.report import write_report as write_report
    from maury.simulate import simulate_survey as simulate_survey
    from maury.spectra import Spectra as Spectra
    from maury.survey import Batch as Batch
    from maury.survey import Survey as Survey
    from maury.survey import SurveyWriter as SurveyWriter
    from maury.validation import validate as validate


def __getattr__(name: str) -> object:
    if name in _HOME:
        module = import_module(f"maury.{_HOME[name]}")
        value = getattr(module, name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'maury' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
