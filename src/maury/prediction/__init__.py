"""A trained model applied to a survey: labels, calibrated errors, flags, and a catalogue.

`predictor` takes a batch to labels with errors, by the `Labeller` of its kind of model
(`labellers`), and raises the flags of a prediction: `coverage` says what is unlike the training
sample, `peculiar_spectra` what has emission, second lines or another velocity. `calibration`,
`conformal` and `uncertainty` are how errors are learnt on held-out stars (by `training`) and given
to new ones. `joint_predictor` and `joint_catalogue` answer stars that several surveys saw.
`streaming` runs it over a survey, resumable and in parallel, `by_star` combines the spectra of a
star, `catalogue` holds and writes the result. Before a run, `self_check` compares the model with
itself and `drift` the survey with the training sample.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
