"""Train members in processes of their own, from files, so that a run can be killed and resumed."""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError

from maury.errors import MauryError, TrainingError
from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.io.cluster import Cluster
from maury.io.workers import one_thread
from maury.model.directory import Affine, Scaling
from maury.model.networks.default import DefaultConfig
from maury.model.networks.published import network_config
from maury.simulation.joint_stars import JointStars
from maury.simulation.training_stars import TrainingStarSimulator
from maury.training.joint_run import JointSettings, JointTask, train_joint_network
from maury.training.member import (
    TrainedMember,
    TrainingConfig,
    TrainingTensors,
    read_tensors,
    train_member,
    write_tensors,
)
from maury.training.simulated import SimulatedTraining, train_on_simulated_stars

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemberEvent:
    """Progress of one member.

    Attributes
    ----------
    member, epoch, n_epochs : int
        Number of the member (from 0), epoch done (from 1), and largest number of epochs.
    training_loss : float
        Of this epoch, in scaled units.
    validation_loss : float or None
        The same of the validation stars; None where they take no part.
    n_members : int
        Members that this run trains, those that have not begun included; 0 where it is not known.
    """

    member: int
    epoch: int
    n_epochs: int
    training_loss: float
    validation_loss: float | None
    n_members: int = 0


Stage = Callable[[str], None]
"""Called with what begins, in words."""
Progress = Callable[[MemberEvent], None]


@dataclass(frozen=True)
class WorkFolder:
    """Files of a training run: the stars, and each member's state and result."""

    path: Path

    def put_sample(self, part: str, *arrays: Float32Array) -> None:
        """Write flux, observables, target and variance of ``train`` or ``validation``."""
        for name, array in zip(_SAMPLE, arrays, strict=True):
            file = self.path / f"{part}-{name}.npy"
            temporary = file.with_suffix(".tmp")
            # Given a name, numpy would add .npy to it.
            with temporary.open("wb") as stream:
                np.save(stream, np.ascontiguousarray(array, dtype=np.float32))
            os.replace(temporary, file)

    def sample(self, part: str) -> TrainingTensors:
        """Map the stars of a part; processes share the pages."""
        # Copy on write: torch wants arrays that it could write to, and nothing reaches the file.
        files = (self.path / f"{part}-{name}.npy" for name in _SAMPLE)
        return TrainingTensors.from_numpy(*(np.load(file, mmap_mode="c") for file in files))

    def put_star_simulator(
        self,
        star_simulator: TrainingStarSimulator,
        scaling: Scaling,
        member: int | None = None,
    ) -> None:
        """Write what simulates the stars, and the scaling of their labels and observables.

        With `member`, it is of the stars that this member knows.
        """
        arrays, about = star_simulator.to_arrays()
        tensors = {name: torch.tensor(array) for name, array in arrays.items()}
        write_tensors(self._star_simulator_file(member), tensors | _of_scaling(scaling), about)

    def has_star_simulator(self, member: int | None = None) -> bool:
        """Whether `put_star_simulator` was called before."""
        return _is_whole(self._star_simulator_file(member))

    def star_simulator(self, member: int | None = None) -> tuple[TrainingStarSimulator, Scaling]:
        """Read what `put_star_simulator` wrote; that of all stars where a member has none."""
        own = member is not None and self._star_simulator_file(member).is_file()
        tensors, about = read_tensors(self._star_simulator_file(member if own else None))
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        scaling = _scaling_among(arrays)
        return TrainingStarSimulator.from_arrays(arrays, about), scaling

    def put_joint_stars(self, stars: JointStars, scaling: Scaling, member: int) -> None:
        """Write the stars of several surveys that a member knows, and the scaling."""
        tensors = {name: torch.tensor(array) for name, array in stars.to_arrays().items()}
        write_tensors(self._joint_file(member), tensors | _of_scaling(scaling), {})

    def has_joint_stars(self, member: int) -> bool:
        """Whether `put_joint_stars` was called before."""
        return _is_whole(self._joint_file(member))

    def joint_task(self, settings: JointSettings, member: int) -> JointTask:
        """Return what a member of a joint model is trained on."""
        tensors, _ = read_tensors(self._joint_file(member))
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        scaling = _scaling_among(arrays)
        simulators = {
            name: WorkFolder(self.path / name).star_simulator(member)[0]
            for name in settings.training
        }
        stars = JointStars.from_arrays(arrays, settings.labels)
        return JointTask(simulators, stars, scaling, self.start(member) or {}, settings)

    def _joint_file(self, member: int) -> Path:
        return self.path / f"joint-{member:03d}.safetensors"

    def put_start(self, member: int, start: Mapping[str, Float32Array]) -> None:
        """Write the weights that a member starts with."""
        weights = {name: torch.from_numpy(array) for name, array in start.items()}
        write_tensors(self._start_file(member), weights, {})

    def start(self, member: int) -> Mapping[str, Float32Array] | None:
        """Read what `put_start` wrote; None if it was not called."""
        if not self._start_file(member).is_file():
            return None
        tensors, _ = read_tensors(self._start_file(member))
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def _start_file(self, member: int) -> Path:
        return self.path / f"start-{member:03d}.safetensors"

    def _star_simulator_file(self, member: int | None) -> Path:
        name = "sky" if member is None else f"sky-{member:03d}"
        return self.path / f"{name}.safetensors"

    def checkpoint(self, member: int) -> Path:
        """File of the state of a member in training."""
        return self.path / f"checkpoint-{member:03d}.safetensors"

    def log(self, member: int) -> Path:
        """File of what the process of a member says when it fails."""
        return self.path / f"member-{member:03d}.log"

    def note_losses(self, event: MemberEvent) -> None:
        """Add the losses of an epoch to the member's record."""
        with self._losses_file(event.member).open("a", encoding="utf-8") as file:
            # The line before may be torn.
            line = json.dumps([event.epoch, event.training_loss, event.validation_loss])
            file.write(f"\n{line}\n")

    def losses(self, member: int) -> Float64Array:
        """Training and validation loss of each epoch, (n_epoch, 2); NaN where there is none."""
        file = self._losses_file(member)
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        # Epochs after the last checkpoint of a killed run stand twice, the good ones last.
        found = dict(filter(None, map(_epoch_losses, lines)))
        table = np.full((max(found, default=0), 2), np.nan)
        for epoch, both in found.items():
            table[epoch - 1] = [np.nan if loss is None else loss for loss in both]
        return table

    def _losses_file(self, member: int) -> Path:
        return self.path / f"losses-{member:03d}.jsonl"

    def result_file(self, member: int) -> Path:
        """File of the result of a member."""
        return self.path / f"member-{member:03d}.safetensors"

    def put_result(self, member: int, result: TrainedMember) -> None:
        """Write the result of a member, and remove its checkpoint."""
        state = {
            "validation_loss": result.validation_loss,
            "best_epoch": result.best_epoch,
            "n_epochs": result.n_epochs,
        }
        write_tensors(self.result_file(member), result.weights, state)
        # After the result is whole: killed in between, the member is done all the same.
        self.checkpoint(member).unlink(missing_ok=True)

    def result(self, member: int) -> TrainedMember:
        """Read the result of a member."""
        weights, state = read_tensors(self.result_file(member))
        return TrainedMember(weights, **state)


def _is_whole(file: Path) -> bool:
    """Whether tensors can be read back; a file that a failing machine damaged is removed."""
    if not file.is_file():
        return False
    try:
        read_tensors(file)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        logger.warning("%s is made again: %s", file, error)
        file.unlink(missing_ok=True)
        return False
    return True


_SCALING, _AFFINE = ("observables", "labels"), fields(Affine)
_SCALED = "scaling."


def _of_scaling(scaling: Scaling) -> dict[str, torch.Tensor]:
    """Return a scaling as tensors."""
    return {
        f"{_SCALED}{part}.{f.name}": torch.tensor(getattr(getattr(scaling, part), f.name))
        for part in _SCALING
        for f in _AFFINE
    }


def _scaling_among(arrays: dict[str, AnyArray]) -> Scaling:
    """Take what `_of_scaling` gave out of other arrays."""
    parts = (
        Affine(**{f.name: arrays.pop(f"{_SCALED}{part}.{f.name}") for f in _AFFINE})
        for part in _SCALING
    )
    return Scaling(*parts)


_SAMPLE = ("flux", "observables", "target", "variance")


class MemberJob(BaseModel):
    """What a process needs to train one member.

    Attributes
    ----------
    folder : Path
        The work folder.
    member, seed : int
        Number and seed of the member.
    preset, network, training
        Architecture and settings.
    checkpoint_seconds : float
        Least time between two checkpoints.
    joint : JointSettings, optional
        Of a network for several surveys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    member: int
    seed: int
    preset: str
    network: dict[str, Any]
    training: TrainingConfig | SimulatedTraining
    checkpoint_seconds: float
    joint: JointSettings | None = None

    @property
    def done(self) -> bool:
        """Whether the result is there, and whole; a damaged one is removed."""
        return _is_whole(WorkFolder(self.folder).result_file(self.member))

    def run(self, progress: Progress) -> None:
        """Train the member in this process and write its result."""
        folder = WorkFolder(self.folder)

        def on_epoch(epoch: int, training_loss: float, validation_loss: float | None) -> None:
            n_epochs = self.training.epochs
            event = MemberEvent(self.member, epoch, n_epochs, training_loss, validation_loss)
            folder.note_losses(event)
            progress(event)

        network = network_config(self.preset, self.network)
        common: dict[str, Any] = {
            "seed": self.seed,
            "checkpoint": folder.checkpoint(self.member),
            "checkpoint_seconds": self.checkpoint_seconds,
            "on_epoch": on_epoch,
        }
        if self.joint is not None:
            assert isinstance(network, DefaultConfig), "the preset maury"
            task = folder.joint_task(self.joint, self.member)
            folder.put_result(self.member, train_joint_network(task, network, **common))
            return
        common["config"] = self.training
        if network.simulates:
            star_simulator, scaling = folder.star_simulator(self.member)
            common["start"] = folder.start(self.member)
            result = train_on_simulated_stars(star_simulator, network, scaling=scaling, **common)
        else:
            samples = (folder.sample("train"), folder.sample("validation"))
            result = train_member(*samples, network, **common)
        folder.put_result(self.member, result)


def _epoch_losses(line: str) -> tuple[int, list[float | None]] | None:
    """Parse a line of a record of losses; None if a kill cut it short."""
    try:
        epoch, training, validation = json.loads(line)
    except ValueError:
        return None
    return epoch, [training, validation]


def run_job(text: str) -> int:
    """Run a job given as JSON, telling each event as a line of JSON on the standard output.

    When the process that started this one dies, the next line cannot be written, and this one
    ends as well.
    """

    def tell(event: MemberEvent) -> None:
        sys.stdout.write(json.dumps(asdict(event)) + "\n")
        sys.stdout.flush()

    job = MemberJob.model_validate_json(text)
    try:
        with one_thread():
            job.run(tell)
    except MauryError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def train_members(
    jobs: Sequence[MemberJob],
    *,
    n_processes: int,
    progress: Progress,
    stage: Stage = logger.info,
    cluster: Cluster | None = None,
) -> None:
    """Run jobs, `n_processes` at a time; those whose result is there already are done.

    With one process the jobs run in this one. Otherwise each has an interpreter of its own, which
    needs neither a guarded main module nor a copy of the stars. With a cluster they run on its
    workers; one whose worker is lost goes on from its checkpoint on another.

    Raises
    ------
    TrainingError
        If a member fails; the others are stopped, and can be resumed.
    ClusterError, WorkerLost
        If the scheduler of the cluster or worker after worker is lost.
    """
    stage(f"training {len(jobs)} network{'s' * (len(jobs) > 1)}")
    todo = [job for job in jobs if not job.done]

    def tell(event: MemberEvent) -> None:
        # A share of those alone that have begun would be whole again and again.
        progress(replace(event, n_members=len(todo)))

    if cluster is not None:
        _train_on(cluster, todo, tell)
        return
    if n_processes == 1:
        with one_thread():
            for job in todo:
                job.run(tell)
        return
    waiting = list(reversed(todo))
    running: dict[int, subprocess.Popen[str]] = {}
    events: queue.Queue[tuple[MemberJob, str]] = queue.Queue()
    try:
        while waiting or running:
            while waiting and len(running) < n_processes:
                job = waiting.pop()
                running[job.member] = _start(job, events)
            job, line = events.get()
            if line:
                tell(MemberEvent(**json.loads(line)))
            elif running.pop(job.member).wait() != 0:
                log = WorkFolder(job.folder).log(job.member)
                raise TrainingError(f"member {job.member} failed: {_last_line(log)} (see {log})")
    finally:
        for process in running.values():
            # Killed without asking: what a member has not written yet it makes again from its
            # checkpoint.
            process.kill()
            process.wait()


def _train_on(cluster: Cluster, jobs: Sequence[MemberJob], progress: Progress) -> None:
    jobs = [job.model_copy(update={"folder": job.folder.absolute()}) for job in jobs]
    # A worker that does not see the folder would train, and write where nobody looks.
    cluster.require_paths({job.folder for job in jobs})
    cluster.run_tasks(
        _train_there,
        jobs,
        unfinished=lambda job: not job.done,
        told=lambda number, event: progress(MemberEvent(**event)),
    )


def _train_there(job: MemberJob, tell: Callable[[Any], None]) -> None:
    """Train a member on a worker of a cluster."""
    job.run(lambda event: tell(asdict(event)))


def _start(job: MemberJob, events: "queue.Queue[tuple[MemberJob, str]]") -> "subprocess.Popen[str]":
    package_root = str(Path(__file__).resolve().parents[2])
    # The child must find the package where this process found it, installed or not.
    search = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    code = (
        "import sys; from maury.training.processes import run_job; sys.exit(run_job(sys.argv[1]))"
    )
    with WorkFolder(job.folder).log(job.member).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, job.model_dump_json()],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Set before numpy and torch are loaded, which read it once.
            env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
        )

    def listen() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                events.put((job, line))
        events.put((job, ""))

    # A thread for each pipe, as one that is not read fills up and stops its process; none of them
    # keeps this process alive.
    threading.Thread(target=listen, daemon=True).start()
    return process


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "its process was killed, perhaps for want of memory"
