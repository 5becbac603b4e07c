"""How objects show themselves in a notebook: a title, lines, and a table, as HTML."""

from collections.abc import Sequence
from html import escape

from maury.errors import printable

_MOST_ROWS = 60
"""Rows of a table in a notebook: the labels of any survey fit, its columns may not."""


def as_html(lines: Sequence[str], rows: Sequence[Sequence[str]] = ()) -> str:
    """Return lines, the first in bold, and a table with a header, as HTML.

    Texts come from files of strangers: nothing in them is markup.
    """
    first, *rest = (escape(printable(line)) for line in lines)
    parts = [f"<div><b>{first}</b>", *(f"<br>{line}" for line in rest)]
    if rows:
        header, *body = (
            [escape(printable(cell)) for cell in row] for row in rows[: _MOST_ROWS + 1]
        )
        parts.append("<table><thead>" + _row(header, "th") + "</thead><tbody>")
        parts += [_row(cells, "td") for cells in body]
        parts.append("</tbody></table>")
        if len(rows) > _MOST_ROWS + 1:
            parts.append(f"{len(rows) - _MOST_ROWS - 1} more rows")
    return "".join([*parts, "</div>"])


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"
