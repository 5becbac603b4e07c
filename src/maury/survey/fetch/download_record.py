"""What was downloaded into a folder: sizes and checksums, to compare with later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from maury.errors import FetchError
from maury.io.files import writing
from maury.survey.fetch.download import Downloadable, Received

MANIFEST = "maury-downloads.json"
"""Name of the manifest in a folder of downloads."""
_FORMAT = 1
"""Version of the manifest's layout; another one is refused."""


@dataclass(frozen=True)
class Record:
    """One downloaded file.

    Attributes
    ----------
    url : str
    size : int
        In bytes.
    sha256 : str
    published : bool
        Whether the checksum is the published one, and not just what arrived.
    etag, last_modified : str, optional
        As the server said.
    fetched : str
        When, UTC, in ISO format.
    """

    url: str
    size: int
    sha256: str
    published: bool
    etag: str | None = None
    last_modified: str | None = None
    fetched: str = ""


@dataclass(frozen=True)
class Manifest:
    """Records of a folder, by the names of files."""

    records: dict[str, Record]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read that of a folder; an empty one if it has none.

        Raises
        ------
        FetchError
            If it is damaged.
        """
        path = folder / MANIFEST
        if not path.exists():
            return cls({})
        try:
            found: Any = json.loads(path.read_text("utf-8"))
            if found["format"] != _FORMAT:
                raise ValueError(f"format {found['format']} is not known")
            records = {str(name): Record(**record) for name, record in found["files"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise FetchError(
                f"{path} is damaged ({error}); remove it, and the files are checked anew"
            ) from error
        return cls(records)

    def of(self, source: Downloadable) -> Record | None:
        """Return the record of a file, if it came from this address."""
        record = self.records.get(source.name)
        # From another address it is another file of the same name, with another checksum.
        return record if record is not None and record.url == source.url else None

    def write(self, folder: Path) -> None:
        """Write it to a folder."""
        files = {name: asdict(record) for name, record in sorted(self.records.items())}
        with writing(folder / MANIFEST, overwrite=True) as partial:
            document = {"format": _FORMAT, "files": files}
            partial.write_text(json.dumps(document, indent=1) + "\n", "utf-8")

    def with_file(self, name: str, received: Received, *, published: bool) -> Self:
        """Return a manifest that also has this file."""
        record = Record(
            received.remote.url,
            received.size,
            received.sha256,
            published,
            received.remote.etag,
            received.remote.last_modified,
            datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return replace(self, records={**self.records, name: record})
