"""`maury joint`: one model for several surveys."""

from pathlib import Path
from typing import Annotated

import typer

from maury.cli import terminal
from maury.cli.common import Overwrite, Processes, Seed, Settings, number
from maury.errors import ConfigError

app = typer.Typer(help="One model for several surveys: train it, add a survey, predict, validate.")

Named = Annotated[
    list[str],
    typer.Argument(metavar="NAME=SURVEY...", help="Surveys, each with the name that it has here."),
]
JointPath = Annotated[Path, typer.Argument(metavar="JOINT", help="Joint model.")]
JointOut = Annotated[
    Path, typer.Argument(metavar="OUT", help="Directory of the joint model to write.")
]


@app.command()
def train(
    out: JointOut,
    surveys: Named,
    members: Annotated[
        int | None,
        number("--members", least=1, most="members", help="Networks (default 4)."),
    ] = None,
    config: Settings = None,
    seed: Seed = 0,
    processes: Processes = None,
    overwrite: Overwrite = False,
) -> None:
    """Train one model for several surveys on their labelled stars.

    Labels are put on the scale of the first survey. A run that was killed goes on when the same
    command is given again.
    """
    from maury.training.joint import train_joint

    with terminal.member_bars() as (progress, stage):
        model = train_joint(
            _named(surveys),
            out,
            members=members,
            seed=seed,
            config=config,
            n_processes=processes,
            progress=progress,
            stage=stage,
            overwrite=overwrite,
        )
    terminal.say(model)
    terminal.say(f"next: maury joint predict {out} {' '.join(surveys)} --out labels.fits")


@app.command()
def add(
    joint: JointPath,
    out: JointOut,
    survey: Annotated[
        str, typer.Argument(metavar="NAME=SURVEY", help="New survey, some stars with labels.")
    ],
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NAME=SURVEY",
            help="Survey of the model that calibrates stars which it and the new one saw; may be "
            "repeated.",
        ),
    ] = None,
    config: Settings = None,
    seed: Seed = 0,
    processes: Processes = None,
    overwrite: Overwrite = False,
) -> None:
    """Add a survey to a joint model; its answers to the surveys that it knows stay as they are."""
    from maury.training.joint import add_survey

    ((name, path),) = _named([survey]).items()
    with terminal.member_bars() as (progress, stage):
        model = add_survey(
            joint,
            name,
            path,
            out,
            others=dict(_named(others or [])),
            seed=seed,
            config=config,
            n_processes=processes,
            progress=progress,
            stage=stage,
            overwrite=overwrite,
        )
    terminal.say(model)


@app.command()
def predict(
    joint: JointPath,
    surveys: Named,
    out: Annotated[Path, typer.Option("--out", help="Catalogue to write, a row a star.")],
    overwrite: Overwrite = False,
) -> None:
    """Predict the stars of one or more surveys of a joint model: one catalogue, a row a star."""
    from maury.prediction.joint_catalogue import predict_joint

    with terminal.bar("Predicting") as update:
        found = predict_joint(joint, _named(surveys), out, overwrite=overwrite, progress=update)
    several = int((found.columns["n_spectra"] > 1).sum())
    terminal.say(f"{out}: {found.star.size} stars, {several} of them from several spectra")


@app.command()
def validate(
    joint: JointPath,
    surveys: Named,
    part: Annotated[str, typer.Option("--part", help="test, validation or train.")] = "test",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare the answers to held-out stars with their labels: each survey alone, and together."""
    from maury.evaluation.joint_validation import validate_joint
    from maury.io.files import refuse_existing, writing

    if json_file is not None:
        refuse_existing(json_file, overwrite=overwrite)
    found = validate_joint(joint, _named(surveys), part=part)
    terminal.show_joint(found)
    if json_file is not None:
        with writing(json_file, overwrite=overwrite) as partial:
            partial.write_text(found.to_json(), "utf-8")


def _named(given: list[str]) -> dict[str, Path | str]:
    """Split arguments of the form name=survey."""
    found: dict[str, Path | str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(
                f"a survey is given as NAME=SURVEY, such as rave=rave.zarr, got {text!r}"
            )
        if name in found:
            raise ConfigError(f"the name {name!r} stands twice; give each survey another one")
        found[name] = path
    return found
