"""What a person looks at: figures, pages, the explorer, files to publish.

`figures` are functions of data; `page` sets them into one offline report; `explorer` serves a
catalogue to the browser, star by star, flags and spectra included; `cartography` places stars in
the Galaxy and measures gradients; `publish` converts, cites and maps a catalogue.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
