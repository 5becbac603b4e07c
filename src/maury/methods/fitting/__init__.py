"""What the methods share: forward models, chains of operators, priors, grids, and one batched fit.

`theory` and `grid` give model spectra, `chain` turns them into observed ones, `noise` weighs the
residuals, `knowledge` holds what is known besides the spectrum, and `fitter` finds the labels.
"""
