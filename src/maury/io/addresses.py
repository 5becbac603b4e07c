"""Addresses of fsspec (``s3://bucket/survey.zarr``) that stand where a path of a store does."""

import re
from dataclasses import dataclass
from pathlib import Path

from maury.errors import MissingExtra, SurveyFileError


@dataclass(frozen=True)
class Address:
    """A place that fsspec knows, on this machine or another; it is read, never written.

    Attributes
    ----------
    url : str
        With its scheme.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.url.rstrip("/").rpartition("/")[2]

    def absolute(self) -> "Address":
        """Return this address, which names its place from everywhere."""
        return self

    def fingerprint(self, file: str) -> str:
        """Return what fsspec knows of a file below: equal unless it was changed.

        Raises
        ------
        SurveyFileError
            If it is not there, or the place cannot be reached.
        MissingExtra
            If fsspec needs a package for this scheme.
        """
        from fsspec.core import url_to_fs

        try:
            system, root = url_to_fs(self.url)
            # The tag or time of the object: reading it all for a checksum would download the store.
            return str(system.ukey(f"{root}/{file}"))
        # fsspec imports what a scheme needs only now, and names the package.
        except ImportError as error:
            raise MissingExtra(
                f"{self.url} needs a package of fsspec: {error}; "
                "for Amazon S3 and HTTP, pip install 'maury[cloud]'"
            ) from error
        except FileNotFoundError as error:
            raise SurveyFileError(
                f"{self.url} has no {file}: it is not a survey store, or may not be read"
            ) from error
        # Each file system raises errors of its own library, of which none is a requirement here.
        except Exception as error:
            raise SurveyFileError(f"cannot reach {self.url}: {error}") from error


def parse(place: Path | str) -> Path | Address:
    """Return an address if `place` has a scheme, else a path.

    A path that was made of an address, and so lost one of its slashes, is mended.

    Examples
    --------
    >>> str(parse(Path("s3://bucket/survey.zarr")))
    's3://bucket/survey.zarr'
    """
    # Two letters at least: C:/ is a drive of Windows.
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)$", str(place))
    if found is None:
        return Path(place)
    scheme, rest = found.groups()
    return Address(f"{scheme}://{'/' if scheme in ('file', 'local') else ''}{rest}")
