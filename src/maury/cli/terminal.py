"""What the command line shows: progress bars on standard error, tables on standard output."""

import logging
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maury.errors import printable
from maury.io.printing import raw_stream

if TYPE_CHECKING:
    from rich.progress import Progress

    from maury.cli.demo import Clock
    from maury.survey.store import Survey

LINE_SECONDS = 10.0
"""Where there is no terminal, progress is a line so often: a log that is watched, and can be read
afterwards."""
_SHARE_BETWEEN = 0.02
"""Share of the time that a command has run after which the next line comes, if that is longer: a
run of ten hours writes some three hundred."""
_WIDEST = 200
"""Characters of a table in a file or a pipe, at most; longer cells are broken."""
_NARROW = 80
"""Characters of a line of text: what the narrowest usual terminal shows."""
_FLAGS_SHOWN = 3
"""Flags that a summary shows: as many as are read; `maury info` counts all."""
_REFRESH_SECONDS = 0.5
"""A bar on a terminal moves so often; chosen."""


def say(*values: Any, **options: Any) -> None:
    """Print as `print` does, with what could steer a terminal written out (`printable`).

    Names, units, identifiers and citations come from files of strangers.
    """
    print(*(printable(str(value)) for value in values), **options)


def say_survey(survey: "Survey") -> None:
    """Print what a survey is that was just read, and what its spectra say of their noise."""
    say(survey)
    found = survey.noise_measured
    if found is not None:
        shared = ", ".join(f"{value:g}" for value in found.correlation) or "none"
        say(
            f"noise of neighbouring pixels, measured on {found.n_spectra} spectra: correlation "
            f"{shared} (+- {found.error:.3f}); scatter over quoted errors {found.scale:.2f}"
        )


class Once(logging.Filter):
    """Lets a warning through once: a command may open the same files several times."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is no warning, or one that was not told yet."""
        if record.levelno != logging.WARNING:
            return True
        text = record.getMessage()
        new = text not in self._told
        self._told.add(text)
        return new


@contextmanager
def cluster(scheduler: str | None, workers: int | None, *, local: bool = False) -> Iterator[Any]:
    """Yield the workers of a scheduler, or None without one; `local` may start one for workers."""
    # A cluster is started only where it was asked for: its processes take memory and time to start.
    if scheduler is None and not (local and workers):
        yield None
        return
    from maury.io.cluster import LOCAL, connect

    with connect(scheduler or LOCAL, workers=workers) as cluster:
        # Dask sets its own level: its log would not heed --verbose.
        logging.getLogger("distributed").setLevel(logging.getLogger().level)
        yield cluster


@contextmanager
def bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback of (done, total) that draws one bar on the terminal."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with _bars(*columns, name=text) as bars:
        task = bars.add_task(text, total=None)

        def update(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield update


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Yield a callback that shows on the terminal what is done."""
    from rich.progress import SpinnerColumn, TextColumn

    with _bars(SpinnerColumn(), TextColumn("{task.description}")) as bars:
        task = bars.add_task("", total=None)
        yield lambda text: bars.update(task, description=_plain(text))


@contextmanager
def named_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback of (what, done, total) that draws one bar on the terminal."""
    from rich.progress import Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn())
    with _bars(*columns) as bars:
        task = bars.add_task("", total=None)

        def update(what: str, done: int, total: int) -> None:
            bars.update(task, description=_plain(what), completed=done, total=total)

        yield update


@contextmanager
def bytes_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback of (name, bytes done, bytes in all) that draws a bar once it is called."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bars = _new_bars(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, Any] = {}

    def update(name: str, done: int, total: int) -> None:
        if name not in tasks:
            # Not sooner: questions are asked before, which a drawn bar would overwrite.
            bars.start()
            for old in tasks.values():
                bars.remove_task(old)
            tasks.clear()
            tasks[name] = bars.add_task(_plain(name), total=total or None, completed=done)
        bars.update(tasks[name], completed=done, total=total or None)

    with _told_by_lines(bars):
        try:
            yield update
        finally:
            bars.stop()


def show_plan(plan: Any) -> None:
    """Print what is to be downloaded."""
    from maury.survey.fetch import readable

    rows = [
        (one.source.name, one.state, "?" if one.size is None else readable(one.size))
        for one in plan.files
    ]
    _show_table([("file", "", "size"), *rows])
    say(plan)


def show_values(rows: Sequence[Sequence[str]]) -> None:
    """Print a table of values by name, if there are any."""
    if len(rows) > 1:
        _show_table(rows, fixed=1)


def show_match(report: Any) -> None:
    """Print what a cross-match did."""
    say(report)
    _show_table(report.rows())


def show_ranking(found: Any) -> None:
    """Print the tables of a comparison."""
    say(found.title)
    for view in found.views:
        say(f"robust scatter, {view.name}")
        _show_table(found.scatter_rows(view=view.name), fixed=1)
        if view.bounds:
            say(f"scatter over the Cramer-Rao bound of such spectra, {view.name}")
            _show_table(found.bound_rows(view), fixed=1)
    say("calibration and cost, as given (medians over labels; CPU ms per spectrum)")
    _show_table(found.summary_rows(), fixed=1)
    for name, reason in found.not_run.items():
        say(f"{name} was not run: {reason}")
    # The preset of this package is named with what it loses: whoever compares it must not be
    # flattered.
    for name in found.methods:
        if name.split("-")[0] == "maury":
            losses = found.losses(name)
            say(f"{name}: {len(losses)} losses" if losses else f"{name} loses nowhere")
            for loss in losses:
                say(f"  {loss}")


def show_leaderboard(found: Any) -> None:
    """Print the tables of a leaderboard."""
    for runs in found.surveys:
        say(f"{runs.name}, seeds {', '.join(map(str, found.seeds))}")
        _show_table(found.rows(runs.name), fixed=1)
        for name, reason in runs.not_run.items():
            say(f"{name} was not run: {reason}")


@contextmanager
def member_bars() -> Iterator[tuple[Callable[[Any], None], Callable[[str], None]]]:
    """Yield a callback of training events that draws one bar per member, and one of stages.

    The latter is called with what begins, in words, which is told at once.
    """
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("member {task.fields[member]}"),
        BarColumn(),
        TextColumn("epoch {task.completed} of at most {task.total}"),
        TextColumn("loss {task.fields[loss]:.5f}"),
        TimeElapsedColumn(),
    )
    bars = _new_bars(*columns)
    lines = _Lines(bars, "training")
    tasks: dict[int, Any] = {}

    def update(event: Any) -> None:
        if event.member not in tasks:
            tasks[event.member] = bars.add_task(
                "", total=event.n_epochs, member=event.member, loss=float("nan")
            )
            # Members that have not begun are no bars yet, and are still to be done.
            lines.waiting = float(max(event.n_members - len(tasks), 0) * event.n_epochs)
        loss = event.validation_loss
        # Networks trained on simulated stars have no validation loss.
        loss = event.training_loss if loss is None else loss
        bars.update(tasks[event.member], completed=event.epoch, loss=loss)

    def stage(text: str) -> None:
        lines.stage = text
        if bars.disable:
            _tell(text)
        else:
            bars.console.print(_plain(text))

    with bars, _told_by(lines) if bars.disable else nullcontext():
        yield update, stage


@contextmanager
def whole(clock: "Clock") -> Iterator[None]:
    """Show how far the demonstration is, as one bar or as lines, until it ends."""
    from rich.progress import BarColumn, TextColumn

    bars = _new_bars(TextColumn("{task.description}"), BarColumn())
    if bars.disable:
        with _every(lambda elapsed: _between(elapsed), lambda: _tell(_clock_text(clock))):
            yield
        return
    task = bars.add_task("", total=1.0)

    def draw() -> None:
        bars.update(task, description=_plain(_clock_text(clock)), completed=clock.share)

    with bars, _every(lambda elapsed: _REFRESH_SECONDS, draw):
        yield


def _clock_text(clock: "Clock") -> str:
    return f"{clock.text}: {clock.share:.0%} of all, {_duration(clock.seconds_left)} left"


@contextmanager
def _bars(*columns: Any, name: str = "") -> Iterator["Progress"]:
    """Yield bars on standard error; without a terminal, lines of `name`."""
    bars = _new_bars(*columns)
    with bars, _told_by_lines(bars, name):
        yield bars


def _new_bars(*columns: Any) -> "Progress":
    """Return bars for standard error: standard output is for results, so that it can be piped."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=raw_stream(sys.stderr))
    return Progress(
        *columns,
        console=console,
        transient=True,
        # A bar in a file or a pipe would be a line for each step.
        disable=not console.is_terminal,
        # rich would read what others print meanwhile for its colours, and draw these.
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _told_by_lines(bars: "Progress", name: str = "") -> Any:
    if not bars.disable:
        return nullcontext()
    return _told_by(_Lines(bars, name))


def _told_by(lines: "_Lines") -> Any:
    return _every(lambda elapsed: _between(elapsed), lambda: _tell(lines.text()))


class _Lines:
    """What bars that are not drawn would show, in words."""

    def __init__(
        self, bars: "Progress", name: str, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._bars, self._name, self._now = bars, name, now
        self._start = now()
        self._first: tuple[str, float, float] | None = None
        # What is done beside the pieces that are counted, before and after them.
        self.stage = ""
        # What is still to be done of bars that are not there yet.
        self.waiting = 0.0

    def text(self) -> str:
        """Return a line; an empty one before anything was begun."""
        tasks = self._bars.tasks
        name = self._name or (tasks[-1].description if tasks else "")
        measured = [task for task in tasks if task.total]
        done = sum(task.completed for task in measured)
        total = sum((task.total or 0.0 for task in measured), self.waiting)
        if 0.0 < done < total or (total and not self.stage):
            return f"{name}: {done / total:.0%}{self._left(name, done / total)}"
        elapsed = _elapsed(self._now() - self._start)
        name = self.stage or name
        return f"{name}, {elapsed} since the start" if name else ""

    def _left(self, name: str, share: float) -> str:
        now = self._now()
        # The pieces that are counted are done; what is made of them is not counted.
        if share >= 1.0:
            return f", and what follows, {_elapsed(now - self._start)} since the start"
        # What a run before this one has done tells nothing of how fast this one is.
        if self._first is None or self._first[0] != name:
            self._first = (name, now, share)
        _, since, before = self._first
        if share <= before:
            return ""
        return f", {_duration((now - since) * (1.0 - share) / (share - before))} left"


def _between(elapsed: float) -> float:
    """Seconds until the next line, after a run of `elapsed` seconds."""
    return max(LINE_SECONDS, _SHARE_BETWEEN * elapsed)


@contextmanager
def _every(period: Callable[[float], float], call: Callable[[], None]) -> Iterator[None]:
    """Call from a thread, again and again, until the context is left.

    `period` gives the seconds until the next call from those since the start.
    """
    ended, start = threading.Event(), time.monotonic()

    def run() -> None:
        while not ended.wait(period(time.monotonic() - start)):
            call()

    # Not to be waited for when the process is killed.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tell(line: str) -> None:
    if line:
        say(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """Return seconds in words, of which none pretends to be exact."""
    if seconds < 60:
        return f"{max(int(seconds + 0.5), 1)} s"
    minutes = int(seconds / 60 + 0.5)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _elapsed(seconds: float) -> str:
    """Return seconds since the start in words, so exact that lines one after another differ."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{max(whole, 1)} s"
    minutes = whole // 60
    return f"{minutes} min {whole % 60} s" if minutes < 60 else _duration(seconds)


_SHOWN = (
    "label",
    "unit",
    "bias",
    "sigma",
    "robust sigma",
    "slope",
    "in 1 sigma",
    "sigma / bound",
    "as observed",
)
"""Columns of a report that fit a terminal of 80 characters; the JSON has all."""
_LINE_BREAK = {
    "robust sigma": "robust\nsigma",
    "in 1 sigma": "in 1\nsigma",
    "sigma / bound": "sigma /\nbound",
    "as observed": "as ob-\nserved",
}


def show_report(report: Any) -> None:
    """Print a validation report."""
    say(report.title)
    if report.warning:
        say(f"warning: {report.warning}")
    header, *rows = report.rows()
    n_absent = 2 - bool(report.bounds) - bool(report.bounds_as_observed)
    shown = _SHOWN[: len(_SHOWN) - n_absent]
    values = [dict(zip(header, row, strict=True)) for row in rows]
    _show_table(
        [
            tuple(_LINE_BREAK.get(name, name) for name in shown),
            *(tuple(value[name] for name in shown) for value in values),
        ],
        fixed=len(shown),
    )


def show_stress(report: Any) -> None:
    """Print what became of stars that were changed in one thing at a time."""
    say(report.title)
    _show_table(report.rows())
    for name, why in report.omitted.items():
        say(f"omitted: {name}: {why}")


def show_flow(flow: Any) -> None:
    """Print how many stars each step of a build took in and let through, and why."""
    header, *rows = flow.rows()
    drop = header.index("source")
    say("Flow of rows")
    _show_table([tuple(c for k, c in enumerate(row) if k != drop) for row in (header, *rows)])


def show_offsets(offsets: Any) -> None:
    """Print the fitted offsets of one reference survey against another."""
    say(f"Offsets of {offsets.second} against {offsets.first}, taken off")
    _show_table(offsets.rows())


def show_joint(found: Any) -> None:
    """Print the figures of a joint model, and how far two surveys' answers to a star differ."""
    if found.simulated:
        say("SIMULATED spectra")
    for which, table in found.tables().items():
        say(f"Held-out stars: {which}")
        _show_table([tuple(_LINE_BREAK.get(cell, cell) for cell in table[0]), *table[1:]], fixed=2)
    for pair, scatter in found.differences.items():
        values = ", ".join(f"{name} {value:.2f}" for name, value in scatter.items())
        say(f"{pair}, robust scatter of the differences over their errors: {values}")


_LEFT = (
    "label",
    "answered by",
    "changed",
    "method",
    "inputs",
    "star",
    "unit",
    "verdict",
    "flag",
    "",
    "id",
    "reason",
    "file",
    "of",
    "step",
    "why",
    "slopes",
)
"""Columns of text."""


def draw_audit(report: Any, path: Path, *, overwrite: bool) -> None:
    """Draw the figures of an audit, to `path` and beside it."""
    from maury.report.figures import audit_figure, save, sensitivity_figure

    save(audit_figure(report), path, overwrite=overwrite)
    for one in report.sensitivities:
        drawn = sensitivity_figure(one, simulated=report.simulated)
        save(drawn, path.with_name(f"{path.stem}-{one.slug}.png"), overwrite=overwrite)


def _say_wrapped(text: str) -> None:
    """Print a sentence, broken where a narrow terminal ends."""
    for line in textwrap.wrap(text, _NARROW, subsequent_indent="  ", break_on_hyphens=False):
        say(line)


def show_audit(report: Any) -> None:
    """Print an audit."""
    say(report.title)
    for caution in filter(None, (report.warning, report.note, *report.remarks)):
        _say_wrapped(f"note: {caution}")
    _say_wrapped(f"verdicts {report.grounds}")
    known = [column for column in zip(*report.rows(), strict=True) if set(column[1:]) != {"-"}]
    shown = [column for column in known if column[0] not in ("unit", "n")]
    basis = " and ".join(sorted({one.basis for one in report.labels}))
    for title, rows in (
        (f"Scatter, by what the networks see; gain over {basis}", list(zip(*shown, strict=True))),
        ("Scatter with the spectra of other stars, and response to them", report.swap_rows()),
        ("To use or not to use absolute magnitudes (parallaxes)", report.magnitude_rows()),
        ("Scatter with and without further columns", report.further_rows()),
        (
            "Correlation with the best linear estimator; response, of that of the best",
            report.sensitivity_rows(),
        ),
    ):
        if len(rows) > 1:
            say(title)
            _show_table(rows)


def show_census(census: Any) -> None:
    """Print what share of a survey the training sample covers."""
    from maury.labels.flags import Flag

    mark = "SIMULATED " if census.simulated else ""
    say(f"{len(census)} {mark}spectra, {census.warned:.1%} of them with a warning flag")
    shares = [
        (name, "warns" if Flag[name].warns else "informs", f"{share:.1%}", Flag[name].text)
        for name, share in census.shares().items()
    ]
    if shares:
        _show_table([("flag", "", "share", "reason"), *shares])


def show_commonest_flags(counts: Mapping[str, int], n_row: int) -> None:
    """Print of the warning flags that are set most often what they mean, and what to do."""
    from maury.labels.flags import Flag

    warning = sorted((Flag[name] for name in counts if Flag[name].warns), key=lambda flag: flag)
    # Sorted anew and stably: of flags as common as one another the lowest bit stands first.
    ranked = sorted(warning, key=lambda flag: -counts[str(flag.name)])
    for flag in ranked[:_FLAGS_SHOWN]:
        count = counts[str(flag.name)]
        say(f"  {flag.name}: {count} ({count / n_row:.1%}); {flag.text}. Do: {flag.remedy}")
    more = len(ranked) - _FLAGS_SHOWN
    if more > 0:
        say(f"  and {more} flag{'s' * (more > 1)} more, which 'maury info' counts")


def show_suggestions(suggestions: Any, most: int = 20) -> None:
    """Print which stars to label next."""
    for reason, count in suggestions.excluded.items():
        say(f"not considered: {count} ({reason})")
    rest = f", the first {most} of them" if len(suggestions) > most else ""
    say(f"{len(suggestions)} stars to label next{rest}")
    shown = zip(suggestions.id, suggestions.gain, suggestions.reasons, strict=True)
    rows = [
        (str(rank), str(name), f"{gain:.2f}", reason)
        for rank, (name, gain, reason) in enumerate(shown, start=1)
    ]
    _show_table([("rank", "id", "gain", "reason"), *rows[:most]])


def show_suspects(found: Any, most: int = 20) -> None:
    """Print labelled stars whose labels are doubted."""
    mark = "SIMULATED " if found.simulated else ""
    rest = f", the first {most} of them" if len(found) > most else ""
    say(f"{len(found)} suspects among {found.n_star} {mark}labelled rows{rest}")
    shown = zip(
        *(
            found.id,
            found.n_sigma,
            found.label,
            found.given,
            found.predicted,
            found.off,
            found.reason,
        ),
        strict=True,
    )
    rows = [
        (str(name), f"{far:.1f}", label, f"{given:.5g}", f"{predicted:.5g}", f"{off:+.1f}", reason)
        for name, far, label, given, predicted, off, reason in shown
    ]
    if rows:
        header = ("id", "far", "worst", "given", "predicted", "errors off", "likely reason")
        _show_table([header, *rows[:most]], fixed=1)


def _show_table(rows: Sequence[Sequence[str]], *, fixed: int = 0) -> None:
    """Print a table, its header first; cells of the first `fixed` columns are never broken."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for number, name in enumerate(rows[0]):
        left = name in _LEFT
        table.add_column(_plain(name), justify="left" if left else "right", no_wrap=number < fixed)
    for row in rows[1:]:
        # Reports write +-, which every encoding has.
        table.add_row(*(_plain(cell.replace("+-", "\N{PLUS-MINUS SIGN}")) for cell in row))
    # Rich measures the terminal itself; into a pipe it writes no colours.
    console = Console(file=raw_stream(sys.stdout))
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # A file has no right edge: nothing has to be cut off.
        wide = console.options.update(width=_WIDEST)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


def _plain(text: str) -> str:
    """Return a text that neither steers the terminal nor is markup to rich."""
    from rich.markup import escape

    return escape(printable(text))
