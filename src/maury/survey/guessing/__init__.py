"""A first description of a folder that nobody has described yet: `maury init`.

`init_survey` looks at the files of a folder (`looking`), tells units and media of wavelengths
(`wavelengths`), finds how tables belong to spectra (`linking`), which columns mean what (`naming`,
`columns`), and writes a TOML file for `maury ingest toml` (`document`), in which each guess has a
comment that says why, and doubtful ones begin with ``# check:``.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
