"""What the labels say: Kiel diagrams, abundances, independent checks, the methods side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from maury.evaluation.ranking import ALL, GIVEN
from maury.io.arrays import AnyArray, BoolArray, Float64Array
from maury.labels.definitions import LABELS, Label, select
from maury.report import figures
from maury.report.cartography.bimodality import Bimodality, bimodality
from maury.report.figures import checks
from maury.report.figures.cartography import separation_text
from maury.report.figures.planes import Panel
from maury.report.page.material import Material, PageStars, kiel_labels, match, metallicity
from maury.report.page.plates import Omitted, Plate, Rows, Section, sort_out
from maury.report.page.quality import mark

Found = Iterator[Plate | Omitted]

# Chosen, not measured: poor, usual, good and best spectra of RAVE.
SNR_EDGES = (0.0, 25.0, 40.0, 60.0, np.inf)
M_H_EDGES = (-np.inf, -0.6, -0.3, 0.0, np.inf)
# [M/H] where both sequences of the disc are found, a tenth of a dex wide where stars are many.
BIMODAL_EDGES = (-0.8, -0.5, -0.4, -0.3, -0.2, -0.1, 0.1)
_MINUS = "\N{MINUS SIGN}"


def stars_section(material: Material) -> Section:
    """Return Kiel diagrams of labels and predictions, in bins of S/N and of metallicity."""
    if not kiel_labels(material.model.labels):
        missing = Omitted("Kiel diagrams", "the model lacks Teff, log g, or both [M/H] and [Fe/H]")
        return Section("stars", "Kiel diagrams", omitted=(missing,))
    plates, omitted = sort_out(list(_kiels(material)))
    return Section(
        "stars",
        "Kiel diagrams",
        plates,
        (*omitted, Omitted("Isochrones", "no free set of them ships with maury")),
    )


def _kiel_panel(material: Material, sample: PageStars, title: str, rows: Any, truth: bool) -> Panel:
    names = [label.name for label in kiel_labels(material.model.labels)]
    teff, logg, iron = (material.column(sample, name, truth=truth)[rows] for name in names)
    return Panel(title, teff, logg, iron)


def _kiels(material: Material) -> Found:
    panels = []
    for name, sample in material.samples.items():
        every = np.ones(len(sample), np.bool_)
        if name != "observed":
            panels.append(_kiel_panel(material, sample, f"{name}: labels", every, True))
            panels.append(_kiel_panel(material, sample, f"{name}: predicted", every, False))
        else:
            panels.append(_kiel_panel(material, sample, "observed: predicted", every, False))
            panels.append(_kiel_panel(material, sample, "observed, no warning", sample.good, False))
    yield _kiel_plate(
        material,
        "kiel_samples",
        "Kiel diagrams of training, test and observed stars",
        "Reference labels and predictions of each sample",
        panels,
    )
    stars = material.stars_with_most
    assert stars is not None, "a report has observed or labelled stars"
    iron = kiel_labels(material.model.labels)[-1]
    for name, values, edges, text in (
        ("snr", stars.snr, SNR_EDGES, "S/N"),
        (iron.name, material.column(stars, iron.name), M_H_EDGES, iron.symbol),
    ):
        parts = [
            _kiel_panel(
                material,
                stars,
                _bin_text(text, low, high),
                (values >= low) & (values < high) & stars.good,
                False,
            )
            for low, high in pairwise(edges)
        ]
        yield _kiel_plate(
            material,
            f"kiel_{name}",
            f"Kiel diagrams in bins of {text}",
            f"Predictions of {stars.name} stars without a warning flag, in bins of {text}",
            parts,
        )


def _bin_text(name: str, low: float, high: float) -> str:
    low_text, high_text = (f"{value:g}".replace("-", _MINUS) for value in (low, high))
    if not np.isfinite(low) or (name == "S/N" and low == 0.0):
        return f"{name} < {high_text}"
    if not np.isfinite(high):
        return f"{name} \N{GREATER-THAN OR EQUAL TO} {low_text}"
    return f"{name} {low_text} to {high_text}"


def _kiel_plate(
    material: Material, name: str, title: str, text: str, panels: Sequence[Panel]
) -> Plate:
    labels = kiel_labels(material.model.labels)
    iron = labels[-1]
    return Plate(
        name,
        title,
        f"{mark(material)}{text}, coloured by {iron.symbol}; of more than 20 000 stars, the mean "
        f"{iron.symbol} of each cell is drawn.",
        figures.kiel_grid(panels, across=2, label=iron, simulated=material.simulated),
        _panel_data(panels, tuple(label.name for label in labels)),
    )


def _panel_data(panels: Sequence[Panel], names: tuple[str, ...]) -> dict[str, Any]:
    """Columns of panels one below the other."""
    data: dict[str, Any] = {
        "panel": np.concatenate([np.full(np.shape(one.x), one.title) for one in panels])
    }
    for key, name in zip(("x", "y", "colour"), names, strict=False):
        data[name] = np.concatenate([np.asarray(getattr(one, key)) for one in panels])
    return data


def abundances_section(material: Material) -> Section:
    """Return [alpha/M] against [M/H], elements against iron, slices, and the bimodality."""
    names = material.model.label_names
    both = {"m_h", "alpha_m"} <= set(names)
    stars = material.stars_with_most
    assert stars is not None, "a report has observed or labelled stars"
    planes = _planes(material)
    if not planes:
        missing = Omitted(
            "Abundance planes", "the model lacks a metallicity or a further abundance"
        )
        return Section("abundances", "Abundances", omitted=(missing,))
    if not both:
        missing = Omitted("Sequences of [alpha/M]", "the model lacks [M/H] or [alpha/M]")
        plate = _elements(material, stars, planes)
        return Section("abundances", "Abundances", (plate,), omitted=(missing,))
    found: list[Plate | Omitted] = [_elements(material, stars, planes), _slices(material, stars)]
    fitted = [_bimodality(material, stars, truth=False)]
    training = material.samples.get("training")
    if training is not None:
        fitted.append(_bimodality(material, training, truth=True))
    plates, omitted = sort_out([*found, *(plate for plate, _ in fitted)])
    tables = tuple(table for _, table in fitted)
    return Section("abundances", "Abundances", plates, omitted, tables=tables)


def _planes(material: Material) -> list[tuple[str, str]]:
    """Return what stands across and up: [alpha/M] by [M/H], every [X/Fe] by [Fe/H]; else what is.

    Each falls back on the other metallicity, where the model has only one.
    """
    names, metals = material.model.label_names, metallicity(material.labels)
    if metals is None:
        return []
    iron = "fe_h" if "fe_h" in names else metals.name
    alpha = [(metals.name, "alpha_m")] if "alpha_m" in names else []
    return [*alpha, *((iron, name) for name in names if name.endswith("_fe"))]


def _elements(material: Material, stars: PageStars, planes: Sequence[tuple[str, str]]) -> Plate:
    good = stars.good
    x = {name: material.column(stars, name)[good] for name, _ in planes}
    y = {name: material.column(stars, name)[good] for _, name in planes}
    definitions = {one.name: one for one in (*LABELS, *material.labels)}
    return Plate(
        "elements",
        "Abundance planes",
        f"{mark(material)}Abundances against metallicity, of "
        f"{int(good.sum())} {stars.name} stars without a warning flag: logarithm of the number of "
        "stars where a cell holds at least four, single stars elsewhere.",
        figures.elements_figure(
            [x[one] for one, _ in planes],
            [y[one] for _, one in planes],
            labels=[(definitions[a], definitions[b]) for a, b in planes],
            simulated=material.simulated,
        ),
        {"id": stars.id[good], **x, **y},
    )


def _slices(material: Material, stars: PageStars) -> Plate:
    teff, logg = material.column(stars, "teff"), material.column(stars, "logg")
    m_h, alpha = material.column(stars, "m_h"), material.column(stars, "alpha_m")
    cuts: list[tuple[str, BoolArray]] = [
        ("log g < 2.2", logg < 2.2),
        ("log g 2.2 to 3.5", (logg >= 2.2) & (logg < 3.5)),
        ("log g \N{GREATER-THAN OR EQUAL TO} 3.5", logg >= 3.5),
        ("Teff < 4600 K", teff < 4600),
        ("Teff 4600 to 5200 K", (teff >= 4600) & (teff < 5200)),
        ("Teff \N{GREATER-THAN OR EQUAL TO} 5200 K", teff >= 5200),
    ]
    panels = [Panel(text, m_h[rows & stars.good], alpha[rows & stars.good]) for text, rows in cuts]
    return Plate(
        "alpha_slices",
        "[alpha/M] in slices of log g and Teff",
        f"{mark(material)}[alpha/M] against [M/H] of {stars.name} stars without a warning flag, in "
        "slices of log g (top) and Teff (bottom). Sequences that shift from slice to slice are "
        "systematic errors, not chemistry.",
        figures.plane_grid(panels, across=3, simulated=material.simulated),
        _panel_data(panels, ("m_h", "alpha_m")),
    )


def _bimodality(
    material: Material, sample: PageStars, *, truth: bool
) -> tuple[Plate, tuple[str, Rows]]:
    """Fit two sequences of [alpha/M] in bins of [M/H]; the plate and a table."""
    m_h = material.column(sample, "m_h", truth=truth)
    alpha = material.column(sample, "alpha_m", truth=truth)
    usable = np.isfinite(alpha) & (sample.good | truth)
    rng = np.random.default_rng(5)
    parts = []
    rows: Rows = [_BIMODALITY_HEADER]
    data: dict[str, list[Any]] = {name: [] for name in _BIMODALITY_COLUMNS}
    for low, high in pairwise(BIMODAL_EDGES):
        inside = usable & (m_h >= low) & (m_h < high)
        found = bimodality(alpha[inside], np.zeros(int(inside.sum())), rng=rng)
        text = _bin_text("[M/H]", low, high)
        parts.append((text, alpha[inside], found))
        rows.append(_bimodality_row(text, found))
        values = (low, high, found.n, *found.mean, *found.width, *found.share)
        values += (found.ashman_d, found.ashman_d_error, found.delta_bic)
        for name, value in zip(_BIMODALITY_COLUMNS, values, strict=True):
            data[name].append(value)
    what = "reference labels of training stars" if truth else f"predictions for {sample.name} stars"
    caution = (
        ""
        if truth
        else " Errors are not taken out, as predictions are drawn towards the mean of their kind; "
        "compare D with that of the reference labels."
    )
    plate = Plate(
        "bimodality_reference" if truth else "bimodality",
        f"Is [alpha/M] bimodal? {'Reference labels' if truth else 'Predictions'}",
        f"{mark(material)}[alpha/M] in bins of [M/H]: {what}, with a mixture of two normal "
        "distributions. D is the separation of Ashman, Bird & Zepf (1994), above 2 where two "
        "components are cleanly apart; Delta BIC is the Bayesian information criterion of one "
        f"component less that of two, above 10 where two are needed.{caution}",
        figures.bimodality_figure(parts, simulated=material.simulated),
        data,
    )
    return plate, (f"Two sequences of [alpha/M]: {what}", rows)


_BIMODALITY_HEADER = ("[M/H]", "stars", "lower", "upper", "share", "D", "Delta BIC", "verdict")
_BIMODALITY_COLUMNS = (
    *("m_h_low", "m_h_high", "n", "mean_low", "mean_high", "width_low", "width_high"),
    *("share_low", "share_high", "ashman_d", "ashman_d_error", "delta_bic"),
)


def _bimodality_row(text: str, found: Bimodality) -> tuple[str, ...]:
    if not np.isfinite(found.ashman_d):
        return (text, str(found.n), *("-",) * 5, separation_text(found))
    return (
        text,
        str(found.n),
        *(f"{mean:.3f} ({width:.3f})" for mean, width in zip(found.mean, found.width, strict=True)),
        f"{100 * found.share[1]:.0f} % upper",
        f"{found.ashman_d:.2f} +- {found.ashman_d_error:.2f}",
        f"{found.delta_bic:.0f}",
        separation_text(found),
    )


def checks_section(material: Material) -> Section:
    """Return the comparison with external log g, and clusters."""
    plates, omitted = sort_out([_external(material), _clusters(material)])
    return Section("checks", "Independent checks", plates, omitted)


def _tried(material: Material, table: Any) -> tuple[PageStars, Any, Any] | None:
    """Return the sample that holds most stars of a table, with the matching rows."""
    best = None
    for sample in material.samples.values():
        rows, others = match(sample, table)
        if rows.size and (best is None or rows.size > best[1].size):
            best = (sample, rows, others)
    return best


def _external(material: Material) -> Plate | Omitted:
    title = "log g against external log g"
    if material.external_logg is None:
        return Omitted(title, "no table was given (--logg)")
    found = _tried(material, material.external_logg)
    if found is None or "logg" not in material.model.label_names:
        return Omitted(title, "no star of the table is among the predicted ones")
    sample, rows, others = found
    external = np.asarray(material.external_logg["logg"], np.float64)[others]
    logg = material.column(sample, "logg")[rows]
    error = material.label_error(sample, "logg")[rows]
    (label,) = select(["logg"], material.labels)
    return Plate(
        "external_logg",
        title,
        f"{mark(material)}Predicted log g against that of the table given, say from "
        f"asteroseismology, of {rows.size} spectra ({sample.name} stars).",
        figures.residual_figure(
            external[:, None],
            logg[:, None],
            [label],
            error=error[:, None],
            simulated=material.simulated,
        ),
        {"id": sample.id[rows], "external_logg": external, "logg": logg, "logg_error": error},
    )


def _clusters(material: Material) -> Plate | Omitted:
    title = "Clusters"
    table = material.clusters
    if table is None:
        return Omitted(title, "no membership table was given (--clusters)")
    found = _tried(material, table)
    if found is None:
        return Omitted(title, "no star of the table is among the predicted ones")
    sample, rows, others = found
    if "probability" in table.colnames:
        likely = np.asarray(table["probability"], np.float64)[others] >= 0.5
        rows, others = rows[likely], others[likely]
    cluster = np.asarray(table["cluster"]).astype(str)[others]
    names = [n for n in ("m_h", "alpha_m", "mg_fe", "al_fe") if n in material.model.label_names]
    columns = [material.model.label_names.index(name) for name in names]
    data: dict[str, Any] = {"id": sample.id[rows], "cluster": cluster}
    for name, k in zip(names, columns, strict=True):
        data |= {name: sample.mean[rows, k], f"{name}_error": sample.error[rows, k]}
    return Plate(
        "clusters",
        title,
        f"{mark(material)}Labels of {rows.size} spectra of cluster members ({sample.name} stars) "
        "with errors; red: mean and standard deviation of each cluster, and the latter in units of "
        "the quoted errors, 1 if these explain all of it.",
        figures.clusters_figure(
            cluster,
            sample.mean[np.ix_(rows, columns)],
            sample.error[np.ix_(rows, columns)],
            labels=select(names, material.labels),
            simulated=material.simulated,
        ),
        data,
    )


def methods_section(material: Material) -> Section | None:
    """Return a comparison with other methods (`maury.training.comparison`), if one was given."""
    table = material.comparison
    if table is None:
        return None
    columns = {name: np.asarray(table[name]) for name in table.colnames}
    if "view" in columns and "stars" in columns:
        shown = (columns["view"] == GIVEN) & (columns["stars"] == ALL)
        columns = {name: values[shown] for name, values in columns.items()}
    found = _methods(material, columns)
    plates, omitted = sort_out([found[0]])
    return Section("methods", "Methods side by side", plates, omitted, tables=found[1])


def _methods(
    material: Material, columns: Mapping[str, AnyArray]
) -> tuple[Plate | Omitted, tuple[tuple[str, Rows], ...]]:
    """Robust scatter of each method and label; the plate, and a table."""
    label_column = "name" if "name" in columns else "label"
    size_column = "scatter_robust" if "scatter_robust" in columns else "scatter"
    if not {"method", label_column, size_column} <= set(columns):
        reason = f"the table has no columns method, {label_column} and {size_column}"
        return Omitted("Methods side by side", reason), ()
    methods = [str(one) for one in dict.fromkeys(columns["method"].tolist())]
    named = columns[label_column].astype(str)
    chosen: list[Label] = [one for one in material.labels if one.name in set(named)]
    sizes = {
        method: np.array(
            [
                _mean_of(columns[size_column][(columns["method"] == method) & (named == one.name)])
                for one in chosen
            ]
        )
        for method in methods
    }
    reference = "maury" if "maury" in methods else methods[0]
    plate = Plate(
        "methods",
        "Methods side by side",
        f"{mark(material)}Scatter ({size_column.replace('_', ', ')}) of each label by "
        f"{len(methods)} methods on the same stars, over that of {reference}.",
        checks.relative_figure(
            sizes,
            {method: np.zeros(len(chosen)) for method in methods},
            chosen,
            basis=sizes[reference],
            text=f"scatter / scatter of {reference}",
            simulated=material.simulated,
        ),
        columns,
    )
    return plate, (("Scatter of the same stars by each method", _rows_of(sizes, chosen)),)


def _rows_of(sizes: Mapping[str, Float64Array], labels: Sequence[Label]) -> Rows:
    rows: Rows = [("method", *(one.symbol for one in labels))]
    for method, values in sizes.items():
        cells = zip(values, labels, strict=True)
        rows.append((method, *(figures.number_text(value, label) for value, label in cells)))
    return rows


def _mean_of(values: AnyArray) -> float:
    known = values.astype(np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if known.size else np.nan
