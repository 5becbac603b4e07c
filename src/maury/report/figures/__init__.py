"""Figures at journal column width: functions of data to axes, and of axes to whole figures.

Nothing here touches pyplot or its global state, and no drawing function writes a file; `save` does.
Figures of simulated spectra bear the mark SIMULATED inside the axes.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
