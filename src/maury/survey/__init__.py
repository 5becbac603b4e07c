"""The survey store, and every way into it.

`Survey` opens a Zarr store of spectra and columns lazily, `SurveyWriter` writes one. Files of the
world (FITS spectra, tables, text) come in through `readers`, one module a format; public surveys
are recipes in `archives`, fetched by `fetch`; `crossmatch` finds the same star in two catalogues;
`assembly` builds a labelled survey of spectra and catalogues. A new survey is a TOML file in
`archives/recipes`, with a module in `readers` only if its files are of a new format.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
