"""From a model and a survey to a catalogue: streamed, resumable, rows out = rows in."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import maury
from maury.catalogue import Catalogue, CatalogueSpec, assemble, check_suffix, write_part
from maury.columns import (
    BANDS,
    CHI2,
    IN_CATALOGUE,
    QUANTILES,
    WORST_WAVELENGTH,
    for_correlation,
)
from maury.errors import ConfigError, ResumeMismatch
from maury.files import refuse_existing, remove, writing
from maury.flags import FLAG_DTYPE, Flag, set_where, warn
from maury.labels import Label
from maury.model import Model
from maury.naming import check_known
from maury.preparation import SOURCES
from maury.spectra import Spectra, require_same_grid
from maury.survey import Batch, Survey

if TYPE_CHECKING:
    from maury.inference import Prediction
    from maury.preparation import Inputs
    from maury.trust import Assessment

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""

WITHOUT = ("spectrum", "photometry", *SOURCES)
"""Inputs that a prediction may do without; ``photometry`` is all of them but the spectrum."""

_READ_ROWS = 8192
PART_STARS = 16384
"""Rows of one part: what a killed run has to repeat at most."""


class Predictor:
    """A model ready to predict: its preparation is replayed, its networks are loaded once.

    Parameters
    ----------
    model : Model or path-like
        The model.
    without : sequence of str
        Inputs of `WITHOUT` that count as missing.

    Raises
    ------
    UnknownName
        If there is no such input.
    ConfigError
        If the networks need one of these inputs.
    """

    def __init__(self, model: Model | Path | str, *, without: Sequence[str] = ()) -> None:
        from maury.inference import EnsembleNetwork
        from maury.trust import Trust

        self.model = model if isinstance(model, Model) else Model.open(model)
        self.without = tuple(check_known("input", name, WITHOUT) for name in without)
        self._network = EnsembleNetwork(self.model)
        self.trust = Trust.load(self.model, self._network)
        if needed := sorted(set(self.without) & self._network.needs):
            raise ConfigError(
                f"the network '{self.model.network['name']}' gives no labels without "
                f"{', '.join(needed)}; use a model of the preset maury"
            )

    def predict(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Predict the labels of one batch.

        Parameters
        ----------
        batch : Batch
            Spectra on the grid that the model's preparation takes, and their columns.

        Returns
        -------
        dict of str to (n_star,) array
            ``id``, each label and its 1 sigma error (NaN where it cannot be given), ``flags``,
            ``warn``, ``snr``, and the columns of `maury.columns.IN_CATALOGUE`; with a calibrated
            model also the quantiles, the correlations of errors, and those of
            `maury.columns.COVERAGE`.
        """
        inputs, answer = self.answer(batch)
        mean, error = answer.mean, answer.sigma
        flags = self._flags(batch, inputs.flags, inputs.observables, mean)
        rows: dict[str, NDArray[Any]] = {"id": batch.column("id")}
        if self.trust is not None:
            found = self.trust.assess(inputs, answer)
            error, flags = found.sigma, flags | found.flags
            rows |= _trusted(self.model.labels, found)
        for position, label in enumerate(self.model.labels):
            rows[label.name] = mean[:, position]
            rows[label.error_name] = error[:, position]
        rows |= {"flags": flags, "warn": warn(flags), "snr": inputs.snr}
        return rows | {name: batch.column(name) for name in IN_CATALOGUE}

    def answer(self, batch: Batch) -> "tuple[Inputs, Prediction]":
        """Prepare a batch, and give the bare answer of the networks to it."""
        inputs = self.model.preparation.apply(hide(batch, self.without))
        return inputs, self._network.predict(inputs)

    def _flags(
        self,
        batch: Batch,
        flags: NDArray[np.int32],
        observables: NDArray[np.float32],
        mean: NDArray[np.float64],
    ) -> NDArray[np.int32]:
        unanswered = np.asarray(np.isnan(mean).all(axis=1), dtype=np.bool_)
        if self._network.needs_spectrum:
            unanswered &= (flags & Flag.NO_SPECTRUM.value) == 0
        scaling = self.model.scaling
        checks = (
            (Flag.INPUT_REQUIRED, unanswered),
            (Flag.OBSERVABLE_OUTSIDE, _outside(observables, scaling.observables)),
            (Flag.LABEL_OUTSIDE, _outside(mean, scaling.labels)),
            (Flag.TRAINING_STAR, self.model.split.took_part(batch.column("star_id"))),
        )
        flags = flags.astype(FLAG_DTYPE)
        for flag, where in checks:
            flags = set_where(flags, flag, where)
        return flags


def _trusted(labels: Sequence[Label], found: "Assessment") -> dict[str, NDArray[Any]]:
    """Return the columns that a calibrated model adds."""
    rows: dict[str, NDArray[Any]] = {
        f"{label.name}_{suffix}": found.quantiles[k, :, position]
        for position, label in enumerate(labels)
        for k, (suffix, _) in enumerate(QUANTILES)
    }
    if found.covariance is not None:
        sigma = np.sqrt(np.einsum("nii->ni", found.covariance))
        for (i, first), (j, second) in combinations(enumerate(labels), 2):
            column = for_correlation(first, second)
            rows[column.name] = found.covariance[:, i, j] / (sigma[:, i] * sigma[:, j])
    return rows | {CHI2.name: found.chi2_reduced, WORST_WAVELENGTH.name: found.worst_wavelength}


def _outside(values: NDArray[Any], scaling: Any) -> NDArray[np.bool_]:
    """Whether any value of a row lies outside the training range (with a rounding margin)."""
    margin = 1e-5 * (scaling.maximum - scaling.minimum)
    below = values < scaling.minimum - margin
    above = values > scaling.maximum + margin
    outside: NDArray[np.bool_] = (below | above).any(axis=1)
    return outside


def hide(batch: Batch, without: Sequence[str]) -> Batch:
    """Return a batch in which inputs are missing.

    Parameters
    ----------
    batch : Batch
        Rows of a survey.
    without : sequence of str
        Names of `WITHOUT`.
    """
    hidden = set(SOURCES if "photometry" in without else without) & set(SOURCES)
    names = {band.column if (band := _BANDS.get(name)) else name for name in hidden}
    missing = np.full(len(batch), np.nan)
    columns = {name: missing if name in names else v for name, v in batch.columns.items()}
    spectra = batch.spectra
    if "spectrum" in without:
        spectra = spectra.replace(ivar=np.zeros_like(spectra.ivar))
    return Batch(spectra, MappingProxyType(columns), batch.start)


_BANDS = {band.name: band for band in BANDS}


def predict_rows(
    model: Model | Path | str,
    survey: Survey | Path | str,
    rows: ArrayLike,
    *,
    without: Sequence[str] = (),
) -> dict[str, NDArray[Any]]:
    """Predict some rows of a survey in memory.

    Parameters
    ----------
    model, survey
        The model and the survey, or their paths.
    rows : (n,) int array_like
        Row numbers, in any order.
    without : sequence of str
        Inputs that count as missing, as of `Predictor`.

    Returns
    -------
    dict of str to (n,) array
        As `Predictor.predict`.
    """
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    predictor = Predictor(model, without=without)
    _check_grid(predictor.model, survey)
    index = np.asarray(rows, dtype=np.int64)
    blocks = [index[k : k + _READ_ROWS] for k in range(0, max(index.size, 1), _READ_ROWS)]
    tables = [predictor.predict(survey.rows(block)) for block in blocks]
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def predict(
    model: Model | Path | str,
    survey: Survey | Path | str,
    out: Path | str,
    *,
    without: Sequence[str] = (),
    correlations: bool = False,
    overwrite: bool = False,
    batch_size: int = 512,
    progress: Progress | None = None,
) -> Catalogue:
    """Predict a whole survey and write its catalogue.

    The survey is read, predicted and written in parts, which lie in ``<out>.part`` until the
    catalogue is complete; a run that was killed goes on after its last part.

    Parameters
    ----------
    model, survey
        The model and the survey, or their paths.
    out : path-like
        Catalogue to write; its suffix (.fits, .parquet, .vot, .ecsv) names the format.
    without : sequence of str
        Inputs that count as missing: ``spectrum``, ``photometry``, ``parallax``, ``a_v`` or a band.
    correlations : bool
        Whether to add the correlations of the errors of all pairs of labels, where the model
        predicts them.
    overwrite : bool
        Replace an existing catalogue, and discard a partial one made with other inputs.
    batch_size : int
        Spectra in memory at a time.
    progress : callable, optional
        Called with (rows done, rows in all).

    Returns
    -------
    Catalogue
        The catalogue as written.

    Raises
    ------
    OutputExists
        If `out` exists and `overwrite` is false.
    GridMismatch
        If the spectra are not on the grid that the model's preparation takes.
    ConfigError
        If the suffix of `out` is not one of a known format, or the networks need an input of
        `without`.
    """
    out = Path(out)
    check_suffix(out)
    refuse_existing(out, overwrite=overwrite)
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    predictor = Predictor(model, without=without)
    _check_grid(predictor.model, survey)
    spec = catalogue_spec(
        predictor.model, survey, without=predictor.without, correlations=correlations
    )
    work = _work_directory(out, _fingerprint(predictor, survey, spec), overwrite=overwrite)
    parts = list(_write_parts(predictor, survey, work, spec, batch_size, progress))
    assemble(parts, out, spec=spec, overwrite=overwrite)
    remove(work)
    return Catalogue.read(out)


def catalogue_spec(
    model: Model, survey: Survey, *, without: Sequence[str] = (), correlations: bool = False
) -> CatalogueSpec:
    """Return the columns and the metadata of the catalogue of `survey` by `model`."""
    trusted = "calibration" in model.attachments
    errors = "1 sigma spread of the ensemble; not calibrated, and known to be too small"
    if trusted:
        errors = "1 sigma, calibrated on labelled stars that neither trained nor chose a network"
    elif "sky" in model.attachments:
        errors = "1 sigma: predicted by the networks, with their spread; not calibrated"
    metadata = {
        "simulated": survey.simulated,
        "maury_version": maury.__version__,
        "survey": {"name": survey.path.name, "provenance": survey.provenance},
        "model": {
            "checksum": model.checksum,
            "preset": model.network["name"],
            "members": len(model.kept),
            "trained_on_simulated_spectra": model.simulated,
            "citation": model.citation,
            "split": model.split.rule,
        },
        "errors": errors,
        "without": list(without),
    }
    if "audit" in model.attachments:
        metadata["audit"] = dict(model.attachments["audit"].metadata)
    return CatalogueSpec.for_labels(
        model.labels,
        survey_columns=survey.column_names,
        metadata=metadata,
        quantiles=trusted,
        correlations=trusted and correlations,
        coverage=trusted,
    )


def _check_grid(model: Model, survey: Survey) -> None:
    """Fail before the first batch, not in the middle of a survey."""
    first = survey.batch(0, min(1, len(survey))).spectra
    wave_aa, medium = model.preparation.prepared_grid(first)
    none = np.zeros((0, wave_aa.size), dtype=np.float32)
    require_same_grid(model.wave_aa, Spectra(wave_aa, none, none, medium), medium=model.medium)


def _fingerprint(predictor: Predictor, survey: Survey, spec: CatalogueSpec) -> str:
    stamp = (survey.path / "zarr.json").stat().st_mtime_ns
    names = [column.name for column in spec.columns]
    made_by = (predictor.model.checksum, predictor.without, names)
    identity = (made_by, str(survey.path.resolve()), len(survey), stamp, PART_STARS)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _work_directory(out: Path, key: str, *, overwrite: bool) -> Path:
    work = out.with_name(out.name + ".part")
    stamp = work / "run.json"
    if work.exists():
        found = json.loads(stamp.read_text("utf-8")).get("key") if stamp.is_file() else None
        if found == key:
            logger.info("resuming %s", out)
            return work
        if found is not None and not overwrite:
            raise ResumeMismatch(
                f"{work} holds a partial catalogue of another model or survey; "
                "finish that run, or pass --overwrite to discard it"
            )
        remove(work)
    work.mkdir(parents=True)
    with writing(stamp, overwrite=True) as partial:
        partial.write_text(json.dumps({"key": key}), "utf-8")
    return work


def _write_parts(
    predictor: Predictor,
    survey: Survey,
    work: Path,
    spec: CatalogueSpec,
    batch_size: int,
    progress: Progress | None,
) -> Iterator[Path]:
    names = [column.name for column in spec.columns]
    for start in range(0, max(len(survey), 1), PART_STARS):
        stop = min(start + PART_STARS, len(survey))
        part = work / f"part-{start:010d}.parquet"
        if not part.exists():
            pieces = [predictor.predict(survey.batch(start, start))]
            for batch in survey.batches(batch_size, start=start, stop=stop):
                pieces.append(predictor.predict(batch))
                if progress is not None:
                    progress(batch.start + len(batch), len(survey))
            rows = {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
            write_part(part, spec, rows)
        elif progress is not None:
            progress(stop, len(survey))
        yield part
