"""What a recipe needs: what is there, what is missing, how large it is; and then the download."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maury.errors import FetchError, OutputExists, check_known
from maury.io.files import making
from maury.survey.fetch.download import (
    Downloadable,
    Downloader,
    Progress,
    Received,
    Remote,
    sha256_of,
)
from maury.survey.fetch.download_record import Manifest, Record
from maury.survey.fetch.web import Web

State = Literal["there", "partial", "missing"]
_SPARE_BYTES = 1 << 26
"""Room that a disk must keep besides the files, for manifests and other programs: 64 MiB."""


@dataclass(frozen=True)
class Planned:
    """One file of a plan.

    Attributes
    ----------
    source : Downloadable
    state : {"there", "partial", "missing"}
    size : int, optional
        In bytes; None if nobody says.
    kept : int
        Bytes that an earlier attempt left.
    """

    source: Downloadable
    state: State
    size: int | None
    kept: int = 0

    @property
    def to_come(self) -> int | None:
        """Bytes to download, None if not known."""
        if self.state == "there":
            return 0
        return None if self.size is None else max(self.size - self.kept, 0)


@dataclass(frozen=True)
class DownloadPlan:
    """What to download into a folder."""

    folder: Path
    files: tuple[Planned, ...]

    @property
    def to_come(self) -> int:
        """Bytes to download, as far as known."""
        return sum(one.to_come or 0 for one in self.files)

    @property
    def n_unknown(self) -> int:
        """Number of files to download of which nobody says the size."""
        return sum(one.to_come is None for one in self.files)

    @property
    def n_to_come(self) -> int:
        """Number of files to download."""
        return sum(one.state != "there" for one in self.files)

    def __str__(self) -> str:
        if not self.n_to_come:
            return f"all {len(self.files)} files are in {self.folder}"
        unknown = f", and {self.n_unknown} of unknown size" if self.n_unknown else ""
        return (
            f"{self.n_to_come} of {len(self.files)} files to download to {self.folder}: "
            f"{readable(self.to_come)}{unknown}"
        )


def plan(
    sources: Sequence[Downloadable],
    folder: Path | str,
    *,
    only: Sequence[str] = (),
    overwrite: bool = False,
    web: Web | None = None,
) -> DownloadPlan:
    """Look at what is there, and ask the servers for the sizes of the rest.

    Parameters
    ----------
    sources : sequence of Downloadable
        Such as ``maury.survey.archives.load("apogee-dr17").file``.
    folder : path-like
        Where the files shall be.
    only : sequence of str
        Names of the files that are wanted; all by default.
    overwrite : bool
        Download anew what differs from its recorded or published checksum.
    web : Web, optional

    Raises
    ------
    UnknownName
        If a wanted name is not that of a file.
    OutputExists
        If a file is there with other content than recorded or published.
    FetchError
        If a server does not have a file, or cannot be reached.
    """
    for name in only:
        check_known("file", name, [source.name for source in sources])
    folder = Path(folder)
    manifest = Manifest.read(folder)
    with session(web) as asked:
        downloader = Downloader(asked, folder)
        return DownloadPlan(
            folder,
            tuple(
                _planned(downloader, source, manifest, overwrite=overwrite)
                for source in sources
                if not only or source.name in only
            ),
        )


def fetch(
    sources: Sequence[Downloadable],
    folder: Path | str,
    *,
    only: Sequence[str] = (),
    overwrite: bool = False,
    confirm: Callable[[DownloadPlan], bool] | None = None,
    progress: Progress | None = None,
    web: Web | None = None,
) -> tuple[Path, ...]:
    """Download files that are not in a folder yet, one after the other.

    Parameters
    ----------
    sources : sequence of Downloadable
        Such as ``maury.survey.archives.load("apogee-dr17").file``.
    folder : path-like
        Where the files shall be.
    only : sequence of str
        Names of the files that are wanted; all by default.
    overwrite : bool
        Download anew what differs from its recorded or published checksum.
    web : Web, optional
        Session to ask with; its own by default.
    confirm : callable, optional
        Is shown the plan before anything is downloaded; nothing is, if it returns false.
    progress : callable, optional
        Called with a name, bytes done, and bytes in all (0 if not known).

    Returns
    -------
    tuple of Path
        The files, in the order of `sources`; none if `confirm` said no.

    Raises
    ------
    UnknownName, OutputExists, FetchError
        If a name is not known, other content is in the way, a server does not have a file, or
        gives something else than it or the recipe promised.
    OutputBusy
        If another run downloads to this folder.
    """
    folder = Path(folder).absolute()
    with session(web) as asked, making(folder):
        todo = plan(sources, folder, only=only, overwrite=overwrite, web=asked)
        if confirm is not None and not confirm(todo):
            return ()
        _require_space(todo)
        downloader = Downloader(asked, folder, progress)
        # Written after each file, so that a killed run remembers what it has.
        manifest = Manifest.read(folder)
        for one in todo.files:
            manifest = _settled(downloader, one, manifest, overwrite=overwrite)
        return tuple(downloader.path(one.source.name) for one in todo.files)


@contextmanager
def session(web: Web | None) -> Iterator[Web]:
    """Yield a session, closed afterwards if it is not the caller's."""
    if web is not None:
        yield web
        return
    with Web() as own:
        yield own


def readable(size: float) -> str:
    """Return a number of bytes in words.

    Examples
    --------
    >>> readable(3_970_000_000)
    '3.97 GB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000.0:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000.0
    return f"{size:.3g} TB"


def _planned(
    downloader: Downloader, source: Downloadable, manifest: Manifest, *, overwrite: bool
) -> Planned:
    path, known = downloader.path(source.name), manifest.of(source)
    is_there = path.exists() or path.is_symlink()
    wrong = _differs(path, source, known) if is_there else None
    # Recorded or published and the same: the server is not even asked.
    if is_there and wrong is None and (known is not None or source.sha256 is not None):
        return Planned(source, "there", path.stat().st_size)
    remote = downloader.probe(source)
    if is_there and wrong is None:
        # Put there by hand, and nothing speaks against it.
        if remote.size in (None, path.stat().st_size):
            return Planned(source, "there", path.stat().st_size)
        wrong = f"has {path.stat().st_size} bytes, that of the server {remote.size}"
    if wrong is not None and not overwrite:
        raise OutputExists(f"{path} {wrong}; move it away, or pass --overwrite to download it anew")
    kept = downloader.kept(source)
    size = source.bytes if remote.size is None else remote.size
    return Planned(source, "partial" if kept else "missing", size, kept)


def _differs(path: Path, source: Downloadable, known: Record | None) -> str | None:
    """Say how a file that is there differs from what is published or recorded of it."""
    if not path.is_file():
        return "is no file"
    size = path.stat().st_size
    if source.bytes not in (None, size):
        return f"has {size} bytes, not the published {source.bytes}"
    if known is not None and known.size != size:
        return f"has {size} bytes; when it was downloaded it had {known.size}"
    if source.sha256 is None and known is None:
        return None
    # Sizes first, as a checksum reads the whole file.
    found = sha256_of(path)
    if source.sha256 not in (None, found):
        return f"has SHA-256 {found}, not the published {source.sha256}"
    if known is not None and known.sha256 != found:
        return f"has changed since it was downloaded (SHA-256 {found}, then {known.sha256})"
    return None


def _settled(
    downloader: Downloader, one: Planned, manifest: Manifest, *, overwrite: bool
) -> Manifest:
    """Download a file unless it is there, and record it."""
    source, path = one.source, downloader.path(one.source.name)
    known = manifest.of(source)

    def same_as_before(received: Received, _: Path) -> None:
        if known is not None and known.sha256 != received.sha256 and not overwrite:
            raise FetchError(
                f"{source.url} is not what it was on {known.fetched} (SHA-256 {received.sha256}, "
                f"then {known.sha256}); pass --overwrite to take the new version"
            )

    if one.state != "there":
        received = downloader.download(source, overwrite=overwrite, check=same_as_before)
    elif known is None:
        downloader.require_listed(source, path)
        received = Received(Remote(source.url), path.stat().st_size, sha256_of(path))
    else:
        return manifest
    published = source.sha256 is not None or getattr(source, "checksums", None) is not None
    manifest = manifest.with_file(source.name, received, published=published)
    manifest.write(downloader.folder)
    return manifest


def _require_space(todo: DownloadPlan) -> None:
    place = todo.folder
    # The folder is made only when something comes.
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if todo.to_come + _SPARE_BYTES > free and todo.n_to_come:
        raise FetchError(
            f"{readable(todo.to_come)} are to come, and {todo.folder} has {readable(free)} free; "
            "choose another folder with --to"
        )
