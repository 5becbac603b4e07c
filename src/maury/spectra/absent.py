"""Which inputs of a model a whole survey lacks: told once, and not star by star."""

from collections.abc import Callable, Sequence

import numpy as np

from maury.io.arrays import AnyArray
from maury.labels.columns import BANDS
from maury.spectra.preparation import Preparation

__all__ = ["absent_sources", "source_columns"]

_BANDS = {band.name: band.column for band in BANDS}


def source_columns(preparation: Preparation) -> dict[str, tuple[str, ...]]:
    """Columns of a survey that each source of a preparation's observables is read from."""
    further = preparation.further_sources
    return {name: further.get(name, (_BANDS.get(name, name),)) for name in preparation.source_names}


def absent_sources(
    preparation: Preparation, names: Sequence[str], column: Callable[[str], AnyArray]
) -> tuple[str, ...]:
    """Return the sources of which no star of a survey has a value.

    Parameters
    ----------
    preparation : Preparation
        Whose observables ask for them.
    names : sequence of str
        Columns that the survey has.
    column : callable
        Gives one of these, (n_star,).
    """
    known = set(names)
    return tuple(
        source
        for source, columns in source_columns(preparation).items()
        if not any(_some(column(name)) for name in columns if name in known)
    )


def _some(values: AnyArray) -> bool:
    return bool(np.isfinite(np.asarray(values, dtype=np.float64)).any())
