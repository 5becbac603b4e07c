"""Keras, for `inference.py` and `training.py`: runs in a virtual environment of its own.

Lines of JSON come in on the standard input and go out on the standard output; each answer gives
CPU seconds. It needs `tensorflow` and nothing of maury.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

import keras
import numpy as np
import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


def cpu_seconds(task: Callable[[], Any]) -> float:
    """CPU time of a task."""
    start = time.process_time()
    task()
    return time.process_time() - start


class Networks:
    """The released networks, on some stars."""

    def __init__(self, directory: str, stars: str) -> None:
        files = sorted(Path(directory).glob("*.h5"))
        self._networks = [keras.models.load_model(file, compile=False) for file in files]
        with np.load(stars) as arrays:
            self._inputs = [arrays["flux"][..., None], arrays["observables"][..., None]]
        networks = self._networks
        self._function = tf.function(
            lambda flux, observables: tf.stack(
                [network([flux, observables], training=False) for network in networks]
            ),
            reduce_retracing=True,
        )
        self.output = np.zeros(0)

    def predict(self, batch: int) -> None:
        """Call `predict` of each network."""
        self.output = np.stack(
            [one.predict(self._inputs, batch_size=batch, verbose=0) for one in self._networks]
        )

    def function(self, batch: int) -> None:
        """Call all networks as one `tf.function`, batch by batch."""
        starts = range(0, len(self._inputs[0]), batch)
        pieces = [
            self._function(*(tf.constant(x[k : k + batch]) for x in self._inputs)).numpy()
            for k in starts
        ]
        self.output = np.concatenate(pieces, axis=1)


def train(stars: str, seed: int, epochs: int, goal: float, patience: int) -> dict[str, Any]:
    """Train the published recipe: batch 16, Adam 1e-3, until the validation loss is `goal`."""
    keras.utils.set_random_seed(seed)
    with np.load(stars) as arrays:
        part = {name: arrays[name] for name in arrays.files}
    n_pixel, n_observable = part["train_flux"].shape[1], part["train_observables"].shape[1]
    model = published(n_pixel, n_observable, part["train_target"].shape[1])
    model.compile(optimizer=keras.optimizers.Adam(1e-3, epsilon=1e-7), loss="mse")
    course: list[tuple[float, float]] = []
    start = time.process_time()

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            course.append((time.process_time() - start, float(logs["val_loss"])))
            losses = [loss for _, loss in course]
            waited = len(losses) - 1 - int(np.argmin(losses))
            if losses[-1] <= goal or waited >= patience:
                self.model.stop_training = True

    model.fit(
        [part["train_flux"][..., None], part["train_observables"]],
        part["train_target"],
        validation_data=(
            [part["validation_flux"][..., None], part["validation_observables"]],
            part["validation_target"],
        ),
        batch_size=16,
        epochs=epochs,
        verbose=0,
        callbacks=[Watch()],
    )
    return {"course": course}


def published(n_pixel: int, n_observable: int, n_label: int) -> Any:
    """Return the network of Guiglion et al. (2020)."""
    layers = keras.layers
    spectrum = layers.Input((n_pixel, 1))
    signal = spectrum
    for filters in (8, 4, 2):
        signal = layers.LeakyReLU(negative_slope=0.3)(layers.Conv1D(filters, 10)(signal))
    signal = layers.Flatten()(layers.Dropout(0.2)(signal))
    signal = layers.LeakyReLU(negative_slope=0.3)(layers.Dense(32)(signal))
    observables = layers.Input((n_observable,))
    other = layers.LeakyReLU(negative_slope=0.3)(layers.Dense(27)(observables))
    head = layers.Dense(16)(layers.Concatenate()([signal, other]))
    output = layers.Dense(n_label)(layers.LeakyReLU(negative_slope=0.3)(head))
    return keras.Model([spectrum, observables], output)


def main() -> None:
    """Answer requests until there are no more."""
    networks: Networks | None = None
    for line in sys.stdin:
        request = json.loads(line)
        task = request.pop("task")
        answer: dict[str, Any] = {}
        if task == "load":
            networks = Networks(**request)
            answer = {"keras": keras.__version__, "tensorflow": tf.__version__}
        elif task == "train":
            answer = train(**request)
        elif networks is not None and task == "save":
            np.save(request["file"], networks.output)
        elif networks is not None:
            call = getattr(networks, task)
            answer = {"seconds": cpu_seconds(lambda call=call, batch=request["batch"]: call(batch))}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
