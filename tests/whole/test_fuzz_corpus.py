"""Every door of the package takes the inputs of `fuzz` and small changes of right ones."""

import random
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from maury.errors import MauryError

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"
sys.path.insert(0, str(FUZZ))

import watch  # noqa: E402
from run import mutated  # noqa: E402
from targets import TARGETS, seeds_of  # noqa: E402
from watch import Escape, install, limited, watched  # noqa: E402

CHANGED = 25


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if not target.apart])
@pytest.mark.filterwarnings("ignore")
def test_inputs_are_read_or_refused(tmp_path, name, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    feed = TARGETS[name].make(tmp_path)
    seeds = seeds_of(name, tmp_path)
    rng = random.Random(f"{name} 1")
    words = TARGETS[name].words
    kept = [file.read_bytes() for file in sorted((FUZZ / "corpus" / name).glob("*"))]
    changed = [mutated(rng.choice(seeds), rng, words, seeds) for _ in range(CHANGED)]
    # Once outside of the watch: what is imported late is no input's doing.
    for data in seeds:
        with suppress(MauryError):
            feed(data)
    install(tmp_path)
    read, said = 0, []
    for data in [*seeds, *kept, *changed]:
        try:
            with limited(), watched():
                feed(data)
            read += 1
        except MauryError as error:
            said.append(str(error))
    assert all(said)
    assert read, "not even a seed was read"


def test_the_watch_sees_what_it_should(tmp_path):
    install(tmp_path)
    with pytest.raises(Escape, match="open"), watched():
        (tmp_path.parent / "elsewhere").write_text("x")
    with pytest.raises(Escape, match="socket"), watched():
        import socket

        socket.create_connection(("127.0.0.1", 9), timeout=1)
    with pytest.raises(Escape, match="Popen"), watched():
        import subprocess

        subprocess.run(["true"], check=False)
    with watched():
        (tmp_path / "here").write_text("x")


def test_the_limits_hold_and_end(monkeypatch):
    with pytest.raises(Escape, match="memory"), limited():
        try:
            bytearray(2**33)
        except MemoryError as error:
            raise MauryError("a clear error") from error
    assert len(bytearray(2**20)) == 2**20
    monkeypatch.setattr(watch, "CPU_SECONDS", 0.01)
    with pytest.raises(Escape, match="CPU"), limited():
        began = time.process_time()
        while time.process_time() - began < 0.02:
            pass


def test_every_corpus_is_of_a_target():
    folders = [folder.name for folder in (FUZZ / "corpus").iterdir()]
    assert folders
    assert set(folders) <= set(TARGETS)
