"""What methods that fit theory to spectra share: calibration, residuals, priors, starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

from maury.errors import ConfigError, ModelFileError
from maury.io.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from maury.labels.definitions import LABEL_NAMES
from maury.methods.fitting.chain import Broadening, Calibrated, Chain, Continuum, Modes
from maury.methods.fitting.starting import RidgeStart
from maury.methods.protocols import Evaluation, ForwardModel, Sample
from maury.simulation.emulator import Emulator
from maury.simulation.observing import TRAINING_CONDITIONS, ObservingModel, Spectrograph
from maury.simulation.population import NUISANCE_NAMES, Population
from maury.simulation.quantities import EMULATOR_LABELS
from maury.simulation.theory_calibration import TheoryCalibration
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.operators import vacuum_to_air

__all__ = [
    "OFFSETS",
    "TYPICAL_STARS",
    "EmulatorSource",
    "at_rest",
    "calibrate",
    "conditions_of",
    "draw_nuisances",
    "finite_rows",
    "in_air",
    "known_power",
    "learn_start",
    "nuisance_sigmas",
    "observed_chain",
    "require_emulator",
    "shipped_emulator",
    "smooth_patterns",
    "typical_labels",
]

OFFSETS: tuple[str, ...] = tuple(f"off_{name.removeprefix('d_')}" for name in NUISANCE_NAMES)
"""Microturbulence (km/s) and abundances (dex) less what is typical of a star of its labels."""
_STEPS = np.array([1.0, 0.01, 0.01, 0.0, 0.01, 0.0, 0.0, 0.0, 0.0])


@cache
def shipped_emulator() -> Emulator:
    """Return the emulator that ships with the package, read once."""
    return Emulator.load()


@dataclass(frozen=True, eq=False)
class EmulatorSource:
    """Emulated flux on the emulator's own grid, by the nine labels and offsets of the others.

    Attributes
    ----------
    offsets : tuple of str
        Of `OFFSETS`: parameters beside the nine labels. The others are zero: such a label is
        typical of the population (`maury.simulation.population.Population.complete`).
    """

    offsets: tuple[str, ...] = ()
    _emulator: Emulator = field(default_factory=shipped_emulator, repr=False)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The nine labels, then the offsets."""
        return LABEL_NAMES + self.offsets

    @cached_property
    def bounds(self) -> Float64Array:
        """Those of the emulator; offsets may be half as large as its whole range."""
        ends = self._emulator.bounds
        width = np.ptp(ends[self._open], axis=1)[:, None] * np.array([-0.5, 0.5])
        return np.concatenate([ends[:_N], width])

    @property
    def wave_aa(self) -> Float64Array:
        """Wavelengths (n_pixel,), uniform in their logarithm."""
        return self._emulator.wave_aa

    @cached_property
    def _open(self) -> Int64Array:
        return np.array([_N + OFFSETS.index(name) for name in self.offsets], dtype=np.int64)

    def complete(self, labels: Float64Array) -> Float64Array:
        """All labels (n_star, 16) of the emulator."""
        full = Population.load().complete(labels[:, :_N])
        full[:, self._open] += labels[:, _N:]
        return full

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux and derivatives; see `maury.methods.protocols.ForwardModel`."""
        full = self.complete(labels)
        flux = self._emulator.flux(full)
        slopes = self._emulator.slopes(full, self._directions(labels)) if jacobian else None
        return Evaluation(flux, slopes)

    def variance(self, labels: Float64Array) -> Float32Array:
        """Mean squared error of the emulator (n_pixel,) against synthesis, at full resolution."""
        del labels
        return np.asarray(self._emulator.error**2)

    def _directions(self, labels: Float64Array) -> Float64Array:
        """Return what the emulator's labels gain per unit of ours, (n_star, n_label, 16)."""
        nine = labels[:, :_N]
        out = np.zeros((len(nine), _N + self._open.size, len(EMULATOR_LABELS)))
        out[:, range(_N), range(_N)] = 1.0
        out[:, range(_N, out.shape[1]), self._open] = 1.0
        moved = np.flatnonzero(_STEPS)
        steps = np.diag(_STEPS)[moved]
        ends = np.stack([nine + step for step in (*steps, *-steps)]).reshape(-1, _N)
        typical = Population.load().complete(ends)[:, _N:].reshape(2, moved.size, len(nine), -1)
        rise = (typical[0] - typical[1]) / (2 * _STEPS[moved, None, None])
        out[:, moved, _N:] = rise.transpose(1, 0, 2)
        return out


_N = len(LABEL_NAMES)
TYPICAL_STARS = 2000
"""Stars of the population that stand in for training stars where there are too few."""
LEAST_STARS = 60
"""Stars with all labels below which theory is not calibrated."""
# The seven orders of the continuum residuals of the observing model.
_CONTINUUM_ORDERS = 7
# Spectra that starts are learnt from; a start has only to lie in the right valley.
_LIBRARY = 1500
# Stars that give the scatter of offsets, to a percent.
_SCATTERS = 4000


def observed_chain(
    wave_aa: Float64Array,
    calibration: TheoryCalibration | None,
    own_variance: Float32Array,
    *,
    observing: ObservingModel = TRAINING_CONDITIONS,
    nuisances: bool = True,
) -> Chain:
    """Return the emulator as a survey sees it, with all that a fit leaves open.

    Parameters
    ----------
    wave_aa : (n_pixel,) float64
        Pixels, angstrom in air.
    calibration : TheoryCalibration or None
    own_variance : (n_pixel,) float32
        Variance of the model's flux.
    observing : ObservingModel
    nuisances : bool
        Whether anything but the nine labels and the velocity is open.
    """
    emulator = shipped_emulator()
    source = EmulatorSource(OFFSETS if nuisances else ())
    try:
        spectrograph = Spectrograph(
            emulator.wave_aa, wave_aa, emulator.spec.resolving_power, observing
        )
    except ValueError as error:
        raise ConfigError(
            f"the emulator cannot fit these spectra: {error}; cut them to that range in the "
            "preparation, or train a method that learns from spectra alone, such as cannon"
        ) from error
    if not nuisances:
        seen = Broadening(spectrograph, widths=False)
        calibrated = () if calibration is None else (Calibrated(calibration, LABEL_NAMES),)
        return Chain(source, (seen, *calibrated), wave_aa, own_variance)
    if calibration is None:
        smooth = Continuum(smooth_patterns(wave_aa, observing.continuum_rms))
        return Chain(source, (Broadening(spectrograph), smooth), wave_aa, own_variance)
    operators = (
        Broadening(spectrograph),
        Calibrated(calibration, LABEL_NAMES),
        Modes(calibration.core_modes, "core"),
        Continuum(calibration.continuum_modes),
    )
    return Chain(source, operators, wave_aa, own_variance)


def smooth_patterns(wave_aa: Float64Array, rms: float) -> Float32Array:
    """Legendre polynomials of order 1 to 7, falling as order^-1/2, of some rms in all."""
    x = 2.0 * (wave_aa - wave_aa[0]) / (wave_aa[-1] - wave_aa[0]) - 1.0
    basis = np.polynomial.legendre.legvander(x, _CONTINUUM_ORDERS)[:, 1:].T
    basis /= np.sqrt(np.mean(basis**2, axis=1, keepdims=True))
    weight = np.arange(1, _CONTINUUM_ORDERS + 1) ** -0.5
    weight *= rms / np.sqrt(np.sum(weight**2))
    return np.asarray(weight[:, None] * basis, dtype=np.float32)


def in_air(sample: Sample) -> Float64Array:
    """Wavelengths (n_pixel,) of a sample, in air."""
    if sample.medium == "air":
        return sample.wave_aa
    return np.asarray(vacuum_to_air(sample.wave_aa))


def calibrate(stars: Sample, observing: ObservingModel) -> TheoryCalibration | None:
    """Fit theory to stars of which all nine labels are known; None if they are too few."""
    if len(stars) < LEAST_STARS:
        return None
    simulator = TrainingStarSimulator.fit(
        stars.wave_aa,
        stars.inputs.flux,
        stars.inputs.ivar,
        labels=stars.truth,
        observables=np.zeros((len(stars), 0)),
        observing=observing,
        medium=stars.medium,
    )
    return simulator.calibration


def conditions_of(sample: Sample) -> ObservingModel:
    """Conditions under which theory is seen as the spectra of a sample are.

    Raises
    ------
    ConfigError
        If their resolving power is not known, or not below that of the emulator.
    """
    power, limit = known_power(sample), shipped_emulator().spec.resolving_power
    if not power < limit:
        raise ConfigError(
            f"the resolving power {power:g} of the survey is not below the emulator's {limit:g}, "
            "so that theory cannot be fitted to it; train a method that learns from spectra alone, "
            "such as cannon"
        )
    return TRAINING_CONDITIONS.at_power(power).with_noise(sample.noise_correlation)


def known_power(sample: Sample) -> float:
    """Return the resolving power of a sample's spectra; `ConfigError` if it is not known."""
    if sample.resolving_power is None:
        raise ConfigError(
            "the survey does not say its resolving power, at which theory is seen: write "
            "'resolving_power = ...' at the top of the TOML file that it is ingested with"
        )
    return sample.resolving_power


def typical_labels(n_star: int, seed: int) -> Float64Array:
    """Nine labels (n_star, 9) of stars of the population."""
    return Population.load().sample(n_star, np.random.default_rng(seed)).labels[:, :_N]


@cache
def _offset_scatter() -> tuple[float, ...]:
    population = Population.load()
    nine = typical_labels(_SCATTERS, 0)
    apart = population.complete(nine, np.random.default_rng(1)) - population.complete(nine)
    return tuple(float(value) for value in apart[:, _N:].std(axis=0))


def nuisance_sigmas(
    names: tuple[str, ...], rv_error_kms: float, *, observing: ObservingModel = TRAINING_CONDITIONS
) -> dict[str, tuple[float, float]]:
    """Means and standard deviations of the parameters that are no labels.

    Offsets scatter as in the population, velocity and widths as in the observing model; strengths
    of modes have unit scatter.
    """
    power = observing.resolving_power_scatter / observing.resolving_power
    known = dict(zip(OFFSETS, _offset_scatter(), strict=True))
    known |= {
        "rv_kms": rv_error_kms,
        "ln_resolving_power": power,
        "ln_rotation": observing.rotation_scatter,
    }
    return {n: (0.0, known.get(n, 1.0)) for n in names if n not in LABEL_NAMES}


def draw_nuisances(
    model: ForwardModel, labels: Float64Array, rv_error_kms: float, rng: np.random.Generator
) -> Float64Array:
    """Labels (n_star, n_label) of `model`, from nine labels and drawn nuisances."""
    names = model.label_names
    sigma = np.array([s for _, s in nuisance_sigmas(names, rv_error_kms).values()])
    drawn = rng.standard_normal((len(labels), sigma.size)) * sigma
    whole = np.column_stack([labels, drawn])
    return np.asarray(np.clip(whole, model.bounds[:, 0], model.bounds[:, 1]))


def learn_start(
    model: ForwardModel, truth: Float64Array, rv_error_kms: float, seed: int
) -> RidgeStart:
    """Learn to start fits, from spectra that the model makes of labels like those of `truth`.

    Nine labels in all; each star is halfway, at random, between two labelled ones.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(3,)))
    # Labels between labelled stars: dense where stars are, and nowhere that no star is.
    first, second = rng.integers(0, len(truth), (2, _LIBRARY))
    near = 0.3 * rng.random((_LIBRARY, 1))
    labels = truth[first] + near * (truth[second] - truth[first])
    labels = np.clip(labels, *model.bounds[:_N].T)
    whole = draw_nuisances(model, labels, rv_error_kms, rng)
    blocks = [
        model.evaluate(whole[start : start + 128], jacobian=False).flux
        for start in range(0, _LIBRARY, 128)
    ]
    return RidgeStart.learn(LABEL_NAMES, np.concatenate(blocks), labels)


def finite_rows(values: Float64Array) -> BoolArray:
    """Which rows (n_star,) of values (n_star, n) are finite throughout."""
    return np.asarray(np.isfinite(values).all(axis=1), dtype=np.bool_)


def at_rest(theory: Chain, nine: Float64Array) -> Float32Array:
    """Flux (n_star, n_pixel) of nine labels (n_star, 9), all nuisances zero."""
    whole = np.zeros((len(nine), len(theory.label_names)))
    whole[:, :_N] = nine
    # Patterns may lead a little beyond the emulator, which does not extrapolate.
    whole = np.clip(whole, theory.bounds[:, 0], theory.bounds[:, 1])
    return theory.evaluate(whole, jacobian=False).flux


def require_emulator(checksum: str) -> None:
    """Raise `ModelFileError` if a method was made with another emulator than the shipped one."""
    if checksum != shipped_emulator().spec.checksum:
        raise ModelFileError(
            "the method was trained with another emulator than that of this maury; train it again"
        )
