"""What FITS calls undefined is missing, whatever scales it: tables, vectors, images."""

from contextlib import ExitStack

import numpy as np
import pytest
from astropy.io import fits

from maury.errors import ColumnError
from maury.io.fits_values import ImageValues, column, column_floats, image
from maury.io.opening import open_fits
from maury.io.tables import open_table

SCALES = [(None, None), (0.001, 1.0), (2.0, None), (None, -7.0)]


def with_scale(hdu, scale, zero):
    """Say that the stored integers of every column are scaled, without touching them."""
    for number in range(1, len(hdu.columns) + 1):
        for key, value in (("TSCAL", scale), ("TZERO", zero)):
            if value is not None:
                hdu.header[f"{key}{number}"] = value
    return hdu


@pytest.fixture
def opened(tmp_path):
    with ExitStack() as stack:

        def write(hdu):
            fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "t.fits")
            return open_fits(tmp_path / "t.fits", stack, memmap=not hdu.is_image)[1]

        yield write


@pytest.mark.parametrize("kind", ["B", "I", "J", "K"])
@pytest.mark.parametrize(("scale", "zero"), SCALES)
@pytest.mark.parametrize("shape", [(), (4,), (2, 2)])
def test_the_null_of_a_column_is_the_stored_integer(opened, kind, scale, zero, shape):
    stored = np.arange(3 * int(np.prod(shape))).reshape(3, *shape)
    size = int(np.prod(shape))
    hdu = fits.BinTableHDU.from_columns(
        [
            fits.Column(
                "x",
                f"{size}{kind}",
                null=2,
                array=stored,
                dim=f"({','.join(map(str, shape[::-1]))})" if len(shape) > 1 else None,
            )
        ]
    )
    table = opened(with_scale(hdu, scale, zero))
    wanted = np.where(stored == 2, np.nan, stored * (scale or 1.0) + (zero or 0.0))
    np.testing.assert_allclose(column_floats(table, "x"), wanted, rtol=1e-12)
    np.testing.assert_allclose(column_floats(table, "x", slice(0, 2)), wanted[:2], rtol=1e-12)
    assert np.ma.count_masked(column(table, "x")) == 1


def test_unsigned_integers_and_columns_without_null(opened):
    table = opened(
        fits.BinTableHDU.from_columns(
            [
                fits.Column("u", "J", bzero=2**31, null=5 - 2**31, array=np.uint32([5, 6, 7])),
                fits.Column("k", "K", array=np.array([2**62, -1, 5])),
                fits.Column("e", "E", array=[5.0, np.nan, 7.0]),
                fits.Column("a", "3A", array=["5", "", "x"]),
            ]
        )
    )
    np.testing.assert_array_equal(column_floats(table, "u"), [np.nan, 6.0, 7.0])
    assert column(table, "k").tolist() == [2**62, -1, 5]
    np.testing.assert_array_equal(column_floats(table, "e"), [5.0, np.nan, 7.0])
    assert column(table, "a").tolist() == ["5", "", "x"]


def test_arrays_of_variable_length(opened):
    rows = np.empty(3, dtype=object)
    rows[:] = [np.int16([1, 5]), np.int16([5]), np.int16([])]
    made = fits.BinTableHDU.from_columns([fits.Column("p", "PI()", null=5, array=rows)])
    parts = column(opened(made), "p")
    assert [np.ma.filled(part.astype(float), -1).tolist() for part in parts] == [[1, -1], [-1], []]


def test_scaled_arrays_of_variable_length_are_refused(opened):
    rows = np.empty(2, dtype=object)
    rows[:] = [np.int16([1, 5]), np.int16([5])]
    made = fits.BinTableHDU.from_columns([fits.Column("p", "PI()", array=rows)])
    with pytest.raises(ColumnError, match="'p' holds scaled arrays of variable length"):
        column(opened(with_scale(made, 0.1, None)), "p")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
@pytest.mark.parametrize(("scale", "zero"), SCALES)
def test_the_blank_of_an_image(opened, packed, dtype, scale, zero):
    stored = np.arange(12, dtype=dtype).reshape(3, 4)
    hdu = fits.CompImageHDU(stored) if packed else fits.ImageHDU(stored)
    hdu.header["BLANK"] = 7
    for key, value in (("BSCALE", scale), ("BZERO", zero)):
        if value is not None:
            hdu.header[key] = value
    found = opened(hdu)
    wanted = np.where(stored == 7, np.nan, stored * (scale or 1.0) + (zero or 0.0))
    np.testing.assert_allclose(ImageValues(found)[1:2], wanted[1:2], rtol=1e-6)
    np.testing.assert_allclose(ImageValues(found)[:, 2:4], wanted[:, 2:4], rtol=1e-6)
    np.testing.assert_allclose(image(found), wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_the_blank_of_unsigned_integers(opened, dtype):
    values = np.arange(12, dtype=dtype).reshape(3, 4)
    hdu = fits.ImageHDU(values)
    hdu.header["BLANK"] = 7 - (1 << (8 * values.itemsize - 1))
    np.testing.assert_array_equal(image(opened(hdu)), np.where(values == 7, np.nan, values))


def test_tables_have_nan_for_the_null_of_a_scaled_column(tmp_path):
    made = fits.BinTableHDU.from_columns(
        [fits.Column("logg", "I", null=-32768, array=np.int16([4500, -32768, 2500]))]
    )
    with_scale(made, 0.001, None).writeto(tmp_path / "t.fits")
    with ExitStack() as stack:
        table = open_table(tmp_path / "t.fits", stack)
        np.testing.assert_allclose(table.floats("logg"), [4.5, np.nan, 2.5], rtol=1e-12)
        assert table.plain("logg").mask.tolist() == [False, True, False]
