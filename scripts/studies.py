"""Print one row per study that has results: its best accuracy and the effect of pretrained weights."""

import dataclasses
import sys
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from headstart import params
from headstart.console import UserError, run_cli
from headstart.data import registry
from headstart.params import Params
from headstart.results import comparison
from headstart.results.tables import percent, points
from scripts import argument_parser, results
from scripts.results import Results


def table(studies: dict[str, Results], records: dict[str, dict[str, Any]]) -> Table:
    """Return one row per study, with the main effect of pretrained weights in its own configurations.

    Args:
        records: of each study, at least its ``settings`` and ``configurations``.
    """
    title = "Main effect of pretrained weights in points of test accuracy (mean over pairs), and the best configuration"
    rich_table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("study", "dataset", "network"):
        rich_table.add_column(column, no_wrap=True)
    for column in ("images", "pixels", "best, %", "pretrained", "95% CI"):
        rich_table.add_column(column, justify="right", no_wrap=True)
    for name, study_results in studies.items():
        settings = records[name]["settings"]
        best = max(estimate.value for estimate in study_results.accuracy.values())
        correct = results.stack_seeds(study_results.correct)
        configurations = results.configurations(records[name])
        measured = {key: value for key, value in configurations.items() if key in correct}
        effect = comparison.analyze(measured, correct).effects.get("pretrained")
        cells = (
            ("–", "") if effect is None else (points(effect.value), f"{points(effect.low)} to {points(effect.high)}")
        )
        described = registry.title(settings["dataset"]), settings["model_name"], f"{settings['training_images']:,}"
        rich_table.add_row(name, *described, str(settings["image_size"]), percent(best), *cells)
    return rich_table


def main(*arguments: str) -> None:
    argument_parser(__doc__).parse_args(arguments)
    settings = params.read()
    studies = {name: study_results for name in settings.studies if (study_results := results.read(name))}
    if not studies:
        raise UserError("no study in params.yaml has results yet. Run `dvc repro`.")
    Console().print(table(studies, {name: results.read_record(name) or _current(name, settings) for name in studies}))


def _current(study: str, settings: Params) -> dict[str, Any]:
    """Return the settings in params.yaml, for a study without a record."""
    configurations = {name: value.settings for name, value in settings.configurations.items()}
    return {"settings": dataclasses.asdict(settings.studies[study]), "configurations": configurations}


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
