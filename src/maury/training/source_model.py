"""What a model hands on to one for another survey: theory, stars, scalings, weights, split.

Theory differs from real spectra in ways that belong to the stars and not to the spectrograph, and
the relations between labels and magnitudes are the same in every survey. A model that was
calibrated on thousands of stars thus knows most of what one for another survey must learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from maury.errors import ConfigError, GridMismatch, ModelFileError
from maury.io.arrays import BoolArray, Float32Array, Float64Array
from maury.labels.definitions import LABEL_NAMES
from maury.model.directory import Model
from maury.model.split import Split, with_known_parts
from maury.simulation.drawing import draw_around
from maury.simulation.emulator import Emulator
from maury.simulation.missing_labels import fill_labels
from maury.simulation.population import Population
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.operators import vacuum_to_air
from maury.spectra.spectra import describe_grid
from maury.spectra.star_identity import StarMarks
from maury.survey.store import Survey
from maury.training.simulated import FLUX_BUFFERS, PIXEL_WEIGHTS

LEAST_OVERLAP_AA = 10.0
"""Least length of spectrum that both models must share: a strong line and its wings."""
LEAST_STARS = 20
"""Least training stars that calibrate the theory of a new survey."""
_N_DRAWN = 4000
"""Simulated stars that fix the projections of some 900 pixels by least squares; chosen."""


@dataclass(frozen=True, eq=False)
class SourceModel:
    """A trained model from which a transfer starts.

    Attributes
    ----------
    model : Model
        Saved, of the preset ``maury``.
    star_simulator : TrainingStarSimulator
        Its calibrated theory and its stars.
    """

    model: Model
    star_simulator: TrainingStarSimulator

    @classmethod
    def of(cls, model: Model) -> Self:
        """Take up a model.

        Raises
        ------
        ConfigError
            If it is not of the preset ``maury``, or predicts other labels than its nine.
        """
        name = model.network["name"]
        if name != "maury" or "sky" not in model.attachments:
            raise ConfigError(
                f"only models of the preset 'maury' can be moved to another survey, as they know "
                f"what theory lacks; {model.path} is of '{name}': train one on the new survey"
            )
        if model.label_names != LABEL_NAMES:
            raise ConfigError(
                f"{model.path} predicts {', '.join(model.label_names)}, and stars are simulated by "
                f"{', '.join(LABEL_NAMES)}; train a model of these labels"
            )
        star_simulator = TrainingStarSimulator.of_model(model)
        if star_simulator.learnt is not None:
            raise ConfigError(
                f"the theory of {model.path} was learnt from its own survey, and does not know "
                'another; train a model on the new survey, or one with theory = "emulator"'
            )
        return cls(model, star_simulator)

    def record(self) -> dict[str, Any]:
        """Return what the target model remembers of it, as plain JSON."""
        survey = self.model.provenance.get("survey", {})
        earlier = self.model.provenance.get("transferred_from")
        return {
            "name": self.model.path.name if self.model.path else "",
            "checksum": self.model.checksum,
            "members": len(self.model.kept),
            "grid": describe_grid(self.model.wave_aa, self.model.medium),
            "resolving_power": self.star_simulator.observing.resolving_power,
            "survey": survey.get("name", "") if isinstance(survey, dict) else "",
            "transferred_from": earlier,
        }

    def check_labels(self, survey: Survey) -> None:
        """Raise `ConfigError` if the survey shares no label, or has one in another unit."""
        units = {label.name: label.unit for label in survey.label_definitions}
        common = [label for label in self.model.labels if label.name in survey.label_names]
        if not common:
            raise ConfigError(
                f"{survey.path} has none of the labels that {self.model.path} predicts "
                f"({', '.join(self.model.label_names)}); ingest it with labels of common stars"
            )
        wrong = [label for label in common if units[label.name] != label.unit]
        if wrong:
            raise ConfigError(
                f"{survey.path} and {self.model.path} have these labels in different units: "
                + ", ".join(f"{x.name} ({units[x.name]}, {x.unit})" for x in wrong)
                + "; ingest the survey with the units of the model"
            )

    def check_grid(self, wave_aa: Float64Array, medium: str) -> None:
        """Raise `GridMismatch` unless the prepared pixels overlap with those of this model."""
        air = wave_aa if medium == "air" else np.asarray(vacuum_to_air(wave_aa))
        own = self.star_simulator.wave_aa
        shared = min(air[-1], own[-1]) - max(air[0], own[0])
        if shared < LEAST_OVERLAP_AA:
            raise GridMismatch(
                f"the spectra reach over {air[0]:.0f}-{air[-1]:.0f} angstrom in air and those of "
                f"{self.model.path} over {own[0]:.0f}-{own[-1]:.0f}, which must overlap by "
                f"{LEAST_OVERLAP_AA:.0f}; train a model on the new survey alone"
            )

    def divide(self, split: Split, stars: StarMarks) -> Split:
        """Return the split in which stars of the source model keep the part they had there."""
        return with_known_parts(split, [self.model.split], stars)

    def fill(self, labels: Float64Array) -> Float64Array:
        """Return labels, missing ones filled in from the source model's stars of such labels.

        A star needs Teff, log g, and [M/H] or [Fe/H]; without, it is NaN throughout.

        Parameters
        ----------
        labels : (n_star, 9) float64
            NaN where missing.
        """
        return fill_labels(labels, self.star_simulator.labels)

    def extend(
        self, star_simulator: TrainingStarSimulator, *, whole: BoolArray
    ) -> TrainingStarSimulator:
        """Return a star simulator of the new survey with the source model's stars besides its own.

        Parameters
        ----------
        star_simulator : TrainingStarSimulator
            Of the new survey.
        whole : (n,) bool
            Which of its stars have all labels; the others are left out.
        """
        return replace(
            star_simulator,
            labels=np.concatenate([self.star_simulator.labels, star_simulator.labels[whole]]),
            observables=np.concatenate(
                [self.star_simulator.observables, star_simulator.observables[whole]]
            ),
        )

    def starts(
        self, star_simulator: TrainingStarSimulator, n_member: int, seed: int
    ) -> list[Mapping[str, Float32Array]]:
        """Return the weights that each member starts with: a network's, its pixels replaced.

        The projections of a spectrum are those that come nearest to the source model's projections
        of the same stars, in the least-squares sense, with the noise of the new survey and the
        scatter of its continuum and Ca II cores: the source model's networks see through them.

        Parameters
        ----------
        star_simulator : TrainingStarSimulator
            Of the new survey.
        n_member, seed : int
        """
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(8,)))
        # Spread a little around the labelled stars: a few hundred of them could not fix 900 pixels.
        labels, _ = draw_around(star_simulator.labels, star_simulator.observables, _N_DRAWN, rng)
        full = Emulator.load().clip(Population.load().complete(labels, rng))
        # One seed for both surveys, so that a star rotates alike in its two spectra.
        broadening = int(rng.integers(2**32))
        old, new = (
            s.spectra(full, np.random.default_rng(broadening))
            for s in (self.star_simulator, star_simulator)
        )
        mean_old, mean_new = old.mean(axis=0), new.mean(axis=0)
        new -= mean_new
        covariance = (new.T @ new / np.float32(len(new))).astype(np.float64)
        calibration = star_simulator.calibration
        for modes in (calibration.core_modes, calibration.continuum_modes * mean_new):
            covariance += modes.T.astype(np.float64) @ modes
        # White noise at the survey's S/N is a ridge: weights on pixels that noise rules are held
        # down.
        covariance[np.diag_indices(len(covariance))] += np.median(star_simulator.snr) ** -2.0
        factor = cho_factor(covariance)
        kept = self.model.kept
        starts: list[Mapping[str, Float32Array]] = []
        for number in range(n_member):
            # More members than the source model has start alike, and part by their seeds.
            weights = self.model.weights(kept[number % len(kept)])
            centre, scale = (weights.pop(name) for name in FLUX_BUFFERS)
            per_flux = weights[PIXEL_WEIGHTS] / scale
            wanted = (old - mean_old) @ per_flux.T
            solution = cho_solve(factor, new.T @ wanted / np.float32(len(new)))
            weights[PIXEL_WEIGHTS] = np.ascontiguousarray(solution.T, dtype=np.float32)
            # Of the mean spectrum the new projection gives what the old one gave.
            bias = weights["project.bias"] + per_flux @ (mean_old - centre)
            weights["project.bias"] = bias.astype(np.float32)
            starts.append(weights)
        return starts


def source_training(model: Model) -> dict[str, Any]:
    """Return the settings by which the stars of a model were simulated, as plain JSON.

    Raises
    ------
    ModelFileError
        If they are not recorded.
    """
    try:
        return dict(model.training["settings"]["training"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{model.path} does not say how it was trained: {error}") from error
