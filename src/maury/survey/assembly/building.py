"""The course of a build: spectra, catalogues, labels, store."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ConfigError, InputFileError, MauryError, check_known
from maury.io.arrays import AnyArray, BoolArray, IndexArray, Int64Array, StrArray
from maury.io.files import refuse_existing, remove
from maury.io.source_table import SourceTable
from maury.labels import columns as columns_module
from maury.labels import definitions as labels_module
from maury.labels.columns import STAR_ID_FROM, Column
from maury.labels.definitions import Label
from maury.spectra.star_identity import IDENTIFIER, SPECTRUM
from maury.survey.archives import apply_cuts, load
from maury.survey.assembly.build_catalogues import CutCatalogue, open_catalogue
from maury.survey.assembly.build_file import BuildRecipe, load_recipe
from maury.survey.assembly.build_spectra import Columns, SpectraSource, open_spectra
from maury.survey.assembly.flow import KEY, Flow
from maury.survey.assembly.labelling import References, prepare_references
from maury.survey.assembly.offsets import Offsets
from maury.survey.assembly.pairing import match_catalogue, one_star
from maury.survey.readers.pipeline import describe_files, fingerprint
from maury.survey.readers.writing import report_unread
from maury.survey.store import Survey
from maury.survey.writer import SurveyWriter
from maury.version import __version__

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
_Matched = dict[str, tuple[CutCatalogue, Int64Array]]
REFERENCE = "reference_survey"
_OF_ITS_OWN_SPECTRA = ("snr", "radial_velocity")
"""What a catalogue says of its spectra is not true of those of another survey."""


@dataclass(frozen=True)
class Built:
    """What a build made.

    Attributes
    ----------
    survey : Survey
    flow : Flow
    offsets : mapping of str to Offsets
        Of each reference survey but the first.
    flow_path : Path
        The flow table as ECSV.
    """

    survey: Survey
    flow: Flow
    offsets: Mapping[str, Offsets]
    flow_path: Path


def build_survey(
    recipe_path: Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Make a labelled survey store as a recipe says.

    The store's provenance holds the flow table, how labels were converted, and the offsets. The
    flow table is also written beside it, as ``<out>.flow.ecsv``. A run that was killed goes on
    when it is started again alike.

    Parameters
    ----------
    recipe_path : Path or str
        The TOML file (`maury.survey.assembly.build_file`, ``docs/guides/build.md``).
    out : Path or str
        Store to make.
    overwrite : bool
        Replace an existing store and its flow table.
    progress : callable, optional
        Called with the number of spectra written, and of all.

    Raises
    ------
    ConfigError
        If the recipe is wrong.
    InputFileError
        If a file cannot be read, or nothing is left to write.
    TrainingError
        If reference surveys have too few stars in common for their offsets.
    OutputExists
        If the store or the flow table exists and `overwrite` is false.
    """
    out = Path(out)
    flow_path = out.with_suffix(".flow.ecsv")
    # Asked before anything is read, which may take long and would be in vain.
    for path in (out, flow_path):
        refuse_existing(path, overwrite=overwrite)
    recipe = load_recipe(recipe_path)
    flow = Flow()
    with ExitStack() as stack:
        spectra = open_spectra(recipe.spectra, stack)
        plan = _plan(recipe, spectra, flow, stack)
        _write(recipe, Path(recipe_path), spectra, plan, out, overwrite, progress)
    # After the store: a flow table on disk is always that of a finished one.
    flow.write(flow_path, title=recipe.title, overwrite=overwrite)
    survey = Survey.open(out)
    if "unread" in plan.columns:
        report_unread(survey.id, survey.column("unread"), out)
    return Built(survey, flow, plan.offsets, flow_path)


@dataclass(frozen=True)
class _Plan:
    """What is to be written: rows of the spectra, and every column of those rows."""

    rows: IndexArray
    columns: Columns
    definitions: tuple[Label, ...]
    offsets: Mapping[str, Offsets]
    record: Mapping[str, Any]


def _plan(recipe: BuildRecipe, spectra: SpectraSource, flow: Flow, stack: ExitStack) -> _Plan:
    n_star = len(spectra)
    flow.add(
        "spectra",
        "read",
        n_star,
        n_star,
        why=f"spectra of {_place(recipe)}",
        source=", ".join(spectra.citation),
    )
    keep = _cut_spectra(recipe, spectra, flow)
    matched, keep = _match_all(recipe, spectra, keep, flow, stack)
    columns = _columns(recipe, spectra, matched)
    # Splits are by star: spectra that a catalogue knows as one must not be trained and tested on.
    columns |= _stars(spectra, matched)
    _note_stars(spectra, columns["star_id"], flow)
    references = None
    definitions = spectra.labels
    if recipe.references:
        chosen = [matched[entry.title][0] for entry in recipe.references]
        references = prepare_references(recipe, chosen, flow)
        keep = _label(recipe, references, matched, columns, keep, flow)
        definitions = labels_module.extend(references.definitions, spectra.labels)
    chosen_rows = np.flatnonzero(keep)
    if not chosen_rows.size:
        raise InputFileError(
            "no spectrum is left to write: "
            + "; ".join(f"{s.of}, {s.step}: {s.n_in} to {s.n_out}" for s in flow if s.n_removed)
        )
    flow.add("spectra", "written", chosen_rows.size, chosen_rows.size, why="rows of the survey")
    return _Plan(
        chosen_rows,
        {name: values[chosen_rows] for name, values in columns.items()},
        definitions,
        references.offsets if references else {},
        _record(recipe, spectra, [one for one, _ in matched.values()], references, flow),
    )


def _match_all(
    recipe: BuildRecipe,
    spectra: SpectraSource,
    keep: BoolArray,
    flow: Flow,
    stack: ExitStack,
) -> tuple[_Matched, BoolArray]:
    """Match every catalogue; also return which spectra are in all required ones."""
    matched: _Matched = {}
    for entry in recipe.catalogue:
        catalogue = open_catalogue(entry, flow, stack)
        rows = match_catalogue(spectra, catalogue, matched, flow)
        matched[entry.title] = catalogue, rows
        if entry.require:
            n_in, keep = int(keep.sum()), keep & (rows >= 0)
            flow.add(
                "spectra",
                f"in-{entry.title}",
                n_in,
                keep.sum(),
                why=f"not matched to a row of {entry.title} that passes its cuts",
                source="recipe",
            )
    return matched, keep


def _place(recipe: BuildRecipe) -> str:
    place = recipe.spectra.store or recipe.spectra.ingest or recipe.spectra.path
    return place.name if place is not None else ""


def _cut_spectra(recipe: BuildRecipe, spectra: SpectraSource, flow: Flow) -> BoolArray:
    table = SourceTable.of_arrays(Path(_place(recipe)), spectra.columns)
    selection = apply_cuts(recipe.spectra.cut, table)
    for cut, step in zip(selection.cuts, selection.flow(), strict=True):
        flow.add(
            "spectra",
            step.name,
            step.n_in,
            step.n_out,
            why=f"{step.why}: {cut}",
            source=cut.source,
        )
    return selection.keep


def _columns(
    recipe: BuildRecipe,
    spectra: SpectraSource,
    matched: _Matched,
) -> Columns:
    """Columns of the spectra, and of the catalogues; each from one source alone."""
    columns = dict(spectra.columns)
    if recipe.references:
        names = [name for label in spectra.labels for name in (label.name, label.error_name)]
        gone = [name for name in names if columns.pop(name, None) is not None]
        if gone:
            text = ", ".join(gone)
            logger.warning("labels of the references replace those of the spectra: %s", text)
    taken: dict[str, str] = {}
    for title, (catalogue, rows) in matched.items():
        stated = catalogue.entry.take
        for name in stated if stated is not None else catalogue.column_names:
            check_known(f"column of {title}", name, catalogue.column_names)
            # A catalogue fills gaps; only an explicit `take` replaces what the spectra say.
            if stated is None and (name in _OF_ITS_OWN_SPECTRA or _has(columns, name)):
                continue
            if stated is not None and taken.get(name):
                raise ConfigError(
                    f"{name!r} is to be taken from {taken[name]} and from {title}; keep one"
                )
            columns[name] = _of_rows(catalogue.values(name), rows)
            taken[name] = title if stated is not None else ""
    return columns


def _stars(spectra: SpectraSource, matched: _Matched) -> Columns:
    """Columns of the star: equal for spectra that share a row of a catalogue."""
    rows_of = [rows for _, rows in matched.values()]
    columns: Columns = {"star_id": one_star(spectra.texts("star_id"), rows_of)}
    means = spectra.columns.get(STAR_ID_FROM.name)
    if means is not None:
        # A row of a catalogue is one star, whatever it was found by.
        in_one = np.array([rows >= 0 for rows in rows_of]).any(axis=0)
        columns[STAR_ID_FROM.name] = np.where((means == SPECTRUM) & in_one, IDENTIFIER, means)
    return columns


def _has(columns: Columns, name: str) -> bool:
    if name not in columns:
        return False
    values = columns[name]
    return bool((values != "").any() if values.dtype.kind == "U" else np.isfinite(values).any())


def _of_rows(values: AnyArray, rows: Int64Array) -> AnyArray:
    missing: Any = "" if values.dtype.kind == "U" else np.nan
    # -1 would take the last row without a word: row 0 is read in its place, and replaced.
    return np.where(rows >= 0, values[np.maximum(rows, 0)], missing)


def _note_stars(spectra: SpectraSource, star_id: StrArray, flow: Flow) -> None:
    before, after = np.unique(spectra.texts("star_id")).size, np.unique(star_id).size
    if after < before:
        flow.add(
            "stars",
            "same-catalogue-row",
            before,
            after,
            why="spectra that share a row of a catalogue are of one star",
        )


def _label(
    recipe: BuildRecipe,
    references: References,
    matched: _Matched,
    columns: Columns,
    keep: BoolArray,
    flow: Flow,
) -> BoolArray:
    """Add the labels to `columns`, and return which rows are kept."""
    merged = references.of_spectra({title: rows for title, (_, rows) in matched.items()}, flow)
    for k, name in enumerate(merged.labels.names):
        columns[name] = merged.labels.values[:, k]
        columns[f"{name}_error"] = merged.labels.errors[:, k]
    columns[REFERENCE] = merged.survey
    labelled = merged.survey != ""
    n_in = int(keep.sum())
    if recipe.keep == "labelled":
        keep = keep & labelled
        flow.add("spectra", "labelled", n_in, keep.sum(), why="without any label of a reference")
    else:
        n = int((keep & ~labelled).sum())
        flow.add("spectra", "observed", n_in, n_in, why=f"{n} without labels are kept as observed")
    return keep


def _record(
    recipe: BuildRecipe,
    spectra: SpectraSource,
    catalogues: Sequence[CutCatalogue],
    references: References | None,
    flow: Flow,
) -> dict[str, Any]:
    files = [entry.file for entry in recipe.catalogue]
    citation = [*spectra.citation]
    for catalogue in catalogues:
        citation += catalogue.recipe.citation
    citation += references.citation if references else ()
    return {
        "reader": "build",
        "maury": __version__,
        "title": recipe.title,
        "spectra": dict(spectra.spectra.provenance),
        "files": describe_files(files),
        # In the order of first mention; a set of texts has another order in every process.
        "citation": list(dict.fromkeys(citation)),
        **({**references.notes} if references else {}),
        "offsets": {n: o.to_dict() for n, o in references.offsets.items()} if references else {},
        KEY: flow.to_list(),
    }


def _write(
    recipe: BuildRecipe,
    recipe_path: Path,
    spectra: SpectraSource,
    plan: _Plan,
    out: Path,
    overwrite: bool,
    progress: Progress | None,
) -> None:
    known = columns_module.known(plan.definitions)
    further = {column.name: column for column in spectra.further}
    for entry in recipe.catalogue:
        further |= load(entry.recipe).definitions
    columns: list[str | Column] = [
        further.get(name, name) if name not in known else name for name in plan.columns
    ]
    files = [recipe_path, *(entry.file for entry in recipe.catalogue)]
    own = [recipe.spectra.recipe or "", *(entry.recipe for entry in recipe.catalogue)]
    files += [Path(name) for name in own if name.endswith(".toml")]
    writer = SurveyWriter(
        out,
        n_star=plan.rows.size,
        wave_aa=spectra.spectra.wave_aa,
        medium=spectra.spectra.medium,
        columns=columns,
        simulated=recipe.spectra.simulated or spectra.spectra.simulated,
        labels=plan.definitions,
        provenance=plan.record,
        overwrite=overwrite,
        # A partial store goes on only if recipe, catalogues and spectra are the same: rows of two
        # different builds must not stand in one store.
        resume_key=fingerprint(files, spectra.spectra.fingerprint),
        resolving_power=spectra.spectra.resolving_power,
        noise_correlation=spectra.spectra.noise_correlation,
        at_rest=spectra.spectra.at_rest,
    )
    with writer:
        try:
            _write_rows(spectra, plan, writer, progress)
        except MauryError:
            # Once the input is corrected it is another run, which this part must not obstruct.
            remove(writer.partial)
            raise


def _write_rows(
    spectra: SpectraSource, plan: _Plan, writer: SurveyWriter, progress: Progress | None
) -> None:
    for start, chunk in spectra.chunks(plan.rows, writer.done):
        stop = start + chunk.snr.size
        rows = {name: values[start:stop] for name, values in plan.columns.items()}
        # S/N of spectra in files may be known only now that they are read.
        rows["snr"] = np.where(np.isfinite(rows["snr"]), rows["snr"], chunk.snr)
        if "unread" in rows:
            rows["unread"] = chunk.unread
        writer.write(start, chunk.flux, chunk.ivar, **rows)
        if progress is not None:
            progress(stop, plan.rows.size)
