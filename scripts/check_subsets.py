"""Shares of held-out stars within one error for every subset of the inputs of a model.

    python scripts/check_subsets.py SURVEY.zarr MODEL [--part test|validation] [--json OUT]
    python scripts/check_subsets.py --compare NAME=FILE ...

Spectrum, XP coefficients, photometry (all bands and A_V) and parallax are each there or not:
sixteen subsets. Printed is a row of each as markdown: stars with labels, share within one
calibrated error (mean and range over labels), share between the quantiles of 2.3 and 97.7 %, share
silently wrong (off by more than three errors in any label, and not warned of), and the root mean
square residual of Teff, log g and [M/H], less the stars beyond five robust scatters. The second
form sets the shares of several such files side by side.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from maury.labels.columns import stated_error
from maury.labels.statistics import MAD_TO_SIGMA
from maury.model.directory import Model
from maury.prediction.streaming import predict_rows
from maury.spectra.observable_groups import ALL_BANDS
from maury.survey.store import Survey

INPUTS = {
    "spectrum": ("spectrum",),
    "XP": ("xp",),
    "photometry": (*ALL_BANDS, "a_v"),
    "parallax": ("parallax",),
}
SHOWN = ("teff", "logg", "m_h")
FAR = 5.0
"""Robust scatters beyond which a residual does not count in the root mean square."""


def measure(found, truth, names):
    """Return the numbers of one subset."""
    residual = np.stack([found[n] for n in names], axis=1) - truth
    error = np.stack([stated_error(found, n) for n in names], axis=1)
    ok = np.isfinite(residual) & np.isfinite(error)
    labelled = float(np.mean(ok.any(axis=1)))
    out = {"labelled": labelled, "n": int(ok.any(axis=1).sum())}
    if not labelled:
        reasons = sorted({int(flag) for flag in found["flags"]})
        return out | {"flags": reasons}
    count = ok.sum(axis=0)
    within = ((np.abs(residual) < error) & ok).sum(axis=0) / count
    low, high = (np.stack([found[f"{n}_{q}"] for n in names], axis=1) for q in ("q02", "q98"))
    between = ((truth > low) & (truth < high) & ok).sum(axis=0) / count
    off = ((np.abs(residual) > 3 * error) & ok).any(axis=1)
    out["within"] = dict(zip(names, within.tolist(), strict=True))
    out["between"] = dict(zip(names, between.tolist(), strict=True))
    out["silent"] = float(np.mean(off & ~np.asarray(found["warn"])))
    out["rms"] = {}
    for place, name in enumerate(names):
        one = residual[ok[:, place], place]
        scatter = MAD_TO_SIGMA * np.median(np.abs(one - np.median(one)))
        near = one[np.abs(one - np.median(one)) < FAR * scatter]
        out["rms"][name] = float(np.sqrt(np.mean(near**2)))
    return out


def subsets():
    """Yield the name of each subset, and what is hidden in it."""
    for there in itertools.product((True, False), repeat=len(INPUTS)):
        kept = [name for name, yes in zip(INPUTS, there, strict=True) if yes]
        hidden = [one for name in INPUTS if name not in kept for one in INPUTS[name]]
        yield " + ".join(kept) or "nothing", tuple(hidden)


def row(name, one):
    """Return a row of the table."""
    if "within" not in one:
        return f"| {name} | none | | | | | |"
    within, between = (np.array(list(one[k].values())) for k in ("within", "between"))
    rms = [one["rms"].get(n, np.nan) for n in SHOWN]
    return (
        f"| {name} | {100 * one['labelled']:.0f} | {100 * within.mean():.1f} "
        f"| {100 * within.min():.0f}-{100 * within.max():.0f} | {100 * between.mean():.1f} "
        f"| {100 * one['silent']:.1f} | {rms[0]:.0f}, {rms[1]:.3f}, {rms[2]:.3f} |"
    )


def compare(named):
    """Print shares and root mean squares of several files side by side."""
    tables = {}
    for one in named:
        name, _, path = one.rpartition("=")
        tables[name] = json.loads(Path(path).read_text("utf-8"))
    print(f"| inputs | {' | '.join(f'{n}: within, Teff, log g, [M/H]' for n in tables)} |")
    print(f"|{'---|' * (1 + len(tables))}")
    for subset in next(iter(tables.values())):
        cells = []
        for table in tables.values():
            one = table[subset]
            if "within" not in one:
                cells.append("none")
                continue
            rms = [one["rms"][n] for n in SHOWN]
            share = 100 * np.mean(list(one["within"].values()))
            cells.append(f"{share:.1f}, {rms[0]:.0f}, {rms[1]:.3f}, {rms[2]:.3f}")
        print(f"| {subset} | {' | '.join(cells)} |")


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("survey", nargs="?")
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--part", choices=("test", "validation"), default="test")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compare", nargs="+", metavar="NAME=FILE")
    arguments = parser.parse_args()
    if arguments.compare:
        compare(arguments.compare)
        return
    survey, model = Survey.open(arguments.survey), Model.open(arguments.model)
    rows = np.flatnonzero(model.split.contains(arguments.part, survey.star_id))
    truth, names = survey.labels(model.labels)[rows], model.label_names
    print(f"{'SIMULATED ' if survey.simulated else ''}{survey.path.name}, {rows.size} spectra")
    print(
        "| inputs | labels, % | within one error | range of labels | q02 to q98 | silent "
        f"| rms: {', '.join(SHOWN)} |\n|{'---|' * 7}"
    )
    table = {}
    for name, hidden in subsets():
        table[name] = measure(predict_rows(model, survey, rows, without=hidden), truth, names)
        print(row(name, table[name]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
