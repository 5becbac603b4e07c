"""A catalogue on its way out: other formats, other libraries, the CDS, footprints, citations."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
