"""Print the studies that have results side by side: what pretrained weights bought in each.

python -m scripts.studies
"""

import dataclasses
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.data import registry
from headstart.params import Configuration, Params
from headstart.results import comparison
from headstart.results.tables import percent, points
from scripts import record, results
from scripts.results import Results


def table(studies: dict[str, Results], made_with: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> Table:
    """A row a study; the main effect is of the study's own pairs of configurations, with its 95 % interval."""
    title = "What pretrained weights bought, in points of test accuracy (mean over pairs), and the best of each study"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("study", "data set", "network"):
        shown.add_column(column, no_wrap=True)
    for column in ("images", "pixels", "best, %", "pretrained", "95 %"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, found in studies.items():
        study, configurations = made_with[name]
        best = max(estimate.value for estimate in found.accuracy.values())
        right = {key: np.stack(list(seeds.values())) for key, seeds in found.right.items()}
        named = {key: Configuration(**configurations[key]) for key in right if key in configurations}
        effect = comparison.analyze(named, right).effects.get("pretrained")
        said = ("–", "") if effect is None else (points(effect.value), f"{points(effect.low)} to {points(effect.high)}")
        shown.add_row(name, registry.title(study["dataset"]), study["model_name"], f"{study['training_images']:,}",
                      str(study["image_size"]), percent(best), *said)  # fmt: skip
    return shown


def main() -> None:
    settings = params.read()
    found = {name: one for name in settings.studies if (one := results.read(name))}
    if not found:
        raise UserError("no study of params.yaml has results yet: `dvc repro` makes them")
    Console().print(table(found, {name: _made_with(name, settings) for name in found}))


def _made_with(name: str, settings: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the study and of the configurations that its results were made with.

    The record has them. A study without a record has those of params.yaml.
    """
    path = record.path(name)
    if path.is_file():
        content = files.read_json(path)
        return content["settings"], content["configurations"]
    configurations = {key: dataclasses.asdict(configuration) for key, configuration in settings.configurations.items()}
    return dataclasses.asdict(settings.studies[name]), configurations


if __name__ == "__main__":
    run_cli(main)
