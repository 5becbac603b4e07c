"""Sphinx directives that write tables from the definitions in the code and the bibliography.

``labels-table``, ``columns-table``, ``catalogue-table``, ``flags-table``, ``errors-table``,
``layers-table``, ``surveys-table``, ``survey-recipes`` and ``references-list`` take no arguments.
"""

import ast
import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

from maury import errors
from maury.labels import (
    columns,
    flags,
)
from maury.labels import (
    definitions as labels,
)
from maury.labels import (
    references as bibliography,
)
from maury.prediction.catalogue import CatalogueSpec
from maury.survey import archives as surveys
from maury.survey.archives import describing

ROOT = Path(__file__).resolve().parents[2]

Cell = str | nodes.Node
Rows = Iterable[tuple[Cell, ...]]


def code(text: str) -> nodes.literal:
    """Return text in code style."""
    return nodes.literal(text, text)


def table(header: tuple[str, ...], rows: Rows, widths: tuple[int, ...]) -> nodes.table:
    """Return a table; widths are relative."""
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", table_row(header))
    group += nodes.tbody("", *(table_row(row) for row in rows))
    return nodes.table("", group, classes=["colwidths-given"])


def table_row(cells: tuple[Cell, ...]) -> nodes.row:
    """Return one row of texts or inline nodes."""
    row = nodes.row()
    for cell in cells:
        content = nodes.Text(cell) if isinstance(cell, str) else cell
        row += nodes.entry("", nodes.paragraph("", "", content))
    return row


def labels_table() -> nodes.table:
    """Return the default labels."""
    rows = [
        (
            code(label.name),
            label.symbol,
            label.unit,
            f"{label.range[0]:g} to {label.range[1]:g}",
            label.description,
            code(label.ucd),
        )
        for label in labels.LABELS
    ]
    header = ("name", "symbol", "unit", "plotted", "description", "UCD")
    return table(header, rows, (12, 12, 8, 18, 38, 26))


def column_rows(given: Iterable[columns.Column]) -> Iterator[tuple[Cell, ...]]:
    """Yield one row of cells per column."""
    for column in given:
        yield (
            code(column.name),
            code(column.kind),
            column.unit,
            column.description,
            code(column.ucd),
        )


COLUMN_HEADER = ("column", "type", "unit", "description", "UCD")
COLUMN_WIDTHS = (24, 10, 8, 40, 26)


def columns_table() -> nodes.table:
    """Return the columns that a survey may have."""
    return table(COLUMN_HEADER, column_rows(columns.OBSERVED), COLUMN_WIDTHS)


def catalogue_table() -> nodes.table:
    """Return the columns of a catalogue of the default labels."""
    known = columns.known()
    spec = CatalogueSpec.for_labels(
        labels.LABELS,
        survey_columns=known,
        metadata={},
        quantiles=True,
        coverage=True,
        error_parts=True,
    )
    return table(COLUMN_HEADER, column_rows(spec.columns), COLUMN_WIDTHS)


def flags_table() -> nodes.table:
    """Return the flags with their bits and what to do about each."""
    rows = [
        (
            str(flag.value.bit_length() - 1),
            str(flag.value),
            code(str(flag.name)),
            "yes" if flag.warns else "",
            flag.text,
            flag.remedy,
        )
        for flag in flags.Flag
    ]
    header = ("bit", "value", "name", "warns", "meaning", "what to do")
    return table(header, rows, (5, 8, 26, 8, 40, 50))


def errors_table() -> nodes.table:
    """Return the errors and their remedies, in the order of the module."""
    classes = [
        item
        for _, item in inspect.getmembers(errors, inspect.isclass)
        if issubclass(item, errors.MauryError)
    ]
    classes.sort(key=lambda item: inspect.getsourcelines(item)[1])
    rows = [(code(item.__name__), inspect.cleandoc(str(item.__doc__))) for item in classes]
    return table(("error", "remedy"), rows, (22, 70))


def layers() -> list[list[str]]:
    """Read the modules of each layer, lowest first, from the import contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if one["type"] == "layers")
    return [re.findall(r"\w+", layer) for layer in reversed(contract["layers"])]


def summary(module: str) -> str:
    """Return the first line of a module's docstring, without importing it."""
    package = ROOT / "src" / "maury"
    path = next(
        p for p in (package / f"{module}.py", package / module / "__init__.py") if p.exists()
    )
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("`", "")


def layers_table() -> nodes.table:
    """Return the layers with their modules."""
    rows = [
        (str(number) if first else "", code(module), summary(module))
        for number, layer in enumerate(layers(), start=1)
        for first, module in ((module == layer[0], module) for module in layer)
    ]
    return table(("layer", "module", "what"), rows, (8, 18, 80))


def references() -> list[dict[str, str]]:
    """Return the bibliography as text."""
    return [
        {"kind": entry.kind, "key": entry.key}
        | {name: bibliography.plain(value) for name, value in entry.fields.items()}
        for entry in bibliography.entries().values()
    ]


def authors(text: str) -> str:
    """Turn BibTeX authors into those of a citation: ``A and B``, ``A, B and C``, ``A et al.``."""
    names = text.split(" and ")
    if names[-1] == "others":
        return f"{', '.join(names[:-1])} et al."
    return " and ".join(filter(None, ("; ".join(names[:-1]), names[-1])))


def references_list() -> nodes.Element:
    """Return the bibliography, sorted by author and year."""
    out = nodes.bullet_list()
    papers = [entry for entry in references() if entry["kind"] != "software"]
    for entry in sorted(papers, key=lambda e: (e["author"], e["year"])):
        parts = ("journal", "booktitle", "volume", "pages")
        place = ", ".join(entry[k] for k in parts if k in entry)
        text = f"{authors(entry['author'])} ({entry['year']}): {entry['title']}. "
        paragraph = nodes.paragraph("", text)
        paragraph += nodes.reference("", place or entry["key"], refuri=entry["url"])
        paragraph += nodes.Text(f". Used for {entry['note']}.")
        out += nodes.list_item("", paragraph)
    return out


def surveys_table() -> nodes.table:
    """Return the recipes of public surveys."""
    rows = []
    for name in surveys.names():
        recipe = surveys.load(name)
        rows.append((code(name), describing.KINDS[recipe.kind], recipe.title))
    return table(("name", "what", "title"), rows, (22, 18, 60))


def source_of(text: str) -> nodes.Node:
    """Return a link to a web page or to a paper of the bibliography."""
    entry = bibliography.entries().get(text)
    if entry is None:
        return nodes.reference("", "web page", refuri=text)
    author = bibliography.plain(entry.fields["author"]).split(" and ")[0]
    return nodes.reference("", f"{author} ({entry.fields['year']})", refuri=entry.fields["url"])


def survey_recipes() -> nodes.Element:
    """Return what each recipe says."""
    out = nodes.container()
    for name in surveys.names():
        recipe = surveys.load(name)
        out += nodes.rubric("", f"{recipe.name}: {recipe.title}")
        out += nodes.paragraph("", recipe.description)
        facts = [
            (key, nodes.reference("", value, refuri=value) if value.startswith("http") else value)
            for key, value in describing.facts(recipe, bibliography.entries())
        ]
        out += table(("", ""), facts, (18, 82))
        if recipe.cut:
            cuts = [
                (code(cut), code(test), default, why, source_of(source))
                for cut, test, default, why, source in describing.cuts(recipe)
            ]
            out += table(
                ("cut", "keeps", "default", "against", "source"), cuts, (14, 30, 8, 34, 14)
            )
        if recipe.columns:
            given = [
                (code(column), code(source), unit)
                for column, source, unit, _ in describing.columns(recipe)
            ]
            out += table(("column", "from", "unit"), given, (30, 50, 20))
    return out


def directive(make: Callable[[], nodes.Element]) -> type[Directive]:
    """Return a directive without arguments that writes what `make` returns."""

    class Generated(Directive):
        def run(self) -> list[nodes.Node]:
            self.state.document.settings.env.note_dependency(str(bibliography.BIBLIOGRAPHY))
            return [make()]

    return Generated


def setup(app: Any) -> dict[str, bool]:
    """Register the directives."""
    made = (
        labels_table,
        columns_table,
        catalogue_table,
        flags_table,
        errors_table,
        layers_table,
        surveys_table,
        survey_recipes,
        references_list,
    )
    for make in made:
        app.add_directive(make.__name__.replace("_", "-"), directive(make))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
