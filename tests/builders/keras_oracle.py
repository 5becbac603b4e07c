"""Evaluate the published RAVE networks (Guiglion et al. 2020) with h5py and numpy alone.

Walks the layer graph stored in each file, whatever the layers are called; shares no code with
the package, so it can serve as its oracle.
"""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

LABELS = ("teff", "logg", "m_h", "fe_h", "alpha_m", "si_fe", "al_fe", "mg_fe", "ni_fe")

# Eight absolute magnitudes (G, BP, RP, J, H, Ks, W1, W2), then A_V.
PHOTOMETRY_MIN = np.array(
    [-3.033822, -2.200069, -4.066158, -5.636847, -6.491847, -6.770847, -6.958847, -6.765847, 0.0]
)
PHOTOMETRY_MAX = np.array(
    [9.449080, 10.688704, 8.371729, 6.946641, 6.396641, 6.076641, 5.919641, 5.841641, 3.089904]
)
LABEL_MIN, LABEL_MAX = np.array(
    [
        (3658.889404, 7286.502930),
        (0.243070, 4.932168),
        (-1.967362, 0.505558),
        (-1.944362, 0.474508),
        (-0.140845, 0.420819),
        (-0.374029, 0.632775),
        (-0.683301, 0.804888),
        (-0.375669, 0.567181),
        (-0.616386, 0.302641),
    ]
).T


def absolute_magnitudes(apparent: np.ndarray, parallax_mas: np.ndarray) -> np.ndarray:
    return apparent + 5.0 * (np.log10(parallax_mas / 1000.0)[:, None] + 1.0)


def evaluate(path: Path, spectra: np.ndarray, photometry: np.ndarray) -> np.ndarray:
    """Scaled labels (n, 9) of one network from spectra (n, 912) and scaled photometry (n, 9)."""
    with h5py.File(path, "r") as file:
        config = json.loads(file.attrs["model_config"])["config"]
        values: dict[str, np.ndarray] = {}
        for layer in config["layers"]:
            name, kind, options = layer["name"], layer["class_name"], layer["config"]
            inbound = [values[node[0]] for node in (layer["inbound_nodes"] or [[]])[0]]
            if kind == "InputLayer":
                is_spectrum = options["batch_input_shape"][1] == spectra.shape[1]
                values[name] = (spectra if is_spectrum else photometry).reshape(len(spectra), -1, 1)
            elif kind in ("Conv1D", "Dense"):
                group = file["model_weights"][name][name]
                kernel, bias = group["kernel:0"][()], group["bias:0"][()]
                values[name] = (_convolve if kind == "Conv1D" else np.matmul)(
                    inbound[0], kernel.astype(inbound[0].dtype)
                ) + bias
            elif kind == "LeakyReLU":
                values[name] = np.where(inbound[0] > 0, inbound[0], options["alpha"] * inbound[0])
            elif kind == "Flatten":
                values[name] = inbound[0].reshape(len(inbound[0]), -1)
            elif kind == "Concatenate":
                values[name] = np.concatenate(inbound, axis=1)
            elif kind == "Dropout":
                values[name] = inbound[0]
            else:
                raise ValueError(f"unknown layer {kind}")
        return values[config["output_layers"][0][0]]


def _convolve(signal: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(signal, kernel.shape[0], axis=1)
    return np.tensordot(windows, kernel, axes=([3, 2], [0, 1]))


def predict(
    paths: list[Path], spectra: np.ndarray, absolute_mag: np.ndarray, a_v: np.ndarray
) -> np.ndarray:
    """Labels (n_network, n, 9) in physical units."""
    photometry = np.column_stack([absolute_mag, a_v])
    scaled = (photometry - PHOTOMETRY_MIN) / (PHOTOMETRY_MAX - PHOTOMETRY_MIN)
    output = []
    for path in paths:
        blocks = [
            evaluate(path, spectra[k : k + 500], scaled[k : k + 500])
            for k in range(0, len(spectra), 500)
        ]
        output.append(np.concatenate(blocks) * (LABEL_MAX - LABEL_MIN) + LABEL_MIN)
    return np.array(output)
