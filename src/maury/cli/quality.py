"""Commands that judge a model: validation, audit, coverage, comparison, report."""

from pathlib import Path
from typing import Annotated, Any

import typer

from maury.cli import terminal
from maury.cli.common import MOST_FLOAT, ModelPath, Overwrite, Seed, SurveyPath, number


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
    stressed: Annotated[
        bool, typer.Option("--stress", help="Change the stars in one thing at a time, and compare.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare predictions with the known labels of stars that the model kept out of training."""
    from maury.io.files import refuse_existing, writing

    if json_file is not None:
        refuse_existing(json_file, overwrite=overwrite)
    report = _stress(model, survey, stars) if stressed else _validate(model, survey, stars)
    if json_file is not None:
        with writing(json_file, overwrite=overwrite) as partial:
            partial.write_text(report.to_json(), "utf-8")
    (terminal.show_stress if stressed else terminal.show_report)(report)


def _validate(model: Path, survey: Path, stars: str) -> Any:
    from maury.evaluation.validation import validate

    return validate(model, survey, split=stars)


def _stress(model: Path, survey: Path, stars: str) -> Any:
    from maury.evaluation.stress import stress

    with terminal.bar("lines") as progress:
        return stress(model, survey, split=stars, progress=progress)


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
    from maury.evaluation.audit import audit
    from maury.io.files import refuse_existing, writing

    # Every output is checked before the work, which would be lost to a name that is taken.
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


def coverage(
    model: ModelPath,
    survey: SurveyPath,
    number: Annotated[
        int,
        number("--suggest", least=0, most="rows", metavar="N", help="Rank N stars to label next."),
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
    from maury.evaluation import adviser
    from maury.evaluation.census import Census
    from maury.io.files import refuse_existing

    if out is not None:
        # A file was asked for, so that a list is wanted; its length is chosen, not measured.
        number = number or 200
        refuse_existing(adviser.check_suffix(out), overwrite=overwrite)
    if map_file is not None:
        refuse_existing(map_file.with_suffix(".png"), overwrite=overwrite)
    with terminal.bar("predicting") as progress:
        census = Census.take(model, survey, progress=progress)
    suggestions = adviser.suggest_from(census, number) if number else None
    terminal.show_census(census)
    if suggestions is not None:
        terminal.show_suggestions(suggestions)
        if out is not None:
            suggestions.write(out, overwrite=overwrite)
    if map_file is not None:
        from maury.report.figures import coverage_map, save

        place, kind, ringed = adviser.plane(census, suggestions)
        drawn = coverage_map(place, kind, suggested=ringed, simulated=census.simulated)
        save(drawn, map_file, overwrite=overwrite)


def suspects(
    model: ModelPath,
    survey: SurveyPath,
    errors: Annotated[
        float,
        number(
            "--errors",
            least=0.0,
            most=MOST_FLOAT,
            help="How many errors off a star is listed from.",
        ),
    ] = 5.0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Their list: .csv, .ecsv, .parquet or .fits."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """List labelled stars whose labels contradict their spectra and photometry.

    Wrong cross-matches, above all. 'maury train --leave-out FILE' trains without them.
    """
    from maury.evaluation.adviser import check_suffix
    from maury.evaluation.suspects import find_suspects
    from maury.io.files import refuse_existing

    if out is not None:
        refuse_existing(check_suffix(out), overwrite=overwrite)
    found = find_suspects(model, survey, n_sigma=errors)
    # A table without rows is refused where tables are read.
    if out is not None and len(found):
        found.write(out, overwrite=overwrite)
    terminal.show_suspects(found)
    if out is not None and not len(found):
        terminal.say(f"no suspects, so that {out} is not written")


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
    from maury.io.workers import n_cores
    from maury.report.page.assemble import write_report

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
    terminal.say(f"{len(written.figures)} figures; open {written.page}")
    for reason in written.omitted:
        terminal.say(f"not drawn: {reason}")


def compare(
    surveys: Annotated[
        list[Path], typer.Argument(metavar="SURVEY", help="Survey store (.zarr); several: below.")
    ],
    methods: Annotated[
        str, typer.Option("--methods", help="all, or names with commas between (maury methods).")
    ] = "all",
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Directory of models, tables, figures.")
    ] = Path("maury-compare"),
    folds: Annotated[
        int,
        number(
            "--folds",
            least=1,
            most="members",
            help="Cross-validation; 1: the split of maury train.",
        ),
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
    board: Annotated[
        bool,
        typer.Option("--leaderboard", help="One page and one figure, of all SURVEYs and seeds."),
    ] = False,
    seeds: Annotated[
        int,
        number("--seeds", least=1, most="members", help="Seeds of a leaderboard, from --seed on."),
    ] = 3,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train every method on the same stars, test it on others, and say which to trust where.

    A run that was killed goes on when the same command is given again, with more methods too.
    """
    from maury.errors import ConfigError
    from maury.report.figures.comparison import draw
    from maury.training.comparison import compare, pairs_of

    names = [name.strip() for name in methods.split(",")]
    if board:
        if folds > 1 or snr or reuse:
            raise ConfigError("--leaderboard takes no --folds, --snr and --reuse; leave them out")
        _leaderboard(surveys, out, names, range(seed, seed + seeds), config, overwrite=overwrite)
        return
    if len(surveys) > 1:
        raise ConfigError(f"{len(surveys)} surveys are compared with --leaderboard only; give one")
    survey = surveys[0]
    with terminal.named_bar() as progress:
        found = compare(
            survey,
            out,
            methods=names,
            folds=folds,
            seed=seed,
            snr=[float(value) for value in snr.split(",") if value.strip()],
            reuse=pairs_of(reuse or ()),
            config=config,
            progress=progress,
            overwrite=overwrite,
        )
    # Before the table, so that what is printed last is what to look at.
    draw(found, out)
    terminal.show_ranking(found)
    terminal.say(f"tables and figures are in {out}")


def _leaderboard(
    surveys: list[Path],
    out: Path,
    methods: list[str],
    seeds: range,
    config: Path | None,
    *,
    overwrite: bool,
) -> None:
    from maury.report.figures import leaderboard_figure, save
    from maury.training.leaderboard import leaderboard

    with terminal.named_bar() as progress:
        found = leaderboard(
            surveys,
            out,
            methods=methods,
            seeds=seeds,
            config=config,
            progress=progress,
            overwrite=overwrite,
        )
    save(leaderboard_figure(found), out / "leaderboard", overwrite=True)
    terminal.show_leaderboard(found)
    terminal.say(f"the page is {out / 'leaderboard.md'}")
