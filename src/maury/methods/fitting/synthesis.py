"""Synthesis on demand as a forward model: adapters of synthesis codes, differentiated in steps."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from maury.errors import ConfigError, InputFileError, MauryError, MissingExtra
from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.methods.fitting.atmospheres import Atmosphere, AtmosphereNodes, read_lines
from maury.methods.protocols import Evaluation

__all__ = [
    "CommandSynthesiser",
    "PySmeSynthesiser",
    "Synthesiser",
    "SynthesiserModel",
    "composition",
]


STEPS: dict[str, float] = {"teff": 20.0, "logg": 0.05, "vmic": 0.05, "vmac": 0.3, "vsini": 0.3}
"""Steps of derivatives, of about the error of a spectrum of S/N 50: larger steps meet curvature,
smaller ones the single precision in which codes write their spectra."""
_STEP = 0.02
"""Step of all other labels, dex; chosen like `STEPS`."""
_SECONDS = 600
"""Longest wait for one spectrum; chosen: minutes are usual for wide ranges with molecules."""
_SOLAR_VMIC = 1.0
"""Microturbulence, km/s, where it is no label: as usually taken for the Sun."""
_SOLAR = "asplund2009"
_SYNTHESISED = ("teff", "logg", "m_h", "fe_h", "alpha_m", "vmic", "vmac", "vsini")


@runtime_checkable
class Synthesiser(Protocol):
    """A synthesis code: one spectrum at a time, normalised, at the resolution of the survey."""

    def synthesise(self, labels: Mapping[str, float], wave_aa: Float64Array) -> Float64Array:
        """Flux (n_pixel,) at wavelengths (n_pixel,), angstrom in air."""


@dataclass(frozen=True, eq=False)
class SynthesiserModel:
    """A `ForwardModel` that synthesises every spectrum, and one more for each derivative.

    Attributes
    ----------
    synthesiser : Synthesiser
    label_names : tuple of str
    bounds : (n_label, 2) float64
    wave_aa : (n_pixel,) float64
    """

    synthesiser: Synthesiser
    label_names: tuple[str, ...]
    bounds: Float64Array
    wave_aa: Float64Array

    @cached_property
    def _steps(self) -> Float64Array:
        return np.array([STEPS.get(name, _STEP) for name in self.label_names])

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux and derivatives; see `maury.methods.protocols.ForwardModel`."""
        flux = self._flux(labels)
        if not jacobian:
            return Evaluation(flux, None)
        slopes = []
        for k, step in enumerate(self._steps):
            # Steps point inwards at the bounds.
            sign = np.where(labels[:, k] + step > self.bounds[k, 1], -1.0, 1.0)
            moved = labels.copy()
            moved[:, k] += sign * step
            rise = self._flux(moved) - flux
            slopes.append(rise / (sign * step)[:, None].astype(np.float32))
        return Evaluation(flux, np.stack(slopes, axis=1).astype(np.float32))

    def variance(self, labels: Float64Array) -> Float32Array:
        """Return zero: the errors of a synthesis are not known."""
        del labels
        return np.zeros(self.wave_aa.size, dtype=np.float32)

    def _flux(self, labels: Float64Array) -> Float32Array:
        out = np.empty((len(labels), self.wave_aa.size), dtype=np.float32)
        for row, values in enumerate(labels):
            named = dict(zip(self.label_names, (float(v) for v in values), strict=True))
            out[row] = self.synthesiser.synthesise(named, self.wave_aa)
        return out


@dataclass(frozen=True)
class CommandSynthesiser:
    """A synthesis code that is run as a command, such as a script around Synspec.

    The command writes two columns, wavelength (angstrom in air) and normalised flux, to its
    standard output. It is run without a shell.

    Attributes
    ----------
    command : str
        With ``{teff}``, ``{logg}`` and so on where the labels go.

    Examples
    --------
    >>> CommandSynthesiser("run_synspec.py {teff} {logg} {m_h}")  # doctest: +SKIP
    """

    command: str

    def synthesise(self, labels: Mapping[str, float], wave_aa: Float64Array) -> Float64Array:
        """Run the command; see `Synthesiser`.

        Raises
        ------
        ConfigError
            If the command cannot be run, or names a label that is not there.
        InputFileError
            If what it writes is no spectrum, or does not reach over the pixels.
        """
        try:
            # Split before values go in, and run without a shell: no value can become a command.
            words = [word.format(**labels) for word in shlex.split(self.command)]
            done = subprocess.run(words, capture_output=True, timeout=_SECONDS, check=True)
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(f"the command {self.command!r} is wrong: {error}") from error
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigError(f"cannot run {self.command!r}: {error}") from error
        try:
            table = np.loadtxt(done.stdout.decode("ascii").splitlines(), ndmin=2)
        except (ValueError, UnicodeDecodeError) as error:
            raise InputFileError(f"{self.command!r} wrote no table: {error}") from error
        return on_pixels(table, wave_aa, self.command)


def on_pixels(table: Float64Array, wave_aa: Float64Array, origin: str) -> Float64Array:
    """Interpolate a table of wavelength and flux (n, 2) to pixels; raise if it is too short."""
    fine = table.shape[1] >= 2 and len(table) > 1 and bool(np.all(np.diff(table[:, 0]) > 0))
    if not fine or table[0, 0] > wave_aa[0] or table[-1, 0] < wave_aa[-1]:
        raise InputFileError(
            f"{origin} gave no spectrum of {wave_aa[0]:.1f}-{wave_aa[-1]:.1f} angstrom in "
            "increasing order"
        )
    return np.interp(wave_aa, table[:, 0], table[:, 1])


@dataclass(frozen=True, eq=False)
class PySmeSynthesiser:
    """Spectroscopy Made Easy (Valenti & Piskunov 1996; Wehrhahn et al. 2023), through PySME.

    Attributes
    ----------
    line_list : Path
        Lines in the format of VALD, or CSV or ECSV with
        `maury.methods.fitting.atmospheres.LINE_COLUMNS`.
    atmosphere : str
        Grid of model atmospheres that PySME finds by name, or the path of an NPZ file for
        `maury.methods.fitting.atmospheres.AtmosphereNodes`.
    resolving_power : float
        Of the survey.

    Raises
    ------
    MissingExtra
        If PySME is not installed.
    InputFileError
        If the line list cannot be read.
    """

    line_list: Path
    atmosphere: str
    resolving_power: float

    @cached_property
    def _lines(self) -> Any:
        if self.line_list.suffix in (".csv", ".ecsv"):
            return _line_list(read_lines(self.line_list))
        vald = _pysme("linelist.vald")
        try:
            return vald.ValdFile(os.fspath(self.line_list))
        except Exception as error:
            raise InputFileError(f"cannot read the line list {self.line_list}: {error}") from error

    def _abundances(self, m_h: float, offsets: Mapping[str, float]) -> Any:
        """Solar abundances scaled by `m_h`, and offsets [X/M] of some elements.

        PySME reads an abundance with [M/H] and writes it without, so that adding to one in place
        would add [M/H] twice; at [M/H] = 0 the two are the same.
        """
        kind = _pysme("abund").Abund
        solar, out = kind(0.0, _SOLAR), kind(m_h, _SOLAR)
        unknown = [element for element in offsets if element not in out.elem]
        if unknown:
            raise ConfigError(f"PySME knows no element {', '.join(unknown)}")
        out.update_pattern({element: solar[element] + x for element, x in offsets.items()})
        return out

    @cached_property
    def _nodes(self) -> AtmosphereNodes | None:
        path = Path(self.atmosphere)
        return AtmosphereNodes.read(path) if path.suffix == ".npz" else None

    def synthesise(self, labels: Mapping[str, float], wave_aa: Float64Array) -> Float64Array:
        """Synthesise with PySME; see `Synthesiser`.

        Labels are ``teff``, ``logg``, ``vmic``, ``vmac``, ``vsini`` (km/s), and those of
        `composition`.
        """
        sme = _pysme("sme").SME_Structure()
        sme.teff, sme.logg = labels["teff"], labels["logg"]
        sme.monh = labels.get("m_h", 0.0)
        sme.vmic = labels.get("vmic", _SOLAR_VMIC)
        sme.vmac, sme.vsini = labels.get("vmac", 0.0), labels.get("vsini", 0.0)
        sme.abund = self._abundances(sme.monh, composition(labels))
        sme.linelist = self._lines
        if self._nodes is None:
            sme.atmo.source, sme.atmo.method = self.atmosphere, "grid"
        else:
            _embed(sme, self._nodes.at(sme.teff, sme.logg, sme.monh))
        sme.wave = np.asarray(wave_aa)
        sme.iptype, sme.ipres = "gauss", self.resolving_power
        # The fit has a velocity and a continuum of its own.
        sme.cscale_flag = sme.vrad_flag = "none"
        sme.normalize_by_continuum = True
        try:
            done = _pysme("synthesize").synthesize_spectrum(sme)
        except MauryError:
            raise
        except Exception as error:
            raise ConfigError(f"PySME cannot synthesise {dict(labels)}: {error}") from error
        return np.asarray(done.synth[0], dtype=np.float64)


def composition(labels: Mapping[str, float]) -> dict[str, float]:
    """Logarithmic abundances of elements relative to the Sun and to all metals, [X/M].

    As of the emulator (`maury.simulation.quantities`): iron and chromium follow ``fe_h``,
    oxygen, sulphur, calcium and titanium ``m_h + alpha_m``, as do magnesium and silicon that have
    no label of their own, and an element with a label ``<element>_fe`` follows iron by it.

    Raises
    ------
    ConfigError
        If a label is none of these, nor ``teff``, ``logg``, ``vmic``, ``vmac`` or ``vsini``.
    """
    metals = labels.get("m_h", 0.0)
    iron = labels.get("fe_h", metals) - metals
    out = dict.fromkeys(("Fe", "Cr", "Al", "Ni"), iron) if "fe_h" in labels else {}
    if "alpha_m" in labels:
        out |= dict.fromkeys(("O", "Mg", "Si", "S", "Ca", "Ti"), labels["alpha_m"])
    unknown = []
    for name, value in labels.items():
        element, _, reference = name.partition("_")
        if reference == "fe":
            # [X/M] = [X/Fe] + [Fe/M].
            out[element.capitalize()] = iron + value
        elif name not in _SYNTHESISED:
            unknown.append(name)
    if unknown:
        raise ConfigError(
            f"a synthesis takes {', '.join(_SYNTHESISED)} and abundances such as mg_fe, not "
            f"{', '.join(unknown)}"
        )
    return out


def _line_list(columns: Mapping[str, AnyArray]) -> Any:
    """Lines as PySME takes them."""
    from importlib import import_module

    frame = import_module("pandas").DataFrame(
        {
            "species": columns["species"],
            "wlcent": columns["wavelength_aa"],
            "excit": columns["excitation_ev"],
            "gflog": columns["log_gf"],
            "gamrad": columns["log_gamma_radiative"],
            "gamqst": columns["log_gamma_stark"],
            "gamvw": columns["van_der_waals"],
        }
    )
    return _pysme("linelist.linelist").LineList(frame, medium="air")


def _embed(sme: Any, model: Atmosphere) -> None:
    """Give PySME one model atmosphere instead of a grid."""
    atmo = sme.atmo
    atmo.method, atmo.source, atmo.geom = "embedded", "nodes", "PP"
    atmo.depth = atmo.interp = "RHOX"
    atmo.teff, atmo.logg, atmo.vturb = sme.teff, sme.logg, sme.vmic
    atmo.abund = sme.abund
    atmo.tau, atmo.temp, atmo.rhox = model.tau5000, model.temperature, model.mass_column
    atmo.rho, atmo.xna, atmo.xne = model.density, model.atoms, model.electrons


def _pysme(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"pysme.{module}")
    except ImportError as error:
        raise MissingExtra(
            "the method sme needs PySME: pip install 'maury[sme]', in an environment of its own "
            "if it asks for an older astropy"
        ) from error
