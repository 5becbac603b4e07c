"""Fuzz the doors of the package: one process per target, guided by coverage where atheris is.

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from targets import TARGETS, clean, seeds_of  # noqa: E402
from watch import CPU_SECONDS, MEMORY_MIB, Escape, install, limited, watched  # noqa: E402

HANG_SECONDS = CPU_SECONDS
_NOTE_EVERY = 200


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="names; all by default")
    parser.add_argument("--runs", type=int, default=2000, help="executions of each target")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of each target")
    parser.add_argument("--engine", choices=["atheris", "mutate"], default=_engine())
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "maury-fuzz")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.worker:
        Worker(args.targets[0], args).run()
        return
    for name in args.targets or TARGETS:
        _drive(name, args)
    _table(args.out)


def _engine() -> str:
    from importlib.util import find_spec

    return "atheris" if find_spec("atheris") else "mutate"


def _drive(name: str, args: argparse.Namespace) -> None:
    """Run a target in processes of its own until its budget is spent, whatever kills them."""
    left, seconds = args.runs, args.seconds
    for attempt in range(20):
        before = _state(args.out, name)
        command = [
            sys.executable, __file__, name, "--worker", f"--runs={left}", f"--seconds={seconds}",
            f"--engine={args.engine}", f"--out={args.out}", f"--seed={args.seed + attempt}",
        ]  # fmt: skip
        began = time.monotonic()
        log = args.out / f"{name}.log"
        with log.open("ab") as stream:
            try:
                done = subprocess.run(
                    command, stdout=stream, stderr=stream, timeout=10 * seconds + 60, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                done = -99
        after = _state(args.out, name)
        made = after["runs"] - before["runs"]
        left, seconds = left - made, seconds - (after["cpu"] - before["cpu"])
        if done != 0:
            last = args.out / f"{name}.input"
            _keep(args.out, name, f"process ended with {done}", last.read_bytes(), log_tail(log))
        if done == 0 or left <= 0 or seconds <= 1 or time.monotonic() - began < 0.5:
            break
    final = _state(args.out, name)
    print(f"{name:18} {final['runs']:9d} runs {final['cpu']:7.1f} s CPU", flush=True)


def log_tail(log: Path) -> str:
    """Return the end of what a process said."""
    return log.read_bytes()[-3000:].decode("utf-8", "replace")


def _state(out: Path, name: str) -> dict[str, Any]:
    file = out / f"{name}.count.json"
    empty = {"runs": 0, "refused": 0, "read": 0, "cpu": 0.0, "peak_mib": 0, "slowest": 0.0}
    return json.loads(file.read_text()) if file.is_file() else empty


def _keep(out: Path, name: str, what: str, data: bytes, text: str) -> None:
    """Keep one input for each different failure."""
    key = re.sub(r"0x[0-9a-f]+|[0-9]+", "N", what)[:200]
    folder = out / "findings" / name
    folder.mkdir(parents=True, exist_ok=True)
    label = f"{abs(hash_of(key)):08x}"
    if not (folder / f"{label}.txt").exists():
        (folder / f"{label}.bin").write_bytes(data)
        (folder / f"{label}.txt").write_text(f"{what}\n\n{text}")


def hash_of(text: str) -> int:
    """Return a short number for a text."""
    import zlib

    return zlib.crc32(text.encode("utf-8", "replace"))


class Worker:
    """One process that feeds one target."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.args, self.target = name, args, TARGETS[name]
        self.folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=_memory_disk()))
        self.state = _state(args.out, name)
        self.before = self.state["cpu"]
        self.input = (args.out / f"{name}.input").open("wb")
        self.made = 0

    def run(self) -> None:
        """Feed inputs until the budget is spent."""
        tempfile.tempdir = str(self.folder)
        os.chdir(self.folder)
        if self.args.engine == "atheris" and not self.target.apart:
            import atheris

            with atheris.instrument_imports(include=["maury"], enable_loader_override=False):
                self._begin()
            self._atheris(atheris)
        else:
            self._begin()
            self._mutate()
        self._note()
        clean(self.folder)

    def _begin(self) -> None:
        self.feed: Callable[[bytes], None] = self.target.make(self.folder)
        self.seeds = seeds_of(self.name, self.folder)
        import warnings

        warnings.simplefilter("ignore")
        import logging

        logging.disable(logging.CRITICAL)
        for seed in self.seeds:
            with self._tolerant():
                self.feed(seed)
        corpus = HERE / "corpus" / self.name
        self.seeds += [file.read_bytes() for file in sorted(corpus.glob("*"))]
        install(self.folder)

    @staticmethod
    def _tolerant() -> Any:
        from contextlib import suppress

        from maury.errors import MauryError

        return suppress(MauryError)

    def one(self, data: bytes) -> None:
        """Feed one input, and judge what comes of it."""
        from maury.errors import MauryError

        self._remember(data)
        # What hangs is killed after so much CPU time, and noted by the driver.
        signal.setitimer(signal.ITIMER_PROF, 3 * HANG_SECONDS)
        began = time.process_time()
        try:
            if self.target.apart:
                self._feed_apart(data)
            else:
                with limited(), watched():
                    self.feed(data)
            self.state["read"] += 1
        except MauryError:
            self.state["refused"] += 1
        except (Exception, Escape) as error:
            trace = traceback.extract_tb(error.__traceback__)
            ours = [f for f in trace if "/maury/" in f.filename] or list(trace)
            where = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
            what = f"{type(error).__name__} in {where}: {error!s:.120}"
            kept = f"{type(error).__name__} {where}"
            _keep(self.args.out, self.name, kept, data, f"{what}\n{traceback.format_exc()}")
        took = time.process_time() - began
        if took > HANG_SECONDS:
            _keep(self.args.out, self.name, "hang", data, f"{took:.1f} s of CPU")
        self.state["slowest"] = max(self.state["slowest"], took)
        self.state["runs"] += 1
        self.made += 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        if peak > MEMORY_MIB and peak > self.state["peak_mib"]:
            _keep(self.args.out, self.name, f"memory {peak // 1024}", data, f"{peak} MiB")
        self.state["peak_mib"] = max(self.state["peak_mib"], peak)
        if self.made % _NOTE_EVERY == 0:
            self._note()

    def _feed_apart(self, data: bytes) -> None:
        """Feed one input to a process of its own, whose death is one clear error."""
        from maury.errors import InputFileError, MauryError

        child = os.fork()
        if child == 0:
            code = 70
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (1, 2))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                with watched():
                    self.feed(data)
                code = 0
            except MauryError:
                code = 3
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            name = f"signal {os.WTERMSIG(status)}"
            self.state["died"] = self.state.get("died", 0) + 1
            _keep(self.args.out, self.name, f"contained: {name}", data, name)
            raise InputFileError(name)
        if os.WEXITSTATUS(status) == 3:
            raise InputFileError("refused")
        if os.WEXITSTATUS(status) == 70:
            raise AssertionError("the process raised something else")

    @property
    def spent(self) -> bool:
        """Whether the budget of executions or of CPU time is used up."""
        return self.made >= self.args.runs or _cpu() >= self.args.seconds

    def _remember(self, data: bytes) -> None:
        self.input.seek(0)
        self.input.truncate()
        self.input.write(data)
        self.input.flush()

    def _note(self) -> None:
        self.state["cpu"] = self.before + _cpu()
        file = self.args.out / f"{self.name}.count.json"
        partial = file.with_suffix(".tmp")
        partial.write_text(json.dumps(self.state))
        partial.replace(file)

    def _atheris(self, atheris: Any) -> None:
        corpus = self.folder / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(self.seeds):
            (corpus / f"seed-{number:03d}").write_bytes(seed)
        words = self.folder / "words.dict"
        quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in self.target.words)
        words.write_text("".join(f'"{word}"\n' for word in quoted))
        longest = max(map(len, self.seeds), default=64)
        options = [
            sys.argv[0], f"-runs={self.args.runs}", f"-seed={self.args.seed}",
            f"-timeout={6 * HANG_SECONDS}", "-rss_limit_mb=4096", f"-max_len={longest + 512}",
            f"-artifact_prefix={self.folder}/", "-len_control=0", str(corpus),
        ]  # fmt: skip

        if self.target.words:
            options.insert(1, f"-dict={words}")

        def one(data: bytes) -> None:
            self.one(data)
            if self.spent:
                self._note()
                clean(self.folder)
                os._exit(0)

        atheris.Setup(options, one)
        atheris.Fuzz()

    def _mutate(self) -> None:
        rng = random.Random(self.args.seed)
        while not self.spent:
            self.one(mutated(rng.choice(self.seeds), rng, self.target.words, self.seeds))


def mutated(seed: bytes, rng: random.Random, words: Any, seeds: list[bytes]) -> bytes:
    """Change some bytes: flips, numbers, words, cuts, repetitions, parts of another seed."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        place = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 80))
        match rng.randrange(8):
            case 0 if data:
                data[place % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[place % len(data)] = rng.choice((0, 1, 127, 128, 255, 48, 57))
            case 2 | 3 if words:
                word = rng.choice(words)
                data[place : place + (len(word) if rng.random() < 0.7 else 0)] = word
            case 4:
                del data[place : place + length]
            case 5:
                data[place:place] = data[place : place + length] * rng.choice((1, 2, 30))
            case 6:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                data[place : place + length] = other[start : start + length]
            case _:
                digits = rng.choice((b"0", b"-1", b"9" * 9, b"9" * 19, b"2147483648", b"1e308"))
                data[place : place + len(digits)] = digits
    return bytes(data)


def _cpu() -> float:
    """Seconds of CPU that this process and its children took."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _memory_disk() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _table(out: Path) -> None:
    total = 0
    lines = ["target | executions | read | refused | CPU s | slowest s | peak MiB | findings"]
    for name in TARGETS:
        s = _state(out, name)
        found = len(list((out / "findings" / name).glob("*.txt")))
        total += s["runs"]
        lines.append(
            f"{name} | {s['runs']} | {s['read']} | {s['refused']} | {s['cpu']:.0f} | "
            f"{s['slowest']:.2f} | {s['peak_mib']} | {found}"
        )
    print("\n".join([*lines, f"all: {total} executions"]))


if __name__ == "__main__":
    main()
