"""Spectra and columns of stars in memory, and their preparation for networks and fits.

`Spectra` are flux and inverse variance on a grid of wavelengths, `Batch` adds the columns of their
stars (photometry, parallax and so on: the observables), and `star_identity` says which spectra are
of one star. `Preparation` is the recorded chain of steps (operators on spectra, groups of
observables) that turns a batch into the inputs of a model, the same at training and at prediction,
and raises the flags of bad pixels, bad rows and missing inputs. `noise` is the record of correlated
noise that all packages above read.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
