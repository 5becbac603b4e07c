"""How good a model is, and where its labels come from: figures of merit as data and tables.

`validation` measures bias, scatter and errors on stars that steered nothing, `audit` tells measured
labels from inferred ones, `adviser` says which stars to label next, `joint_validation` does so for
several surveys, `ranking` and `consensus` set methods side by side, and `card` writes the model
card. `report` draws what is found here.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
