"""How good the labels are: training, residuals, inputs, calibration, coverage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from maury.errors import MauryError
from maury.evaluation.adviser import plane
from maury.evaluation.audit_report import ALL, NO_DISTANCE, SPECTRUM, AuditReport
from maury.evaluation.census import Census
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag
from maury.labels.statistics import NOMINAL_2SIGMA
from maury.model.directory import LOSSES
from maury.prediction.calibration import repeat_scatter
from maury.report import figures
from maury.report.figures import checks
from maury.report.page.material import Material, PageStars, kiel_labels, metallicity
from maury.report.page.plates import Omitted, Plate, Rows, Section, sort_out

Found = Iterator[Plate | Omitted]

_STARS = {"training": "stars that trained the networks", "test": "held-out test stars"}


def mark(material: Material) -> str:
    """Begin a caption: say that spectra are simulated."""
    return "Simulated spectra. " if material.simulated else ""


def long_table(sample: PageStars, material: Material) -> dict[str, Any]:
    """Columns of a sample: identifiers, predicted and reference labels, errors."""
    columns: dict[str, Any] = {"id": sample.id, "snr": sample.snr, "flags": sample.flags}
    for k, label in enumerate(material.labels):
        columns[label.name] = sample.mean[:, k]
        calibrated = material.model.errors_calibrated
        columns[label.error_name if calibrated else label.formal_error_name] = sample.error[:, k]
        if np.isfinite(sample.truth[:, k]).any():
            columns[f"reference_{label.name}"] = sample.truth[:, k]
    return columns


def training_section(material: Material) -> Section:
    """Return losses and label distributions."""
    plates, omitted = sort_out([*_losses(material), *_distributions(material)])
    members: Rows = [
        ("member", "seed", "epochs", "best epoch", "validation loss", "kept"),
        *(
            (
                one.file[8:11],
                str(one.seed),
                str(one.n_epochs),
                str(one.best_epoch),
                "-" if one.validation_loss is None else f"{one.validation_loss:.5f}",
                "yes" if one.kept else "no",
            )
            for one in material.model.members
        ),
    ]
    tables = (("Members of the ensemble", members),)
    return Section("training", "Training", plates, omitted, tables=tables if members[1:] else ())


def _losses(material: Material) -> Found:
    model = material.model
    title = "Losses"
    if LOSSES not in model.attachments:
        yield Omitted(title, "this model does not record the losses of its training")
        return
    arrays = dict(sorted(model.arrays(LOSSES).items()))
    kept = {f"member_{one.file[8:11]}": one.kept for one in model.members}
    shown = {name.replace("_", " "): table for name, table in arrays.items() if name in kept}
    data: dict[str, Any] = {
        "member": np.concatenate([np.full(len(one), name) for name, one in arrays.items()]),
        "epoch": np.concatenate([np.arange(1, len(one) + 1) for one in arrays.values()]),
    }
    both = np.concatenate(list(arrays.values()))
    data |= {"training_loss": both[:, 0], "validation_loss": both[:, 1]}
    validated = bool(np.isfinite(both[:, 1]).any())
    how = (
        "thin lines: training loss, thick lines: loss of the validation stars. "
        if validated
        else "training loss; no validation star takes part in the training of this preset. "
    )
    yield Plate(
        "losses",
        title,
        f"{mark(material)}Loss of every member of the ensemble by epoch; {how}"
        f"{sum(kept.values())} of {len(kept)} members were kept.",
        figures.losses_figure(
            shown,
            kept={name.replace("_", " "): value for name, value in kept.items()},
            simulated=material.simulated,
        ),
        data,
    )


def _distributions(material: Material) -> Found:
    samples = {
        name: one.mean if name == "observed" else one.truth
        for name, one in material.samples.items()
    }
    parts = [f"{len(one)} {name}" for name, one in material.samples.items()]
    data: dict[str, Any] = {
        "sample": np.concatenate([np.full(len(one), name) for name, one in samples.items()])
    }
    for k, label in enumerate(material.labels):
        data[label.name] = np.concatenate([one[:, k] for one in samples.values()])
    yield Plate(
        "distributions",
        "Label distributions",
        f"{mark(material)}Distributions of the labels of {', '.join(parts)} spectra, each of unit "
        "area: reference labels of training and test stars, predicted labels of observed stars.",
        figures.distributions_figure(samples, material.labels, simulated=material.simulated),
        data,
    )


def accuracy_section(material: Material) -> Section:
    """Return one-to-one comparisons and trends of residuals."""
    names = [name for name in ("test", "training") if name in material.samples]
    found: list[Plate | Omitted] = [_one_to_one(material, material.samples[n]) for n in names]
    if "test" in material.samples:
        found += _trends(material, material.samples["test"])
    else:
        found.append(Omitted("One-to-one comparisons", "no labelled survey was given"))
    plates, omitted = sort_out(found)
    tables = (("Held-out stars", statistics_rows(material)),) if material.statistics else ()
    return Section("accuracy", "Predicted against reference labels", plates, omitted, tables=tables)


def statistics_rows(material: Material) -> Rows:
    """Return bias and scatter of the test stars, plain and robust, as text."""
    header = ("label", "unit", "n", "bias", "median", "sigma", "robust sigma", "slope")
    rows: Rows = [header]
    for one, label in zip(material.statistics, material.labels, strict=True):
        sizes = (one.bias, one.bias_robust, one.scatter, one.scatter_robust)
        texts = (figures.number_text(value, label) for value in sizes)
        rows.append((one.symbol, one.unit, str(one.n), *texts, f"{one.slope:.2f}"))
    return rows


def _one_to_one(material: Material, sample: PageStars) -> Plate:
    return Plate(
        f"one_to_one_{sample.name}",
        f"One to one: {sample.name} stars",
        f"{mark(material)}Predicted against reference labels of {len(sample)} spectra of "
        f"{_STARS[sample.name]}, coloured by density, with residuals below: running median (thick "
        "red), 16th and 84th percentiles (thin red), median quoted error (dashed); triangles: "
        "residuals beyond the frame. Bias and scatter are the mean and standard deviation of the "
        "residuals; robust scatter is 1.4826 times their median absolute deviation.",
        figures.residual_figure(
            sample.truth,
            sample.mean,
            material.labels,
            error=sample.error,
            simulated=material.simulated,
        ),
        long_table(sample, material),
    )


def _trends(material: Material, sample: PageStars) -> Found:
    residual = sample.residual
    against = np.column_stack([sample.snr, sample.truth])
    names = ["S/N", *(figures.symbol_text(one) for one in material.labels)]
    # Computed for the data file; the figure makes the same ones.
    n_bin = checks.trend_bins(len(sample))
    strips = checks.trend_strips(residual, against, n_bin=n_bin)
    noise = checks.trend_noise(residual, against, n_bin=n_bin)
    index = np.indices(strips.shape)
    columns = np.array(["snr", *material.model.label_names])
    yield Plate(
        "trends",
        "Residuals along S/N and each label",
        f"{mark(material)}Median residual of each label (rows), in units of its robust scatter, in "
        f"{n_bin} bins of equal number along S/N and each reference label (columns), of "
        f"{len(sample)} held-out spectra. Red: predicted too high; blue: too low. A number "
        "is the largest of a strip, written where it is above four standard errors. Medians of "
        "no trend at all scatter by 2 sigma within the hatched range of the colour bar. Labels "
        "drawn towards the mean go from red to blue along themselves.",
        figures.trends_figure(
            residual, against, labels=material.labels, names=names, simulated=material.simulated
        ),
        {
            "label": np.array(material.model.label_names)[index[0].ravel()],
            "along": columns[index[1].ravel()],
            "bin": index[2].ravel(),
            "median_residual_over_scatter": strips.ravel(),
            "standard_error": noise[index[0].ravel(), index[1].ravel()],
        },
    )
    yield Plate(
        "residuals_snr",
        "Residuals against S/N",
        f"{mark(material)}Residuals of {len(sample)} spectra of held-out stars against S/N per "
        "pixel, with running median and 16th and 84th percentiles (red), and quoted errors "
        "(dashed).",
        figures.snr_figure(
            sample.snr, residual, sample.error, material.labels, simulated=material.simulated
        ),
        {"id": sample.id, "snr": sample.snr}
        | {one.name: residual[:, k] for k, one in enumerate(material.labels)},
    )


def inputs_section(material: Material) -> Section:
    """Return what labels are made of: with and without magnitudes, audit, sensitivity."""
    report = material.audit
    if report is None:
        reason = "no labelled survey was given"
        if material.model.theory_only:
            reason += "; 'maury audit MODEL SURVEY' audits on simulated stars"
        missing = Omitted("Audit and sensitivity", reason)
        return Section("inputs", "What the labels are made of", omitted=(missing,))
    plates, omitted = sort_out(list(_inputs(material)))
    tables = [("Scatter by what the networks see", report.rows())]
    if len(report.magnitude_rows()) > 1:
        tables.append(("With and without absolute magnitudes", report.magnitude_rows()))
    return Section(
        "inputs",
        "What the labels are made of",
        plates,
        omitted,
        text=report.note,
        tables=tuple(tables),
    )


def _inputs(material: Material) -> Found:
    report = material.audit
    assert report is not None, "a section without an audit has no such plates"
    yield _magnitudes_plate(material, report)
    yield _audit_plate(material)
    if not report.sensitivities:
        yield Omitted("Sensitivity spectra", "no theory knows these labels or pixels")
    for one in report.sensitivities:
        spectra: dict[str, Any] = {"wave_aa": one.wave_aa}
        for k, name in enumerate(one.label_names):
            spectra |= {f"{name}_model": one.network[k], f"{name}_optimal": one.optimal[k]}
        yield Plate(
            f"sensitivity_{one.slug.replace('-', '_')}",
            f"Sensitivity spectra: {one.star}",
            f"{mark(material)}Change of each label per 1 % of flux, by wavelength, for {one.n} "
            f"stars like a {one.star}: derivatives of the networks (red) and weights of the best "
            "linear estimator (black). Blue lines are known lines of the elements named.",
            figures.sensitivity_figure(one, simulated=material.simulated),
            spectra,
        )


def _magnitudes_plate(material: Material, report: AuditReport) -> Plate | Omitted:
    """Scatter of each label with all inputs, without absolute magnitudes, without photometry."""
    title = "With and without absolute magnitudes"
    cases = {ALL: "all inputs", NO_DISTANCE: "no absolute magnitudes", SPECTRUM: "spectrum alone"}
    told = [one for one in report.labels if set(cases) <= one.cases.keys()]
    if not told:
        return Omitted(title, "this model needs all its inputs")
    labels = [label for label in material.labels if label.name in {one.name for one in told}]
    data: dict[str, Any] = {"label": [one.name for one in told]}
    sizes, errors = {}, {}
    for name, text in cases.items():
        sizes[text] = np.array([one.cases[name].scatter for one in told])
        errors[text] = np.array([one.cases[name].scatter_error for one in told])
        key = text.replace(" ", "_")
        data |= {f"scatter_{key}": sizes[text], f"scatter_{key}_error": errors[text]}
    return Plate(
        "magnitudes",
        title,
        f"{mark(material)}Scatter of {report.n_row} spectra of held-out stars with all inputs, "
        "without parallaxes (colours are left, absolute magnitudes are not) and from the "
        "spectrum alone, over that with all inputs; errors by bootstrap over stars.",
        checks.relative_figure(
            sizes,
            errors,
            labels,
            basis=sizes[cases[ALL]],
            text="scatter / scatter with all inputs",
            simulated=material.simulated,
        ),
        data,
    )


def _audit_plate(material: Material) -> Plate:
    report = material.audit
    assert report is not None, "drawn only with an audit"
    cases = sorted({name for one in report.labels for name in one.cases})
    data: dict[str, Any] = {
        "label": [one.name for one in report.labels],
        "verdict": [one.verdict for one in report.labels],
        "gain": [one.gain for one in report.labels],
        "gain_error": [one.gain_error for one in report.labels],
    }
    for name in cases:
        data[f"scatter_{name.replace(' ', '_')}"] = [
            one.cases[name].scatter if name in one.cases else np.nan for one in report.labels
        ]
    return Plate(
        "audit",
        "Measured or inferred",
        f"{mark(material)}Scatter of each label with various inputs, over that without the "
        f"spectrum, for {report.n_row} spectra of held-out stars. A label is called measured if "
        "the scatter with all inputs lies left of the grey band, else inferred (red).",
        figures.audit_figure(report),
        data,
    )


def calibration_section(material: Material) -> Section:
    """Return coverage curves, z distributions, regimes and repeats."""
    test = material.samples.get("test")
    if test is None:
        missing = Omitted("Calibration", "no labelled survey was given")
        return Section("calibration", "Do the errors hold?", omitted=(missing,))
    plates, omitted = sort_out([*_calibration(material, test), *_repeats(material)])
    rows: Rows = [
        ("label", "within 1 sigma", "within 2 sigma", "robust z", "rank correlation"),
        *(
            (
                one.symbol,
                f"{one.coverage_1sigma:.3f} +- {one.coverage_1sigma_error:.3f}",
                f"{one.coverage_2sigma:.3f} +- {one.coverage_2sigma_error:.3f}",
                f"{one.z_scatter_robust:.2f}",
                f"{one.error_rank_correlation:.2f}",
            )
            for one in material.statistics
        ),
    ]
    tables = (("Right errors hold 0.683 and 0.954, with robust z of 1", rows),)
    return Section("calibration", "Do the errors hold?", plates, omitted, tables=tables)


def _calibration(material: Material, test: PageStars) -> Found:
    z, labels, simulated = test.z, material.labels, material.simulated
    curves = np.stack([checks.coverage_curve(column) for column in z.T], axis=1)
    yield Plate(
        "coverage_curves",
        "Coverage curves",
        f"{mark(material)}Fraction of residuals of {len(test)} held-out spectra within the "
        "interval of each nominal probability, less that probability. In the grey band lie 95 % "
        f"of the points of a curve whose errors are right. {tails(material)}",
        checks.coverage_figure(z, labels, simulated=simulated),
        {"nominal": checks.LEVELS} | {one.name: curves[:, k] for k, one in enumerate(labels)},
    )
    yield Plate(
        "z",
        "Distributions of residual / error",
        f"{mark(material)}Residual over quoted error of {len(test)} held-out spectra; black: the "
        "normal distribution of right errors. Values beyond 5 stand at the edge. "
        f"{tails(material)}",
        checks.z_figure(z, labels, simulated=simulated),
        {"id": test.id} | {one.name: z[:, k] for k, one in enumerate(labels)},
    )
    iron = metallicity(material.labels)
    parts = checks.regimes(
        test.snr,
        material.column(test, "logg"),
        material.column(test, "m_h" if iron is None else iron.name),
        symbol="[M/H]" if iron is None else iron.symbol,
    )
    share, count = checks.regime_coverage(z, parts)
    yield Plate(
        "coverage_regimes",
        "Coverage by S/N and kind of star",
        f"{mark(material)}Percentage of residuals within one quoted error, by S/N, surface gravity "
        "and metallicity (both predicted) of held-out spectra, whose number is in brackets. Right "
        "errors give 68; white is right, blue too large errors, red too small ones; regimes of "
        "fewer than 20 spectra are grey.",
        checks.regime_figure(z, parts, labels, simulated=simulated),
        {"regime": [one.name for one in parts], "n": count.max(axis=1)}
        | {one.name: share[:, k] for k, one in enumerate(labels)},
    )


def tails(material: Material) -> str:
    """Say why fewer residuals than of a normal distribution lie within two errors, if fewer do."""
    # Of few stars so few may lie within two errors by chance: two sampling errors say more.
    low = [
        one
        for one in material.statistics
        if one.coverage_2sigma + 2.0 * one.coverage_2sigma_error < NOMINAL_2SIGMA
    ]
    if not low:
        return ""
    least = min(one.coverage_2sigma for one in low)
    one = np.mean([label.coverage_1sigma for label in low])
    return (
        f"Within two errors lie fewer than the 95.4 % of a normal distribution for {len(low)} of "
        f"{len(material.statistics)} labels (at least {100 * least:.1f} %; within one, "
        f"{100 * one:.1f} % on the average of these): residuals have more wild stars than a normal "
        "distribution, so that no one error gives 68.3 and 95.4 % at once; the calibration takes "
        "the middle. For an interval of 95.4 % take the quantiles q02 to q98."
    )


def _repeats(material: Material) -> Found:
    # Held-out stars first: repeats of training spectra agree too well.
    for name in ("test", "training", "observed"):
        sample = material.samples.get(name)
        if sample is None:
            continue
        scatter = repeat_scatter(sample.mean, sample.star_id)
        if not (scatter > 0).any():
            continue
        quoted = np.nanmedian(sample.error, axis=0)
        nothing = np.zeros(len(scatter))
        yield Plate(
            "repeats",
            "Repeated spectra",
            f"{mark(material)}Scatter of labels between spectra of one star ({name} stars; 1.4826 "
            "times the median difference of consecutive spectra over the root of 2), over the "
            "median quoted error. Errors contain more than noise of the spectrum, and spectra of "
            "one star share their photometry, so values below 1 are expected.",
            checks.relative_figure(
                {"scatter of repeats": scatter},
                {"scatter of repeats": nothing},
                material.labels,
                basis=quoted,
                text="scatter / median quoted error",
                simulated=material.simulated,
            ),
            {
                "label": list(material.model.label_names),
                "repeat_scatter": scatter,
                "median_error": quoted,
            },
        )
        return
    yield Omitted("Repeated spectra", "fewer than 20 pairs of spectra of one star")


def coverage_section(material: Material) -> Section:
    """Return the shares of flags and the map of training and observed stars."""
    sample = material.stars_with_most
    assert sample is not None, "a report has observed or labelled stars"
    found: list[Plate | Omitted] = []
    try:
        found.append(_coverage_map(material, sample))
    except MauryError as error:
        found.append(Omitted("Coverage map", str(error)))
    plates, omitted = sort_out(found)
    rows: Rows = [("flag", "kind", "share", "reason")]
    for flag in Flag:
        share = float(np.mean((sample.flags & flag.value) != 0)) if len(sample) else 0.0
        if share > 0:
            kind = "warns" if flag.warns else "informs"
            rows.append((str(flag.name), kind, f"{100 * share:.1f} %", flag.text))
    tables = ((f"Flags of the {len(sample)} {sample.name} spectra", rows),)
    return Section("coverage", "What the training sample covers", plates, omitted, tables=tables)


def _coverage_map(material: Material, sample: PageStars) -> Plate:
    census = _census(material, sample)
    place, kind, _ = plane(census)
    return Plate(
        "coverage_map",
        "Coverage map",
        f"{mark(material)}Training stars and {sample.name} stars in a plane in which neighbours "
        "have like labels (t-SNE of predicted labels); those flagged as unlike the training "
        "sample in red. Axes, distances and densities have no meaning.",
        figures.coverage_map(place, kind, simulated=material.simulated),
        {"x": place[:, 0], "y": place[:, 1], "kind": kind},
        {"kind": "0 observed, 1 observed and flagged as unlike, 2 training"},
    )


def _census(material: Material, sample: PageStars) -> Census:
    from maury.errors import ConfigError
    from maury.prediction.coverage import CoverageModel

    if "coverage" not in material.model.attachments:
        raise ConfigError("this model has not learnt what its training sample covers")
    coverage = CoverageModel.from_arrays(material.model.arrays("coverage"))
    return Census(
        id=sample.id,
        star_id=sample.star_id,
        place=(sample.mean - coverage.label_centre) / coverage.label_scale,
        error=sample.error / coverage.label_scale,
        snr=sample.snr,
        flags=sample.flags,
        labelled=np.zeros(len(sample), np.bool_),
        training=coverage.reference_labels,
        simulated=material.simulated,
    )


def overview(material: Material) -> Plate | None:
    """Return the Kiel diagram of the first screen, or None if there is nothing to draw."""
    sample = material.stars_with_most
    labels = kiel_labels(material.model.labels)
    if sample is None or not labels:
        return None
    names, iron = [label.name for label in labels], labels[-1]
    teff, logg, colour = (material.column(sample, name)[sample.good] for name in names)
    return Plate(
        "overview",
        f"{int(sample.good.sum())} {sample.name} spectra without a warning",
        f"{mark(material)}Kiel diagram of {int(sample.good.sum())} {sample.name} spectra without a "
        f"warning flag, coloured by predicted {iron.symbol}.",
        figures.kiel_figure(teff, logg, colour, label=iron, simulated=material.simulated),
        {"id": sample.id[sample.good], "teff": teff, "logg": logg, iron.name: colour},
    )


def summary(material: Material) -> Mapping[str, Any]:
    """Return what the first screen says: how precise, how well calibrated, how much covered."""
    statistics = material.statistics
    inside = [one.coverage_1sigma for one in statistics if np.isfinite(one.coverage_1sigma)]
    sample = material.stars_with_most
    assert sample is not None, "a report has observed or labelled stars"
    verdicts = {} if material.audit is None else {o.name: o.verdict for o in material.audit.labels}
    rows = [("label", "unit", "robust sigma", "bias", "within 1 sigma", "source")]
    for one, label in zip(statistics, material.labels, strict=False):
        rows.append(
            (
                one.symbol,
                one.unit,
                figures.number_text(one.scatter_robust, label),
                figures.number_text(one.bias, label),
                f"{100 * one.coverage_1sigma:.0f} +- {100 * one.coverage_1sigma_error:.0f} %",
                verdicts.get(one.name, "-"),
            )
        )
    good = float(sample.good.mean()) if len(sample) else np.nan
    shares = {
        flag.text: float(np.mean((sample.flags & flag.value) != 0)) for flag in Flag if flag.warns
    }
    worst = sorted(shares.items(), key=lambda item: -item[1])[:3]
    return {
        "rows": rows,
        "inside": float(np.mean(inside)) if inside else np.nan,
        "n_test": len(material.samples["test"]) if "test" in material.samples else 0,
        "good": good,
        "n_sample": len(sample),
        "sample": sample.name,
        "reasons": [(text, share) for text, share in worst if share > 0],
        "nine": tuple(material.model.label_names) == LABEL_NAMES,
    }
