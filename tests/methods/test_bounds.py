"""What a file of a method may ask for; `tests/whole/test_bounds.py` reads some under limits."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from annotated_types import Le, Lt, MaxLen

from builders.method_samples import draw_labels, lines, sample_of
from maury.methods.athos import Athos, AthosSettings
from maury.methods.cannon import Cannon, CannonSettings
from maury.methods.fitting.grid import Grid
from maury.methods.registry import METHODS, method_class

SETTINGS = [
    pytest.param(field, id=f"{method}-{name}")
    for method in METHODS
    for name, field in method_class(method).settings_class.model_fields.items()
    if int in (field.annotation, *get_args(field.annotation))
    or (float in get_args(field.annotation) and Ellipsis in get_args(field.annotation))
]


@pytest.mark.parametrize("field", SETTINGS)
def test_a_count_of_a_setting_has_an_upper_limit(field):
    kinds = (MaxLen,) if Ellipsis in get_args(field.annotation) else (Le, Lt)
    assert any(isinstance(one, kinds) for one in field.metadata), field


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(7)
    scaled, truth = draw_labels(120, rng)
    flux = lines(scaled) + rng.normal(0.0, 0.01, (120, 120))
    return sample_of(truth, flux, np.full(flux.shape, 1e4))


@pytest.mark.parametrize(
    "about",
    [
        {"resolving_power": 0.0},
        {"resolving_power": 1e300},
        {"resolving_power": "7500"},
        {"resolving_power": float("nan")},
        {"noise_correlation": [0.0] * 2000},
        {"noise_correlation": [0.9]},
        {"noise_correlation": None},
    ],
)
def test_numbers_of_a_document_are_looked_at_before_arrays(sample, about):
    settings = CannonSettings()
    fitted = Cannon.train(sample, sample, settings=settings, seed=0)
    arrays, known = fitted.to_arrays()
    names = fitted.label_names
    Cannon.from_arrays(arrays, known, settings=settings, label_names=names)
    with pytest.raises((ValueError, TypeError)):
        Cannon.from_arrays(arrays, known | about, settings=settings, label_names=names)


@pytest.mark.parametrize("window", [(-1, 3, 5, 8), (4, 4, 5, 8), (1, 3, 5, 10**12), (1, 3, 8, 5)])
def test_windows_lie_in_the_spectrum(sample, window):
    fitted = Athos.train(sample, sample, settings=AthosSettings(ratios=3), seed=0)
    windows = fitted.windows.copy()
    windows[0, 0] = window
    with pytest.raises(ValueError, match="windows reach"):
        replace(fitted, windows=windows)


def test_a_grid_of_many_labels_is_refused():
    wave = np.arange(5.0)
    none = np.zeros(5, np.float32)
    axes = tuple(np.array([0.0, 1.0]) for _ in range(9))
    names = tuple("abcdefghi")
    with pytest.raises(ValueError, match="a grid of 9 labels"):
        Grid(names, axes, np.zeros((2**9, 5), np.float32), None, none, wave, none)
