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
    """One bit of the column ``flags``; ``warns`` and ``text`` say what it means."""

    warns: bool
    text: str

    def __new__(cls, bit: int, warns: bool = False, text: str = "") -> Self:
        """Make the flag of bit number `bit`."""
        flag = int.__new__(cls, 1 << bit)
        flag._value_ = 1 << bit
        flag.warns = warns
        flag.text = text
        return flag

    # Bit numbers are part of all catalogues that were ever written: never reuse or move one.
    NO_SPECTRUM = 0, True, "no usable pixel, or the same flux in all of them"
    BAD_PIXELS = 1, True, "more than 10 % of the pixels are bad and were interpolated over"
    SPIKES = 2, False, "pixels with a cosmic ray or spike were found and interpolated over"
    LOW_SNR = 3, True, "S/N per pixel below 20"
    SNR_UNKNOWN = 4, False, "S/N not given and not measurable"
    NO_RADIAL_VELOCITY = 5, True, "no radial velocity, so not shifted to the rest frame"
    CONTINUUM_FAILED = 6, True, "the continuum fit failed"
    NO_PARALLAX = 7, False, "parallax missing or not positive, so no absolute magnitude"
    PARALLAX_ERROR_UNKNOWN = 8, False, "parallax error not given"
    PARALLAX_POOR = 9, True, "parallax error above 20 %"
    MAGNITUDE_MISSING = 10, False, "at least one magnitude is missing"
    A_V_MISSING = 11, False, "extinction A_V is missing"
    INPUT_REQUIRED = 12, True, "an input that this model needs is missing: no labels are given"
    OBSERVABLE_OUTSIDE = 13, True, "an observable lies outside the range of the training sample"
    LABEL_OUTSIDE = 14, True, "a label lies outside the range of the training sample"
    TRAINING_STAR = 15, False, "this star took part in the training or choice of the networks"
    SPECTRUM_UNLIKE = 16, True, "the spectrum is unlike those of the training sample"
    RECONSTRUCTION_POOR = 17, True, "the spectrum computed from the labels does not fit"
    RADIAL_VELOCITY_WRONG = 18, True, "lines shifted against the spectrum computed from the labels"
    EMISSION = 19, True, "emission in the cores of the Ca II triplet"
    DOUBLE_LINED = 20, True, "a second set of lines, as of a spectroscopic binary"
    CONTINUUM_BAD = 21, True, "the continuum is tilted or curved, or has fringes"
    HOT_STAR = 22, True, "Paschen lines, or Teff, beyond those of the training sample"
    PHOTOMETRY_DISAGREES = 23, True, "labels from the spectrum and from the observables disagree"
    LABELS_UNLIKE = 24, True, "few training stars have labels like these"
    NOT_CONVERGED = 25, True, "the fit of the spectrum did not converge"
    AT_BOUND = 26, True, "a fitted label lies at the edge of what the fit allows"
    GRADIENT_UNLIKE = 27, True, "a label is measured from pixels where theory has none of its lines"
    UPPER_LIMIT = 28, False, "an abundance is an upper limit"
    COLUMN_MISSING = 29, False, "a further column that the model takes is missing"
    NOISE_UNKNOWN = 30, False, "the noise is not given, and the preparation did not set it"
    BINARY_SUSPECTED = 31, True, "too bright for its spectrum, as with an unresolved companion"
    FAST_ROTATION = (
        32,
        True,
        "lines broader than in the training sample, as of a fast rotator",
    )
    ZERO_LEVEL = 33, True, "all lines too weak or too deep, as of a wrong zero level of the flux"
    COOL_STAR = 34, True, "bands of TiO beyond those of the training sample, as of a cool star"
    OBSERVABLES_UNLIKE = 35, True, "no training star has observables like these together"
    SURVEY_UNLIKE = (
        36,
        True,
        "lines of all stars of the survey differ from those in training",
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
