"""One thread within the context of a worker, and the threads of the user again outside."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from maury.io.workers import one_thread


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
