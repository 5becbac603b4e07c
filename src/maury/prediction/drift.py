"""How far an observed survey lies from the sample that trained a model, before it is predicted.

The attachment ``sample`` of a model holds quantiles of what the training stars look like to it:
S/N, each observable, the flux in principal components and beyond them, and the share of each flag.
A survey is compared with these in plain numbers, by which nothing is decided. What all its stars
have in common, and whether that makes all labels doubtful, is that of
`maury.prediction.survey_check`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from maury.errors import ModelFileError
from maury.io.arrays import AnyArray, BoolArray, Float64Array, Int64Array
from maury.labels.columns import BANDS
from maury.labels.flags import Flag, set_where
from maury.model.directory import RESIDUAL_CALIBRATION, Model
from maury.model.output import has_spectrum
from maury.prediction.detectors import DETECTORS
from maury.prediction.survey_check import LEAST_STARS, SurveyCheck, check_survey
from maury.spectra.batch import Batch, Readable
from maury.spectra.observable_groups import column
from maury.spectra.preparation import Inputs, join_inputs, take
from maury.survey.labelled_sample import LabelledSample

if TYPE_CHECKING:
    from maury.prediction.uncertainty import UncertaintyModel

__all__ = ["SAMPLE", "Drift", "Quantity", "drift", "never_had", "with_sample", "without_unexpected"]


SAMPLE = "sample"
"""Attachment of a model: what its training stars look like."""
N_STAR = 2000
"""Stars of either side that are compared, at most."""
_REFERENCE = Path(__file__).parent / "data" / "simulated_spectra.safetensors"
_BLOCK = 128
"""Consecutive rows of a block; blocks are spread over the survey: reading single rows is slow."""
# The ends are the range of 99 % of the stars; the extremes themselves would be those of single odd
# spectra.
_LEVELS = np.array([0.5, 5.0, 16.0, 25.0, 50.0, 75.0, 84.0, 95.0, 99.5])
_N_COMPONENT, _LEAST_STARS = 6, 20
"""Principal components of the flux that are compared, and stars that they need: chosen."""
_REST = "flux beyond components (in units of noise)"
_WORST = 3
"""Findings that `predict` shows: as many as are read; `maury drift` lists all."""
_COLUMN_OF = {band.name: band.column for band in BANDS}
_OF_SOURCE = {
    "parallax": (Flag.NO_PARALLAX, Flag.PARALLAX_ERROR_UNKNOWN, Flag.PARALLAX_POOR),
    "a_v": (Flag.A_V_MISSING,),
}
"""Flags of a source that is no band."""
_OF_MISSING = (
    Flag.NO_PARALLAX,
    Flag.PARALLAX_ERROR_UNKNOWN,
    Flag.MAGNITUDE_MISSING,
    Flag.A_V_MISSING,
    Flag.COLUMN_MISSING,
)
"""Flags that say again that an input is missing."""
_MARGIN, _BEYOND = 1.0, 1.5
"""How far beyond 99 % of the training spectra one is unlike them: by the width of their range in a
component, by half as much again in what components leave."""
_SHIFT, _SPREAD, _OUTSIDE, _SHARE = 0.5, 1.5, 0.05, 0.10
"""Findings: a median off by half the scatter, a scatter 1.5 times as large, 5 % outside the range,
10 % more stars without a value or with a flag."""


@dataclass(frozen=True)
class Quantity:
    """One quantity of a survey beside the training sample.

    Attributes
    ----------
    name : str
    median, median_training : float or None
        None where no star has a value.
    scatter, scatter_training : float or None
        Half the range from 16 to 84 %.
    outside : float
        Share of the survey's values outside the range of 99 % of the training stars, of which 1 %
        are outside; where only the full range is known, outside that.
    missing, missing_training : float
        Share of stars without a value.
    """

    name: str
    median: float | None
    median_training: float | None
    scatter: float | None
    scatter_training: float | None
    outside: float
    missing: float
    missing_training: float

    @property
    def lacking(self) -> str:
        """Of how many stars it is missing, in words; empty if of hardly more than in training."""
        if self.missing - self.missing_training <= _SHARE:
            return ""
        return f"for {self.missing:.0%} (in training {self.missing_training:.0%})"

    @property
    def excess(self) -> float:
        """How much it differs: in scatters, or in shares of the stars; 0 where nothing is known."""
        shift = 0.0
        if self.median is not None and self.median_training is not None:
            unit = self.scatter_training or np.inf
            shift = abs(self.median - self.median_training) / unit
        return max(shift, self.outside)

    @property
    def findings(self) -> tuple[str, ...]:
        """What differs of the values that there are, in words; nothing where nothing does."""
        found = []
        if self.median is not None and self.median_training is not None:
            unit = self.scatter_training or 0.0
            shift = self.median - self.median_training
            # A quantity without scatter in training, such as a constant S/N, differs wherever it
            # differs at all.
            if abs(shift) > _SHIFT * unit and shift != 0.0:
                found.append(
                    f"{'higher' if shift > 0 else 'lower'} (median {self.median:.4g}, in training "
                    f"{self.median_training:.4g})"
                )
            if self.scatter is not None and self.scatter > _SPREAD * unit:
                found.append(f"spread more widely ({self.scatter:.3g}, in training {unit:.3g})")
        if self.outside > _OUTSIDE:
            found.append(f"{self.outside:.0%} outside the training range")
        return tuple(found)


@dataclass(frozen=True)
class Drift:
    """A survey beside the training sample of a model.

    Attributes
    ----------
    n_star, n_training : int
        Stars compared.
    quantities : tuple of Quantity
    flags : mapping of str to (float, float)
        Share of the stars with a flag of the preparation, in the survey and in training; where no
        training sample is known (`n_training` is 0), of those unlike simulated spectra alone.
    unjudged : tuple of str
        Names of the flags that the model cannot raise, see `unjudged`.
    common : SurveyCheck
        What all stars of the survey have in common beside those in training.
    own : bool
        Whether it is the survey that trained the model.
    """

    n_star: int
    n_training: int
    quantities: tuple[Quantity, ...]
    flags: Mapping[str, tuple[float, float]]
    unjudged: tuple[str, ...] = ()
    common: SurveyCheck = field(default_factory=SurveyCheck.none)
    own: bool = False

    @property
    def blind(self) -> bool:
        """Whether spectra may be unlike the training sample in ways that the model cannot tell.

        Not of the survey that trained it, whose stars are the training sample.
        """
        return bool(self.unjudged) and not self.own

    @property
    def few(self) -> bool:
        """Whether so few stars differ from a sample by chance; each has its flags all the same."""
        return self.n_star < LEAST_STARS

    @property
    def findings(self) -> tuple[str, ...]:
        """What differs, in words, each with the name of its quantity or flag, the worst first.

        What all stars have in common, then flags that warn, quantities, other flags; inputs that
        are missing stand in one line, the last.
        """
        if self.few:
            return (self._missing,) if self._missing else ()
        ranked = sorted(self.quantities, key=lambda quantity: -quantity.excess)
        flags = {
            name: f"{name}: {here:.0%} of the stars (in training {there:.0%})"
            for name, (here, there) in self.flags.items()
            if here - there > _SHARE and Flag[name] not in _OF_MISSING
        }
        found = [*self.common.findings]
        found += [text for name, text in flags.items() if Flag[name].warns]
        found += [f"{q.name}: {', '.join(q.findings)}" for q in ranked if q.findings]
        found += [text for name, text in flags.items() if not Flag[name].warns]
        return (*found, *([self._missing] if self._missing else []))

    @property
    def _missing(self) -> str:
        """Which inputs are missing more often than in training, in a line; empty for none."""
        names: dict[str, list[str]] = {}
        for quantity in self.quantities:
            if quantity.lacking:
                names.setdefault(quantity.lacking, []).append(quantity.name)
        told = "; ".join(f"{', '.join(_underived(one))} {share}" for share, one in names.items())
        return f"missing: {told}; errors of labels are larger without" if told else ""

    @property
    def unlike(self) -> bool:
        """Whether the labels of all stars are doubtful."""
        return self.common.unlike

    @property
    def summary(self) -> str:
        """A line, and below it the worst three findings, if there are any."""
        line = f"{self.n_star} spectra look like the training sample"
        if self.few:
            line = f"{self.n_star} spectra are too few to tell how a survey differs from the "
            line += f"training sample (from {LEAST_STARS} on)"
        elif not self.n_training:
            known = ", ".join(q.name for q in self.quantities) or "nothing"
            line = f"the training sample is not known, but for the range of {known}"
        if self.own:
            line = f"{self.n_star} spectra of the survey that trained the model"
        if self.findings:
            # The line of what is missing is one of many, and told beside the worst of the others.
            rest = [text for text in self.findings if text != self._missing]
            worst, more = rest[:_WORST], len(rest) - _WORST
            worst += [self._missing] if self._missing else []
            head = line if self.few else "the survey differs from the training sample"
            line = f"{head}:\n  " + "\n  ".join(worst)
            line += f"\n  and {more} more, which 'maury drift' lists" if more > 0 else ""
        if self.unlike:
            line += f"\nlabels of all its stars are doubtful ({Flag.SURVEY_UNLIKE.name})"
        return f"{line}; {self.blindness}" if self.blind else line

    @property
    def blindness(self) -> str:
        """What the model cannot judge, in a line."""
        return f"this model cannot tell {', '.join(self.unjudged)}: no star gets these flags"

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps({**asdict(self), "findings": self.findings}, indent=1)


@dataclass(frozen=True, eq=False)
class Likeness:
    """Tells spectra that are far from all training spectra, of models that know no better.

    Attributes
    ----------
    centre : (n_pixel,) float64
    basis : (n_component, n_pixel) float64
        Median, and principal components, of the training spectra.
    lowest, highest : (n_component,) float64
        Coefficients beyond which a spectrum is unlike them: the range of 99 % of them, thrice.
    beyond : float
        The same of what the components leave, rms in units of the noise: 1.5 times that of 99.5 %.
    """

    centre: Float64Array
    basis: Float64Array
    lowest: Float64Array
    highest: Float64Array
    beyond: float

    @classmethod
    def load(cls, model: Model) -> Likeness | None:
        """Read the attachment ``sample``, or the simulated spectra in place of it.

        None for a model without the attachment whose spectra are not those of the RAVE window.

        Raises
        ------
        ModelFileError
            If it is damaged.
        """
        if SAMPLE not in model.attachments:
            return None if model.is_method else cls.simulated(model.wave_aa)
        arrays, about = model.arrays(SAMPLE), model.attachments[SAMPLE].metadata
        try:
            names = _texts(about["names"])
            centre, basis = arrays["flux_centre"], arrays["flux_basis"]
            place = [names.index(f"flux component {k + 1}") for k in range(len(basis))]
            levels = arrays["quantiles"][:, [0, -1]]
            low, high = levels[place].T
            beyond = _BEYOND * float(levels[names.index(_REST), 1])
            if centre.shape != (model.n_pixel,) or basis.shape[1:] != centre.shape:
                raise ValueError(f"its spectra are not of {model.n_pixel} pixels")
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ModelFileError(f"{model.path}: its sample is damaged: {error}") from error
        margin = _MARGIN * (high - low)
        return cls(centre, basis, low - margin, high + margin, beyond)

    @classmethod
    def simulated(cls, wave_aa: Float64Array) -> Likeness | None:
        """Return the same of 2000 simulated spectra; None if the grid is not theirs.

        They come with `maury` (``scripts/make_spectrum_reference.py`` writes them), for networks
        whose training stars are not known. Of 3669 real spectra of RAVE 1.1 % are unlike them,
        and of those shifted by 100 km/s 95 %.
        """
        arrays = _reference()
        wave = arrays["wave_aa"]
        # Components are per pixel: on another grid they would compare unlike wavelengths without
        # any error.
        if wave.shape != wave_aa.shape or not np.allclose(wave, wave_aa, rtol=0.0, atol=1e-3):
            return None
        low, high = arrays["component_range"].T
        margin, beyond = _MARGIN * (high - low), _BEYOND * float(arrays["rest_range"][1])
        centre, basis = arrays["flux_centre"], arrays["flux_basis"]
        return cls(centre, basis, low - margin, high + margin, beyond)

    def unlike(self, inputs: Inputs) -> BoolArray:
        """Return which stars (n_star,) have a spectrum that is far from all training spectra."""
        good = has_spectrum(inputs)
        coefficients, rest = _projected(take(inputs, good), self.centre, self.basis)
        far = (coefficients < self.lowest) | (coefficients > self.highest)
        out = np.zeros(len(inputs), dtype=np.bool_)
        # Written as "not below", so that a rest of NaN counts as unlike.
        out[good] = far.any(axis=1) | ~(rest <= self.beyond)
        return out


def with_sample(model: Model, sample: LabelledSample) -> Model:
    """Return a trained model with the marks of its training stars, for `Model.save` to write."""
    rows = np.flatnonzero(model.split.contains("train", sample.survey.star_id))
    # Spread over all rows, as the first ones of a survey may be one field or one night.
    rows = rows[:: max(1, -(-rows.size // N_STAR))]
    return model if rows.size < _LEAST_STARS else with_sample_of(model, sample.prepared(rows))


def with_sample_of(model: Model, inputs: Inputs) -> Model:
    """Return a model with the marks of some prepared stars, which surveys are compared with."""
    good = has_spectrum(inputs)
    if good.sum() < _LEAST_STARS:
        return model
    centre, basis = _components(inputs)
    values = _values(inputs, model, (centre, basis))
    arrays: dict[str, AnyArray] = {
        "flux_centre": centre,
        "flux_basis": basis,
        "quantiles": np.stack([_quantiles(v) for v in values.values()]),
        "missing": np.array([np.mean(~np.isfinite(v)) for v in values.values()]),
        "flags": np.array(list(_flag_shares(inputs).values())),
    }
    about = {"names": list(values), "flags": list(_flag_shares(inputs)), "n_star": len(inputs)}
    return model.with_arrays(SAMPLE, arrays, metadata=about)


def _components(inputs: Inputs) -> tuple[Float64Array, Float64Array]:
    """Median (n_pixel,) and strongest principal components of some spectra."""
    flux = inputs.flux[has_spectrum(inputs)].astype(np.float64)
    centre = np.median(flux, axis=0)
    _, _, basis = np.linalg.svd(flux - centre, full_matrices=False)
    return np.asarray(centre), _signed(basis[: min(_N_COMPONENT, len(basis))])


def flux_sample(inputs: Inputs) -> dict[str, AnyArray]:
    """Return components of some spectra, and the range of 99 % of what `Likeness` measures."""
    centre, basis = _components(inputs)
    coefficients, rest = _projected(take(inputs, has_spectrum(inputs)), centre, basis)
    ends = _LEVELS[[0, -1]]
    return {
        "flux_centre": centre,
        "flux_basis": basis,
        "component_range": np.percentile(coefficients, ends, axis=0).T,
        "rest_range": np.percentile(rest, ends),
    }


def drift(
    model: Model,
    survey: Readable,
    *,
    n_star: int = N_STAR,
    labeller: UncertaintyModel | None = None,
) -> Drift:
    """Compare some rows of a survey, in blocks spread over all of it, with the training sample.

    Parameters
    ----------
    model : Model
        One without the attachment ``sample``, as of older versions, knows the range of its
        observables only.
    survey : Readable
        On the grid that the model's preparation takes.
    n_star : int
        Rows, about.
    labeller : UncertaintyModel, optional
        That of the model, if it has one: what all stars have in common is then measured as well.

    Raises
    ------
    ModelFileError
        If the attachment is damaged.
    SurveyFileError
        If a chunk of the survey cannot be read.
    """
    inputs = spread_inputs(model, survey, n_star)
    common = SurveyCheck.none() if labeller is None else check_survey(labeller, inputs)
    blind, own = unjudged(model), _is_own(model, survey)
    if SAMPLE not in model.attachments:
        return replace(_by_range(model, inputs), unjudged=blind, common=common, own=own)
    arrays, about = model.arrays(SAMPLE), model.attachments[SAMPLE].metadata
    try:
        found = _values(inputs, model, (arrays["flux_centre"], arrays["flux_basis"]))
        known = zip(_texts(about["names"]), arrays["quantiles"], arrays["missing"], strict=True)
        shares = dict(zip(_texts(about["flags"]), arrays["flags"].tolist(), strict=True))
        n_training = int(str(about["n_star"]))
        quantities = tuple(
            _quantity(name, found[name], levels, float(missing)) for name, levels, missing in known
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ModelFileError(f"{model.path}: its sample is damaged: {error}") from error
    flags = {n: (share, shares.get(n, 0.0)) for n, share in _flag_shares(inputs).items()}
    return Drift(len(inputs), n_training, quantities, flags, blind, common, own)


def _is_own(model: Model, survey: Readable) -> bool:
    """Whether a survey has the origin that the model's record has of its training survey."""
    recorded = model.provenance.get("survey")
    if not isinstance(recorded, Mapping) or not survey.provenance:
        return False
    known = {name: value for name, value in recorded.items() if name != "name"}
    # As JSON, in which one of the two was kept: a list there is a tuple here.
    return json.dumps(known, sort_keys=True) == json.dumps(dict(survey.provenance), sort_keys=True)


def spread_inputs(model: Model, survey: Readable, n_star: int) -> Inputs:
    """Prepare some rows of a survey, about `n_star`, in blocks spread over all of it."""
    n_block = max(1, n_star // _BLOCK)
    step = max(_BLOCK, -(-len(survey) // n_block))
    # An empty survey gives one empty block, which has the columns of the others.
    starts = range(0, max(len(survey), 1), step)
    return join_inputs(
        [model.preparation.apply(survey.batch(k, min(k + _BLOCK, len(survey)))) for k in starts]
    )


def never_had(model: Model) -> tuple[str, ...]:
    """Return the sources of observables that no training star of a model had.

    None for a model without the attachment ``sample``.
    """
    if SAMPLE not in model.attachments:
        return ()
    names = _texts(model.attachments[SAMPLE].metadata.get("names") or ())
    shares = model.arrays(SAMPLE).get("missing", np.zeros(0))
    missing = dict(zip(names, shares.tolist(), strict=False))
    had = np.array([missing.get(n, 0.0) < 1.0 for n in model.preparation.observable_names])
    sources = zip(model.preparation.source_names, model.preparation.sources, strict=True)
    return tuple(name for name, used in sources if not (used & had).any())


def without_unexpected(
    flags: Int64Array, batch: Batch, sources: Sequence[str], never: Sequence[str]
) -> Int64Array:
    """Return flags without those of inputs that no training star had: none of them is missed.

    Parameters
    ----------
    flags : (n_star,) int64
        Of the preparation.
    batch : Batch
        The same stars, without what counts as missing.
    sources : sequence of str
        Of the observables that the model asks for.
    never : sequence of str
        Of `never_had`.
    """
    if not never:
        return flags
    off = [flag for source, those in _OF_SOURCE.items() if source in never for flag in those]
    bands = [name for name in sources if name in _COLUMN_OF]
    if set(bands) & set(never):
        off.append(Flag.MAGNITUDE_MISSING)
    for flag in off:
        flags = flags & ~np.int64(flag.value)
    expected = [_COLUMN_OF[name] for name in bands if name not in never]
    if Flag.MAGNITUDE_MISSING in off and expected:
        lacking = [np.isnan(column(batch, name)) for name in expected]
        flags = set_where(flags, Flag.MAGNITUDE_MISSING, np.any(lacking, axis=0))
    return flags


def unjudged(model: Model) -> tuple[str, ...]:
    """Return the names of the flags that a model cannot raise, for want of what they compare.

    A model without coverage has no reconstruction and no distances, and one whose training stars
    are not known cannot say which star is among them.
    """
    flags = [] if "coverage" in model.attachments else list(dict.fromkeys(DETECTORS.values()))
    if Likeness.load(model) is not None and Flag.SPECTRUM_UNLIKE in flags:
        flags.remove(Flag.SPECTRUM_UNLIKE)
    if RESIDUAL_CALIBRATION in model.attachments and model.is_method:
        # An infinite threshold is that of a method without a model of its own.
        told = bool(np.isfinite(model.arrays(RESIDUAL_CALIBRATION)["chi2"]).all())
        flags = [flag for flag in flags if flag != Flag.RECONSTRUCTION_POOR or not told]
    if model.split.rule == "unknown":
        flags.append(Flag.TRAINING_STAR)
    return tuple(str(flag.name) for flag in sorted(flags))


@cache
def _reference() -> dict[str, AnyArray]:
    return load_file(_REFERENCE)


def _texts(names: Any) -> list[str]:
    return [str(name) for name in names]


def _by_range(model: Model, inputs: Inputs) -> Drift:
    """Compare observables with the range of the training stars, spectra with simulated ones."""
    scaling = model.scaling.observables
    quantities = []
    for k, name in enumerate(model.preparation.observable_names):
        levels = np.full(_LEVELS.size, np.nan)
        levels[[0, -1]] = scaling.minimum[k], scaling.maximum[k]
        quantities.append(_quantity(name, inputs.observables[:, k], levels, 0.0))
    flags = {}
    # A share of no spectra is no number.
    if len(inputs) and (likeness := Likeness.load(model)) is not None:
        flags[str(Flag.SPECTRUM_UNLIKE.name)] = (float(likeness.unlike(inputs).mean()), 0.0)
    return Drift(len(inputs), 0, tuple(quantities), flags)


def _quantity(name: str, values: AnyArray, known: Float64Array, missing: float) -> Quantity:
    values = np.asarray(values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    here = _quantiles(values)
    span = known[-1] - known[0]
    # float32 values of the training stars themselves may round to just outside their range.
    margin = 1e-6 * span if np.isfinite(span) else 0.0
    outside = (finite < known[0] - margin) | (finite > known[-1] + margin)
    return Quantity(
        name=name,
        median=_or_none(here[4]),
        median_training=_or_none(known[4]),
        scatter=_or_none((here[6] - here[2]) / 2),
        scatter_training=_or_none((known[6] - known[2]) / 2),
        outside=float(outside.mean()) if finite.size else 0.0,
        missing=1.0 - finite.size / max(values.size, 1),
        missing_training=missing,
    )


def _values(
    inputs: Inputs, model: Model, components: tuple[AnyArray, AnyArray]
) -> dict[str, Float64Array]:
    """Return every quantity (n_star,) of some stars; NaN where a star has none."""
    values = {"S/N": np.asarray(inputs.snr, dtype=np.float64)}
    for k, name in enumerate(model.preparation.observable_names):
        values[name] = inputs.observables[:, k].astype(np.float64)
    good = has_spectrum(inputs)
    coefficients, rest = _projected(take(inputs, good), *components)
    for k in range(coefficients.shape[1]):
        values[f"flux component {k + 1}"] = _spread(coefficients[:, k], good)
    values[_REST] = _spread(rest, good)
    return values


def _projected(
    inputs: Inputs, centre: AnyArray, basis: AnyArray
) -> tuple[Float64Array, Float64Array]:
    """Coefficients (n_star, n_component), and what is left, rms in units of the noise."""
    apart = inputs.flux.astype(np.float64) - centre
    coefficients = apart @ basis.T
    rest = apart - coefficients @ basis
    known = (inputs.ivar > 0).sum(axis=1)
    chi2 = (rest**2 * inputs.ivar).sum(axis=1) / np.maximum(known, 1)
    return coefficients, np.sqrt(chi2)


def _underived(names: Sequence[str]) -> list[str]:
    """Leave out errors, and colours of bands that are named: they say the same again."""
    kept = [
        name
        for name in names
        if not name.endswith("_error")
        and not ("-" in name and all(f"M_{band}" in names for band in name.split("-")))
    ]
    return kept or list(names)


def _spread(values: Float64Array, where: BoolArray) -> Float64Array:
    out = np.full(where.size, np.nan)
    out[where] = values
    return out


def _signed(basis: Float64Array) -> Float64Array:
    """Components whose largest element is positive, as their sign is nobody's."""
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=1)[:, None], axis=1)
    return np.asarray(basis * np.sign(largest))


def _quantiles(values: Float64Array) -> Float64Array:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.full(_LEVELS.size, np.nan)
    return np.asarray(np.percentile(finite, _LEVELS))


def _flag_shares(inputs: Inputs) -> dict[str, float]:
    n_star = max(len(inputs), 1)
    return {
        str(flag.name): float(((inputs.flags & flag.value) != 0).sum() / n_star) for flag in Flag
    }


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
