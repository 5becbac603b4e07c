"""All settings of a training run, from TOML, a mapping or keywords."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from maury.errors import ConfigError, suggestion
from maury.io.config_files import read_toml
from maury.model.engines.training_kernels import require_trainable
from maury.model.networks.published import PRESETS, DefaultConfig, NetworkConfig, parse_settings
from maury.model.split import SplitConfig
from maury.simulation.conditions import survey_conditions
from maury.spectra.preparation import Preparation
from maury.survey.store import Survey
from maury.training.member import TrainingConfig
from maury.training.simulated import LEARNT_STEPS, SimulatedTraining
from maury.training.theory_choice import TheoryChoice, choose_theory

DEFAULT_PRESET = DefaultConfig.name


class ChoiceConfig(BaseModel):
    """How many members are trained, and which are kept.

    Attributes
    ----------
    members : int
        Networks to train.
    percentile : float
        Members whose validation loss is at or below this percentile of all are kept; 80 as in
        Guiglion et al. (2020), who took the last loss on the test stars instead of the least
        loss on validation stars.
    keep_at_least : int
        Best members that are kept in any case, so that there is a spread to quote.
    labels : tuple of str
        Labels to learn; empty means all that the survey has values of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: int = Field(default=4, ge=1, le=1000)
    percentile: float = Field(default=80.0, gt=0.0, le=100.0)
    keep_at_least: int = Field(default=2, ge=1)
    labels: tuple[str, ...] = ()


class EnsembleConfig(BaseModel):
    """All settings of a training run; a TOML file has one section for each attribute.

    Attributes
    ----------
    network : NetworkConfig
        Section ``[network]``; its key ``preset`` names the architecture.
    training : TrainingConfig or SimulatedTraining
        The latter for the preset ``maury``. Defaults are those published for the preset.
    preparation : Preparation
        Steps from the survey to the networks' inputs.
    split : SplitConfig
        Training, validation and test stars.
    ensemble : ChoiceConfig
        Number and choice of members.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: SerializeAsAny[NetworkConfig]
    training: TrainingConfig | SimulatedTraining
    preparation: Preparation
    split: SplitConfig
    ensemble: ChoiceConfig

    @model_validator(mode="before")
    @classmethod
    def _sections(cls, data: Any) -> Any:
        """Read each section by its own class and report what is wrong in all of them at once."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"settings must be a mapping of sections, got {type(data).__name__}")
        problems = [
            f"there is no section [{name}]{suggestion(name, cls.model_fields)} "
            f"(known: {', '.join(cls.model_fields)})"
            for name in data
            if name not in cls.model_fields
        ]
        sections = {name: data.get(name, {}) for name in cls.model_fields}
        for name, section in sections.items():
            if not isinstance(section, Mapping | BaseModel):
                problems.append(f"[{name}] must be a section of keys, got {section!r}")
                sections[name] = {}
        network = _parse_network(sections["network"], problems)
        parsed: dict[str, Any] = {"network": network}
        for name, kind in _SECTIONS.items():
            section = sections[name]
            if isinstance(section, BaseModel):
                parsed[name] = section
                continue
            options = {**_defaults(network, name), **section}
            if name == "training" and network is not None and network.simulates:
                kind = SimulatedTraining
            parsed[name] = parse_settings(kind, options, name, problems)
        if problems:
            raise ConfigError("the settings are wrong:\n  " + "\n  ".join(problems))
        training = parsed["training"]
        if isinstance(training, TrainingConfig) and training.engine == "compiled":
            require_trainable(parsed["network"])
        return parsed

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a TOML file.

        Raises
        ------
        ConfigError
            If the file cannot be read, or keys or values are wrong; all of them are listed.
        """
        return cls.model_validate(read_toml(path, what="settings"))

    def seen_in(self, survey: Survey, *, theory: str | None = None) -> Self:
        """Return the same settings with what a survey says of its noise and resolution.

        What the settings state themselves stays.

        Parameters
        ----------
        survey : Survey
        theory : {"emulator", "learnt"}, optional
            What stars are simulated with; else `theory_of` decides.

        Raises
        ------
        ConfigError
            If stars are simulated, and the resolving power is not known.
        """
        preparation = self.preparation.seen_in(survey.noise_correlation)
        settings = self.model_copy(update={"preparation": preparation})
        training = settings.training
        if not isinstance(training, SimulatedTraining):
            return settings
        theory = theory or self.theory_of(survey).name
        observing = survey_conditions(training.observing, survey, preparation, theory=theory)
        update: dict[str, Any] = {"observing": observing, "theory": theory}
        if theory == "learnt" and "steps" not in training.model_fields_set:
            update["steps"] = LEARNT_STEPS
        seen = training.model_copy(update=update)
        return settings.model_copy(update={"training": seen})

    def theory_of(self, survey: Survey) -> TheoryChoice:
        """Return which theory the stars of a survey are simulated with, and why.

        Raises
        ------
        ConfigError
            If the settings ask for one that does not know the labels.
        """
        training = self.training
        names = self.ensemble.labels or survey.label_names
        if not isinstance(training, SimulatedTraining):
            return choose_theory("auto", survey, self.preparation, names)
        stated = "resolving_power" in training.observing.model_fields_set
        return choose_theory(
            training.theory,
            survey,
            self.preparation,
            names,
            synthetic=training.synthetic,
            power_known=stated or survey.resolving_power is not None,
        )

    def stated(self) -> dict[str, Any]:
        """Return a plain mapping as `to_json`, of training without what it left at its default."""
        training = self.training.model_dump(mode="json", exclude_unset=True)
        return self.to_json() | {"training": training}

    def to_json(self) -> dict[str, Any]:
        """Return a plain mapping that `model_validate` reads."""
        return {
            "network": {"preset": self.network.name, **self.network.model_dump(mode="json")},
            "training": self.training.model_dump(mode="json"),
            "preparation": self.preparation.to_json(),
            "split": self.split.model_dump(mode="json"),
            "ensemble": self.ensemble.model_dump(mode="json"),
        }


_SECTIONS: dict[str, type[BaseModel]] = {
    "training": TrainingConfig,
    "preparation": Preparation,
    "split": SplitConfig,
    "ensemble": ChoiceConfig,
}


def _defaults(network: NetworkConfig | None, section: str) -> dict[str, Any]:
    return dict(getattr(network, f"{section}_defaults", {}))


def _parse_network(section: Any, problems: list[str]) -> NetworkConfig | None:
    if isinstance(section, NetworkConfig):
        return section
    options = dict(section)
    name = options.pop("preset", DEFAULT_PRESET)
    if not isinstance(name, str) or name not in PRESETS:
        hint = suggestion(str(name), PRESETS)
        problems.append(f"[network] unknown preset {name!r}{hint} (known: {', '.join(PRESETS)})")
        return None
    return parse_settings(PRESETS[name], options, "network", problems)


def resolve(
    config: EnsembleConfig | Mapping[str, Any] | Path | str | None,
    *,
    preset: str | None,
    members: int | None,
    split: str | None,
) -> EnsembleConfig:
    """Read settings from a file, a mapping or defaults, with some of them replaced.

    Parameters
    ----------
    config : EnsembleConfig, mapping or path of a TOML file, optional
        All settings.
    preset, members, split
        In place of those of `config`, unless None. With another preset than it names, the options
        of the network fall back to its published ones, and so do the training and the preparation
        of an `EnsembleConfig`.

    Raises
    ------
    ConfigError
        If something is wrong; everything that is, is listed.
    """
    if isinstance(config, Path | str):
        # As it is written, not as it was completed: what it leaves open is for the survey to say.
        config = read_toml(config, what="settings")
    given: dict[str, Any] = (
        config.stated() if isinstance(config, EnsembleConfig) else dict(config or {})
    )
    network = dict(given.get("network", {}))
    if preset is not None and network.get("preset") != preset:
        # Options that name no preset are meant for this one.
        options = {} if "preset" in network else network
        given |= {"network": {**options, "preset": preset}}
        if isinstance(config, EnsembleConfig):
            given = {name: given[name] for name in ("network", "split", "ensemble")}
    if members is not None:
        given["ensemble"] = {**given.get("ensemble", {}), "members": members}
    if split is not None:
        given["split"] = {**given.get("split", {}), "rule": split}
    return EnsembleConfig.model_validate(given)
