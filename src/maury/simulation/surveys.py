"""Simulated surveys: population, emulator and observing model, streamed into a survey store.

Stars are made in blocks, each from its own random stream, so that a star depends on the seed and
its number alone: a longer survey begins with the stars of a shorter one, and a run that was killed
goes on where it stopped, with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from maury.errors import ConfigError
from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.io.cluster import Cluster
from maury.io.workers import one_thread
from maury.labels.columns import BANDS, Column
from maury.labels.definitions import LABEL_NAMES, LABELS
from maury.simulation.bound import covers
from maury.simulation.emulator import Emulator
from maury.simulation.galaxy import Discs
from maury.simulation.observing import (
    RAVE_WAVE_AA,
    SURVEY_CONDITIONS,
    TRAINING_CONDITIONS,
    Observation,
    ObservingModel,
    Spectrograph,
)
from maury.simulation.population import OBSERVED, TRAINING, Population, Selection, Stars
from maury.spectra.batch import Readable
from maury.spectra.operators import vacuum_to_air
from maury.spectra.spectra import Medium
from maury.survey.store import Survey
from maury.survey.writer import CHUNK_STARS, SurveyWriter, put_rows

__all__ = ["LABELLED_SURVEY", "OBSERVED_SURVEY", "Simulation", "Simulator", "simulate_survey"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

BLOCK_STARS = 256
"""Stars per random stream. Always made in full, as matrix products round by their shape."""

LABEL_ERRORS: dict[str, float] = {
    "teff": 25.0,
    "logg": 0.03,
    "m_h": 0.01,
    "fe_h": 0.01,
    "alpha_m": 0.01,
    "si_fe": 0.015,
    "al_fe": 0.03,
    "mg_fe": 0.015,
    "ni_fe": 0.015,
}
"""Median quoted errors of reference labels, of the size of APOGEE's internal ones (Jönsson et al.
2020, AJ 160, 120); lognormal scatter, 0.2."""


class Simulation(BaseModel):
    """What kind of survey to simulate.

    Attributes
    ----------
    selection : Selection
        Which stars.
    observing : ObservingModel
        How they are observed.
    labelled : bool
        Whether the survey has labels; the truth is kept as ``true_<label>`` in any case.
    label_noise : bool
        Whether labels scatter about the truth by their quoted errors, or equal it.
    discs : Discs, optional
        Places stars in the Galaxy; otherwise position, distance and metallicity are independent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    selection: Selection = TRAINING
    observing: ObservingModel = TRAINING_CONDITIONS
    labelled: bool = True
    label_noise: bool = False
    discs: Discs | None = None


PLACE = (
    Column("true_distance", "kpc", "pos.distance;meta.modelled", "Simulated truth: distance"),
    Column("true_disc", "", "meta.code;meta.modelled", "Simulated truth: disc (0 thin, 1 thick)"),
)
"""Columns of a survey whose stars were placed in discs."""

LABELLED_SURVEY = Simulation()
OBSERVED_SURVEY = Simulation(selection=OBSERVED, observing=SURVEY_CONDITIONS, labelled=False)


_SNR_ENDS = (1.0, 99.0)
"""Percentiles of a survey's S/N between which it is simulated: ends are outliers; chosen."""
_LEAST_SCATTER = 0.05
"""Of ln(S/N), where all spectra of a survey have the same; chosen."""


def simulation_like(survey: Survey) -> Simulation:
    """Return how labelled stars are simulated as a survey observes them.

    Parameters
    ----------
    survey : Survey
        Its resolving power, noise and S/N are taken; where it does not tell its noise or S/N, those
        of RAVE.

    Raises
    ------
    ConfigError
        If the emulator does not reach over its pixels, or it does not say its resolving power.
    """
    require_reached(survey)
    if survey.resolving_power is None:
        raise ConfigError(
            f"{survey.path} does not say its resolving power, at which stars are simulated: write "
            "'resolving_power = ...' at the top of the TOML file that it is ingested with"
        )
    observing = TRAINING_CONDITIONS.at_power(survey.resolving_power)
    if survey.noise_correlation is not None:
        observing = observing.with_noise(survey.noise_correlation)
    return Simulation(observing=observing.model_copy(update=snr_of(survey)))


def require_reached(survey: Survey) -> None:
    """Raise `ConfigError` unless the emulator reaches over the pixels of a survey."""
    wave = survey.wave_aa if survey.medium == "air" else vacuum_to_air(survey.wave_aa)
    if not covers(wave):
        raise ConfigError(
            f"the emulator knows 8404-8800 angstrom, {survey.path} reaches over "
            f"{wave[0]:.1f}-{wave[-1]:.1f}; cut its spectra ('resample' in its TOML file), or "
            "train on labelled stars"
        )


def snr_of(survey: Survey) -> dict[str, Any]:
    """Return settings of the S/N as a survey has it; none where it does not tell."""
    snr = survey.column("snr") if "snr" in survey.column_names else np.zeros(0)
    snr = snr[np.isfinite(snr) & (snr > 0)]
    if snr.size == 0:
        return {}
    low, high = np.percentile(snr, _SNR_ENDS)
    return {
        "snr_median": float(np.median(snr)),
        "snr_scatter": max(float(np.std(np.log(snr))), _LEAST_SCATTER),
        "snr_range": (0.9 * float(low), 1.1 * float(high)),
    }


class Simulator:
    """Makes blocks of simulated stars.

    Parameters
    ----------
    seed : int
        Not negative.
    simulation : Simulation
    emulator : Emulator
    population : Population
    wave_aa : (n_pixel,) float64
        Pixels, angstrom in air.
    """

    def __init__(
        self,
        seed: int,
        simulation: Simulation,
        *,
        emulator: Emulator,
        population: Population,
        wave_aa: Float64Array = RAVE_WAVE_AA,
    ) -> None:
        self.seed = seed
        self.simulation = simulation
        self.emulator = emulator
        self.population = population
        self.spectrograph = Spectrograph(
            emulator.wave_aa,
            wave_aa,
            emulator.spec.resolving_power,
            simulation.observing,
        )

    @property
    def column_names(self) -> list[str | Column]:
        """Survey columns that every block has."""
        bands = [name for b in BANDS for name in (b.column, f"{b.column}_error")]
        names: list[str | Column] = ["ra", "dec", "snr", "parallax", "parallax_error"]
        names += [*bands, "a_v", "a_v_error"]
        if self.simulation.labelled:
            names += [name for label in LABELS for name in (label.name, label.error_name)]
        names = [*names, *(f"true_{label.name}" for label in LABELS)]
        return [*names, *(PLACE if self.simulation.discs else ())]

    def block(self, number: int) -> tuple[Observation, dict[str, AnyArray]]:
        """Make stars ``number * BLOCK_STARS`` to ``(number + 1) * BLOCK_STARS - 1``.

        Returns
        -------
        observation : Observation
        columns : dict of (256,) arrays, with ``id`` and ``star_id``
        """
        kind = int(self.simulation.labelled)
        sequence = np.random.SeedSequence(self.seed, spawn_key=(kind, number))
        # Blocks have streams of their own, so that their order does not matter.
        rng = np.random.Generator(np.random.SFC64(sequence))
        stars = self.population.sample(
            BLOCK_STARS, rng, selection=self.simulation.selection, discs=self.simulation.discs
        )
        # The truth is what the spectrum was made of.
        labels = self.emulator.clip(stars.labels)
        observation = self.spectrograph.observe(self.emulator.flux(labels), labels, rng)
        columns: dict[str, AnyArray] = {"snr": observation.snr, **self._identifiers(number)}
        columns |= _measurements(stars)
        columns |= {f"true_{name}": labels[:, k] for k, name in enumerate(LABEL_NAMES)}
        if self.simulation.labelled:
            columns |= self._reference_labels(labels, rng)
        return observation, columns

    def _identifiers(self, number: int) -> dict[str, AnyArray]:
        kind = "l" if self.simulation.labelled else "o"
        first = number * BLOCK_STARS
        names = [f"sim-{kind}{self.seed}-{first + k:08d}" for k in range(BLOCK_STARS)]
        return {"star_id": np.array(names), "id": np.array([f"{name}-1" for name in names])}

    def _reference_labels(
        self, labels: Float64Array, rng: np.random.Generator
    ) -> dict[str, AnyArray]:
        columns: dict[str, AnyArray] = {}
        for k, (name, median) in enumerate(LABEL_ERRORS.items()):
            scatter, noise = rng.standard_normal((2, labels.shape[0]))
            error = median * np.exp(0.2 * scatter)
            noisy = labels[:, k] + error * noise
            columns[name] = noisy if self.simulation.label_noise else labels[:, k]
            columns[f"{name}_error"] = error
        return columns


def simulate_survey(
    path: Path | str,
    *,
    n_star: int,
    seed: int = 0,
    observed: bool = False,
    galaxy: bool = False,
    simulation: Simulation | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    emulator: Emulator | None = None,
    like: Readable | None = None,
    cluster: Cluster | None = None,
) -> Survey:
    """Simulate a RAVE-like survey and write it to a store, marked as simulated.

    Parameters
    ----------
    path : path-like
        Store to write. A run that was killed goes on if it is started again alike.
    n_star : int
        Number of stars, one spectrum each.
    seed : int
        The same seed gives the same stars, whatever their number.
    observed : bool
        Simulate `OBSERVED_SURVEY` (its own selection, lower S/N, no labels), not
        `LABELLED_SURVEY`.
    galaxy : bool
        Place the stars in discs (`maury.simulation.galaxy.Discs`), so that their metallicities
        depend on where they are.
    simulation : Simulation, optional
        Settings of one's own, instead of these three.
    overwrite : bool
        Replace an existing store.
    progress : callable, optional
        Called with the number of stars done and their total.
    emulator : Emulator, optional
        Instead of the one that ships with the package.
    like : Readable, optional
        On the pixels of this survey, within those of the emulator, instead of RAVE's.
    cluster : Cluster, optional
        Workers to simulate on (`maury.io.cluster.connect`); the bytes are the same.

    Returns
    -------
    Survey

    Raises
    ------
    ConfigError
        If `n_star` is not positive, or `seed` is negative, or workers lack the `emulator` or
        the pixels of `like`.
    ClusterError, WorkerLost
        As of `maury.io.cluster.Cluster.results`.
    OutputExists
        If `path` exists and `overwrite` is false.
    ResumeMismatch
        If a partial store of another run is in the way.
    """
    own = emulator is not None or like is not None
    _check(n_star, seed, own=own, on_workers=cluster is not None)
    wave = RAVE_WAVE_AA if like is None else like.wave_aa
    medium: Medium = "air" if like is None else like.medium
    chosen = simulation or _usual(observed=observed, galaxy=galaxy)
    simulator = Simulator(
        seed,
        chosen,
        emulator=emulator or Emulator.load(),
        population=Population.load(),
        wave_aa=wave if medium == "air" else vacuum_to_air(wave),
    )
    provenance = _provenance(simulator)
    key = {**provenance, "n_star": n_star}
    if like is not None:
        key["pixels"] = hashlib.sha256(wave.tobytes()).hexdigest()
    with SurveyWriter(
        path,
        n_star=n_star,
        wave_aa=wave,
        medium=medium,
        columns=simulator.column_names,
        simulated=True,
        provenance=provenance,
        overwrite=overwrite,
        resume_key=_fingerprint(key),
        resolving_power=chosen.observing.resolving_power,
        noise_correlation=chosen.observing.correlation,
    ) as writer:
        if cluster is not None:
            _simulate_on(cluster, simulator, writer, progress)
        _simulate_here(simulator, writer, progress)
    return Survey.open(path)


def _check(n_star: int, seed: int, *, own: bool, on_workers: bool) -> None:
    if n_star < 1 or seed < 0:
        raise ConfigError(
            f"n_star must be at least 1 and seed not negative, got {n_star} and {seed}"
        )
    if own and on_workers:
        raise ConfigError(
            "workers of a cluster use the emulator that ships with maury, and the pixels of RAVE; "
            "give no others"
        )


def _usual(*, observed: bool, galaxy: bool) -> Simulation:
    usual = OBSERVED_SURVEY if observed else LABELLED_SURVEY
    return usual.model_copy(update={"discs": Discs()}) if galaxy else usual


def _simulate_here(simulator: Simulator, writer: SurveyWriter, progress: Progress | None) -> None:
    n_star = writer.n_star
    # Chunks begin at multiples, and half a chunk would be written twice at once.
    first = writer.done // CHUNK_STARS * CHUNK_STARS
    for start, stop in _chunks(first, n_star):
        with one_thread():
            flux, ivar, columns = _chunk(simulator, start, stop)
        writer.write(start, flux, ivar, **columns)
        logger.info("simulated %d of %d stars", stop, n_star)
        if progress is not None:
            progress(stop, n_star)


@dataclass(frozen=True)
class _Stretch:
    """Stars `start` to before `stop` of a store in the making: the work of a task."""

    store: str
    seed: int
    simulation: str
    start: int
    stop: int


def _simulate_on(
    cluster: Cluster, simulator: Simulator, writer: SurveyWriter, progress: Progress | None
) -> None:
    store = str(writer.partial.absolute())
    kind = simulator.simulation.model_dump_json()
    stretches = [_Stretch(store, simulator.seed, kind, *rows) for rows in writer.missing]
    if stretches:
        cluster.require_paths([store])
    for number, _ in cluster.results(_simulate_there, stretches):
        writer.note(stretches[number].start, stretches[number].stop)
        if progress is not None:
            progress(writer.n_written, writer.n_star)


def _simulate_there(stretch: _Stretch, tell: Callable[[Any], None]) -> None:
    """Simulate a stretch on a worker: spectra chunk by chunk, columns at once."""
    simulator = _simulator(stretch.seed, stretch.simulation)
    pieces = []
    for start, stop in _chunks(stretch.start, stretch.stop):
        flux, ivar, columns = _chunk(simulator, start, stop)
        put_rows(stretch.store, start, {"flux": flux, "ivar": ivar})
        pieces.append(columns)
    whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    put_rows(stretch.store, stretch.start, whole)


@lru_cache(maxsize=1)
def _simulator(seed: int, simulation: str) -> Simulator:
    chosen = Simulation.model_validate_json(simulation)
    return Simulator(seed, chosen, emulator=Emulator.load(), population=Population.load())


def _chunks(first: int, stop: int) -> Iterator[tuple[int, int]]:
    for start in range(first, stop, CHUNK_STARS):
        yield start, min(start + CHUNK_STARS, stop)


def _chunk(
    simulator: Simulator, start: int, stop: int
) -> tuple[Float32Array, Float32Array, dict[str, AnyArray]]:
    """Make the stars `start` to `stop`; `start` is the first of a block."""
    n = stop - start
    blocks = [
        simulator.block(number) for number in range(start // BLOCK_STARS, -(-stop // BLOCK_STARS))
    ]
    flux = np.concatenate([observation.flux for observation, _ in blocks])[:n]
    ivar = np.concatenate([observation.ivar for observation, _ in blocks])[:n]
    columns = {
        name: np.concatenate([columns[name] for _, columns in blocks])[:n] for name in blocks[0][1]
    }
    return flux, ivar, columns


def _measurements(stars: Stars) -> dict[str, AnyArray]:
    columns: dict[str, AnyArray] = {
        "ra": stars.ra_deg,
        "dec": stars.dec_deg,
        "parallax": stars.parallax_mas,
        "parallax_error": stars.parallax_error_mas,
        "a_v": stars.a_v,
        "a_v_error": stars.a_v_error,
    }
    for k, band in enumerate(BANDS):
        columns[band.column] = stars.magnitudes[:, k]
        columns[f"{band.column}_error"] = stars.magnitude_errors[:, k]
    if stars.distance_kpc is not None and stars.disc is not None:
        columns |= {"true_distance": stars.distance_kpc, "true_disc": stars.disc}
    return columns


def _provenance(simulator: Simulator) -> dict[str, Any]:
    from maury.version import __version__

    return {
        "origin": "simulated by maury",
        "maury_version": __version__,
        "seed": simulator.seed,
        "simulation": simulator.simulation.model_dump(mode="json", exclude_none=True),
        "emulator": simulator.emulator.spec.checksum,
        "population": simulator.population.checksum,
        "population_source": simulator.population.metadata.get("citation", ""),
    }


def _fingerprint(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
