import sys
from pathlib import Path

import maury

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "maury"
author = "The maury developers"
copyright = "The maury developers"
version = release = maury.__version__

extensions = ["myst_parser", "maury_tables"]
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"maury {release}"
html_show_sphinx = False
