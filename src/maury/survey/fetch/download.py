"""One file from the web: resumed where it broke off, never spliced, complete or not there."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from maury.errors import ConfigError, FetchError
from maury.io.files import explaining, publish, refuse_existing, remove, writing
from maury.io.limits import VARIABLE, current
from maury.survey.fetch.web import Interrupted, Refused, Web

logger = logging.getLogger(__name__)

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Called with a name, bytes done, and bytes in all (0 if not known)."""

_CHUNK = 1 << 16
"""Bytes that are written at a time; chosen, not measured."""
_SIZE = re.compile(r"[0-9]{1,18}")
"""Sizes of more digits are none, and take Python time in their square."""
_HEAD = 512
"""Bytes in which a web page says that it is one."""
_DIGESTS = {32: "md5", 40: "sha1", 64: "sha256"}
"""Kinds of checksums by their hexadecimal digits."""
_LISTED = re.compile(r"([0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})\s+\*?(?:\./)?(\S+)")
"""A line of ``md5sum`` and its kin."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_NO_HEAD = (400, 401, 403, 405, 501)
"""Answers to HEAD of servers that may well answer GET."""
_MOST_RESTARTS = 2
"""Downloads begun afresh because the file changed on the server: a third time says it goes on."""
_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_PAGE = (b"<!doctype html", b"<html")


class Downloadable(Protocol):
    """What to download, such as an entry of a recipe."""

    @property
    def name(self) -> str:
        """Name on disk."""

    @property
    def url(self) -> str:
        """Address."""

    @property
    def bytes(self) -> int | None:
        """Published size."""

    @property
    def sha256(self) -> str | None:
        """Published checksum."""


@dataclass(frozen=True)
class Remote:
    """What a server says of a file; None is what it does not say.

    Attributes
    ----------
    url : str
        As asked for.
    size : int, optional
        In bytes.
    etag, last_modified : str, optional
        Change when the file does.
    """

    url: str
    size: int | None = None
    etag: str | None = None
    last_modified: str | None = None

    @property
    def validator(self) -> str | None:
        """What tells this version from all others; a weak ETag does not tell bytes."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


@dataclass(frozen=True)
class Received:
    """A file that has arrived.

    Attributes
    ----------
    remote : Remote
    size : int
        In bytes.
    sha256 : str
    """

    remote: Remote
    size: int
    sha256: str


class _Restart(Exception):
    """What was kept cannot be gone on with."""


@dataclass(frozen=True, eq=False)
class Downloader:
    """Downloads files into a folder.

    Attributes
    ----------
    web : Web
    folder : Path
    progress : callable, optional
    told_by : str, optional
        Address of the server that named the files, if it was not the user.
    """

    web: Web
    folder: Path
    progress: Progress | None = None
    told_by: str | None = None

    def path(self, name: str) -> Path:
        """Return where a file of this name will be.

        Raises
        ------
        ConfigError
            If the name would lead out of the folder.
        """
        if _NAME.fullmatch(name) is None:
            raise ConfigError(
                f"{name!r} is no name for a downloaded file; use letters, digits, '.', '_', '+' "
                "and '-' only"
            )
        return self.folder / name

    def kept(self, source: Downloadable) -> int:
        """Return how many bytes of an unfinished download can be gone on with."""
        partial, remote = self._partial(source.name), self._remembered(source)
        # Without an ETag or a date nobody can say that the rest belongs to these bytes.
        if remote is None or remote.validator is None or not partial.is_file():
            return 0
        return partial.stat().st_size

    def probe(self, source: Downloadable) -> Remote:
        """Ask what the server says of a file, without downloading it.

        Raises
        ------
        FetchError
            If it does not have it, or cannot be reached.
        """

        def ask() -> Remote:
            with self.web.ask(source.url, method="HEAD", told_by=self.told_by) as response:
                _require_data(source, response)
                return _described(source.url, response)

        try:
            return self._patiently(ask, source.name)
        except Refused as error:
            # Its size stays unknown until it comes.
            if error.status in _NO_HEAD:
                return Remote(source.url)
            raise

    def _patiently(self, ask: Callable[[], T], name: str) -> T:
        attempt = 0
        while True:
            try:
                return ask()
            except Interrupted as error:
                attempt += 1
                self.web.wait(attempt, error, name)

    def require_listed(self, source: Downloadable, path: Path) -> bool:
        """Compare a file with the archive's list of checksums, if the recipe names one.

        Returns
        -------
        bool
            Whether there is such a list.

        Raises
        ------
        FetchError
            If the file is not in it, or has another checksum.
        """
        url = getattr(source, "checksums", None)
        if url is None:
            return False
        listed = self._patiently(lambda: self._list(url), source.name)
        name = Path(urlsplit(source.url).path).name
        wanted = listed.get(name)
        if wanted is None:
            raise FetchError(f"{url} lists no checksum of {name}; correct the recipe")
        kind = _DIGESTS[len(wanted)]
        with path.open("rb") as stream:
            # Old archives have MD5: good against damage, which is what it is for here.
            found = hashlib.file_digest(
                stream, lambda: hashlib.new(kind, usedforsecurity=False)
            ).hexdigest()
        if found != wanted:
            raise FetchError(
                f"{source.url}: the {kind.upper()} of what arrived is {found}, not {wanted} as "
                f"{url} lists it; remove what is there, and try again"
            )
        return True

    def _list(self, url: str) -> dict[str, str]:
        """Return the checksums that a list of an archive gives, by names of files."""
        most = current().head_bytes
        with self.web.ask(url) as response:
            try:
                text = response.raw.read(most + 1, decode_content=False)
            except (HTTPError, OSError) as error:
                raise Interrupted(f"{type(error).__name__}: {error}") from error
        if len(text) > most:
            raise FetchError(f"{url} is larger than the {most} bytes that a list may have")
        lines = text.decode("utf-8", "replace").splitlines()
        found = (match for line in lines if (match := _LISTED.fullmatch(line.strip())))
        return {match[2]: match[1] for match in found}

    def download(
        self,
        source: Downloadable,
        *,
        overwrite: bool = False,
        check: Callable[[Received, Path], None] | None = None,
    ) -> Received:
        """Download a file, going on with what an earlier attempt left.

        Parameters
        ----------
        source : Downloadable
        overwrite : bool
            Replace a file of that name.
        check : callable, optional
            Called with what arrived, and where it is before it has its name; its error keeps it
            from getting that.

        Raises
        ------
        OutputExists
            If there is such a file and `overwrite` is false.
        FetchError
            If the server gives no more, or something else than was promised.
        """
        path, partial = self.path(source.name), self._partial(source.name)
        refuse_existing(path, overwrite=overwrite)
        with explaining(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            # A link planted here would have its target overwritten.
            if partial.is_symlink():
                remove(partial)
            remote = self._insist(source, partial)
            received = Received(remote, partial.stat().st_size, sha256_of(partial))
            if source.sha256 not in (None, received.sha256):
                self._forget(source.name)
                raise FetchError(
                    f"{source.url}: the SHA-256 of what arrived is {received.sha256}, not the "
                    f"published {source.sha256}; it was discarded: try again, or check the recipe"
                )
            try:
                self.require_listed(source, partial)
            except FetchError:
                self._forget(source.name)
                raise
            if check is not None:
                check(received, partial)
            publish(partial, path, overwrite=overwrite)
            self._forget(source.name)
        return received

    def _insist(self, source: Downloadable, partial: Path) -> Remote:
        """Try until the file is complete; attempts count while no more bytes arrive than before."""
        attempt, restarts, most = 0, 0, self.kept(source)
        while True:
            try:
                return self._attempt(source, partial)
            except Interrupted as error:
                size = partial.stat().st_size if partial.exists() else 0
                # A slow line that brings something may go on for ever, one that brings nothing not.
                attempt = 1 if size > most else attempt + 1
                most = max(most, size)
                self.web.wait(attempt, error, source.name)
            except _Restart as error:
                restarts += 1
                self._forget(source.name)
                if restarts > _MOST_RESTARTS:
                    raise FetchError(
                        f"{source.url}: {error}, again and again; download it by other means"
                    ) from error

    def _attempt(self, source: Downloadable, partial: Path) -> Remote:
        offset, headers = self.kept(source), {}
        if offset:
            known = self._remembered(source)
            assert known is not None
            assert known.validator is not None
            if known.size is not None and offset == known.size:
                # All bytes came before the run was killed; only the checks are left.
                return known
            # If-Range: a server whose file has changed sends it whole, and not its new end.
            headers = {"Range": f"bytes={offset}-", "If-Range": known.validator}
        with self.web.ask(source.url, headers=headers, told_by=self.told_by) as response:
            # The range begins behind the end: the file has shrunk.
            if response.status_code == 416:
                raise _Restart("the server has fewer bytes than it gave before")
            if response.status_code not in (200, 206):
                raise FetchError(
                    f"{source.url}: the server answers {response.status_code} "
                    f"{response.reason}, not the file; check the address"
                )
            # What is kept must survive a page that asks to log in again.
            _require_data(source, response)
            remote = _described(source.url, response)
            if response.status_code == 206:
                remote = self._continued(source, response, offset)
            elif offset:
                logger.info("%s: changed, or not resumable; from the start", source.name)
                offset = 0
            self._require_promised(source, remote, response)
            if not offset:
                # Old bytes must not outlive what tells their version.
                self._forget(source.name)
                self._remember(source.name, remote)
            size = source.bytes if remote.size is None else remote.size
            self._receive(source, response, partial, offset=offset, size=size)
        return remote

    def _continued(self, source: Downloadable, response: requests.Response, offset: int) -> Remote:
        """Return the remembered remote if the answer is its rest."""
        known = self._remembered(source)
        given = re.fullmatch(
            r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)",
            response.headers.get("Content-Range", ""),
        )
        new = _described(source.url, response)
        if known is None or given is None or int(given[1]) != offset:
            raise _Restart("the server sends another part than was asked for")
        total = None if given[3] == "*" else int(given[3])
        changed = new.validator is not None and new.validator != known.validator
        if changed or (known.size is not None and total not in (None, known.size)):
            raise _Restart("the file has changed")
        if int(given[2]) + 1 != (total if total is not None else known.size or int(given[2]) + 1):
            raise _Restart("the server does not send the whole rest")
        return (
            known
            if known.size is not None
            else Remote(known.url, total, known.etag, known.last_modified)
        )

    def _require_promised(
        self, source: Downloadable, remote: Remote, response: requests.Response
    ) -> None:
        if None not in (source.bytes, remote.size) and remote.size != source.bytes:
            raise FetchError(
                f"{source.url} has {remote.size} bytes, not the published {source.bytes}; "
                "check whether the file was replaced, and correct the recipe"
            )
        if source.bytes is None and (remote.size or 0) > current().download_bytes:
            raise _too_long(source, f"has {remote.size} bytes")
        packed = response.headers.get("Content-Encoding", "identity").lower()
        # Some servers call a .gz file "packed on the way", though the file itself is so.
        packing = packed in ("gzip", "x-gzip") and source.name.endswith((".gz", ".tgz"))
        if packed not in ("", "identity") and not packing:
            raise FetchError(
                f"{source.url} is sent packed ({packed}), which was not asked for; "
                "download it by other means"
            )

    def _receive(
        self,
        source: Downloadable,
        response: requests.Response,
        partial: Path,
        *,
        offset: int,
        size: int | None,
    ) -> None:
        """Write the body after `offset`, until it ends or stalls."""
        head = b""
        done, watch = offset, _Watch(self.web, offset)
        most = current().download_bytes if size is None else size
        with partial.open("r+b" if offset else "wb") as stream:
            # Bytes behind the offset are of an attempt that was not told of.
            stream.seek(offset)
            stream.truncate()
            while True:
                try:
                    # What there is, at once: a full chunk may never come from a stalled line.
                    chunk = response.raw.read1(_CHUNK, decode_content=False)
                except (HTTPError, OSError) as error:
                    raise Interrupted(f"{type(error).__name__}: {error}") from error
                if not chunk:
                    break
                # Before it is written: a server may go on for ever.
                if done + len(chunk) > most:
                    self._forget(source.name)
                    if size is None:
                        raise _too_long(source, "goes on")
                    raise FetchError(f"{source.url} gives more than the {size} bytes it announced")
                if done < _HEAD:
                    head = (head + chunk)[:_HEAD]
                    if _is_page(source.name, head):
                        self._forget(source.name)
                        raise _page_error(source)
                stream.write(chunk)
                done += len(chunk)
                if self.progress is not None:
                    self.progress(source.name, done, size or 0)
                watch.look(done)
        if size is not None and done < size:
            raise Interrupted(f"the server broke off after {done} of {size} bytes")
        # A proxy that fails may answer 200 with nothing.
        if done == 0 and source.bytes != 0:
            raise Interrupted("the server sends an empty file")

    def _partial(self, name: str) -> Path:
        path = self.path(name)
        return path.with_name(f".{path.name}.part")

    def _note(self, name: str) -> Path:
        path = self.path(name)
        return path.with_name(f".{path.name}.part.json")

    def _remembered(self, source: Downloadable) -> Remote | None:
        """Return what the server said when the kept bytes came, if they are of this address."""
        try:
            found: Any = json.loads(self._note(source.name).read_text("utf-8"))
            remote = Remote(**found)
        except (OSError, ValueError, TypeError):
            return None
        return remote if remote.url == source.url else None

    def _remember(self, name: str, remote: Remote) -> None:
        with writing(self._note(name), overwrite=True) as file:
            file.write_text(json.dumps(asdict(remote)), "utf-8")

    def _forget(self, name: str) -> None:
        remove(self._partial(name))
        remove(self._note(name))


class _Watch:
    """Raises when less than the least rate arrives over the time of a stall."""

    def __init__(self, web: Web, done: int) -> None:
        self._manners = web.manners
        self._since, self._done = time.monotonic(), done

    def look(self, done: int) -> None:
        passed = time.monotonic() - self._since
        if passed < self._manners.stall_s:
            return
        if done - self._done < self._manners.least_rate * passed:
            raise Interrupted(f"stalled: {done - self._done} bytes in {passed:.0f} s")
        self._since, self._done = time.monotonic(), done


def _require_data(source: Downloadable, response: requests.Response) -> None:
    """Refuse what calls itself a web page."""
    kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
    if kind in _PAGE_TYPES and response.status_code in (200, 206) and not _may_be_page(source.name):
        raise _page_error(source)


def _is_page(name: str, head: bytes) -> bool:
    """Whether the first bytes are those of a web page, where none is expected."""
    # A byte order mark may stand in front of the tag.
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith(_PAGE) and not _may_be_page(name)


def _may_be_page(name: str) -> bool:
    return name.lower().endswith((".html", ".htm", ".xhtml"))


def _page_error(source: Downloadable) -> FetchError:
    return FetchError(
        f"{source.url} gives a web page, not {source.name}: the file has moved, or one must log "
        "in; open the address in a browser"
    )


def _too_long(source: Downloadable, what: str) -> FetchError:
    return FetchError(
        f"{source.url} {what}, more than the {current().download_bytes} that are taken of a file "
        f"of no published size; if it is right, raise the limit by {VARIABLE}='download_bytes=...'"
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _described(url: str, response: requests.Response) -> Remote:
    length = response.headers.get("Content-Length", "")
    return Remote(
        url,
        int(length) if _SIZE.fullmatch(length) and response.status_code == 200 else None,
        response.headers.get("ETag"),
        response.headers.get("Last-Modified"),
    )
