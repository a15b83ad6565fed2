"""Compare the studies that have results: one row each, and a page with a forest plot.

    python -m scripts.studies [STUDY …]

Without STUDY, all studies in params.yaml that have results are compared.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.data import registry
from headstart.params import Params
from headstart.results import figures, overview, page
from headstart.results.comparison import Estimate
from headstart.results.overview import StudyOverview
from headstart.results.tables import percent, points
from scripts import argument_parser, results
from scripts.results import Results

PAGE = Path("report/studies.html")
FIGURE = Path("plots/studies.svg")


def table(studies: Sequence[StudyOverview]) -> Table:
    """Return one row per study, with the gain of pretrained weights computed from its own configurations."""
    title = "Gain of pretrained weights in points of test accuracy (mean over pairs, 95% CI), and the best accuracy"
    rich_table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("study", "dataset", "network"):
        rich_table.add_column(column, no_wrap=True)
    for column in ("images", "px", "best, %", *overview.FINETUNING_BY_LABEL):
        rich_table.add_column(column, justify="right", no_wrap=True)
    for study in studies:
        described = study.dataset, study.model_name, f"{study.n_images:,}", str(study.image_size)
        cells = [_format_gain(study.gains.get(name)) for name in overview.FINETUNING_BY_LABEL]
        rich_table.add_row(study.name, *described, percent(study.best_accuracy), *cells)
    return rich_table


def _format_gain(gain: Estimate | None) -> str:
    return "–" if gain is None else f"{points(gain.value)} ({percent(gain.low)} to {percent(gain.high)})"


def describe(name: str, study_results: Results, record: dict[str, Any]) -> StudyOverview:
    """Return what pretrained weights bought in a study.

    Args:
        record: at least its ``settings`` and ``configurations``.
    """
    settings, correct = record["settings"], results.stack_seeds(study_results.correct)
    configurations = {key: value for key, value in results.configurations(record).items() if key in correct}
    return StudyOverview(
        name=name,
        dataset=registry.title(settings["dataset"]),
        model_name=settings["model_name"],
        n_images=settings["training_images"],
        image_size=settings["image_size"],
        best_accuracy=max(estimate.value for estimate in study_results.accuracy.values()),
        gains=overview.gains(configurations, correct),
        label_factor=overview.label_factor(results.read_csv(f"plots/{name}/labels_saved.csv")),
    )


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("studies", metavar="STUDY", nargs="*", help="names of studies in params.yaml")
    names = parser.parse_args(arguments).studies
    settings = params.read()
    require_known(names, settings)
    read = {name: results.read(name) for name in names or settings.studies}
    if missing := [name for name in names if read[name] is None]:
        raise UserError(f"studies without results: {', '.join(missing)}. Run `make studies NAMES=…`.")
    studies = [
        describe(name, study_results, _matching_record(name) or _current(name, settings))
        for name, study_results in read.items()
        if study_results is not None
    ]
    if not studies:
        raise UserError("no study in params.yaml has results yet. Run `dvc repro`.")
    svg = figures.as_svg(figures.forest, studies)
    files.write_text(FIGURE, svg)
    files.write_text(PAGE, page.render_overview_html(studies, svg))
    Console().print(table(studies))
    print(f"The page with all studies is {PAGE}")


def require_known(names: Sequence[str], settings: Params) -> None:
    """Raise UserError if params.yaml does not have a study with one of ``names``."""
    if unknown := [name for name in names if name not in settings.studies]:
        raise UserError(f"unknown study. Choose one of {', '.join(settings.studies)}. Got {', '.join(unknown)}.")


def _matching_record(study: str) -> dict[str, Any] | None:
    """Return the record of the study; None if there is none, or if the results have changed since."""
    record = results.read_record(study)
    is_current = record is not None and all(
        Path(path).is_file() and files.sha256(path) == sha256 for path, sha256 in record["sha256"].items()
    )
    return record if is_current else None


def _current(study: str, settings: Params) -> dict[str, Any]:
    """Return the settings in params.yaml, for a study without a record."""
    configurations = {name: value.settings for name, value in settings.configurations.items()}
    return {"settings": dataclasses.asdict(settings.studies[study]), "configurations": configurations}


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
