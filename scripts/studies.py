"""Print the studies that have results side by side: what pretrained weights bought in each.

python -m scripts.studies
"""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from headstart import params
from headstart.console import UserError, run
from headstart.data import catalogue
from headstart.params import Params
from headstart.results.report import percent, points
from scripts import results
from scripts.results import Results


def table(settings: Params, found: dict[str, Results]) -> Table:
    """A row a study, in the order of params.yaml; the effect is of the study's own pairs of configurations."""
    shown = Table(title="What pretrained weights bought, in points of test accuracy", title_justify="left",
                  box=SIMPLE_HEAD)  # fmt: skip
    for column in ("study", "data set", "network"):
        shown.add_column(column, no_wrap=True)
    for column in ("images", "pixels", "best %", "pretrained"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, one in found.items():
        study = settings.studies[name]
        best = max(estimate.value for estimate in one.accuracy.values())
        effect = one.summary.get("effect_pretrained")
        shown.add_row(
            name, catalogue.title(study.dataset), study.model_name, f"{study.training_images:,}", str(study.image_size),
            percent(best), "–" if effect is None else points(effect),
        )  # fmt: skip
    return shown


def main() -> None:
    settings = params.read()
    found = {name: one for name in settings.studies if (one := results.read(name))}
    if not found:
        raise UserError("no study of params.yaml has results yet: `dvc repro` makes them")
    Console().print(table(settings, found))


if __name__ == "__main__":
    run(main)
