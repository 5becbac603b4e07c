"""Run by the interpreter of another environment: TheCannon on given data, to be compared with."""

import sys
import types
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from TheCannon.infer_labels import _infer_labels
from TheCannon.train_model import _train_model


class DataSet(types.SimpleNamespace):
    """What these functions take of a data set."""

    def get_plotting_labels(self):
        return ["a"] * self.tr_label.shape[1]

    def set_test_label_vals(self, values):
        self.test_label_vals = values


folder = Path(sys.argv[1])
data = np.load(folder / "data.npz")
stars = DataSet(
    tr_label=data["truth"],
    wl=np.arange(data["flux"].shape[1], dtype=float),
    tr_flux=data["flux"].copy(),
    tr_ivar=data["ivar"].copy(),
    test_flux=data["test_flux"].copy(),
    test_ivar=data["test_ivar"].copy(),
)
coeffs, scatters, _, pivots, scales = _train_model(stars)
model = types.SimpleNamespace(coeffs=coeffs, scatters=scatters, scales=scales, pivots=pivots)
start = np.zeros(data["truth"].shape[1])
errors, _ = _infer_labels(model, stars, starting_guess=start)
np.savez(
    folder / "peer.npz",
    coeffs=coeffs,
    scatters=scatters,
    labels=stars.test_label_vals,
    errors=errors,
)
