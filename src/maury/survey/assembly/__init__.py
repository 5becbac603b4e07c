"""From spectra and public catalogues to a labelled survey store, with every cut on record.

`build_survey` follows a TOML file (`build_file`): it opens the spectra, applies the cuts of the
catalogues, matches them (`pairing`), puts their labels on one scale, and writes the store. What
each step let through, and why, is the flow table.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
