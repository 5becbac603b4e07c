"""Chemical cartography of the observed stars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from maury.io.arrays import BoolArray
from maury.labels.definitions import select
from maury.report import figures
from maury.report.cartography.gradients import (
    R_EDGES_KPC,
    Z_EDGES_KPC,
    Gradient,
    gradients,
    high_alpha,
)
from maury.report.cartography.places import Places
from maury.report.page.material import Material, PageStars
from maury.report.page.plates import Omitted, Plate, Rows, Section
from maury.report.page.quality import mark

_TABLE_TITLE = "Gradients of [M/H], with statistical and systematic errors, and numbers of stars"
_GROUPS = ("all", "low-alpha", "high-alpha")
_MINUS, _DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def places_section(material: Material) -> Section:
    """Return [alpha/M]-[M/H] by place, gradients and maps."""
    title = "Chemical cartography"
    names = material.model.label_names
    places, stars = material.places, material.samples.get("observed")
    if places is None or stars is None:
        missing = Omitted(title, "no catalogue with ra, dec, parallax and parallax_error was given")
        return Section("galaxy", title, omitted=(missing,))
    if not {"m_h", "alpha_m"} <= set(names):
        missing = Omitted(title, "the model lacks [M/H] or [alpha/M]")
        return Section("galaxy", title, omitted=(missing,))
    low, _, high = places.distance_kpc
    with np.errstate(invalid="ignore"):
        # A fifth of the distance either side: beyond, places scatter by more than the bins are
        # wide.
        near = (high - low) < 0.4 * places.distance_kpc[1]
    rows = stars.good & near
    used = _Used(material, places, stars, rows)
    gradient_plate, table = used.gradients()
    text = (
        f"{len(used.places)} of {len(stars)} stars have no warning flag and a distance known to "
        f"20 %. Parallax zero point: {places.zero_point_mas:+.3f} mas ({material.gaia}). Distance "
        f"prior: r\N{SUPERSCRIPT TWO} exp({_MINUS}r / {places.length_kpc:g} kpc) (Bailer-Jones "
        "2015, eq. 17). The Sun is at R = 8.122 kpc and Z = 20.8 pc."
    )
    plates = (used.by_place(), gradient_plate, used.maps())
    return Section("galaxy", title, plates, text=text, tables=((_TABLE_TITLE, table),))


class _Used:
    """Stars whose places and abundances are known well enough."""

    def __init__(
        self, material: Material, places: Places, stars: PageStars, rows: BoolArray
    ) -> None:
        self.material, self.places, self.names = material, places.rows(rows), stars.id[rows]
        self.m_h = material.column(stars, "m_h")[rows]
        self.alpha_m = material.column(stars, "alpha_m")[rows]
        alpha_error = material.label_error(stars, "alpha_m")[rows]
        self.start = mark(material)
        self.shift = float(np.nanmedian(alpha_error)) if alpha_error.size else 0.0
        self.m_h_error = material.label_error(stars, "m_h")[rows]

    def by_place(self) -> Plate:
        """[alpha/M] against [M/H] in bins of R and abs(Z)."""
        place = (self.places.radius_kpc, self.places.height_kpc)
        return Plate(
            "alpha_by_place",
            "[alpha/M] against [M/H] by place",
            f"{self.start}[alpha/M] against [M/H] of {self.m_h.size} observed stars in bins of "
            "Galactocentric radius R (across) and height |Z| (highest on top), in kpc. Dashed: the "
            "line between low- and high-alpha stars.",
            figures.alpha_by_place(
                self.m_h,
                self.alpha_m,
                place,
                edges=(R_EDGES_KPC, Z_EDGES_KPC),
                simulated=self.material.simulated,
            ),
            {
                "id": self.names,
                "m_h": self.m_h,
                "alpha_m": self.alpha_m,
                "radius_kpc": place[0],
                "height_kpc": place[1],
            },
        )

    def gradients(self) -> tuple[Plate, Rows]:
        """Slopes of [M/H] along R and abs(Z), of all, low- and high-alpha stars."""
        found = {
            along: {name: self._slopes(name, along, edges) for name in _GROUPS}
            for along, edges in (("R", Z_EDGES_KPC), ("|Z|", R_EDGES_KPC))
        }
        plate = Plate(
            "gradients",
            "Gradients of [M/H]",
            f"{self.start}Radial gradients of [M/H] in bins of |Z| (left) and vertical ones in "
            f"bins of R (right) of {self.m_h.size} observed stars: least-squares planes in mean R "
            "and |Z|. Thick bars: bootstrap over stars and scatter between samples of the "
            "distances, added in squares. Thin bars contain also the change if the line between "
            f"low and high alpha moves by {self.shift:.3f} dex, the median error of [alpha/M], and "
            "the part of the slope by which predictions of [M/H] are drawn towards the mean, "
            f"error^2 / (variance + error^2), {100 * self._shrinkage('all'):.0f} % for all stars. "
            f"{self._put_in_text()}",
            figures.gradients_figure(
                found["R"],
                found["|Z|"],
                put_in=self._put_in(),
                simulated=self.material.simulated,
            ),
            _gradient_data(found),
        )
        return plate, _gradient_rows(found)

    def _slopes(self, name: str, along: str, edges: tuple[float, ...]) -> list[Gradient]:
        """Slopes of one group of stars, with what its choice and the labels may do to them."""
        best, *moved = (
            gradients(
                self.m_h[rows],
                self.places.rows(rows),
                along=along,
                edges_kpc=edges,
                rng=np.random.default_rng(3),
                n_bootstrap=number,
            )
            for rows, number in (
                (self._group(name, 0.0), 200),
                # The border between the sequences is moved by a typical error: what its place does
                # to slopes.
                (self._group(name, self.shift), 0),
                (self._group(name, -self.shift), 0),
            )
        )
        return [
            replace(
                one,
                systematic_error=float(
                    np.hypot(
                        max(abs(up.slope - one.slope), abs(down.slope - one.slope)),
                        self._shrinkage(name) * one.slope,
                    )
                ),
            )
            for one, up, down in zip(best, *moved, strict=True)
        ]

    def _shrinkage(self, name: str) -> float:
        """Part of a slope that is lost as predictions are means of what a star may be."""
        rows = self._group(name, 0.0)
        noise = float(np.nanmean(self.m_h_error[rows] ** 2)) if rows.any() else 0.0
        return noise / max(float(np.nanvar(self.m_h[rows])) + noise, 1e-12) if noise else 0.0

    def _group(self, name: str, shift: float) -> BoolArray:
        if name == "all":
            return np.ones(self.m_h.size, np.bool_)
        high = high_alpha(self.m_h, self.alpha_m, shift=shift)
        return high if name == "high-alpha" else ~high

    def _put_in(self) -> tuple[Mapping[str, float], Mapping[str, float]] | None:
        discs = self.material.put_in
        if discs is None:
            return None
        names = dict(zip(_GROUPS[1:], discs["discs"], strict=False))
        return (
            {name: float(one["radial_gradient"]) for name, one in names.items()},
            {name: float(one["vertical_gradient"]) for name, one in names.items()},
        )

    def _put_in_text(self) -> str:
        return "" if self._put_in() is None else "Dashed: what the simulation put in."

    def maps(self) -> Plate:
        """Mean [M/H] and [alpha/M], face-on and edge-on."""
        xyz = self.places.xyz_kpc
        return Plate(
            "maps",
            "Maps of mean [M/H] and [alpha/M]",
            f"{self.start}Mean [M/H] (top) and [alpha/M] (bottom) of {self.m_h.size} observed "
            "stars: face-on (left; the Galactic centre is at 0, 0) and edge-on (right), in cells "
            "of at least five stars. Star: the Sun.",
            figures.maps_figure(
                xyz,
                self.places.radius_kpc,
                [self.m_h, self.alpha_m],
                labels=select(["m_h", "alpha_m"], self.material.labels),
                simulated=self.material.simulated,
            ),
            {
                "id": self.names,
                "x_kpc": xyz[:, 0],
                "y_kpc": xyz[:, 1],
                "z_kpc": xyz[:, 2],
                "radius_kpc": self.places.radius_kpc,
                "m_h": self.m_h,
                "alpha_m": self.alpha_m,
            },
        )


def _gradient_data(found: Mapping[str, Mapping[str, list[Gradient]]]) -> dict[str, Any]:
    every = [(group, one) for by in found.values() for group, some in by.items() for one in some]
    parts = ["along", "low_kpc", "high_kpc", "n", "slope", "error"]
    parts += ["sampling_error", "distance_error", "systematic_error", "intercept"]
    data: dict[str, Any] = {"stars": [group for group, _ in every]}
    return data | {part: [getattr(one, part) for _, one in every] for part in parts}


def _gradient_rows(
    found: Mapping[str, Mapping[str, list[Gradient]]],
) -> Rows:
    rows: Rows = [("along", "bin", *(f"{name} stars [dex/kpc]" for name in _GROUPS))]
    for along, by in found.items():
        other = "|Z|" if along == "R" else "R"
        for bins in zip(*(by[name] for name in _GROUPS), strict=True):
            text = f"{other} {bins[0].low_kpc:g}{_DASH}{bins[0].high_kpc:g} kpc"
            slopes = (
                f"{one.slope:.3f} +- {one.error:.3f} +- {one.systematic_error:.3f} ({one.n})"
                if np.isfinite(one.slope)
                else f"- ({one.n})"
                for one in bins
            )
            rows.append((along, text, *slopes))
    return rows
