"""Distil an ensemble into one small network, for quick looks and very large surveys.

The student learns the calibrated answers of its teacher (Hinton, Vinyals & Dean 2015,
arXiv:1503.02531): labels, errors and correlations, on simulated stars and, where a survey is given,
on its spectra. It is saved as a model of the preset ``student``, and used as any other model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import maury
from maury.calibration import LEAST_STARS, Calibration
from maury.errors import ConfigError, ResumeMismatch, TrainingError
from maury.files import refuse_existing, remove, writing
from maury.learning import completion
from maury.lessons import SHEET_STARS, Sheet, SheetFolder, Teacher, join
from maury.model import Member, Model
from maury.networks import build, parse_settings
from maury.student_network import StudentConfig, StudentNetwork
from maury.survey import Survey
from maury.training import (
    Run,
    adam_tensors,
    copy_weights,
    epoch_seed,
    read_tensors,
    restore_adam,
    run_to_the_end,
    single_thread,
    split_names,
    write_tensors,
)

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the work done and the work in all: sheets of stars, then passes over them."""

CHECKPOINT_SECONDS = 20.0
_SIGMA_WEIGHT = 1.0
_CORRELATION_WEIGHT = 0.3


class DistilConfig(BaseModel):
    """How a student is taught; section ``[training]``.

    Attributes
    ----------
    stars : int
        Stars that the teacher is asked about, rounded up to whole sheets of
        `maury.lessons.SHEET_STARS` if they are more.
    survey_share : float
        Of these, rows of the survey over simulated stars, where a survey is given.
    passes, batch_size : int
        Passes over these stars, and stars per step.
    learning_rate, rise : float
        Largest step size of AdamW; it rises over the share `rise` of the steps and falls by half a
        cosine.
    weight_decay : float
        Decoupled weight decay.
    averaging : float
        Decay per step of the running mean of the weights, which is what is kept.
    gradient_norm : float
        To which longer gradients are cut.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stars: int = Field(default=20 * SHEET_STARS, ge=1)
    survey_share: float = Field(default=0.1, ge=0.0, le=10.0)
    passes: int = Field(default=40, ge=1)
    batch_size: int = Field(default=1024, ge=1)
    learning_rate: float = Field(default=4e-3, gt=0.0, allow_inf_nan=False)
    rise: float = Field(default=0.1, gt=0.0, lt=1.0)
    weight_decay: float = Field(default=0.01, ge=0.0, allow_inf_nan=False)
    averaging: float = Field(default=0.998, ge=0.0, lt=1.0)
    gradient_norm: float = Field(default=1.0, gt=0.0)

    @property
    def sheets(self) -> int:
        """Number of sheets."""
        return -(-self.stars // SHEET_STARS)

    def rate(self, progress: float) -> float:
        """Step size when a fraction `progress` (0 to 1) of the steps is done."""
        if progress < self.rise:
            return self.learning_rate * (0.04 + 0.96 * progress / self.rise)
        fall = (progress - self.rise) / (1.0 - self.rise)
        return self.learning_rate * max(0.5 * (1.0 + math.cos(math.pi * fall)), 1e-3)


def distil(
    model: Model | Path | str,
    out: Path | str,
    *,
    survey: Survey | Path | str | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | Path | str | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Model:
    """Teach one small network the calibrated answers of a model, and write it as a model.

    Everything in the making lies in ``<out>.part``. A run that was killed goes on from there,
    and ends with the same bits as one that was not.

    Parameters
    ----------
    model : Model or path-like
        The teacher, of the preset ``maury``.
    out : path-like
        Model directory to write.
    survey : Survey or path-like, optional
        Real spectra to learn from besides simulated ones; the teacher's test and validation stars
        are left out. If it holds at least 30 validation stars with labels, the student's errors
        are calibrated on them, and it is covered and audited as a trained model. Otherwise its
        errors are as it learnt them, and the coverage is that of the teacher.
    seed : int
        Seed of everything random.
    config : mapping or path of a TOML file, optional
        Sections ``[network]`` (`StudentConfig`) and ``[training]`` (`DistilConfig`).
    progress : callable, optional
        Called with (done, all).
    overwrite : bool
        Replace an existing model, and discard a partial one of other settings.

    Returns
    -------
    Model
        The student as written.

    Raises
    ------
    ConfigError
        If settings are wrong, all of them listed, or the model cannot teach.
    GridMismatch
        If the survey is not on the grid that the model's preparation takes.
    TrainingError
        If the loss is no longer finite.
    OutputExists, ResumeMismatch
        If a model, or a partial one of other settings, is in the way.
    """
    out = Path(out)
    refuse_existing(out, overwrite=overwrite)
    network, training = _settings(config)
    teacher = Teacher(model if isinstance(model, Model) else Model.open(model))
    if survey is not None and not isinstance(survey, Survey):
        survey = Survey.open(survey)
    network = network.model_copy(update={"photometry": teacher.photometry})
    key = _fingerprint(teacher.model, survey, network, training, seed)
    work = _work_folder(out, key, overwrite=overwrite)
    total = training.sheets + training.passes
    tell = progress or (lambda done, total: None)
    with single_thread(), torch.random.fork_rng(devices=[]):
        student = _blank(teacher, network, seed)
        folder = SheetFolder(work)
        for number in range(training.sheets):
            if not folder.has(number):
                rng = np.random.default_rng([seed, number])
                folder.put(number, _sheet(teacher, student, survey, training, rng))
            tell(number + 1, total)
        run = run_to_the_end(
            lambda: _Run(_blank(teacher, network, seed), folder.load(training.sheets), training),
            checkpoint=work / "checkpoint.safetensors",
            checkpoint_seconds=CHECKPOINT_SECONDS,
            on_epoch=lambda epoch, *_: tell(training.sheets + epoch, total),
        )
    taught = _assemble(teacher, network, training, run, survey, seed)
    saved = taught.save(work / "model", weights=[_arrays(run)], overwrite=True)
    result = _complete(saved, teacher.model, survey).save(out, overwrite=overwrite)
    remove(work)
    return result


def _settings(
    config: Mapping[str, Any] | Path | str | None,
) -> tuple[StudentConfig, DistilConfig]:
    if isinstance(config, Path | str):
        try:
            config = tomllib.loads(Path(config).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read settings from {config}: {error}") from error
    sections = dict(config or {})
    network_options = dict(sections.pop("network", {}))
    training_options = dict(sections.pop("training", {}))
    network_options.pop("preset", None)
    problems = [f"there is no section [{name}] (known: network, training)" for name in sections]
    network = parse_settings(StudentConfig, network_options, "network", problems)
    training = parse_settings(DistilConfig, training_options, "training", problems)
    if network is None or training is None or problems:
        raise ConfigError("the settings are wrong:\n  " + "\n  ".join(problems))
    return network, training


def _blank(teacher: Teacher, config: StudentConfig, seed: int) -> StudentNetwork:
    model = teacher.model
    torch.manual_seed(epoch_seed(seed, 0))
    n_observable = len(model.preparation.observable_names) if teacher.photometry else 0
    student = build(config, model.n_pixel, n_observable, len(model.labels))
    assert isinstance(student, StudentNetwork)
    for name, values in teacher.flux_scale().items():
        student.get_buffer(name).copy_(values)
    return student


def _sheet(
    teacher: Teacher,
    student: StudentNetwork,
    survey: Survey | None,
    config: DistilConfig,
    rng: np.random.Generator,
) -> Sheet:
    n_star = min(SHEET_STARS, config.stars)
    sheet = teacher.sheet(teacher.simulated(n_star, rng), student)
    n_row = round(config.survey_share * n_star)
    if survey is None or n_row == 0:
        return sheet
    return join(sheet, teacher.sheet(teacher.observed(survey, n_row, rng), student))


class _Run(Run):
    """The state of one training run, between two passes over the sheets."""

    def __init__(self, student: StudentNetwork, stars: Sheet, config: DistilConfig) -> None:
        self._stars, self._config = stars, config
        self.epoch = 0
        self.student = student.train()
        self._optimizer = torch.optim.AdamW(
            student.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
            fused=True,
        )
        self._averaged = [p.detach().clone() for p in student.parameters()]
        self._step = 0

    @property
    def finished(self) -> bool:
        """Whether all passes are done."""
        return self.epoch >= self._config.passes

    def advance(self) -> tuple[float, float | None]:
        """Pass over all stars once; return the mean loss."""
        order = torch.randperm(
            len(self._stars), generator=torch.Generator().manual_seed(self.epoch)
        )
        batches = torch.split(order, self._config.batch_size)
        loss = sum(self._learn(batch, len(batches)) for batch in batches) / len(batches)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is no longer finite in pass {self.epoch + 1}; lower learning_rate"
            )
        self.epoch += 1
        return loss, None

    def _learn(self, batch: Tensor, n_batch: int) -> float:
        progress = self._step / (n_batch * self._config.passes)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.rate(progress)
        loss = lesson_loss(self.student, self._stars.rows(batch))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.parameters(), self._config.gradient_norm)
        self._optimizer.step()
        # An early running mean would keep the initial weights for too long.
        decay = min(self._config.averaging, (1.0 + self._step) / (10.0 + self._step))
        self._step += 1
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, list(self.student.parameters()), 1.0 - decay)
        return float(loss.detach())

    def averaged_weights(self) -> Mapping[str, Tensor]:
        """Return the running mean of the weights, and the buffers."""
        names = [name for name, _ in self.student.named_parameters()]
        return copy_weights(self.student) | dict(zip(names, self._averaged, strict=True))

    def save(self, path: Path) -> None:
        """Write the whole state to `path` in one step."""
        tensors = {f"weights/{k}": v for k, v in self.student.state_dict().items()}
        tensors |= {f"averaged/{k}": v for k, v in enumerate(self._averaged)}
        tensors |= adam_tensors(self._optimizer)
        write_tensors(path, tensors, {"epoch": self.epoch, "step": self._step})

    def restore(self, path: Path) -> None:
        """Take up the state in `path`, see `maury.training.Run`."""
        tensors, state = read_tensors(path)
        groups = split_names(tensors)
        self.student.load_state_dict(groups["weights"])
        self._averaged = [groups["averaged"][str(k)] for k in range(len(self._averaged))]
        restore_adam(self._optimizer, groups["adam"])
        self.epoch, self._step = int(state["epoch"]), int(state["step"])


def lesson_loss(student: StudentNetwork, stars: Sheet) -> Tensor:
    """Mean squared difference to the teacher.

    Of labels in units of the teacher's error, of the logarithm of errors, and of correlations.

    Parameters
    ----------
    student : StudentNetwork
    stars : Sheet
        With pixels in float32.
    """
    mean, sigma, factor = student.lesson(stars.pixels, stars.other)
    first, second = torch.triu_indices(student.n_label, student.n_label, 1)
    correlation = (factor[:, first] * factor[:, second]).sum(dim=2)
    label = ((mean - stars.mean) / stars.sigma).square().mean()
    error = (sigma / stars.sigma).log().square().mean()
    if correlation.shape[1] == 0:
        return label + _SIGMA_WEIGHT * error
    pairs = (correlation - stars.correlation).square().mean()
    return label + _SIGMA_WEIGHT * error + _CORRELATION_WEIGHT * pairs


def _arrays(run: _Run) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in run.averaged_weights().items()}


def _assemble(
    teacher: Teacher,
    network: StudentConfig,
    training: DistilConfig,
    run: _Run,
    survey: Survey | None,
    seed: int,
) -> Model:
    """Return the student as a model, not saved and not calibrated yet."""
    model = teacher.model
    settings = {**dict(model.training.get("settings", {})), "training": training.model_dump()}
    origin = {
        "checksum": model.checksum,
        "name": model.path.name if model.path else "",
        "preset": model.network["name"],
        "members": len(model.kept),
        "survey": survey.path.name if survey is not None else None,
    }
    versions = {"maury": maury.__version__, "torch": torch.__version__, "numpy": np.__version__}
    weights = run.averaged_weights()
    taught = replace(
        model,
        network={"name": network.name, **network.model_dump(mode="json")},
        tensors={name: tuple(tensor.shape) for name, tensor in weights.items()},
        members=(Member.numbered(0, seed=seed, best_epoch=run.epoch, n_epochs=run.epoch),),
        seed=seed,
        training={**model.training, "settings": settings},
        provenance={**model.provenance, **versions, "distilled_from": origin},
        attachments=MappingProxyType({}),
        path=None,
    )
    return taught.with_arrays(
        "sky", model.arrays("sky"), metadata=model.attachments["sky"].metadata
    )


def _complete(student: Model, teacher: Model, survey: Survey | None) -> Model:
    """Calibrate, cover and audit the student on the survey, or inherit from the teacher."""
    if survey is not None:
        held = student.split.contains("validation", survey.star_id)
        known = set(student.label_names) <= set(survey.column_names)
        if known and held.sum() >= LEAST_STARS:
            whole = completion(survey)(student)
            if "calibration" in whole.attachments:
                return whole
    if "calibration" not in teacher.attachments:
        return student
    taught = Calibration.from_arrays(teacher.arrays("calibration"))
    # The student has learnt calibrated errors, so that no factor is left.
    rest = replace(taught, size=np.zeros_like(taught.size), course=np.zeros_like(taught.course))
    student = student.with_arrays("calibration", rest.to_arrays())
    if "coverage" in teacher.attachments:
        student = student.with_arrays("coverage", teacher.arrays("coverage"))
    return student


def _fingerprint(
    teacher: Model,
    survey: Survey | None,
    network: StudentConfig,
    training: DistilConfig,
    seed: int,
) -> str:
    """Identity of all that determines the weights."""
    real = None
    if survey is not None:
        real = survey.fingerprint
    settings = (network.model_dump(mode="json"), training.model_dump(mode="json"))
    identity = [teacher.checksum, real, settings, seed, torch.__version__]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _work_folder(out: Path, key: str, *, overwrite: bool) -> Path:
    work = out.with_name(out.name + ".part")
    stamp = work / "run.json"
    if work.exists():
        found = json.loads(stamp.read_text("utf-8")).get("key") if stamp.is_file() else None
        if found == key:
            logger.info("resuming %s", out)
            return work
        if found is not None and not overwrite:
            raise ResumeMismatch(
                f"{work} holds a student of another teacher, survey or settings; "
                "finish that run, or pass --overwrite to discard it"
            )
        remove(work)
    work.mkdir(parents=True)
    with writing(stamp, overwrite=True) as partial:
        partial.write_text(json.dumps({"key": key}), "utf-8")
    return work
