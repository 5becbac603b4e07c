"""Simulated stars and spectra, marked as such everywhere, and what follows from theory.

The emulator gives a spectrum for labels, the population gives labels and magnitudes, `observing`
adds what a spectrograph does. `surveys` makes whole simulated surveys, `sky` draws training stars
around the labelled ones, `theory` calibrates the theory on them, and `bound` is the Cramer-Rao
bound on every label.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
