"""Labels of the reference surveys on one scale: conventions converted, offsets taken off."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maury.errors import ConfigError, check_known
from maury.io.arrays import Int64Array
from maury.labels import abundances as conventions
from maury.labels import definitions as labels_module
from maury.labels.abundances import Convention
from maury.labels.definitions import Label
from maury.labels.solar import SCALES
from maury.survey.assembly.build_catalogues import CutCatalogue
from maury.survey.assembly.build_file import BuildRecipe
from maury.survey.assembly.flow import Flow
from maury.survey.assembly.offsets import (
    MIXTURE_KEY,
    Merged,
    Offsets,
    ReferenceLabels,
    fit_offsets,
    merge,
)
from maury.survey.crossmatch import match_identifiers, match_positions

logger = logging.getLogger(__name__)

_EPOCH_YR = 2000.0
"""Of positions whose recipe gives no epoch: J2000, that of most catalogues before Gaia."""


@dataclass(frozen=True)
class References:
    """Reference catalogues, their labels converted.

    Attributes
    ----------
    catalogues : tuple of CutCatalogue
    labels : tuple of ReferenceLabels
        One row for each row of the catalogue.
    definitions : tuple of Label
    offsets : mapping of str to Offsets
        Of each further reference.
    notes : mapping
        What was converted how, and what was assumed, as JSON.
    """

    catalogues: tuple[CutCatalogue, ...]
    labels: tuple[ReferenceLabels, ...]
    definitions: tuple[Label, ...]
    offsets: Mapping[str, Offsets]
    notes: Mapping[str, Any]

    @property
    def citation(self) -> list[str]:
        """Bibliography keys of the conversions that were made."""
        moves = [note for note in self.notes["conversions"].values() if note["to"]]
        scales = {note[way] for note in moves for way in ("from", "to")} - {None}
        keys = [SCALES[name].bibtex_key for name in sorted(scales)]
        ways = [way for note in self.notes["conversions"].values() for way in note["how"].values()]
        keys += [conventions.SALARIS_KEY] if conventions.SALARIS_WAY in ways else []
        return keys + ([MIXTURE_KEY] if self.offsets else [])

    def of_spectra(self, matches: Mapping[str, Int64Array], flow: Flow) -> Merged:
        """Return the labels of each spectrum, on the scale of the first reference."""
        aligned = [
            _taken(labels, matches[catalogue.title])
            for catalogue, labels in zip(self.catalogues, self.labels, strict=True)
        ]
        merged = merge(aligned, self.offsets)
        left = merged.survey.size
        for reference in aligned:
            n = int((merged.survey == reference.survey).sum())
            flow.add(
                "spectra without labels",
                f"labels-of-{reference.survey}",
                left,
                left - n,
                why=f"{n} spectra take their labels from {reference.survey}",
                source="recipe",
            )
            left -= n
        return merged


def prepare_references(
    recipe: BuildRecipe, catalogues: Sequence[CutCatalogue], flow: Flow
) -> References:
    """Convert the labels of the references, and fit the offsets between them.

    Raises
    ------
    ConfigError
        If a label is wanted that no reference has, or scales are not stated and differ.
    TrainingError
        If references have too few stars in common.
    """
    definitions: tuple[Label, ...] = labels_module.LABELS
    for catalogue in catalogues:
        definitions = labels_module.extend(catalogue.recipe.labels, definitions)
    definitions = labels_module.extend(labels_module.parse(recipe.label), definitions)
    held = list(dict.fromkeys(n for c in catalogues for n in c.label_names))
    wanted = list(recipe.labels.names or held)
    for name in wanted:
        check_known("label", name, [label.name for label in definitions])
    target = _target(recipe, catalogues, wanted)
    labels, notes = [], {}
    for catalogue in catalogues:
        converted, note = _converted(recipe, catalogue, wanted, target)
        labels.append(converted)
        notes[catalogue.title] = note
    offsets: dict[str, Offsets] = {}
    if recipe.offsets.fit:
        for number in range(1, len(labels)):
            # Each is tied to the first itself: offsets in a chain would add up their errors.
            pair = _overlap(recipe, catalogues[0], catalogues[number])
            one, two = _taken(labels[0], pair[0]), _taken(labels[number], pair[1])
            flow.add(
                catalogues[number].title,
                "overlap",
                len(catalogues[number]),
                len(catalogues[number]),
                why=f"{pair[0].size} stars in common with {catalogues[0].title} tie its scale",
                source=f"offsets: {', '.join(recipe.offsets.terms) or 'constant'}",
            )
            offsets[two.survey] = fit_offsets(one, two, terms=recipe.offsets.terms)
    return References(
        tuple(catalogues), tuple(labels), definitions, offsets, {"conversions": notes}
    )


def _target(
    recipe: BuildRecipe, catalogues: Sequence[CutCatalogue], wanted: Sequence[str]
) -> Convention:
    """Where labels go: as stated, else where the first reference is."""
    stated = recipe.labels.convention
    facts = catalogues[0].recipe.abundances
    first = facts.convention if facts is not None else Convention()
    scales = {c.recipe.abundances.solar_scale if c.recipe.abundances else None for c in catalogues}
    # Teff and log g know no solar scale; only abundances must state theirs.
    abundant = any(conventions.parse(name) for name in wanted)
    # Two solar scales differ by a constant for each element, which a fitted offset takes up.
    if stated.solar_scale is None and len(scales) > 1 and abundant and not recipe.offsets.fit:
        raise ConfigError(
            f"the references are on different solar scales ({', '.join(map(str, scales))}); state "
            "'solar_scale' in [labels]"
        )
    # A single reference stays as it is published: there is nothing to bring it in line with.
    several = len(catalogues) > 1 and None not in scales
    scale = stated.solar_scale or (first.solar_scale if several else None)
    return Convention(scale, stated.alpha)


def _converted(
    recipe: BuildRecipe, catalogue: CutCatalogue, wanted: Sequence[str], target: Convention
) -> tuple[ReferenceLabels, dict[str, Any]]:
    facts = catalogue.recipe.abundances
    names = catalogue.label_names
    values, errors = catalogue.labels(names)
    made = conventions.convert(
        values,
        names,
        wanted,
        errors=errors,
        correlation=recipe.labels.correlation,
        source=facts.convention if facts is not None else Convention(),
        target=target,
        salaris=recipe.labels.salaris,
    )
    absent = [name for name in wanted if not np.isfinite(made.values[:, wanted.index(name)]).any()]
    if len(absent) == len(wanted):
        raise ConfigError(
            f"{catalogue.title} gives none of the wanted labels {', '.join(wanted)} (it has "
            f'{", ".join(names) or "none"}); take other labels, or role = "columns"'
        )
    if absent:
        logger.warning("%s gives no %s", catalogue.title, ", ".join(absent))
    note = {
        "how": dict(made.how),
        "assumed": made.assumed,
        "from": facts.solar_scale if facts is not None else None,
        "to": target.solar_scale,
    }
    return ReferenceLabels(catalogue.title, made.names, made.values, made.errors), note


def _taken(labels: ReferenceLabels, rows: Int64Array) -> ReferenceLabels:
    """Labels of the given rows, NaN where a row is -1."""
    known = (rows >= 0)[:, None]
    index = np.maximum(rows, 0)
    return ReferenceLabels(
        labels.survey,
        labels.names,
        np.where(known, labels.values[index], np.nan),
        np.where(known, labels.errors[index], np.nan),
    )


def _overlap(
    recipe: BuildRecipe, first: CutCatalogue, second: CutCatalogue
) -> tuple[Int64Array, Int64Array]:
    """Rows of both catalogues that are certainly one star: by a shared identifier, or position."""
    shared = [
        kind
        for kind in (first.recipe.id.other if first.recipe.id else {})
        if second.recipe.id and kind in second.recipe.id.other
    ]
    for kind in shared:
        # A wrong pair falsifies an offset, a lost one costs little: what is doubtful is dropped.
        match = match_identifiers(
            second.identifiers(kind), first.identifiers(kind), ambiguous="drop", duplicates="drop"
        )
        # Both may name a kind of identifier and yet share no star by it: the next one is tried.
        if match.matched.any():
            break
    else:
        match = match_positions(
            second.positions(_EPOCH_YR),
            first.positions(_EPOCH_YR),
            recipe.offsets.radius,
            ambiguous="drop",
            duplicates="drop",
        )
    rows = np.flatnonzero(match.certain)
    return match.index[rows], rows.astype(np.int64)
