"""A local web page that shows a catalogue: linked panels, filters, and every star's spectrum."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
