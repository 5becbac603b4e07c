"""A query of an archive by ADQL (TAP): an asynchronous job, taken up again after an interruption.

The protocols are the IVOA's Table Access Protocol 1.1 and Universal Worker Service 1.1.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import requests
from urllib3 import HTTPResponse

from maury.errors import ConfigError, FetchError, MissingExtra, OutputExists
from maury.io.arrays import AnyArray
from maury.io.files import making, remove, writing
from maury.io.limits import current
from maury.survey.fetch.download import Downloader, Progress, Received, Remote
from maury.survey.fetch.download_record import Manifest
from maury.survey.fetch.guard import GuardedAdapter
from maury.survey.fetch.plans import session
from maury.survey.fetch.web import Interrupted, Web

__all__ = ["Query", "run_query"]

logger = logging.getLogger(__name__)

Table = Mapping[str, AnyArray]
_ACTIVE = ("PENDING", "QUEUED", "EXECUTING", "RUN", "HELD", "SUSPENDED", "UNKNOWN")
_FIRST_PAUSE_S = 1.0
"""Between two looks at a job; it grows by half each time, so that short queries do not wait."""
_LONGEST_PAUSE_S = 60.0
"""Archives queue jobs for hours, and ask not to be polled more often; chosen, not measured."""
_ENDS = 1 << 16
"""Bytes at both ends of an answer, where QUERY_STATUS stands: overflow is told after the rows."""
_STATUS = re.compile(rb"<INFO\b[^>]*\bQUERY_STATUS\b[^>]*>[^<]*")
_VALUE = re.compile(rb"""value\s*=\s*["'](\w+)["']""")


class Query(Protocol):
    """What to ask, such as ``[query]`` of a recipe."""

    @property
    def name(self) -> str:
        """Name of the file on disk; it ends in .vot."""

    @property
    def service(self) -> str:
        """Address of the TAP service."""

    @property
    def adql(self) -> str:
        """The question."""


@dataclass(frozen=True)
class _Result:
    name: str
    url: str
    bytes: int | None = None
    sha256: str | None = None


class _PatientSession(requests.Session):
    """Never waits for ever, as pyvo names no timeout in most of its requests."""

    def __init__(self, web: Web, service: str) -> None:
        super().__init__()
        self._guard, self._service = web.guard, service
        # Descriptions of jobs; the result is downloaded as any file is.
        adapter = GuardedAdapter(web.guard, most_bytes=current().head_bytes)
        self.mount("http://", adapter)
        self.mount("https://", adapter)
        self._timeout = (web.manners.connect_s, web.manners.stall_s)
        self.headers.update(web.session.headers)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        # Also each redirect that the library follows.
        self._guard.enter(str(request.url), self._service)
        return super().send(request, **kwargs)

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._timeout
        response = super().request(*args, **kwargs)
        # pyvo leaves the short answers of a service half read, and their connections open.
        response.raw = HTTPResponse(io.BytesIO(response.content), preload_content=False)
        return response


def run_query(
    query: Query,
    folder: Path | str,
    *,
    uploads: Mapping[str, Table] | None = None,
    overwrite: bool = False,
    told: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    web: Web | None = None,
) -> Path:
    """Ask an archive, and write its answer to a VOTable file.

    A run that was interrupted finds its job again, whose result is downloaded as any file is.

    Parameters
    ----------
    query : Query
    folder : path-like
        Where the file shall be.
    uploads : mapping of str to mapping of str to (n,) array, optional
        Tables of columns that the query calls ``TAP_UPLOAD.name``.
    overwrite : bool
        Ask again where the answer is there.
    told : callable, optional
        Called with the state of the job.
    progress : callable, optional
        Called with a name, bytes done, and bytes in all (0 if not known).
    web : Web, optional
        Session to ask with; its own by default.

    Raises
    ------
    MissingExtra
        If pyvo is not installed.
    OutputExists
        If there is a file of that name that is not this answer.
    FetchError
        If the service refuses or fails, or cuts the answer short.
    """
    if not query.name.endswith(".vot"):
        raise ConfigError(f"the answer is a VOTable; end its name in .vot, not {query.name!r}")
    folder = Path(folder).absolute()
    key = _key(query, uploads or {})
    with session(web) as asked, making(folder):
        downloader = Downloader(asked, folder, progress, told_by=query.service)
        path = downloader.path(query.name)
        manifest = Manifest.read(folder)
        if path.exists() and not overwrite:
            known = manifest.records.get(query.name)
            if known is None or known.url != f"{query.service}#{key}":
                raise OutputExists(f"{path} is not the answer to this query; pass --overwrite")
            return path
        note = path.with_name(f".{path.name}.job.json")
        with closing(_Job(query, key, uploads or {}, asked, note)) as job:
            source = _Result(query.name, job.wait(told or (lambda _: None)))
            received = downloader.download(source, overwrite=overwrite, check=_require_whole)
            answer = Received(Remote(f"{query.service}#{key}"), received.size, received.sha256)
            manifest.with_file(query.name, answer, published=False).write(folder)
            job.forget()
    return path


def _key(query: Query, uploads: Mapping[str, Table]) -> str:
    # The same question to the same service with the same stars is one job.
    digest = hashlib.sha256(json.dumps([query.service, query.adql]).encode())
    for name, table in sorted(uploads.items()):
        for column, values in table.items():
            digest.update(f"{name}\0{column}\0{values.dtype}\0".encode() + values.tobytes())
    return digest.hexdigest()


class _Job:
    """A job of a service, remembered in a file."""

    def __init__(
        self, query: Query, key: str, uploads: Mapping[str, Table], web: Web, note: Path
    ) -> None:
        try:
            from pyvo import dal
        except ImportError as error:
            raise MissingExtra(
                "queries of archives need the package pyvo: pip install 'maury[vo]'"
            ) from error
        self._dal, self._query, self._key = dal, query, key
        self._uploads, self._web, self._note = uploads, web, note
        self._session = _PatientSession(web, query.service)
        self._job: Any = None

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def wait(self, told: Callable[[str], None]) -> str:
        """Wait until it is done, and return the address of its result."""
        attempt, pause_s = 0, _FIRST_PAUSE_S
        while True:
            try:
                phase = self._phase()
                attempt = 0
            except (self._dal.DALAccessError, requests.RequestException) as error:
                attempt += 1
                # The job is looked up again by its note, as the connection may hold an old state.
                self._job = None
                self._web.wait(attempt, Interrupted(str(error)), self._query.service)
                continue
            told(f"{self._query.service}: {phase.lower()}")
            if phase not in _ACTIVE:
                return self._result(phase)
            self._web.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)

    def _result(self, phase: str) -> str:
        if phase == "COMPLETED" and self._job.result_uri:
            return str(self._job.result_uri)
        why = _why(self._job)
        self.forget()
        raise FetchError(
            f"{self._query.service}: the query ended as {phase}: {why}; correct it, or ask again "
            "later"
        )

    def _phase(self) -> str:
        """Begin, find or ask after the job."""
        if self._job is None:
            self._job = self._remembered() or self._begun()
        phase = str(self._job.phase)
        # A job is made first and started then; a run killed between left it pending.
        if phase == "PENDING":
            self._job.run()
            phase = str(self._job.phase)
        return phase

    def _begun(self) -> Any:
        from astropy.table import Table as AstropyTable

        uploads = {name: AstropyTable(dict(table)) for name, table in self._uploads.items()}
        job = self._dal.AsyncTAPJob.create(
            self._query.service,
            self._query.adql,
            uploads=uploads or None,
            session=self._session,
        )
        # Noted before it runs, so that no job is left behind unknown.
        with writing(self._note, overwrite=True) as file:
            file.write_text(json.dumps({"key": self._key, "url": job.url}), "utf-8")
        return job

    def _remembered(self) -> Any:
        """Return the job that an earlier run began, if the service still has it."""
        try:
            found = json.loads(self._note.read_text("utf-8"))
            if found["key"] != self._key:
                return None
            job = self._dal.AsyncTAPJob(str(found["url"]), session=self._session)
            usable = job.phase in ("PENDING", "QUEUED", "EXECUTING", "COMPLETED")
        except (OSError, ValueError, KeyError, TypeError):
            return None
        except (self._dal.DALAccessError, requests.RequestException) as error:
            logger.info("the earlier job is gone: %s", error)
            return None
        return job if usable else None

    def forget(self) -> None:
        """Delete the job from the service, as manners want, and from memory."""
        remove(self._note)
        if self._job is not None:
            try:
                self._job.delete()
            except (self._dal.DALAccessError, requests.RequestException) as error:
                logger.info("the job was not deleted: %s", error)


def _why(job: Any) -> str:
    summary = getattr(job.job, "errorsummary", None)
    message = getattr(summary, "message", None)
    return str(getattr(message, "content", None) or message or "no reason is given")


def _require_whole(_: Received, path: Path) -> None:
    """Refuse an answer that says of itself that it is an error or cut short."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        ends = stream.read(_ENDS)
        stream.seek(max(size - _ENDS, 0))
        ends += stream.read()
    found = [match[0] for match in _STATUS.finditer(ends)]
    values = [value[1].decode() for info in found for value in [_VALUE.search(info)] if value]
    if "ERROR" in values:
        raise FetchError(f"the service answers with an error: {found[-1].decode(errors='replace')}")
    if "OVERFLOW" in values:
        raise FetchError(
            "the service cuts the answer short (OVERFLOW); ask for less, or in several queries"
        )
    if "OK" not in values:
        raise FetchError("the answer is no VOTable of a query; check the address of the service")
