"""A whole survey beside the training sample: what all its stars have in common, in plain words.

Measured without labels (`maury.prediction.common_residuals`, `band_zero_points`), on a sample of
its stars, and set beside the same figures of the training stars, which lie in the model as the
attachment ``common``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from maury.io.arrays import Float64Array
from maury.model.directory import Model
from maury.model.split import PARTS
from maury.prediction.band_zero_points import BandRelations
from maury.prediction.common_residuals import TERMS, CommonResiduals
from maury.spectra.preparation import Inputs, take

if TYPE_CHECKING:
    from maury.prediction.uncertainty import UncertaintyModel
    from maury.survey.labelled_sample import LabelledSample

__all__ = ["COMMON", "CommonChange", "SurveyCheck", "check_survey", "with_common"]

COMMON = "common"
"""Attachment of a model: what the residuals of its training stars have in common."""
ZERO_POINT = "zero point "
"""Before the band, in the name of a change."""
N_STAR = 600
"""Stars of either side: they fix the strength of lines to .3 % (measured), in a second."""
LEAST_STARS = 30
"""Stars of a survey below which nothing is said: single odd ones would rule; chosen."""
_SIGNIFICANT = 4.0
"""Errors from which a change is told of; there are some twenty of them."""
_MAG = 0.03
"""Offset of a band that is told of: what catalogues of one band differ by; chosen."""
_NOISE = 0.2
"""Relative difference of the noise that is told of; stars of low S/N alone give .1 (measured)."""


@dataclass(frozen=True)
class _Term:
    """What is said of a change: from which size, whether it makes labels wrong, in what words."""

    least: float
    grave: bool
    words: str
    consequence: str


# Parts of one survey (giants, dwarfs, metal-poor, hot, noisy stars) differ by up to .012 in
# strength, .009 in the others of lines, .021 in width, .3 km/s, .001 in continuum (measured).
_METALS = "part of it is taken for metals, and single labels do not show it"
_TOLD: Mapping[str, _Term] = {
    "strength": _Term(0.03, True, "all lines {size:.1%} {stronger}", _METALS),
    "tilt": _Term(0.03, True, "lines {size:.1%} {stronger} towards the red end", _METALS),
    "calcium": _Term(
        0.03, True, "Ca II lines {size:.1%} {stronger} than the others", "log g is off"
    ),
    "cores": _Term(
        0.05,
        False,
        "Ca II cores {size:.1%} {deeper}",
        "as of stars less or more active than in training: Teff and log g move a little",
    ),
    "width": _Term(0.045, False, "lines {broader} by {size:.2g} square angstrom", "log g is off"),
    "velocity": _Term(
        2.0, False, "velocities off by {value:+.1f} km/s", "correct them before they are used"
    ),
    "continuum": _Term(0.004, False, "a continuum off by {size:.1%}", "[M/H] moves a little"),
    "pattern": _Term(
        0.025,
        True,
        "single lines at least {size:.1%} rms off, each by itself",
        "labels are off, by how much nothing here tells",
    ),
}


@dataclass(frozen=True)
class CommonChange:
    """Something that all stars of a survey have in common, beside the training stars.

    Attributes
    ----------
    name : str
        ``strength``, ``tilt``, ``calcium``, ``cores``, ``width``, ``velocity``, ``continuum``,
        ``pattern``, ``noise``, or ``zero point`` and a band.
    value, error : float
        Difference from the training stars, and its sampling error.
    threshold : float
        Size from which it is told of.
    grave : bool
        Whether labels of all stars are wrong by it.
    words, consequence : str
    """

    name: str
    value: float
    error: float
    threshold: float
    grave: bool
    words: str
    consequence: str

    @property
    def found(self) -> bool:
        """Whether it is beyond what training varied, and beyond its sampling error."""
        return abs(self.value) > max(self.threshold, _SIGNIFICANT * self.error)

    @property
    def excess(self) -> float:
        """Size over what is told of."""
        return abs(self.value) / max(self.threshold, _SIGNIFICANT * self.error)

    def __str__(self) -> str:
        return f"{self.words} (+- {self.error:.2g}): {self.consequence}"


@dataclass(frozen=True)
class SurveyCheck:
    """What all stars of a survey have in common.

    Attributes
    ----------
    changes : tuple of CommonChange
        All that was measured, those told of first, the largest first.
    n_star : int
        Stars that it was measured on.
    """

    changes: tuple[CommonChange, ...]
    n_star: int

    @property
    def findings(self) -> tuple[str, ...]:
        """What differs, in words, the worst first."""
        return tuple(str(change) for change in self.changes if change.found)

    @property
    def unlike(self) -> bool:
        """Whether the labels of all stars are doubtful."""
        return any(change.found and change.grave for change in self.changes)

    @classmethod
    def none(cls) -> Self:
        """Return a check that found nothing out, of too few stars or of a model without theory."""
        return cls((), 0)


@dataclass(frozen=True, eq=False)
class Measured:
    """Common residuals of some stars, and what is needed for the zero points of bands."""

    residuals: CommonResiduals
    labels: Float64Array
    a_v: Float64Array
    magnitudes: Float64Array


def measure(labeller: UncertaintyModel, inputs: Inputs) -> Measured:
    """Measure what the residuals of prepared stars have in common."""
    mean = labeller.predict(inputs).mean
    residuals = CommonResiduals.measure(labeller.star_simulator, inputs.flux, inputs.ivar, mean)
    return measured_with(labeller, inputs, residuals)


def measured_with(
    labeller: UncertaintyModel, inputs: Inputs, residuals: CommonResiduals
) -> Measured:
    """Return residuals that are known already, with labels by spectrum alone and magnitudes."""
    model = labeller.network.model
    nothing = np.full_like(inputs.observables, np.nan)
    alone = labeller.predict(replace(inputs, observables=nothing)).mean
    own = _structural(model)
    names = model.preparation.observable_names
    observables = inputs.observables.astype(np.float64)
    a_v = observables[:, names.index("a_v")] if "a_v" in names else np.zeros(len(inputs))
    return Measured(residuals, alone[:, own], a_v, observables[:, bands_of(model)])


def _structural(model: Model) -> list[int]:
    """Numbers of the labels that magnitudes depend on; all of them if none of these is known."""
    names = model.label_names
    found = [names.index(name) for name in ("teff", "logg", "m_h") if name in names]
    return found or list(range(len(names)))


def bands_of(model: Model) -> list[int]:
    """Numbers of the observables that are absolute magnitudes."""
    names = model.preparation.observable_names
    return [k for k, name in enumerate(names) if name.startswith("M_")]


def with_common(model: Model, labeller: UncertaintyModel, sample: LabelledSample) -> Model:
    """Return a trained model with what the residuals of its training stars have in common."""
    rows = np.flatnonzero(model.split.contains(PARTS[0], sample.survey.star_id[sample.rows]))
    rows = rows[:: max(1, rows.size // N_STAR)]
    if rows.size < LEAST_STARS:
        return model
    return with_measured(model, measure(labeller, take(sample.inputs, rows)))


def with_measured(model: Model, found: Measured) -> Model:
    """Return a model that remembers what was measured, for `Model.save` to write."""
    arrays = found.residuals.to_arrays()
    relations = BandRelations.fit(found.labels, found.a_v, found.magnitudes)
    if relations is not None:
        arrays |= relations.to_arrays()
    return model.with_arrays(COMMON, arrays)


def check_survey(labeller: UncertaintyModel, inputs: Inputs) -> SurveyCheck:
    """Set some prepared stars of a survey beside the training stars of a model.

    Parameters
    ----------
    labeller : UncertaintyModel
        Of the model.
    inputs : Inputs
        Stars of the survey, spread over all of it.

    Raises
    ------
    ModelFileError
        If what the model knows of its training stars is damaged.
    """
    model = labeller.network.model
    if COMMON not in model.attachments:
        return SurveyCheck.none()
    inputs = take(inputs, np.arange(len(inputs))[:: max(1, len(inputs) // N_STAR)])
    found = measure(labeller, inputs)
    if found.residuals.n_star < LEAST_STARS:
        return SurveyCheck.none()
    training = CommonResiduals.from_arrays(model.arrays(COMMON))
    changes = _of_lines(found.residuals, training)
    if not any(change.found and change.grave for change in changes):
        # Labels of spectra whose lines differ would be wrong, and with them the colours expected.
        changes += _of_bands(model, found)
    ranked = sorted(changes, key=lambda change: -change.excess)
    return SurveyCheck(tuple(ranked), found.residuals.n_star)


def _of_lines(here: CommonResiduals, training: CommonResiduals) -> list[CommonChange]:
    value, error = here.beside(training)
    known = dict(zip(TERMS, zip(value.tolist(), error.tolist(), strict=True), strict=True))
    orders = [known.pop(name) for name in TERMS if name.startswith("continuum")]
    # One figure for its orders: the largest that is beyond its error.
    known["continuum"] = max(orders, key=lambda pair: abs(pair[0]))
    known["pattern"] = here.pattern_beside(training)
    changes = [_told(name, *pair) for name, pair in known.items()]
    ratio = here.noise / training.noise - 1.0
    error_of_noise = 1.0 / np.sqrt(2.0 * here.n_star)
    return [
        *changes,
        CommonChange(
            "noise",
            float(ratio),
            float(error_of_noise),
            _NOISE,
            False,
            f"noise {1 + ratio:.2f} times what is quoted, beside training",
            "errors are off by nearly as much",
        ),
    ]


def _told(name: str, value: float, error: float) -> CommonChange:
    term = _TOLD[name]
    more = value > 0
    words = term.words.format(
        size=abs(value),
        value=value,
        stronger="stronger" if more else "weaker",
        deeper="deeper" if more else "shallower",
        broader="broader" if more else "narrower",
    )
    return CommonChange(name, value, error, term.least, term.grave, words, term.consequence)


def _of_bands(model: Model, found: Measured) -> list[CommonChange]:
    relations = BandRelations.from_arrays(model.arrays(COMMON))
    if relations is None:
        return []
    offsets, errors = relations.zero_points(found.labels, found.a_v, found.magnitudes)
    names = [model.preparation.observable_names[k].removeprefix("M_") for k in bands_of(model)]
    return [
        CommonChange(
            f"{ZERO_POINT}{name}",
            float(value),
            float(error),
            _MAG,
            False,
            f"{name} {abs(value):.3f} mag {'fainter' if value > 0 else 'brighter'} than expected",
            "Teff is off, unless photometry is left out",
        )
        for name, value, error in zip(names, offsets, errors, strict=True)
        if np.isfinite(value)
    ]
