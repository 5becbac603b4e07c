"""What names of columns mean: those of surveys and archives, in any spelling of their letters."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

_FLUX = ("flux", "fluxnorm", "normflux", "sobnorm", "normalized", "normalised", "spectrum", "spec")
_WAVE = ("wave", "wavelength", "wavelengths", "lambda", "lam", "wl", "wvl", "loglam", "loglambda")
_NOISE = re.compile(r"err|sigma|unc|^sig|^e_|^std|noise|^uob", re.IGNORECASE)
_IVAR = re.compile(r"ivar|invvar|inv_var|inverse_?var", re.IGNORECASE)
_ID = re.compile(
    r"^(?:.*_)?(?:id|ids|name|star|target|object|obj|file|filename|spectrum|designation|source)$"
    r"|^(?:gaia_?)?e?dr[1-4](?:_?(?:id|name|source|source_?id))?$"
    r"|^(?:gaia|kic|epic|tic|hip|hd|tyc|tycho2?|2mass|tmass|allwise|ucac4|cname)"
    r"(?:_?(?:id|no|number|name))?$"
    r"|sourceid|source_id|sobject|specid|objid|obsid|obs_id|starname|apogee_id|filename",
    re.IGNORECASE,
)
_ERRORS = (
    re.compile(r"^e_(.+)$", re.IGNORECASE),
    re.compile(r"^(?:err|error|sigma|sig|unc)_(.+)$", re.IGNORECASE),
    re.compile(r"^(.+?)_?(?:err|error|sigma|unc|uncertainty|std)$", re.IGNORECASE),
)

COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "star_id": ("starid",),
        "teff": ("teff", "t_eff", "teffk", "effectivetemperature", "tefftrue", "teffspec"),
        "logg": ("logg", "log_g", "loggspec", "surfacegravity", "grav"),
        "m_h": ("mh", "metallicity", "monh"),
        "fe_h": ("feh", "ironabundance", "feonh"),
        "alpha_m": ("alpham", "alphafe", "afe", "am"),
        "ra": ("ra", "raicrs", "raj2000", "radeg", "rightascension"),
        "dec": ("dec", "deicrs", "dej2000", "dedeg", "declination"),
        "pmra": ("pmra", "pmracosdec"),
        "pmdec": ("pmdec", "pmde"),
        "epoch": ("refepoch", "epoch"),
        "snr": ("snr", "sn", "s2n", "snrmed", "snratio", "signaltonoise", "snri", "snrperpixel"),
        "radial_velocity": ("radialvelocity", "rv", "hrv", "vrad", "vhelio", "rvkms", "vhelioavg"),
        "parallax": ("parallax", "plx", "parallaxmas", "varpi"),
        "phot_g_mean_mag": ("photgmeanmag", "gmag", "gaiag", "gaiagmag"),
        "phot_bp_mean_mag": ("photbpmeanmag", "bpmag", "gbp", "gbpmag", "gaiabp"),
        "phot_rp_mean_mag": ("photrpmeanmag", "rpmag", "grp", "grpmag", "gaiarp"),
        "j_m": ("jm", "jmag", "jmag2mass", "tmassj", "2massj", "j"),
        "h_m": ("hm", "hmag", "hmag2mass", "tmassh", "2massh", "h"),
        "ks_m": ("ksm", "ksmag", "kmag", "kmag2mass", "ksmag2mass", "km", "tmassk", "ks", "k"),
        "w1mpro": ("w1mpro", "w1mag", "w1", "wise1"),
        "w2mpro": ("w2mpro", "w2mag", "w2", "wise2"),
        "a_v": ("av", "av50", "extinctionv"),
    }
)
"""Spellings of the survey's columns, in small letters and figures alone. Archives: Gaia, 2MASS,
AllWISE, VizieR, StarHorse, APOGEE, GALAH, RAVE, LAMOST."""
DOUBTFUL = frozenset(
    {"am", "afe", "alphafe", "j", "h", "k", "ks", "km", "sn", "metallicity", "grav", "epoch"}
)
"""Spellings that mean something else in other tables."""
# Those with lines in spectra of stars; of others nobody writes abundances.
_ELEMENTS = (
    "Li|Be|B|C|N|O|F|Na|Mg|Al|Si|P|S|K|Ca|Sc|Ti|V|Cr|Mn|Fe|Co|Ni|Cu|Zn|Ga|Ge|Rb|Sr|Y|Zr|Nb|Mo|Tc|"
    "Ru|Rh|Pd|Ag|Ba|La|Ce|Pr|Nd|Sm|Eu|Gd|Tb|Dy|Ho|Er|Yb|Hf|Os|Ir|Pt|Pb|Th|U"
)
_ABUNDANCE = re.compile(rf"^\[?({_ELEMENTS})[_/ ]?(Fe|H|M)\]?$", re.IGNORECASE)


def plain(name: str) -> str:
    """Return a name in small letters and figures alone."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_identifier(name: str) -> bool:
    """Whether a name sounds like that of identifiers."""
    return _ID.search(name.strip()) is not None


def is_ivar(name: str) -> bool:
    """Whether a name sounds like inverse variances."""
    return _IVAR.search(name) is not None


def is_noise(name: str) -> bool:
    """Whether a name sounds like errors."""
    return _NOISE.search(name) is not None and not is_ivar(name)


def flux_among(names: Sequence[str]) -> tuple[str | None, bool]:
    """Return the name that sounds like fluxes, and whether it is doubtful."""
    rest = [n for n in names if not (is_noise(n) or is_ivar(n) or wave_among([n]))]
    for wanted in _FLUX:
        for name in rest:
            if plain(name) == wanted:
                return name, False
    near = [n for n in rest if re.search(r"flux|norm", n, re.IGNORECASE)]
    if near:
        return near[0], len(near) > 1
    return (rest[0], True) if rest else (None, True)


def wave_among(names: Sequence[str]) -> str | None:
    """Return the name that sounds like wavelengths, if one does."""
    for name in names:
        if plain(name) in _WAVE or plain(name).startswith(("wave", "lambda")):
            return name
    return None


def noise_among(names: Sequence[str]) -> tuple[str, str] | None:
    """Return ("ivar" or "error", name) of what sounds like noise; inverse variances first."""
    for key, test in (("ivar", is_ivar), ("error", is_noise)):
        found = [name for name in names if test(name)]
        if found:
            # ERR belongs to FLUX, ERR_REDUCED to another one.
            return key, min(found, key=len)
    return None


def column_of(name: str) -> tuple[str | None, bool]:
    """Return the column of the survey that a name means, and whether that is doubtful.

    An error is ``<column>_error``; an abundance of an element is ``<element>_fe`` and so on, also
    where maury has no such label.
    """
    found, doubtful = _value_column(name)
    if found is not None:
        return found, doubtful
    for pattern in _ERRORS:
        match = pattern.match(name.strip())
        if match:
            found, doubtful = _value_column(match.group(1))
            if found is not None and found not in ("star_id", "ra", "dec", "epoch", "snr"):
                return f"{found}_error", doubtful
    return None, False


def _value_column(name: str) -> tuple[str | None, bool]:
    word = plain(name)
    for column, spellings in COLUMNS.items():
        if word == plain(column) or word in spellings:
            return column, word in DOUBTFUL
    match = _ABUNDANCE.match(name.strip())
    if match:
        return f"{match.group(1)}_{match.group(2)}".lower(), False
    return None, False


def symbol_of(name: str) -> str:
    """Return the symbol of an abundance, such as ``[Ti/Fe]`` of ``ti_fe``."""
    element, over = name.split("_")
    return f"[{element.capitalize()}/{over.capitalize()}]"
