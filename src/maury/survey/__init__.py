"""The survey store, and every way into it.

A survey is spectra and columns of one instrument: `Survey` (`store`) opens a Zarr store of it
lazily, `SurveyWriter` (`writer`) writes one, `plausibility` doubts values that cannot be, `summary`
says what is there. Files of the world (FITS spectra, tables, text) come in through `readers`;
published surveys are described in `archives` and downloaded by `fetch`; `crossmatch` finds the same
star in two catalogues; `common_stars` finds those of several surveys; `assembly` is `maury build`,
which makes a labelled survey of spectra and catalogues. A new public survey is a TOML file in
`archives/recipes`, with a module in `readers` only if its files are of a new format.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
