"""Spectra and tables of any survey, as a short TOML file describes them."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from maury.distributed import Cluster
from maury.errors import InputFileError
from maury.readers.config import IngestConfig, load_config
from maury.readers.direct import FileSurvey
from maury.readers.folder import FolderSource, open_folder
from maury.readers.grids import Gridder, linear_grid
from maury.readers.joining import Spectrograph, join
from maury.readers.pipeline import (
    Opened,
    Progress,
    Target,
    describe_files,
    fingerprint,
    group_stars,
    provenance,
    write_survey,
)
from maury.readers.rows import RowsSource, open_rows
from maury.spectra import check_wavelengths
from maury.survey import Survey

logger = logging.getLogger(__name__)


def ingest_toml(
    config_path: Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> Survey:
    """Read spectra and tables that a TOML file describes into a new store.

    Rows of the survey are the spectra, in their order; what no table knows of them is missing.
    Paths in the file are relative to it. S/N comes from the column ``snr``, else from ivar, else
    from the spectrum; without ivar or errors, ivar follows from S/N. Spectra are of one star if
    ``star_id`` says so, else if parallax and magnitudes are equal.

    Parameters
    ----------
    config_path : Path or str
        The TOML file; `maury.readers.config` defines its keys, ``docs/ingest.md`` explains them.
    out : Path or str
        Store to make.
    overwrite : bool
        Replace an existing store.
    progress : callable, optional
        Called with the number of rows done, and of all.
    cluster : Cluster, optional
        Workers to read on (`maury.distributed.connect`), which must see the files.

    Returns
    -------
    survey : Survey

    Raises
    ------
    ConfigError
        Naming everything that is wrong in the TOML file.
    InputFileError
        If a file is missing or damaged; its subclasses name wrong columns, identifiers, lengths
        and wavelengths.
    GridMismatch
        If spectra stand on different grids and the file does not ask for `resample`.
    OutputExists
        If `out` exists and `overwrite` is false.
    """
    files = open_toml(config_path)
    target = Target(
        out, files.simulated, files.provenance, files.fingerprint, files.labels, overwrite
    )
    with files:
        return write_survey(
            files.source,
            files.columns,
            target,
            gridder=files.gridder,
            medium=files.medium,
            progress=progress,
            cluster=cluster,
            opener=(_open_again, str(Path(config_path).absolute())),
        )


def _open_again(config_path: str) -> Opened:
    files = open_toml(config_path)
    return Opened(files.source, files.gridder, files)


def open_toml(config_path: Path | str) -> FileSurvey:
    """Open spectra and tables that a TOML file describes as a survey, without a store.

    Tables are read and joined at once; spectra are read when they are asked for.

    Parameters
    ----------
    config_path : Path or str
        The TOML file, as of `ingest_toml`.

    Raises
    ------
    ConfigError, InputFileError, GridMismatch
        As of `ingest_toml`.
    """
    config_path = Path(config_path)
    stated, labels = load_config(config_path)
    config = _rooted(stated, config_path.absolute().parent)
    files = _existing(config)
    options = stated.model_dump(mode="json", exclude_defaults=True)
    with ExitStack() as stack:
        source, path = _open(config, stack)
        gridder = _gridder(config, source, path)
        table = source.table if isinstance(source, RowsSource) else None
        columns = join(config, Spectrograph(path, source.n_star, source.ids, table), labels, stack)
        columns["star_id"] = group_stars(columns, columns["id"])
        hashed = describe_files(files)
        if isinstance(source, FolderSource):
            size = sum(item.stat().st_size for item in source.paths)
            hashed.append({"name": path.name, "files": source.n_star, "bytes": size})
            files += source.paths
        return FileSurvey(
            config_path,
            source,
            columns,
            gridder=gridder,
            medium=config.wavelength.medium,
            labels=labels,
            simulated=config.simulated or source.simulated,
            provenance=provenance("toml", hashed, options),
            fingerprint=fingerprint(files, options),
            stack=stack.pop_all(),
        )


def _rooted(config: IngestConfig, base: Path) -> IngestConfig:
    """Return the configuration with every path made absolute."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: base / item if isinstance(item, Path) else walk(item)
                for key, item in value.items()
            }
        return [walk(item) for item in value] if isinstance(value, list | tuple) else value

    return IngestConfig.model_validate(walk(config.model_dump()))


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item)


def _existing(config: IngestConfig) -> list[Path]:
    """Return all files that the configuration names, none of them missing."""
    paths = list(dict.fromkeys(_paths(config.model_dump())))
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise InputFileError(f"not found: {', '.join(missing)}; correct the paths, or fetch them")
    return [path for path in paths if path != config.spectra.folder]


def _open(config: IngestConfig, stack: ExitStack) -> tuple[RowsSource | FolderSource, Path]:
    spectra = config.spectra
    if spectra.folder is not None:
        return open_folder(spectra.folder, spectra, config.wavelength), spectra.folder
    assert spectra.file is not None
    return open_rows(spectra.file, spectra, config.wavelength, stack), spectra.file


def _gridder(config: IngestConfig, source: RowsSource | FolderSource, path: Path) -> Gridder:
    medium, wanted = config.wavelength.medium, config.resample
    first = check_wavelengths(source.first_grid(), name=f"wavelengths of {path}")
    grid = first if wanted is None else linear_grid(wanted.start, wanted.step, wanted.n)
    return Gridder(grid, resample=wanted is not None, medium=medium)
