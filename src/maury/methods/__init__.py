"""The other methods of the field by name, on one machinery: fits of forward models, and regressors.

`registry` lists them; each has a module of its own (`cannon`, `payne`, `ferre` and so on; a new
rival goes here) and follows the protocol in `protocols`. What they share stands in `fitting`:
forward models, priors, grids and the batched bounded fit. `maury train SURVEY MODEL --method NAME`
trains one.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
