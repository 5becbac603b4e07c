"""From a batch of a survey to what a network takes: named, configured, recorded steps.

A `Preparation` is a chain of small frozen configurations: spectral steps
(`maury.spectra.preparation_steps`), then an ordered list of observables. Training records it in the
model file, and prediction replays it from there, so that both see the same inputs. It learns
nothing from the data: rows are independent, and rows out = rows in, in order.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, Self

import numpy as np
from pydantic import ValidationError, model_validator

from maury.errors import ColumnError, ConfigError, suggestion
from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array, Int64Array
from maury.io.config_files import at_most
from maury.io.limits import current
from maury.labels.flags import FLAG_DTYPE, Flag, set_where
from maury.spectra import observables as obs
from maury.spectra import operators as ops
from maury.spectra.batch import Batch
from maury.spectra.noise import RAVE_CORRELATION, Correlation
from maury.spectra.observable_groups import (
    ALL_BANDS,
    AV,
    AbsoluteMagnitudes,
    Colours,
    FurtherColumns,
    MeasurementErrors,
    Observable,
    ParallaxSnr,
    XpCoefficients,
    column,
    parallax_mas,
)
from maury.spectra.observable_map import ObservableMap
from maury.spectra.preparation_steps import (
    RAVE_GRID,
    ChebyshevContinuum,
    CheckGrid,
    Config,
    LinearGrid,
    ListedGrid,
    MaskCosmics,
    NoContinuum,
    Noise,
    Resample,
    RestFrame,
    RunningQuantileContinuum,
    SpectralStep,
    State,
    ToMedium,
)
from maury.spectra.spectra import Medium, Spectra

__all__ = [
    "AV",
    "RAVE_GRID",
    "AbsoluteMagnitudes",
    "ChebyshevContinuum",
    "CheckGrid",
    "Colours",
    "FurtherColumns",
    "Inputs",
    "LinearGrid",
    "ListedGrid",
    "MaskCosmics",
    "MeasurementErrors",
    "NoContinuum",
    "Noise",
    "ParallaxSnr",
    "Preparation",
    "Resample",
    "RestFrame",
    "RunningQuantileContinuum",
    "ToMedium",
    "XpCoefficients",
]


_PER_STAR = ("flux", "ivar", "observables", "observable_errors", "flags", "snr")


def take(inputs: Inputs, index: AnyArray | slice) -> Inputs:
    """Return some rows of prepared spectra, by number, mask or slice."""
    picked: dict[str, Any] = {name: getattr(inputs, name)[index] for name in _PER_STAR}
    return replace(inputs, **picked)


def join_inputs(parts: Sequence[Inputs]) -> Inputs:
    """Concatenate prepared spectra of one grid; at least one."""
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _PER_STAR
    }
    return replace(parts[0], **joined)


logger = logging.getLogger(__name__)

LOW_SNR = 20.0
"""S/N per pixel below which `Flag.LOW_SNR` warns."""
BAD_PIXEL_SHARE = 0.1
"""Share of bad pixels above which `Flag.BAD_PIXELS` warns."""
POOR_PARALLAX = 0.2
"""Relative parallax error above which `Flag.PARALLAX_POOR` warns."""
LARGEST_SNR = 1e5
"""S/N per pixel that no spectrum has: a larger one counts as not given."""
SOURCES: tuple[str, ...] = (*ALL_BANDS, "parallax", "a_v")
"""What observables are made of, besides further columns."""
_STEP_NAMES = (
    "check_grid",
    "medium",
    "resample",
    "rest_frame",
    "noise",
    "mask_cosmics",
    "continuum",
)
_OBSERVABLE_NAMES = (
    "absolute_magnitudes",
    "colours",
    "parallax_snr",
    "a_v",
    "errors",
    "columns",
    "xp",
)


@dataclass(frozen=True)
class Inputs:
    """What a network takes of a batch: rows in the order of the batch.

    Attributes
    ----------
    flux : (n_star, n_pixel) float32
        Finite everywhere: bad pixels are interpolated over, rows without a good pixel are 1.
    ivar : (n_star, n_pixel) float32
        Inverse variance; 0 where the flux was filled.
    observables : (n_star, n_observable) float32
        NaN where missing.
    observable_errors : (n_star, n_observable) float32
        1 sigma; NaN where unknown. Absolute magnitudes of one star share their parallax error.
    flags : (n_star,) int64
        Bits of `maury.labels.flags.Flag`.
    snr : (n_star,) float64
        S/N per pixel of the spectrum as it came, given or estimated; NaN where unknown.
    wave_aa : (n_pixel,) float64
        Wavelengths of `flux` in angstrom.
    medium : {"air", "vacuum"}
        Medium of `wave_aa`.
    noise_correlation : tuple of float
        Autocorrelation of the noise at lags of 1, 2, ... pixels of `flux`.
    """

    flux: Float32Array
    ivar: Float32Array
    observables: Float32Array
    observable_errors: Float32Array
    flags: Int64Array
    snr: Float64Array
    wave_aa: Float64Array
    medium: Medium
    noise_correlation: tuple[float, ...] = RAVE_CORRELATION

    def __len__(self) -> int:
        return int(self.flux.shape[0])


class Preparation(Config):
    """A recorded chain of spectral steps, and the list of observables beside the spectrum.

    Attributes
    ----------
    steps : tuple
        Spectral steps, run in order; see `maury.spectra.preparation_steps`.
    observables : tuple
        Groups of observables, in the order in which a network takes them.
    noise_correlation : tuple of float
        Autocorrelation of the noise at lags 1, 2, ... pixels of the stored spectra, where these do
        not say it themselves: for S/N estimates, and for the noise of resampled pixels. Training
        records that of the survey here.

    Examples
    --------
    >>> preparation = Preparation.from_json(
    ...     {"steps": [{"step": "mask_cosmics"}], "observables": [{"observable": "a_v"}]}
    ... )
    >>> preparation.observable_names
    ('a_v',)
    """

    steps: Annotated[tuple[SpectralStep, ...], at_most("steps")] = ()
    observables: tuple[Observable, ...] = (AbsoluteMagnitudes(), AV())
    noise_correlation: Correlation = RAVE_CORRELATION

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            _check_tags(values.get("steps"), "step", _STEP_NAMES)
            _check_tags(values.get("steps"), "method", tuple(ops.CONTINUUM_METHODS))
            _check_tags(values.get("observables"), "observable", _OBSERVABLE_NAMES)
        return values

    def seen_in(self, noise_correlation: tuple[float, ...] | None) -> Self:
        """Return the same steps with what a survey says of its noise, unless it is stated here."""
        # What the user wrote, even if it equals the default, is not replaced.
        if noise_correlation is None or "noise_correlation" in self.model_fields_set:
            return self
        return self.model_copy(update={"noise_correlation": noise_correlation})

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = self.observable_names
        if len(names) > current().observables:
            raise ValueError(f"{len(names)} observables, at most {current().observables} are taken")
        # Two inputs of one name could not be told apart in the model file.
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise ValueError(f"observables listed twice: {', '.join(twice)}")
        return self

    @property
    def further(self) -> tuple[FurtherColumns, ...]:
        """Groups of further columns."""
        return tuple(group for group in self.observables if isinstance(group, FurtherColumns))

    @property
    def further_sources(self) -> dict[str, tuple[str, ...]]:
        """Columns of the survey that each source of further columns stands for."""
        table: dict[str, tuple[str, ...]] = {}
        for group in self.further:
            table[group.source] = (*table.get(group.source, ()), *group.survey_columns)
        return table

    @property
    def is_further(self) -> BoolArray:
        """Which observable (n_observable,) is a further column."""
        flags = [
            isinstance(group, FurtherColumns) for group in self.observables for _ in group.names
        ]
        return np.array(flags, dtype=np.bool_)

    @property
    def observable_map(self) -> ObservableMap:
        """How the observables follow from `source_names`."""
        names = self.source_names
        changes = [response for group in self.observables for response in group.responses]
        errors: dict[str, int] = {
            name: self.observable_names.index(column)
            for group in self.observables
            if isinstance(group, MeasurementErrors)
            for name, column in zip(group.of, group.names, strict=True)
        }
        for group in self.observables:
            if isinstance(group, XpCoefficients) and group.noise:
                errors[group.source] = self.observable_names.index(group.error_name)
        return ObservableMap(
            names,
            self.sources,
            np.array([[c.get(name, 0.0) for c in changes] for name in names]).reshape(
                len(names), len(changes)
            ),
            np.array([errors.get(name, -1) for name in names], dtype=np.int64),
            self.is_further,
        )

    def require_columns(self, names: Collection[str], *, what: str) -> None:
        """Raise `ColumnError` unless every further column is among `names`, those of `what`."""
        needed = [n for group in self.further for n in (*group.survey_columns, group.over) if n]
        absent = list(dict.fromkeys(name for name in needed if name not in names))
        if absent:
            raise ColumnError(
                f"{what} has no column {absent[0]!r}{suggestion(absent[0], names)}, which the "
                f"preparation takes ({len(absent)} of its further columns are missing); ingest it "
                "with an [[observable]], or correct 'columns'"
            )

    @classmethod
    def published(cls) -> Self:
        """Return what the published RAVE network takes (Guiglion et al. 2020, A&A 644, A168).

        RAVE spectra as they are, eight absolute magnitudes with the extinction left in, A_V.
        """
        return cls(
            steps=(CheckGrid(grid=RAVE_GRID, medium="air"),),
            observables=(AbsoluteMagnitudes(), AV()),
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | str) -> Self:
        """Read a chain from a mapping, or from JSON text.

        Raises
        ------
        ConfigError
            With everything that is wrong; unknown names get a suggestion.
        """
        try:
            values = json.loads(document) if isinstance(document, str) else dict(document)
            return cls.model_validate(values)
        except ValidationError as error:
            problems = [_problem(item) for item in error.errors()]
        except (TypeError, ValueError) as error:
            problems = [str(error)]
        raise ConfigError("the preparation is wrong: " + "; ".join(problems))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values from which `from_json` makes an equal chain."""
        return self.model_dump(mode="json")

    @property
    def observable_names(self) -> tuple[str, ...]:
        """Names of the observables, in order, for example ``("M_G", ..., "a_v")``."""
        return tuple(name for group in self.observables for name in group.names)

    @property
    def source_names(self) -> tuple[str, ...]:
        """What the observables are made of: bands, ``parallax``, ``a_v``, further columns."""
        used = {name for group in self.observables for made_of in group.sources for name in made_of}
        return (*(name for name in SOURCES if name in used), *self.further_sources)

    @property
    def sources(self) -> BoolArray:
        """Which observable (columns) is made of which of `source_names` (rows)."""
        columns = [made_of for group in self.observables for made_of in group.sources]
        table = [[name in made_of for made_of in columns] for name in self.source_names]
        return np.array(table, dtype=np.bool_).reshape(len(table), len(columns))

    def prepared_grid(self, spectra: Spectra) -> tuple[Float64Array, Medium]:
        """Wavelengths (n_pixel,) and medium that spectra on this grid will have.

        Raises
        ------
        GridMismatch
            If a step of the chain does not take them.
        """
        none = np.zeros((0, spectra.n_pixel), dtype=np.float32)
        empty = Batch(Spectra(spectra.wave_aa, none, none, spectra.medium), {})
        prepared = self._spectra(empty).spectra
        return prepared.wave_aa, prepared.medium

    def apply(self, batch: Batch) -> Inputs:
        """Prepare a batch.

        Parameters
        ----------
        batch : Batch
            Rows of a survey.

        Returns
        -------
        Inputs
            One row for each row of the batch, whatever is wrong with it.

        Raises
        ------
        GridMismatch
            If a step of the chain does not take the wavelengths.
        ColumnError
            If an option needs a column that the survey lacks.
        MissingExtra
            If an option needs an optional package that is not installed.
        """
        # The spectra first: observables do not depend on them.
        state = self._spectra(batch)
        groups = [group.measure(batch) for group in self.observables]
        none = np.empty((len(batch), 0))
        # The empty block gives chains without observables the right number of rows.
        values = np.hstack([none, *(group[0] for group in groups)])
        errors = np.hstack([none, *(group[1] for group in groups)])
        flux = ops.fill_bad_pixels(state.spectra.flux, state.spectra.ivar)
        with np.errstate(over="ignore"):
            # What single precision cannot hold is infinite, and flagged as out of range.
            narrow = values.astype(np.float32), errors.astype(np.float32)
        return Inputs(
            flux=flux.astype(np.float32, copy=False),
            ivar=np.where(state.spectra.good, state.spectra.ivar, np.float32(0)),
            observables=narrow[0],
            observable_errors=narrow[1],
            flags=self._flag_observables(batch, _flag_spectra(state)),
            snr=state.snr,
            wave_aa=state.spectra.wave_aa,
            medium=state.spectra.medium,
            noise_correlation=state.noise_correlation,
        )

    def _spectra(self, batch: Batch) -> State:
        """Run the spectral steps on a batch."""
        spectra = batch.spectra
        # Once, at the door: steps and networks then only ask whether ivar is positive.
        good = ops.good_pixels(spectra.flux, spectra.ivar)
        spectra = spectra.replace(ivar=np.where(good, spectra.ivar, np.float32(0)))
        snr = self._snr(batch, spectra)
        if batch.at_rest is False and not any(isinstance(step, RestFrame) for step in self.steps):
            _tell_of_motion()
        flags = np.zeros(len(spectra), FLAG_DTYPE)
        state = State(spectra, flags, snr, batch, self.noise_correlation)
        for step in self.steps:
            state = step.run(state)
        return state

    def _snr(self, batch: Batch, spectra: Spectra) -> Float64Array:
        """S/N of each spectrum as it came: the column, or an estimate where it is missing."""
        snr = column(batch, "snr")
        rows = np.flatnonzero(~((snr > 0) & (snr <= LARGEST_SNR)))
        if rows.size:
            flux, ivar = spectra.flux[rows], spectra.ivar[rows]
            # Spectra in counts are estimated relative to their continuum.
            level = np.quantile(ops.fill_bad_pixels(flux, ivar), 0.9, axis=1, keepdims=True)
            scaled = flux / np.where(level > 0, level, 1)
            snr = snr.copy()
            known = spectra.noise_correlation
            correlation = self.noise_correlation if known is None else known
            snr[rows] = ops.estimate_snr(scaled, ivar, correlation=correlation)
        return snr

    def _flag_observables(self, batch: Batch, flags: Int64Array) -> Int64Array:
        groups = self.observables
        checks: list[tuple[Flag, BoolArray]] = []
        astrometric = [g for g in groups if isinstance(g, AbsoluteMagnitudes | ParallaxSnr)]
        if astrometric:
            corrected = any(group.zero_point for group in astrometric)
            checks += _parallax_checks(batch, zero_point=corrected)
        bands = {name for group in groups for name in group.bands}
        if bands:
            magnitudes = [column(batch, obs.band(name).column) for name in sorted(bands)]
            checks.append((Flag.MAGNITUDE_MISSING, np.isnan(np.sum(magnitudes, axis=0))))
        if any(isinstance(group, AV) or getattr(group, "deredden", False) for group in groups):
            checks.append((Flag.A_V_MISSING, np.isnan(column(batch, "a_v"))))
        if self.further:
            lacking = [np.isnan(group.measure(batch)[0]).any(axis=1) for group in self.further]
            checks.append((Flag.COLUMN_MISSING, np.any(lacking, axis=0)))
        for flag, where in checks:
            flags = set_where(flags, flag, where)
        return flags


@lru_cache(maxsize=1)
def _tell_of_motion() -> None:
    """Warn, once a process: batches are many, and all of them alike."""
    logger.warning(
        "the spectra are not at rest, as their survey says, and the preparation does not shift "
        "them: labels will be wrong where lines are; add the step rest_frame to the preparation"
    )


def _parallax_checks(batch: Batch, *, zero_point: bool) -> list[tuple[Flag, BoolArray]]:
    parallax = obs.usable_parallax(parallax_mas(batch, zero_point=zero_point))
    error = column(batch, "parallax_error")
    known = error >= 0
    poor = np.where(known, error, np.nan) > POOR_PARALLAX * parallax
    return [
        (Flag.NO_PARALLAX, np.isnan(parallax)),
        (Flag.PARALLAX_ERROR_UNKNOWN, ~np.isnan(parallax) & ~known),
        (Flag.PARALLAX_POOR, poor),
    ]


def _flag_spectra(state: State) -> Int64Array:
    flux, good = state.spectra.flux, state.spectra.good
    share = 1.0 - np.mean(good, axis=1)
    if good.all():
        constant = np.max(flux, axis=1, initial=-np.inf) <= np.min(flux, axis=1, initial=np.inf)
    else:
        least = np.min(flux, axis=1, where=good, initial=np.inf)
        constant = np.max(flux, axis=1, where=good, initial=-np.inf) <= least
    checks = (
        (Flag.NO_SPECTRUM, constant),
        (Flag.BAD_PIXELS, (share > BAD_PIXEL_SHARE) & ~constant),
        (Flag.LOW_SNR, state.snr < LOW_SNR),
        (Flag.SNR_UNKNOWN, np.isnan(state.snr)),
        (Flag.NOISE_UNKNOWN, ~state.spectra.noise_known & state.spectra.good.any(axis=1)),
    )
    flags = state.flags
    for flag, where in checks:
        flags = set_where(flags, flag, where)
    return flags


def _check_tags(items: Any, key: str, known: tuple[str, ...]) -> None:
    """Answer an unknown step or observable with the nearest known one."""
    if not isinstance(items, list | tuple):
        return
    tags = [item.get(key) for item in items if isinstance(item, Mapping)]
    unknown = [tag for tag in tags if isinstance(tag, str) and tag not in known]
    if unknown:
        hints = ", ".join(f"{tag!r}{suggestion(tag, known)}" for tag in unknown)
        raise ValueError(f"unknown {key} {hints} (known: {', '.join(known)})")


def _problem(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "preparation"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}"
