"""`maury`: stellar labels that can be trusted, from spectra, photometry and astrometry.

Public names are resolved when first used; importing `maury` does nothing else. `__init__.pyi`
lists them.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
