"""Which spectra are of one star: by identifier, else by position, else by photometry.

Two spectra of one star may not stand on both sides of a split, and a model has to know its
training stars again in the files of another survey, where identifiers differ. So a star is known by
three things, of which the first that a spectrum has decides: an identifier of the star; a position
on the sky, at any epoch that both spectra have; parallax and magnitudes, equal within their
rounding.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from maury.io.arrays import BoolArray, Float64Array, Int64Array, StrArray, arrow_array, numpy_array
from maury.labels.columns import BANDS, STAR_ID_FROM
from maury.spectra.positions import ARCSEC, Positions
from maury.spectra.rows import row_numbers

IDENTIFIER, POSITION, PHOTOMETRY, SPECTRUM = "identifier", "position", "photometry", "spectrum"
MEANS = (IDENTIFIER, POSITION, PHOTOMETRY, SPECTRUM)
"""What a star is known by; ``spectrum``: nothing but the identifier of its spectrum."""


@dataclass(frozen=True)
class StarTolerance:
    """How far apart the same star may be given.

    Attributes
    ----------
    radius_arcsec : float
        Between two positions at one epoch. Chosen, not measured: coordinates that are rounded to
        .01 s of right ascension or 1e-4 degrees are off by .2 arcsec at most, and fibres of
        surveys are wider than 1 arcsec, so that two stars within it share their light anyway.
    epoch_yr : float
        Where all stars of a pair move, they meet at this epoch, that of Gaia DR3.
    most_epochs : int
        Epochs of stars without proper motion at which the others are compared with them; surveys
        and photometric catalogues have one or two.
    most_neighbours : int
        Positions within the radius of one that are linked with it. A crowd is linked through its
        nearest members as well, and all pairs of it would not fit in memory.
    photometry : float
        Largest half unit of the last digit of a parallax (mas) or magnitude; what is rounded more
        coarsely is compared as if it had two decimals.
    noise : float
        Rounding of float32 at magnitude 20, and of what a model stores.
    bands : int
        Magnitudes that must be known of both spectra, besides the parallax.
    """

    radius_arcsec: float = 1.0
    epoch_yr: float = 2016.0
    most_epochs: int = 4
    most_neighbours: int = 32
    photometry: float = 0.005
    noise: float = 2e-6
    bands: int = 2


TOLERANCE = StarTolerance()
_DECIMALS = (2, 6)
"""Fewest and most that photometry is compared with, as coarse and as fine as `TOLERANCE` says."""
_PLACE = ("ra", "dec", "pmra", "pmdec", "epoch")
_LIGHT = ("parallax", *(band.column for band in BANDS))
# Units of the whole numbers that a model stores: 2e-7 degrees are .7 mas, and 360 of them fit.
_UNITS = {"ra": 2e-7, "dec": 2e-7, "pmra": 1e-3, "pmdec": 1e-3, "epoch": 1e-3}
_LIGHT_UNIT = 1e-6
"""Of stored parallaxes and magnitudes: as fine as `_DECIMALS` goes."""
_NOTHING = np.iinfo(np.int32).min


@dataclass(frozen=True, eq=False)
class StarMarks:
    """What the stars of some spectra are known by.

    Attributes
    ----------
    star_id, id : (n,) str
        Identifiers of star and spectrum; empty where missing.
    means : (n,) str
        One of `MEANS`: how `star_id` was found; empty where nobody knows.
    place : (n, 5) float64
        Right ascension and declination in degrees, proper motions in mas/yr, epoch in Julian years;
        NaN where missing.
    light : (n, 9) float64
        Parallax in mas, and the magnitudes of `maury.labels.columns.BANDS`; NaN where missing.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("star_id", "id", STAR_ID_FROM.name, *_PLACE, *_LIGHT)
    """Columns of a survey that it is made of."""

    star_id: StrArray
    id: StrArray
    means: StrArray
    place: Float64Array
    light: Float64Array

    @classmethod
    def of(cls, columns: Mapping[str, Any], n: int) -> Self:
        """Take what `n` rows have of it among all columns of a survey."""

        def texts(name: str) -> StrArray:
            return np.asarray(columns[name] if name in columns else np.full(n, "")).astype(np.str_)

        def numbers(names: Iterable[str]) -> Float64Array:
            missing = np.full(n, np.nan)
            found = [np.asarray(columns.get(name, missing), np.float64) for name in names]
            return np.stack(found, axis=1)

        names = [texts(name) for name in ("star_id", "id", STAR_ID_FROM.name)]
        return cls(names[0], names[1], names[2], numbers(_PLACE), numbers(_LIGHT))

    @classmethod
    def named(cls, star_id: ArrayLike) -> Self:
        """Return stars of which nothing but an identifier is known."""
        ids = np.asarray(star_id).astype(np.str_)
        return cls.of({"star_id": ids}, ids.size)

    def __len__(self) -> int:
        return int(self.star_id.size)

    def take(self, rows: ArrayLike | slice) -> Self:
        """Return those of some rows: numbers, a mask or a slice."""
        index = row_numbers(rows, len(self), what="the stars")
        return type(self)(
            self.star_id[index],
            self.id[index],
            self.means[index],
            self.place[index],
            self.light[index],
        )

    @cached_property
    def positions(self) -> Positions:
        """Positions and motions; a row at exactly (0, 0) has none."""
        ra, dec, pmra, pmdec, epoch = self.place.T
        usable = np.isfinite(epoch) & (np.abs(epoch - TOLERANCE.epoch_yr) < 200.0)
        return Positions(
            # Tables without a position say 0, 0, where no spectrum was ever taken.
            np.where((ra == 0.0) & (dec == 0.0), np.nan, ra),
            dec,
            np.where(usable, epoch, np.nan),
            pmra,
            pmdec,
        )

    @property
    def has_place(self) -> BoolArray:
        """Whether a row has a position, shape (n,)."""
        return self.positions.usable

    @property
    def has_light(self) -> BoolArray:
        """Whether a row has a parallax and magnitudes enough, shape (n,)."""
        known = np.isfinite(self.light)
        return np.asarray(known[:, 0] & (known[:, 1:].sum(axis=1) >= TOLERANCE.bands))

    def whole(self, rows: BoolArray) -> BoolArray:
        """Return `rows`, a mask, with all other rows of their stars, so that no star is divided."""
        return np.asarray(rows | np.isin(self.star_id, self.star_id[rows & (self.star_id != "")]))

    def counts(self) -> dict[str, int]:
        """Rows by the means by which their star was found; those of older surveys by none."""
        return {name: int((self.means == name).sum()) for name in MEANS}

    def to_json(self) -> dict[str, str]:
        """Positions and photometry, each row that differs once, as whole numbers in base64."""
        return {
            "place": _packed(self.place[self.has_place], [_UNITS[name] for name in _PLACE]),
            "light": _packed(self.light[self.has_light], [_LIGHT_UNIT] * len(_LIGHT)),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Self:
        """Read what `to_json` gave; rows have either a position or photometry.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is something else.
        """
        place = _unpacked(data["place"], [_UNITS[name] for name in _PLACE])
        light = _unpacked(data["light"], [_LIGHT_UNIT] * len(_LIGHT))
        n = (len(place), len(light))
        place = np.pad(place, ((0, n[1]), (0, 0)), constant_values=np.nan)
        light = np.pad(light, ((n[0], 0), (0, 0)), constant_values=np.nan)
        blank = np.full(sum(n), "")
        return cls(blank, blank, blank, place, light)


def _packed(values: Float64Array, units: list[float]) -> str:
    with np.errstate(invalid="ignore"):
        whole = np.round(values / units)
        fits = np.abs(whole) < -float(_NOTHING)
        numbers = np.where(fits, whole, _NOTHING).astype("<i4")
    return base64.b64encode(np.unique(numbers, axis=0).tobytes()).decode("ascii")


def _unpacked(text: str, units: list[float]) -> Float64Array:
    numbers = np.frombuffer(base64.b64decode(text, validate=True), dtype="<i4")
    rows = numbers.reshape(-1, len(units)).astype(np.float64)
    return np.where(rows == _NOTHING, np.nan, rows * units)


class KnownStars:
    """Stars that are to be known again among others, by position or photometry.

    Parameters
    ----------
    marks : StarMarks
        Their rows; several may be of one star.
    """

    def __init__(self, marks: StarMarks) -> None:
        self._has_place = marks.has_place
        self._place_rows = np.flatnonzero(marks.has_place)
        self._light_rows = np.flatnonzero(marks.has_light)
        self._place = marks.positions.take(self._place_rows)
        self._light = marks.light[self._light_rows]
        self._bands = [
            (pair, np.asarray(np.isfinite(self._light[:, list(pair)]).all(axis=1)))
            for pair in _BAND_PAIRS
        ]
        self._trees: dict[Any, cKDTree] = {}

    def among(self, marks: StarMarks) -> BoolArray:
        """Return which rows are of such a star, shape (n,)."""
        out = np.zeros(len(marks), dtype=np.bool_)
        out[self.pairs(marks)[0]] = True
        return out

    def pairs(self, marks: StarMarks) -> tuple[Int64Array, Int64Array]:
        """Return pairs of a row of `marks` and a row of these that are of one star.

        Photometry decides only where one of the two has no position.
        """
        rows = np.flatnonzero(marks.has_place)
        found = [
            (rows[i], self._place_rows[j]) for i, j in self._same_place(marks.positions.take(rows))
        ]
        rows = np.flatnonzero(marks.has_light)
        for i, j in self._same_light(marks.light[rows]):
            i, j = rows[i], self._light_rows[j]
            free = ~(marks.has_place[i] & self._has_place[j])
            found.append((i[free], j[free]))
        none = np.zeros(0, dtype=np.int64)
        found.append((none, none))
        return np.concatenate([i for i, _ in found]), np.concatenate([j for _, j in found])

    def _same_place(self, positions: Positions) -> Iterator[tuple[Int64Array, Int64Array]]:
        if not len(positions) or not len(self._place):
            return
        chord = 2.0 * np.sin(TOLERANCE.radius_arcsec * ARCSEC / 2.0)
        for epoch in _epochs(positions, self._place):
            if epoch not in self._trees:
                self._trees[epoch] = cKDTree(self._place.vectors(epoch))
            yield from _neighbours(self._trees[epoch], positions.vectors(epoch), chord)

    def _same_light(self, light: Float64Array) -> Iterator[tuple[Int64Array, Int64Array]]:
        radius = 2.0 * TOLERANCE.photometry
        earlier: list[tuple[BoolArray, BoolArray]] = []
        for pair, there in self._bands:
            here = np.asarray(np.isfinite(light[:, list(pair)]).all(axis=1))
            # Two rows that have this pair of bands were compared before if both had an earlier one.
            if not (here.any() and there.any()) or any(
                not (here & ~a).any() and not (there & ~b).any() for a, b in earlier
            ):
                continue
            earlier.append((here, there))
            rows, others = np.flatnonzero(here), np.flatnonzero(there)
            columns = [0, *pair]
            if pair not in self._trees:
                self._trees[pair] = cKDTree(self._light[others][:, columns])
            for i, j in _neighbours(self._trees[pair], light[rows][:, columns], radius, p=np.inf):
                a, b = rows[i], others[j]
                equal = _same_digits(light[a], self._light[b])
                yield a[equal], b[equal]


_BAND_PAIRS = tuple(combinations(range(1, len(_LIGHT)), 2))
_BLOCK = 1 << 15
"""Rows whose neighbours are held at a time: 16 MB at 32 neighbours."""


def _neighbours(
    tree: cKDTree, points: Float64Array, radius: float, *, p: float = 2.0
) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Yield pairs of a point and one of its nearest in the tree, if they are within the radius."""
    most = min(TOLERANCE.most_neighbours, tree.n)
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        _, near = tree.query(block, k=range(1, most + 1), p=p, distance_upper_bound=radius)
        i, rank = np.nonzero(near < tree.n)
        yield i + start, near[i, rank].astype(np.int64)


def _epochs(left: Positions, right: Positions) -> list[float | None]:
    """Epochs at which two lists of positions are compared; None: as they were measured.

    A star without proper motion can be met at its own epoch only, one whose epoch is not known as
    it was measured; two that move meet anywhere.
    """
    if not (left.moving.any() or right.moving.any()):
        return [None]
    still = [np.asarray(one.epoch_yr)[~one.moving] for one in (left, right)]
    epochs = np.round(np.concatenate(still), 1)
    known, counts = np.unique(epochs[np.isfinite(epochs)], return_counts=True)
    chosen: list[float | None] = list(known[np.argsort(-counts)][: TOLERANCE.most_epochs])
    if np.isnan(epochs).any():
        chosen.append(None)
    return [*chosen, TOLERANCE.epoch_yr]


def _same_digits(a: Float64Array, b: Float64Array) -> BoolArray:
    """Whether rows of parallax and magnitudes are equal where both are known, as far as written."""
    decimals = np.minimum(_decimals(a), _decimals(b))
    apart = np.abs(a - b) > 0.5 * 10.0**-decimals + TOLERANCE.noise
    common = np.isfinite(a[:, 1:]) & np.isfinite(b[:, 1:])
    enough = common.sum(axis=1) >= TOLERANCE.bands
    return np.asarray(enough & ~apart.any(axis=1))


def _decimals(values: Float64Array) -> Int64Array:
    """Return how many decimals numbers are written with, 2 to 6."""
    least, most = _DECIMALS
    out = np.full(values.shape, most)
    for decimals in range(most - 1, least - 1, -1):
        rounded = np.round(values, decimals)
        out[np.abs(values - rounded) <= 0.5 * TOLERANCE.noise] = decimals
    return out


def group_stars(marks: StarMarks) -> tuple[StrArray, StrArray]:
    """Give every spectrum the identifier of its star.

    Spectra with a `star_id` keep it. Others are of one star if they are linked, over any number of
    them, by equal positions, or by equal photometry where one of the two has no position; they take
    the star identifier of a spectrum that they are linked with and that has one, else the
    identifier of their first spectrum.

    Parameters
    ----------
    marks : StarMarks
        Of all spectra, `star_id` empty where it is to be found.

    Returns
    -------
    star_id : (n,) str
    means : (n,) str
        By what each was identified: one of `MEANS`.
    """
    known = marks.has_place | marks.has_light
    given = marks.star_id != ""
    means = np.select([given, marks.has_place, marks.has_light], MEANS[:3], SPECTRUM)
    star_id = np.where(given, marks.star_id, marks.id).astype(object)
    rows, named = np.flatnonzero(~given & known), np.flatnonzero(given & known)
    if rows.size:
        # Rows that are equal in all are one node, so that a thousand visits are no million pairs.
        values = np.nan_to_num(np.hstack([marks.place[rows], marks.light[rows]]), nan=np.inf)
        _, first, node = np.unique(values, axis=0, return_index=True, return_inverse=True)
        nodes = marks.take(rows[first])
        group = linked(len(nodes), *KnownStars(nodes).pairs(nodes))
        i, j = KnownStars(marks.take(named)).pairs(nodes)
        owner = np.full(len(nodes), len(marks))
        np.minimum.at(owner, group[i], named[j])
        member = group[node.reshape(-1)]
        first = np.unique(member, return_index=True)[1]
        owner = owner[: first.size]
        named_by = np.minimum(owner, len(marks) - 1)
        names = np.where(owner < len(marks), marks.star_id[named_by], marks.id[rows[first]])
        star_id[rows] = names[member]
    return star_id.astype(np.str_), means.astype(np.str_)


def linked(n: int, i: Int64Array, j: Int64Array) -> Int64Array:
    """Return the group, numbered from 0, of each of `n` things that pairs `i`, `j` link."""
    graph = coo_array((np.ones(i.size, dtype=np.int8), (i, j)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def shared_stars(surveys: Sequence[StarMarks]) -> list[Int64Array]:
    """Return numbers of the stars of several surveys, equal for all rows of one star.

    Positions decide, else photometry where one of two rows has no position. Equal identifiers
    decide only where neither can: two surveys may number their stars alike.

    Parameters
    ----------
    surveys : sequence of StarMarks

    Returns
    -------
    list of (n,) int64
        Numbers from 0, one array for each survey.
    """
    sizes = [len(marks) for marks in surveys]
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    i: list[Int64Array] = []
    j: list[Int64Array] = []
    for number, marks in enumerate(surveys):
        own = np.arange(sizes[number])
        # Spectra of a star that its survey knows to be one.
        _, one, star = np.unique(marks.star_id, return_index=True, return_inverse=True)
        named = marks.star_id != ""
        i.append(first[number] + own[named])
        j.append(first[number] + one[star.reshape(-1)][named])
        for earlier in range(number):
            a, b = KnownStars(surveys[earlier]).pairs(marks)
            c, d = _same_name(marks, surveys[earlier])
            i += [first[number] + a, first[number] + c]
            j += [first[earlier] + b, first[earlier] + d]
    group = linked(int(first[-1]), np.concatenate(i), np.concatenate(j))
    return [group[first[k] : first[k + 1]] for k in range(len(sizes))]


def _same_name(left: StarMarks, right: StarMarks) -> tuple[Int64Array, Int64Array]:
    """Rows of equal identifiers that neither positions nor photometry can compare."""
    names = plain_identifiers(right.star_id)
    known, first = np.unique(names, return_index=True)
    mine = plain_identifiers(left.star_id)
    place = np.minimum(np.searchsorted(known, mine), known.size - 1)
    i = np.flatnonzero((mine != "") & (known[place] == mine)) if known.size else np.zeros(0, int)
    j = first[place[i]] if known.size else i
    both_placed = left.has_place[i] & right.has_place[j]
    both_lit = left.has_light[i] & right.has_light[j]
    free = ~(both_placed | both_lit)
    return i[free].astype(np.int64), j[free].astype(np.int64)


_GAIA = r"(?i)^gaia\s*(?:e?dr3)?[\s:_]+(\d{5,19})$"


def plain_identifiers(ids: ArrayLike) -> StrArray:
    """Return identifiers without blanks around them, those of Gaia (E)DR3 as bare numbers.

    Catalogues write the same source as ``Gaia DR3 N`` and as ``N``. Numbers of Gaia DR2 may be
    those of another source, and keep their name.

    Parameters
    ----------
    ids : (n,) array_like of str, or arrow array of texts

    Examples
    --------
    >>> plain_identifiers(["Gaia DR3 4295806720", "4295806720", "Gaia DR2 1", " b"]).tolist()
    ['4295806720', '4295806720', 'Gaia DR2 1', 'b']
    """
    import pyarrow as pa
    from pyarrow import compute

    texts = ids if isinstance(ids, pa.Array) else arrow_array(np.asarray(ids).astype(np.str_))
    plain = compute.replace_substring_regex(compute.utf8_trim_whitespace(texts), _GAIA, r"\1")
    return numpy_array(plain)
