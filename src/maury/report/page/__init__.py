"""The report: one offline page of all figures, each with its data and its caption."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
