"""Print the study of the working tree as a table, with what is different from the branch main.

    python -m scripts.table [STUDY] [REVISION]

STUDY: the one that params.yaml names if there is none; REVISION: what to compare with, main if there is none.
"""

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
from scripts import results
from scripts.results import Results

TIMES = 4  # stages whose time is shown


def table(now: Results, before: Results | None, *, study: str, revision: str) -> Table:
    """The configurations by test accuracy; a column of differences where there are any."""
    ranked = sorted(now.accuracy, key=lambda name: now.accuracy[name].value, reverse=True)
    changed = before is not None and before.accuracy != now.accuracy
    tested = results.changes(now, before) if before is not None else {}
    shown = Table(
        title=f"Test accuracy, study {study}, %", title_justify="left", caption=_caption(now, tested.values()),
        caption_justify="left", box=SIMPLE_HEAD,
    )  # fmt: skip
    shown.add_column("configuration", no_wrap=True)
    compared = ["published"] if now.published else []
    for column in ("accuracy", "95 %", "F1", *compared, *([f"since {revision}"] if changed else [])):
        shown.add_column(column, justify="right", no_wrap=True)
    for name in ranked:
        mark, style = {ranked[0]: (" ▲ best", "bold green"), ranked[-1]: (" ▼ worst", "red")}.get(name, ("", ""))
        accuracy = now.accuracy[name]
        cells = [
            name + mark,
            percent(accuracy.value, 2),
            f"{percent(accuracy.low)}–{percent(accuracy.high)}",
            percent(now.metrics[name]["macro_f1"]),
        ]
        if compared:
            cells.append(percent(now.published[name]) if name in now.published else "–")
        if changed:
            cells.append(_change(now, before, name, tested.get(name)))
        shown.add_row(*cells, style=style)
    if now.majority is not None:
        shown.add_row("majority baseline", percent(now.majority, 2), style="dim")
    return shown


def _change(now: Results, before: Results | None, name: str, tested: PairedComparison | None) -> str:
    if before is None or name not in before.accuracy:
        return "new"
    change = now.accuracy[name].value - before.accuracy[name].value
    return f"{100 * change:+.2f}{' ?' if tested is not None and not tested.is_significant else ''}"


def _caption(now: Results, tested: Iterable[PairedComparison]) -> str:
    """Return the main effects of the factors, in words, and what "?" means."""
    effects = [
        f"{name.removeprefix('effect_')} {100 * value:+.1f}"
        for name, value in now.summary.items()
        if name.startswith("effect_")
    ]
    said = f"Main effects (means over pairs) in points: {', '.join(effects)}"
    if "effect_optimizer" in now.summary:
        said += " (with the settings that each brings along)"
    if "labels_saved" in now.summary:
        bound = now.summary.get("labels_saved_bound")
        saved = (
            now.summary["labels_saved"] if bound else float(f"{now.summary['labels_saved']:.1g}")
        )  # as the interval allows
        said += f"\nPretrained weights save {bound or 'about'} {saved:,.0f} labels"
    if all(len(seeds) == 1 for seeds in now.right.values()):
        said += "\nOne seed: in each pair two trained networks are compared"
    if doubtful := [gain for gain in tested if not gain.is_significant]:
        said += f"\n? {'not significant' if doubtful[0].n_seeds > 1 else 'may be none on other test images'}"
    return said


def _times(study: str) -> str:
    """Return how long the stages took that ran here, the longest kind first; nothing where DVC restored all of them."""
    seconds: Counter[str] = Counter()
    for file in sorted(Path("runs", study).glob("*.json")):
        seconds[file.stem.partition("@")[0]] += files.read_json(file)["seconds"]
    listed = ", ".join(f"{stage} {value:,.0f} s" for stage, value in seconds.most_common(TIMES))
    return f"Stages that ran here took {seconds.total():,.0f} s: {listed}" if seconds else ""


def main(study: str = "", revision: str = "main") -> None:
    study = study or params.read().study
    now = results.read(study)
    if now is None:
        raise UserError(f"there are no results of the study {study} yet: `dvc repro` makes them")
    before = results.read(study, revision) if results.exists(revision) else None
    Console().print(table(now, before, study=study, revision=revision))
    if times := _times(study):
        print(times)
    page = Path(f"report/{study}/index.html")
    if page.exists():
        print(f"More is in {page}")


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
