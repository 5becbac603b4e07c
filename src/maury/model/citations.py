"""What a model builds on, as keys of the bibliography."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maury.labels import references as bibliography
from maury.model.directory import Model

OWN = "maury"
_METHOD = "method:"


def keys_of_model(model: Model) -> tuple[str, ...]:
    """Return the keys of all that a model was made with, but for `maury` and its libraries."""
    return tuple(dict.fromkeys(key for key, _ in _model_uses(model) if key != OWN))


Use = tuple[str, str]


def _model_uses(model: Model) -> Iterator[Use]:
    name = str(model.network["name"])
    yield from _about(f"{_METHOD}{name}", f"the method {name}")
    key = str(model.provenance.get("bibtex_key", ""))
    if key in bibliography.entries():
        yield key, f"the method {name}"
    if "sky" in model.attachments:
        for topic in ("emulator", "simulator"):
            yield from _about(topic, "simulated stars that trained the model")
    if model.errors_calibrated:
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


def _about(topic: str, reason: str) -> Iterator[Use]:
    yield from ((key, reason) for key in bibliography.keys_about(topic))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
