"""The survey store, and every way into it.

`Survey` opens a Zarr store of spectra and columns lazily, `SurveyWriter` writes one. Files of the
world come in through `readers`; public surveys are recipes in `archives`, fetched by `fetch`;
`crossmatch` finds the same star in two catalogues; `assembly` builds a labelled survey of spectra
and catalogues.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
