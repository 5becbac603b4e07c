"""One star: labels, flags, spectrum, best fit, sensitivity, nearest training stars.

Every method returns plain JSON; NaN becomes null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import MauryError
from maury.evaluation.sensitivity import LINES_OF, best_estimator, compare_with_optimal, lines_in
from maury.io.arrays import Float64Array, Int64Array, StrArray
from maury.labels.columns import QUANTILES, stated_error
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag
from maury.labels.statistics import robust_scale
from maury.model.directory import Model
from maury.prediction.stored import values_of
from maury.report.explorer.content import Content
from maury.simulation.observing import TRAINING_CONDITIONS, ObservingModel
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.batch import Batch
from maury.survey.store import Survey
from maury.survey.writer import COLUMN_CHUNK_STARS

if TYPE_CHECKING:
    from maury.spectra.preparation import Inputs

Json = dict[str, Any]

# Nearest training stars that the panel of a star lists: chosen for its room, not measured.
_NEIGHBOURS = 8
_ARCHIVES = (
    (
        "SIMBAD",
        "https://simbad.cds.unistra.fr/simbad/sim-coo?Coord={place}&CooFrame=ICRS"
        "&Radius=10&Radius.unit=arcsec",
        "What SIMBAD knows within 10 arcseconds of this position; opens another site",
    ),
    (
        "Aladin",
        "https://aladin.cds.unistra.fr/AladinLite/?target={place}&fov=0.1",
        "The sky around this position in Aladin Lite; opens another site",
    ),
)
"""Sites that take a position: nothing else is told them, and only if the user follows the link."""
# Nothing is fitted to the star: what it should look like if its labels are right.
_EMULATOR = "emulator at the predicted labels"
_LEARNT = "learnt theory at the predicted labels"


class NotKnown(MauryError):
    """The page asked for what is not there: start it with --survey and --model."""


@dataclass(frozen=True, eq=False)
class TrainingStars:
    """Stars that trained the model, with their labels.

    Attributes
    ----------
    names : tuple of str
        Labels, in the order of the columns of `labels`.
    labels : (n, n_label) float64
    ids : (n,) str
        Empty where unknown.
    origin : str
        What kind of labels these are.
    """

    names: tuple[str, ...]
    labels: Float64Array
    ids: StrArray
    origin: str

    @cached_property
    def _scaled(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        centre, scale = robust_scale(self.labels)
        return (self.labels - centre) / scale, centre, scale

    def nearest(
        self, labels: Float64Array, *, without: str = ""
    ) -> tuple[Int64Array, Float64Array]:
        """Return rows and distances of the nearest stars, in robust standard deviations.

        Labels that the star lacks do not count; `without` is an identifier to leave out.
        """
        scaled, centre, scale = self._scaled
        known = np.isfinite(labels)
        if not known.any():
            return np.zeros(0, np.int64), np.zeros(0)
        # Over the labels that are known, and their number: a star with three labels is not nearer
        # for it.
        offset = (scaled - (labels - centre) / scale)[:, known]
        distance = np.sqrt(np.mean(offset**2, axis=1))
        distance = np.where(np.isfinite(distance), distance, np.inf)
        if without:
            distance[self.ids == without] = np.inf
        order = np.argsort(distance, kind="stable")[:_NEIGHBOURS]
        order = order[np.isfinite(distance[order])]
        return order, distance[order]


class Stars:
    """Details of the stars of a catalogue.

    Parameters
    ----------
    content : Content
        The catalogue.
    survey : Survey, optional
        Where the spectra are; rows are found by their identifiers.
    model : Model, optional
        What predicted the labels; its calibrated theory gives the best fit.
    """

    def __init__(
        self, content: Content, *, survey: Survey | None = None, model: Model | None = None
    ) -> None:
        self._content = content
        self._survey = survey
        self._model = model
        self._lock = RLock()
        self._sensitivities: dict[int, Json] = {}
        self._found: dict[str, int] = {}

    @property
    def has(self) -> dict[str, bool]:
        """What can be shown of a star besides its labels."""
        return {"spectra": self._survey is not None, "model": self._model is not None}

    def find(self, text: str) -> int:
        """Return the row of the spectrum, or else of the star, with this identifier.

        Raises
        ------
        NotKnown
            If there is none.
        """
        for name in ("id", "star_id"):
            found = self._content.first_rows(name, [text])
            if found:
                return found[text]
        raise NotKnown(f"no star or spectrum is called {text[:60]!r}")

    def labels(self, row: int) -> Json:
        """Return identifier, labels with errors and quantiles, flags, and all other columns."""
        values = self._content.row(row)
        mask = int(values.get("flags", 0))
        names = self._content.label_names
        mine = {n for n in values if any(n == x or n.startswith(f"{x}_") for x in names)}
        mine |= {"id", "flags", "warn"}
        return {
            "row": row,
            "id": self._content.id_of(row),
            "labels": [self._label(name, row) for name in names],
            "flags": [
                {"name": str(flag.name), "warns": flag.warns, "text": flag.text}
                for flag in Flag
                if mask & flag.value
            ],
            "columns": [
                {
                    "name": column.name,
                    "value": _plain(values[column.name]),
                    "unit": column.unit,
                    "text": column.description,
                }
                for column in self._content.catalogue.columns
                if column.name not in mine
            ],
            "neighbours": self._neighbours(row),
            "links": self._links(row),
        }

    def spectrum(self, row: int) -> Json:
        """Return wavelength, flux, error, and the emulator's flux at the predicted labels.

        Raises
        ------
        NotKnown
            If there is no survey, or the star is not in it.
        """
        with self._lock:
            inputs = self._inputs(row)
        error = np.where(inputs.ivar > 0, 1 / np.sqrt(np.maximum(inputs.ivar, 1e-30)), np.nan)[0]
        fit, origin = self._fit(row, inputs)
        return {
            "row": row,
            "wave": _numbers(inputs.wave_aa, 8),
            "medium": inputs.medium,
            "flux": _numbers(inputs.flux[0]),
            "error": _numbers(error),
            "fit": None if fit is None else _numbers(fit),
            "origin": origin,
            "simulated": bool(self._survey is not None and self._survey.simulated),
            "lines": lines_in(inputs.medium),
        }

    def sensitivity(self, row: int) -> Json:
        """Return d(label)/d(flux) of the networks and of the best linear estimator.

        Raises
        ------
        NotKnown
            If there is no survey or model, or the star is not in the survey.
        """
        with self._lock:
            if row not in self._sensitivities:
                # Some 100 kB each; a user walks on, and rarely returns.
                if len(self._sensitivities) > 64:
                    self._sensitivities.clear()
                self._sensitivities[row] = self._sensitivity(row)
            return self._sensitivities[row]

    def _links(self, row: int) -> list[Json]:
        """Return addresses of archives that show the star's place on the sky."""
        values = self._content.row(row)
        ra, dec = (values.get(name) for name in ("ra", "dec"))
        if not isinstance(ra, float) or not isinstance(dec, float):
            return []
        if not (0 <= ra <= 360 and -90 <= dec <= 90):
            return []
        # Fixed digits: nothing of the catalogue but two numbers is in an address.
        place = f"{ra:.6f}%20{dec:+.6f}".replace("+", "%2B")
        return [
            {"name": name, "address": address.format(place=place), "what": what}
            for name, address, what in _ARCHIVES
        ]

    def _label(self, name: str, row: int) -> Json:
        values = self._content.row(row)
        shown = self._content.columns[name]
        quantiles = [_plain(values.get(f"{name}_{suffix}")) for suffix, _ in QUANTILES]
        return {
            "name": name,
            "symbol": shown.symbol,
            "unit": shown.unit,
            "text": shown.description,
            "value": _plain(values[name]),
            "error": _plain(stated_error(values, name)),
            "quantiles": quantiles,
            "percents": [percent for _, percent in QUANTILES],
        }

    def _batch(self, row: int) -> Batch:
        if self._survey is None:
            raise NotKnown("no survey was given; start with --survey to see spectra")
        text = self._content.id_of(row)
        place = self._survey_row(row, text)
        if place is None:
            raise NotKnown(f"{text[:60]} is not in the survey {self._survey.path.name}")
        return self._survey.batch(place, place + 1)

    def _survey_row(self, row: int, text: str) -> int | None:
        """Return the row of a spectrum in the survey: that of the catalogue if it was made of it.

        Identifiers are looked through where it was not.
        """
        assert self._survey is not None
        n_star = self._survey.n_star
        if row < n_star and self._survey.texts("id", row, row + 1) == [text]:
            return row
        if text not in self._found:
            for start in range(0, n_star, COLUMN_CHUNK_STARS):
                ids = self._survey.texts("id", start, min(start + COLUMN_CHUNK_STARS, n_star))
                if text in ids:
                    self._found[text] = start + ids.index(text)
                    break
        return self._found.get(text)

    def _inputs(self, row: int) -> Inputs:
        batch = self._batch(row)
        if self._model is not None:
            return self._model.preparation.apply(batch)
        from maury.spectra.preparation import Preparation

        return Preparation(steps=(), observables=()).apply(batch)

    def _predicted(self, row: int, names: Sequence[str]) -> Float64Array:
        values = self._content.row(row)
        return np.array([float(values.get(name, np.nan)) for name in names])

    def _fit(self, row: int, inputs: Inputs) -> tuple[Float64Array | None, str]:
        known = self._star_simulator
        labels = self._predicted(row, LABEL_NAMES if known is None else known.names)[None]
        if not np.isfinite(labels).all():
            return None, f"no curve: theory needs all {labels.size} labels"
        if known is not None:
            told = _EMULATOR + ", calibrated" if known.learnt is None else _LEARNT
            return known.seen(labels, inputs.flux, inputs.ivar)[0].astype(np.float64), told
        if self._conditions is None:
            return None, "no curve: the survey does not say its resolving power"
        flux = _emulated(labels, inputs.wave_aa, inputs.medium, self._conditions.resolving_power)
        if flux is None:
            return None, "no curve: the emulator does not reach over these wavelengths"
        return flux[0], f"{_EMULATOR}, not calibrated"

    @cached_property
    def _conditions(self) -> ObservingModel | None:
        """Conditions under which theory is seen; None if the resolving power is not known."""
        known = self._star_simulator
        if known is not None and known.learnt is None:
            return known.observing
        power = None if self._survey is None else self._survey.resolving_power
        return None if power is None else TRAINING_CONDITIONS.at_power(power)

    @cached_property
    def _star_simulator(self) -> TrainingStarSimulator | None:
        if self._model is None or "sky" not in self._model.attachments:
            return None
        return TrainingStarSimulator.of_model(self._model)

    def _sensitivity(self, row: int) -> Json:
        if self._model is None:
            raise NotKnown("no model was given; start with --model to see what a label listens to")
        from maury.model.inference import flux_gradient

        model, inputs = self._model, self._inputs(row)
        gradient = flux_gradient(model, inputs)
        found: Json = {
            "row": row,
            "wave": _numbers(model.wave_aa, 8),
            "network": dict(zip(model.label_names, map(_numbers, gradient[0]), strict=True)),
            "optimal": {},
            "correlation": {},
            "lines": {name: LINES_OF.get(name, ()) for name in model.label_names},
        }
        best_weights = best_estimator(
            model,
            self._conditions,
            noise_correlation=inputs.noise_correlation,
            simulator=self._star_simulator,
        )
        if best_weights is None:
            return found
        names = best_weights.label_names
        labels = self._predicted(row, names)[None]
        if not (np.isfinite(labels).all() and np.isfinite(gradient).all()):
            return found
        place = [model.label_names.index(name) for name in names]
        # Only the shape of the best weights is shown, which hardly depends on the S/N; 50 is
        # typical.
        snr = np.where(np.isfinite(inputs.snr), inputs.snr, 50.0)
        best = compare_with_optimal(
            "this star",
            gradient[:, place],
            labels,
            snr,
            wave_aa=model.wave_aa,
            medium=model.medium,
            estimator=best_weights,
        )
        found["optimal"] = dict(zip(names, map(_numbers, best.optimal), strict=True))
        found["correlation"] = dict(zip(names, _numbers(best.correlation), strict=True))
        return found

    def _neighbours(self, row: int) -> Json:
        known = self._training
        if known is None:
            return {"origin": "", "names": [], "stars": []}
        labels = self._predicted(row, known.names)
        order, distance = known.nearest(labels, without=self._content.id_of(row))
        return {
            "origin": known.origin,
            "names": list(known.names),
            "stars": [
                {
                    "id": str(known.ids[k]),
                    "row": self._training_rows.get(str(known.ids[k])),
                    "distance": round(float(far), 3),
                    "labels": _numbers(known.labels[k], 6),
                }
                for k, far in zip(order, distance, strict=True)
            ],
        }

    @cached_property
    def _training(self) -> TrainingStars | None:
        """The training stars, from where their labels are known best."""
        with self._lock:
            return (
                # Best first: with identifiers, then labels alone, then predictions of the training
                # stars.
                _from_survey(self._survey, self._model)
                or _from_star_simulator(self._star_simulator)
                or _from_catalogue(self._content)
            )

    @cached_property
    def _training_rows(self) -> dict[str, int]:
        """Rows of the catalogue that the training stars have, as far as they have names."""
        names = set() if self._training is None else set(self._training.ids.tolist())
        return self._content.first_rows("id", names - {""})


def _from_survey(survey: Survey | None, model: Model | None) -> TrainingStars | None:
    if survey is None or model is None:
        return None
    names = tuple(n for n in model.label_names if n in survey.label_names)
    if not names:
        return None
    rows = np.flatnonzero(model.split.contains("train", survey.stars))
    if not rows.size:
        return None
    return TrainingStars(names, survey.labels(names)[rows], survey.id[rows], "reference labels")


def _from_star_simulator(star_simulator: TrainingStarSimulator | None) -> TrainingStars | None:
    if star_simulator is None:
        return None
    nameless = np.full(len(star_simulator.labels), "", dtype="U1")
    return TrainingStars(star_simulator.names, star_simulator.labels, nameless, "reference labels")


def _from_catalogue(content: Content) -> TrainingStars | None:
    names = content.label_names
    if not names or not {"id", "flags"} <= set(content.catalogue.names):
        return None
    ids, labels = [], []
    for block in content.catalogue.blocks(["id", "flags", *names]):
        chosen = (values_of(block["flags"]) & Flag.TRAINING_STAR.value) != 0
        ids.append(values_of(block["id"])[chosen].astype(np.str_))
        labels.append(np.column_stack([values_of(block[name])[chosen] for name in names]))
    if not any(map(len, ids)):
        return None
    return TrainingStars(names, np.concatenate(labels), np.concatenate(ids), "predicted labels")


@cache
def _spectrograph(wave: bytes, medium: str, resolving_power: float) -> Any:
    """Return emulator and instrument for these pixels; None out of their reach."""
    from maury.simulation.emulator import Emulator
    from maury.simulation.observing import Spectrograph
    from maury.spectra.operators import vacuum_to_air

    emulator = Emulator.load()
    pixels = np.frombuffer(wave)
    pixels = pixels if medium == "air" else vacuum_to_air(pixels)
    try:
        observing = TRAINING_CONDITIONS.at_power(resolving_power)
        power = emulator.spec.resolving_power
        instrument = Spectrograph(emulator.wave_aa, pixels, power, observing)
    except ValueError:
        return None
    return emulator, instrument


def _emulated(
    labels: Float64Array, wave_aa: Float64Array, medium: str, resolving_power: float
) -> Float64Array | None:
    from maury.simulation.population import Population

    pixels = np.ascontiguousarray(wave_aa, np.float64).tobytes()
    found = _spectrograph(pixels, medium, resolving_power)
    if found is None:
        return None
    emulator, instrument = found
    full = emulator.clip(Population.load().complete(labels))
    return np.asarray(instrument.disperse(emulator.flux(full), full, None).flux, np.float64)


def _numbers(values: ArrayLike, digits: int = 5) -> list[float | None]:
    """Return numbers with so many significant digits, null where not finite."""
    array = np.asarray(values, dtype=np.float64)
    return [float(f"{x:.{digits}g}") if np.isfinite(x) else None for x in array.tolist()]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return str(value.tolist())[:200]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if isinstance(value, float) and not np.isfinite(value) else value
