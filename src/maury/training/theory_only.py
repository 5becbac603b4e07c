"""A model from theory alone: for spectra of which nobody has labels.

The networks are trained by the recipe of the default preset on stars that the shipped emulator
simulates on the pixels of a survey, at its resolving power and with its noise. Theory errs, and
without labelled stars nothing tells by how much. So each simulated star differs from the emulator
in a way of its own, as strongly as theory is taken to differ from the sky, and the errors are
calibrated on such stars: they hold if that guess does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from maury.errors import ConfigError
from maury.io.cluster import Cluster
from maury.io.files import refuse_existing
from maury.model.directory import THEORY_ONLY, Model
from maury.model.output import Unseen
from maury.prediction.uncertainty import Relearn
from maury.simulation.mismatch import TheoryMismatch
from maury.simulation.observing import TRAINING_CONDITIONS, ObservingModel
from maury.simulation.surveys import Simulation, require_reached, simulate_survey, snr_of
from maury.survey.labelled_sample import LabelledSample
from maury.survey.store import Survey
from maury.training import ensemble
from maury.training.processes import Progress, Stage
from maury.training.runs import Completion
from maury.training.settings import EnsembleConfig, resolve

logger = logging.getLogger(__name__)

__all__ = ["MISMATCH", "train_on_theory"]

MISMATCH = TheoryMismatch(line_strength=0.1, ca_core=0.1, ca_core_scatter=0.05, alike=False)
"""How theory is taken to differ from the sky. Lines of Kepler-409 (Gaia RVS, S/N 164, labels of the
literature) are off by 11 % (rms of nine pieces of 25 angstrom, errors of its labels included), its
Ca II cores are deeper than the emulator's by 0, 10 and 7 % of their flux: that is one star, and no
more is known here."""
CONTINUUM_LEVEL = 0.0125
"""How far the level of a continuum lies from that of theory, rms: 1.25, -1.73 and .58 % in the RVS
spectra of HD 176650, KOI-1 and Kepler-409, at the labels that a model of theory alone gives them.
That is three stars of one survey, and no more is known here."""
_N_STAR = 3000
"""Simulated stars that stand for a labelled sample, of the size of the published ones."""


class _OnTheory(Completion):
    """Completes a model, and lets it say that theory alone trained it."""

    def __init__(self, survey: Survey, stage: Stage) -> None:
        super().__init__(stage=stage)
        self._survey = survey

    def __call__(
        self,
        model: Model,
        sample: LabelledSample,
        unseen: Callable[[], Unseen | None] | None = None,
        *,
        relearn: Relearn | None = None,
    ) -> Model:
        whole = super().__call__(model, sample, unseen, relearn=relearn)
        about = {
            "survey": self._survey.path.name,
            "mismatch": MISMATCH.model_dump(mode="json", exclude={"seed"}),
            "continuum_level": CONTINUUM_LEVEL,
        }
        return replace(whole, provenance={**whole.provenance, THEORY_ONLY: about})


def train_on_theory(
    survey: Survey | Path | str,
    model: Path | str,
    *,
    members: int | None = None,
    seed: int = 0,
    config: EnsembleConfig | Mapping[str, Any] | Path | str | None = None,
    n_processes: int | None = None,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
    stage: Stage = logger.info,
    overwrite: bool = False,
) -> Model:
    """Train the default preset for a survey without labels, on theory alone.

    A run that was killed goes on when it is started again.

    Parameters
    ----------
    survey : Survey or path-like
        Whose pixels, resolving power, noise and S/N the stars are simulated with; within 8404-8800
        angstrom. No label of it is read.
    model : path-like
        Model directory to write.
    members : int, optional
        Number of networks, in place of that of `config`.
    seed : int
        Of the simulated stars, the split and every member.
    config : EnsembleConfig, mapping or path of a TOML file, optional
        As of `maury.training.runs.train`, of the preset ``maury``.
    n_processes : int, optional
        Members trained at a time, one thread each; as many as there are processors by default.
    cluster : Cluster, optional
        Workers to train the members on, in place of processes here.
    progress : callable, optional
        Called with a `maury.training.processes.MemberEvent` after each epoch of each member.
    stage : callable
        Called with what begins, in words.
    overwrite : bool
        Replace an existing model, and discard a partial one of other settings.

    Returns
    -------
    Model
        It is marked as made of simulated spectra; its card and the columns of its catalogues say
        that no star of the sky calibrated its errors.

    Raises
    ------
    ConfigError
        If the emulator does not reach over the pixels, the resolving power is not known, or the
        settings are not of the preset ``maury``.
    OutputExists, ResumeMismatch
        If a model, or a partial one of other settings, is in the way.

    Examples
    --------
    >>> model = train_on_theory("unlabelled.zarr", "theory.model")  # doctest: +SKIP
    """
    refuse_existing(Path(model), overwrite=overwrite)
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    settings = resolve(config, preset=None, members=members, split=None)
    simulation = Simulation(observing=_conditions(survey, settings))
    completion = _OnTheory(survey, stage)
    # Not kept: the same seed gives the same stars, so that a run that was killed finds them again.
    with TemporaryDirectory(prefix="maury-") as folder:
        stage(f"simulating {_N_STAR} stars on the pixels of {survey.path.name}")
        stars = simulate_survey(
            Path(folder) / "theory.zarr",
            n_star=_N_STAR,
            seed=seed,
            simulation=simulation,
            like=survey,
        )
        return ensemble.train(
            stars,
            model,
            seed=seed,
            config=settings,
            n_processes=n_processes,
            cluster=cluster,
            progress=progress,
            stage=stage,
            overwrite=overwrite,
            complete=completion,
            finish=completion.describe,
        )


def _conditions(survey: Survey, settings: EnsembleConfig) -> ObservingModel:
    """Return how the spectra of a survey are observed, with theory as wrong as it may be."""
    if not settings.network.simulates:
        raise ConfigError(
            f"the preset {settings.network.name!r} learns from labelled spectra; theory alone "
            "trains the preset 'maury'"
        )
    require_reached(survey)
    seen = settings.seen_in(survey, theory="emulator").training
    observing = TRAINING_CONDITIONS.at_power(seen.observing.resolving_power)  # type: ignore[union-attr]
    if survey.noise_correlation is not None:
        observing = observing.with_noise(survey.noise_correlation)
    wrong = {"theory_mismatch": MISMATCH, "continuum_level": CONTINUUM_LEVEL}
    return observing.model_copy(update={**wrong, **snr_of(survey)})
