"""Public files of a survey, downloaded as its recipe names them.

Sizes are known before, downloads resume, and what arrives is compared with what was promised.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
