"""The doublet of lithium: equivalent widths as curves of growth have them."""

import numpy as np
import pytest

from maury.simulation.lithium import lithium_line

WAVE = np.arange(6705.0, 6711.0, 0.02)


def width_ma(teff, logg, m_h, a_li):
    """Equivalent width in milliangstrom."""
    values = (np.array([float(v)]) for v in (teff, logg, m_h, a_li))
    flux = lithium_line(WAVE, **dict(zip(("teff_k", "logg", "m_h", "a_li"), values, strict=True)))
    assert np.all((flux > 0) & (flux <= 1 + 1e-12))
    return 1e3 * np.sum(1 - flux) * (WAVE[1] - WAVE[0])


def test_widths_are_those_of_known_stars_but_for_a_grey_atmosphere():
    # A warm dwarf of the Spite plateau, A(Li) = 2.2, has some 30 mA, a young star of solar kind
    # with 3.2 some 130: a grey atmosphere shows what up to .4 dex more would give.
    assert 30 < width_ma(5900, 4.2, -2.0, 2.2) < 60
    assert 120 < width_ma(5800, 4.4, 0.0, 3.2) < 190


def test_weak_lines_grow_linearly_and_strong_ones_do_not():
    weak = width_ma(5800, 4.4, 0.0, 0.5) / width_ma(5800, 4.4, 0.0, -0.5)
    assert weak == pytest.approx(10.0, rel=0.05)
    strong = width_ma(5800, 4.4, 0.0, 4.0) / width_ma(5800, 4.4, 0.0, 3.0)
    assert strong < 3.0


def test_lithium_is_ionised_in_hot_stars():
    assert width_ma(4500, 2.0, 0.0, 1.0) > 10 * width_ma(6500, 4.2, 0.0, 1.0)
