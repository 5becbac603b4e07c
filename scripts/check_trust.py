"""Measure whether labels can be trusted on stars that are not as the training sample was.

    python scripts/check_trust.py SURVEY.zarr MODEL [MODEL ...] [--part validation|test]
        [--only NAME ...] [--further] [--json OUT]
    python scripts/check_trust.py --compare before=BEFORE.json after=AFTER.json [--reasons]

The first form predicts held-out stars changed in one thing at a time (`maury.evaluation.stress`)
and prints, in percent, the shares within one quoted error, without a label, silently wrong (off by
more than three quoted errors in any label and not warned of) and warned of. The second sets such
files side by side, as markdown; with --reasons, which warnings each line of each file raised.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from maury.evaluation.stress import reasons, stress, table


def markdown(found: list[tuple[str, ...]]) -> str:
    """Return a header and rows as a markdown table."""
    header, *rows = found
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read(named: list[str]) -> dict[str, Any]:
    """Return the reports of some files, each given as NAME=FILE, or as FILE named by its stem."""
    reports = {}
    for one in named:
        name, _, path = one.rpartition("=")
        models = json.loads(Path(path).read_text("utf-8"))
        for model, report in models.items():
            place = name or Path(path).stem
            reports[place if len(models) == 1 else f"{place} {model}"] = report
    return reports


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the report of each model, by its path."""
    reports = {}
    for model in arguments.models:
        report = stress(
            model,
            arguments.survey,
            split=arguments.part,
            only=arguments.only,
            further=arguments.further,
        )
        print(f"{report.title}; {report.model}, {report.survey}", file=sys.stderr)
        for name, why in report.omitted.items():
            print(f"omitted: {name}: {why}", file=sys.stderr)
        reports[str(model)] = json.loads(report.to_json())
    return reports


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("survey", type=Path, nargs="?")
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--part", choices=("validation", "test", "unseen"), default="test")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--further", action="store_true", help="other strengths, other inputs")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--compare", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--reasons", action="store_true", help="which warnings each line raised")
    arguments = parser.parse_args()
    if arguments.compare:
        reports = read(arguments.compare)
        print(markdown(table(reports)))
        if arguments.reasons:
            for name, report in reports.items():
                print(f"\n{name}\n\n{markdown(reasons(report))}")
        return 0
    if not arguments.models:
        parser.error("give a survey and models, or --compare and files")
    reports = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(reports, indent=1) + "\n", "utf-8")
    print(markdown(table(reports)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
