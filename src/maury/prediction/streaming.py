"""From a model and a survey to a catalogue: streamed, resumable, rows out = rows in.

The unit of work is a `Part`, some consecutive rows of a survey: plain, picklable, and all that a
process on any machine needs. `plan` lists the parts, `predict_part` writes one of them as a Parquet
file unless it is there already, in any order and in any process, and `finish` joins them into the
catalogue. `write_catalogue` does all three on this machine, and `predict` reads the result.
A survey is a store, or files that a TOML file describes (`open_survey`).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import ColumnError, ConfigError, InputFileError, ModelFileError
from maury.io.addresses import Address, parse
from maury.io.arrays import AnyArray
from maury.io.cluster import Cluster
from maury.io.files import (
    STAMP,
    discard,
    explaining,
    one_at_a_time,
    read_stamp,
    refuse_existing,
    remove,
    work_folder,
    writing,
)
from maury.io.workers import one_thread, run_tasks
from maury.labels.flags import Flag, set_where
from maury.model.directory import Model
from maury.prediction.by_star import combine_stars
from maury.prediction.catalogue import (
    Catalogue,
    CatalogueSpec,
    assemble,
    check_suffix,
    count_flags,
    count_true,
    is_whole,
    of_parts,
    read_parts,
    write_part,
)
from maury.prediction.conditions import tell_of_conditions
from maury.prediction.draws import Draws, check_n_draw, drawable, draws_path, write_draws
from maury.prediction.drift import drift
from maury.prediction.predictor import BLOCK_STARS, WITHOUT, Predictor, catalogue_spec, hide
from maury.spectra.batch import Batch, Readable
from maury.survey.opening import open_survey
from maury.survey.store import Survey

__all__ = [
    "WITHOUT",
    "Options",
    "Part",
    "Plan",
    "Predictor",
    "Written",
    "catalogue_spec",
    "finish",
    "hide",
    "plan",
    "predict",
    "predict_part",
    "predict_rows",
    "write_catalogue",
]

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""
_READ_ROWS = 8192
"""Rows read at a time, which bounds the memory: some 60 MB of flux and ivar."""
_DRIFT = "drift.json"
_JOINED = "joined"
"""File in a folder of parts from when on they are joined under the name of the catalogue."""
PART_STARS = 16384
"""Rows of one part: what a killed run has to repeat at most."""
CLUSTER_PART_STARS = 4096
"""The same on a cluster, whose many workers shall all have work until the end."""


@dataclass(frozen=True)
class Options:
    """How to predict, apart from model and survey.

    Attributes
    ----------
    without : tuple of str
        Inputs that count as missing: ``spectrum``, ``photometry``, ``parallax``, ``a_v`` or a band.
    correlations : bool
        Whether to add the correlations of the errors of all pairs of labels, where the model
        predicts them.
    batch_size : int
        Spectra in memory at a time; rounded up to whole blocks of computation, so that it does
        not change the result.
    engine : {"auto", "torch", "compiled"}
        What computes the networks, see `maury.model.engines.engine.make_engine`.
    given : str
        A label that the survey has from elsewhere, as of `Predictor`.
    by_star : bool
        Whether the spectra of one star are combined into one row
        (`maury.prediction.by_star.combine_stars`), which holds all rows in memory at the end.
    samples : int
        Draws of the labels of each star (`maury.prediction.draws`), written beside the catalogue,
        which then has the correlations; 0 for none.
    seed : int
        Of the draws.
    """

    without: tuple[str, ...] = ()
    correlations: bool = False
    batch_size: int = 2048
    engine: str = "auto"
    given: str = ""
    by_star: bool = False
    samples: int = 0
    seed: int = 0

    @property
    def with_correlations(self) -> bool:
        """Whether the catalogue has the correlations of errors, which draws are made with."""
        return self.correlations or self.samples > 0


@dataclass(frozen=True)
class Part:
    """Some consecutive rows of a survey to be predicted: picklable, the unit of work.

    Attributes
    ----------
    model, survey : str
        Absolute paths.
    start, stop : int
        Rows `start` to before `stop`.
    path : str
        Parquet file to write.
    options : Options
        How to predict.
    checksum : str
        Of the model, so that another one in its place is noticed.
    """

    model: str
    survey: str
    start: int
    stop: int
    path: str
    options: Options
    checksum: str

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def done(self) -> bool:
        """Whether its file is written, which happens in one step."""
        return Path(self.path).exists()


@dataclass(frozen=True)
class Plan:
    """A catalogue to be made.

    Attributes
    ----------
    out : Path
        The catalogue.
    parts : tuple of Part
        All parts, in the order of the survey, done or not.
    spec : CatalogueSpec
        Columns and metadata.
    work : Path
        Directory of the parts, which `finish` removes.
    overwrite : bool
        Whether an existing catalogue is replaced.
    """

    out: Path
    parts: tuple[Part, ...]
    spec: CatalogueSpec
    work: Path
    overwrite: bool = False

    @property
    def n_star(self) -> int:
        """Spectra of the survey, which are the rows of a catalogue that is not by star."""
        return self.parts[-1].stop

    @property
    def missing(self) -> tuple[Part, ...]:
        """Parts that are still to be done."""
        return tuple(part for part in self.parts if not part.done)


@dataclass(frozen=True)
class Written:
    """What a finished catalogue holds.

    Attributes
    ----------
    path : Path
    n_star, n_warned : int
        Rows, and those with a warning flag.
    simulated : bool
        Whether the spectra are simulated.
    flags : mapping of str to int
        Rows with each flag that occurs, by its name.
    """

    path: Path
    n_star: int
    n_warned: int
    simulated: bool
    flags: Mapping[str, int]


def plan(
    model: Model | Path | str,
    survey: Readable | Path | str,
    out: Path | str,
    *,
    options: Options | None = None,
    overwrite: bool = False,
    part_stars: int | None = None,
) -> Plan:
    """Check everything that can be checked beforehand, and list the parts of the work.

    The parts will lie in ``<out>.part``; those that an earlier run with the same model, survey and
    options has written are done.

    Parameters
    ----------
    model, survey
        The model and the survey, or their paths.
    out : path-like
        Catalogue to write; its suffix (.fits, .parquet, .vot, .ecsv, .dataset) names the format.
    options : Options, optional
        How to predict.
    overwrite : bool
        Replace an existing catalogue, and discard a partial one made with other inputs.
    part_stars : int, optional
        Rows of a part, `PART_STARS` by default; a run that goes on keeps its own.

    Raises
    ------
    OutputExists
        If `out` exists and `overwrite` is false.
    ResumeMismatch
        If a partial catalogue of other inputs is in the way.
    GridMismatch
        If the spectra are not on the grid that the model's preparation takes.
    ConfigError
        If the suffix of `out` is not one of a known format, the networks need an input that
        the options leave out, or draws are asked for of a model that is not calibrated.
    """
    out = Path(out)
    options = options or Options()
    check_suffix(out)
    if not overwrite:
        _discard_joined(out)
    refuse_existing(out, overwrite=overwrite)
    survey = open_survey(survey) if isinstance(survey, Path | str) else survey
    model = model if isinstance(model, Model) else Model.open(model)
    # Parts name their model by its path, so that any process can open it.
    if model.path is None:
        raise ModelFileError("the model is not saved; save it, and predict with what is saved")
    paths = (str(model.path.absolute()), str(survey.path.absolute()))
    predictor = _predictor(paths[0], options, model.checksum).taking(survey)
    tell_of_conditions(model, predictor.labeller, survey)
    _check_given(survey, options.given)
    spec = catalogue_spec(
        model,
        survey,
        without=predictor.without,
        correlations=options.with_correlations,
        given=options.given,
        by_star=options.by_star,
    )
    if options.by_star:
        _check_by_star(model, survey, spec)
    key = _fingerprint(predictor, survey, spec)
    if options.samples:
        _check_samples(out, options, spec, key, overwrite)
    work = work_folder(
        out,
        key,
        holds="a partial catalogue of another model or survey",
        overwrite=overwrite,
        notes={"part_stars": part_stars or PART_STARS},
    )
    more = {"by_star": {"spectra": len(survey)}} if options.by_star else {}
    spec = replace(spec, metadata={**spec.metadata, **_drift(predictor, survey, work), **more})
    # A run that goes on keeps the size of its parts, as those that are done would else not fit
    # between the others.
    step = int(json.loads((work / STAMP).read_text("utf-8"))["part_stars"])
    parts = tuple(
        Part(
            *paths,
            start=start,
            stop=min(start + step, len(survey)),
            path=str(work.absolute() / f"part-{start:010d}.parquet"),
            options=options,
            checksum=model.checksum,
        )
        for start in range(0, max(len(survey), 1), step)
    )
    for part in parts:
        if part.done and not is_whole(Path(part.path), len(part)):
            remove(Path(part.path))
    return Plan(out, parts, spec, work, overwrite)


def predict_part(part: Part, report: Callable[[int], None] | None = None) -> Path:
    """Predict one part and write its file in one step; nothing is done if it is there.

    Model and survey stay open in this process for the next part.

    Parameters
    ----------
    part : Part
        Of a `Plan`.
    report : callable, optional
        Called with the rows of this part that are done; may raise to stop.

    Raises
    ------
    ModelFileError
        If another model has taken the place of the planned one.
    SurveyFileError
        If a chunk of the survey cannot be read.
    """
    path = Path(part.path)
    if part.done:
        if report is not None:
            report(len(part))
        return path
    survey = _survey(part.survey)
    predictor = _predictor(part.model, part.options, part.checksum)
    # The plan has told of it.
    predictor = predictor.taking(survey, level=logging.DEBUG)
    spec = catalogue_spec(
        predictor.model,
        survey,
        without=predictor.without,
        correlations=part.options.with_correlations,
        given=part.options.given,
    )
    # The drift was measured once, at the plan: each part measuring it anew would state its own rows
    # only.
    noted = read_stamp(path.with_name(_DRIFT))
    spec = replace(spec, metadata={**spec.metadata, **noted})
    names = [column.name for column in spec.columns]
    pieces: list[dict[str, AnyArray]] = []
    for batch in _batches(survey, part):
        rows = predictor.predict(batch)
        if noted["drift"].get("unlike"):
            doubted = np.ones(len(batch), dtype=np.bool_)
            rows["flags"] = set_where(rows["flags"], Flag.SURVEY_UNLIKE, doubted)
            rows["warn"] = doubted
        pieces.append({name: rows[name] for name in names})
        if report is not None:
            report(batch.start + len(batch) - part.start)
    whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
    write_part(path, spec, whole)
    return path


def finish(plan: Plan) -> Written:
    """Join the parts of a plan, all of them done, into its catalogue, and remove them.

    Raises
    ------
    OutputExists
        If the catalogue exists meanwhile and may not be replaced.
    """
    parts = [Path(part.path) for part in plan.parts]
    n_row = plan.n_star
    if plan.parts[0].options.by_star:
        stars = combine_stars(read_parts(parts), Model.open(plan.parts[0].model).labels)
        parts, n_row = [plan.work / "stars.parquet"], len(stars["id"])
        write_part(parts[0], plan.spec, stars)
    if plan.parts[0].options.samples:
        _draw(parts, plan)
    with explaining(plan.out):
        (plan.work / _JOINED).touch()
    assemble(parts, plan.out, spec=plan.spec, overwrite=plan.overwrite)
    n_warned = sum(count_true(part, "warn") for part in parts)
    flags = count_flags(parts)
    discard(plan.work, plan.out)
    simulated = bool(plan.spec.metadata["simulated"])
    return Written(plan.out, n_row, n_warned, simulated, flags)


def _draw(parts: Sequence[Path], plan: Plan) -> None:
    """Write the draws of a plan, before its catalogue, so that no catalogue lacks them."""
    options, path = plan.parts[0].options, draws_path(plan.out)
    run = _drawing_run(options, str(read_stamp(plan.work / STAMP).get("key")))
    if _drawn_before(path, run):
        return
    write_draws(
        of_parts(parts, plan.out, plan.spec),
        path,
        n_draw=options.samples,
        seed=options.seed,
        run=run,
        overwrite=plan.overwrite,
    )


def _drawing_run(options: Options, key: str) -> str:
    identity = (key, options.by_star, options.samples, options.seed)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _drawn_before(path: Path, run: str) -> bool:
    """Whether a killed run of the same has written these draws, which appear in one step."""
    try:
        return path.exists() and Draws.open(path).metadata["draws"]["run"] == run
    except (InputFileError, KeyError):
        return False


def _check_samples(
    out: Path, options: Options, spec: CatalogueSpec, key: str, overwrite: bool
) -> None:
    """Fail unless draws can be made, and written beside the catalogue."""
    check_n_draw(options.samples)
    drawable([column.name for column in spec.columns])
    if not _drawn_before(draws_path(out), _drawing_run(options, key)):
        refuse_existing(draws_path(out), overwrite=overwrite)


def _discard_joined(out: Path) -> None:
    """Remove the parts of a catalogue that a run published, and was killed before it tidied up."""
    work = out.with_name(f"{out.name}.part")
    # Parts that were joined without leave to replace can only have become what is there now.
    if out.exists() and (work / _JOINED).is_file() and read_stamp(work / STAMP).get("key"):
        with explaining(out):
            discard(work, out)


@one_at_a_time("out")
def write_catalogue(
    model: Model | Path | str,
    survey: Readable | Path | str,
    out: Path | str,
    *,
    options: Options | None = None,
    overwrite: bool = False,
    workers: int = 1,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> Written:
    """Predict a whole survey and write its catalogue, in constant memory.

    Parameters
    ----------
    model, survey, out, options, overwrite
        As of `plan`.
    workers : int
        Processes on this machine, each with one thread; with 1, this process does the work. The
        result does not depend on it.
    cluster : Cluster, optional
        Workers elsewhere (`maury.io.cluster.connect`), in place of processes here.
    progress : callable, optional
        Called with (rows done, rows in all).

    Raises
    ------
    WorkerLost
        If worker processes are killed again and again.
    ClusterError
        If the scheduler is lost, or the workers do not see model, survey and output.
    """
    part_stars = PART_STARS if cluster is None else min(PART_STARS, CLUSTER_PART_STARS)
    planned = plan(model, survey, out, options=options, overwrite=overwrite, part_stars=part_stars)
    missing = planned.missing
    before, total = planned.n_star - sum(map(len, missing)), planned.n_star
    if progress is not None and before:
        progress(before, total)

    def report(rows: int) -> None:
        if progress is not None:
            progress(before + rows, total)

    if cluster is not None:
        _predict_on(cluster, planned, report)
    elif min(workers, len(missing)) > 1:
        run_tasks(
            predict_part,
            missing,
            n_workers=workers,
            unfinished=lambda part: not part.done,
            progress=report,
        )
    else:
        # Workers have one thread each; so has this process, as another order of sums would give
        # other bits.
        with one_thread():
            for number, part in enumerate(missing):
                predict_part(part, partial(_after, sum(map(len, missing[:number])), report))
    return finish(planned)


def _predict_on(cluster: Cluster, planned: Plan, report: Callable[[int], None]) -> None:
    parts = planned.missing
    if not parts:
        return
    cluster.require_paths([parts[0].model, parts[0].survey, planned.work])
    rows = [0] * len(parts)

    def told(number: int, done: int) -> None:
        # A part that is begun again tells smaller numbers.
        rows[number] = max(rows[number], done)
        report(sum(rows))

    cluster.run_tasks(predict_part, parts, unfinished=lambda part: not part.done, told=told)


def _after(before: int, report: Callable[[int], None], rows: int) -> None:
    report(before + rows)


def predict(
    model: Model | Path | str,
    survey: Readable | Path | str,
    out: Path | str,
    *,
    without: Sequence[str] = (),
    correlations: bool = False,
    overwrite: bool = False,
    batch_size: int = 2048,
    workers: int = 1,
    cluster: Cluster | None = None,
    engine: str = "auto",
    given: str = "",
    by_star: bool = False,
    samples: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Catalogue:
    """Predict a whole survey, write its catalogue and read it.

    A run that was killed goes on where it was when the same call is made again.

    Parameters
    ----------
    model, survey
        The model and the survey, or their paths.
    out : path-like
        Catalogue to write; its suffix (.fits, .parquet, .vot, .ecsv, .dataset) names the format.
    without : sequence of str
        Inputs that count as missing: ``spectrum``, ``photometry``, ``parallax``, ``a_v`` or a band.
    correlations : bool
        Whether to add the correlations of the errors of all pairs of labels, where the model
        predicts them.
    overwrite : bool
        Replace an existing catalogue, and discard a partial one made with other inputs.
    batch_size : int
        Spectra in memory at a time, of each worker.
    workers : int
        Processes on this machine; a script that asks for more than one must be importable
        (``if __name__ == "__main__":``).
    cluster : Cluster, optional
        Workers elsewhere, as of `write_catalogue`.
    engine : {"auto", "torch", "compiled"}
        What computes the networks, see `maury.model.engines.engine.make_engine`.
    given : str
        A label that the survey has from elsewhere, as of `maury.prediction.predictor.Predictor`.
    by_star : bool
        Combine the spectra of one star into one row; rows in are spectra, rows out are stars.
    samples, seed : int
        Draws of the labels of each star, written to `maury.prediction.draws.draws_path` of `out`,
        and the seed of their random numbers.
    progress : callable, optional
        Called with (rows done, rows in all).

    Returns
    -------
    Catalogue
        The catalogue as written.

    Raises
    ------
    OutputExists, ResumeMismatch, GridMismatch, ConfigError
        As of `plan`.
    WorkerLost, ClusterError
        As of `write_catalogue`.
    """
    options = Options(
        tuple(without), correlations, batch_size, engine, given, by_star, samples, seed
    )
    written = write_catalogue(
        model,
        survey,
        out,
        options=options,
        overwrite=overwrite,
        workers=workers,
        cluster=cluster,
        progress=progress,
    )
    return Catalogue.read(written.path)


def predict_rows(
    model: Model | Path | str,
    survey: Survey | Path | str,
    rows: ArrayLike,
    *,
    without: Sequence[str] = (),
) -> dict[str, AnyArray]:
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
    predictor = Predictor(model, without=without).taking(survey)
    tell_of_conditions(predictor.model, predictor.labeller, survey)
    index = np.asarray(rows, dtype=np.int64)
    blocks = [index[k : k + _READ_ROWS] for k in range(0, max(index.size, 1), _READ_ROWS)]
    tables = [predictor.predict(survey.rows(block)) for block in blocks]
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def _check_by_star(model: Model, survey: Readable, spec: CatalogueSpec) -> None:
    """Fail unless spectra of one star can be told, and what their errors have in common."""
    if "star_id" not in survey.column_names:
        raise ColumnError(
            f"{survey.path} has no column star_id, which tells the spectra of one star; name it in "
            "the TOML file with which the survey is ingested"
        )
    if not any(column.name.endswith("_error_own") for column in spec.columns):
        raise ConfigError(
            f"{model.path} does not know which part of its errors the spectra of a star share; "
            "train the preset maury, on enough stars that its errors are calibrated"
        )


def _check_given(survey: Readable, given: str) -> None:
    """Fail unless the survey has this label and its error."""
    absent = {given, f"{given}_error"} - set(survey.column_names) if given else set()
    if absent:
        raise ColumnError(
            f"{survey.path} has no column {' and no '.join(sorted(absent))}, of which an external "
            f"{given} is made; name them in the TOML file with which it is ingested"
        )


@lru_cache(maxsize=1)
def _predictor(model: str, options: Options, checksum: str) -> Predictor:
    predictor = Predictor(
        model, without=options.without, given=options.given, engine=options.engine
    )
    # A path may hold another model by now, and parts of two models must not make one catalogue.
    if predictor.model.checksum != checksum:
        raise ModelFileError(f"{model} is another model than when the work was planned; start anew")
    return predictor


def _survey(path: str) -> Readable:
    place = parse(path)
    if isinstance(place, Address):
        return _open_survey(path, place.fingerprint("zarr.json"))
    # The time of change is part of the key: a survey written anew at the same path is opened anew.
    store = place / "zarr.json"
    return _open_survey(path, str((store if store.exists() else place).stat().st_mtime_ns))


@lru_cache(maxsize=1)
def _open_survey(path: str, stamp: str) -> Readable:
    del stamp
    return open_survey(path)


def _batches(survey: Readable, part: Part) -> Iterator[Batch]:
    """Yield the batches of a part, each read while the one before is predicted."""
    step = -(-part.options.batch_size // BLOCK_STARS) * BLOCK_STARS
    # An empty part still gives one empty batch, of which the columns are made.
    starts = list(range(part.start, max(part.stop, part.start + 1), step))
    # One batch ahead and no more: reading overlaps with predicting, and memory stays bounded.
    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for start in starts:
            after = reader.submit(survey.batch, start, min(start + step, part.stop))
            if ahead is not None:
                yield ahead.result()
            ahead = after
        assert ahead is not None
        yield ahead.result()


def _drift(predictor: Predictor, survey: Readable, work: Path) -> dict[str, Any]:
    """Compare the survey with the training sample, once for a run and those that go on with it."""
    known = work / _DRIFT
    if not known.exists():
        # Of inputs that count as missing nothing is to be told.
        labeller = None if predictor.without else predictor.labeller.with_theory
        model = replace(predictor.model, preparation=predictor.preparation)
        found = drift(model, survey, labeller=labeller)
        note = {"drift": {"stars": found.n_star, "findings": list(found.findings)}}
        note["drift"]["unlike"] = found.unlike
        with writing(known, overwrite=True) as partial:
            partial.write_text(json.dumps(note), "utf-8")
        level = logging.WARNING if found.findings or found.blind else logging.INFO
        logger.log(level, "%s: %s", survey.path, found.summary)
    return read_stamp(known)


def _fingerprint(predictor: Predictor, survey: Readable, spec: CatalogueSpec) -> str:
    names = [column.name for column in spec.columns]
    made_by = (predictor.model.checksum, predictor.without, predictor.given, names)
    identity = (made_by, survey.fingerprint)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()
