"""One file as it looks: what the parts of the guess pass to each other."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from maury.io.arrays import Float64Array
from maury.spectra.spectra import Medium
from maury.survey.guessing.document import Entry
from maury.survey.guessing.recipes import Known

Kind = Literal["spectra", "spectrum", "table", "other"]
LEAST_PIXELS = 50
"""Fewer numbers in a row are no spectrum but a vector of something else; chosen."""


@dataclass(frozen=True)
class Seen:
    """What a file, or a folder of files of one star each, looks like.

    Attributes
    ----------
    path : Path
        The file, or the folder.
    kind : {"spectra", "spectrum", "table", "other"}
        Spectra of many stars, of one, a table, or neither.
    n_star : int
        Spectra or rows.
    spectra, wavelength : tuple of Entry
        Keys of ``[spectra]`` (without file) and ``[wavelength]`` (without unit and medium).
    wave : (n_pixel,) float64, optional
        Wavelengths as the file has them; None where a header gives them in angstrom.
    grids : tuple of (n_pixel,) float64
        Of the files of a folder that were looked at.
    unit : str, optional
        Their unit, as the file states it.
    medium : {"air", "vacuum"}, optional
        As the file states it.
    names : str
        Names of columns.
    is_table : bool
        Whether the file of the spectra is a table of further columns, too.
    paths : tuple of Path
        Files of a folder.
    why : str
        Why a file is left out.
    reader : str, optional
        Name of a published format.
    known : Known, optional
        What recipes say of it.
    arms : tuple of Seen
        Arms of one survey, this one among them, in order of wavelength.
    """

    path: Path
    kind: Kind
    n_star: int = 1
    spectra: tuple[Entry, ...] = ()
    wavelength: tuple[Entry, ...] = ()
    wave: Float64Array | None = field(default=None, compare=False)
    grids: tuple[Float64Array, ...] = field(default=(), compare=False)
    unit: str | None = None
    medium: Medium | None = None
    names: str = ""
    is_table: bool = False
    paths: tuple[Path, ...] = ()
    why: str = ""
    reader: str | None = None
    known: Known | None = None
    arms: "tuple[Seen, ...]" = ()

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of files of one star each."""
        return bool(self.paths)
