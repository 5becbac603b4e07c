"""The other methods of the field by name, on one machinery: fits of forward models, and regressors.

Each has a module of its own (`athos`, `cannon`, `dd_payne`, `ferre`, `gaufre`, `gauguin`,
`matisse`, `payne`, `sme`, `space`, `synspec`; a new rival goes here and into `registry`) and
follows `protocols`. What they share stands in `fitting` (forward models, priors, grids and the
batched bounded fit), in `lines`, in `storage` (a fitted method as a file) and in `training`, which
is what `maury train SURVEY MODEL --method NAME` runs.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
