"""What a recipe says, as rows of text for the command line and the documentation."""

from collections.abc import Mapping

from maury.labels.references import Entry
from maury.survey.archives.recipe import SurveyRecipe
from maury.survey.readers.config import (
    ColumnConfig,
    ResampleConfig,
)

Rows = list[tuple[str, ...]]


KINDS: Mapping[str, str] = {
    "catalogue": "catalogue",
    "spectra": "spectra",
    "both": "spectra, catalogue",
}


def facts(recipe: SurveyRecipe, bibliography: Mapping[str, Entry]) -> Rows:
    """Return name and value of what is not a table: identifiers, positions, spectra, papers."""
    rows: Rows = [("data model", recipe.documentation)]
    if recipe.id is not None:
        other = "".join(f"; {survey}: {name}" for survey, name in recipe.id.other.items())
        rows.append(("identifier", recipe.id.column + other))
    place = recipe.position
    if place is not None:
        motion = f", {place.pmra}, {place.pmdec}" if place.pmra else ""
        epoch = "" if place.epoch is None else f"; epoch {place.epoch}"
        rows.append(("position", f"{place.ra}, {place.dec}{motion} ({place.system}{epoch})"))
    if recipe.abundances is not None:
        rows.append(("abundances", _abundances(recipe)))
    rows += _spectra(recipe)
    cited = [bibliography[key].fields for key in recipe.citation if key in bibliography]
    rows += [("cite", f"{one['author'].split(' and ')[0]} ({one['year']})") for one in cited]
    rows += [("acknowledge", recipe.acknowledgement)] if recipe.acknowledgement else []
    rows += [("licence", recipe.licence)] if recipe.licence else []
    return rows


def files(recipe: SurveyRecipe) -> Rows:
    """Return name, note and address of each public file."""
    rows: Rows = [(file.name, file.note, file.url) for file in recipe.file]
    query = recipe.query
    return rows + ([] if query is None else [(query.name, query.note, f"query to {query.service}")])


def columns(recipe: SurveyRecipe) -> Rows:
    """Return column of maury, column of the catalogue, its unit, and what it is."""
    rows: Rows = []
    for name, source in recipe.columns.items():
        parts = recipe.parts(name)
        title = name if len(parts) == 1 else f"{parts[0].name} to {parts[-1].name}"
        rows.append((title, _source(source), source.unit or parts[0].unit, parts[0].description))
    return rows


def cuts(recipe: SurveyRecipe) -> Rows:
    """Return name, condition, default, reason and source of each cut."""
    return [
        (cut.name, str(cut), "on" if cut.default else "off", cut.why, cut.source)
        for cut in recipe.cut
    ]


def _source(column: ColumnConfig) -> str:
    name = column.name if column.index is None else f"{column.name}[{column.index}]"
    return name + (f" {column.offset:+g}" if column.offset else "")


def _abundances(recipe: SurveyRecipe) -> str:
    stated = recipe.abundances
    assert stated is not None, "the caller has looked"
    ratio = {"x_h": "[X/H]", "x_fe": "[X/Fe]", "x_m": "[X/M]", None: ""}[stated.ratio]
    scale = f"solar scale {stated.solar_scale}" if stated.solar_scale else "solar scale not stated"
    alpha = f"alpha of {', '.join(stated.alpha)}" if stated.alpha else ""
    return "; ".join(filter(None, (ratio, scale, alpha)))


def _spectra(recipe: SurveyRecipe) -> Rows:
    spectra = recipe.spectra
    if spectra is None:
        return []
    states: list[str] = [spectra.medium or "air or vacuum as the files say"]
    # What is not stated is not the same as not at rest: nothing is said then.
    states += {True: ["at rest"], False: ["not at rest"], None: []}[spectra.at_rest]
    states += ["normalised"] if spectra.normalised else ["not normalised"]
    states += [f"R = {spectra.resolving_power:g}"] if spectra.resolving_power else []
    rows: Rows = [("spectra", f"reader {spectra.reader}: {', '.join(states)}{_grid(spectra.grid)}")]
    for arm in spectra.arm:
        power = f", R = {arm.resolving_power:g}" if arm.resolving_power else ""
        rows.append(
            (f"arm {arm.name}", f"reader {arm.reader or spectra.reader}{power}{_grid(arm.grid)}")
        )
    rows += [("note", spectra.note)] if spectra.note else []
    return rows


def _grid(grid: ResampleConfig | None) -> str:
    if grid is None:
        return ""
    if grid.log:
        first, last = 10.0**grid.start, 10.0 ** (grid.start + grid.step * (grid.n - 1))
        return f"; put on {first:.1f}-{last:.1f} A, log10 step {grid.step:g}, {grid.n} pixels"
    last = grid.start + grid.step * (grid.n - 1)
    return f"; put on {grid.start:g}-{last:g} A, step {grid.step:g} A, {grid.n} pixels"
