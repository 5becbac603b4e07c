"""What networks take besides the spectrum: groups of observables, measured on a batch.

Each is a small frozen configuration; missing values are NaN. To add one, write its class and list
it in `Observable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self, get_args

import numpy as np
from pydantic import Field, model_validator

from maury.errors import ColumnError
from maury.io.arrays import BoolArray, Float64Array
from maury.labels.columns import BANDS, part_names
from maury.spectra import observables as obs
from maury.spectra.batch import Batch
from maury.spectra.preparation_steps import Config

Measured = tuple[Float64Array, Float64Array]
Response = Mapping[str, float]
"""Change of an observable by one magnitude more in each source: a band, ``parallax`` (one more in
the absolute magnitude), ``a_v``. Empty where it is no sum of magnitudes."""
_UNIT_ERROR_MAG = 0.03
"""Error of which the logarithm is 0, so that inputs are near 0: typical of surveys; chosen."""
_ERROR_RANGE = (-1.5, 2.0)
"""Decades of that unit beyond which an error tells no more: .001 and 3 mag; chosen."""

_COLUMN_NAME = r"^[a-z][a-z0-9_]{0,39}$"
BandName = Literal["G", "BP", "RP", "J", "H", "Ks", "W1", "W2"]
ALL_BANDS: tuple[BandName, ...] = get_args(BandName)
assert tuple(band.name for band in BANDS) == ALL_BANDS
_ZERO_POINT_COLUMNS = (
    "phot_g_mean_mag",
    "nu_eff_used_in_astrometry",
    "pseudocolour",
    "ecl_lat",
    "astrometric_params_solved",
)


def column(batch: Batch, name: str) -> Float64Array:
    """Return a column with NaN for whatever is not finite, or NaN throughout if it is absent."""
    values = np.asarray(batch.get(name), dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _require(batch: Batch, names: Iterable[str], purpose: str) -> None:
    absent = [name for name in names if name not in batch.columns]
    if absent:
        raise ColumnError(
            f"{purpose} needs the columns {', '.join(absent)}, which the survey does not have; "
            "ingest them, or switch the option off"
        )


def parallax_mas(batch: Batch, *, zero_point: bool) -> Float64Array:
    """Return parallaxes as the survey gives them, or less their zero point."""
    parallax = column(batch, "parallax")
    if not zero_point:
        return parallax
    _require(batch, _ZERO_POINT_COLUMNS, "zero_point = true")
    magnitude, nu_eff, pseudocolour, latitude, solved = (
        column(batch, name) for name in _ZERO_POINT_COLUMNS
    )
    return parallax - obs.parallax_zero_point(
        magnitude,
        nu_eff,
        pseudocolour,
        ecl_lat_deg=latitude,
        astrometric_params_solved=solved,
    )


def _magnitudes(
    batch: Batch, bands: tuple[BandName, ...], *, deredden: bool, r_v: float
) -> Measured:
    """Apparent magnitudes and their errors, both (n_star, n_band)."""
    columns = [obs.band(name).column for name in bands]
    values = np.stack([column(batch, name) for name in columns], axis=1)
    errors = np.stack([column(batch, f"{name}_error") for name in columns], axis=1)
    if deredden:
        _require(batch, ["a_v"], "deredden = true")
        values = values - obs.band_extinction(column(batch, "a_v"), bands, r_v=r_v)
    return values, errors


def _reddening(signs: Mapping[str, float], deredden: bool) -> dict[str, float]:
    """Change by A_V where the extinction is taken off."""
    if not deredden:
        return {}
    return {"a_v": -sum(sign * obs.band(name).extinction for name, sign in signs.items())}


class AbsoluteMagnitudes(Config):
    """Absolute magnitudes M_G, ...: m + 5 (log10(parallax / 1000) + 1).

    With `zero_point` the parallax is first corrected (Gaia DR3; a star whose zero point is unknown
    counts as one without parallax); with `deredden` the extinction is taken off by A_V.
    """

    observable: Literal["absolute_magnitudes"] = "absolute_magnitudes"
    bands: Annotated[tuple[BandName, ...], Field(min_length=1)] = ALL_BANDS
    zero_point: bool = False
    deredden: bool = False
    r_v: Annotated[float, Field(ge=2.3, le=5.6)] = 3.1

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the observables."""
        suffix = "_0" if self.deredden else ""
        return tuple(f"{obs.band(name).absolute_name}{suffix}" for name in self.bands)

    @property
    def sources(self) -> tuple[frozenset[str], ...]:
        """Inputs that each observable is made of."""
        extinction = {"a_v"} if self.deredden else set()
        return tuple(frozenset({name, "parallax"} | extinction) for name in self.bands)

    @property
    def responses(self) -> tuple[Response, ...]:
        """Change of each observable by its sources."""
        return tuple(
            {name: 1.0, "parallax": 1.0} | _reddening({name: 1.0}, self.deredden)
            for name in self.bands
        )

    def measure(self, batch: Batch) -> Measured:
        """Values and 1 sigma errors, both (n_star, n_observable) float64."""
        parallax = parallax_mas(batch, zero_point=self.zero_point)[:, None]
        error = column(batch, "parallax_error")[:, None]
        values, errors = _magnitudes(batch, self.bands, deredden=self.deredden, r_v=self.r_v)
        return (
            obs.absolute_magnitude(values, parallax),
            obs.absolute_magnitude_error(errors, parallax, error),
        )


class Colours(Config):
    """Colour indices, first band of each pair minus the second."""

    observable: Literal["colours"] = "colours"
    pairs: Annotated[tuple[tuple[BandName, BandName], ...], Field(min_length=1)] = (
        ("BP", "RP"),
        ("J", "Ks"),
        ("W1", "W2"),
    )
    deredden: bool = False
    r_v: Annotated[float, Field(ge=2.3, le=5.6)] = 3.1

    @property
    def bands(self) -> tuple[BandName, ...]:
        """Bands in use, each once."""
        return tuple(dict.fromkeys(name for pair in self.pairs for name in pair))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the observables."""
        suffix = "_0" if self.deredden else ""
        return tuple(f"{blue}-{red}{suffix}" for blue, red in self.pairs)

    @property
    def sources(self) -> tuple[frozenset[str], ...]:
        """Inputs that each observable is made of."""
        extinction = {"a_v"} if self.deredden else set()
        return tuple(frozenset({*pair} | extinction) for pair in self.pairs)

    @property
    def responses(self) -> tuple[Response, ...]:
        """Change of each observable by its sources."""
        signs: list[dict[str, float]] = [{blue: 1.0, red: -1.0} for blue, red in self.pairs]
        return tuple(sign | _reddening(sign, self.deredden) for sign in signs)

    def measure(self, batch: Batch) -> Measured:
        """Values and 1 sigma errors, both (n_star, n_observable) float64."""
        values, errors = _magnitudes(batch, self.bands, deredden=self.deredden, r_v=self.r_v)
        # Each band is read and dereddened once, in however many pairs it stands.
        place = {name: column for column, name in enumerate(self.bands)}
        blue, red = ([place[pair[k]] for pair in self.pairs] for k in (0, 1))
        return obs.colour(values[:, blue], values[:, red]), np.hypot(
            errors[:, blue], errors[:, red]
        )


class ParallaxSnr(Config):
    """Parallax over its error: how far the absolute magnitudes can be trusted."""

    observable: Literal["parallax_snr"] = "parallax_snr"
    zero_point: bool = False

    @property
    def bands(self) -> tuple[BandName, ...]:
        """No band is used."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the observables."""
        return ("parallax_snr",)

    @property
    def sources(self) -> tuple[frozenset[str], ...]:
        """Inputs that each observable is made of."""
        return (frozenset({"parallax"}),)

    @property
    def responses(self) -> tuple[Response, ...]:
        """A ratio is no sum of magnitudes."""
        return ({},)

    def measure(self, batch: Batch) -> Measured:
        """Values and 1 sigma errors (one, by construction), both (n_star, 1) float64."""
        parallax = parallax_mas(batch, zero_point=self.zero_point)[:, None]
        values = obs.parallax_snr(parallax, column(batch, "parallax_error")[:, None])
        # In units of its own error.
        return values, np.where(np.isnan(values), np.nan, 1.0)


class AV(Config):
    """Interstellar extinction A_V as the survey gives it."""

    observable: Literal["a_v"] = "a_v"

    @property
    def bands(self) -> tuple[BandName, ...]:
        """No band is used."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the observables."""
        return ("a_v",)

    @property
    def sources(self) -> tuple[frozenset[str], ...]:
        """Inputs that each observable is made of."""
        return (frozenset({"a_v"}),)

    @property
    def responses(self) -> tuple[Response, ...]:
        """Change of each observable by its sources."""
        return ({"a_v": 1.0},)

    def measure(self, batch: Batch) -> Measured:
        """Values and 1 sigma errors, both (n_star, 1) float64."""
        return column(batch, "a_v")[:, None], column(batch, "a_v_error")[:, None]


def error_input(error_mag: Float64Array) -> Float64Array:
    """Errors as networks take them: decades above .03 mag, within -1.5 to 2; NaN where unknown."""
    known = np.where(error_mag >= 0, error_mag, np.nan)
    least = _UNIT_ERROR_MAG * 10.0 ** _ERROR_RANGE[0]
    decades = np.log10(np.maximum(known, least) / _UNIT_ERROR_MAG)
    return np.asarray(np.minimum(decades, _ERROR_RANGE[1]))


class MeasurementErrors(Config):
    """Errors of magnitudes, distance modulus and A_V, as inputs: a network can then weigh them.

    Each is `error_input` of its 1 sigma error in mag; NaN where the survey does not tell it.
    """

    observable: Literal["errors"] = "errors"
    of: Annotated[tuple[BandName | Literal["parallax", "a_v"], ...], Field(min_length=1)] = (
        *ALL_BANDS,
        "parallax",
        "a_v",
    )

    @property
    def bands(self) -> tuple[BandName, ...]:
        """No band is used: an error alone says nothing of a star."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the observables."""
        return tuple(f"{name}_error" for name in self.of)

    @property
    def sources(self) -> tuple[frozenset[str], ...]:
        """Inputs that each observable is made of."""
        return tuple(frozenset({name}) for name in self.of)

    @property
    def responses(self) -> tuple[Response, ...]:
        """No error changes with a magnitude."""
        return tuple({} for _ in self.of)

    def measure(self, batch: Batch) -> Measured:
        """Values and their unknown errors, both (n_star, n_observable) float64."""
        values = np.stack([error_input(self._error_mag(batch, name)) for name in self.of], axis=1)
        return values, np.full(values.shape, np.nan)

    def _error_mag(self, batch: Batch, name: str) -> Float64Array:
        if name == "parallax":
            return obs.distance_modulus_error(
                column(batch, "parallax"), column(batch, "parallax_error")
            )
        measured = "a_v" if name == "a_v" else obs.band(name).column
        error = column(batch, f"{measured}_error")
        # The error of a value that is not there is none.
        return np.where(np.isfinite(column(batch, measured)), error, np.nan)


class ColumnRange(Config):
    """Columns ``<name>_00``, ``<name>_01``, ... that a survey has of an array of `size` numbers."""

    name: Annotated[str, Field(pattern=_COLUMN_NAME)]
    size: Annotated[int, Field(ge=1, le=1000)]


def _in_single(values: Float64Array) -> Float64Array:
    """Return values with NaN for those that float32 cannot hold."""
    return np.where(np.abs(values) < np.finfo(np.float32).max, values, np.nan)


class FurtherColumns(Config):
    """Any other columns of the survey, as numbers: coefficients, a seismic log g, reddening.

    Attributes
    ----------
    source : str
        What they are called together, as an input that may be missing (``--without``).
    columns : tuple of str or ColumnRange
        Columns of the survey; errors are those with ``_error`` behind.
    over : str, optional
        A column by which each is divided, such as the first coefficient, so that the brightness
        of the star drops out. It is no observable itself.
    suffices : bool
        Whether a star without spectrum and magnitudes gets labels from these alone.
    """

    observable: Literal["columns"] = "columns"
    source: Annotated[str, Field(pattern=_COLUMN_NAME)]
    columns: Annotated[
        tuple[Annotated[str, Field(pattern=_COLUMN_NAME)] | ColumnRange, ...], Field(min_length=1)
    ]
    over: Annotated[str, Field(pattern=_COLUMN_NAME)] | None = None
    suffices: bool = False

    @model_validator(mode="after")
    def _own_source(self) -> Self:
        if self.source in (*ALL_BANDS, "parallax", "a_v", "spectrum", "photometry"):
            raise ValueError(f"source {self.source!r} is an input already; take another name")
        return self

    @property
    def survey_columns(self) -> tuple[str, ...]:
        """Columns that are read, without their errors and the one that divides."""
        return tuple(
            name
            for entry in self.columns
            for name in ([entry] if isinstance(entry, str) else part_names(entry.name, entry.size))
            if name != self.over
        )

    @property
    def bands(self) -> tuple[BandName, ...]:
        """No band is used."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the observables."""
        suffix = "" if self.over is None else f"/{self.over}"
        return tuple(f"{name}{suffix}" for name in self.survey_columns)

    @property
    def sources(self) -> tuple[frozenset[str], ...]:
        """Inputs that each observable is made of."""
        return tuple(frozenset({self.source}) for _ in self.survey_columns)

    @property
    def responses(self) -> tuple[Response, ...]:
        """Further columns may be in any unit."""
        return tuple({} for _ in self.survey_columns)

    def measure(self, batch: Batch) -> Measured:
        """Values and 1 sigma errors, both (n_star, n_observable) float64."""
        names = self.survey_columns
        values = np.stack([column(batch, name) for name in names], axis=1)
        errors = np.stack([column(batch, f"{name}_error") for name in names], axis=1)
        if self.over is None:
            return _in_single(values), errors
        below, below_error = (column(batch, self.over + end)[:, None] for end in ("", "_error"))
        # Nothing is a multiple of zero.
        below = np.where(below != 0, below, np.nan)
        with np.errstate(over="ignore"):
            ratio = _in_single(values / below)
        # A divisor of unknown error counts as exact, or all would be of unknown error.
        share = np.where(np.isfinite(below_error), below_error, 0.0) * ratio
        return ratio, np.hypot(errors, share) / np.abs(below)


_ZERO_POINT_G_MAG = 25.6873668671
"""G of one photo-electron a second in Gaia EDR3 and DR3 (Riello et al. 2021, A&A 649, A3, table 5,
in the Vega system)."""
G_OF_XP = "phot_g_mean_mag_of_xp"
"""Column of the G that XP coefficients alone are divided by, of stars whose G is hidden as an
input (`maury.prediction.predictor.hide`): without any, they would be hidden with it."""
_UNIT_XP_ERROR = 1.5e-5
"""Median error over the flux in G of which the logarithm is 0: of a star of some G = 12; chosen."""
_XP_ERROR_RANGE = (-1.0, 3.0)
"""Decades of that unit beyond which an error tells no more; chosen."""
XP_SIZE = 55
"""Coefficients of each of the BP and RP mean spectra (De Angeli et al. 2023, A&A 674, A2)."""


class XpCoefficients(FurtherColumns):
    """Coefficients of the mean BP and RP spectra of Gaia, over the flux in G.

    Divided by the flux in photo-electrons a second, which the coefficients are in, they say the
    shape of a spectrum and not the brightness of its star. A star without G has none.

    Attributes
    ----------
    truncate : bool
        Whether coefficients beyond ``bp_n_relevant_bases`` and ``rp_n_relevant_bases``, where the
        survey has these columns, are 0, as in the truncated spectra of the archive: they are
        compatible with noise. Their errors are then unknown.
    noise : bool
        Whether the median error over the flux in G is one observable more, ``xp_noise``: a network
        can then weigh coefficients of fainter stars than the labelled ones, and simulated stars
        are trained with that are as faint.
    """

    observable: Literal["xp"] = "xp"  # type: ignore[assignment]
    source: Annotated[str, Field(pattern=_COLUMN_NAME)] = "xp"
    columns: Annotated[
        tuple[Annotated[str, Field(pattern=_COLUMN_NAME)] | ColumnRange, ...], Field(min_length=1)
    ] = (ColumnRange(name="bp", size=XP_SIZE), ColumnRange(name="rp", size=XP_SIZE))
    truncate: bool = True
    noise: bool = False

    @model_validator(mode="after")
    def _normalised_by_g(self) -> Self:
        if self.over is not None:
            raise ValueError("coefficients of 'xp' are over the flux in G; leave 'over' out")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the observables."""
        told = (self.error_name,) if self.noise else ()
        return (*(f"{name}/G" for name in self.survey_columns), *told)

    @property
    def error_name(self) -> str:
        """Name of the observable that tells the noise."""
        return f"{self.source}_noise"

    @property
    def sources(self) -> tuple[frozenset[str], ...]:
        """Inputs that each observable is made of."""
        return tuple(frozenset({self.source}) for _ in self.names)

    @property
    def responses(self) -> tuple[Response, ...]:
        """No coefficient over the flux in G is a sum of magnitudes."""
        return tuple({} for _ in self.names)

    def measure(self, batch: Batch) -> Measured:
        """Values and 1 sigma errors, both (n_star, n_observable) float64."""
        values, errors = super().measure(batch)
        flux, flux_error = _g_flux(batch)
        with np.errstate(over="ignore"):
            ratio = _in_single(values / flux)
            # A flux of unknown error counts as exact: it is known far better than a coefficient.
            error = np.hypot(errors, np.nan_to_num(flux_error) * ratio) / flux
        if self.truncate:
            beyond = self._beyond(batch) & np.isfinite(ratio)
            ratio, error = np.where(beyond, 0.0, ratio), np.where(beyond, np.nan, error)
        if self.noise:
            told = xp_error_input(errors / flux, there=np.isfinite(ratio))
            ratio = np.hstack([ratio, told])
            error = np.hstack([error, np.full(told.shape, np.nan)])
        return ratio, error

    def _beyond(self, batch: Batch) -> BoolArray:
        """Which coefficients (n_star, n_observable) a survey says to be noise alone."""
        found = []
        for entry in self.columns:
            size = 1 if isinstance(entry, str) else entry.size
            name = "" if isinstance(entry, str) else f"{entry.name}_n_relevant_bases"
            least = column(batch, name)[:, None]
            # A comparison with NaN is false: of a star that does not tell it all are kept.
            found.append(np.arange(size)[None, :] >= least)
        return np.concatenate(found, axis=1)


def xp_error_input(error: Float64Array, *, there: BoolArray) -> Float64Array:
    """Median error of XP coefficients over the flux in G, as networks take it.

    Decades above 1.5e-5, within -1 to 3; NaN (n_star, 1) where it or all coefficients are unknown.

    Parameters
    ----------
    error : (n_star, n_coefficient) float64
    there : (n_star, n_coefficient) bool
        Which coefficients are known.
    """
    known = np.where(there & (error > 0), error, np.nan)
    some = np.isfinite(known).any(axis=1)
    median = np.full(len(error), np.nan)
    median[some] = np.nanmedian(known[some], axis=1)
    return np.clip(np.log10(median / _UNIT_XP_ERROR), *_XP_ERROR_RANGE)[:, None]


def xp_error(told: Float64Array) -> Float64Array:
    """Median error over the flux in G of what `xp_error_input` tells."""
    return np.asarray(_UNIT_XP_ERROR * 10.0**told)


def _g_flux(batch: Batch) -> Measured:
    """Flux in G and its 1 sigma error, (n_star, 1) each, in photo-electrons a second."""
    magnitude, error_mag = (
        column(batch, f"phot_g_mean_mag{end}")[:, None] for end in ("", "_error")
    )
    magnitude = np.where(np.isfinite(magnitude), magnitude, column(batch, G_OF_XP)[:, None])
    flux = 10.0 ** (-0.4 * (magnitude - _ZERO_POINT_G_MAG))
    return _in_single(flux), 0.4 * np.log(10.0) * error_mag * flux


Observable = Annotated[
    AbsoluteMagnitudes
    | Colours
    | ParallaxSnr
    | AV
    | MeasurementErrors
    | FurtherColumns
    | XpCoefficients,
    Field(discriminator="observable"),
]
