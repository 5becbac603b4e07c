"""A survey by its path: a store, or files that a TOML file describes."""

from pathlib import Path

from maury.spectra.batch import Readable
from maury.survey.store import Survey


def open_survey(path: Path | str) -> Readable:
    """Open a survey store, or, if the name ends in .toml, files that it describes.

    Raises
    ------
    SurveyFileError
        If there is neither.
    ConfigError, InputFileError
        If the TOML file is wrong, or a file that it describes is missing or damaged.
    """
    if str(path).lower().endswith(".toml") and Path(path).is_file():
        # The readers of a dozen formats, of which a store needs none.
        from maury.survey.readers.general import open_toml

        return open_toml(path)
    return Survey.open(path)
