"""A model without networks worth the name, for tests of what stands around them."""

import numpy as np

from maury.labels.definitions import select
from maury.model.directory import Affine, Member, Model, Scaling
from maury.model.split import SplitRecord, split_stars
from maury.spectra.preparation import Preparation


def untrained(folder, names, **changes):
    """A model of these labels without networks worth the name."""
    labels = select(names)
    n = len(labels)
    truth = np.random.default_rng(0).normal(size=(9, n))
    stars = [f"star {k}" for k in range(9)]
    return Model(
        labels=labels,
        network={"name": "guiglion2020"},
        preparation=Preparation(),
        scaling=Scaling(Affine.measure(np.eye(9)), Affine.measure(truth)),
        wave_aa=8420.0 + 0.4 * np.arange(8),
        medium="air",
        tensors={"a.weight": (2, 3)},
        members=(Member.numbered(0),),
        split=SplitRecord.of(split_stars(stars, fractions=(0.8, 0.1, 0.1), seed=0), stars),
        simulated=True,
        **changes,
    ).save(folder / "model", weights=[{"a.weight": np.ones((2, 3), "f4")}])
