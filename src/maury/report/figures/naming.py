"""Which label the values of a figure are: what is given, else what they are called themselves."""

import re

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import check_known
from maury.labels.definitions import LABELS, Label

Named = Label | str | None
"""A label, the name of one of maury's own, or None: what values are called themselves."""


def label_of(values: ArrayLike, given: Named, otherwise: Label) -> Label:
    """Return the label of some values, so that no axis bears the name of another one.

    Parameters
    ----------
    values : array_like
        Columns of tables (astropy, pandas) bear their name, which counts if `given` is None; that
        of a label of your own is taken as it is.
    given : Label, str or None
    otherwise : Label
        Label of arrays without a name.

    Raises
    ------
    UnknownName
        If `given` is a text that names no label.
    """
    if isinstance(given, Label):
        return given
    known = {label.name: label for label in LABELS}
    if given is not None:
        return known[check_known("label", given, known)]
    name = getattr(values, "name", None)
    if not isinstance(name, str) or not name:
        return otherwise
    return known.get(name) or _own(values, name)


def _own(values: ArrayLike, name: str) -> Label:
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 1.0)
    word = re.sub(r"[^a-z0-9_]", "_", name.lower())
    return Label(
        # A label's name begins with a letter, and has 32 at most.
        name=f"x_{word}"[:32].removesuffix("_error"),
        symbol=name,
        unit=str(getattr(values, "unit", None) or ""),
        description=str(getattr(values, "description", None) or name),
        range=(low, high if high > low else low + 1.0),
    )
