"""Which row of a catalogue is which spectrum, and which spectra are therefore of one star."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from maury.errors import ConfigError
from maury.io.arrays import Int64Array, StrArray
from maury.spectra.star_identity import linked
from maury.survey.assembly.build_catalogues import CutCatalogue
from maury.survey.assembly.build_spectra import SpectraSource
from maury.survey.assembly.flow import Flow
from maury.survey.crossmatch import (
    Match,
    MatchFlag,
    Positions,
    match_identifiers,
    match_positions,
)

logger = logging.getLogger(__name__)
_LOSSES = (
    MatchFlag.NO_IDENTIFIER,
    MatchFlag.NO_POSITION,
    MatchFlag.NONE_FOUND,
    MatchFlag.DROPPED,
)


def match_catalogue(
    spectra: SpectraSource,
    catalogue: CutCatalogue,
    earlier: Mapping[str, tuple[CutCatalogue, Int64Array]],
    flow: Flow,
) -> Int64Array:
    """Match a catalogue to the spectra, and take down what became of them.

    Parameters
    ----------
    spectra : SpectraSource
    catalogue : CutCatalogue
    earlier : mapping of str to (CutCatalogue, (n_spectra,) int)
        Catalogues that are matched already, for `via`.
    flow : Flow

    Returns
    -------
    rows : (n_spectra,) int64
        Row of the (cut) catalogue for each spectrum, or -1.
    """
    wanted = catalogue.entry.match
    if wanted.by == "id":
        if wanted.via is None:
            _require_column(spectra, catalogue, earlier)
            left = spectra.texts(wanted.spectra)
        else:
            other, index = earlier[wanted.via]
            ids = other.identifiers(wanted.spectra)
            left = np.where(index >= 0, ids[np.maximum(index, 0)], "")
        match = match_identifiers(
            left, catalogue.identifiers(wanted.catalogue), ambiguous="drop", duplicates="flag"
        )
    else:
        positions = (
            spectra.positions()
            if wanted.via is None
            else _via(*earlier[wanted.via], spectra.epoch_yr)
        )
        match = match_positions(
            positions,
            catalogue.positions(spectra.epoch_yr),
            wanted.radius,
            # Several spectra of one star share a row rightly.
            ambiguous=wanted.ambiguous,
            duplicates="flag",
        )
    _note(catalogue, match, flow)
    return match.index


def _require_column(
    spectra: SpectraSource,
    catalogue: CutCatalogue,
    earlier: Mapping[str, tuple[CutCatalogue, Int64Array]],
) -> None:
    """Say by way of which catalogue the identifiers are known that the spectra lack themselves."""
    name = catalogue.entry.match.spectra
    holders = [title for title, (other, _) in earlier.items() if name in other.table.names]
    if name not in spectra.columns and holders:
        raise ConfigError(
            f"{catalogue.title}: the spectra have no column {name!r}, but {holders[0]} has; write "
            f'match = {{ by = "id", via = "{holders[0]}", spectra = "{name}", ... }}'
        )


def _via(catalogue: CutCatalogue, index: Int64Array, epoch_yr: float) -> Positions:
    positions = catalogue.positions(epoch_yr)
    taken = positions.take(np.maximum(index, 0))
    return Positions(
        # A spectrum without a row has no position, and is matched to nothing.
        np.where(index >= 0, taken.ra_deg, np.nan),
        taken.dec_deg,
        taken.epoch_yr,
        taken.pmra_masyr,
        taken.pmdec_masyr,
    )


def _note(catalogue: CutCatalogue, match: Match, flow: Flow) -> None:
    """Take down the spectra that a match lost, by the first reason that holds."""
    left = np.ones(len(match), dtype=np.bool_)
    wanted = catalogue.entry.match
    way = f"{wanted.by}: {wanted.spectra} = {wanted.catalogue}"
    if wanted.by == "position":
        way = f"position within {wanted.radius:g} arcsec"
    way += f", via {wanted.via}" if wanted.via else ""
    for flag in _LOSSES:
        out = left & match.has(flag) & ~match.matched
        if out.any():
            why = "several candidates" if flag is MatchFlag.DROPPED else flag.text
            flow.add(
                f"spectra in {catalogue.title}",
                str(flag.name).lower().replace("_", "-"),
                left.sum(),
                (left & ~out).sum(),
                why=why,
                source=way,
            )
            left &= ~out
    if not match.matched.any():
        logger.warning(
            "no spectrum is matched to %s (%s); %s",
            catalogue.title,
            way,
            _advice(catalogue),
        )
    flow.add(
        f"spectra in {catalogue.title}",
        "matched",
        left.sum(),
        match.matched.sum(),
        why=_claims(match),
        source=way,
    )


def _advice(catalogue: CutCatalogue) -> str:
    """Return what may be wrong with a match that found nothing."""
    match = catalogue.entry.match
    if match.by == "position":
        return "compare epochs and units of both positions"
    of = match.via or "the spectra"
    return (
        f"compare the identifiers {match.spectra!r} of {of} (key 'spectra') and "
        f"{match.catalogue!r} of the table (key 'catalogue'); if another table, such as an "
        "observing log, knows both, give it as a [[catalogue]] above, and name it by 'via'"
    )


def _claims(match: Match) -> str:
    n = int((match.matched & match.has(MatchFlag.CLAIMED)).sum())
    return (
        f"have a row of the catalogue; {n} share theirs with other spectra"
        if n
        else ("have a row of the catalogue")
    )


def one_star(star_id: StrArray, matches: Sequence[Int64Array]) -> StrArray:
    """Return star identifiers, equal for all spectra that share a row of any catalogue.

    Parameters
    ----------
    star_id : (n_star,) str
        As the spectra have it.
    matches : sequence of (n_star,) int
        Row of each catalogue, or -1.
    """
    n_star = star_id.size
    groups = [np.unique(star_id, return_inverse=True)[1].astype(np.int64), *matches]
    ones, others, nodes = [], [], n_star
    for group in groups:
        known = np.flatnonzero(group >= 0)
        ones.append(known)
        others.append(nodes + group[known])
        nodes += int(group.max(initial=-1)) + 1
    # Chains count: spectra 1 and 2 share a row of one catalogue, 2 and 3 of another, and all three
    # are of one star.
    component = linked(nodes, np.concatenate(ones), np.concatenate(others))[:n_star]
    _, first, member = np.unique(component, return_index=True, return_inverse=True)
    # An identifier that one of them had, as a new one could be looked up nowhere.
    return star_id[first[member]]
