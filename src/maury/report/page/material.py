"""All that a report is drawn from: predictions of labelled stars, a catalogue, tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.errors import ColumnError, ConfigError, InputFileError, check_known
from maury.evaluation.audit import audit
from maury.evaluation.audit_report import AuditReport
from maury.evaluation.validation import held_out_rows
from maury.io.arrays import BoolArray, Float64Array, IndexArray, Int64Array, StrArray
from maury.io.source_table import SourceTable
from maury.io.tables import open_table
from maury.labels.columns import stated_error
from maury.labels.definitions import Label
from maury.labels.flags import warn
from maury.labels.statistics import LabelStatistics, residual_statistics
from maury.model.directory import Model
from maury.prediction.catalogue import Catalogue
from maury.prediction.streaming import predict_rows
from maury.report.cartography.distances import ZERO_POINT_MAS
from maury.report.cartography.places import Places, place_stars
from maury.survey.store import Survey

if TYPE_CHECKING:
    from astropy.table import Table

Stage = Callable[[str], None]

MOST_TRAINING = 4000
"""Training spectra that are predicted at most, evenly chosen."""
TABLE_FORMATS = (".csv", ".ecsv", ".fits", ".vot", ".parquet")
"""Suffixes of tables that go with a report."""


def kiel_labels(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Teff, log g, and [M/H] or else [Fe/H], of a Kiel diagram; none if one of them is missing."""
    named, iron = {label.name: label for label in labels}, metallicity(labels)
    if iron is None or not {"teff", "logg"} <= set(named):
        return ()
    return (named["teff"], named["logg"], iron)


def metallicity(labels: Sequence[Label]) -> Label | None:
    """Return [M/H], or else [Fe/H], or None if neither is among some labels."""
    named = {label.name: label for label in labels}
    return named.get("m_h") or named.get("fe_h")


@dataclass(frozen=True, eq=False)
class PageStars:
    """Some stars with predicted labels, and reference labels if there are any.

    Attributes
    ----------
    name : str
        ``training``, ``test`` or ``observed``.
    id, star_id : (n,) str
    mean, error : (n, n_label) float64
        Predicted labels and their quoted errors.
    truth : (n, n_label) float64
        Reference labels; NaN where there are none.
    snr : (n,) float64
    flags : (n,) int64
    """

    name: str
    id: StrArray
    star_id: StrArray
    mean: Float64Array
    error: Float64Array
    truth: Float64Array
    snr: Float64Array
    flags: Int64Array

    def __len__(self) -> int:
        return len(self.id)

    @property
    def good(self) -> BoolArray:
        """Rows without a warning flag."""
        return ~warn(self.flags)

    @property
    def residual(self) -> Float64Array:
        """Predicted minus reference, (n, n_label)."""
        return self.mean - self.truth

    @property
    def z(self) -> Float64Array:
        """Residual over error, (n, n_label)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.error > 0, self.residual / self.error, np.nan)


@dataclass(frozen=True, eq=False)
class Material:
    """What a report is drawn from.

    Attributes
    ----------
    model : Model
    samples : mapping of str to PageStars
        ``training`` and ``test`` if a labelled survey is given, ``observed`` if a catalogue is.
    statistics : tuple of LabelStatistics
        Of the test stars; empty without.
    simulated : bool
        Whether any spectra are simulated.
    audit : AuditReport or None
    places : Places or None
        Of the observed stars.
    gaia : str
        Whose parallax zero point was taken off.
    provenance : mapping
        Metadata of the observed catalogue.
    external_logg, clusters, comparison : Table or None
        Further tables.
    names : mapping of str to str
        File names of ``survey`` and ``catalogue``.
    """

    model: Model
    samples: Mapping[str, PageStars]
    statistics: tuple[LabelStatistics, ...]
    simulated: bool
    audit: AuditReport | None
    places: Places | None
    gaia: str
    provenance: Mapping[str, Any]
    external_logg: Table | None
    clusters: Table | None
    comparison: Table | None
    names: Mapping[str, str]

    @property
    def labels(self) -> tuple[Label, ...]:
        """Labels of the model."""
        return self.model.labels

    def column(self, sample: PageStars, name: str, *, truth: bool = False) -> Float64Array:
        """Predicted (or reference) label `name` of a sample, NaN if the model lacks it."""
        names = self.model.label_names
        if name not in names:
            return np.full(len(sample), np.nan)
        table = sample.truth if truth else sample.mean
        return table[:, names.index(name)]

    def label_error(self, sample: PageStars, name: str) -> Float64Array:
        """Quoted error of the label `name` of a sample."""
        names = self.model.label_names
        missing = np.full(len(sample), np.nan)
        return sample.error[:, names.index(name)] if name in names else missing

    @property
    def stars_with_most(self) -> PageStars | None:
        """The observed stars, or else the test stars, or else none."""
        return self.samples.get("observed") or self.samples.get("test")

    @property
    def put_in(self) -> Mapping[str, Any] | None:
        """What discs the simulator put in, if the observed stars are simulated in such."""
        survey = self.provenance.get("survey", {})
        simulation = survey.get("provenance", {}).get("simulation", {})
        discs: Mapping[str, Any] | None = simulation.get("discs")
        return discs


def gather(
    model: Model | Path | str,
    survey: Survey | Path | str | None = None,
    observed: Path | str | None = None,
    *,
    gaia: str | None = None,
    tables: Mapping[str, Path | None] | None = None,
    seed: int = 0,
    stage: Stage = lambda text: None,
) -> Material:
    """Predict, read and place.

    Parameters
    ----------
    model : Model or path-like
    survey : Survey or path-like, optional
        With labels.
    observed : path-like, optional
        Catalogue that `maury.prediction.streaming.predict` wrote.
    gaia : str, optional
        Release whose parallax zero point to take off; by default ``none`` for simulated parallaxes,
        ``DR2`` for others.
    tables : mapping of str to path, optional
        ``logg``, ``clusters`` and ``compare``.
    seed : int
        Of sampled distances and of the audit.
    stage : callable
        Told what is done next.

    Raises
    ------
    ConfigError
        If neither a survey nor a catalogue is given.
    InputFileError, ColumnError
        If a table cannot be read, or lacks a column.
    """
    if survey is None and observed is None:
        raise ConfigError("nothing to report on; give --survey LABELLED or --observed CATALOGUE")
    model = model if isinstance(model, Model) else Model.open(model)
    further = {name: read_table(path) for name, path in (tables or {}).items() if path}
    samples: dict[str, PageStars] = {}
    report, catalogue, names = None, None, {}
    if survey is not None:
        survey = survey if isinstance(survey, Survey) else Survey.open(survey)
        names["survey"] = survey.path.name
        stage("predicting labelled stars")
        samples |= _labelled(model, survey)
        stage("auditing")
        report = _audit(model, survey, seed)
    if observed is not None:
        stage("reading the catalogue")
        catalogue = Catalogue.read(observed)
        names["catalogue"] = Path(observed).name
        samples["observed"] = _observed(model, catalogue)
    provenance = {} if catalogue is None else catalogue.metadata
    release = gaia or ("none" if _simulated_parallaxes(provenance) else "DR2")
    check_known("Gaia release", release, ZERO_POINT_MAS)
    stage("placing stars in the Galaxy")
    return Material(
        model=model,
        samples=samples,
        statistics=_statistics(model, samples.get("test")),
        simulated=bool(survey and survey.simulated) or bool(catalogue and catalogue.simulated),
        audit=report,
        places=None if catalogue is None else _places(catalogue, release, seed),
        gaia=release,
        provenance=provenance,
        external_logg=_needs(further.get("logg"), ("logg",)),
        clusters=_needs(further.get("clusters"), ("cluster",)),
        comparison=further.get("compare"),
        names=names,
    )


def _statistics(model: Model, test: PageStars | None) -> tuple[LabelStatistics, ...]:
    if test is None:
        return ()
    return tuple(residual_statistics(test.truth, test.mean, test.error, labels=model.labels))


def read_table(path: Path | str) -> Table:
    """Read a table in the format that its suffix names, or ``comparison.ecsv`` of a directory.

    Returns
    -------
    astropy.table.Table
        Its columns of one value a row; a missing number is NaN, a missing text empty.

    Raises
    ------
    InputFileError
        If the suffix is unknown, or the file cannot be read.
    """
    from astropy.table import Table

    path = Path(path)
    path = path / "comparison.ecsv" if path.is_dir() else path
    if path.suffix.lower() not in TABLE_FORMATS:
        raise InputFileError(
            f"{path} is no table that can be read; its suffix must be one of "
            f"{', '.join(TABLE_FORMATS)}"
        )
    with ExitStack() as stack:
        source = open_table(path, stack)
        columns = {name: _one_a_row(source, name) for name in source.names}
    return Table({name: values for name, values in columns.items() if values is not None})


def _one_a_row(source: SourceTable, name: str) -> Any:
    """Return a column; None if it holds arrays or the like, which no figure is drawn from."""
    try:
        values = source.plain(name)
    except ColumnError:
        return None
    if values.dtype.kind == "i" and np.ma.is_masked(values):
        values = values.astype(np.float64)
    missing: dict[str, Any] = {"f": np.nan, "U": "", "b": False}
    return np.ma.filled(values, missing.get(values.dtype.kind))


def match(sample: PageStars, table: Table) -> tuple[IndexArray, IndexArray]:
    """Rows of a sample and of a table that are of the same star, by ``id`` or ``star_id``.

    Returns
    -------
    sample_rows, table_rows : (n,) int
        Every matching row of the sample; of a table's repeated names, the first.
    """
    key = "id" if "id" in table.colnames else "star_id"
    names = np.asarray(table[key]).astype(str)
    own = sample.id if key == "id" else sample.star_id
    unique, first = np.unique(names, return_index=True)
    position = np.clip(np.searchsorted(unique, own), 0, max(unique.size - 1, 0))
    if unique.size == 0:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    rows = np.flatnonzero((unique[position] == own) & (own != ""))
    return rows, first[position[rows]]


def _needs(table: Table | None, columns: tuple[str, ...]) -> Table | None:
    if table is None:
        return None
    if not {"id", "star_id"} & set(table.colnames):
        raise ColumnError(f"a table lacks 'id' or 'star_id'; it has {', '.join(table.colnames)}")
    for name in columns:
        if name not in table.colnames:
            raise ColumnError(f"a table lacks {name!r}; it has {', '.join(table.colnames)}")
    return table


def _labelled(model: Model, survey: Survey) -> dict[str, PageStars]:
    parts = {"training": "train", "test": "test"}
    try:
        held_out_rows(model, survey, split="test")
    except ConfigError:
        # A survey other than that of the training: all its stars are unseen.
        parts = {"test": "unseen"}
    out = {}
    for name, split in parts.items():
        rows = held_out_rows(model, survey, split=split)
        rows = rows[:: -(-rows.size // MOST_TRAINING)] if name == "training" else rows
        table = predict_rows(model, survey, rows)
        out[name] = PageStars(
            name=name,
            id=table["id"],
            star_id=survey.star_id[rows],
            mean=np.stack([table[one] for one in model.label_names], axis=1),
            error=np.stack([stated_error(table, one) for one in model.label_names], axis=1),
            truth=survey.labels(model.labels)[rows],
            snr=table["snr"],
            flags=table["flags"],
        )
    return out


def _observed(model: Model, catalogue: Catalogue) -> PageStars:
    table = catalogue.table
    missing = [name for name in model.label_names if name not in table.colnames]
    if missing:
        raise ColumnError(
            f"the catalogue lacks {', '.join(missing)}; give one that this model predicted"
        )
    text = {
        name: np.asarray(table[name]).astype(str)
        if name in table.colnames
        else np.full(len(table), "")
        for name in ("id", "star_id")
    }
    mean = np.stack([np.asarray(table[one], np.float64) for one in model.label_names], axis=1)
    error = [np.asarray(stated_error(table.columns, one), np.float64) for one in model.label_names]
    return PageStars(
        name="observed",
        id=text["id"],
        star_id=text["star_id"],
        mean=mean,
        error=np.stack(error, axis=1),
        truth=np.full(mean.shape, np.nan),
        snr=np.asarray(table["snr"], np.float64),
        flags=np.asarray(table["flags"]),
    )


def _audit(model: Model, survey: Survey, seed: int) -> AuditReport | None:
    if len(model.labels) < 1:
        return None
    try:
        return audit(model, survey, seed=seed)
    except ConfigError:
        return audit(model, survey, split="unseen", seed=seed)


def _simulated_parallaxes(provenance: Mapping[str, Any]) -> bool:
    survey = provenance.get("survey", {}).get("provenance", {})
    return "simulation" in survey


def _places(catalogue: Catalogue, release: str, seed: int) -> Places | None:
    needed = ("ra", "dec", "parallax", "parallax_error")
    table = catalogue.table
    if not set(needed) <= set(table.colnames):
        return None
    ra, dec, parallax, error = (np.asarray(table[name], np.float64) for name in needed)
    if not (np.isfinite(ra) & np.isfinite(parallax)).any():
        return None
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(11,)))
    return place_stars(ra, dec, (parallax, error), rng=rng, gaia=release)
