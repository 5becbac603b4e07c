"""Networks of random weights in the files and under the names of Keras 2."""

import json

import h5py
import numpy as np

SLOPE = 0.30000001192092896


KERNELS = {
    "Conv1D": [(10, 1, 8), (10, 8, 4), (10, 4, 2)],
    "Dense": [(1770, 32), (9, 27), (59, 16), (16, 9)],
}


def layer(kind, name, parents=(), **config):
    nodes = [[[parent, 0, 0, {}] for parent in parents]] if parents else []
    return {"class_name": kind, "name": name, "config": config, "inbound_nodes": nodes}


def graph(tag=""):
    """Layers of the released networks, under names that end in `tag`."""
    layers = [layer("InputLayer", f"in_a{tag}", batch_input_shape=[None, 912, 1])]
    last = f"in_a{tag}"
    for k, n in enumerate((8, 4, 2)):
        conv = {"filters": n, "kernel_size": [10], "strides": [1], "padding": "valid"}
        layers.append(layer("Conv1D", f"c{k}{tag}", [last], **conv, activation="linear"))
        layers.append(layer("LeakyReLU", f"lc{k}{tag}", [f"c{k}{tag}"], alpha=SLOPE))
        last = f"lc{k}{tag}"
    layers += [
        layer("Dropout", f"drop{tag}", [last], rate=0.2),
        layer("InputLayer", f"in_b{tag}", batch_input_shape=[None, 9, 1]),
        layer("Flatten", f"fa{tag}", [f"drop{tag}"], data_format="channels_last"),
        layer("Flatten", f"fb{tag}", [f"in_b{tag}"], data_format="channels_last"),
        layer("Dense", f"d0{tag}", [f"fa{tag}"], units=32, activation="linear"),
        layer("Dense", f"d1{tag}", [f"fb{tag}"], units=27, activation="linear"),
        layer("LeakyReLU", f"la{tag}", [f"d0{tag}"], alpha=SLOPE),
        layer("LeakyReLU", f"lb{tag}", [f"d1{tag}"], alpha=SLOPE),
        layer("Concatenate", f"join{tag}", [f"la{tag}", f"lb{tag}"], axis=-1),
        layer("Dense", f"d2{tag}", [f"join{tag}"], units=16, activation="linear"),
        layer("LeakyReLU", f"ld{tag}", [f"d2{tag}"], alpha=SLOPE),
        layer("Dense", f"d3{tag}", [f"ld{tag}"], units=9, activation="linear"),
    ]
    return {
        "layers": layers,
        "input_layers": [[f"in_a{tag}", 0, 0], [f"in_b{tag}", 0, 0]],
        "output_layers": [[f"d3{tag}", 0, 0]],
    }


def write(path, config=None, seed=0):
    """Write a network of random weights in the layout of Keras 2."""
    rng = np.random.default_rng(seed)
    config = graph() if config is None else config
    shapes = {kind: iter(rows) for kind, rows in KERNELS.items()}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": config})
        for one in config["layers"]:
            name, kind = one["name"], one["class_name"]
            if kind in KERNELS:
                shape = next(shapes[kind])
                group = file.create_group(f"model_weights/{name}/{name}")
                width = np.sqrt(2 / np.prod(shape[:-1]))
                group["kernel:0"] = rng.normal(0, width, shape).astype("f4")
                group["bias:0"] = rng.normal(0, 0.1, shape[-1]).astype("f4")
    return path
