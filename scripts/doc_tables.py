"""Rewrite the tables of committed results in README.md and docs/results.md.

A table is everything between the lines `<!-- table: NAME -->` and `<!-- end -->`. Do not edit it by hand.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headstart import files
from headstart.console import UserError, run_cli
from headstart.params import Configuration
from headstart.results import comparison
from headstart.results.comparison import Difference, Estimate
from headstart.results.tables import percent, points
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


class Content(NamedTuple):
    """The input of the tables of a study."""

    results: Results
    configurations: dict[str, Configuration]
    errors: list[dict[str, str]]  # rows of plots/<study>/labels.csv


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
        parts[start + 1] = f"\n{build(name, revision)}\n"
        if parts[start + 1] != old:
            changed.append(name)
    return "".join(parts), changed


def build(name: str, revision: str | None) -> str:
    """Return the table ``name`` as Markdown.

    Raises:
        UserError: the study has no results or no record.
    """
    study, table = TABLES[name]
    study_results, record = results.read(study, revision), results.read_record(study, revision)
    if study_results is None or record is None:
        raise UserError(f"{name}: the study {study} has no results, or no record. Run `dvc repro` and `make record`.")
    errors = results.read_csv(f"plots/{study}/labels.csv", revision)
    return table(Content(study_results, results.configurations(record), errors))


def configuration_table(content: Content) -> str:
    """Return one row per configuration, the best first, with the published accuracy if there is one."""
    measured = content.results
    rows = []
    for name in sorted(measured.accuracy, key=lambda name: measured.metrics[name]["test_accuracy"], reverse=True):
        configuration, metrics, accuracy = content.configurations[name], measured.metrics[name], measured.accuracy[name]
        override = f" ({configuration.finetune_from})" if configuration.finetune_from else ""
        cells = [
            str(configuration.pretrained).lower(), f"{str(configuration.finetuning).lower()}{override}",
            configuration.optimizer,
            f"{metrics['average_train_loss']:.4f}", f"{metrics['average_train_accuracy']:.4f}",
            f"{percent(accuracy.value, 2)} ({percent(accuracy.low)} to {percent(accuracy.high)})",
        ]  # fmt: skip
        if measured.published:
            cells.append(percent(measured.published[name], 2) if name in measured.published else "–")
        rows.append(cells)
    columns = ["pretrained", "finetuning", "optimizer", "avg train loss", "avg train accuracy", "test accuracy %"]
    return _markdown([*columns, *(["published %"] if measured.published else [])], rows, n_text=3)


def accuracy_table(content: Content) -> str:
    """Return one row per configuration, the best first, with its test accuracy."""
    ranked = sorted(content.results.accuracy.items(), key=lambda item: item[1].value, reverse=True)
    rows = [[name, f"{percent(accuracy.value, 2)} %", _interval(accuracy)] for name, accuracy in ranked]
    return _markdown(["configuration", "test accuracy", "95% CI"], rows, n_text=1)


def gain_table(content: Content) -> str:
    """Return one row per pair of configurations that differ in the initial weights: both accuracies and the gain.

    The names of the trained layers are those of `resnet50`, which fine-tunes `layer4`.
    """
    rows = [
        [
            "last stage + classifier" if content.configurations[pair.name].finetuning else "classifier only",
            content.configurations[pair.name].optimizer,
            *(f"{percent(content.results.accuracy[name].value, 2)} %" for name in (pair.name, pair.baseline)),
            _gain(pair),
        ]
        for pair in _pairs(content, "pretrained")
    ]
    columns = ["trained layers", "optimizer", "pretrained", "random init", "gain in points (95% CI)"]
    return _markdown(columns, rows, n_text=2)


def effect_table(factor: str, content: Content) -> str:
    """Return one column per pair of configurations that differ in ``factor``, with the gain in points."""
    pairs = _pairs(content, factor)
    columns = [_other_levels(content.configurations[pair.name], factor) for pair in pairs]
    suffix = ", each with its own hyperparameters" if factor == "optimizer" else ""
    row = [f"{' − '.join(LEVELS[factor])}{suffix}", *map(_gain, pairs)]
    return _markdown(["difference in points (95% CI)", *columns], [row], n_text=1)


def error_table(content: Content) -> str:
    """Return one row per configuration or probe, one column per label budget: the mean test error over seeds in %."""
    errors: dict[str, dict[int, list[float]]] = {}
    for row in content.errors:
        by_budget = errors.setdefault(row["configuration"], {})
        by_budget.setdefault(int(row["label_budget"]), []).append(float(row["error"]))
    budgets = sorted({budget for by_budget in errors.values() for budget in by_budget})
    rows = [[name, *(_mean(by_budget[budget]) for budget in budgets)] for name, by_budget in errors.items()]
    return _markdown(["configuration", *(f"{budget:,}" for budget in budgets)], rows, n_text=1)


TABLES: dict[str, tuple[str, Callable[[Content], str]]] = {  # by name: the study, and the function
    **{f"{study}-configurations": (study, configuration_table) for study in STUDIES},
    **{f"resnet50-{factor}": ("resnet50", partial(effect_table, factor)) for factor in LEVELS},
    "resnet50-gain": ("resnet50", gain_table),
    "quick": ("quick", accuracy_table),
    "labels-errors": ("labels", error_table),
}


def _pairs(content: Content, factor: str) -> list[Difference]:
    """Return the pairs of configurations that differ in ``factor`` only."""
    correct = results.stack_seeds(content.results.correct)
    return [pair for pair in comparison.differences(content.configurations, correct) if pair.factor == factor]


def _other_levels(configuration: Configuration, factor: str) -> str:
    """Return the levels of all factors but ``factor``, for example "fine-tuned, Adam"."""
    return ", ".join(
        LEVELS[name][0 if getattr(configuration, name) == comparison.FACTORS[name] else 1]
        for name in LEVELS
        if name != factor
    )


def _gain(pair: Difference) -> str:
    return f"{points(pair.gain.value)} ({_interval(pair.gain)})"


def _interval(estimate: Estimate) -> str:
    return f"{percent(estimate.low)} to {percent(estimate.high)}".replace("-", "−")


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values) + 1e-6:.1f}"  # 85.95 is rounded to 86.0, although its binary value is lower


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], *, n_text: int) -> str:
    """Return a Markdown table, whose first ``n_text`` columns are text and the others numbers."""
    rules = ["---" if index < n_text else "---:" for index in range(len(columns))]
    return "\n".join(
        [f"| {' | '.join(columns)} |", f"|{'|'.join(rules)}|", *(f"| {' | '.join(row)} |" for row in rows)]
    )


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
