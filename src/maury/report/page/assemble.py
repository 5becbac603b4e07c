"""One page that shows a model and its surveys: figures, their data, and captions to paste."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from maury.io.files import one_at_a_time, publish, refuse_existing, remove
from maury.io.workers import one_thread, run_tasks
from maury.model.directory import Model
from maury.report.page import places, quality, science
from maury.report.page.html import render
from maury.report.page.material import Material, gather
from maury.report.page.plates import Omitted as Omitted
from maury.report.page.plates import Plate as Plate
from maury.report.page.plates import Section as Section
from maury.survey.store import Survey
from maury.version import __version__

__all__ = ["Omitted", "Plate", "Report", "Section", "sections", "write_report"]

logger = logging.getLogger(__name__)

Stage = Callable[[str], None]

_SECTIONS: tuple[Callable[[Material], Section | None], ...] = (
    quality.accuracy_section,
    quality.calibration_section,
    quality.coverage_section,
    quality.inputs_section,
    science.stars_section,
    science.abundances_section,
    places.places_section,
    science.checks_section,
    science.methods_section,
    quality.training_section,
)


@dataclass(frozen=True)
class Report:
    """A report as written.

    Attributes
    ----------
    directory : Path
    page : Path
        ``index.html`` in it.
    figures : tuple of str
        Names of the figures; each has a PNG, a PDF and an ECSV in ``figures``.
    omitted : tuple of str
        What could not be drawn, and why.
    """

    directory: Path
    page: Path
    figures: tuple[str, ...]
    omitted: tuple[str, ...]


@one_at_a_time("out")
@one_thread()
def write_report(
    model: Model | Path | str,
    out: Path | str,
    *,
    survey: Survey | Path | str | None = None,
    observed: Path | str | None = None,
    external_logg: Path | str | None = None,
    clusters: Path | str | None = None,
    compare: Path | str | None = None,
    gaia: str | None = None,
    seed: int = 0,
    n_processes: int = 1,
    overwrite: bool = False,
    stage: Stage = logger.info,
) -> Report:
    """Draw everything that a model and its surveys show, and write one page.

    Parameters
    ----------
    model : Model or path-like
    out : path-like
        Directory to write; it appears under its name when it is complete.
    survey : Survey or path-like, optional
        With labels: for precision, calibration, the audit.
    observed : path-like, optional
        Catalogue that `maury.predict` wrote: for coverage, Kiel diagrams, cartography.
    external_logg : path-like, optional
        Table with ``id`` or ``star_id`` and ``logg``, say from asteroseismology.
    clusters : path-like, optional
        Table with ``id`` or ``star_id``, ``cluster`` and, optionally, ``probability`` (members have
        at least 0.5).
    compare : path-like, optional
        Table of a comparison with other methods.
    gaia : {"DR2", "EDR3", "none"}, optional
        Whose parallax zero point to take off; by default none for simulated parallaxes, else DR2.
    seed : int
        Of sampled distances and of the audit.
    n_processes : int
        Processes that write figures. With more than one, a script of your own needs a main guard.
    overwrite : bool
        Replace an existing directory.
    stage : callable
        Told what is done next.

    Returns
    -------
    Report

    Raises
    ------
    ConfigError
        If neither a survey nor a catalogue is given.
    OutputExists
        If `out` exists and `overwrite` is false.
    InputFileError, ColumnError
        If a table cannot be read, or lacks a column.
    """
    out = Path(out)
    refuse_existing(out, overwrite=overwrite)
    paths = {"logg": external_logg, "clusters": clusters, "compare": compare}
    # Threads of BLAS and PyTorch wait for one another where a machine has other work.
    with one_thread():
        material = gather(
            model,
            survey,
            observed,
            gaia=gaia,
            tables={name: None if path is None else Path(path) for name, path in paths.items()},
            seed=seed,
            stage=stage,
        )
    # Beside the output, so that the finished directory takes its name in one step.
    partial = out.with_name(f".{out.name}.part")
    remove(partial)
    (partial / "figures").mkdir(parents=True)
    try:
        with one_thread():
            found = list(sections(material, stage=stage))
        stage("writing the figures")
        written = _write_page(material, found, partial, n_processes=n_processes)
        publish(partial, out, overwrite=overwrite)
    finally:
        remove(partial)
    omitted = (f"{one.title}: {one.reason}" for part in found for one in part.omitted)
    return Report(out, out / "index.html", tuple(written), tuple(omitted))


def sections(material: Material, *, stage: Stage = logger.info) -> Iterator[Section]:
    """Draw section by section what `maury.report.page.material.gather` collected."""
    for make in _SECTIONS:
        stage(f"drawing: {make.__name__.removesuffix('_section')}")
        found = make(material)
        if found is not None:
            yield found


def _write_page(
    material: Material, found: Sequence[Section], folder: Path, *, n_processes: int
) -> dict[str, Path]:
    """Write the page of some sections and its figures into a directory; return the figures."""
    overview = quality.overview(material)
    plates = [*filter(None, [overview]), *(one for part in found for one in part.plates)]
    written = _write(
        plates, folder / "figures", simulated=material.simulated, n_processes=n_processes
    )
    page = render(
        found,
        quality.summary(material),
        overview=overview,
        images=written,
        about=_about(material),
        simulated=material.simulated,
    )
    (folder / "index.html").write_text(page, "utf-8")
    return written


def _write(
    plates: Sequence[Plate], folder: Path, *, simulated: bool, n_processes: int
) -> dict[str, Path]:
    """Write all figures with their data and captions; return the PNG of each."""
    tasks = [_Task(plate, folder, simulated) for plate in plates]
    if n_processes > 1:
        run_tasks(
            _write_one,
            tasks,
            n_workers=min(n_processes, len(tasks)),
            unfinished=lambda task: not task.last.is_file(),
        )
    else:
        for task in tasks:
            _write_one(task, lambda rows: None)
    captions = [f"{plate.name}\n{plate.caption}\n" for plate in plates]
    (folder / "captions.txt").write_text("\n".join(captions), "utf-8")
    return {plate.name: folder / f"{plate.name}.png" for plate in plates}


@dataclass(frozen=True)
class _Task:
    """One figure to write."""

    plate: Plate
    folder: Path
    simulated: bool

    @property
    def last(self) -> Path:
        """File that is written last."""
        return self.folder / f"{self.plate.name}.ecsv"


def _write_one(task: _Task, told: Callable[[int], None]) -> None:
    task.plate.write(task.folder, simulated=task.simulated)
    told(1)


def _about(material: Material) -> dict[str, str]:
    model = material.model
    about = {
        "model": model.path.name if model.path else "unsaved",
        "preset": str(model.network["name"]),
        "networks": f"{len(model.kept)} of {len(model.members)} kept",
        "cite": model.citation,
        "split": model.split.rule,
    }
    if model.theory_only:
        about["trained on"] = f"SIMULATED spectra alone: errors are {model.theory_only}"
    about |= dict(material.names)
    discs = material.put_in
    if discs is not None:
        about["simulated discs"] = "; ".join(
            ", ".join(f"{key} {value}" for key, value in one.items()) for one in discs["discs"]
        )
    about["maury"] = __version__
    return about
