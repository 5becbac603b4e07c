"""One door to the terminal: what could steer it is written out, whoever prints."""

import sys
from typing import Any, TextIO

from maury.errors import printable


class CleanStream:
    """A stream of text that writes out what could steer a terminal.

    Warnings, logs and tracebacks of libraries quote names, units and headers of strangers, and pass
    by no function of this package.

    Parameters
    ----------
    raw : file object
        Where the text goes; ``raw`` is also the way around, for what draws on a terminal.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        """Write a text, see `printable`."""
        # Bytes are refused, as by every stream of text; some libraries try.
        return self.raw.write(text if str.isprintable(text) else printable(text))

    def writelines(self, lines: Any) -> None:
        """Write texts, as `write` does."""
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """Say no: colours would be written out."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def clean_streams() -> None:
    """Let this process print through `CleanStream` from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # A process without a terminal, such as a service, may have no streams at all.
        if stream is not None and not isinstance(stream, CleanStream):
            setattr(sys, name, CleanStream(stream))


def raw_stream(stream: TextIO | CleanStream) -> TextIO:
    """Return the stream itself, for what draws on the terminal and cleans its texts alone."""
    return stream.raw if isinstance(stream, CleanStream) else stream
