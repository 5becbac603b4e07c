"""Other ways from a spectrum to labels, on one machinery: fits of forward models, and regressors.

`maury.methods.registry` lists them; `maury train SURVEY MODEL --method NAME` trains one.
"""
