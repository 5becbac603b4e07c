"""`maury drift`: whether a survey looks like what trained the model."""

from pathlib import Path
from typing import Annotated

import typer

from maury.cli import terminal
from maury.cli.common import ModelPath, Overwrite, SurveyOrToml, number


def drift(
    model: ModelPath,
    survey: SurveyOrToml,
    stars: Annotated[
        int, number("--stars", least=1, most="rows", help="Spectra to look at.")
    ] = 2000,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare a survey with the training sample of a model, before predicting it."""
    from maury.io.files import refuse_existing, writing
    from maury.model.directory import Model
    from maury.prediction.drift import drift
    from maury.prediction.labellers import open_labeller
    from maury.survey.opening import open_survey

    if json_file is not None:
        # Before the work, so that it is not lost to a name that is taken.
        refuse_existing(json_file, overwrite=overwrite)
    opened = Model.open(model)
    labeller = open_labeller(opened).with_theory
    found = drift(opened, open_survey(survey), n_star=stars, labeller=labeller)
    if json_file is not None:
        with writing(json_file, overwrite=overwrite) as partial:
            partial.write_text(found.to_json(), "utf-8")
    terminal.say(
        f"{found.n_star} spectra beside {found.n_training or 'the range of the'} training stars"
    )
    for line in found.findings or ("nothing differs",):
        terminal.say(f"  {line}")
    # Nothing found is no proof where the model cannot see: this is said in so many words.
    if found.unjudged:
        terminal.say(found.blindness)
    if found.unlike:
        terminal.say("labels of all its stars are doubtful: see 'maury adapt'")
