import os
import sys
import sysconfig
from pathlib import Path

import maury

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
# Cells run `maury`: the one of the environment that builds this documentation.
os.environ["PATH"] = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))

project = "maury"
author = "The maury developers"
copyright = "The maury developers"
version = release = maury.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "maury_settings",
    "maury_tables",
    "maury_api",
    "maury_cells",
    "maury_cli",
]
exclude_patterns = ["_build"]
nitpicky = True
# Types of annotations that belong to other projects, and names of them in short: no inventory is
# asked for, as the documentation is built without a network.
nitpick_ignore_regex = [("py:.*", r".*")]
# A shape such as (n_star, n_pixel) in the type of an attribute is no link to such a property.
suppress_warnings = ["ref.python"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Every cell of every tutorial runs when the documentation is built, in a folder of its own.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
# However busy the machine is.
nb_execution_timeout = -1
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"maury {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["maury.css"]
