"""Rewrite the tables of committed results in README.md and docs/results.md.

A table is everything between the lines `<!-- table: NAME -->` and `<!-- end -->`. Do not edit it by hand.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from headstart import files
from headstart.console import UserError, run_cli
from headstart.params import Configuration
from headstart.results import comparison, label_efficiency, label_savings
from headstart.results.comparison import Difference, Estimate
from headstart.results.label_efficiency import PROBES
from headstart.results.label_savings import LearningCurve
from headstart.results.tables import percent, points
from scripts import argument_parser, results
from scripts.results import Results

FILES = ("README.md", "docs/results.md")
END = "<!-- end -->"
MARKER = re.compile(r"^(<!-- *(?:table:.*|end) *-->) *$", re.MULTILINE)
START = re.compile(r"<!-- *table: *(.*?) *-->")
NETWORK_TABLES = {  # comparisons of networks, by the name of their table
    "networks-trashnet": "trashnet-networks",
    "networks-tux-paint": "tux-paint-networks",
    "networks-fashion-mnist": "quick",
}
STUDIES = ("full", "resnet50", "quick", "quick-seeds", "labels", "labels-doubled", "trashnet")  # in docs/results.md
LEVELS = {  # of each factor: the level whose gain is the effect, and the other
    "pretrained": ("pretrained", "random"),
    "finetuning": ("fine-tuned", "frozen"),
    "optimizer": ("Adam", "SGD"),
}


class Content(NamedTuple):
    """The input of the tables of a study."""

    results: Results
    configurations: dict[str, Configuration]
    curves: dict[str, LearningCurve]  # of configurations and probes; empty if there is one label budget
    seeds: list[int]  # of the curves
    revision: str | None


def main(*arguments: str) -> None:
    parser = argument_parser(f"{__doc__}\nNames of tables: {', '.join([*TABLES, *NETWORK_TABLES])}.")
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
        if name not in (*TABLES, *NETWORK_TABLES):
            choices = ", ".join([*TABLES, *NETWORK_TABLES])
            raise UserError(f"{file}: unknown table. Choose one of {choices}. Got {name}.")
        parts[start + 1] = f"\n{build(name, revision)}\n"
        if parts[start + 1] != old:
            changed.append(name)
    return "".join(parts), changed


def build(name: str, revision: str | None) -> str:
    """Return the table ``name`` as Markdown.

    Raises:
        UserError: the study has no results or no record.
    """
    if name in NETWORK_TABLES:
        return network_table(NETWORK_TABLES[name], revision)
    study, table = TABLES[name]
    content = read_content(study, revision)
    if table in CURVE_TABLES and not content.curves:
        raise UserError(f"{name}: the study {study} has no metrics/{study}/correct_by_budget.csv. Run `dvc repro`.")
    return table(content)


def network_table(study: str, revision: str | None) -> str:
    """Return one row per network of a comparison of `make networks`, the most accurate first.

    Raises:
        UserError: the study has no comparison.
    """
    networks = results.read_csv(f"metrics/{study}/networks.csv", revision)
    if not networks:
        raise UserError(f"the study {study} has no comparison of networks. Run `make networks`.")
    has_finetuned = any(row["finetuned"] for row in networks)
    rows = []
    for row in networks:
        is_marked = row["gap"] and row["significantly_worse"] == "false"
        cells = [
            f"{row['network']} =" if is_marked else row["network"], _value(_estimate(row, "accuracy", "low", "high")),
            _points(_estimate(row, "gap", "gap_low", "gap_high")) if row["gap"] else "best", row["p"] or "–",
            f"{float(row['ms_per_image']):.3g}" if row["ms_per_image"] else "–", f"{float(row['gmacs']):.3g}",
            f"{int(row['parameters']) / 1e6:.1f}",
        ]  # fmt: skip
        if has_finetuned:
            names = "finetuned", "finetuned_low", "finetuned_high"
            cells.append(_value(_estimate(row, *names)) if row["finetuned"] else "–")
        rows.append(cells)
    columns = ["network", "linear probe, %", "gap, points", "p", "ms per image", "GMACs", "parameters, millions"]
    return _markdown([*columns, *(["fine-tuned, %"] if has_finetuned else [])], rows, n_text=1)


def _estimate(row: Mapping[str, str], *names: str) -> Estimate:
    """Return the estimate in three columns of percent."""
    return Estimate(*(float(row[name]) / 100 for name in names))


def _value(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} ({_interval(estimate)})"


def read_content(study: str, revision: str | None) -> Content:
    """Read the committed results of ``study``.

    Raises:
        UserError: the study has no results or no record.
    """
    study_results, record = results.read(study, revision), results.read_record(study, revision)
    if study_results is None or record is None:
        raise UserError(f"the study {study} has no results, or no record. Run `dvc repro` and `make record`.")
    settings = record["settings"]
    curves = results.read_curves(
        results.read_csv(f"metrics/{study}/correct_by_budget.csv", revision),
        results.read_csv(f"metrics/{study}/correct.csv", revision),
        full_budget=settings["training_images"] + settings["validation_images"],
    )
    return Content(study_results, results.configurations(record), curves, settings["seeds"], revision)


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

    The names of the trained layers are those of `full`, which fine-tunes `layer4`.
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
    budgets = sorted({budget for curve in content.curves.values() for budget in curve.budgets})
    rows = []
    for name, curve in content.curves.items():
        errors = dict(zip(curve.budgets, 1 - curve.accuracy, strict=True))
        rows.append([name, *(percent(errors[budget]) if budget in errors else "–" for budget in budgets)])
    return _markdown(["configuration", *(f"{budget:,}" for budget in budgets)], rows, n_text=1)


def label_gain_table(content: Content) -> str:
    """Return one row per pair of learning curves, one column per label budget: the gain in accuracy, in points."""
    pairs = [
        ("pretrained", "from-scratch"), ("pretrained", PROBES["pixels"]), ("from-scratch", PROBES["pixels"]),
        (PROBES["pretrained"], PROBES["pixels"]),
    ]  # fmt: skip
    gains = [label_efficiency.gain_by_budget(*pair, content.curves) for pair in pairs]
    budgets = sorted({budget for gain in gains for budget in gain.gains})
    rows = [
        [f"{gain.name} over {gain.baseline}",
         *(_points(cell) if cell else "–" for cell in (*map(gain.gains.get, budgets), gain.mean))]
        for gain in gains
    ]  # fmt: skip
    return _markdown(["gain of", *(f"{budget:,}" for budget in budgets), "mean"], rows, n_text=1)


def labels_needed_table(content: Content) -> str:
    """Return one row per label budget: the labels that training from scratch needs to match pretrained weights."""
    reference, curve = content.curves["from-scratch"], content.curves["pretrained"]
    bounds = (reference.budgets[0], reference.budgets[-1])
    rows = []
    for budget, exact in zip(curve.budgets, label_savings.labels_needed(reference, {"": curve})[""], strict=True):
        needed = label_efficiency.round_needed(exact, budget)
        numbers = [label_efficiency.format_count(needed.value, bounds, change) for change in (
            lambda labels: labels, lambda labels, budget=budget: labels - budget)]  # fmt: skip
        interval = label_efficiency.format_interval(needed, bounds, lambda labels: labels)
        rows.append([f"{budget:,}", numbers[0], interval, numbers[1]])
    return _markdown(["labels, pretrained", "from scratch", "95% CI", "labels saved"], rows, n_text=0)


def doubling_table(content: Content) -> str:
    """Return one row per configuration and label budget of `labels-doubled`.

    Columns: the test error in `labels`, the half-width of its confidence interval, and the change in test error that
    the doubled training brings, for the seeds of `labels-doubled`.
    """
    labels = read_content("labels", content.revision)
    rows = []
    for name, doubled in content.curves.items():
        curve = labels.curves[name]
        for index, budget in enumerate(doubled.budgets):
            short = curve.correct[list(curve.budgets).index(budget)]
            same_seeds = short[[labels.seeds.index(seed) for seed in content.seeds]]
            accuracy = comparison.normal_interval(short.astype(float))
            change = comparison.normal_interval(same_seeds.astype(float) - doubled.correct[index])
            rows.append([
                name, f"{budget:,}", f"{percent(1 - accuracy.value)}", f"{percent((accuracy.high - accuracy.low) / 2)}",
                _points(change),
            ])  # fmt: skip
    return _markdown(["configuration", "labels", "test error %", "half-width", "change (95% CI)"], rows, n_text=1)


TABLES: dict[str, tuple[str, Callable[[Content], str]]] = {  # by name: the study, and the function
    **{f"{study}-configurations": (study, configuration_table) for study in STUDIES},
    **{f"full-{factor}": ("full", partial(effect_table, factor)) for factor in LEVELS},
    **{f"resnet50-{factor}": ("resnet50", partial(effect_table, factor)) for factor in LEVELS},
    "full-gain": ("full", gain_table),
    "quick": ("quick", accuracy_table),
    "labels-errors": ("labels", error_table),
    "labels-gains": ("labels", label_gain_table),
    "labels-needed": ("labels", labels_needed_table),
    "labels-doubling": ("labels-doubled", doubling_table),
    "trashnet-errors": ("trashnet", error_table),
}


CURVE_TABLES = (error_table, label_gain_table, labels_needed_table, doubling_table)


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


def _points(estimate: Estimate) -> str:
    return f"{points(estimate.value)} ({points(estimate.low)} to {points(estimate.high)})"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], *, n_text: int) -> str:
    """Return a Markdown table, whose first ``n_text`` columns are text and the others numbers."""
    rules = ["---" if index < n_text else "---:" for index in range(len(columns))]
    return "\n".join(
        [f"| {' | '.join(columns)} |", f"|{'|'.join(rules)}|", *(f"| {' | '.join(row)} |" for row in rows)]
    )


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
