"""Small catalogues for tests of what shows them."""

from pathlib import Path

import numpy as np
from scipy.special import ndtri

from maury.labels.columns import QUANTILES
from maury.labels.definitions import LABELS
from maury.labels.flags import Flag, warn
from maury.prediction.catalogue import Catalogue, CatalogueSpec, assemble, write_part

QUANTILE_ENDS = tuple(f"_{suffix}" for suffix, _ in QUANTILES)
CENTRES = {"teff": (5200.0, 600.0), "logg": (3.2, 1.0), "m_h": (-0.3, 0.4), "alpha_m": (0.1, 0.1)}


def catalogue_rows(n, *, seed=1, labels=LABELS):
    """Values of all columns of a catalogue of `n` simulated rows, a tenth without labels."""
    rng = np.random.default_rng(seed)
    rows = {"id": np.array([f"é {k:06d}" for k in range(n)], dtype=np.str_)}
    lost = np.arange(n) % 10 == 7
    for label in labels:
        centre, spread = CENTRES.get(label.name, (0.0, 0.2))
        values = np.where(lost, np.nan, rng.normal(centre, spread, n))
        error = np.where(lost, np.nan, spread * rng.uniform(0.05, 0.3, n))
        rows |= {label.name: values, label.error_name: error}
        for suffix, percent in QUANTILES:
            rows[f"{label.name}_{suffix}"] = values + ndtri(percent / 100) * error
    flags = np.where(lost, Flag.NO_SPECTRUM.value, 0) | np.where(
        rng.uniform(size=n) < 0.4, Flag.TRAINING_STAR.value, 0
    )
    rows["flags"] = flags.astype(np.int32)
    rows["warn"] = warn(rows["flags"])
    rows["chi2_reduced"] = rng.uniform(0.8, 1.5, n)
    rows["worst_wavelength"] = rng.uniform(8420, 8780, n)
    rows["snr"] = np.where(np.arange(n) % 50 == 3, np.nan, rng.lognormal(3.9, 0.4, n))
    rows["star_id"] = np.array([f"star {k}" for k in range(n)], dtype=np.str_)
    rows["ra"], rows["dec"] = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 0.1, n)))
    rows["parallax"] = rng.lognormal(0.3, 0.7, n)
    rows["parallax_error"] = np.full(n, 0.04)
    return rows


def write_catalogue(path: Path, n=60, *, rows=None, **metadata) -> Catalogue:
    """Write such a catalogue, with fewer columns if `rows` has fewer, and read it back."""
    rows = catalogue_rows(n) if rows is None else rows
    spec = CatalogueSpec.for_labels(
        LABELS,
        survey_columns=["star_id", "ra", "dec", "parallax", "parallax_error"],
        metadata={"simulated": True, **metadata},
        quantiles=True,
        coverage=True,
    )
    spec = CatalogueSpec(tuple(c for c in spec.columns if c.name in rows), spec.metadata)
    part = path.with_name("part-of-" + path.stem + ".parquet")
    write_part(part, spec, rows)
    assemble([part], path, spec=spec)
    part.unlink()
    return Catalogue.read(path)


def write_many(path: Path, n_part: int, *, names=(), part=16384, rows=None) -> Path:
    """Write the same simulated rows again and again, as Parquet: so many parts of them."""
    rows = catalogue_rows(part) if rows is None else rows
    spec = CatalogueSpec.for_labels(
        LABELS,
        survey_columns=["star_id", "ra", "dec", "parallax", "parallax_error"],
        metadata={"simulated": True},
        quantiles=True,
        coverage=True,
    )
    wanted = [c for c in spec.columns if c.name in rows and (not names or c.name in names)]
    spec = CatalogueSpec(tuple(wanted), spec.metadata)
    first = path.with_name("first-of-" + path.stem + ".parquet")
    write_part(first, spec, rows)
    assemble([first] * n_part, path, spec=spec)
    first.unlink()
    return path
