"""Columns other than labels, defined once: name, unit, UCD, description.

Survey stores, catalogues and documentation tables derive from these definitions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from maury.errors import ColumnError, suggestion
from maury.labels.definitions import LABELS, Label

Value = TypeVar("Value")


@dataclass(frozen=True)
class Column:
    """One column of a survey or a catalogue.

    Attributes
    ----------
    name, unit, ucd, description : str
        An empty unit means a pure number.
    kind : str
        ``"float32"``, ``"float64"``, ``"int32"``, ``"int64"``, ``"bool"`` or ``"str"``. NaN (or
        an empty string) means missing.
    """

    name: str
    unit: str
    ucd: str
    description: str
    kind: str = "float64"


def kind_of(dtype: np.dtype[Any]) -> str:
    """Kind of the column (`Column.kind`) that holds values of a numpy type."""
    if dtype.kind in "iu":
        # Four bytes without a sign go beyond those with one.
        most = 4 if dtype.kind == "i" else 2
        return "int32" if dtype.itemsize <= most else "int64"
    return {"U": "str", "S": "str", "O": "str", "b": "bool"}.get(dtype.kind, "float64")


@dataclass(frozen=True)
class Band:
    """A photometric band.

    Attributes
    ----------
    name, column, ucd : str
        `column` is that of its apparent magnitude.
    effective_wavelength_um : float
    extinction : float
        Extinction at that wavelength over A_V.
    """

    name: str
    column: str
    effective_wavelength_um: float
    extinction: float
    ucd: str

    @property
    def absolute_name(self) -> str:
        """Name of the absolute magnitude, for example ``M_Ks``."""
        return f"M_{self.name}"


# The order matters: a default colour is the earlier band less the later one.
BANDS: tuple[Band, ...] = (
    Band("G", "phot_g_mean_mag", 0.622, 0.864, "phot.mag;em.opt"),
    Band("BP", "phot_bp_mean_mag", 0.511, 1.099, "phot.mag;em.opt.B"),
    Band("RP", "phot_rp_mean_mag", 0.777, 0.618, "phot.mag;em.opt.R"),
    Band("J", "j_m", 1.235, 0.274, "phot.mag;em.IR.J"),
    Band("H", "h_m", 1.662, 0.166, "phot.mag;em.IR.H"),
    Band("Ks", "ks_m", 2.159, 0.107, "phot.mag;em.IR.K"),
    Band("W1", "w1mpro", 3.353, 0.049, "phot.mag;em.IR.3-4um"),
    Band("W2", "w2mpro", 4.603, 0.031, "phot.mag;em.IR.4-8um"),
)
"""Gaia, 2MASS and WISE bands. Effective wavelengths are those of the SVO Filter Profile Service
(Vega spectrum), extinctions those of the law of Gordon et al. (2023, ApJ 950, 86) for R_V = 3.1."""


def _magnitudes() -> Iterable[Column]:
    for band in BANDS:
        yield Column(band.column, "mag", band.ucd, f"Apparent magnitude in {band.name}")
        yield Column(
            f"{band.column}_error",
            "mag",
            f"stat.error;{band.ucd}",
            f"1 sigma error of the apparent magnitude in {band.name}",
        )


ID = Column("id", "", "meta.id;meta.main", "Identifier of the spectrum", "str")
STAR_ID = Column(
    "star_id", "", "meta.id", "Identifier of the star: equal for all spectra of one star", "str"
)
STAR_ID_FROM = Column(
    "star_id_from",
    "",
    "meta.note",
    "What identified the star: identifier, position, photometry, or spectrum alone",
    "str",
)
SNR = Column("snr", "", "stat.snr", "Signal-to-noise ratio per pixel at the continuum")

OBSERVED: tuple[Column, ...] = (
    ID,
    STAR_ID,
    STAR_ID_FROM,
    Column("ra", "deg", "pos.eq.ra;meta.main", "Right ascension (ICRS)"),
    Column("dec", "deg", "pos.eq.dec;meta.main", "Declination (ICRS)"),
    Column("pmra", "mas/yr", "pos.pm;pos.eq.ra", "Proper motion in right ascension * cos(dec)"),
    Column("pmdec", "mas/yr", "pos.pm;pos.eq.dec", "Proper motion in declination"),
    Column("epoch", "yr", "time.epoch", "Epoch of the position, a Julian year"),
    SNR,
    Column(
        "radial_velocity",
        "km/s",
        "spect.dopplerVeloc.opt",
        "Heliocentric radial velocity of the spectrum as stored; absent if at rest",
    ),
    Column("parallax", "mas", "pos.parallax.trig", "Parallax"),
    Column("parallax_error", "mas", "stat.error;pos.parallax.trig", "1 sigma parallax error"),
    *_magnitudes(),
    Column("a_v", "mag", "phys.absorption;em.opt.V", "Interstellar extinction A_V"),
    Column("a_v_error", "mag", "stat.error;phys.absorption", "1 sigma error of A_V"),
    Column("nu_eff_used_in_astrometry", "um-1", "em.wavenumber", "Gaia effective wavenumber"),
    Column("pseudocolour", "um-1", "em.wavenumber", "Gaia astrometric pseudocolour"),
    Column("ecl_lat", "deg", "pos.ecliptic.lat", "Ecliptic latitude"),
    Column("astrometric_params_solved", "", "meta.number", "Gaia type of astrometric solution"),
    Column("reference_survey", "", "meta.dataset", "Survey that the labels come from", "str"),
    Column("unread", "", "meta.note", "Why the spectrum could not be read, if it could not", "str"),
    Column("n_exposures", "", "meta.number;obs.exposure", "Exposures that were added up"),
)
"""What a survey may know of each spectrum besides its pixels and labels."""

QUANTILES: tuple[tuple[str, float], ...] = (
    # 2.3 and 97.7 %: two standard deviations of a normal distribution, as 16 and 84 % are one.
    ("q02", 2.3),
    ("q16", 16.0),
    ("q50", 50.0),
    ("q84", 84.0),
    ("q98", 97.7),
)
"""Suffix and percentage of the quantiles that a calibrated catalogue gives of each label."""

CHI2 = Column(
    "chi2_reduced", "", "stat.fit.chi2", "Reduced chi-square of the spectrum against its model"
)
WORST_WAVELENGTH = Column(
    "worst_wavelength", "Angstrom", "em.wl", "Where the spectrum is least like its model"
)
COVERAGE: tuple[Column, ...] = (CHI2, WORST_WAVELENGTH)
"""What a catalogue says of the reconstruction, where the model can make one."""

FLAGS = Column("flags", "", "meta.code.qual", "Quality flags, a bit mask", "int64")
WARN = Column("warn", "", "meta.code.qual", "True if any warning flag is set", "bool")

IN_CATALOGUE: tuple[str, ...] = ("star_id", "ra", "dec", "parallax", "parallax_error")
"""Survey columns that a catalogue repeats where they are known."""


def for_label(label: Label) -> Column:
    """Return the column of a label."""
    return Column(label.name, label.unit, label.ucd, label.description)


def for_label_error(label: Label) -> Column:
    """Return the column of a label's 1 sigma error."""
    return Column(
        label.error_name,
        label.unit,
        f"stat.error;{label.ucd}",
        f"1 sigma error of {label.name}",
    )


def for_label_formal_error(label: Label) -> Column:
    """Return the column of an error of a label that nothing has calibrated."""
    return Column(
        label.formal_error_name,
        label.unit,
        f"stat.error;{label.ucd}",
        f"Error of {label.name} as it is stated, not calibrated; may be far too small",
    )


def for_upper_limit(label: Label) -> Column:
    """Return the column that says where the value of a label is an upper limit."""
    return Column(
        label.upper_limit_name,
        "",
        f"meta.code;{label.ucd}",
        f"Not 0 where {label.name} is an upper limit",
    )


def stated_error(table: Mapping[str, Value], label: str) -> Value:
    """Return the column of a label's errors in a table of predictions, calibrated or not."""
    name = f"{label}_error"
    return table[name if name in table else f"{label}_formal_error"]


ERROR_PARTS: tuple[tuple[str, str, str], ...] = (
    ("own", "stat.error", "Part of the error of {} that is of this spectrum alone"),
    ("common", "stat.error.sys", "Part of the error of {} that all spectra of the star share"),
)
"""Suffix, UCD and description of the two parts of a calibrated error, which add in squares."""
N_SPECTRA = Column("n_spectra", "", "meta.number;obs", "Spectra of the star that were combined")


def for_error_part(label: Label, suffix: str, ucd: str, description: str) -> Column:
    """Return the column of a part of a label's error, for example ``teff_error_own``."""
    name = f"{label.error_name}_{suffix}"
    return Column(name, label.unit, f"{ucd};{label.ucd}", description.format(label.name))


def for_label_quantile(label: Label, suffix: str, percent: float) -> Column:
    """Return the column of a quantile of a label, for example ``teff_q16``."""
    return Column(
        f"{label.name}_{suffix}",
        label.unit,
        f"stat.value;{label.ucd}",
        f"{percent:g} % quantile of {label.name}",
    )


def for_correlation(first: Label, second: Label) -> Column:
    """Return the column of the correlation of the errors of two labels."""
    return Column(
        f"{first.name}_{second.name}_corr",
        "",
        "stat.correlation",
        f"Correlation of the errors of {first.name} and {second.name}",
    )


def for_true_label(label: Label) -> Column:
    """Return the column of the label that a simulation put in."""
    return Column(
        f"true_{label.name}",
        label.unit,
        f"{label.ucd};meta.modelled",
        f"Simulated truth: {label.description}",
    )


def part_names(name: str, size: int) -> tuple[str, ...]:
    """Return the columns of an array of `size` numbers a row: ``bp_00``, ``bp_01``, ..."""
    # Digits in front, so that columns sorted by name stay in order.
    width = max(2, len(str(size - 1)))
    return tuple(f"{name}_{number:0{width}d}" for number in range(size))


def known(labels: Iterable[Label] = LABELS) -> dict[str, Column]:
    """Return every column that a survey with these labels may have, by name."""
    table = {column.name: column for column in OBSERVED}
    for label in labels:
        of_label = (for_label, for_label_error, for_upper_limit, for_true_label)
        table |= {column.name: column for column in (make(label) for make in of_label)}
    return table


def unknown_column(name: str, known: Iterable[str], what: str) -> ColumnError:
    """Return the error that `what` has no column `name`, with its columns and the nearest one."""
    known = list(known)
    return ColumnError(
        f"{what} has no column {name!r}{suggestion(name, known)} (it has {', '.join(known)})"
    )
