"""The TOML file of `maury build`: spectra, catalogues, how they are matched, what is kept."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from maury.errors import ConfigError, suggestion
from maury.io.config_files import read_toml, validated
from maury.labels import definitions as labels
from maury.survey.archives import Cut
from maury.survey.archives.recipe import AbundanceScale, Positive
from maury.survey.readers.config import Strict

Year = Annotated[float, Field(ge=1800, le=2200)]


class OwnCut(Cut):
    """A cut of the user's own: reason and source may be left out."""

    why: str = "a cut of the recipe"
    source: str = "recipe"


class SpectraEntry(Strict):
    """``[spectra]``: a store, an ingest file, or files of a public survey.

    Attributes
    ----------
    store : Path
        A survey store.
    ingest : Path
        A TOML file as of ``maury ingest toml``.
    recipe, path, arm : str, Path, str
        Name (or file) of a survey recipe, its file or folder of spectra, and which of its arms.
    epoch : float
        Julian year of the positions, where neither spectra nor recipe say it.
    simulated : bool
        Marks the survey as simulated, whatever the files say.
    skip_bad : bool
        Keep a file of spectra that cannot be read, as a row of bad pixels.
    cut : tuple of OwnCut
        On columns of the spectra.
    """

    store: Path | None = None
    ingest: Path | None = None
    recipe: str | None = None
    path: Path | None = None
    arm: str | None = None
    epoch: Year = 2000.0
    simulated: bool = False
    skip_bad: bool = False
    cut: tuple[OwnCut, ...] = ()

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = [n for n in ("store", "ingest", "recipe") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError("give one of 'store', 'ingest', or 'recipe' with 'path'")
        if (self.recipe is None) != (self.path is None):
            raise ValueError("'recipe' and 'path' go together")
        if self.arm is not None and self.recipe is None:
            raise ValueError("'arm' is for a recipe; leave it out")
        return self


class MatchEntry(Strict):
    """``match``: which row of the catalogue is which spectrum.

    Attributes
    ----------
    by : {"id", "position"}
    spectra : str
        Column of the spectra (or, with `via`, identifier of that catalogue) that is compared.
    catalogue : str
        Identifier of the catalogue: ``id``, ``star``, ``spectrum``, a name of its recipe's
        ``[id.other]``, or any column.
    via : str, optional
        An earlier catalogue, whose identifiers or positions stand for those of the spectra.
    radius : float
        In arcseconds, of a match by position.
    prefer : str, optional
        Of catalogue rows with one identifier, the one where this column is highest is taken.
    ambiguous : {"drop", "nearest"}
        Spectra with several candidates are left unmatched, or take the nearest (by position).
    """

    by: Literal["id", "position"] = "position"
    spectra: str = "id"
    catalogue: str = "id"
    via: str | None = None
    radius: Annotated[float, Field(gt=0, le=3600)] = 2.0
    prefer: str | None = None
    ambiguous: Literal["drop", "nearest"] = "drop"

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        # A key without effect is refused: whoever wrote it believes that it has one.
        used = self.model_fields_set
        if self.by == "position" and used & {"spectra", "catalogue", "prefer"}:
            raise ValueError("'spectra', 'catalogue' and 'prefer' are for by = \"id\"")
        if self.by == "id" and (used & {"radius"} or self.ambiguous == "nearest"):
            raise ValueError("'radius' and 'nearest' are for by = \"position\"")
        return self


class CatalogueEntry(Strict):
    """``[[catalogue]]``: a table of a public survey.

    Attributes
    ----------
    recipe : str
        Name of a survey recipe, or a TOML file of one.
    file : Path
    name : str
        How the flow table calls it; the recipe's name by default.
    role : {"reference", "columns"}
        Whether it gives labels, or columns (photometry, astrometry) alone.
    match : MatchEntry
    without, also : tuple of str
        Recommended cuts that are left out, and optional ones that are applied.
    cut : tuple of OwnCut
        Further cuts, on columns of the catalogue.
    take : tuple of str, optional
        Columns of the survey that are taken from here; else all that it has, but for labels and
        for what it says of its own spectra (S/N, radial velocity).
    require : bool
        Whether spectra without a row here, after the cuts, are left out.
    """

    recipe: str
    file: Path
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    role: Literal["reference", "columns"] = "reference"
    match: MatchEntry = MatchEntry()
    without: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    cut: tuple[OwnCut, ...] = ()
    take: tuple[str, ...] | None = None
    require: bool = False

    @property
    def title(self) -> str:
        """How the flow table calls it."""
        return self.name or Path(self.recipe).stem


class LabelsEntry(AbundanceScale):
    """``[labels]``: which labels, on which scale.

    Attributes
    ----------
    names : tuple of str, optional
        Labels of the survey; else all that the references have.
    solar_scale : str, optional
        Scale of all abundances; else each keeps its own, which must be one.
    alpha : tuple of str or mapping of str to float, optional
        Elements (and weights) of [alpha/.].
    salaris : bool
        [M/H] from [Fe/H] and [alpha/Fe] where it is not given (Salaris et al. 1993).
    correlation : float
        Assumed of the errors of a star's labels.
    """

    names: tuple[str, ...] | None = None
    salaris: bool = False
    correlation: Annotated[float, Field(gt=-1, lt=1)] = 0.0


class OffsetsEntry(Strict):
    """``[offsets]``: how further references are put on the scale of the first.

    Attributes
    ----------
    fit : bool
        Whether offsets are fitted and taken off.
    terms : tuple of str
        Labels that offsets are linear in; none for constants.
    radius : float
        In arcseconds, where the references share no identifier.
    """

    fit: bool = True
    terms: tuple[str, ...] = ()
    radius: Positive = 2.0


class BuildRecipe(Strict):
    """The whole file.

    Attributes
    ----------
    title : str
    spectra, catalogue, labels, offsets
        See their classes. The first reference sets the scale of the labels.
    keep : {"labelled", "all"}
        Whether spectra without any label are kept, as observed ones.
    label : tuple of mapping
        Definitions of further labels, as in `maury.labels.definitions`.
    """

    title: str = ""
    spectra: SpectraEntry
    catalogue: tuple[CatalogueEntry, ...] = ()
    labels: LabelsEntry = LabelsEntry()
    offsets: OffsetsEntry = OffsetsEntry()
    keep: Literal["labelled", "all"] = "labelled"
    label: tuple[dict[str, Any], ...] = ()

    @field_validator("catalogue")
    @classmethod
    def _in_order(cls, given: tuple[CatalogueEntry, ...]) -> tuple[CatalogueEntry, ...]:
        titles = [entry.title for entry in given]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        # The flow table counts the spectra themselves under that name.
        if twice or "spectra" in titles:
            raise ValueError(f"catalogue {(twice or ['spectra'])[0]!r}: give it another 'name'")
        for number, entry in enumerate(given):
            # Catalogues are matched in order: a later one has no rows yet to go by.
            if entry.match.via is not None and entry.match.via not in titles[:number]:
                before = titles[:number]
                raise ValueError(
                    f"{entry.title}: 'via' names {entry.match.via!r}, which is no [[catalogue]] "
                    f"above it{suggestion(entry.match.via, before)} (above it stand: "
                    f"{', '.join(before) or 'none'}); put that one, such as an observing log, "
                    "first"
                )
        return given

    @field_validator("label")
    @classmethod
    def _defined(cls, given: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        try:
            labels.parse(given)
        except ConfigError as error:
            # Of this kind, which pydantic collects: all mistakes of a file are told at once.
            raise ValueError(str(error)) from error
        return given

    @property
    def references(self) -> tuple[CatalogueEntry, ...]:
        """Catalogues that give labels, the first of which sets the scale."""
        return tuple(entry for entry in self.catalogue if entry.role == "reference")


def load_recipe(path: Path | str) -> BuildRecipe:
    """Read a recipe; paths in it become relative to the file.

    Raises
    ------
    ConfigError
        If it is not TOML, or naming everything that is wrong in it, at once.
    """
    path = Path(path)
    document = read_toml(path, what="the recipe")
    problems: list[str] = []
    recipe = validated(document, BuildRecipe, problems)
    if recipe is None:
        raise ConfigError(f"{path} is wrong: {'; '.join(problems)}")
    # Relative to the recipe, not to where the command runs: it moves with its files.
    base = path.absolute().parent
    return recipe.model_copy(
        update={
            "spectra": recipe.spectra.model_copy(
                update={
                    **_rooted(recipe.spectra, base, ("store", "ingest", "path")),
                    "recipe": _recipe_at(recipe.spectra.recipe, base),
                }
            ),
            "catalogue": tuple(
                entry.model_copy(
                    update={
                        **_rooted(entry, base, ("file",)),
                        "recipe": _recipe_at(entry.recipe, base),
                        "name": entry.title,
                    }
                )
                for entry in recipe.catalogue
            ),
        }
    )


def _rooted(entry: Strict, base: Path, names: tuple[str, ...]) -> dict[str, Any]:
    given = {name: getattr(entry, name) for name in names}
    # An absolute path stays what it is: pathlib drops the base before one.
    return {name: None if value is None else base / value for name, value in given.items()}


def _recipe_at(name: str | None, base: Path) -> str | None:
    # Anything else is the name of a recipe of the package, and no path.
    return str(base / name) if name is not None and name.endswith(".toml") else name
