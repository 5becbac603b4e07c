"""Cells of the tutorials as a reader would type them.

A cell that begins with ``%%bash`` is shown as commands, one with ``%%writefile NAME`` as the file
of that name: the first line is for the notebook alone.
"""

import re
from typing import Any

from docutils import nodes

MAGIC = re.compile(r"%%(bash|writefile)[ \t]*(\S*)[^\n]*\n")
LANGUAGES = {"toml": "toml", "py": "python", "csv": "text", "slurm": "bash"}


def show_plainly(app: Any, doctree: nodes.document) -> None:
    """Take the first line of such cells away, and highlight the rest by what it is."""
    del app
    for block in list(doctree.findall(nodes.literal_block)):
        found = MAGIC.match(block.rawsource or block.astext())
        if found is None:
            continue
        text = block.astext()[found.end() :]
        name = found[2] if found[1] == "writefile" else ""
        language = LANGUAGES.get(name.rpartition(".")[2], "text") if name else "bash"
        plain = nodes.literal_block(text, text, language=language)
        if not name:
            block.replace_self(plain)
            continue
        title = nodes.paragraph("", "", nodes.literal(name, name), nodes.Text(":"))
        block.replace_self([title, plain])


def setup(app: Any) -> dict[str, bool]:
    """Connect to the reading of every page."""
    app.connect("doctree-read", show_plainly)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
