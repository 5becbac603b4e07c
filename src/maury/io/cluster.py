"""Dask clusters: independent tasks on many machines that share a file system.

A task is a picklable object that names its inputs and its output by path, and is done once its
output is there. So a worker that is lost costs its tasks under way, and a scheduler that is lost
costs no more than those: what is written stays, and the next run does the rest. Nothing but paths
and plain values travels; code is what each worker has installed.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from maury.errors import (
    ClusterError,
    ConfigError,
    MauryError,
    MissingExtra,
    WorkerLost,
)
from maury.io.printing import clean_streams
from maury.io.workers import n_cores, one_thread, starting_processes
from maury.version import __version__

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["LOCAL", "Cluster", "choose_device", "connect"]

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Tell = Callable[[Any], None]
"""Called by a task with plain values that the client shall hear of."""

LOCAL = "local"
"""In place of an address: a cluster on this machine, as long as it is needed."""
_RETRIES = 2
"""More attempts at a task that failed: a lost connection passes, a fault of the code comes back."""
_VISIBLE_S = 30.0
"""For so long NFS keeps its picture of a folder by default (acdirmin): a file that a worker has
written may be unseen until then."""
_COUNT_S = 2.0
"""Between counts of the workers, each of which asks the scheduler; chosen, not measured."""


@contextmanager
def connect(
    scheduler: str | Path = LOCAL, *, workers: int | None = None, timeout_s: float = 30.0
) -> Iterator[Cluster]:
    """Yield the workers of a Dask scheduler.

    Parameters
    ----------
    scheduler : str or path-like
        Address (``tcp://host:8786``) or scheduler file of a running scheduler, or ``local``: a
        scheduler and worker processes of one thread on this machine, ended afterwards.
    workers : int, optional
        Workers to start, if the scheduler is ``local`` (as many as there are cores by default);
        else workers to wait for (1 by default).
    timeout_s : float
        How long to wait for the scheduler, and then for its workers, in seconds.

    Raises
    ------
    MissingExtra
        If ``dask.distributed`` is not installed.
    ClusterError
        If the scheduler does not answer, has too few workers, or workers have another maury.
    """
    try:
        import dask

        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingExtra(
            "Dask clusters need the package distributed: pip install 'maury[dask]'"
        ) from error
    if workers is not None and workers < 1:
        raise ConfigError(f"the number of workers must be at least 1, got {workers}")
    if str(scheduler) == LOCAL:
        count = workers or n_cores()
        options = {"n_workers": count, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        # Dask's profiler looks at every task a hundred times a second, which costs the task time.
        with ExitStack() as stack:
            stack.enter_context(dask.config.set({"distributed.worker.profile.enabled": False}))
            with starting_processes():
                local = stack.enter_context(LocalCluster(**options))
            client = stack.enter_context(Client(local, set_as_default=False))
            client.run(clean_streams)
            yield _checked(client, count, timeout_s)
        return
    with _client(str(scheduler), timeout_s) as client:
        yield _checked(client, workers or 1, timeout_s)


@contextmanager
def _client(scheduler: str, timeout_s: float) -> Iterator[Client]:
    from distributed import Client

    where: dict[str, Any] = {"address": scheduler}
    if Path(scheduler).is_file():
        where = {"scheduler_file": scheduler}
    elif scheduler.endswith(".json"):
        raise ClusterError(
            f"there is no scheduler file {scheduler}; start a scheduler with "
            f"'dask scheduler --scheduler-file {scheduler}', or give its address"
        )
    try:
        client = Client(**where, timeout=timeout_s, set_as_default=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {scheduler} ({type(error).__name__}: {error}); expected "
            "the address of a running one, such as tcp://host:8786, its scheduler file, or "
            f"'{LOCAL}'; start one with 'dask scheduler'"
        ) from error
    try:
        yield client
    finally:
        client.close(timeout=5)


def _checked(client: Client, workers: int, timeout_s: float) -> Cluster:
    cluster = Cluster(client)
    try:
        client.wait_for_workers(workers, timeout=timeout_s)
    except TimeoutError as error:
        raise ClusterError(
            f"the scheduler at {cluster.address} has {len(client.nthreads())} workers after "
            f"{timeout_s:g} s, expected at least {workers}; start them with "
            f"'dask worker {cluster.address} --nworkers {workers} --nthreads 1'"
        ) from error
    cluster.require_version()
    return cluster


class Cluster:
    """The workers of a Dask scheduler.

    Tasks of one worker process run one after the other, whatever its threads, so workers should
    have one thread each. Made by `connect`.

    Parameters
    ----------
    client : distributed.Client
        Connected to the scheduler.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.address = str(client.scheduler.address) if client.scheduler else ""

    def __repr__(self) -> str:
        return f"<Cluster {self.address}: {self.n_workers} workers>"

    @property
    def n_workers(self) -> int:
        """Worker processes at present."""
        return len(self._client.nthreads())

    def require_version(self) -> None:
        """Raise `ClusterError` unless all workers have the maury of this process."""
        for worker, found in self._ask(_asking_version()).items():
            if found != __version__:
                raise ClusterError(_other_version(worker, str(found), __version__))

    def require_paths(self, paths: Iterable[Path | str]) -> None:
        """Raise `ClusterError` unless all workers see these files or directories."""
        wanted = [str(Path(path).absolute()) for path in paths if "://" not in str(path)]
        for worker, lacking in self._ask(_asking_paths(wanted)).items():
            if lacking:
                raise ClusterError(
                    f"the worker {worker} does not see {', '.join(lacking)}; put model, survey and "
                    "output on a file system that all workers share, under the same path"
                )

    def run_tasks(
        self,
        work: Callable[[Task, Tell], object],
        tasks: Sequence[Task],
        *,
        unfinished: Callable[[Task], bool],
        told: Callable[[int, Any], None] | None = None,
    ) -> None:
        """Run tasks whose outputs are files, in any order.

        Parameters
        ----------
        work, tasks, told
            As of `results`.
        unfinished : callable
            Whether the output of a task cannot be seen from here.

        Raises
        ------
        ClusterError
            If the scheduler is lost, or the output of a worker cannot be seen from here.
        WorkerLost
            If a task costs one worker after the other.
        """
        for number, _ in self.results(work, tasks, told=told):
            _await(lambda task: not unfinished(task), tasks[number])

    def results(
        self,
        work: Callable[[Task, Tell], object],
        tasks: Sequence[Task],
        *,
        told: Callable[[int, Any], None] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield the number of each task and what it returned, in the order of their ends.

        Parameters
        ----------
        work : callable
            A function of an importable module, called with a task and a `Tell`; the task's result
            must be small.
        tasks : sequence
            Picklable.
        told : callable, optional
            Called with the number of a task and what it told.

        Raises
        ------
        ClusterError, WorkerLost
            As of `run_tasks`; errors of `work` are raised after two more attempts.
        """
        from distributed import as_completed

        topic = f"maury-{uuid.uuid4().hex}"
        waiting = iter(range(len(tasks)))
        numbers: dict[Future, int] = {}

        def submit() -> Future | None:
            number = next(waiting, None)
            if number is None:
                return None
            call = (__version__, topic if told is not None else "", number)
            future = self._client.submit(
                _call,
                call,
                work,
                tasks[number],
                key=f"{getattr(work, '__name__', 'task')}-{topic[6:]}-{number}",
                pure=False,
                retries=_RETRIES,
                priority=-number,
            )
            numbers[future] = number
            return future

        with self._hearing(topic, told):
            try:
                # Dask blames a lost worker on all tasks that it held, so few are given ahead.
                ahead = _Ahead(self._client)
                first = [f for _ in range(ahead.wanted()) if (f := submit()) is not None]
                ended = as_completed(first, loop=self._client.loop, raise_errors=False)
                for future in ended:
                    number = numbers.pop(future)
                    yield number, self._result(future)
                    while len(numbers) < ahead.wanted() and (more := submit()) is not None:
                        ended.add(more)
            finally:
                if numbers and self._client.status == "running":
                    self._client.cancel(list(numbers), force=True)

    def _result(self, future: Future) -> Any:
        from distributed import KilledWorker

        if future.status != "error":
            try:
                return future.result()
            except (OSError, CancelledError) as error:
                raise ClusterError(
                    f"the scheduler at {self.address} was lost, or gave up the work; what is "
                    "written is kept: start a scheduler and its workers, and run the same command "
                    "again"
                ) from error
        failure = future.exception()
        if isinstance(failure, MauryError):
            raise failure
        if isinstance(failure, KilledWorker):
            raise WorkerLost(
                "a task cost one worker after the other, perhaps for want of memory; give workers "
                f"more of it, and run the same command again; what is written is kept ({failure})"
            ) from failure
        raise ClusterError(
            f"a task failed {_RETRIES + 1} times on the workers of {self.address}: "
            f"{type(failure).__name__}: {failure}"
        ) from failure

    @contextmanager
    def _hearing(self, topic: str, told: Callable[[int, Any], None] | None) -> Iterator[None]:
        if told is None:
            yield
            return

        def hear(event: tuple[float, tuple[int, Any]]) -> None:
            told(*event[1])

        self._client.subscribe_topic(topic, hear)
        try:
            yield
        finally:
            if self._client.status == "running":
                self._client.unsubscribe_topic(topic)

    def _ask(self, question: Callable[[], Any]) -> Mapping[str, Any]:
        answers = dict(self._client.run(question, on_error="return"))
        for worker, answer in list(answers.items()):
            if isinstance(answer, OSError):
                del answers[worker]  # It is lost, which is no fault of the others.
            elif isinstance(answer, Exception):
                raise ClusterError(f"the worker {worker} cannot answer: {answer!r}; start it again")
        return answers


class _Ahead:
    """How many tasks to have under way: two per worker, of which there may be more or fewer."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._counted = -_COUNT_S
        self._wanted = 2

    def wanted(self) -> int:
        now = time.monotonic()
        if now - self._counted > _COUNT_S and self._client.status == "running":
            self._counted = now
            # A lost scheduler is found out, and told, where a result is asked for.
            with suppress(OSError):
                self._wanted = max(2, 2 * len(self._client.nthreads()))
        return self._wanted


# Questions are closures, because those travel whole: a worker without this module can answer.
def _asking_version() -> Callable[[], str]:
    def version() -> str:
        try:
            # Any version of the package has this name; not every one has `maury.version`.
            return str(import_module("maury").__version__)
        except ImportError:
            return "none"

    return version


def _asking_paths(paths: Sequence[str]) -> Callable[[], list[str]]:
    def lacking() -> list[str]:
        import os

        return [path for path in paths if not os.path.exists(path)]

    return lacking


def _other_version(worker: str, found: str, wanted: str) -> str:
    return (
        f"the worker {worker} has maury {found}, the process that gives it work has {wanted}; "
        f"install maury {wanted} in the environment of the workers, and start them again"
    )


_ONE_AT_A_TIME = threading.Lock()


def _call(call: tuple[str, str, int], work: Callable[[Any, Tell], object], task: Any) -> object:
    """Run a task on a worker; `call` is the client's version, where to tell, and the number."""
    from distributed import get_worker

    version, topic, number = call
    worker = get_worker()
    if version != __version__:
        raise ClusterError(_other_version(worker.address, __version__, version))

    def tell(value: Any) -> None:
        if topic:
            worker.log_event(topic, (number, value))

    with _ONE_AT_A_TIME:
        _take_device(worker.name)
        with one_thread():
            return work(task, tell)


_device_taken = False


def _take_device(name: object) -> None:
    """Show this process its own GPU only, before anything asks for one."""
    global _device_taken
    if _device_taken:
        return
    _device_taken = True
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    n_devices = sum(1 for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit())
    chosen = choose_device(name, visible, n_devices=n_devices)
    if chosen is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = chosen
        logger.info("worker %s computes on GPU %s", name, chosen)


def choose_device(name: object, visible: str | None, *, n_devices: int) -> str | None:
    """Return the GPU of a worker, as ``CUDA_VISIBLE_DEVICES`` takes it, or None for no change.

    The number at the end of the worker's name is its index; worker k of a machine takes device k,
    counted round. A name that is an address has no index, and takes the first. A list that does
    not begin with its least device was turned for this worker already, as dask-cuda does, and its
    first device is taken.

    Parameters
    ----------
    name : str or int
        Name of the worker.
    visible : str or None
        ``CUDA_VISIBLE_DEVICES``, if set.
    n_devices : int
        Devices of the machine.

    Examples
    --------
    >>> choose_device("node7-2", None, n_devices=4)
    '2'
    >>> choose_device(1, "4,5", n_devices=8)
    '5'
    """
    devices = [str(k) for k in range(n_devices)]
    if visible is not None:
        devices = [device.strip() for device in visible.split(",") if device.strip()]
    if len(devices) < 2:
        return None
    if devices != sorted(devices, key=lambda device: (len(device), device)):
        return devices[0]
    index = None if "://" in str(name) else re.search(r"(\d+)$", str(name))
    return devices[int(index.group()) % len(devices)] if index else devices[0]


def _await(done: Callable[[Task], bool], task: Task) -> None:
    """Wait until the output of a task is seen from here; network file systems may lag."""
    deadline = time.monotonic() + _VISIBLE_S
    while not done(task):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"a worker has done {task}, but its output is not seen from here; put the output "
                "on a file system that all workers and this machine share, under the same path"
            )
        time.sleep(0.2)
