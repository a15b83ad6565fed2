"""Rewrite the tables of committed results in README.md and docs/results.md.

A table is everything between the lines `<!-- table: NAME -->` and `<!-- end -->`. Do not edit it by hand.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from headstart import files
from headstart.console import UserError, run_cli
from headstart.params import Configuration
from headstart.results import comparison, report
from headstart.results.comparison import Difference, Estimate
from headstart.results.report import percent, points
from scripts import argument_parser, results
from scripts.results import Results

FILES = ("README.md", "docs/results.md")
END = "<!-- end -->"
MARKER = re.compile(r"^(<!-- *(?:table:.*|end) *-->) *$", re.MULTILINE)
START = re.compile(r"<!-- *table: *(.*?) *-->")
STUDIES = ("resnet50", "quick", "quick-seeds", "labels")  # in docs/results.md
LEVELS = {  # of each factor: the level whose gain is the effect, and the other
    "pretrained": ("pretrained", "random"),
    "finetuning": ("fine-tuned", "frozen"),
    "optimizer": ("Adam", "SGD"),
}


def main(*arguments: str) -> None:
    parser = argument_parser(f"{__doc__}\nNames of tables: {', '.join(TABLES)}.")
    parser.add_argument("--check", action="store_true", help="change nothing, and fail if a table is out of date")
    parser.add_argument("--revision", help="git revision of the results (default: the working tree)")
    options = parser.parse_args(arguments)
    texts = {file: Path(file).read_text(encoding="utf-8") for file in FILES}
    updates = {file: rewrite(file, text, options.revision) for file, text in texts.items()}
    changed = [f"{file}: {name}" for file, (_, names) in updates.items() for name in names]
    if options.check and changed:
        raise UserError(f"tables are out of date: {', '.join(changed)}. Run `make docs`, and commit the changes.")
    for file, (text, names) in updates.items():
        if names:
            files.write_text(file, text)
    print("\n".join(changed) if changed else "All tables are up to date.")


def rewrite(file: str, text: str, revision: str | None) -> tuple[str, list[str]]:
    """Make all tables in ``text``, the content of ``file``, from the results of ``revision``.

    Returns:
        The new text, and the names of the tables that changed.

    Raises:
        UserError: a marker has no partner, a name is unknown, or results are missing.
    """
    parts = MARKER.split(text)  # text, marker, table, marker, text, …
    changed = []
    for start in range(1, len(parts), 4):
        marker, old, end = [*parts[start : start + 3], ""][:3]
        match = START.fullmatch(marker)
        if match is None or end != END:
            raise UserError(f"{file}: unpaired marker. A table begins with <!-- table: NAME --> and ends with {END}. "
                            f"Got {marker}.")  # fmt: skip
        name = match[1]
        if name not in TABLES:
            raise UserError(f"{file}: unknown table. Choose one of {', '.join(TABLES)}. Got {name}.")
        parts[start + 1] = f"\n{TABLES[name](revision)}\n"
        if parts[start + 1] != old:
            changed.append(name)
    return "".join(parts), changed


def configuration_table(study: str, revision: str | None) -> str:
    """Return one row per configuration, with the published accuracy if there is one."""
    study_results, configurations = _read(study, revision)
    published = {name: {"test_accuracy": accuracy} for name, accuracy in study_results.published.items()}
    rows = [
        report.Row(name, configurations[name], study_results.metrics[name], accuracy, published.get(name))
        for name, accuracy in study_results.accuracy.items()
    ]
    return report.markdown_table(rows).rstrip()


def accuracy_table(study: str, revision: str | None) -> str:
    """Return one row per configuration, the best first, with its test accuracy."""
    estimates = _read(study, revision)[0].accuracy
    ranked = sorted(estimates.items(), key=lambda item: item[1].value, reverse=True)
    rows = [[name, f"{percent(accuracy.value, 2)} %", _interval(accuracy)] for name, accuracy in ranked]
    return _markdown(["configuration", "test accuracy", "95% CI"], "lrr", rows)


def gain_table(study: str, revision: str | None) -> str:
    """Return one row per pair of configurations that differ in the initial weights: both accuracies and the gain.

    The names of the trained layers are those of `resnet50`, which fine-tunes `layer4`.
    """
    study_results, configurations = _read(study, revision)
    rows = [
        [
            "last stage + classifier" if configurations[pair.name].finetuning else "classifier only",
            configurations[pair.name].optimizer,
            *(f"{percent(study_results.accuracy[name].value, 2)} %" for name in (pair.name, pair.other)),
            f"{points(pair.gain.value)} ({_interval(pair.gain)})",
        ]
        for pair in _differences(study, revision)
        if pair.factor == "pretrained"
    ]
    columns = ["trained layers", "optimizer", "pretrained", "random init", "gain in points (95% CI)"]
    return _markdown(columns, "llrrr", rows)


def effect_table(study: str, revision: str | None, *, factor: str) -> str:
    """Return one column per pair of configurations that differ in ``factor``, with the gain in points."""
    _, configurations = _read(study, revision)
    pairs = [pair for pair in _differences(study, revision) if pair.factor == factor]
    columns = [_other_levels(configurations[pair.name], factor) for pair in pairs]
    cells = [f"{points(pair.gain.value)} ({_interval(pair.gain)})" for pair in pairs]
    hyperparameters = ", each with its settings" if factor == "optimizer" else ""
    label = f"{' − '.join(LEVELS[factor])}{hyperparameters}"
    return _markdown(["difference in points (95% CI)", *columns], "l" + "r" * len(pairs), [[label, *cells]])


def error_table(study: str, revision: str | None) -> str:
    """Return one row per configuration or probe, one column per label budget: the mean test error over seeds in %."""
    path = f"plots/{study}/labels.csv"
    by_budget: dict[str, dict[int, list[float]]] = {}
    for row in results.read_csv(path, revision):
        cells = by_budget.setdefault(row["configuration"], {})
        cells.setdefault(int(row["label_budget"]), []).append(float(row["error"]))
    if not by_budget:
        raise UserError(f"{path}: no such results. Run the study {study}.")
    budgets = sorted({budget for cells in by_budget.values() for budget in cells})
    rows = [[name, *(_mean(cells[budget]) for budget in budgets)] for name, cells in by_budget.items()]
    return _markdown(["configuration", *(f"{budget:,}" for budget in budgets)], "l" + "r" * len(budgets), rows)


TABLES: dict[str, Callable[[str | None], str]] = {
    **{f"{study}-configurations": partial(configuration_table, study) for study in STUDIES},
    **{f"resnet50-{factor}": partial(effect_table, "resnet50", factor=factor) for factor in LEVELS},
    "resnet50-gain": partial(gain_table, "resnet50"),
    "quick": partial(accuracy_table, "quick"),
    "labels-errors": partial(error_table, "labels"),
}


def _read(study: str, revision: str | None) -> tuple[Results, dict[str, Configuration]]:
    """Return the results of a study, and the configurations in its record."""
    study_results, record = results.read(study, revision), results.read_record(study, revision)
    if study_results is None or record is None:
        raise UserError(f"the study {study} has no results, or no record: run `dvc repro` and `make record`")
    return study_results, results.configurations(record)


def _differences(study: str, revision: str | None) -> list[Difference]:
    study_results, configurations = _read(study, revision)
    return comparison.differences(configurations, results.stack_seeds(study_results.correct))


def _other_levels(configuration: Configuration, factor: str) -> str:
    """Return the levels of all factors but ``factor``, for example "fine-tuned, Adam"."""
    return ", ".join(
        LEVELS[name][0 if getattr(configuration, name) == comparison.FACTORS[name] else 1]
        for name in LEVELS
        if name != factor
    )


def _interval(estimate: Estimate) -> str:
    return f"{percent(estimate.low)} to {percent(estimate.high)}".replace("-", "−")


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values) + 1e-6:.1f}"  # 85.95 is rounded to 86.0, although its binary value is lower


def _markdown(columns: Sequence[str], alignment: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; ``alignment`` has one letter per column, l or r."""
    rule = "|".join("---:" if letter == "r" else "---" for letter in alignment)
    return "\n".join([f"| {' | '.join(columns)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
