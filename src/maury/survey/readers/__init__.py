"""Files of the world to survey stores.

`ingest_released` reads the layout in which the RAVE CNN authors released their data;
`ingest_toml` reads nearly anything else, as a short TOML file describes it; `open_toml` opens the
same without making a store.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
