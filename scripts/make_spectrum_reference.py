"""Write the spectra that networks without a training sample are compared with.

    python scripts/make_spectrum_reference.py src/maury/prediction/data/OUT.safetensors

Median, principal components, and the range of 99 % of 2000 simulated spectra of the RAVE window, as
`maury.prediction.drift.with_sample` keeps them of the training stars of a model.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from maury.prediction.drift import N_STAR, flux_sample
from maury.simulation.surveys import simulate_survey
from maury.spectra.preparation import Preparation, join_inputs
from maury.survey.store import Survey
from maury.version import __version__

SEED = 16


def main() -> None:
    """Simulate, prepare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as temporary:
        survey = simulate_survey(Path(temporary) / "s.zarr", n_star=N_STAR, seed=SEED)
        survey = Survey.open(survey.path)
        prepare = Preparation.published().apply
        inputs = join_inputs([prepare(survey.batch(k, k + 500)) for k in range(0, N_STAR, 500)])
        arrays = flux_sample(inputs) | {"wave_aa": inputs.wave_aa}
        about = {"simulated": "true", "maury": __version__, "seed": str(SEED)}
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, out, metadata=about)


if __name__ == "__main__":
    main()
