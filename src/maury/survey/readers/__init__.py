"""Files of the world to survey stores.

`ingest_released` reads the layout in which the RAVE CNN authors released their data;
`ingest_toml` reads nearly anything else, as a short TOML file describes it (`config`); `open_toml`
opens the same without making a store. Formats of published surveys have a module each (`eso`,
`gaia`, `galah`, `lamost`, `rave`, `sdss`, `weave`), listed in `formats`; `grids`, `planes`,
`block_files` and `star_files` are the general ones. `arms` and `exposures` join what belongs
together, `joining` adds tables, and `pipeline` with `writing` brings it all to disk.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
