"""A trained model applied to a survey: labels, calibrated errors, flags, and a catalogue.

`predictor` takes a batch to labels with errors (`calibration`, `uncertainty`) and raises the flags
of a prediction (`coverage`: unlike the training sample; `residual_tests`: emission, second lines,
velocity); `streaming` runs it over a survey, resumable and in parallel; `catalogue` holds and
writes the result. Before a run, `self_check` compares the model with itself and `drift` the survey
with the training sample.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
