"""From a labelled survey to a model.

`train` (in `runs`) is the way in: it splits the stars, trains the members of an ensemble
(`ensemble`, `member`) on observed or simulated spectra (`simulated`), and calibrates their errors.
`transfer` moves a model to another survey, `distillation` makes a small network of a large model,
and `comparison` trains every method on the same folds.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
