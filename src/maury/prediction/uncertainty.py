"""Uncertainty of labels: calibrated errors, quantiles, and reasons for doubt.

Both are learnt once the networks are trained, and lie in the model directory as the attachments
``calibration`` and ``coverage``. They need a network that predicts a covariance and a calibrated
theory (`maury.simulation.training_stars`); a model without them quotes the spread of its ensemble.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import numpy as np

from maury.errors import ModelFileError, TrainingError
from maury.io.arrays import (
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
    StrArray,
)
from maury.labels.flags import FLAG_DTYPE
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork, Prediction
from maury.model.split import HELD_OUT_FOLDS, held_out_fold, star_numbers
from maury.prediction import examples
from maury.prediction.calibration import (
    LEAST_STARS,
    Calibration,
    Evaluated,
    HeldOutResiduals,
    Regime,
    condition,
    repeat_scatter,
    require_stars,
)
from maury.prediction.completeness import completeness, degraded
from maury.prediction.conformal import joint_radii
from maury.prediction.coverage import MOST_STARS, CoverageModel, Evidence, TwoViews
from maury.prediction.labellers import Labeller
from maury.simulation.drawing import DrawConfig
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.observable_map import ObservableMap
from maury.spectra.pixels import FLUX_FLOOR
from maury.spectra.preparation import Inputs, take
from maury.survey.labelled_sample import LabelledSample
from maury.survey.store import Survey

logger = logging.getLogger(__name__)

Relearn = Callable[[Int64Array], TrainingStarSimulator]
"""Learns a theory from the training stars among some rows (n,) of the survey."""


AS_OBSERVED = DrawConfig(tail=0.0, widen=0.0)
"""Simulated stars as frequent as those of the labelled sample, each close to one of them."""
REOBSERVED = DrawConfig(tail=0.0, widen=0.0, step=0.0)
"""The stars that the simulator was made from, with their labels and observables, re-observed."""
N_SIMULATED = 12_000
"""Simulated spectra that give the regime coefficients of the calibration."""
LEAST_PARENTS = 30
"""With fewer unseen stars of a network, those of its training sample are re-observed."""
_REGIME_DRAW = DrawConfig(tail=0.5, widen=0.0, step=0.0)
_REPEAT_PART, _REPEAT_KEY = 4, 13
"""Of the simulated stars, the part that is observed twice: 3000 pairs fix a share to 1 / sqrt(2 n)
= 1.3 %; and the key of their random numbers."""
_N_DEGRADED, _DEGRADED_KEY = 6, 17
"""Times that each labelled star is predicted with a part of its inputs, which makes some hundreds
of stars for each loss of a sample of thousands; and the key of their random numbers."""
_N_PRIOR = 20_000
"""Stars that give the moments of the prior, to one percent of a standard deviation."""
_EXAMPLE_KEY = 19
"""Key of the random numbers of the stars with faults that coverage learns from."""
_MOST_COVER_PIXELS, _LEAST_COVER = 2**24, 1500
"""Pixels of all stars from which coverage is learnt, whose evidence takes some 2 GB, and stars
however many pixels they have: of these, four exceed a threshold by chance. Chosen."""
_FLOOR_SNR = 60.0
"""S/N above which repeats give the floor: where noise adds little, what is left is the floor."""


_Unseen = tuple[Inputs, Float64Array, int | None]
"""Inputs and true labels of stars, and the number of the network that held them out; None: all."""


@dataclass(frozen=True, eq=False)
class UncertaintyModel(Labeller):
    """Calibration and coverage of one model.

    Attributes
    ----------
    network : EnsembleNetwork
    star_simulator : TrainingStarSimulator
        Calibrated theory: from labels to the spectrum that they should have.
    calibration : Calibration
    coverage : CoverageModel or None
        None if too few training stars had a spectrum.
    """

    network: EnsembleNetwork
    star_simulator: TrainingStarSimulator
    calibration: Calibration
    coverage: CoverageModel | None
    calibrated: ClassVar[bool] = True

    @property
    def with_theory(self) -> "UncertaintyModel":
        """Itself, which knows the spectrum that labels should have."""
        return self

    @classmethod
    def load(cls, model: Model, network: EnsembleNetwork) -> Self | None:
        """Read from the model directory; None if the model has no calibration.

        Raises
        ------
        ModelFileError
            If an attachment is damaged.
        """
        if "calibration" not in model.attachments:
            return None
        try:
            calibration = Calibration.from_arrays(model.arrays("calibration"))
        except (KeyError, ValueError) as error:
            raise ModelFileError(f"{model.path}: the calibration is damaged: {error}") from error
        coverage = None
        if "coverage" in model.attachments:
            coverage = CoverageModel.from_arrays(model.arrays("coverage"))
        return cls(network, _star_simulator(model), calibration, coverage)

    @classmethod
    def fit(
        cls,
        model: Model,
        survey: Survey,
        *,
        inherited: Calibration | None = None,
        network: EnsembleNetwork | None = None,
        sample: LabelledSample | None = None,
        relearn: Relearn | None = None,
    ) -> Self:
        """Learn from the labelled stars of a survey, and from simulated ones.

        Errors are calibrated on the validation stars, which neither trained nor chose a network
        of this kind, and on the training stars that single networks held out; coverage is learnt
        from the training stars.

        Parameters
        ----------
        model : Model
            Saved, of a preset that trains on simulated stars.
        survey : Survey
            The survey that trained it.
        inherited : Calibration, optional
            Of another model, for the case that too few validation stars are there.
        network : EnsembleNetwork, optional
            That of the model, where it is loaded already.
        sample : LabelledSample, optional
            The labelled rows of the survey, where they are prepared already.
        relearn : callable, optional
            Learns the theory again from the training stars among some rows (n,) of the survey, for
            a theory that knows the noise of the stars that it was learnt from.

        Raises
        ------
        TrainingError
            If validation stars and those that single networks held out are too few together, and
            no calibration is inherited.
        """
        network, star_simulator = network or EnsembleNetwork(model), _star_simulator(model)
        stars = _Labelled.read(model, network, survey, sample)
        # Validation stars chose nothing: training on simulated stars ends after a fixed number of
        # steps.
        validation = model.split.contains("validation", stars.star_id)
        try:
            calibration = _calibrate(model, network, star_simulator, stars, validation)
        except TrainingError as error:
            if inherited is None:
                raise
            logger.warning(
                "%s: errors are calibrated as those of the source model: %s", model.path, error
            )
            calibration = inherited
        theories = _Theories.of(model, star_simulator, stars, relearn)
        coverage = _cover(model, network, theories, stars)
        return cls(network, star_simulator, calibration, coverage)

    def attach(self, model: Model) -> Model:
        """Return the model with these attachments, for `Model.save` to write."""
        model = model.with_arrays("calibration", self.calibration.to_arrays())
        if self.coverage is not None:
            model = model.with_arrays("coverage", self.coverage.to_arrays())
        return model

    def calibrate(self, inputs: Inputs, prediction: Prediction) -> Prediction:
        """Calibrate the errors of some stars.

        Parameters
        ----------
        inputs : Inputs
            Prepared by the preparation of the model.
        prediction : Prediction
            Of its networks for these inputs.

        Returns
        -------
        Prediction
            Means of the posterior, with calibrated errors, covariance and quantiles.
        """
        regime = _regime(self.network.model, inputs, prediction.mean)
        sigma = self.calibration.errors(prediction.sigma, regime)
        covariance = prediction.covariance
        if covariance is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = sigma / prediction.sigma
            covariance = covariance * factor[:, :, None] * factor[:, None, :]
        mean = self.calibration.means(prediction.mean)
        quantiles = self.calibration.quantiles(mean, sigma)
        own = self.calibration.own_errors(sigma, regime)
        return Prediction(mean, sigma, covariance, quantiles=quantiles, own=own)

    def assess(
        self, inputs: Inputs, prediction: Prediction, star_id: StrArray | None = None
    ) -> Prediction:
        """Calibrate the errors of some stars and flag what is doubtful about them.

        Parameters
        ----------
        inputs : Inputs
            Prepared by the preparation of the model.
        prediction : Prediction
            Of its networks for these inputs.
        star_id : (n_star,) str, optional
            Star of each: no training star is its own neighbour.

        Returns
        -------
        Prediction
            As `calibrate` gives it, with flags, chi-square of the spectrum against its
            reconstruction, and the wavelength where it fits worst, NaN where there is none.
        """
        n_star = len(prediction.mean)
        flags = np.zeros(n_star, FLAG_DTYPE)
        chi2 = worst = np.full(n_star, np.nan)
        if self.coverage is not None and n_star:
            evidence = _evidence(
                self.network,
                self.star_simulator,
                inputs,
                prediction,
                star=None if star_id is None else star_numbers(star_id),
            )
            scores = self.coverage.score(evidence)
            flags = self.coverage.flags(scores).astype(FLAG_DTYPE)
            chi2, worst = scores.chi2_reduced, scores.worst_wavelength_aa
        return replace(
            self.calibrate(inputs, prediction),
            flags=flags,
            chi2_reduced=chi2,
            worst_wavelength_aa=worst,
        )

    def given(
        self, found: Prediction, label: str, value: Float64Array, error: Float64Array
    ) -> Prediction:
        """Take a label known from elsewhere into the others.

        Parameters
        ----------
        found : Prediction
            As `assess` gave it.
        label : str
            Name of the label.
        value, error : (n_star,) float64
            Its measurement and 1 sigma error; a star where either is unknown stays as it is.
        """
        assert found.covariance is not None, "the networks predict a covariance"
        names = self.network.model.label_names
        mean, covariance = condition(
            found.mean, found.covariance, label=label, value=value, error=error, names=names
        )
        sigma = np.sqrt(np.einsum("nii->ni", covariance))
        quantiles = self.calibration.quantiles(mean, sigma)
        # The measurement is of the star, so that it lessens both parts of the error alike.
        own = None if found.own is None else found.own * sigma / found.sigma
        return replace(
            found, mean=mean, sigma=sigma, covariance=covariance, quantiles=quantiles, own=own
        )

    def excess(self, inputs: Inputs, answer: Prediction) -> dict[str, Float64Array]:
        """Return each score of the coverage over its threshold, by detector: above 1 is flagged."""
        assert self.coverage is not None, "the model has no coverage"
        scores = self.coverage.score(_evidence(self.network, self.star_simulator, inputs, answer))
        return self.coverage.excess(scores)


def complete(
    model: Model,
    network: EnsembleNetwork,
    sample: LabelledSample,
    *,
    inherited: Calibration | None = None,
    relearn: Relearn | None = None,
) -> Model:
    """Return a freshly trained model with its calibration and coverage, if its kind has them.

    Parameters
    ----------
    model : Model
        Saved.
    network : EnsembleNetwork
        Its networks.
    sample : LabelledSample
        Labelled rows of the survey that trained it.
    inherited : Calibration, optional
        Of another model, for the case that too few validation stars are there.
    relearn : callable, optional
        As of `UncertaintyModel.fit`.
    """
    if "sky" not in model.attachments:
        return model
    try:
        fitted = UncertaintyModel.fit(
            model,
            sample.survey,
            inherited=inherited,
            network=network,
            sample=sample,
            relearn=relearn,
        )
        return fitted.attach(model)
    except TrainingError as error:
        logger.warning("%s: errors are not calibrated: %s", model.path, error)
        return model


@dataclass(frozen=True)
class _Drawn:
    """Simulated spectra and the labels (n_star, n_label) of their stars."""

    inputs: Inputs
    truth: Float64Array


@dataclass(frozen=True)
class _Labelled:
    """Predictions for the labelled rows of a survey.

    Attributes
    ----------
    star_id, truth, answer, inputs
        Of each row; the answer is that of all networks.
    training : (n_star,) bool
        Which rows are of training stars.
    rows : (n_star,) int64
        Their numbers in the survey.
    """

    star_id: StrArray
    truth: Float64Array
    answer: Prediction
    inputs: Inputs
    training: BoolArray
    rows: Int64Array

    @classmethod
    def read(
        cls,
        model: Model,
        network: EnsembleNetwork,
        survey: Survey,
        sample: LabelledSample | None,
    ) -> Self:
        """Predict every row that trained, chose or was kept for validation."""
        star_id = survey.star_id
        training = model.split.contains("train", star_id)
        rows = np.flatnonzero(training | model.split.contains("validation", star_id))
        sample = sample or LabelledSample.read(survey, model.preparation, rows)
        inputs = sample.prepared(rows)
        truth, answer = survey.labels(model.labels)[rows], network.predict(inputs)
        return cls(star_id[rows], truth, answer, inputs, training[rows], rows)

    def reobserved(
        self,
        model: Model,
        star_simulator: TrainingStarSimulator,
        chosen: BoolArray,
        *,
        n_star: int,
        draw: DrawConfig,
        number: int | None = None,
    ) -> _Drawn:
        """Re-observe some of these stars, held out by network `number` or by all."""
        star_simulator = self.simulator_of(star_simulator, chosen)
        turn = () if number is None else (number,)
        seed = np.random.SeedSequence(model.seed or 0, spawn_key=(7, *turn))
        return _Drawn(*simulated_stars(model, star_simulator, n_star, seed=seed, draw=draw))

    def simulator_of(
        self, star_simulator: TrainingStarSimulator, chosen: BoolArray
    ) -> TrainingStarSimulator:
        """Return a simulator of some of these stars, or the same one if they are too few."""
        whole = chosen & np.isfinite(self.truth).all(axis=1)
        if whole.sum() < LEAST_PARENTS:
            return star_simulator
        # All columns or none: a network without photometry has a simulator without observables.
        observables = self.inputs.observables[whole, : star_simulator.observables.shape[1]]
        return star_simulator.of(
            self.truth[whole],
            observables.astype(np.float64),
            self.inputs.flux[whole],
            self.inputs.ivar[whole],
        )


def _calibrate(
    model: Model,
    network: EnsembleNetwork,
    star_simulator: TrainingStarSimulator,
    stars: _Labelled,
    chosen: BoolArray,
) -> Calibration:
    # Before any star is simulated: a hundred labelled stars have eight to validate with, and forty
    # that four networks held out.
    require_stars(int(chosen.sum() + _unseen_by(model, stars).sum()))
    drawn = stars.reobserved(
        model, star_simulator, chosen, n_star=N_SIMULATED // 2, draw=REOBSERVED
    )
    answer = network.predict(drawn.inputs)
    label, inputs = stars.truth[chosen], take(stars.inputs, chosen)

    def evaluate(answer: Prediction, inputs: Inputs, truth: Float64Array) -> Evaluated:
        # The regime is that of the labels as predicted, as in `calibrate`: there the true ones are
        # unknown.
        return answer.mean - truth, answer.sigma, _regime(model, inputs, answer.mean)

    bright = stars.inputs.snr >= _FLOOR_SNR
    ours = stars.answer.rows(chosen)
    simulated = evaluate(answer, drawn.inputs, drawn.truth)
    held_out, single = _held_out(model, network, star_simulator, stars, drawn, evaluate)
    given = evaluate(ours, inputs, label)
    floor = repeat_scatter(stars.answer.mean[bright], stars.star_id[bright])
    found = Calibration.fit(*given, simulated=simulated, held_out=held_out, floor=floor)
    more = np.ones(label.shape[1]) if held_out is None else found.excess_of(held_out, simulated)
    parts: list[_Unseen] = [(inputs, label, None)]
    parts += [(part, truth, number) for number, (_, part, truth, _) in enumerate(single)]
    found = found.with_completeness(
        *_degraded(model, network, star_simulator.mapping, parts, evaluate, more)
    )
    distance2 = [found.distance2(ours, label, given[2])]
    distance2 += [
        found.distance2(one, truth, regime, more=more) for one, _, truth, regime in single
    ]
    mean, covariance = _prior(star_simulator)
    joint = joint_radii(np.concatenate(distance2))
    found = replace(found, joint=joint, prior_mean=mean, prior_covariance=covariance)
    return _with_repeats(model, network, stars.simulator_of(star_simulator, chosen), found)


def _prior(star_simulator: TrainingStarSimulator) -> tuple[Float64Array, Float64Array]:
    """Moments of the labels that networks were trained on, by the default draw of the stars."""
    columns, _ = star_simulator.drawn(_N_PRIOR, np.random.default_rng(0))
    labels = columns[:, : len(star_simulator.names)]
    return labels.mean(axis=0), np.atleast_2d(np.cov(labels.T))


def _degraded(
    model: Model,
    network: EnsembleNetwork,
    mapping: ObservableMap,
    parts: list[_Unseen],
    evaluate: Callable[[Prediction, Inputs, Float64Array], Evaluated],
    more: Float64Array,
) -> Evaluated:
    """Residuals and errors of labelled stars with a part of their inputs taken away, many times.

    Errors of single networks are brought to those of the ensemble by the factor `more`.
    """
    rng = np.random.default_rng(np.random.SeedSequence(model.seed or 0, spawn_key=(_DEGRADED_KEY,)))
    found = []
    for inputs, truth, number in parts:
        for _ in range(_N_DEGRADED):
            less = degraded(inputs, mapping, rng)
            residual, error, regime = evaluate(network.predict(less, only=number), less, truth)
            found.append((residual, error if number is None else error * more, regime))
    return _pooled(found)


def _with_repeats(
    model: Model,
    network: EnsembleNetwork,
    star_simulator: TrainingStarSimulator,
    found: Calibration,
) -> Calibration:
    """Learn which share of the errors the spectra of one star do not have in common.

    Simulated stars are observed twice, at one S/N, with the same observables: noise, gaps and
    continuum differ, and what the network gets wrong about the star itself does not.
    """
    n_star = max(LEAST_STARS, N_SIMULATED // _REPEAT_PART)
    rng = np.random.default_rng(np.random.SeedSequence(model.seed or 0, spawn_key=(_REPEAT_KEY,)))
    pool = star_simulator.pool(n_star, rng, draw=REOBSERVED)
    row = np.arange(n_star)
    # The second spectrum has the S/N and the observables of the first, else their differences would
    # count as own errors.
    flux, ivar, observables, _ = pool.observe(row, rng)
    first = _as_inputs(model, flux, ivar, observables)
    flux, ivar, _, _ = pool.observe(row, rng, snr=first.snr)
    second = _as_inputs(model, flux, ivar, observables)
    one, two = network.predict(first), network.predict(second)
    regime = _regime(model, first, one.mean)
    difference = (two.mean - one.mean) / np.sqrt(2.0)
    return found.with_repeats(difference, found.errors(one.sigma, regime), regime)


def _held_out(
    model: Model,
    network: EnsembleNetwork,
    star_simulator: TrainingStarSimulator,
    stars: _Labelled,
    drawn: _Drawn,
    evaluate: Callable[[Prediction, Inputs, Float64Array], Evaluated],
) -> tuple[HeldOutResiduals | None, list[tuple[Prediction, Inputs, Float64Array, Regime]]]:
    """Predict the training stars that each network held out, and simulated ones, by it alone.

    None where no network held out any. Then predictions, inputs, true labels and regimes of the
    training stars, by network.
    """
    n_fold = model.training.get(HELD_OUT_FOLDS, 0)
    if not n_fold:
        return None, []
    # The rule of training, repeated from its seed: another one would evaluate networks on stars
    # that they know.
    fold = held_out_fold(stars.star_id, n_fold=n_fold, seed=model.seed or 0)
    n_evaluated = _n_evaluated(model)
    # Each control star is evaluated by one network, so that the sample is as large as that of the
    # ensemble, and weighs all networks alike.
    turn = np.arange(len(drawn.truth)) % n_evaluated
    real: list[Evaluated] = []
    reobserved: list[Evaluated] = []
    control: list[Evaluated] = []
    single: list[tuple[Prediction, Inputs, Float64Array, Regime]] = []
    for number in range(n_evaluated):
        unseen = stars.training & (fold == number)
        again = stars.reobserved(
            model,
            star_simulator,
            unseen,
            n_star=N_SIMULATED // n_evaluated,
            draw=_REGIME_DRAW,
            number=number,
        )
        mine = turn == number
        for evaluated, inputs, truth in (
            (real, take(stars.inputs, unseen), stars.truth[unseen]),
            (reobserved, again.inputs, again.truth),
            (control, take(drawn.inputs, mine), drawn.truth[mine]),
        ):
            prediction = network.predict(inputs, only=number)
            evaluated.append(evaluate(prediction, inputs, truth))
            if evaluated is real:
                single.append((prediction, inputs, truth, real[-1][2]))
    return HeldOutResiduals(*_pooled(real), _pooled(reobserved), _pooled(control)), single


def _n_evaluated(model: Model) -> int:
    """Return how many networks held out a fold of their own."""
    return min(len(model.kept), int(model.training.get(HELD_OUT_FOLDS, 0)))


def _unseen_by(model: Model, stars: _Labelled) -> BoolArray:
    """Training stars (n_star,) that a network held out."""
    n_fold = model.training.get(HELD_OUT_FOLDS, 0)
    if not n_fold:
        return np.zeros(len(stars.star_id), dtype=np.bool_)
    fold = held_out_fold(stars.star_id, n_fold=n_fold, seed=model.seed or 0)
    return np.asarray(stars.training & (fold < _n_evaluated(model)))


def _pooled(parts: list[Evaluated]) -> Evaluated:
    residual, error, regimes = zip(*parts, strict=True)
    columns = (
        np.concatenate([getattr(regime, f.name) for regime in regimes]) for f in fields(Regime)
    )
    return np.concatenate(residual), np.concatenate(error), Regime(*columns)


def simulated_stars(
    model: Model,
    star_simulator: TrainingStarSimulator,
    n_star: int,
    *,
    seed: int | np.random.SeedSequence,
    draw: DrawConfig = AS_OBSERVED,
) -> tuple[Inputs, Float64Array]:
    """Simulate stars that no network has seen.

    Parameters
    ----------
    model : Model
    star_simulator : TrainingStarSimulator
        Its calibrated theory.
    n_star : int
    seed : int or numpy SeedSequence
    draw : DrawConfig
        Which stars; `AS_OBSERVED` are as frequent as in the labelled sample, and `REOBSERVED` are
        the stars that the simulator was made from.

    Returns
    -------
    inputs : Inputs
    truth : (n_star, n_label) float64
    """
    if not isinstance(seed, np.random.SeedSequence):
        seed = np.random.SeedSequence(seed, spawn_key=(7,))
    rng = np.random.default_rng(seed)
    pool = star_simulator.pool(n_star, rng, draw=draw)
    flux, ivar, observables, truth = pool.batch(n_star, rng)
    return _as_inputs(model, flux, ivar, observables), truth


def simulated_residuals(labeller: UncertaintyModel, n_star: int, *, seed: int) -> Evaluated:
    """Residuals and quoted errors of simulated stars that no network has seen, and their regime."""
    model = labeller.network.model
    inputs, truth = simulated_stars(model, labeller.star_simulator, n_star, seed=seed)
    found = labeller.predict(inputs)
    mean = labeller.calibration.means(found.mean)
    return mean - truth, found.sigma, _regime(model, inputs, found.mean)


def _as_inputs(
    model: Model, flux: Float32Array, ivar: Float32Array, observables: Float64Array
) -> Inputs:
    n_star, n_observable = len(flux), len(model.preparation.observable_names)
    if observables.shape[1] != n_observable:
        # Networks without photometry have a simulator without observables.
        observables = np.full((n_star, n_observable), np.nan)
    # With photon noise the variance goes with the flux, so that flux x ivar is alike in lines and
    # continuum: its median is that of the continuum.
    signal = np.sqrt(ivar * np.maximum(flux, np.float32(FLUX_FLOOR)), dtype=np.float64)
    return Inputs(
        flux=flux,
        ivar=ivar,
        observables=observables.astype(np.float32),
        observable_errors=np.full(observables.shape, np.nan, dtype=np.float32),
        flags=np.zeros(n_star, FLAG_DTYPE),
        snr=np.nanmedian(np.where(ivar > 0, signal, np.nan), axis=1),
        wave_aa=model.wave_aa,
        medium=model.medium,
    )


@dataclass(frozen=True)
class _Theories:
    """What reconstructs the spectra of training stars: a theory that knows none of their noise.

    A theory that is learnt from few stars follows the noise of each: the reconstruction of 164
    spectra of the RAVE-like sample leaves .90 per pixel in the median, that of others 1.08, more
    than any of the 164.

    Attributes
    ----------
    whole : TrainingStarSimulator
    parts : list of TrainingStarSimulator
        Of each fold, learnt without it; none where theory does not know the noise of its stars.
    fold : (n_star,) int64
        Of each of the labelled stars.
    """

    whole: TrainingStarSimulator
    parts: list[TrainingStarSimulator]
    fold: Int64Array

    @classmethod
    def of(
        cls,
        model: Model,
        whole: TrainingStarSimulator,
        stars: _Labelled,
        relearn: Relearn | None,
    ) -> Self:
        """Learn the theory without each fold, if it is a learnt one of few stars."""
        named = stars.star_id != ""
        fold = held_out_fold(stars.star_id, n_fold=_THEORY_FOLDS, seed=model.seed or 0)
        fold = np.where(named, fold, np.arange(fold.size) % _THEORY_FOLDS)
        few = stars.training.sum() <= _MOST_RELEARNT
        if whole.learnt is None or relearn is None or not few:
            return cls(whole, [], fold)
        parts = [
            relearn(stars.rows[stars.training & (fold != number)])
            for number in range(_THEORY_FOLDS)
        ]
        return cls(whole, parts, fold)

    def seen(self, labels: Float64Array, inputs: Inputs, rows: Int64Array) -> Float32Array:
        """Reconstruction (n, n_pixel) of labelled stars, by row among these, from their labels."""
        if not self.parts:
            return self.whole.seen(labels, inputs.flux, inputs.ivar)
        out = np.empty_like(inputs.flux)
        for number, part in enumerate(self.parts):
            mine = self.fold[rows] == number
            out[mine] = part.seen(labels[mine], inputs.flux[mine], inputs.ivar[mine])
        return out


_THEORY_FOLDS = 5
"""Each theory knows four fifths of the stars: with fewer folds it would be worse than the whole."""
_MOST_RELEARNT = 5000
"""Of more stars a theory of some eighty terms and thirty modes knows the noise to two percent, and
to learn it five times again would take minutes."""


def _cover(
    model: Model, network: EnsembleNetwork, theories: _Theories, stars: _Labelled
) -> CoverageModel | None:
    n_pixel = stars.inputs.flux.shape[1]
    rows = _few(stars.training & (stars.inputs.ivar > 0).any(axis=1), n_pixel)
    inputs, answer = take(stars.inputs, rows), stars.answer.rows(rows)
    rotating, double = _examples(model, network, theories, stars)
    seen = theories.seen(answer.mean, inputs, rows)
    star = star_numbers(stars.star_id[rows])
    try:
        return CoverageModel.fit(
            _evidence(network, theories.whole, inputs, answer, star=star, seen=seen),
            wave_aa=theories.whole.wave_aa,
            label_names=model.label_names,
            noise_correlation=inputs.noise_correlation,
            rotating=rotating,
            double=double,
        )
    except TrainingError as error:
        logger.warning("coverage is not learnt: %s", error)
        return None


def _few(chosen: BoolArray, n_pixel: int) -> Int64Array:
    """Rows of the chosen stars, evenly over the survey if coverage does not learn from so many."""
    rows = np.flatnonzero(chosen)
    most = min(MOST_STARS, max(_LEAST_COVER, _MOST_COVER_PIXELS // n_pixel))
    return rows[np.linspace(0, rows.size - 1, min(rows.size, most)).astype(np.int64)]


def _examples(
    model: Model, network: EnsembleNetwork, theories: _Theories, stars: _Labelled
) -> tuple[Evidence | None, Evidence | None]:
    """Training stars that rotate, and with companions; None if networks take no photometry."""
    whole = _few(stars.training & np.isfinite(stars.truth).all(axis=1), stars.inputs.flux.shape[1])
    inputs, truth = take(stars.inputs, whole), stars.truth[whole]
    simulator = theories.whole
    if _sums(simulator, inputs) is None or not len(inputs):
        return None, None
    rng = np.random.default_rng(np.random.SeedSequence(model.seed or 0, spawn_key=(_EXAMPLE_KEY,)))
    turning = examples.rotating(simulator, inputs, truth, rng)
    double, chosen = examples.with_companions(simulator, inputs, truth, rng)
    if len(double) == 0:
        return None, None
    found = []
    for one, rows in ((turning, whole), (double, whole[chosen])):
        answer = network.predict(one)
        seen = theories.seen(answer.mean, one, rows)
        found.append(_evidence(network, simulator, one, answer, seen=seen))
    return found[0], found[1]


def _evidence(
    network: EnsembleNetwork,
    star_simulator: TrainingStarSimulator,
    inputs: Inputs,
    answer: Prediction,
    *,
    star: Int64Array | None = None,
    seen: Float32Array | None = None,
) -> Evidence:
    if seen is None:
        seen = star_simulator.seen(answer.mean, inputs.flux, inputs.ivar)
    return Evidence(
        flux=inputs.flux,
        ivar=inputs.ivar,
        snr=inputs.snr,
        labels=answer.mean,
        reconstruction=seen,
        views=_views(network, inputs),
        star=star,
        observables=_sums(star_simulator, inputs),
    )


def _sums(star_simulator: TrainingStarSimulator, inputs: Inputs) -> Float32Array | None:
    """Observables that are sums of magnitudes and extinctions; None if networks take none."""
    responses = star_simulator.mapping.responses
    if responses.shape[1] != inputs.observables.shape[1]:
        return None
    # Errors and further columns lie near no surface.
    return inputs.observables[:, (responses != 0).any(axis=0)]


def _views(network: EnsembleNetwork, inputs: Inputs) -> TwoViews:
    """Labels from each half of the inputs; NaN where a star has only one of them."""
    # The same network for both views: it was trained with inputs missing, so that it answers from
    # either half alone.
    nothing = np.full_like(inputs.observables, np.nan)
    spectrum = network.predict(replace(inputs, observables=nothing))
    photometry = network.predict(replace(inputs, ivar=np.zeros_like(inputs.ivar)))
    assert spectrum.covariance is not None, (
        "the two views need a network that predicts a covariance"
    )
    assert photometry.covariance is not None, (
        "the two views need a network that predicts a covariance"
    )
    # A view of a few bands would differ for want of knowledge, not because it is of another star.
    seen = network.photometry_share(inputs.observables) > 0.5
    both = seen & (inputs.ivar > 0).any(axis=1)
    return TwoViews(
        np.where(both[:, None], spectrum.mean, np.nan),
        spectrum.covariance,
        np.where(both[:, None], photometry.mean, np.nan),
        photometry.covariance,
    )


def _regime(model: Model, inputs: Inputs, mean: Float64Array) -> Regime:
    names = list(model.label_names)

    def label(name: str) -> Float64Array:
        return mean[:, names.index(name)] if name in names else np.full(len(mean), np.nan)

    takes = model.network.get("photometry") is not False
    mapping = model.preparation.observable_map if takes else ObservableMap.empty()
    there = completeness(inputs, mapping)
    return Regime(inputs.snr, label("logg"), label("m_h"), there)


def _star_simulator(model: Model) -> TrainingStarSimulator:
    return TrainingStarSimulator.of_model(model)
