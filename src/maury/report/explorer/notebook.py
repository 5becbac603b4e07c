"""The explorer in a notebook: its page in a frame, which asks the kernel in place of a server."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, urlsplit

from maury.errors import MauryError, MissingExtra
from maury.model.directory import Model
from maury.prediction.catalogue import Catalogue
from maury.report.explorer.answers import Answers, Refusal, static_files
from maury.report.explorer.stars import NotKnown
from maury.survey.store import Survey

logger = logging.getLogger(__name__)
_HEIGHT = 760
"""Pixels of the frame: two rows of panels with the header, chosen by eye."""
_MAIN = "main.js"


def explorer_widget(
    catalogue: Catalogue | Path | str,
    *,
    survey: Survey | Path | str | None = None,
    model: Model | Path | str | None = None,
    height: int = _HEIGHT,
) -> Any:
    """Return the explorer as a widget of a notebook (Jupyter, JupyterLab, VS Code, Colab).

    Nothing listens on a port: the page asks the kernel by the messages of the widget, so that it
    works where the kernel runs on another machine, too.

    Parameters
    ----------
    catalogue : Catalogue or path-like
    survey : Survey or path-like, optional
        Survey whose spectra are shown.
    model : Model or path-like, optional
        Model whose theory and sensitivity are shown.
    height : int
        Pixels.

    Returns
    -------
    anywidget.AnyWidget
        Its ``close`` removes temporary files.

    Raises
    ------
    MissingExtra
        Without anywidget.
    InputFileError, SurveyFileError, ModelFileError
        If a file cannot be read.

    Examples
    --------
    >>> explorer_widget("labels.fits", survey="rave.zarr")  # doctest: +SKIP
    """
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise MissingExtra(
            "the explorer in a notebook needs anywidget: pip install 'maury[notebook]'; or call "
            "maury.report.explorer.Explorer, and open its link"
        ) from error
    relay = Relay(catalogue, survey=survey, model=model)
    script = static_files()["widget.js"][0].decode()

    class ExplorerWidget(anywidget.AnyWidget):  # type: ignore[misc, unused-ignore]
        _esm = script
        page = traitlets.Unicode().tag(sync=True)
        title = traitlets.Unicode().tag(sync=True)
        height = traitlets.Int().tag(sync=True)

        def close(self) -> None:
            """Forget the catalogue, and remove temporary files."""
            super().close()
            relay.close()

    title = f"maury explore: {relay.answers.content.name}"
    widget = ExplorerWidget(page=page(), title=title, height=height)

    def answer(_: Any, message: Any, buffers: Sequence[Any]) -> None:
        widget.send(*relay.answer(message, buffers))

    widget.on_msg(answer)
    return widget


class Relay:
    """Answers messages of the page as the server answers its requests.

    Parameters
    ----------
    catalogue, survey, model
        As of `explorer_widget`.
    """

    def __init__(
        self,
        catalogue: Catalogue | Path | str,
        *,
        survey: Survey | Path | str | None = None,
        model: Model | Path | str | None = None,
    ) -> None:
        self._folder = TemporaryDirectory(prefix="maury-explore-")
        with ExitStack() as stack:
            stack.callback(self._folder.cleanup)
            folder = Path(self._folder.name)
            self.answers = Answers.open(catalogue, survey=survey, model=model, folder=folder)
            stack.pop_all()

    def close(self) -> None:
        """Remove temporary files."""
        self._folder.cleanup()

    def answer(
        self, message: Any, buffers: Sequence[Any] = ()
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Return the answer to a message of the page, and its bytes.

        Parameters
        ----------
        message : mapping
            ``id``, ``method`` and ``path`` with its query.
        buffers : sequence of bytes-like
            The body of a POST.
        """
        number = message.get("id") if isinstance(message, Mapping) else None
        try:
            headers, body = self._answered(message, buffers)
            return {"id": number, "status": int(HTTPStatus.OK), "headers": headers}, [body]
        except Refusal as refusal:
            status, text = refusal.status, refusal.text
        except NotKnown as error:
            status, text = HTTPStatus.NOT_FOUND, str(error)
        except MauryError as error:
            status, text = HTTPStatus.UNPROCESSABLE_ENTITY, str(error)
        # The page lives on, and the reason stands in the log of the notebook.
        except Exception:
            logger.exception("a message of the explorer's page failed")
            status, text = HTTPStatus.INTERNAL_SERVER_ERROR, "the kernel failed; see its log"
        return {"id": number, "status": int(status)}, [json.dumps({"error": text}).encode()]

    def _answered(self, message: Any, buffers: Sequence[Any]) -> tuple[dict[str, str], bytes]:
        target = urlsplit(str(message["path"]))
        query = {name: values[-1] for name, values in parse_qs(target.query).items()}
        if message["method"] == "POST":
            given = bytes(buffers[0]) if buffers else b""

            def body(length: int) -> bytes:
                if len(given) != length:
                    raise ValueError(f"a selection has {length} bytes here, got {len(given)}")
                return given

            answer = self.answers.post(target.path, query, body)
        else:
            answer = self.answers.get(target.path, query)
        try:
            sent = answer.body if isinstance(answer.body, bytes) else answer.body.read_bytes()
        finally:
            answer.done()
        return {"Content-Type": answer.kind, **answer.headers}, sent


def page() -> str:
    """Return the page as one document, with styles and scripts in it.

    Its content security policy lets it load nothing, and run only the script that starts it and
    what that makes of the page's own modules.
    """
    files = {name: body.decode() for name, (body, _) in static_files().items()}
    # Within a script of JSON, only "<" could end it.
    modules = json.dumps(list(_in_order(files))).replace("<", "\\u003c")
    start = files["frame.js"]
    allowed = base64.b64encode(hashlib.sha256(start.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{allowed}' blob:; style-src 'unsafe-inline'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'"
    )
    text = re.sub(r"\s*<link [^>]*>", "", files["index.html"])
    text = re.sub(r"\s*<script [^>]*></script>", "", text)
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    style = f"<style>{files['style.css']}</style>"
    tail = (
        f'<script id="modules" type="application/json">{modules}</script><script>{start}</script>'
    )
    text = text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">{head}', 1)
    return text.replace("</head>", f"{style}</head>", 1).replace("</body>", f"{tail}</body>", 1)


def _in_order(files: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield name and text of the page's modules, each after those that it imports."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[tuple[str, str]]:
        if name not in done:
            done.add(name)
            for used in re.findall(r'from "\./([\w.]+)"', files[name]):
                yield from visit(used)
            yield name, files[name]

    yield from visit(_MAIN)
