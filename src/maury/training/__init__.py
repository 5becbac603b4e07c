"""From a labelled survey to a model.

`train` (in `runs`) is the way in: it splits the stars, trains the members of an ensemble
(`ensemble`; one member on observed spectra in `member`, on simulated ones in `simulated`; each in a
process of its own, `processes`), and has `maury.prediction` learn how large their errors are.
`joint` trains one model for several surveys, `transfer` moves a model to another one,
`distillation` makes a small network (the student) of a large model, and `comparison` trains every
method on the same folds.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
