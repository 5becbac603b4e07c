"""The model directory, and the networks in it.

`Model` is a directory of safetensors and JSON: weights, preparation, scaling, split, attachments,
citations. `networks` are the architectures (a new one goes there), `engines` compute them fast,
`inference` runs an ensemble on prepared inputs (a whole prediction, with errors and flags, is
`maury.prediction`). A `JointModel` (`joint_model`) holds one model for each of several surveys, and
what they share. `split` decides which stars train, validate and test; `keras` imports published
networks.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
