"""The page of a report: one file of HTML that needs nothing from outside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from maury.report.page.plates import Plate, Section

_TEXT_COLUMNS = ("label", "unit", "flag", "kind", "reason", "verdict", "source", "along", "bin")


def render(
    sections: Sequence[Section],
    summary: Mapping[str, Any],
    *,
    overview: Plate | None,
    images: Mapping[str, Path],
    about: Mapping[str, str],
    simulated: bool,
) -> str:
    """Return the page.

    Parameters
    ----------
    sections : sequence of Section
    summary : mapping
        What the first screen says, from `maury.report.page.quality.summary`.
    overview : Plate or None
        Figure of the first screen.
    images : mapping of str to path
        PNG of each plate, by its name; their bytes become part of the page.
    about : mapping of str to str
        What the report was made of.
    simulated : bool
        Whether to say so above all else.
    """
    template = Template(
        resources.files("maury.report.page").joinpath("report.html").read_text(encoding="utf-8")
    )
    links = "".join(f'<a href="#{escape(one.name)}">{escape(one.title)}</a>' for one in sections)
    title = f"maury report: {about.get('model', 'model')}"
    return template.substitute(
        title=escape(title),
        banner=_banner(simulated),
        links=links,
        summary=_summary(summary, overview, images),
        sections="".join(_section(one, images) for one in sections),
        about=_definitions(about),
    )


def _banner(simulated: bool) -> str:
    if not simulated:
        return ""
    return (
        '<p class="simulated"><strong>SIMULATED spectra.</strong> What follows says how the method '
        "works, not how well it does on the sky.</p>"
    )


def _summary(found: Mapping[str, Any], overview: Plate | None, images: Mapping[str, Path]) -> str:
    tiles = [_precise(found), _calibrated(found), _covered(found)]
    parts = [_table("Held-out spectra", found["rows"])] if len(found["rows"]) > 1 else []
    if overview is not None:
        parts.append(_figure(overview, images[overview.name]))
    return f'<div class="tiles">{"".join(tiles)}</div><div class="pair">{"".join(parts)}</div>'


def _tile(question: str, answer: str, detail: str) -> str:
    return (
        f'<div class="tile"><h2>{escape(question)}</h2><p class="big">{escape(answer)}</p>'
        f"<p>{escape(detail)}</p></div>"
    )


def _precise(found: Mapping[str, Any]) -> str:
    rows = {row[0]: row for row in found["rows"][1:]}
    shown = [name for name in ("Teff", "log g", "[M/H]") if name in rows]
    answer = " \N{MIDDLE DOT} ".join(
        f"{rows[name][2]} {rows[name][1]}" if name == "Teff" else rows[name][2] for name in shown
    )
    if not answer:
        return _tile("How precise?", "not measured", "No labelled survey was given.")
    return _tile(
        "How precise?",
        answer,
        f"robust scatter of {', '.join(shown)} of {found['n_test']} held-out spectra",
    )


def _calibrated(found: Mapping[str, Any]) -> str:
    if not np.isfinite(found["inside"]):
        return _tile("How well calibrated?", "not measured", "No labelled survey was given.")
    return _tile(
        "How well calibrated?",
        f"{100 * found['inside']:.0f} %",
        "of the residuals of held-out spectra are within one quoted error, mean over labels; "
        "68 % is right",
    )


def _covered(found: Mapping[str, Any]) -> str:
    reasons = "; ".join(f"{100 * share:.0f} %: {text}" for text, share in found["reasons"])
    which = "test" if found["sample"] == "test" else "observed"
    return _tile(
        "How much of the survey is covered?",
        f"{100 * found['good']:.0f} %" if np.isfinite(found["good"]) else "unknown",
        f"of {found['n_sample']} {which} spectra bear no warning"
        + (f" ({reasons})" if reasons else ""),
    )


def _section(section: Section, images: Mapping[str, Path]) -> str:
    parts = [f'<section id="{escape(section.name)}"><h2>{escape(section.title)}</h2>']
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    parts += [_table(title, rows) for title, rows in section.tables]
    parts += [_figure(one, images[one.name]) for one in section.plates]
    if section.omitted:
        items = "".join(
            f"<li>{escape(one.title)}: {escape(one.reason)}.</li>" for one in section.omitted
        )
        parts.append(f'<div class="omitted"><p>Not drawn:</p><ul>{items}</ul></div>')
    return "".join([*parts, "</section>"])


def _figure(plate: Plate, image: Path) -> str:
    data = base64.b64encode(image.read_bytes()).decode("ascii")
    width_mm = 25.4 * plate.figure.get_size_inches()[0]
    files = " ".join(
        f'<a href="figures/{escape(plate.name)}.{suffix}">{suffix.upper()}</a>'
        for suffix in ("pdf", "png", "ecsv")
    )
    return (
        f'<figure id="figure-{escape(plate.name)}"><h3>{escape(plate.title)}</h3>'
        f'<img style="max-width:{1.5 * width_mm:.0f}mm;--paper:{width_mm:.0f}mm" '
        f'alt="{escape(plate.title)}. {escape(plate.caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(plate.caption)}</figcaption>"
        f'<p class="files">{files} <button type="button" class="copy">copy caption</button></p>'
        "</figure>"
    )


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    header, *body = rows
    left = [name in _TEXT_COLUMNS for name in header]

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=left' if is_left else ''}>"
            f"{escape(cell.replace('+-', chr(177)))}</{tag}>"
            for cell, is_left in zip(row, left, strict=True)
        )

    caption = f"<caption>{escape(title)}</caption>" if title else ""
    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in body)
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{cells(header, "th")}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _definitions(about: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in about.items())
    return f"<dl>{rows}</dl>"
