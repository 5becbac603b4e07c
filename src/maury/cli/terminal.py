"""What the command line shows: progress bars on standard error, tables on standard output."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def cluster(scheduler: str | None, workers: int | None, *, local: bool = False) -> Iterator[Any]:
    """Yield the workers of a scheduler, or None without one; `local` may start one for workers."""
    if scheduler is None and not (local and workers):
        yield None
        return
    from maury.io.cluster import LOCAL, connect

    with connect(scheduler or LOCAL, workers=workers) as cluster:
        logging.getLogger("distributed").setLevel(logging.getLogger().level)
        yield cluster


@contextmanager
def bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback of (done, total) that draws one bar on the terminal."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    console = _console()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task(text, total=None)

        def update(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield update


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Yield a callback that shows on the terminal what is done."""
    with _console().status("") as status:
        yield status.update


@contextmanager
def named_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback of (what, done, total) that draws one bar on the terminal."""
    from rich.progress import Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn())
    console = _console()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task("", total=None)

        def update(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield update


@contextmanager
def bytes_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback of (name, bytes done, bytes in all) that draws a bar once it is called."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = _console()
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, Any] = {}

    def update(name: str, done: int, total: int) -> None:
        if name not in tasks:
            # Not sooner: questions are asked before, which a drawn bar would overwrite.
            bars.start()
            for old in tasks.values():
                bars.remove_task(old)
            tasks.clear()
            tasks[name] = bars.add_task(name, total=total or None, completed=done)
        bars.update(tasks[name], completed=done, total=total or None)

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
    print(plan)


def show_match(report: Any) -> None:
    """Print what a cross-match did."""
    print(report)
    _show_table(report.rows())


def show_ranking(found: Any) -> None:
    """Print the tables of a comparison."""
    print(found.title)
    for view in found.views:
        print(f"robust scatter, {view.name}")
        _show_rows(found.scatter_rows(view=view.name))
        if view.bounds:
            print(f"scatter over the Cramer-Rao bound of such spectra, {view.name}")
            _show_rows(found.bound_rows(view))
    print("calibration and cost, as given (medians over labels; CPU ms per spectrum)")
    _show_rows(found.summary_rows())
    for name, reason in found.not_run.items():
        print(f"{name} was not run: {reason}")
    for name in found.methods:
        if name.split("-")[0] == "maury":
            losses = found.losses(name)
            print(f"{name}: {len(losses)} losses" if losses else f"{name} loses nowhere")
            for loss in losses:
                print(f"  {loss}")


def _show_rows(rows: Any) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    header, *body = rows
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for number, name in enumerate(header):
        left = number == 0 or name == "inputs"
        table.add_column(escape(name), justify="left" if left else "right", no_wrap=number == 0)
    for row in body:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)


@contextmanager
def member_bars() -> Iterator[Callable[[Any], None]]:
    """Yield a callback of training events that draws one bar per member."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("member {task.fields[member]}"),
        BarColumn(),
        TextColumn("epoch {task.completed} of at most {task.total}"),
        TextColumn("loss {task.fields[loss]:.5f}"),
        TimeElapsedColumn(),
    )
    console = _console()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        tasks: dict[int, Any] = {}

        def update(event: Any) -> None:
            if event.member not in tasks:
                tasks[event.member] = bars.add_task(
                    "", total=event.n_epochs, member=event.member, loss=float("nan")
                )
            loss = event.validation_loss
            loss = event.training_loss if loss is None else loss
            bars.update(tasks[event.member], completed=event.epoch, loss=loss)

        yield update


@contextmanager
def demo_stage(text: str) -> Iterator[Any]:
    """Announce a stage of the demonstration and yield the callback of its progress."""
    print(text, flush=True)
    if text.startswith("training"):
        with member_bars() as progress:
            yield progress
    else:
        with bar("") as progress:
            yield progress


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


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
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    print(report.title)
    if report.warning:
        print(f"warning: {report.warning}")
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    header, *rows = report.rows()
    n_absent = 2 - bool(report.bounds) - bool(report.bounds_as_observed)
    shown = _SHOWN[: len(_SHOWN) - n_absent]
    for name in shown:
        side: Any = "left" if name in _SHOWN[:2] else "right"
        table.add_column(_LINE_BREAK.get(name, name), justify=side, no_wrap=True)
    for row in rows:
        values = dict(zip(header, row, strict=True))
        table.add_row(*(escape(values[name]) for name in shown))
    Console().print(table)


def show_flow(flow: Any) -> None:
    """Print how many stars each step of a build took in and let through, and why."""
    header, *rows = flow.rows()
    drop = header.index("source")
    print("Flow of rows")
    _show_table([tuple(c for k, c in enumerate(row) if k != drop) for row in (header, *rows)])


def show_offsets(offsets: Any) -> None:
    """Print the fitted offsets of one reference survey against another."""
    print(f"Offsets of {offsets.second} against {offsets.first}, taken off")
    _show_table(offsets.rows())


_LEFT = (
    "label",
    "star",
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


def show_audit(report: Any) -> None:
    """Print an audit."""
    print(report.title)
    for caution in filter(None, (report.warning, report.note)):
        print(f"note: {caution}")
    known = [column for column in zip(*report.rows(), strict=True) if set(column[1:]) != {"-"}]
    shown = [column for column in known if column[0] not in ("unit", "n")]
    basis = " and ".join(sorted({one.basis for one in report.labels}))
    for title, rows in (
        (f"Scatter, by what the networks see; gain over {basis}", list(zip(*shown, strict=True))),
        ("Scatter with the spectra of other stars, and response to them", report.swap_rows()),
        ("To use or not to use absolute magnitudes (parallaxes)", report.magnitude_rows()),
        ("Correlation with the best linear estimator; responses", report.sensitivity_rows()),
    ):
        if len(rows) > 1:
            print(title)
            _show_table(rows)


def show_census(census: Any) -> None:
    """Print what share of a survey the training sample covers."""
    from maury.labels.flags import Flag

    mark = "SIMULATED " if census.simulated else ""
    print(f"{len(census)} {mark}spectra, {census.warned:.1%} of them with a warning flag")
    shares = [
        (name, "warns" if Flag[name].warns else "informs", f"{share:.1%}", Flag[name].text)
        for name, share in census.shares().items()
    ]
    if shares:
        _show_table([("flag", "", "share", "reason"), *shares])


def show_suggestions(suggestions: Any, most: int = 20) -> None:
    """Print which stars to label next."""
    for reason, count in suggestions.excluded.items():
        print(f"not considered: {count} ({reason})")
    rest = f", the first {most} of them" if len(suggestions) > most else ""
    print(f"{len(suggestions)} stars to label next{rest}")
    shown = zip(suggestions.id, suggestions.gain, suggestions.reasons, strict=True)
    rows = [
        (str(rank), str(name), f"{gain:.2f}", reason)
        for rank, (name, gain, reason) in enumerate(shown, start=1)
    ]
    _show_table([("rank", "id", "gain", "reason"), *rows[:most]])


def _show_table(rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in _LEFT else "right")
    for row in rows[1:]:
        table.add_row(*(escape(cell.replace("+-", "\N{PLUS-MINUS SIGN}")) for cell in row))
    Console().print(table)
