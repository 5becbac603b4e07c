"""Quality flags of a catalogue row, defined once.

A flag either *warns* (do not trust the labels blindly) or *informs* (something to know, such as an
input that was not given). Bits never change their meaning.
"""

from enum import IntFlag
from typing import Self

import numpy as np
from numpy.typing import NDArray

from maury.io.arrays import BoolArray, Int64Array

# Signed, for FITS and VOTable have no unsigned columns of their own. Catalogues of earlier versions
# have 32 bits, whose flags keep their numbers.
FLAG_DTYPE = np.int64


class Flag(IntFlag):
    """One bit of the column ``flags``: what it means (``text``), and what to do (``remedy``)."""

    warns: bool
    text: str
    remedy: str

    def __new__(cls, bit: int, warns: bool = False, text: str = "", remedy: str = "") -> Self:
        """Make the flag of bit number `bit`."""
        flag = int.__new__(cls, 1 << bit)
        flag._value_ = 1 << bit
        flag.warns = warns
        flag.text = text
        flag.remedy = remedy
        return flag

    # Bit numbers are part of all catalogues that were ever written: never reuse or move one.
    NO_SPECTRUM = (
        0,
        True,
        "no usable pixel, or the same flux in all of them",
        "look at the file of this star; without a spectrum only photometry speaks",
    )
    BAD_PIXELS = (
        1,
        True,
        "more than 10 % of the pixels are bad and were interpolated over",
        "look at the spectrum; cut bad ends off with 'resample' in the survey's TOML file",
    )
    SPIKES = (
        2,
        False,
        "pixels with a cosmic ray or spike were found and interpolated over",
        "nothing to do, unless there are many: then look at the spectrum",
    )
    LOW_SNR = (
        3,
        True,
        "S/N per pixel below 20",
        "use the quoted errors, or combine spectra of the star ('maury predict --by-star')",
    )
    SNR_UNKNOWN = (
        4,
        False,
        "S/N not given and not measurable",
        "name a column snr, or errors of the flux, in the survey's TOML file",
    )
    NO_RADIAL_VELOCITY = (
        5,
        True,
        "no radial velocity, so not shifted to the rest frame",
        "name radial_velocity in [columns] of the survey's TOML file",
    )
    CONTINUUM_FAILED = (
        6,
        True,
        "the continuum fit failed",
        "look at the spectrum; normalise it yourself, or mask what is no continuum",
    )
    NO_PARALLAX = (
        7,
        False,
        "parallax missing or not positive, so no absolute magnitude",
        "nothing to do, errors are larger; look for a parallax in a later release",
    )
    PARALLAX_ERROR_UNKNOWN = (
        8,
        False,
        "parallax error not given",
        "name parallax_error in [columns] of the survey's TOML file",
    )
    PARALLAX_POOR = (
        9,
        True,
        "parallax error above 20 %",
        "compare with 'maury predict --without parallax'",
    )
    MAGNITUDE_MISSING = (
        10,
        False,
        "at least one magnitude is missing",
        "nothing to do, errors are larger; name the bands in [columns] if the survey has them",
    )
    A_V_MISSING = (
        11,
        False,
        "extinction A_V is missing",
        "nothing to do, errors are larger; name a_v in [columns] if the survey has it",
    )
    INPUT_REQUIRED = (
        12,
        True,
        "an input that this model needs is missing: no labels are given",
        "see the flags beside it for the input; train a model that does without it",
    )
    OBSERVABLE_OUTSIDE = (
        13,
        True,
        "an observable lies outside the range of the training sample",
        "check the units and sources of magnitudes and parallax; predict without them",
    )
    LABEL_OUTSIDE = (
        14,
        True,
        "a label lies outside the range of the training sample",
        "do not use the labels; train on stars like it ('maury coverage --suggest')",
    )
    TRAINING_STAR = (
        15,
        False,
        "this star took part in the training or choice of the networks",
        "leave it out of tests of the model",
    )
    SPECTRUM_UNLIKE = (
        16,
        True,
        "the spectrum is unlike those of the training sample",
        "look at the spectrum ('maury explore'); do not use the labels before",
    )
    RECONSTRUCTION_POOR = (
        17,
        True,
        "the spectrum computed from the labels does not fit",
        "look at the residuals ('maury explore'); if many: 'maury drift'",
    )
    RADIAL_VELOCITY_WRONG = (
        18,
        True,
        "lines shifted against the spectrum computed from the labels",
        "correct radial_velocity in the survey's tables, and predict again",
    )
    EMISSION = (
        19,
        True,
        "emission in the cores of the Ca II triplet",
        "use the labels with care: an active or young star",
    )
    DOUBLE_LINED = (
        20,
        True,
        "a second set of lines, as of a spectroscopic binary",
        "do not use the labels; they are those of neither star",
    )
    CONTINUUM_BAD = (
        21,
        True,
        "the continuum is tilted or curved, or has fringes",
        "look at the spectrum, and normalise it as the training spectra were",
    )
    HOT_STAR = (
        22,
        True,
        "Paschen lines, or Teff, beyond those of the training sample",
        "do not use the labels; train on stars as hot ('maury coverage --suggest')",
    )
    PHOTOMETRY_DISAGREES = (
        23,
        True,
        "labels from the spectrum and from the observables disagree",
        "check the cross-match; compare with 'maury predict --without photometry'",
    )
    LABELS_UNLIKE = (
        24,
        True,
        "few training stars have labels like these",
        "label stars like it ('maury coverage --suggest'), and train again",
    )
    NOT_CONVERGED = (
        25,
        True,
        "the fit of the spectrum did not converge",
        "do not use the labels; look at the spectrum",
    )
    AT_BOUND = (
        26,
        True,
        "a fitted label lies at the edge of what the fit allows",
        "do not use the labels; widen the bounds or the grid of the method",
    )
    GRADIENT_UNLIKE = (
        27,
        True,
        "a label is measured from pixels where theory has none of its lines",
        "do not use this model for that label; 'maury audit' says what it rests on",
    )
    UPPER_LIMIT = (
        28,
        False,
        "an abundance is an upper limit",
        "take the value as a limit, not as a measurement",
    )
    COLUMN_MISSING = (
        29,
        False,
        "a further column that the model takes is missing",
        "nothing to do, errors are larger; name the column in [columns] if the survey has it",
    )
    NOISE_UNKNOWN = (
        30,
        False,
        "the noise is not given, and the preparation did not set it",
        "name errors of the flux in the survey's TOML file, or set a noise in the preparation",
    )
    BINARY_SUSPECTED = (
        31,
        True,
        "too bright for its spectrum, as with an unresolved companion",
        "compare with 'maury predict --without photometry'; check parallax and magnitudes",
    )
    FAST_ROTATION = (
        32,
        True,
        "lines broader than in the training sample, as of a fast rotator",
        "do not use the abundances; train on stars that rotate as fast",
    )
    ZERO_LEVEL = (
        33,
        True,
        "all lines too weak or too deep, as of a wrong zero level of the flux",
        "check the background and scattered light of the reduction",
    )
    COOL_STAR = (
        34,
        True,
        "bands of TiO beyond those of the training sample, as of a cool star",
        "do not use the labels; train on stars as cool ('maury coverage --suggest')",
    )
    OBSERVABLES_UNLIKE = (
        35,
        True,
        "no training star has observables like these together",
        "check the cross-match; compare with 'maury predict --without photometry'",
    )
    SURVEY_UNLIKE = (
        36,
        True,
        "lines of all stars of the survey differ from those in training",
        "read 'maury drift'; adapt the model to the survey with 'maury adapt'",
    )


WARNING_MASK: int = sum(flag.value for flag in Flag if flag.warns)
"""All bits that warn, as one integer."""


def warn(flags: NDArray[np.integer]) -> BoolArray:
    """Return, per row, whether any warning bit is set.

    Parameters
    ----------
    flags : (n,) int
        Bit masks of `Flag`.
    """
    warned: BoolArray = (np.asarray(flags, FLAG_DTYPE) & WARNING_MASK) != 0
    return warned


def set_where(flags: Int64Array, flag: Flag, where: BoolArray) -> Int64Array:
    """Return `flags` with the bit of `flag` set in the rows `where` is true."""
    wide = np.asarray(flags, FLAG_DTYPE)
    return np.where(where, wide | flag.value, wide)


def names(mask: int) -> list[str]:
    """Return the names of the bits set in one mask, lowest bit first."""
    return [str(flag.name) for flag in Flag if mask & flag.value]


def reasons(mask: int) -> list[str]:
    """Return the texts of the bits set in one mask, lowest bit first."""
    return [flag.text for flag in Flag if mask & flag.value]
