"""Spectra of a public survey, as published, to a survey store."""

import json
from pathlib import Path
from typing import Any

from maury.errors import ConfigError, check_known
from maury.io.cluster import Cluster
from maury.survey.archives.recipe import ArmFacts, SpectraFacts, SurveyRecipe, load
from maury.survey.readers.config import IngestConfig
from maury.survey.readers.file_survey import FileSurvey
from maury.survey.readers.general import open_config, write_files
from maury.survey.readers.writing import Opened, Progress, Reopening
from maury.survey.store import Survey


def ingest_recipe(
    recipe: str | Path,
    path: Path | str,
    out: Path | str,
    *,
    arm: str | None = None,
    overwrite: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> Survey:
    """Read the spectra of a public survey, in its own format, into a new store.

    Parameters
    ----------
    recipe : str or Path
        Name of a recipe, or the path of a TOML file with one.
    path : Path or str
        A file of spectra, or a folder of them.
    out : Path or str
        Store to make.
    arm : str, optional
        Which of the recipe's arms; the first by default.
    overwrite : bool
        Replace an existing store.
    skip_bad : bool
        Keep a file that cannot be read, as a row of bad pixels, and tell of all of them at the end;
        the column ``unread`` says why. By default one such file is an error.
    progress : callable, optional
        Called with the number of rows done, and of all.
    cluster : Cluster, optional
        Workers to read on, which must see the files.

    Returns
    -------
    survey : Survey

    Raises
    ------
    ConfigError
        If the recipe is unknown or wrong, or describes no spectra, or has no such arm.
    InputFileError
        If a file is missing or damaged, or of another format; its subclasses say more.
    GridMismatch
        If spectra stand on different grids and the recipe names no common one.
    OutputExists
        If `out` exists and `overwrite` is false.
    """
    own = str(recipe.absolute()) if isinstance(recipe, Path) else recipe
    place = Path(path).absolute()
    # Plain text goes to workers, which open the recipe themselves.
    argument = json.dumps([own, str(place), arm, skip_bad])
    return write_files(
        open_recipe(recipe, path, arm=arm, skip_bad=skip_bad),
        out,
        reopening=Reopening(_open_again, argument, place),
        overwrite=overwrite,
        progress=progress,
        cluster=cluster,
    )


def open_recipe(
    recipe: str | Path, path: Path | str, *, arm: str | None = None, skip_bad: bool = False
) -> FileSurvey:
    """Open the spectra of a public survey without making a store.

    Parameters
    ----------
    recipe : str or Path
        Name of a recipe, or the path of a TOML file with one.
    path : Path or str
        A file of spectra, or a folder of them.
    arm : str, optional
        Which of the recipe's arms; the first by default.
    skip_bad : bool
        Keep a file that cannot be read, as a row of bad pixels.

    Raises
    ------
    ConfigError, InputFileError, GridMismatch
        If the recipe is wrong, a file is missing or damaged, or spectra stand on different
        grids without a common one to be put on.
    """
    found, place = load(recipe), Path(path).absolute()
    spectra, chosen = _spectra(found, arm)
    document = _document(spectra, chosen, place) | {"observable": found.observable}
    document["skip_bad"] = skip_bad
    config = IngestConfig.model_validate(document)
    options: dict[str, Any] = {"recipe": found.name}
    options |= {} if chosen is None else {"arm": chosen.name}
    options |= {"skip_bad": True} if skip_bad else {}
    return open_config(
        config, place, labels=found.labels, options=options, reader=chosen_reader(spectra, chosen)
    )


def chosen_reader(spectra: SpectraFacts, arm: ArmFacts | None) -> str:
    """Return the name of the reader of an arm."""
    return spectra.reader if arm is None or arm.reader is None else arm.reader


def _spectra(recipe: SurveyRecipe, arm: str | None) -> tuple[SpectraFacts, ArmFacts | None]:
    if recipe.spectra is None:
        raise ConfigError(
            f"the recipe {recipe.name} describes a catalogue, not spectra: use it in a build, "
            "or take a recipe of spectra (see 'maury surveys')"
        )
    arms = {one.name: one for one in recipe.spectra.arm}
    if arm is None:
        return recipe.spectra, next(iter(arms.values()), None)
    if not arms:
        raise ConfigError(f"the recipe {recipe.name} has no arms; leave out the arm {arm!r}")
    return recipe.spectra, arms[check_known(f"arm of {recipe.name}", arm, arms)]


def _document(spectra: SpectraFacts, arm: ArmFacts | None, place: Path) -> dict[str, Any]:
    grid = spectra.grid if arm is None or arm.grid is None else arm.grid
    # What an arm says of itself comes before what is said of the spectra.
    own = None if arm is None else arm.resolving_power
    return {
        "spectra": {
            "reader": chosen_reader(spectra, arm),
            "folder" if place.is_dir() else "file": place,
        },
        "wavelength": None if spectra.medium is None else {"medium": spectra.medium},
        "resample": grid,
        "columns": spectra.columns | (arm.columns if arm is not None else {}),
        "at_rest": spectra.at_rest if arm is None or arm.at_rest is None else arm.at_rest,
        "resolving_power": own or spectra.resolving_power,
    }


def _open_again(argument: str) -> Opened:
    recipe, path, arm, skip_bad = json.loads(argument)
    files = open_recipe(recipe, path, arm=arm, skip_bad=skip_bad)
    return Opened(files.source, files.gridder, files)
