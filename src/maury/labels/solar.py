"""Solar scales: photospheric abundances of the Sun, named and cited."""

from collections.abc import Mapping
from dataclasses import dataclass

from maury.errors import ConfigError, check_known


@dataclass(frozen=True)
class SolarScale:
    """Photospheric abundances of the Sun, log10(N_X / N_H) + 12.

    Attributes
    ----------
    name, citation : str
        How recipes call it, and its source.
    bibtex_key : str
        Its key in the bibliography.
    values : mapping of str to float
        By symbol of the element, lower case.
    """

    name: str
    citation: str
    bibtex_key: str
    values: Mapping[str, float]

    def __getitem__(self, element: str) -> float:
        """Return the abundance of an element.

        Raises
        ------
        ConfigError
            If this scale, as it is known here, does not have it.
        """
        if element not in self.values:
            raise ConfigError(
                f"no abundance of {element.capitalize()} is known on the solar scale {self.name!r} "
                f"(known: {', '.join(self.values)}); leave that label out, or keep its scale"
            )
        return self.values[element]


def _scale(name: str, citation: str, key: str, text: str) -> SolarScale:
    words = text.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return SolarScale(name, citation, key, {symbol.lower(): float(v) for symbol, v in pairs})


# Only what the labels of surveys need; a value that is not here is refused, never guessed.
SCALES: Mapping[str, SolarScale] = {
    scale.name: scale
    for scale in (
        _scale(
            "anders1989",
            "Anders & Grevesse 1989, Geochim. Cosmochim. Acta 53, 197",
            "1989GeCoA..53..197A",
            "C 8.56 N 8.05 O 8.93 Na 6.33 Mg 7.58 Al 6.47 Si 7.55 P 5.45 S 7.21 "
            "K 5.12 Ca 6.36 Sc 3.10 Ti 4.99 V 4.00 Cr 5.67 Mn 5.39 Fe 7.67 Co 4.92 "
            "Ni 6.25 Cu 4.21 Zn 4.60",
        ),
        _scale(
            "grevesse1998",
            "Grevesse & Sauval 1998, Space Sci. Rev. 85, 161",
            "1998SSRv...85..161G",
            "C 8.52 N 7.92 O 8.83 Na 6.33 Mg 7.58 Al 6.47 Si 7.55 P 5.45 S 7.33 "
            "K 5.12 Ca 6.36 Sc 3.17 Ti 5.02 V 4.00 Cr 5.67 Mn 5.39 Fe 7.50 Co 4.92 "
            "Ni 6.25 Cu 4.21 Zn 4.60",
        ),
        _scale(
            "grevesse2007",
            "Grevesse, Asplund & Sauval 2007, Space Sci. Rev. 130, 105",
            "2007SSRv..130..105G",
            "C 8.39 N 7.78 O 8.66 Na 6.17 Mg 7.53 Al 6.37 Si 7.51 P 5.36 S 7.14 "
            "K 5.08 Ca 6.31 Sc 3.17 Ti 4.90 V 4.00 Cr 5.64 Mn 5.39 Fe 7.45 Co 4.92 "
            "Ni 6.23 Cu 4.21 Zn 4.60",
        ),
        _scale(
            "asplund2009",
            "Asplund, Grevesse, Sauval & Scott 2009, ARA&A 47, 481",
            "2009ARA&A..47..481A",
            "C 8.43 N 7.83 O 8.69 Na 6.24 Mg 7.60 Al 6.45 Si 7.51 P 5.41 S 7.12 "
            "K 5.03 Ca 6.34 Sc 3.15 Ti 4.95 V 3.93 Cr 5.64 Mn 5.43 Fe 7.50 Co 4.99 "
            "Ni 6.22 Cu 4.19 Zn 4.56 Y 2.21 Zr 2.58 Ba 2.18 La 1.10 Nd 1.42 Eu 0.52",
        ),
        _scale(
            "asplund2021",
            "Asplund, Amarsi & Grevesse 2021, A&A 653, A141",
            "2021A&A...653A.141A",
            "C 8.46 N 7.83 O 8.69 Na 6.22 Mg 7.55 Al 6.43 Si 7.51 P 5.41 S 7.12 "
            "K 5.07 Ca 6.30 Sc 3.14 Ti 4.97 V 3.90 Cr 5.62 Mn 5.42 Fe 7.46 Co 4.94 "
            "Ni 6.20 Cu 4.18 Zn 4.56 Y 2.21 Zr 2.59 Ba 2.27 La 1.11 Nd 1.42 Eu 0.52",
        ),
    )
}
"""Solar scales by name; the elements that two scales share can be moved between them."""


def solar_scale(name: str) -> SolarScale:
    """Return a solar scale by name.

    Raises
    ------
    UnknownName
        With the nearest known name.
    """
    return SCALES[check_known("solar scale", name, SCALES)]
