"""What to cite: the BibTeX entries of all that a model, a catalogue or a survey was made with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maury import bibliography, surveys
from maury.bibliography import Entry
from maury.catalogue import Catalogue
from maury.errors import ConfigError
from maury.model import Model
from maury.naming import suggestion
from maury.survey import Survey

OWN = "maury"
"""Key of `maury` itself."""
LIBRARIES = ("numpy", "scipy", "astropy", "xarray")
"""What everything is computed and stored with."""
NETWORK_LIBRARIES = ("torch",)
_METHOD = "method:"


@dataclass(frozen=True)
class Citation:
    """One entry, and why it is cited."""

    entry: Entry
    reason: str

    def to_bibtex(self) -> str:
        """Return BibTeX, the reason as a line before the entry."""
        return f"% {self.reason}\n{self.entry.to_bibtex()}"


def method_names() -> tuple[str, ...]:
    """Return the names of methods and presets that the bibliography knows."""
    topics = {topic for entry in bibliography.entries().values() for topic in entry.topics}
    return tuple(sorted(t.removeprefix(_METHOD) for t in topics if t.startswith(_METHOD)))


def cite(
    what: Model | Catalogue | Survey | Path | str | None = None,
) -> tuple[Citation, ...]:
    """Return what to cite.

    Parameters
    ----------
    what : Model, Catalogue, Survey, path-like or str, optional
        A model, a catalogue or a survey, or its path; the name of a method, a preset or a recipe of
        `maury.surveys`. Without it: `maury` and its libraries.

    Raises
    ------
    ConfigError
        If it is neither a path nor a known name.
    UnknownName
        If a key that it cites is not in the bibliography.
    """
    return _citations(_used(what))


def to_bibtex(citations: Iterable[Citation]) -> str:
    """Return BibTeX of all citations."""
    return "\n".join(citation.to_bibtex() for citation in citations)


def keys_of_model(model: Model) -> tuple[str, ...]:
    """Return the keys of all that a model was made with, but for `maury` and its libraries."""
    return tuple(dict.fromkeys(key for key, _ in _model_uses(model) if key != OWN))


Use = tuple[str, str]
"""A key, and why it is cited."""


def _citations(uses: Iterable[Use]) -> tuple[Citation, ...]:
    reasons: dict[str, list[str]] = {}
    for key, reason in uses:
        listed = reasons.setdefault(key, [])
        if reason not in listed:
            listed.append(reason)
    entries = bibliography.select(reasons)
    return tuple(Citation(entry, "; ".join(reasons[entry.key])) for entry in entries)


def _used(what: Model | Catalogue | Survey | Path | str | None) -> Iterator[Use]:
    yield OWN, "maury itself"
    yield from _libraries(LIBRARIES)
    if what is None:
        yield from _libraries((*NETWORK_LIBRARIES, "matplotlib"))
    elif isinstance(what, str) and what in method_names():
        yield from _about(f"{_METHOD}{what}", f"the method {what}")
    elif isinstance(what, str) and what in surveys.names():
        yield from _recipe(what)
    elif isinstance(what, str) and what == OWN:
        pass
    else:
        yield from _of_data(what if not isinstance(what, Path | str) else _opened(what))


def _opened(what: Path | str) -> Model | Catalogue | Survey:
    path = Path(what)
    if (path / "model.json").is_file():
        return Model.open(path)
    if path.is_file() or path.suffix.lower() == ".dataset":
        return Catalogue.read(path)
    if path.is_dir():
        return Survey.open(path)
    known = (*method_names(), *surveys.names())
    raise ConfigError(
        f"{what} is no model, catalogue or survey, and no method or recipe"
        f"{suggestion(str(what), known)} (known: {', '.join(known)})"
    )


def _of_data(data: Model | Catalogue | Survey) -> Iterator[Use]:
    if isinstance(data, Model):
        yield from _model_uses(data)
        if not data.is_method:
            yield from _libraries(NETWORK_LIBRARIES)
    elif isinstance(data, Survey):
        yield from _survey_uses(data.provenance, simulated=data.simulated)
    else:
        yield from _catalogue_uses(data)


def _catalogue_uses(catalogue: Catalogue) -> Iterator[Use]:
    model, survey = (_mapping(catalogue.metadata.get(name)) for name in ("model", "survey"))
    preset = str(model.get("preset", ""))
    yield from _about(f"{_METHOD}{preset}", f"the method {preset}")
    yield from ((key, "the model") for key in _known_keys(model.get("cites")))
    provenance = _mapping(survey.get("provenance"))
    yield from _survey_uses(provenance, simulated=catalogue.simulated)
    if model.get("members"):
        yield from _libraries(NETWORK_LIBRARIES)


def _model_uses(model: Model) -> Iterator[Use]:
    name = str(model.network["name"])
    yield from _about(f"{_METHOD}{name}", f"the method {name}")
    key = str(model.provenance.get("bibtex_key", ""))
    if key in bibliography.entries():
        yield key, f"the method {name}"
    if "sky" in model.attachments:
        for topic in ("emulator", "simulator"):
            yield from _about(topic, "simulated stars that trained the model")
    if "calibration" in model.attachments:
        yield from _about("calibration", "calibration of errors")
    prepared = list(model.preparation.to_json().get("observables", []))
    for setting, topic in (("zero_point", "zero_point"), ("deredden", "extinction")):
        if any(step.get(setting) for step in prepared):
            yield from _about(topic, topic.replace("_", " "))
    # Simulated spectra with real labels are called simulated; a survey says which it is.
    provenance = _mapping(model.provenance.get("survey"))
    yield from _survey_uses(provenance, simulated=False)


def _survey_uses(provenance: Mapping[str, Any], *, simulated: bool) -> Iterator[Use]:
    if simulated or str(provenance.get("origin", "")).startswith("simulated"):
        for topic in ("emulator", "simulator"):
            yield from _about(topic, "simulated spectra")
    for name in _values_of(provenance, "reader"):
        yield from _about(f"reader:{name}", "the survey")
    for given in _values_of(provenance, "citation"):
        yield from ((key, "the survey") for key in _known_keys(given))


def _values_of(tree: Any, name: str) -> Iterator[Any]:
    """Yield all values of a name, at any depth."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key == name:
                yield value
            else:
                yield from _values_of(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from _values_of(value, name)


def _known_keys(given: Any) -> Iterator[str]:
    keys: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    yield from (key for key in keys if key in bibliography.entries())


def _recipe(name: str) -> Iterator[Use]:
    yield from ((key, f"the survey {name}") for key in surveys.load(name).citation)


def _libraries(names: Iterable[str]) -> Iterator[Use]:
    for name in names:
        yield from _about(f"library:{name}", f"the library {name}")


def _about(topic: str, reason: str) -> Iterator[Use]:
    yield from ((key, reason) for key in bibliography.keys_about(topic))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
