"""What is said of a star, defined once: labels, flags, columns, abundance scales, references.

Every name, unit, range, description and UCD that a file, a figure or a page shows comes from here
(`definitions`, `flags`, `columns`), as do solar scales and conventions of abundances
(`abundances`, `solar`), the bibliography (`references`) and the statistics of residuals
(`statistics`). A flag of a star is defined in `flags`, raised in `spectra` (rows and inputs), in
`methods` (fits) and in `prediction` (labels), and shown by `report` and `cli`. Warnings about whole
files and doubtful matches of catalogues are no flags of stars; `survey` has them.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
