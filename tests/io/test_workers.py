"""One thread within the context of a worker, and the threads of the user again outside."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from maury.io.workers import one_thread, starting_processes

TESTS = Path(__file__).parents[1]


def threads():
    return [pool["num_threads"] for pool in threadpool_info()], torch.get_num_threads()


@pytest.mark.parametrize("usual", [1, 2, 3])
def test_pools_have_one_thread_within_and_their_own_afterwards(usual):
    np.ones((4, 4)) @ np.ones((4, 4))
    before_all = torch.get_num_threads()
    torch.set_num_threads(usual)
    try:
        before = threads()
        with one_thread():
            pools, of_torch = threads()
            assert set(pools) == {1}
            assert of_torch == 1
            with one_thread():
                assert threads() == (pools, of_torch)
            assert threads() == (pools, of_torch)
        assert threads() == before
        with pytest.raises(ZeroDivisionError), one_thread():
            1 / 0  # noqa: B018
        assert threads() == before
    finally:
        torch.set_num_threads(before_all)


@pytest.mark.slow
def test_libraries_loaded_within_are_limited_and_freed_too():
    script = """
        import os
        from maury.io.workers import one_thread

        before = dict(os.environ)
        with one_thread():
            import torch
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3, torch.get_num_threads()
        assert dict(os.environ) == before
    """
    environment = {"OMP_NUM_THREADS": "3", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(command, check=True, env=environment, timeout=None)


UNGUARDED = """
import sys
from pathlib import Path
sys.stdout.write("begun\\n")
{imports}
folder = Path(sys.argv[1])
tasks = [str(folder / f"{{k}}.txt") for k in range(3)]
{run}
sys.stdout.write("ended\\n")
"""


@pytest.mark.parametrize(
    ("imports", "run"),
    [
        pytest.param(
            "from maury.io.workers import run_tasks\nfrom builders.worker_tasks import touch",
            "run_tasks(touch, tasks, n_workers=2, unfinished=lambda t: not Path(t).exists())",
            id="workers",
        ),
        pytest.param(
            "from maury.io.cluster import connect\nfrom builders.worker_tasks import touch",
            "with connect('local', workers=2) as cluster:\n"
            "    cluster.run_tasks(touch, tasks, unfinished=lambda t: not Path(t).exists())",
            id="cluster",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_script_without_a_guard_runs_once(tmp_path, imports, run):
    """Processes that are spawned import the main module, and would begin it anew."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(imports=imports, run=run))
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stdout) == (0, "begun\nended\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.glob("*.txt"))) == 3


def test_signals_that_come_while_processes_start_come_afterwards():
    order = []
    before = signal.signal(signal.SIGINT, lambda *_: order.append("told"))
    main = sys.modules["__main__"]
    try:
        with starting_processes():
            signal.raise_signal(signal.SIGINT)
            order.append("started")
            assert not hasattr(sys.modules["__main__"], "__file__")
        assert order == ["started", "told"]
        assert sys.modules["__main__"] is main
    finally:
        signal.signal(signal.SIGINT, before)
