"""From a labelled survey to a model whose labels can be trusted: train, calibrate, cover."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ConfigError, MauryError, check_known
from maury.evaluation.audit import audit
from maury.evaluation.audit_report import audit_metadata
from maury.evaluation.card import add_card, figures_of
from maury.io.cluster import Cluster
from maury.io.workers import one_thread
from maury.methods.registry import METHODS, MethodNetwork
from maury.methods.training import train_method
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork
from maury.model.networks.published import PRESETS
from maury.model.output import Unseen
from maury.prediction.calibration import Calibration
from maury.prediction.drift import with_sample
from maury.prediction.residual_calibration import with_residual_calibration
from maury.prediction.self_check import with_self_check
from maury.prediction.spectrum_likeness import with_likeness
from maury.prediction.survey_check import with_common
from maury.prediction.uncertainty import Relearn, UncertaintyModel, complete
from maury.survey.labelled_sample import LabelledSample
from maury.survey.store import Survey
from maury.training import ensemble
from maury.training.processes import Progress, Stage
from maury.training.settings import EnsembleConfig, resolve

logger = logging.getLogger(__name__)


def train(
    survey: Survey | Path | str,
    model: Path | str,
    *,
    preset: str | None = None,
    method: str | None = None,
    members: int | None = None,
    seed: int = 0,
    config: EnsembleConfig | Mapping[str, Any] | Path | str | None = None,
    leave_out: Path | str | None = None,
    split: str | None = None,
    n_processes: int | None = None,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
    stage: Stage = logger.info,
    overwrite: bool = False,
) -> Model:
    """Train an ensemble, calibrate its errors, learn what it covers, and audit it.

    Everything in the making lies in ``<model>.part``: a run that was killed goes on from there when
    it is started again, and ends with the same bits. Models of the default preset get a calibration
    of their errors, a coverage and an audit report; others a calibration on the residuals of stars
    that they did not learn from. A
    card with the figures of the validation stars is written into every model directory.

    Parameters
    ----------
    survey : Survey or path-like
        Spectra, at least some of them with labels.
    model : path-like
        Model directory to write.
    preset : str, optional
        Architecture of the networks: ``maury`` (the default), ``guiglion2020``, ``starnet`` or
        ``astronn``; in place of that of `config`.
    method : str, optional
        A method instead of networks, such as ``cannon`` or ``payne``
        (`maury.methods.registry.METHODS`), which has no members and is trained in this process; the
        name of a preset is taken as `preset`.
    members : int, optional
        Number of networks of the ensemble, in place of that of `config`.
    seed : int
        Seed of the split and of every member. The same seed gives the same model.
    config : EnsembleConfig, mapping or path of a TOML file, optional
        Settings in the sections ``network``, ``training``, ``preparation``, ``split`` and
        ``ensemble``; of a method, ``method``, ``preparation`` and ``split``. What is left out has
        the default of the preset or method.
    leave_out : path-like, optional
        Table with a column ``id``, such as `maury.evaluation.suspects` lists: the stars of these
        spectra neither train networks nor calibrate errors. Test stars among them stay test stars.
    split : {"star", "published"}, optional
        Rule by which stars are divided into training, validation and test, in place of that of
        `config`: all spectra of a star on one side, or row by row as in the published work.
    n_processes : int, optional
        Members trained at a time, one thread each; as many as there are processors by default. The
        result does not depend on it.
    cluster : Cluster, optional
        Workers to train the members on (`maury.io.cluster.connect`), in place of processes here.
    progress : callable, optional
        Called with a `maury.training.processes.MemberEvent` (member, epoch, losses) after each
        epoch of each member.
    stage : callable
        Called with what begins, in words: the theory that was chosen, and why; what follows the
        networks. Logged by default.
    overwrite : bool
        Replace an existing model, and discard a partial one of other settings.

    Returns
    -------
    Model
        The model as written.

    Raises
    ------
    ConfigError
        If settings are wrong, all of them listed, or both a preset and a method are given; if the
        preset ``maury`` cannot simulate stars like those of the survey.
    UnknownName
        If there is no such preset or method.
    TrainingError
        If too few stars have labels and inputs, or a member fails.
    OutputExists, ResumeMismatch
        If a model, or a partial one of other settings or data, is in the way.

    Examples
    --------
    >>> import maury
    >>> model = maury.train("survey.zarr", "my.model", seed=1)  # doctest: +SKIP
    """
    if method is not None and method not in PRESETS:
        if preset is not None:
            raise ConfigError(f"give a preset or a method, got {preset!r} and {method!r}")
        _check_method(method)
        completion = Completion(stage=stage)
        stage(f"fitting {method} to the labelled stars")
        return train_method(
            survey,
            model,
            method=method,
            seed=seed,
            config=_sections(config),
            leave_out=leave_out,
            split=split,
            overwrite=overwrite,
            complete=completion,
            finish=completion.describe,
        )
    preset = method or preset
    settings = resolve(config, preset=preset, members=members, split=split)
    completion = Completion(stage=stage)
    return ensemble.train(
        survey,
        model,
        seed=seed,
        config=settings,
        leave_out=leave_out,
        n_processes=n_processes,
        cluster=cluster,
        progress=progress,
        stage=stage,
        overwrite=overwrite,
        complete=completion,
        finish=completion.describe,
    )


def _check_method(name: str) -> None:
    check_known("method", name, [*METHODS, *PRESETS])


def _sections(
    config: EnsembleConfig | Mapping[str, Any] | Path | str | None,
) -> Mapping[str, Any] | Path | str | None:
    """Return settings of a method, which those of an ensemble are not."""
    if isinstance(config, EnsembleConfig):
        raise ConfigError("settings of an ensemble cannot train a method; give its own, or none")
    return config


class Completion:
    """What follows the training of networks or of a method, on one sample and one set of networks.

    The labelled rows are prepared by the training, and the networks are built once, when their
    weights are known; calibration, drift, self-check, audit and card take both from here.

    Parameters
    ----------
    inherited : Calibration, optional
        Of another model, for the case that too few validation stars are there to calibrate errors.
    stage : callable
        Called with what begins, in words.
    """

    def __init__(self, *, inherited: Calibration | None = None, stage: Stage = logger.info) -> None:
        self._inherited, self._stage = inherited, stage
        self._opened: tuple[LabelledSample, EnsembleNetwork | MethodNetwork] | None = None

    def __call__(
        self,
        model: Model,
        sample: LabelledSample,
        unseen: Callable[[], Unseen | None] | None = None,
        *,
        relearn: Relearn | None = None,
    ) -> Model:
        """Return a trained model with calibration, coverage, sample, self-check and audit.

        Parameters
        ----------
        model : Model
            Trained.
        sample : LabelledSample
            Labelled rows of the survey that trained it.
        unseen : callable, optional
            Predicts stars that a method did not learn from; of networks, these are the validation
            stars.
        relearn : callable, optional
            As of `maury.prediction.uncertainty.complete`.
        """
        self._stage("calibrating errors, and learning what the sample covers")
        network = self.open(model, sample)
        if isinstance(network, MethodNetwork):
            whole = with_residual_calibration(model, None if unseen is None else unseen())
            whole = with_likeness(with_sample(whole, sample), sample)
            return with_self_check(whole, sample, network=network)
        # Threads gain little on small matrices, cost minutes on a busy machine, where they wait for
        # one another, and change last digits.
        with one_thread():
            return self._completed(model, network, sample, relearn)

    def _completed(
        self,
        model: Model,
        network: EnsembleNetwork,
        sample: LabelledSample,
        relearn: Relearn | None,
    ) -> Model:
        whole = complete(model, network, sample, inherited=self._inherited, relearn=relearn)
        if "sky" not in whole.attachments:
            whole = with_residual_calibration(whole, _validation_stars(whole, network, sample))
            whole = with_likeness(whole, sample)
        self._stage("measuring what later surveys are compared with")
        if labeller := UncertaintyModel.load(whole, network):
            whole = with_common(whole, labeller, sample)
        whole = with_self_check(with_sample(whole, sample), sample, network=network)
        if "calibration" not in whole.attachments:
            return whole
        self._stage("auditing: which labels are measured")
        try:
            report = audit(whole, sample.survey, network=network, sample=sample)
        except MauryError as error:
            logger.warning("%s is not audited: %s", model.path, error)
            return whole
        return whole.with_arrays("audit", report.to_arrays(), metadata=audit_metadata(report))

    def open(self, model: Model, sample: LabelledSample) -> EnsembleNetwork | MethodNetwork:
        """Build the networks of a model whose weights are known, unless that was done."""
        if self._opened is None:
            network = MethodNetwork(model) if model.is_method else EnsembleNetwork(model)
            self._opened = sample, network
        return self._opened[1]

    def describe(self, model: Model, name: str) -> None:
        """Write the card of a model that is about to get its name."""
        self._stage("measuring the validation stars for the card")
        measure = None
        if self._opened is not None:
            sample, network = self._opened
            measure = partial(figures_of, sample=sample, network=network)
        add_card(model, measure, name=name)


def _validation_stars(
    model: Model, network: EnsembleNetwork, sample: LabelledSample
) -> Unseen | None:
    """Predict the validation stars; None where they are the test stars, or there are none.

    They ended the training of each network, and chose some of the networks: a handful of numbers,
    by which residuals of hundreds of stars become no smaller than sampling makes them.
    """
    if model.split.rule == "published":
        logger.warning("errors are not calibrated: the published split has no stars to do it on")
        return None
    star_id, record = sample.survey.star_id, model.split
    rows = np.flatnonzero(record.contains("validation", star_id))
    rows = rows[np.isin(rows, sample.rows)]
    if not rows.size:
        return None
    inputs = sample.prepared(rows)
    truth = sample.survey.labels(model.labels)[rows]
    what = "validation stars, which ended the training of networks and chose among them"
    return Unseen(inputs, network.predict(inputs), truth, star_id[rows], what)
