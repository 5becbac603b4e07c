"""Local worker processes: independent tasks, one thread each, that survive the loss of a worker."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from types import ModuleType
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

from maury.errors import WorkerLost
from maury.io.printing import clean_streams

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Report = Callable[[int], None]
"""Called by a task with the rows that it has done."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_MOST_LOSSES = 3
"""Times that workers may be killed while nothing is finished: once may be an accident."""
_POLL_S = 0.2
"""Progress is told so often; a task that ends is heard of at once."""


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(
    work: Callable[[Task, Report], object],
    tasks: Sequence[Task],
    *,
    n_workers: int,
    unfinished: Callable[[Task], bool],
    progress: Report | None = None,
) -> None:
    """Run tasks in worker processes of one thread each.

    A worker that is killed costs the tasks under way, which are done again. If this process is
    interrupted, the workers stop at the next report; if it is killed, so are they.

    Parameters
    ----------
    work : callable
        Called with a task and a `Report`; must be picklable, as must be the tasks.
    tasks : sequence
        In the order in which they are begun.
    n_workers : int
        Number of processes.
    unfinished : callable
        Whether a task, whose worker may have been lost, is still to be done.
    progress : callable, optional
        Called now and then with the rows done by all tasks together.

    Raises
    ------
    WorkerLost
        If workers are killed again and again without finishing a task.
    """
    left, losses = list(tasks), 0
    rows_done = 0
    while left:
        # No lock: each task writes a count of its own, and this process only reads.
        counts: Any = multiprocessing.get_context("spawn").RawArray("q", len(left) + 1)
        try:
            _run_once(work, left, counts, n_workers=n_workers, progress=progress, base=rows_done)
            return
        except BrokenProcessPool:
            still = [task for task in left if unfinished(task)]
            # A loss after progress is a new accident, and is counted anew.
            losses = losses + 1 if len(still) == len(left) else 1
            if losses >= _MOST_LOSSES:
                raise WorkerLost(
                    f"worker processes were killed {losses} times without finishing anything; is "
                    "there too little memory? Use fewer workers; what is written is kept"
                ) from None
            logger.warning("a worker process was killed; its rows are done again")
            pairs = zip(left, counts, strict=False)
            rows_done += sum(rows for task, rows in pairs if not unfinished(task))
            left = still


def _run_once(
    work: Callable[[Task, Report], object],
    tasks: Sequence[Task],
    counts: Any,
    *,
    n_workers: int,
    progress: Report | None,
    base: int,
) -> None:
    # A forked child would hold the locks of threads (BLAS, Arrow) that it does not have.
    context = multiprocessing.get_context("spawn")
    with (
        _one_thread_each(),
        ProcessPoolExecutor(
            min(n_workers, len(tasks)), context, initializer=_begin, initargs=(counts,)
        ) as pool,
    ):
        pending: set[Future[None]] = set()
        try:
            # Those that lose this one while they start would show a traceback.
            with starting_processes((signal.SIGINT, signal.SIGTERM)):
                pending |= {pool.submit(_call, work, task, k) for k, task in enumerate(tasks)}
            while pending:
                finished, pending = wait(pending, _POLL_S, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                if progress is not None:
                    progress(base + sum(counts[:-1]))
        except BaseException:
            # Tasks look at this count when they report: a running one cannot be cancelled.
            counts[-1] = 1
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def starting_processes(held_back: Iterable[int] = (signal.SIGINT,)) -> Iterator[None]:
    """Start processes meanwhile that neither run the caller's script again nor heed Ctrl-C.

    Processes that are spawned import the main module of their parent. What is done here lies in
    packages, and a script that is not guarded by ``if __name__ == "__main__"`` would begin anew in
    each of them. Ctrl-C goes to all processes of a terminal, and would show a traceback in those
    that are just starting; it reaches this one afterwards.
    """
    main = sys.modules["__main__"]
    mask = getattr(signal, "pthread_sigmask", None)
    # Signals that are held back stay so in the processes that are started, and in their threads.
    held = mask(signal.SIG_BLOCK, held_back) if mask else None
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if mask:
            mask(signal.SIG_SETMASK, held)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread meanwhile, and give the threads back.

    The order in which a sum is taken, and so its last digits, depends on the number of threads.
    Every worker computes within this context, and so does the process that stands in for one; the
    bytes of a result then depend neither on the number of workers nor on OMP_NUM_THREADS.

    Thread pools are settings of the whole process: other threads of the caller that compute
    meanwhile are on one thread as well.
    """
    torch = sys.modules.get("torch")
    threads = None if torch is None else torch.get_num_threads()
    known = {library["filepath"] for library in threadpool_info()}
    # Variables alone reach the libraries that are loaded only within the context.
    with _one_thread_each(), threadpool_limits(1):
        if torch is not None:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch is not None:
                torch.set_num_threads(threads)
    _free_new_pools(known, torch_is_new=torch is None)


def _free_new_pools(known: set[str], *, torch_is_new: bool) -> None:
    """Give libraries that were loaded on one thread the threads that they would have had."""
    usual = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or n_cores())
    for library in ThreadpoolController().lib_controllers:
        if library.filepath not in known:
            library.set_num_threads(usual)
    if torch_is_new and (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(usual)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that start meanwhile compute on one thread."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    # Libraries read these variables once, when a worker imports them.
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Stopped(Exception):
    """The process that gave the task does not want its result any more."""


_counts: Any = None


def _begin(counts: Any) -> None:
    global _counts
    _counts = counts
    clean_streams()
    # The parent alone answers Ctrl-C, and says when to stop; it ends workers by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A parent killed by SIGKILL cannot tell its workers, who would compute for nobody.
        connection.wait([parent.sentinel])
        os._exit(1)


def _call(work: Callable[[Task, Report], object], task: Task, slot: int) -> None:
    def report(rows: int) -> None:
        _counts[slot] = rows
        if _counts[-1]:
            raise _Stopped

    report(0)
    with one_thread():
        work(task, report)
