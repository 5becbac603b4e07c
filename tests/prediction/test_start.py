"""What a prediction of a store need not import: its start is most of the time of a small survey."""

import subprocess
import sys

import pytest

HEAVY = {"xarray", "pandas", "dask", "scipy.optimize", "scipy.interpolate", "matplotlib"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "unused"), [(".parquet", {"astropy"}), (".fits", {"astropy.table"})]
)
def test_predict_imports_only_what_it_uses(tmp_path, tiny_survey, tiny_model, suffix, unused):
    code = (
        "import sys\n"
        "from maury.prediction.streaming import write_catalogue\n"
        f"write_catalogue({str(tiny_model)!r}, {str(tiny_survey)!r}, sys.argv[1])\n"
        f"print(sorted({HEAVY | unused!r} & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / f"labels{suffix}")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
