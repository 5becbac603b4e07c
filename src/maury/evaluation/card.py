"""The card of a model: what it was made of, how good it is, where it ends, and what to cite.

`maury.train` writes it into the model directory as ``card.json`` and ``card.md``. It is no part of
the model: nothing is computed with it, and a model without one is whole.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from maury.errors import ConfigError, MauryError, ModelFileError
from maury.evaluation.audit_report import metadata_grounds
from maury.evaluation.card_text import markdown
from maury.evaluation.validation import compare_rows, held_out_rows, validate
from maury.io.config_files import parse_json
from maury.io.files import refuse_existing, writing
from maury.labels.flags import Flag
from maury.model.citations import keys_of_model
from maury.model.directory import Model
from maury.model.split import PARTS
from maury.prediction.predictor import Predictor
from maury.spectra.spectra import describe_grid
from maury.survey.labelled_sample import LabelledSample
from maury.survey.store import Survey

if TYPE_CHECKING:
    from maury.methods.registry import MethodNetwork
    from maury.model.inference import EnsembleNetwork

logger = logging.getLogger(__name__)
CARD_VERSION = 1
"""Raised when a key of the JSON changes its meaning; a card is made again, not migrated."""
JSON_FILE = "card.json"
TEXT_FILE = "card.md"
MAX_CARD_BYTES = 16 * 2**20
"""A card is text of some ten kB; a larger file is not one, and is not read into memory."""
_SYNTHESIS = ("sme", "synspec")
"""Methods that take minutes a star: their validation stars are measured only when asked for."""


@dataclass(frozen=True)
class ModelCard:
    """What a user should know of a model before its labels are used; plain JSON throughout.

    Attributes
    ----------
    name, checksum : str
        Of the model.
    method : str
        Preset or method.
    simulated : bool
        Whether the spectra of the training sample are simulated.
    labels : list of dict
        Name, symbol, unit, and the range among the training stars (`minimum`, `maximum`).
    inputs : dict
        Wavelength range, medium and number of pixels; observables with their ranges.
    data : dict
        The training survey as it describes itself: source, files and their checksums.
    split : dict
        Rule, use of the validation stars, warning; of each part its rows, stars and checksum.
    networks : dict
        Number trained and number kept.
    training : dict
        Settings, and rows left out by reason.
    calibration : dict
        Whether errors are calibrated, whether coverage is known, verdicts of the audit, and on
        which stars, inputs and comparison they stand (`verdicts_on`).
    metrics : list of dict
        Reports of `maury.evaluation.validation`, each of the stars that it names. Test stars are
        among them only if `maury validate` was run on them.
    limits : list of str
        Where the model ends.
    licence, citation : str
    bibtex_keys : list of str
        Of all to be cited (`maury cite`).
    versions : dict
        Of the programs that made it.
    card_version : int
    """

    name: str
    checksum: str
    method: str
    simulated: bool
    labels: list[dict[str, Any]]
    inputs: dict[str, Any]
    data: dict[str, Any]
    split: dict[str, Any]
    networks: dict[str, int]
    training: dict[str, Any]
    calibration: dict[str, Any]
    metrics: list[dict[str, Any]]
    limits: list[str]
    licence: str
    citation: str
    bibtex_keys: list[str]
    versions: dict[str, str]
    card_version: int = CARD_VERSION

    @classmethod
    def of(cls, model: Model, *, metrics: Sequence[Mapping[str, Any]] = ()) -> Self:
        """Say of a model what can be said without its survey."""
        origin = dict(model.provenance)
        survey = origin.get("survey")
        known = ("licence", "citation", "bibtex_key", "survey")
        return cls(
            name="" if model.path is None else model.path.name,
            checksum=model.checksum,
            method=str(model.network["name"]),
            simulated=model.simulated,
            labels=_labels(model),
            inputs=_inputs(model),
            data=dict(survey) if isinstance(survey, Mapping) else {},
            split=_split(model),
            networks={"trained": len(model.members), "kept": len(model.kept)},
            training=dict(model.training),
            calibration=_calibration(model),
            metrics=[dict(report) for report in metrics],
            limits=_limits(model),
            licence=str(origin.get("licence", "")),
            citation=model.citation,
            bibtex_keys=["maury", *keys_of_model(model)],
            versions={k: str(v) for k, v in origin.items() if k not in known and _is_text(v)},
        )

    def to_json(self) -> str:
        """Return strict JSON."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises
        ------
        ModelFileError
            If it is no card, or of another version.
        """
        try:
            content = parse_json(text)
        except ValueError as error:
            raise ModelFileError(f"the card of a model is not JSON: {error}") from error
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or set(content) != names:
            raise ModelFileError("this is no card of a model; make one with 'maury card'")
        if content["card_version"] != CARD_VERSION:
            raise ModelFileError(
                f"the card has version {content['card_version']!r}, this maury reads "
                f"{CARD_VERSION}; make it anew with 'maury card'"
            )
        return cls(**content)

    def to_markdown(self) -> str:
        """Return the card as text in Markdown."""
        return markdown(self)


def card_of(
    model: Model | Path | str,
    *,
    survey: Survey | Path | str | None = None,
    reports: Sequence[Path | str | Mapping[str, Any]] = (),
) -> ModelCard:
    """Return the card of a model: the one beside it, or one made of what can be known.

    Parameters
    ----------
    model : Model or path-like
        A card beside it is taken if it is of this very model.
    survey : Survey or path-like, optional
        The survey that trained it, whose validation stars are measured anew.
    reports : sequence
        Files of ``maury validate --json``, or their content. The figures of a report replace those
        of the same stars of the same survey.

    Raises
    ------
    ModelFileError
        If the model cannot be read.
    ConfigError
        If a report cannot be read, or is of another model.
    ColumnError, GridMismatch
        If the survey cannot be measured.
    """
    model = model if isinstance(model, Model) else Model.open(model)
    found = read_card(model)
    metrics = [] if found is None else found.metrics
    added = [_report(given, model) for given in reports]
    if survey is not None:
        added.append(_measured(model, survey))
    for report in added:
        same = (report["stars"], report["survey"])
        metrics = [one for one in metrics if (one["stars"], one["survey"]) != same] + [report]
    return replace(ModelCard.of(model), metrics=metrics)


def _measured(model: Model, survey: Survey | Path | str) -> dict[str, Any]:
    return validate(model, survey, split="validation", with_bounds=False).to_dict()


def figures_of(
    model: Model, sample: LabelledSample, network: "EnsembleNetwork | MethodNetwork"
) -> dict[str, Any]:
    """Measure the validation stars of a model that was trained just now.

    Parameters
    ----------
    model : Model
        Saved.
    sample : LabelledSample
        Labelled rows of the survey that trained it.
    network : EnsembleNetwork or MethodNetwork
        That of the model.

    Returns
    -------
    dict of str to Any
        The report of `maury validate` as plain JSON.
    """
    rows = held_out_rows(model, sample.survey, split="validation")
    batch, inputs = sample.batch(rows), sample.prepared(rows)
    table = Predictor(model, network=network).predict(batch, inputs)
    return compare_rows(
        model, sample.survey, rows, table, split="validation", with_bounds=False
    ).to_dict()


def read_card(model: Model) -> ModelCard | None:
    """Return the card beside a model; None if there is none, or it is of another model."""
    file = None if model.path is None else model.path / JSON_FILE
    # A link could make the reader show a file that is none of the model's business.
    if file is None or file.is_symlink() or not file.is_file():
        return None
    try:
        if file.stat().st_size > MAX_CARD_BYTES:
            raise ModelFileError(f"{file} is larger than {MAX_CARD_BYTES} bytes")
        card = ModelCard.from_json(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ModelFileError) as error:
        logger.warning("%s is not used: %s", file, error)
        return None
    # Figures of other weights are worse than none.
    if card.checksum != model.checksum:
        logger.warning("%s is of another model, and is not used", file)
        return None
    return card


def write_card(card: ModelCard, model: Path | str, *, overwrite: bool = False) -> None:
    """Write ``card.json`` and ``card.md`` into a model directory; the model does not change.

    Raises
    ------
    ModelFileError
        If there is no model.
    OutputExists
        If there is a card and `overwrite` is false.
    """
    folder = Path(model)
    if not (folder / "model.json").is_file():
        raise ModelFileError(f"{folder} is no model directory")
    contents = {JSON_FILE: card.to_json(), TEXT_FILE: card.to_markdown()}
    for name in contents:
        refuse_existing(folder / name, overwrite=overwrite)
    for name, text in contents.items():
        with writing(folder / name, overwrite=overwrite) as partial:
            partial.write_text(text, "utf-8")


def add_card(
    model: Model,
    measure: Callable[[Model], Mapping[str, Any]] | None = None,
    *,
    name: str | None = None,
) -> ModelCard:
    """Write the card of a model that was trained just now; what cannot be measured is left out.

    Parameters
    ----------
    model : Model
        Saved.
    measure : callable, optional
        Returns the figures of the validation stars (`figures_of`).
    name : str, optional
        That the directory of the model will have, if it has another one still.
    """
    assert model.path is not None, "a card is written beside a saved model"
    # Their fits would take hours here, where nobody asked for figures.
    if str(model.network["name"]) in _SYNTHESIS:
        measure = None
    try:
        card = card_of(model, reports=() if measure is None else [measure(model)])
    except (MauryError, ValueError, ArithmeticError) as error:
        # The model is made, and stays.
        logger.warning("the card of %s has no figures: %s", name or model.path, error)
        card = ModelCard.of(model)
    if name is not None:
        card = replace(card, name=name, metrics=[{**one, "model": name} for one in card.metrics])
    write_card(card, model.path, overwrite=True)
    return card


def _labels(model: Model) -> list[dict[str, Any]]:
    scaling = model.scaling.labels.to_json()
    return [
        {
            "name": label.name,
            "symbol": label.symbol,
            "unit": label.unit,
            "minimum": scaling["minimum"][number],
            "maximum": scaling["maximum"][number],
        }
        for number, label in enumerate(model.labels)
    ]


def _inputs(model: Model) -> dict[str, Any]:
    scaling = model.scaling.observables.to_json()
    ranges = zip(scaling["minimum"], scaling["maximum"], strict=True)
    return {
        "wavelengths": describe_grid(model.wave_aa, model.medium),
        "n_pixel": model.n_pixel,
        "medium": model.medium,
        "first_aa": float(model.wave_aa[0]),
        "last_aa": float(model.wave_aa[-1]),
        "observables": {
            name: list(ends)
            # As of the training stars: what lies outside is flagged, and a reader should see where.
            for name, ends in zip(model.preparation.observable_names, ranges, strict=True)
        },
    }


def _split(model: Model) -> dict[str, Any]:
    record = model.split
    parts = {
        name: {
            "rows": int(record.n_rows[name]),
            "stars": int(record.hashes[name].size),
            "sha256": record.checksums[name],
        }
        for name in PARTS
    }
    return {
        "rule": record.rule,
        "validation_use": record.validation_use,
        "warning": record.warning,
        **parts,
    }


def _calibration(model: Model) -> dict[str, Any]:
    verdicts: dict[str, Any] = {}
    on = ""
    if "audit" in model.attachments:
        about = model.attachments["audit"].metadata
        where = [str(about[name]) for name in ("stars", "survey") if about.get(name)]
        on = ", ".join(filter(None, (" of ".join(where), metadata_grounds(about))))
        audited = about.get("labels")
        if isinstance(audited, Mapping):
            verdicts = {
                name: one.get("verdict") for name, one in audited.items() if isinstance(one, dict)
            }
    return {
        "errors_calibrated": model.errors_calibrated,
        "coverage_known": "coverage" in model.attachments,
        "verdicts": verdicts,
        "verdicts_on": on,
    }


def _limits(model: Model) -> list[str]:
    """Return sentences about where the model ends."""
    about = _calibration(model)
    limits = [
        f"Labels beyond the ranges of the training stars are flagged {Flag.LABEL_OUTSIDE.name}, "
        f"observables beyond theirs {Flag.OBSERVABLE_OUTSIDE.name}."
    ]
    if model.simulated:
        limits.append(
            "The spectra of the training sample are SIMULATED: figures of merit measured on such "
            "spectra say how the method works, not how well it does on observed ones."
        )
    if model.theory_only:
        limits.append(
            f"Theory alone trained it, and no star of the sky: errors are {model.theory_only}. "
            "What theory gets wrong it gets wrong alike in all stars of a survey: the mean of many "
            "is no better known than that."
        )
    if not about["errors_calibrated"]:
        limits.append("Quoted errors are not calibrated; see how many residuals they hold.")
    if about["coverage_known"]:
        flags = (Flag.SPECTRUM_UNLIKE, Flag.LABELS_UNLIKE, Flag.RECONSTRUCTION_POOR)
        names = ", ".join(str(flag.name) for flag in flags)
        limits.append(f"Stars unlike those of the training sample are flagged: {names}.")
    elif "imported" in model.provenance:
        limits.append(
            "Its training spectra are not at hand: a spectrum is compared with simulated ones "
            f"alone (flag {Flag.SPECTRUM_UNLIKE.name}), and nothing is computed from its labels."
        )
    else:
        limits.append("It cannot tell whether a spectrum is unlike those of its training sample.")
    inferred = [name for name, verdict in about["verdicts"].items() if verdict == "inferred"]
    if inferred:
        limits.append(
            "Inferred from photometry or other labels rather than measured: "
            f"{', '.join(inferred)}. Of stars with other inputs 'maury audit' may say otherwise."
        )
    if model.split.warning:
        limits.append(f"Split: {model.split.warning}.")
    return limits


def _report(given: Path | str | Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Return a report of `maury validate`, after a look at whose it is."""
    if isinstance(given, Mapping):
        content, where = dict(given), "the report"
    else:
        where = str(given)
        try:
            content = parse_json(Path(given).read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the report {where}: {error}") from error
    needed = {"statistics", "stars", "survey", "simulated", "n_row", "n_star"}
    if not isinstance(content, dict) or not needed <= set(content):
        raise ConfigError(f"{where} is no report of 'maury validate --json'")
    # Names of models repeat; their checksums do not.
    if content.get("model_checksum") != model.checksum:
        raise ConfigError(
            f"{where} is a report of another model, or of an older maury; run 'maury validate' anew"
        )
    return content


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float)
