"""Simulated stars and spectra, marked as such everywhere, and what follows from theory.

The emulator gives a spectrum for labels, the population gives labels and magnitudes, `observing`
adds what a spectrograph does. `surveys` makes whole simulated surveys. `theory` calibrates the
emulator on labelled spectra, `drawing` draws labels around the labelled stars, `training_stars`
simulates spectra of these to train on. `bound` is the Cramer-Rao bound on every label.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
