"""Spectra and tables of any survey, as a short TOML file describes them."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ConfigError, InputFileError
from maury.io.arrays import AnyArray, Float64Array
from maury.io.cluster import Cluster
from maury.labels.definitions import Label
from maury.spectra.noise import resampled_correlation
from maury.spectra.spectra import Medium, check_wavelengths
from maury.survey.readers.arms import Arm, join_arms
from maury.survey.readers.config import (
    ArmConfig,
    ExposuresConfig,
    IngestConfig,
    SpectraConfig,
    WavelengthConfig,
    load_config,
)
from maury.survey.readers.exposures import CoaddedSource, collapse, group_exposures
from maury.survey.readers.file_survey import FileSurvey
from maury.survey.readers.folder import open_folder
from maury.survey.readers.formats import open_format
from maury.survey.readers.grids import Gridder, Layout, ascending, linear_grid
from maury.survey.readers.joining import Spectrograph, join
from maury.survey.readers.pipeline import (
    Columns,
    Source,
    describe_files,
    fingerprint,
    flux_scale,
    provenance,
    with_stars,
)
from maury.survey.readers.rows import RowsSource, open_rows
from maury.survey.readers.sources import FormatSource
from maury.survey.readers.writing import Opened, Progress, Reopening, Target, write_survey
from maury.survey.store import Survey

logger = logging.getLogger(__name__)


def ingest_toml(
    config_path: Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> Survey:
    """Read spectra and tables that a TOML file describes into a new store.

    Rows of the survey are the spectra, in their order; what no table knows of them is missing.
    Paths in the file are relative to it. S/N comes from the column ``snr``, else from ivar, else
    from the spectrum; without ivar or errors, ivar follows from S/N. Spectra are of one star if
    ``star_id`` says so, else if their positions are equal, else if parallax and magnitudes are
    (`maury.spectra.star_identity`); the column ``star_id_from`` says which.

    Parameters
    ----------
    config_path : Path or str
        The TOML file; `maury.survey.readers.config` defines its keys, and
        ``docs/guides/ingest.md`` explains them.
    out : Path or str
        Store to make.
    overwrite : bool
        Replace an existing store.
    skip_bad : bool
        Keep a file that cannot be read, as a row of bad pixels, and tell of all of them at the end;
        the column ``unread`` says why. By default one such file is an error, unless the TOML file
        says ``skip_bad = true``.
    progress : callable, optional
        Called with the number of rows done, and of all.
    cluster : Cluster, optional
        Workers to read on (`maury.io.cluster.connect`), which must see the files.

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
    place = Path(config_path).absolute()
    return write_files(
        open_toml(config_path, skip_bad=skip_bad),
        out,
        # As a text: workers open the files themselves, since open ones cannot be sent.
        reopening=Reopening(_open_again, json.dumps([str(place), skip_bad]), place),
        overwrite=overwrite,
        progress=progress,
        cluster=cluster,
    )


def write_files(
    files: FileSurvey,
    out: Path | str,
    *,
    reopening: Reopening,
    overwrite: bool = False,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> Survey:
    """Write an opened survey into a new store, and close its files.

    Parameters
    ----------
    files : FileSurvey
    reopening : Reopening
        How a worker opens the same again.
    out : Path or str
        Store to make.
    overwrite : bool
        Replace an existing store.
    progress : callable, optional
        Called with the number of rows done, and of all.
    cluster : Cluster, optional
        Workers to read on, which must see the files.

    Raises
    ------
    InputFileError, GridMismatch
        If a spectrum cannot be read, or stands on another grid than the others.
    OutputExists
        If `out` exists and `overwrite` is false.
    """
    target = Target(
        out,
        files.simulated,
        files.provenance,
        files.fingerprint,
        files.labels,
        overwrite,
        further=files.further,
        resolving_power=files.resolving_power,
        noise_correlation=files.noise_correlation,
        at_rest=files.at_rest,
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
            reopening=reopening,
        )


def _open_again(argument: str) -> Opened:
    config_path, skip_bad = json.loads(argument)
    files = open_toml(config_path, skip_bad=skip_bad)
    return Opened(files.source, files.gridder, files)


def open_toml(config_path: Path | str, *, skip_bad: bool = False) -> FileSurvey:
    """Open spectra and tables that a TOML file describes as a survey, without a store.

    Tables are read and joined at once; spectra are read when they are asked for.

    Parameters
    ----------
    config_path : Path or str
        The TOML file; `maury.survey.readers.config` defines its keys.
    skip_bad : bool
        Keep a file that cannot be read, as a row of bad pixels; else as the TOML file says.

    Raises
    ------
    ConfigError, InputFileError, GridMismatch
        If the description is wrong, a file is missing or damaged, or spectra stand on different
        grids without a common one to be put on.
    """
    config_path = Path(config_path)
    stated, labels = load_config(config_path)
    stated = stated.model_copy(update={"skip_bad": True}) if skip_bad else stated
    # The record keeps paths as they are written: absolute ones are of one machine alone.
    config = rooted(stated, config_path.absolute().parent)
    return open_config(config, config_path, labels=labels, options=_options(stated))


def _options(stated: IngestConfig) -> dict[str, Any]:
    return stated.model_dump(mode="json", exclude_defaults=True)


def open_config(
    config: IngestConfig,
    path: Path,
    *,
    labels: Sequence[Label],
    options: Mapping[str, Any],
    reader: str = "toml",
) -> FileSurvey:
    """Open spectra and tables that a configuration describes, as `open_toml` does.

    Parameters
    ----------
    config : IngestConfig
        With absolute paths.
    path : Path
        Where it comes from, for messages.
    labels : sequence of Label
        Labels that the survey knows.
    options : mapping
        JSON that is recorded as its settings.
    reader : str
        What is recorded as the reader.

    Raises
    ------
    ConfigError, InputFileError, GridMismatch
        If the description is wrong, a file is missing or damaged, or spectra stand on different
        grids without a common one to be put on.
    """
    _existing(config)
    with ExitStack() as stack:
        arms = [_arm(arm, config, stack) for arm in config.arms]
        source, gridder = _whole(arms)
        place = _place(config.arms[0].spectra)
        spectra = Spectrograph(place, source.n_star, source.ids, arms[0].table)
        columns, joins = join(config, spectra, labels, stack)
        _tell_of_motion(config, columns, path)
        columns = with_stars(columns, columns["id"], place)
        if config.exposures is not None and config.exposures.mode == "coadd":
            velocity = _velocity(columns, config.exposures, path)
            source, columns = _coadded(source, columns, gridder, velocity)
            # What is added up stands on the common grid already.
            gridder = Gridder(gridder.wave_aa, resample=False, medium=arms[0].medium)
        hashed, files = _described(_existing(config), config, arms)
        return FileSurvey(
            path,
            source,
            columns,
            gridder=gridder,
            medium=arms[0].medium,
            labels=labels,
            further=[c for parts in config.further_columns.values() for c in parts],
            simulated=config.simulated or source.simulated,
            resolving_power=config.resolving_power,
            noise_correlation=_stored_correlation(config, arms[0], source),
            at_rest=True if isinstance(source, CoaddedSource) and source.moves else config.at_rest,
            joins=joins,
            provenance=provenance(reader, hashed, {**options, **_scales(arms)}),
            fingerprint=fingerprint(files, options),
            # From here on the survey closes the files; after any error before they are closed here.
            stack=stack.pop_all(),
        )


def _whole(arms: Sequence[Arm]) -> tuple[Source, Gridder]:
    """Return the spectra of all arms in one, and the grid that they are put on."""
    if len(arms) == 1:
        return arms[0].source, arms[0].gridder
    joined = join_arms(arms)
    # Each arm is put on its own grid before it is joined.
    return joined, Gridder(joined.wave_aa, resample=False, medium=arms[0].medium)


def _coadded(
    source: Source,
    columns: Mapping[str, AnyArray],
    gridder: Gridder,
    velocity_kms: Float64Array | None,
) -> tuple[CoaddedSource, dict[str, AnyArray]]:
    groups = group_exposures(columns["star_id"])
    collapsed = collapse(columns, groups, at_rest=velocity_kms is not None)
    return CoaddedSource(source, gridder, groups, velocity_kms), collapsed


def _scales(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return what provenance says of fluxes that are not stored as the files have them."""
    scales = [arm.gridder.flux_scale for arm in arms]
    return {"flux_scale": scales} if set(scales) != {1.0} else {}


def _tell_of_motion(config: IngestConfig, columns: Mapping[str, AnyArray], path: Path) -> None:
    if config.at_rest is False and "radial_velocity" not in columns:
        logger.warning(
            "%s: the spectra are not at rest, and no radial_velocity is known: they cannot be "
            "shifted to rest, by rest_frame or otherwise, until one is mapped",
            path,
        )


def _described(
    files: list[Path], config: IngestConfig, arms: Sequence[Arm]
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Return what provenance says of the files, and all of them, those of folders among them."""
    hashed, everything = describe_files(files), list(files)
    for arm, found in zip(config.arms, arms, strict=True):
        listed = _listed(found.source)
        if arm.spectra.folder is not None:
            # Files of a folder may be a million: their number and size stand for their checksums.
            size = sum(item.stat().st_size for item in listed)
            name = arm.spectra.folder.name
            hashed.append({"name": name, "files": len(listed), "bytes": size})
            everything += listed
    return hashed, everything


def _stored_correlation(config: IngestConfig, arm: Arm, source: Source) -> tuple[float, ...] | None:
    """Correlation of the noise on the grid of the store, which resampling and shifts change."""
    found = config.noise_correlation
    if found is None:
        return None
    if arm.gridder.resamples:
        widths = [np.median(np.diff(grid)) for grid in (arm.gridder.wave_aa, arm.first_aa)]
        found = resampled_correlation(found, round(float(widths[0] / abs(widths[1])), 4))
    moved = isinstance(source, CoaddedSource) and source.moves
    # A shift by parts of a pixel interpolates, and so correlates neighbours at equal steps too.
    return resampled_correlation(found, 1.0) if moved else found


def _velocity(columns: Columns, exposures: ExposuresConfig, path: Path) -> Float64Array | None:
    if exposures.velocity is None:
        return None
    if exposures.velocity not in columns:
        raise ConfigError(
            f"{path}: exposures.velocity names {exposures.velocity!r}, which [columns] does not "
            "map; map it, or leave 'velocity' out if the exposures are at rest"
        )
    velocity = np.asarray(columns[exposures.velocity], dtype=np.float64)
    unknown = int(np.isnan(velocity).sum())
    if unknown:
        logger.warning("%d exposures have no velocity and are left out of the sums", unknown)
    return velocity


def rooted(config: IngestConfig, base: Path) -> IngestConfig:
    """Return the configuration with every path made absolute, relative ones from `base`."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: base / item if isinstance(item, Path) else walk(item)
                for key, item in value.items()
            }
        return [walk(item) for item in value] if isinstance(value, list | tuple) else value

    return IngestConfig.model_validate(walk(config.model_dump(exclude_unset=True)))


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
    # Each file once: a FITS file may be spectra, table and wavelengths.
    paths = list(dict.fromkeys(_paths(config.model_dump())))
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise InputFileError(f"not found: {', '.join(missing)}; correct the paths, or fetch them")
    folders = [arm.spectra.folder for arm in config.arms]
    return [path for path in paths if path not in folders]


def _place(spectra: SpectraConfig) -> Path:
    place = spectra.folder or spectra.file
    assert place is not None, "one of them was required"
    return place


def _listed(source: object) -> list[Path]:
    """Return the files that a folder was found to hold."""
    return list(getattr(source, "paths", ()))


def _arm(config: ArmConfig, whole: IngestConfig, stack: ExitStack) -> Arm:
    """Open the spectra of one arm, and settle their grid."""
    spectra, wavelength = config.spectra, config.wavelength
    path = _place(spectra)
    source: FormatSource | RowsSource
    if spectra.reader is not None:
        source = open_format(spectra.reader, path, stack, skip_bad=whole.skip_bad)
        medium = _medium_of(source, wavelength, path)
        table = source.table
    else:
        assert wavelength is not None, "it was required"
        medium, table = wavelength.medium, None
        if spectra.folder is not None:
            source = open_folder(spectra.folder, spectra, wavelength, skip_bad=whole.skip_bad)
        else:
            source = open_rows(path, spectra, wavelength, stack)
            table = source.table
    first = check_wavelengths(ascending(source.first_grid())[0], name=f"wavelengths of {path}")
    wanted = config.resample
    grid = (
        first
        if wanted is None
        else linear_grid(wanted.start, wanted.step, wanted.n, log=wanted.log)
    )
    # An arm has one window of its own; `windows` are for spectra without arms.
    kept = whole.windows if config.window is None else [config.window]
    layout = Layout.of(grid, kept, what=str(path))
    gridder = Gridder(
        grid,
        resample=wanted is not None,
        medium=medium,
        layout=layout,
        noise_correlation=whole.noise_correlation or (),
        flux_scale=flux_scale(source, path),
    )
    return Arm(config.name, source, gridder, medium, first, table)


def _medium_of(source: FormatSource, wavelength: WavelengthConfig | None, path: Path) -> Medium:
    stated = None if wavelength is None else wavelength.medium
    if source.medium is None and stated is None:
        raise ConfigError(
            f"{path} does not say whether its wavelengths are in air or in vacuum; write "
            "'medium' in [wavelength]"
        )
    if source.medium is not None and stated not in (None, source.medium):
        raise ConfigError(
            f"{path} says that its wavelengths are in {source.medium}, [wavelength] in {stated}; "
            "correct 'medium', or leave it out"
        )
    medium: Medium = source.medium or stated or "air"
    return medium
