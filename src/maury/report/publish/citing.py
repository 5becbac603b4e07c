"""What to cite: the BibTeX entries of all that a model, a catalogue or a survey was made with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from maury.errors import ConfigError, suggestion
from maury.labels import references as bibliography
from maury.labels.references import Entry
from maury.model.citations import (
    _METHOD,
    OWN,
    Use,
    _about,
    _known_keys,
    _mapping,
    _model_uses,
    _survey_uses,
)
from maury.model.directory import Model
from maury.prediction.catalogue import Catalogue
from maury.prediction.stored import StoredCatalogue
from maury.survey import archives as surveys
from maury.survey.store import Survey

"""Key of `maury` itself."""
LIBRARIES = ("numpy", "scipy", "astropy", "xarray")
"""What everything is computed and stored with."""
NETWORK_LIBRARIES = ("torch",)


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
        `maury.survey.archives`. Without it: `maury` and its libraries.

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


def _opened(what: Path | str) -> Model | StoredCatalogue | Survey:
    path = Path(what)
    if (path / "model.json").is_file():
        return Model.open(path)
    if path.is_file() or path.suffix.lower() == ".dataset":
        return Catalogue.open(path)
    if path.is_dir():
        return Survey.open(path)
    known = (*method_names(), *surveys.names())
    raise ConfigError(
        f"{what} is no model, catalogue or survey, and no method or recipe"
        f"{suggestion(str(what), known)} (known: {', '.join(known)})"
    )


def _of_data(data: Model | Catalogue | StoredCatalogue | Survey) -> Iterator[Use]:
    if isinstance(data, Model):
        yield from _model_uses(data)
        if not data.is_method:
            yield from _libraries(NETWORK_LIBRARIES)
    elif isinstance(data, Survey):
        yield from _survey_uses(data.provenance, simulated=data.simulated)
    else:
        yield from _catalogue_uses(data)


def _catalogue_uses(catalogue: Catalogue | StoredCatalogue) -> Iterator[Use]:
    model, survey = (_mapping(catalogue.metadata.get(name)) for name in ("model", "survey"))
    preset = str(model.get("preset", ""))
    yield from _about(f"{_METHOD}{preset}", f"the method {preset}")
    yield from ((key, "the model") for key in _known_keys(model.get("cites")))
    provenance = _mapping(survey.get("provenance"))
    yield from _survey_uses(provenance, simulated=catalogue.simulated)
    if model.get("members"):
        yield from _libraries(NETWORK_LIBRARIES)


def _recipe(name: str) -> Iterator[Use]:
    yield from ((key, f"the survey {name}") for key in surveys.load(name).citation)


def _libraries(names: Iterable[str]) -> Iterator[Use]:
    for name in names:
        yield from _about(f"library:{name}", f"the library {name}")
