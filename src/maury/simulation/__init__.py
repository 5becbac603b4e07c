"""Simulated stars and spectra, marked as such everywhere, and what follows from theory.

The `emulator` gives a spectrum for labels, the `population` gives labels and magnitudes,
`observing` adds what a spectrograph does; `surveys` makes whole simulated surveys of them. For
training, `theory_calibration` fits the emulator to labelled spectra, `drawing` draws labels around
the labelled stars, `training_stars` simulates their spectra, `joint_stars` does so for several
surveys at once, and `companions` adds the light of a second star. `bound` is the Cramer-Rao bound
on every label. `xp_coefficients` gives a survey simulated XP coefficients, those of its stars'
`energy_distribution`. The data of emulator, population and XP are in `data`.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
