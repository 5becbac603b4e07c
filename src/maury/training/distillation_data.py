"""The distillation set: inputs of many stars and the predictions of an ensemble for them.

A batch of the set holds simulated stars, some of them without a part of their inputs, and rows of a
survey where one is given. Each batch is drawn from (seed, number of the batch), so that a run that
is killed goes on with the next one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from maury.errors import ConfigError, OutputError
from maury.io.arrays import AnyArray, Int64Array
from maury.io.files import writing
from maury.labels.flags import FLAG_DTYPE
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork, load_members
from maury.model.networks.student import StudentNetwork
from maury.prediction.uncertainty import UncertaintyModel
from maury.simulation.dropping import drop_inputs
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.pixels import FLUX_FLOOR
from maury.spectra.preparation import Inputs
from maury.survey.store import Survey
from maury.training.simulated import SimulatedTraining

BATCH_STARS = 16384
"""Simulated stars of one batch of the distillation set."""
_REOBSERVED = 4
"""Spectra of a batch for each simulated star: noise differs, and so may what is missing."""
_SURVEY_BLOCK = 128
"""Neighbouring rows read together: a chunk of a store is not opened for every row; chosen."""


@dataclass(frozen=True)
class DistillationBatch:
    """Inputs of a student network and predictions of the teacher for the same stars.

    Attributes
    ----------
    pixels : (n_star, n_pixel) float16 tensor
        As of `maury.model.networks.student.StudentNetwork.network_inputs`.
    other : (n_star, n_other) float32 tensor
        Likewise.
    mean, sigma : (n_star, n_label) float32 tensor
        Scaled labels and their calibrated errors.
    correlation : (n_star, n_pair) float32 tensor
        Of all pairs of labels, in the order of ``numpy.triu_indices``.
    """

    pixels: Tensor
    other: Tensor
    mean: Tensor
    sigma: Tensor
    correlation: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def rows(self, index: Tensor) -> DistillationBatch:
        """Return the stars of `index`, with pixels in float32."""
        return DistillationBatch(self.pixels[index].float(), *(self._tensors(index)))

    def _tensors(self, index: Tensor) -> list[Tensor]:
        rest = (self.other, self.mean, self.sigma, self.correlation)
        return [tensor[index] for tensor in rest]


class TeacherModel:
    """A model whose calibrated predictions a student is trained on.

    Parameters
    ----------
    model : Model
        Saved, of the preset ``maury``.

    Raises
    ------
    ConfigError
        If it cannot simulate its survey, as other presets cannot, or is a student itself.
    """

    def __init__(self, model: Model) -> None:
        name = model.network["name"]
        if "sky" not in model.attachments or name == "student":
            raise ConfigError(
                f"a student learns from stars that its teacher simulates, which {model.path} of "
                f"the preset '{name}' cannot; give a model of the preset maury"
            )
        self.model = model
        self.star_simulator = TrainingStarSimulator.of_model(model)
        # Photometry is the default of this preset: a model that does not say was trained with it.
        self.photometry = model.network.get("photometry") is not False
        self._network = EnsembleNetwork(model)
        self._uncertainty = UncertaintyModel.load(model, self._network)
        self._settings = _training_of(model)

    def flux_scale(self) -> Mapping[str, Tensor]:
        """Centre and scale of each pixel, as of the first network."""
        weights = self.model.weights(self.model.kept[0])
        # Members differ in it by sampling alone, as each measures it on stars of its own.
        return {name: torch.from_numpy(weights[name]) for name in ("flux_centre", "flux_scale")}

    def simulated(self, n_star: int, rng: np.random.Generator) -> Inputs:
        """Simulate stars, some without a part of their inputs."""
        settings = self._settings
        n_drawn = max(1, n_star // _REOBSERVED)
        pool = self.star_simulator.pool(
            n_drawn,
            rng,
            draw=settings.draw,
            noise=settings.noise,
            disturbances=settings.disturbances,
        )
        flux, ivar, observables, _ = pool.batch(n_star, rng)
        n_observable = len(self.model.preparation.observable_names)
        if observables.shape[1] != n_observable:
            observables = np.full((n_star, n_observable), np.nan)
        # With photon noise flux x ivar is alike in lines and continuum, so that a cool star is not
        # called noisy for its lines.
        signal = np.sqrt(ivar * np.maximum(flux, np.float32(FLUX_FLOOR)))
        snr = np.nanmedian(np.where(ivar > 0, signal, np.nan), axis=1).astype(np.float64)
        inputs = Inputs(
            flux=flux,
            ivar=ivar,
            observables=observables.astype(np.float32),
            observable_errors=np.full(observables.shape, np.nan, dtype=np.float32),
            flags=np.zeros(n_star, FLAG_DTYPE),
            snr=snr,
            wave_aa=self.model.wave_aa,
            medium=self.model.medium,
        )
        return self._dropped(inputs, rng)

    def observed(self, survey: Survey, n_star: int, rng: np.random.Generator) -> Inputs:
        """Read some rows of a survey (see `rows`), some without a part of their inputs."""
        batch = survey.rows(self.rows(survey, n_star, rng))
        return self._dropped(self.model.preparation.apply(batch), rng)

    def rows(self, survey: Survey, n_star: int, rng: np.random.Generator) -> Int64Array:
        """Choose about `n_star` rows of a survey, in blocks at random.

        Test and validation stars of the teacher are left out.
        """
        n_block = -(-len(survey) // _SURVEY_BLOCK)
        first = rng.permutation(n_block)[: -(-n_star // _SURVEY_BLOCK)] * _SURVEY_BLOCK
        rows = np.sort((first[:, None] + np.arange(_SURVEY_BLOCK)).ravel())
        rows = rows[rows < len(survey)]
        split, stars = self.model.split, survey.stars.take(rows)
        # These stars test and calibrate the student as well, so that it must not learn from them.
        held = split.contains("test", stars) | split.contains("validation", stars)
        return np.asarray(rows[~held], dtype=np.int64)

    def _dropped(self, inputs: Inputs, rng: np.random.Generator) -> Inputs:
        depends = self.model.preparation.sources
        ivar, observables = drop_inputs(
            inputs.ivar,
            inputs.observables.astype(np.float64),
            depends if self.photometry else depends[:0],
            dropping=self._settings.dropping,
            rng=rng,
            groups=self.model.preparation.observable_map.groups if self.photometry else None,
        )
        # The S/N of a spectrum that is not there is not known either.
        snr = np.where((ivar > 0).any(axis=1), inputs.snr, np.nan)
        return replace(inputs, ivar=ivar, observables=observables.astype(np.float32), snr=snr)

    def batch(self, inputs: Inputs, student: StudentNetwork) -> DistillationBatch:
        """Return inputs and predictions of some stars, less stars without a prediction."""
        output = self._network.predict(inputs)
        sigma, covariance = output.sigma, output.covariance
        if self._uncertainty is not None:
            found = self._uncertainty.calibrate(inputs, output)
            sigma, covariance = found.sigma, found.covariance
        assert covariance is not None, "networks of the preset maury predict a covariance"
        known = np.isfinite(output.mean).all(axis=1) & np.isfinite(sigma).all(axis=1)
        first, second = np.triu_indices(sigma.shape[1], 1)
        # Correlations and not covariances, as these would be ruled by the labels with the largest
        # errors.
        pairs = covariance[:, first, second] / (sigma[:, first] * sigma[:, second])
        scaling = self.model.scaling
        observables = scaling.observables.forward(inputs.observables)[known]
        seen = (inputs.flux[known], inputs.ivar[known], observables[:, : student.n_observable])
        with torch.no_grad():
            pixels, other = student.network_inputs(*(torch.from_numpy(array) for array in seen))
        predicted = (scaling.labels.forward(output.mean), sigma / scaling.labels.scale, pairs)
        rest = (torch.from_numpy(array[known].astype(np.float32)) for array in predicted)
        # Pixels are scaled to order 1, where float16 rounds by 5e-4, below their noise; it halves
        # memory and disk.
        return DistillationBatch(pixels.half(), other, *rest)

    def slopes(self, inputs: Inputs) -> Tensor:
        """Return derivatives of all labels, in units of their errors, by the scaled pixels.

        Parameters
        ----------
        inputs : Inputs
            Stars at which they are taken.

        Returns
        -------
        (n_star x n_label, n_pixel) float32 tensor
        """
        output = self._network.predict(inputs)
        error = torch.from_numpy(output.sigma / self.model.scaling.labels.scale).float()
        observables = self.model.scaling.observables.forward(inputs.observables)
        members = load_members(self.model)
        flux = torch.from_numpy(inputs.flux.copy()).requires_grad_()
        ivar = torch.from_numpy(inputs.ivar)
        seen = torch.from_numpy(observables if self.photometry else observables[:, :0].copy())
        mean = sum(member(flux, ivar, seen).mean for member in members) / len(members)
        scale = self.flux_scale()["flux_scale"]
        slopes = [
            # Stars are independent, so that the gradient of the sum over stars is that of each
            # star.
            torch.autograd.grad(label.sum(), flux, retain_graph=True)[0] * scale
            for label in (mean / error).T
        ]
        return torch.cat(slopes)


def _training_of(model: Model) -> SimulatedTraining:
    """How the stars of a model were simulated; the defaults where that is not recorded."""
    try:
        return SimulatedTraining.model_validate(model.training["settings"]["training"])
    except (KeyError, ValidationError):
        return SimulatedTraining()


_FIELDS = ("pixels", "other", "mean", "sigma", "correlation")


@dataclass(frozen=True)
class DistillationSet:
    """The batches of a distillation set in a directory, one .npy file per array."""

    path: Path

    def has(self, number: int) -> bool:
        """Whether a batch is whole."""
        return self._sums(number).is_file()

    def put(self, number: int, batch: DistillationBatch) -> None:
        """Write a batch; its checksums appear when all else is there."""
        sums = {}
        for name in _FIELDS:
            array = np.ascontiguousarray(getattr(batch, name).numpy())
            with writing(self._file(number, name), overwrite=True) as partial:
                np.save(partial, array)
            # A CRC finds what a disk or a kill damages; nobody forges a work folder.
            sums[name] = zlib.crc32(array.data)
        with writing(self._sums(number), overwrite=True) as partial:
            partial.write_text(json.dumps(sums), "utf-8")

    def load(self, n_batch: int) -> DistillationBatch:
        """Read the first batches, joined.

        Raises
        ------
        OutputError
            If one is damaged; it is then removed.
        """
        read = [self._read(number) for number in range(n_batch)]
        arrays = {name: np.concatenate([one[name] for one in read]) for name in _FIELDS}
        return DistillationBatch(
            **{name: torch.from_numpy(array) for name, array in arrays.items()}
        )

    def _read(self, number: int) -> dict[str, AnyArray]:
        try:
            sums = json.loads(self._sums(number).read_text("utf-8"))
            # Mapped, so that joining the batches does not take them into memory twice.
            arrays = {name: np.load(self._file(number, name), "r") for name in _FIELDS}
            whole = all(zlib.crc32(arrays[name].data) == sums[name] for name in _FIELDS)
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            self._sums(number).unlink(missing_ok=True)
            raise OutputError(
                f"{self.path}: batch {number} of the distillation set is damaged, and is removed; "
                "give the same command again, which makes the batch again"
            )
        return arrays

    def _sums(self, number: int) -> Path:
        return self.path / f"sheet-{number:04d}.json"

    def _file(self, number: int, name: str) -> Path:
        return self.path / f"sheet-{number:04d}-{name}.npy"


def join(first: DistillationBatch, second: DistillationBatch) -> DistillationBatch:
    """Return one batch of the stars of both."""
    pairs = ((getattr(first, name), getattr(second, name)) for name in _FIELDS)
    return DistillationBatch(*(torch.cat(pair) for pair in pairs))
