"""Print the results of a study in the working tree, with the differences from another revision."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.results.comparison import PairedComparison
from headstart.results.tables import percent
from scripts import argument_parser, results
from scripts.results import Results

SLOWEST = 4  # stages whose time is printed
NOTES = {"optimizer": " (Adam vs. SGD, each with its own hyperparameters)"}  # on main effects


def table(now: Results, before: Results | None, *, study: str, revision: str) -> Table:
    """Return the configurations by test accuracy, with a column of differences if there are any."""
    ranked = sorted(now.accuracy, key=lambda name: now.accuracy[name].value, reverse=True)
    is_changed = before is not None and before.accuracy != now.accuracy
    comparisons = results.compare_results(now, before) if before is not None else {}
    rich_table = Table(
        title=f"Test accuracy, study {study}, %", title_justify="left", caption=_caption(now, comparisons.values()),
        caption_justify="left", box=SIMPLE_HEAD,
    )  # fmt: skip
    rich_table.add_column("configuration", no_wrap=True)
    columns = ["accuracy", "95% CI", "F1"]
    columns += ["published"] if now.published else []
    columns += [f"since {revision}"] if is_changed else []
    for column in columns:
        rich_table.add_column(column, justify="right", no_wrap=True)
    for name in ranked:
        mark, style = {ranked[0]: (" ▲ best", "bold green"), ranked[-1]: (" ▼ worst", "red")}.get(name, ("", ""))
        accuracy = now.accuracy[name]
        cells = [
            name + mark,
            percent(accuracy.value, 2),
            f"{percent(accuracy.low)}–{percent(accuracy.high)}",
            percent(now.metrics[name]["macro_f1"]),
        ]
        if now.published:
            cells.append(percent(now.published[name]) if name in now.published else "–")
        if is_changed:
            cells.append(_difference(now, before, name, comparisons.get(name)))
        rich_table.add_row(*cells, style=style)
    if now.majority is not None:
        rich_table.add_row("majority baseline", percent(now.majority, 2), style="dim")
    return rich_table


def _difference(now: Results, before: Results | None, name: str, comparison: PairedComparison | None) -> str:
    if before is None or name not in before.accuracy:
        return "new"
    difference = now.accuracy[name].value - before.accuracy[name].value
    return f"{100 * difference:+.2f}{' ?' if comparison is not None and not comparison.is_significant else ''}"


def _caption(now: Results, comparisons: Iterable[PairedComparison]) -> str:
    """Return the main effects, the labels saved, and notes."""
    prefix = "effect_"
    effects = {key.removeprefix(prefix): value for key, value in now.summary.items() if key.startswith(prefix)}
    values = ", ".join(f"{name} {100 * value:+.1f}{NOTES.get(name, '')}" for name, value in effects.items())
    lines = [f"Main effects in points (means over pairs): {values}"]
    if "labels_saved" in now.summary:
        saved, bound = now.summary["labels_saved"], now.summary.get("labels_saved_bound")
        rounded = saved if bound else float(f"{saved:.1g}")  # its CI allows no more digits
        lines.append(f"Pretrained weights save {bound or 'about'} {rounded:,.0f} labels")
    if all(len(by_seed) == 1 for by_seed in now.correct.values()):
        lines.append("Single seed: differences may be seed noise")
    if doubtful := [comparison for comparison in comparisons if not comparison.is_significant]:
        lines.append(f"? {'not significant' if doubtful[0].n_seeds > 1 else 'may not hold on other test images'}")
    return "\n".join(lines)


def _times(study: str) -> str:
    """Return the time of the stages that ran here, the slowest first; empty if DVC restored all outputs."""
    seconds: Counter[str] = Counter()
    for file in sorted(Path("runs", study).glob("*.json")):
        seconds[file.stem.partition("@")[0]] += files.read_json(file)["seconds"]
    slowest = ", ".join(f"{stage} {value:,.0f} s" for stage, value in seconds.most_common(SLOWEST))
    return f"Stages that ran here took {seconds.total():,.0f} s: {slowest}" if seconds else ""


def _prediction_hint(study: str, now: Results) -> str:
    """Return how to classify new images with the best configuration on validation images; empty if there is none."""
    validation = {
        name: metrics["validation_accuracy"]
        for name, metrics in now.metrics.items()
        if "validation_accuracy" in metrics and Path("models", study, name).is_dir()
    }
    if not validation:
        return ""
    best = max(validation, key=lambda name: validation[name])
    value, low, high = map(percent, now.accuracy[best])
    python = shlex.quote(sys.executable if os.name == "nt" else os.path.relpath(sys.executable))
    return (
        f"To classify new images with {best}, the best on validation images (test accuracy {value} %, 95% CI {low} to "
        f"{high}), run\n  {python} -m headstart.predict models/{study}/{best} IMAGES --csv labels.csv"
    )


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "study", metavar="STUDY", nargs="?", help="a section of studies in params.yaml (default: the selected study)"
    )
    parser.add_argument(
        "revision", metavar="REVISION", nargs="?", default="main", help="git revision to compare with (default: main)"
    )
    options = parser.parse_args(arguments)
    study = options.study or params.read().study
    now = results.read(study)
    if now is None:
        raise UserError(f"the study {study} has no results yet. Run `dvc repro`.")
    before = results.read(study, options.revision) if results.exists(options.revision) else None
    Console().print(table(now, before, study=study, revision=options.revision))
    if times := _times(study):
        print(times)
    page = Path(f"report/{study}/index.html")
    if page.exists():
        print(f"The report is {page}")
    if hint := _prediction_hint(study, now):
        print(hint)


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
