"""From a labelled survey to a model whose labels can be trusted: train, calibrate, cover."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maury import ensemble
from maury.members import Progress
from maury.model import Model
from maury.settings import EnsembleConfig, resolve
from maury.survey import Survey
from maury.trust import completion


def train(
    survey: Survey | Path | str,
    model: Path | str,
    *,
    preset: str | None = None,
    members: int | None = None,
    seed: int = 0,
    config: EnsembleConfig | Mapping[str, Any] | Path | str | None = None,
    split: str | None = None,
    n_processes: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Model:
    """Train an ensemble, calibrate its errors, and learn what its training sample covers.

    The arguments, the result and the errors are those of `maury.ensemble.train`. Models of the
    default preset get a calibration (`maury.calibration`) and a coverage (`maury.coverage`);
    others quote the spread of their networks.

    Examples
    --------
    >>> import maury
    >>> model = maury.train("survey.zarr", "my.model", seed=1)  # doctest: +SKIP
    """
    settings = resolve(config, preset=preset, members=members, split=split)
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    return ensemble.train(
        survey,
        model,
        seed=seed,
        config=settings,
        n_processes=n_processes,
        progress=progress,
        overwrite=overwrite,
        complete=completion(survey),
    )
