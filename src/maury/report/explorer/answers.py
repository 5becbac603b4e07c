"""What the page may ask, and the answers, by HTTP or to the widget of a notebook."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import BoundedSemaphore
from typing import Any, Self
from urllib.parse import unquote

import numpy as np

from maury.io.arrays import BoolArray
from maury.model.directory import Model
from maury.prediction.catalogue import Catalogue, write_stored
from maury.prediction.stored import StoredCatalogue
from maury.report.explorer import samp
from maury.report.explorer.content import Content
from maury.report.explorer.exporting import FORMATS, selected_rows, write_rows
from maury.report.explorer.stars import Stars
from maury.survey.store import Survey

# Each writer reads the whole catalogue: two at once, others wait so many seconds.
# Tables for other programs are kept until the end, as these read them when they like: the last 8.
_MOST_WRITERS, _WRITER_SECONDS, _MOST_SENT = 2, 30.0, 8
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Media types of the page's files; there are no others."""


class Refusal(Exception):
    """A request that gets an error status and one line."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status
        # One line of bounded length: it may quote what the request said.
        self.text = " ".join(text.split())[:300]


@dataclass(frozen=True)
class Answer:
    """What is sent.

    Attributes
    ----------
    kind : str
        Media type.
    body : bytes or Path
        Itself, or a file that holds it.
    headers : mapping of str to str
    done : callable
        To be called when it has been sent.
    """

    kind: str
    body: bytes | Path
    headers: Mapping[str, str] = field(default_factory=dict)
    done: Callable[[], None] = lambda: None


class Answers:
    """Answers what the page asks about one catalogue.

    Parameters
    ----------
    content : Content
    stars : Stars
    folder : Path
        Private directory for files that are written.
    """

    def __init__(self, content: Content, stars: Stars, folder: Path) -> None:
        self.content, self.stars, self._folder = content, stars, folder
        self.about = _json({**content.about(), "has": stars.has})
        self.files = static_files()
        self.writers = BoundedSemaphore(_MOST_WRITERS)

    @classmethod
    def open(
        cls,
        catalogue: Catalogue | Path | str,
        *,
        folder: Path,
        name: str | None = None,
        survey: Survey | Path | str | None = None,
        model: Model | Path | str | None = None,
        stage: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """Open a catalogue, with what goes with it, and pack what the page asks for first."""
        if isinstance(catalogue, Path | str):
            name = name or Path(catalogue).name
        stage("reading the catalogue")
        survey = Survey.open(survey) if isinstance(survey, Path | str) else survey
        model = Model.open(model) if isinstance(model, Path | str) else model
        known = (*(survey.label_definitions if survey else ()), *(model.labels if model else ()))
        content = Content(
            _stored(catalogue, folder),
            name=name or "catalogue",
            folder=folder,
            survey=survey,
            symbols={label.name: label.symbol for label in known},
        )
        stars = Stars(content, survey=survey, model=model)
        # Before anyone waits for the page.
        stage("packing the columns of the first view")
        content.pack_first_view()
        return cls(content, stars, folder)

    def get(self, path: str, query: Mapping[str, str]) -> Answer:
        """Answer a question.

        Raises
        ------
        Refusal
            If it cannot be answered.
        MauryError
            If what it asks for cannot be read.
        """
        if path == "/" or path.startswith("/static/"):
            name = path.removeprefix("/static/").removeprefix("/") or "index.html"
            body, kind = _found(self.files, name, "file")
            return Answer(kind, body)
        if path == "/api/about":
            return self.about
        if path.startswith("/api/column/"):
            return self._column(unquote(path.removeprefix("/api/column/")))
        if path == "/api/find":
            return _json({"row": self.stars.find(_given(query, "id", "an identifier"))})
        if path == "/api/where":
            where = self.content.where(_given(query, "text", "a selection"))
            packed = np.packbits(where, bitorder="little").tobytes()
            return Answer("application/octet-stream", packed)
        if path == "/api/samp":
            return _json({"hub": samp.hub_runs()})
        if found := re.fullmatch(r"/api/(star|spectrum|sensitivity)/([^/]*)", path):
            row, stars = self._row(found[2]), self.stars
            tell = {
                "star": stars.labels,
                "spectrum": stars.spectrum,
                "sensitivity": stars.sensitivity,
            }
            return _json(tell[found[1]](row))
        raise Refusal(HTTPStatus.NOT_FOUND, "no such page")

    def post(self, path: str, query: Mapping[str, str], body: Callable[[int], bytes]) -> Answer:
        """Write a selection to a file that is sent, or that other programs are told of.

        Parameters
        ----------
        path : str
        query : mapping of str to str
        body : callable
            Returns so many bytes of the request, which must have just these; else ValueError.

        Raises
        ------
        Refusal, MauryError
            As of `get`.
        """
        if path not in ("/api/download", "/api/samp"):
            raise Refusal(HTTPStatus.NOT_FOUND, "no such page")
        kind = query.get("format", "fits")
        if kind not in FORMATS:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"the format must be one of {', '.join(FORMATS)}")
        n_row = len(self.content)
        try:
            rows = selected_rows(body((n_row + 7) // 8), n_row)
        except ValueError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
        return self._to_hub(rows) if path == "/api/samp" else self._download(rows, kind)

    def _column(self, name: str) -> Answer:
        if name != "flags":
            _found(self.content.columns, name, "column")
        # Every browser takes gzip; a client that does not say so can undo it itself.
        coded = {"Content-Encoding": "gzip"}
        return Answer("application/octet-stream", self.content.packed(name), coded)

    def _row(self, text: str) -> int:
        rows = len(self.content)
        # `int` also takes spaces, signs, underscores and digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,12}", text, re.ASCII):
            raise Refusal(HTTPStatus.BAD_REQUEST, "a row is a whole number, counted from 0")
        if int(text) >= rows:
            raise Refusal(HTTPStatus.NOT_FOUND, f"there is no row {int(text)}: there are {rows}")
        return int(text)

    def _download(self, rows: BoolArray, kind: str) -> Answer:
        suffix, media = FORMATS[kind]
        # A file first: FITS needs its row count before its rows, and a failure needs a status.
        directory = TemporaryDirectory(dir=self._folder)
        path = Path(directory.name) / f"selection{suffix}"
        try:
            with self._writing():
                write_rows(self.content.own, rows, path)
        except BaseException:
            directory.cleanup()
            raise
        name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(self.content.name).stem) or "catalogue"
        disposition = f'attachment; filename="{name}-{int(np.count_nonzero(rows))}{suffix}"'
        return Answer(media, path, {"Content-Disposition": disposition}, directory.cleanup)

    def _to_hub(self, rows: BoolArray) -> Answer:
        if not samp.hub_runs():
            raise samp.NoHub("no SAMP hub runs; start TOPCAT and try again")
        name = f"{Path(self.content.name).stem}, {int(np.count_nonzero(rows))} rows"
        path = self._folder / f"selection-{secrets.token_hex(4)}.fits"
        with self._writing():
            write_rows(self.content.own, rows, path)
        # The hub's programs read in their own time, so that files cannot go at once.
        files = self._folder.glob("selection-*.fits")
        for old in sorted(files, key=lambda file: file.stat().st_mtime)[:-_MOST_SENT]:
            old.unlink(missing_ok=True)
        return _json({"sent": samp.send_table(path, name=name)})

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Let so many requests write files at once; others wait, and are refused at last."""
        if not self.writers.acquire(timeout=_WRITER_SECONDS):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "other selections are being written")
        try:
            yield
        finally:
            self.writers.release()


def _stored(catalogue: Catalogue | Path | str, folder: Path) -> Catalogue | StoredCatalogue:
    """Open a catalogue so that any of its columns and rows is read fast, which Parquet is made for.

    Others are written as that first.
    """
    if isinstance(catalogue, Catalogue):
        return catalogue
    stored = Catalogue.open(catalogue)
    if stored.path.suffix.lower() in (".parquet", ".dataset"):
        return stored
    write_stored(stored, folder / "rows.parquet")
    return Catalogue.open(folder / "rows.parquet")


def static_files() -> dict[str, tuple[bytes, str]]:
    """Read the page's files, bytes and media type: what is not among them does not exist."""
    folder = resources.files("maury.report.explorer") / "static"
    return {
        item.name: (item.read_bytes(), TYPES[Path(item.name).suffix])
        for item in folder.iterdir()
        if Path(item.name).suffix in TYPES
    }


def _json(document: Any) -> Answer:
    return Answer("application/json", json.dumps(document, allow_nan=False).encode())


def _given(query: Mapping[str, str], name: str, what: str) -> str:
    if not query.get(name):
        raise Refusal(HTTPStatus.BAD_REQUEST, f"give {what}: ?{name}=...")
    return query[name]


def _found(table: Any, name: str, what: str) -> Any:
    if name not in table:
        raise Refusal(HTTPStatus.NOT_FOUND, f"there is no {what} called {name[:60]!r}")
    return table[name]
