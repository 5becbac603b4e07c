"""Draws from the posterior of each star: labels with calibrated tails and correlations.

A draw is made from what the catalogue says of a star. Scores are drawn with the correlations of its
errors, and each is taken to the quantiles of its label: a copula with calibrated margins (Sklar
1959). It is that of Student's t (Demarta & McNeil 2005, ISR 73, 111, section 2), as a star whose
one label is far off tends to have others far off as well; its degrees of freedom are those whose
joint regions grow, from 68.3 to 95.4 %, as those of held-out stars do. Between the quantiles of the
catalogue a label is linear in its normal score, and so it is beyond the outer ones. A function of
several labels, evaluated on the draws of a star, then has an error that holds.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy.special import fdtri, ndtr, ndtri, stdtrit

from maury.errors import ConfigError, InputFileError
from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array
from maury.io.files import writing
from maury.io.limits import check_columns
from maury.io.parquet import column_sizes, n_rows, read_blocks
from maury.labels.columns import QUANTILES, Column, unknown_column
from maury.prediction.conformal import JOINT_LEVELS
from maury.prediction.stored import StoredCatalogue, explained

if TYPE_CHECKING:
    import pyarrow as pa

STREAM_ROWS = 256
"""Rows that share one stream of random numbers: what a star gets depends neither on blocks nor on
processes, and 256 rows of 100 draws of nine labels take 2 MB."""
_GROUP_BYTES = 2**24
"""Least size of a row group: large enough for pages to be read fast, small against any memory."""
_SCORES: Float64Array = ndtri(np.array([percent for _, percent in QUANTILES]) / 100.0)
_LARGEST = 100_000
"""Draws of a star at most: a stream of nine labels then takes 2 GB."""
_ALWAYS = ("id", "flags")
_FREEDOM = (3.0, 100.0)
"""Degrees of freedom: with fewer no variance would be left, with more the copula is Gaussian."""
_TABLE: Float64Array = np.linspace(-6.0, 6.0, 1201)
"""Normal scores at which those of Student's t are tabulated: one draw in 1e9 lies beyond."""
_SUMMARY = ("mean", "error", *(suffix for suffix, _ in QUANTILES), "known")

Function = Callable[[Mapping[str, Float64Array], slice], Any]
"""Takes the draws of each label, (n, n_draw), and which rows these are; returns (n, n_draw)."""


def draws_path(catalogue: Path | str) -> Path:
    """Return the file of draws beside a catalogue: ``labels_draws.parquet`` of ``labels.fits``."""
    path = Path(catalogue)
    return path.with_name(f"{path.stem}_draws.parquet")


def drawable(names: list[str]) -> list[str]:
    """Labels of a catalogue with these columns that can be drawn.

    Raises
    ------
    ConfigError
        If it has no quantiles, or no correlations of errors.
    """
    here = set(names)
    labels = [name for name in names if {f"{name}_error", f"{name}_{QUANTILES[0][0]}"} <= here]
    if not labels:
        raise ConfigError(
            "draws need calibrated errors with quantiles, and the catalogue has none; use a model "
            "whose errors are calibrated, such as one of the preset maury"
        )
    absent = [name for name in map(_pair, combinations(labels, 2)) if name not in here]
    if absent:
        raise ConfigError(
            f"draws need the correlations of errors, and the catalogue has no {absent[0]}; predict "
            "it with --samples or --correlations"
        )
    return labels


def draw(
    rows: Mapping[str, AnyArray],
    labels: list[str],
    n_draw: int,
    rng: np.random.Generator,
    *,
    freedom: float | None = None,
) -> dict[str, Float64Array]:
    """Draw from the posterior of some stars.

    Parameters
    ----------
    rows : mapping of str to (n_star,) array
        Columns of a catalogue: quantiles of each label, and the correlations of all pairs.
    labels : list of str
        Names of the labels.
    n_draw : int
        Draws of each star.
    rng : numpy Generator
    freedom : float, optional
        Degrees of freedom of the copula, as of `degrees_of_freedom`; Gaussian by default.

    Returns
    -------
    dict of str to (n_star, n_draw) float64
        Draw k of all labels belongs together; NaN where a quantile is.
    """
    root = _roots(_correlation(rows, labels))
    score = rng.standard_normal((len(root), n_draw, len(labels))) @ root.transpose(0, 2, 1)
    if freedom is not None:
        # One factor for all labels of a draw; each margin is brought back to a normal one.
        score *= np.sqrt(freedom / rng.chisquare(freedom, score.shape[:2]))[:, :, None]
        score = np.interp(score, stdtrit(freedom, ndtr(_TABLE)), _TABLE)
    return {
        label: _from_scores(score[:, :, k], _quantiles(rows, label))
        for k, label in enumerate(labels)
    }


def degrees_of_freedom(metadata: Mapping[str, Any]) -> float | None:
    """Degrees of freedom of the copula, by the joint regions in the metadata of a catalogue.

    Squared Mahalanobis distances of Student's t in k dimensions are k times F(k, freedom).

    Returns
    -------
    float or None
        None for a Gaussian copula: no joint regions, one label, or no tails beyond a normal's.
    """
    joint = metadata.get("joint", {})
    radii, n_label = joint.get("mahalanobis2"), len(joint.get("labels", ()))
    if not radii or n_label < 2:
        return None
    inner, outer = (radii[f"{100 * level:g} %"] for level in JOINT_LEVELS)

    def excess(freedom: float) -> float:
        near, far = (fdtri(n_label, freedom, level) for level in JOINT_LEVELS)
        return float(far / near - outer / inner)

    from scipy.optimize import brentq

    if excess(_FREEDOM[0]) <= 0.0:
        return _FREEDOM[0]
    return None if excess(_FREEDOM[1]) >= 0.0 else float(brentq(excess, *_FREEDOM))


def normal_scores(value: AnyArray, quantiles: AnyArray) -> Float64Array:
    """Return the normal scores (n_star,) of labels by their quantiles: `draw`, backwards.

    Parameters
    ----------
    value : (n_star,) float64
    quantiles : (5, n_star) float64
        Those of `maury.labels.columns.QUANTILES`.
    """
    value, knots = np.asarray(value, np.float64), np.asarray(quantiles, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.diff(knots, axis=0) / np.diff(_SCORES)[:, None]
        segment = (value[None] > knots[1:-1]).sum(axis=0)
        row = np.arange(value.size)
        score = _SCORES[segment] + (value - knots[segment, row]) / slope[segment, row]
    return np.asarray(score)


def _quantiles(rows: Mapping[str, AnyArray], label: str) -> Float64Array:
    return np.stack([np.asarray(rows[f"{label}_{suffix}"], np.float64) for suffix, _ in QUANTILES])


def _from_scores(score: Float64Array, quantiles: Float64Array) -> Float64Array:
    """Labels (n_star, n_draw) of normal scores, by quantiles (5, n_star)."""
    slope = np.diff(quantiles, axis=0) / np.diff(_SCORES)[:, None]
    # One line, and a change of slope at each inner quantile: a search for the segment of every draw
    # would take several times as long.
    out: Float64Array = quantiles[1][:, None] + (score - _SCORES[1]) * slope[0][:, None]
    for knot, step in zip(_SCORES[1:-1], np.diff(slope, axis=0), strict=True):
        out += np.maximum(score - knot, 0.0) * step[:, None]
    return out


def _pair(pair: tuple[str, str]) -> str:
    return f"{pair[0]}_{pair[1]}_corr"


def _correlation(rows: Mapping[str, AnyArray], labels: list[str]) -> Float64Array:
    n_star = len(rows[f"{labels[0]}_error"])
    matrix = np.tile(np.eye(len(labels)), (n_star, 1, 1))
    for (i, first), (j, second) in combinations(enumerate(labels), 2):
        # A label without an error, such as one that is given, has no correlation: it is a constant.
        known = np.nan_to_num(np.asarray(rows[_pair((first, second))], np.float64))
        matrix[:, i, j] = matrix[:, j, i] = known
    return matrix


def _roots(correlation: Float64Array) -> Float64Array:
    """Matrices A with A A^T = correlation, (n_star, n_label, n_label)."""
    # Eigenvalues, not Cholesky: correlations that are averaged over spectra, or rounded in a file,
    # may be singular.
    value, vector = np.linalg.eigh(correlation)
    root = vector * np.sqrt(np.maximum(value, 0.0))[:, None, :]
    return np.asarray(root / np.linalg.norm(root, axis=2, keepdims=True))


def write_draws(
    catalogue: StoredCatalogue,
    path: Path,
    *,
    n_draw: int,
    seed: int = 0,
    run: str = "",
    warned: bool = False,
    overwrite: bool = False,
) -> None:
    """Write draws of all stars of a catalogue as Parquet, one row a star, in constant memory.

    Parameters
    ----------
    catalogue : StoredCatalogue
        Calibrated, with correlations; `maury.Catalogue.open` gives it.
    path : Path
        File to write.
    n_draw : int
        Draws of each star.
    seed : int
        Of the random numbers.
    run : str
        Identity of what made the catalogue, kept in the metadata.
    warned : bool
        Whether stars that a flag warns of are drawn too; their errors may not hold.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    ConfigError
        If the catalogue has no quantiles or correlations, or `n_draw` is out of range.
    OutputExists
        If `path` exists and `overwrite` is false.
    """
    import pyarrow.parquet as pq

    labels = drawable(catalogue.names)
    check_n_draw(n_draw)
    about = {**catalogue.metadata, "draws": {"n_draw": n_draw, "seed": seed, "run": run}}
    freedom = degrees_of_freedom(catalogue.metadata)
    about["draws"] |= {"warned": warned, "degrees_of_freedom": freedom}
    wanted = _schema(catalogue, labels, n_draw, about)
    with (
        writing(path, overwrite=overwrite) as partial,
        partial.open("wb") as file,
        # Draws hardly repeat: a dictionary would be built, and thrown away, for each page.
        pq.ParquetWriter(file, wanted, use_dictionary=False, write_page_checksum=True) as writer,
    ):
        held: list[pa.Table] = []
        for number, rows in enumerate(_streams(catalogue, labels)):
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
            found = draw(rows, labels, n_draw, rng, freedom=freedom)
            block = _table(rows, found, wanted, warned)
            held.append(block)
            if sum(one.nbytes for one in held) >= _GROUP_BYTES:
                _write_group(writer, held)
        _write_group(writer, held)


def check_n_draw(n_draw: int) -> None:
    """Raise `ConfigError` unless so many draws of a star can be made."""
    if not 1 <= n_draw <= _LARGEST:
        raise ConfigError(f"draws of a star are 1 to {_LARGEST}, got {n_draw}")


def _write_group(writer: Any, held: "list[pa.Table]") -> None:
    import pyarrow as pa

    if held:
        whole = pa.concat_tables(held)
        writer.write_table(whole, row_group_size=max(len(whole), 1))
        held.clear()


def _schema(
    catalogue: StoredCatalogue, labels: list[str], n_draw: int, about: Mapping[str, Any]
) -> "pa.Schema":
    import pyarrow as pa

    columns = {column.name: column for column in catalogue.columns}

    def field(name: str, kind: "pa.DataType") -> "pa.Field":
        one: Column = columns[name]
        return pa.field(name, kind, metadata={"unit": one.unit, "description": one.description})

    lists = pa.list_(pa.float32(), n_draw)
    return pa.schema(
        [
            field("id", pa.string()),
            field("flags", pa.int64()),
            *(field(label, lists) for label in labels),
        ],
        metadata={"maury": json.dumps(about)},
    )


def _table(
    rows: Mapping[str, Any], found: Mapping[str, Float64Array], schema: "pa.Schema", warned: bool
) -> "pa.Table":
    import pyarrow as pa

    hidden: BoolArray = np.asarray(rows["warn"], np.bool_) & (not warned)
    arrays = [pa.array(rows["id"], pa.string()), pa.array(rows["flags"], pa.int64())]
    for values in found.values():
        seen = np.where(hidden[:, None], np.nan, values).astype(np.float32)
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(seen.ravel()), seen.shape[1]))
    return pa.Table.from_arrays(arrays, schema=schema)


def _streams(catalogue: StoredCatalogue, labels: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the columns that draws are made of, `STREAM_ROWS` rows at a time, the last ones fewer.

    Whatever the blocks in which a catalogue is read, the same stars share a stream.
    """
    import pyarrow as pa

    suffixes = ("error", *(suffix for suffix, _ in QUANTILES))
    names = ["id", "flags", "warn", *(f"{one}_{suffix}" for one in labels for suffix in suffixes)]
    names += map(_pair, combinations(labels, 2))
    held = None
    for block in catalogue.blocks(names):
        whole = block if held is None else pa.concat_tables([held, block])
        n_whole = len(whole) // STREAM_ROWS * STREAM_ROWS
        for start in range(0, n_whole, STREAM_ROWS):
            yield _numpy(whole[start : start + STREAM_ROWS])
        held = whole[n_whole:]
    if held is not None and len(held):
        yield _numpy(held)


def _numpy(block: "pa.Table") -> dict[str, Any]:
    return {name: block[name].to_numpy() for name in block.column_names}


@dataclass(frozen=True)
class Draws:
    """A file of draws, read in blocks of rows.

    Attributes
    ----------
    path : Path
    labels : tuple of str
        Labels that were drawn.
    n_row, n_draw : int
        Stars, in the order of the catalogue, and draws of each.
    metadata : mapping
        That of the catalogue, and of the draws.

    Examples
    --------
    >>> draws = Draws.open("labels_draws.parquet")  # doctest: +SKIP
    >>> ratio = draws.summarise(lambda of, rows: of["fe_h"] + of["mg_fe"])  # doctest: +SKIP
    """

    path: Path
    labels: tuple[str, ...]
    n_row: int
    n_draw: int
    metadata: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a file that `write_draws` wrote.

        Raises
        ------
        InputFileError
            If it is none, or is damaged.
        """
        import pyarrow as pa
        from pyarrow import parquet

        path = Path(path)
        with explained(path):
            check_columns(column_sizes(path), path)
            with path.open("rb") as file:
                schema = parquet.read_schema(file)
            about = json.loads((schema.metadata or {}).get(b"maury", b"{}"))
            lists = [one for one in schema if pa.types.is_fixed_size_list(one.type)]
            n_draw = {one.type.list_size for one in lists}
            if n_draw != {about.get("draws", {}).get("n_draw")}:
                raise InputFileError(f"{path} is no file of draws written by maury")
            return cls(path, tuple(one.name for one in lists), n_rows(path), n_draw.pop(), about)

    def __len__(self) -> int:
        return self.n_row

    @property
    def simulated(self) -> bool:
        """Whether the spectra were simulated."""
        return bool(self.metadata.get("simulated", False))

    def blocks(self, names: list[str] | None = None) -> Iterator[tuple[slice, dict[str, Any]]]:
        """Yield consecutive rows: which ones, and ``id``, ``flags`` (n,) and draws (n, n_draw).

        Parameters
        ----------
        names : list of str, optional
            Labels, all by default.

        Raises
        ------
        ColumnError
            If there is no such label.
        InputFileError
            If the file cannot be read on.
        """
        wanted = list(self.labels if names is None else names)
        for name in wanted:
            if name not in self.labels:
                raise unknown_column(name, self.labels, str(self.path))
        start = 0
        with explained(self.path):
            for block in read_blocks(self.path, [*_ALWAYS, *wanted], STREAM_ROWS):
                rows = {name: block[name].to_numpy() for name in _ALWAYS}
                rows |= {name: self._values(block[name]) for name in wanted}
                yield slice(start, start + len(block)), rows
                start += len(block)

    def _values(self, column: "pa.ChunkedArray") -> Float32Array:
        flat: Float32Array = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, self.n_draw)

    def summarise(
        self, function: Function, names: list[str] | None = None
    ) -> dict[str, Float64Array]:
        """Evaluate a function of the labels on all draws, and say what it is for each star.

        Parameters
        ----------
        function : callable
            Called with the draws of each label, (n, n_draw) float64, and the slice of rows, by
            which it takes columns of its own; returns (n, n_draw), NaN where it has no value.
        names : list of str, optional
            Labels that it needs, all by default.

        Returns
        -------
        dict of str to (n_row,) float64
            ``mean``; ``error``, half the distance of the 16 and 84 % quantiles; the quantiles
            ``q02``, ``q16``, ``q50``, ``q84``, ``q98``; ``known``, the share of draws with a value.
            All but the last over these draws alone; NaN without any.
        """
        pieces = [
            _summary(function({name: rows[name].astype(np.float64) for name in labels}, place))
            for labels in [list(self.labels if names is None else names)]
            for place, rows in self.blocks(labels)
        ]
        whole = np.concatenate(pieces, axis=1) if pieces else np.zeros((len(_SUMMARY), 0))
        return dict(zip(_SUMMARY, whole, strict=True))


def _summary(values: Any) -> Float64Array:
    """Rows of `_SUMMARY` (8, n) of values (n, n_draw)."""
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    share = known.mean(axis=1)
    out = np.full((len(_SUMMARY), len(values)), np.nan)
    some = share > 0
    levels = [percent / 100.0 for _, percent in QUANTILES]
    whole = share == 1
    for rows, quantile in ((whole, np.quantile), (some & ~whole, np.nanquantile)):
        if rows.any():
            inside = np.where(known[rows], values[rows], np.nan)
            out[2:-1, rows] = quantile(inside, levels, axis=1)
            out[0, rows] = np.nanmean(inside, axis=1)
    out[1] = 0.5 * (out[5] - out[3])
    out[-1] = share
    return out
