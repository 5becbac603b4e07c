"""The command line: each command is one call of the library, with a progress bar and a summary."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from maury import terminal
from maury.commands import build as build_command
from maury.commands import crossmatch as crossmatch_command
from maury.commands import drift as drift_command
from maury.commands import fetch as fetch_command
from maury.commands import publish as publish_commands
from maury.commands import surveys as surveys_command
from maury.commands import transfer as transfer_command

app = typer.Typer(
    name="maury",
    help="Stellar labels that can be trusted, from spectra, photometry and astrometry.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ingest_app = typer.Typer(
    cls=surveys_command.IngestGroup,
    help="Read files of spectra and tables into a survey store.",
    epilog="For a public survey give its name: maury ingest rave-dr6 PATH OUT.zarr.",
)
app.add_typer(ingest_app, name="ingest", no_args_is_help=True)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists at the output.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
SurveyPath = Annotated[Path, typer.Argument(metavar="SURVEY", help="Survey store (.zarr).")]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes on this machine, or workers to wait for."),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Work on a Dask cluster: address or file of its scheduler, or 'local'.",
    ),
]
StorePath = Annotated[Path, typer.Argument(metavar="OUT.zarr", help="Survey store to write.")]


def main() -> None:
    """Run the command line; an error that `maury` raises on purpose is one line, exit code 1."""
    from maury.errors import MauryError
    from maury.naming import printable

    try:
        app()
    except MauryError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on where it can", file=sys.stderr)
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        from maury import __version__

        print(f"maury {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what goes on.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


@ingest_app.command("released")
def ingest_released(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the files.")],
    out: StorePath,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Read the layout in which the RAVE CNN authors released their data.

    DIR holds *_spectra.fits and *_parameters.csv; *_labels.csv and *_extra.csv are optional.
    """
    from maury.readers import ingest_released

    with (
        terminal.cluster(scheduler, workers, local=True) as cluster,
        terminal.bar("ingesting") as progress,
    ):
        survey = ingest_released(
            directory, out, overwrite=overwrite, progress=progress, cluster=cluster
        )
    print(survey)


@ingest_app.command("toml")
def ingest_toml(
    config: Annotated[Path, typer.Argument(metavar="SURVEY.toml", help="What to read, and how.")],
    out: StorePath,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Read spectra and tables of any survey, as a short TOML file describes them."""
    from maury.readers import ingest_toml

    with (
        terminal.cluster(scheduler, workers, local=True) as cluster,
        terminal.bar("ingesting") as progress,
    ):
        survey = ingest_toml(config, out, overwrite=overwrite, progress=progress, cluster=cluster)
    print(survey)


@app.command()
def simulate(
    out: StorePath,
    stars: Annotated[int, typer.Option("--stars", min=1, help="Number of stars.")] = 3000,
    seed: Seed = 0,
    observed: Annotated[
        bool, typer.Option("--observed", help="The observed population, without labels.")
    ] = False,
    galaxy: Annotated[
        bool,
        typer.Option("--galaxy", help="Place the stars in discs with metallicity gradients."),
    ] = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a RAVE-like survey with the emulator that ships with maury."""
    from maury.simulate import simulate_survey

    with (
        terminal.cluster(scheduler, workers, local=True) as cluster,
        terminal.bar("simulating") as progress,
    ):
        survey = simulate_survey(
            out,
            n_star=stars,
            seed=seed,
            observed=observed,
            galaxy=galaxy,
            overwrite=overwrite,
            progress=progress,
            cluster=cluster,
        )
    print(survey)


@app.command()
def train(
    survey: SurveyPath,
    model: ModelPath,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="maury (the default), guiglion2020, starnet, astronn."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="cannon, payne, ferre, ... or a preset (see maury methods)."),
    ] = None,
    members: Annotated[
        int | None, typer.Option("--members", min=1, help="Networks in the ensemble (default 4).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with all settings.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="star (the default) or published (no independent test)."),
    ] = None,
    seed: Seed = 0,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Members trained at a time.")
    ] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Train an ensemble, or another method, on the labelled spectra of a survey.

    A run that was killed goes on when the same command is given again.
    """
    from maury.learning import train

    with terminal.cluster(scheduler, workers) as cluster, terminal.member_bars() as progress:
        result = train(
            survey,
            model,
            preset=preset,
            method=method,
            members=members,
            seed=seed,
            config=config,
            split=split,
            n_processes=processes or workers,
            cluster=cluster,
            progress=progress,
            overwrite=overwrite,
        )
    print(result)


@app.command()
def methods() -> None:
    """List the methods and presets, with their papers."""
    from maury.methods.registry import METHODS, method_class
    from maury.networks import PRESETS

    for name in METHODS:
        print(f"{name:12} {method_class(name).paper}")
    for name, network in PRESETS.items():
        print(f"{name:12} {network.paper}")


@app.command()
def distil(
    model: ModelPath,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="[SURVEY] OUT", help="Spectra to learn from; directory to write."),
    ],
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with all settings.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Teach one small network all that an ensemble answers, for very large surveys.

    A run that was killed goes on when the same command is given again.
    """
    if len(paths) > 2:
        raise typer.BadParameter("give a model, at most one survey, and the directory to write")
    from maury.distil import distil

    survey = paths[0] if len(paths) == 2 else None
    with terminal.bar("distilling") as progress:
        student = distil(
            model,
            paths[-1],
            survey=survey,
            seed=seed,
            config=config,
            progress=progress,
            overwrite=overwrite,
        )
    print(student)


app.command()(transfer_command.transfer)
app.command()(surveys_command.surveys)
ingest_app.command("recipe")(surveys_command.ingest_recipe)
app.command()(build_command.build)
app.command()(fetch_command.fetch)
app.command()(crossmatch_command.crossmatch)


@app.command()
def predict(
    model: ModelPath,
    survey: Annotated[
        Path, typer.Argument(metavar="SURVEY", help="Survey store, or TOML file as for ingest.")
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Catalogue: .fits, .parquet, .vot, .ecsv or .dataset."),
    ],
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="INPUT",
            help="Count as missing (repeatable): spectrum, photometry, parallax, a_v or a band.",
        ),
    ] = None,
    correlations: Annotated[
        bool, typer.Option("--correlations", help="Add the correlations of the labels' errors.")
    ] = False,
    given: Annotated[
        str,
        typer.Option(
            "--given",
            metavar="LABEL",
            help="Weigh in this label of the survey, with its error: an asteroseismic logg, say.",
        ),
    ] = "",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes on this machine (default: its cores)."),
    ] = None,
    scheduler: Scheduler = None,
    engine: Annotated[
        str, typer.Option("--engine", help="What computes the networks: auto, torch or compiled.")
    ] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write the catalogue of labels of a survey.

    A run that was killed goes on when the same command is given again.
    """
    from maury.prediction import Options, write_catalogue
    from maury.workers import n_cores

    with (
        terminal.cluster(scheduler, workers) as cluster,
        terminal.bar("predicting") as progress,
    ):
        written = write_catalogue(
            model,
            survey,
            out,
            options=Options(tuple(without or ()), correlations, engine=engine, given=given),
            overwrite=overwrite,
            workers=workers or n_cores(),
            cluster=cluster,
            progress=progress,
        )
    mark = " SIMULATED" if written.simulated else ""
    print(f"{written.n_star}{mark} rows in {out}, {written.n_warned} of them with a warning flag")


@app.command()
def validate(
    model: ModelPath,
    survey: SurveyPath,
    stars: Annotated[
        str,
        typer.Option("--stars", help="test (held out, the default), unseen, validation or train."),
    ] = "test",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare predictions with the known labels of stars that the model kept out of training."""
    from maury.files import refuse_existing, writing
    from maury.validation import validate

    if json_file is not None:
        refuse_existing(json_file, overwrite=overwrite)
    report = validate(model, survey, split=stars)
    if json_file is not None:
        with writing(json_file, overwrite=overwrite) as partial:
            partial.write_text(report.to_json(), "utf-8")
    terminal.show_report(report)


@app.command()
def audit(
    model: ModelPath,
    survey: SurveyPath,
    stars: Annotated[
        str,
        typer.Option("--stars", help="test (held out, the default), unseen, validation or train."),
    ] = "test",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="Draw to FILE, and FILE-TYPE for each star."),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Say which labels are measured, and which are inferred from photometry and other labels."""
    from maury.audit import audit
    from maury.files import refuse_existing, writing

    for path in (json_file, figure and figure.with_suffix(".png")):
        if path is not None:
            refuse_existing(path, overwrite=overwrite)
    report = audit(model, survey, split=stars, seed=seed)
    if json_file is not None:
        with writing(json_file, overwrite=overwrite) as partial:
            partial.write_text(report.to_json(), "utf-8")
    if figure is not None:
        terminal.draw_audit(report, figure, overwrite=overwrite)
    terminal.show_audit(report)


@app.command()
def coverage(
    model: ModelPath,
    survey: SurveyPath,
    number: Annotated[
        int, typer.Option("--suggest", min=0, metavar="N", help="Rank N stars to label next.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Their list: .csv, .ecsv, .parquet or .fits."),
    ] = None,
    map_file: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help="Draw training and observed stars (PNG, PDF)."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Say what share of a survey the training sample covers, and which stars to label next."""
    from maury import adviser
    from maury.files import refuse_existing

    if out is not None:
        number = number or 200
        refuse_existing(adviser.check_suffix(out), overwrite=overwrite)
    if map_file is not None:
        refuse_existing(map_file.with_suffix(".png"), overwrite=overwrite)
    with terminal.bar("predicting") as progress:
        census = adviser.Census.take(model, survey, progress=progress)
    suggestions = adviser.suggest_from(census, number) if number else None
    terminal.show_census(census)
    if suggestions is not None:
        terminal.show_suggestions(suggestions)
        if out is not None:
            suggestions.write(out, overwrite=overwrite)
    if map_file is not None:
        from maury.figures import coverage_map, save

        place, kind, ringed = adviser.plane(census, suggestions)
        drawn = coverage_map(place, kind, suggested=ringed, simulated=census.simulated)
        save(drawn, map_file, overwrite=overwrite)


@app.command()
def explore(
    catalogue: Annotated[Path, typer.Argument(metavar="CATALOGUE", help="Catalogue to show.")],
    survey: Annotated[
        Path | None, typer.Option("--survey", metavar="SURVEY", help="Show its spectra.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="MODEL", help="Show its fit and sensitivity.")
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0: any free one.")
    ] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the link, and open no browser.")
    ] = False,
) -> None:
    """Walk through a catalogue in the browser: linked panels, filters, every star's spectrum.

    The page is served to this machine only, until Ctrl-C.
    """
    from maury.explorer import explore

    def ready(explorer: Any) -> None:
        mark = "SIMULATED " if explorer.content.catalogue.simulated else ""
        print(f"{len(explorer.content)} {mark}rows of {catalogue} at {explorer.link}", flush=True)
        print("Ctrl-C ends it", flush=True)

    explore(catalogue, survey=survey, model=model, port=port, browser=not no_browser, ready=ready)


@app.command()
def report(
    model: ModelPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.")],
    survey: Annotated[
        Path | None,
        typer.Option("--survey", metavar="LABELLED", help="Survey with labels: how good they are."),
    ] = None,
    observed: Annotated[
        Path | None,
        typer.Option("--observed", metavar="CATALOGUE", help="Catalogue of 'maury predict'."),
    ] = None,
    logg: Annotated[
        Path | None,
        typer.Option(
            "--logg", metavar="FILE", help="Table of external log g: id or star_id, logg."
        ),
    ] = None,
    clusters: Annotated[
        Path | None,
        typer.Option("--clusters", metavar="FILE", help="Table of members: star_id, cluster."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="FILE", help="Table of a comparison with other methods."),
    ] = None,
    gaia: Annotated[
        str | None,
        typer.Option("--gaia", help="Parallax zero point: DR2 (the default), EDR3 or none."),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw all figures of a model and its surveys, and one page that works offline."""
    from maury.report import write_report
    from maury.workers import n_cores

    with terminal.stages() as stage:
        written = write_report(
            model,
            out,
            survey=survey,
            observed=observed,
            external_logg=logg,
            clusters=clusters,
            compare=compare,
            gaia=gaia,
            seed=seed,
            n_processes=n_cores(),
            overwrite=overwrite,
            stage=stage,
        )
    print(f"{len(written.figures)} figures; open {written.page}")
    for reason in written.omitted:
        print(f"not drawn: {reason}")


@app.command()
def compare(
    survey: SurveyPath,
    methods: Annotated[
        str, typer.Option("--methods", help="all, or names with commas between (maury methods).")
    ] = "all",
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Directory of models, tables, figures.")
    ] = Path("maury-compare"),
    folds: Annotated[
        int, typer.Option("--folds", min=1, help="Cross-validation; 1: the split of maury train.")
    ] = 1,
    snr: Annotated[
        str, typer.Option("--snr", help="Also simulate the test stars at these S/N: 20,100.")
    ] = "",
    reuse: Annotated[
        list[str] | None,
        typer.Option("--reuse", metavar="METHOD=MODEL", help="A trained model (repeatable)."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file: settings by name of method.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train every method on the same stars, test it on others, and say which to trust where.

    A run that was killed goes on when the same command is given again, with more methods too.
    """
    from maury.comparison import compare, draw, pairs_of

    with terminal.named_bar() as progress:
        found = compare(
            survey,
            out,
            methods=[name.strip() for name in methods.split(",")],
            folds=folds,
            seed=seed,
            snr=[float(value) for value in snr.split(",") if value.strip()],
            reuse=pairs_of(reuse or ()),
            config=config,
            progress=progress,
            overwrite=overwrite,
        )
    draw(found, out)
    terminal.show_standings(found)
    print(f"tables and figures are in {out}")


@app.command("import-keras")
def import_keras(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of .h5 files.")],
    model: ModelPath,
    overwrite: Overwrite = False,
) -> None:
    """Turn the released Keras networks of Guiglion et al. (2020) into a model directory."""
    from maury.keras_import import import_keras

    print(import_keras(directory, model, overwrite=overwrite))


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.")] = Path(
        "maury-demo"
    ),
    stars: Annotated[int, typer.Option("--stars", min=100, help="Labelled stars.")] = 3000,
    observed: Annotated[int, typer.Option("--observed", min=1, help="Observed stars.")] = 10000,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a small survey, train, predict, validate, and draw: the main job in minutes."""
    from maury.demo import run_demo
    from maury.workers import n_cores

    result = run_demo(
        out,
        n_star=stars,
        n_observed=observed,
        seed=seed,
        n_processes=n_cores(),
        overwrite=overwrite,
        stage=terminal.demo_stage,
    )
    terminal.show_report(result.report)
    print(result.summary)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="Survey store, model directory or catalogue.")],
) -> None:
    """Say what a survey store, a model directory or a catalogue holds."""
    from maury.catalogue import Catalogue
    from maury.model import Model
    from maury.survey import Survey

    if (path / "model.json").is_file():
        opened = Model.open(path)
        print(opened)
        print(f"cite: {opened.citation}")
    elif path.is_dir() and path.suffix.lower() != ".dataset":
        print(Survey.open(path))
    else:
        print(Catalogue.read(path))


for command in (
    drift_command.drift,
    publish_commands.convert,
    publish_commands.footprint,
    publish_commands.card,
    publish_commands.cite,
):
    app.command()(command)
