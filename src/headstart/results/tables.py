"""The tables of a report: for DVC's plots, for `metrics/`, and below the figures of the report."""

from collections.abc import Mapping

import numpy as np

from headstart.results import evaluation, label_efficiency
from headstart.results.content import MetricCurve, ReportData, classes_by_f1, learning_curves, mistakes_by_frequency
from headstart.results.label_efficiency import LabelEfficiency, Table

MISTAKES = 20  # the most frequent ones, if the confusion matrix is too large to be shown


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def points(difference: float, digits: int = 1) -> str:
    """Format a difference of accuracies in percentage points, with its sign; minus is U+2212."""
    return f"{100 * difference:+.{digits}f}".replace("-", "−")


def plot_tables(content: ReportData) -> dict[str, Table]:
    """Return the tables that DVC plots, by name: a header, then the rows, accuracies in percent."""
    return {
        "accuracy": _accuracy_table(content),
        "learning_curves": _curves_table(content),
        "confusion": _confusion_table(content),
        "labels": label_efficiency.curves_table(content.label_efficiency, content.study.seeds),
        "labels_saved": label_efficiency.savings_table(content.label_efficiency),
    }


def correct_table(content: ReportData) -> Table:
    """Return which test images are correct, one row per configuration and seed; ``decode_bits`` reads the bits."""
    rows: Table = [["configuration", "seed", "images", "correct"]]
    rows += [
        [name, seed, len(correct), evaluation.encode_bits(correct)]
        for name, by_seed in content.correct.items()
        for seed, correct in zip(content.study.seeds, by_seed, strict=True)
    ]
    return rows


def _accuracy_table(content: ReportData) -> Table:
    """Return one row per configuration."""
    columns = ["configuration", "pretrained", "finetuning", "optimizer", "accuracy", "low", "high", "published"]
    rows: Table = [columns]
    for row in content.ranked:
        configuration, published = row.configuration, row.published
        factors = [str(configuration.pretrained).lower(), str(configuration.finetuning).lower()]
        # The ends have one more digit, so that a reader who rounds them does not round twice.
        accuracies = [percent(row.accuracy.value, 2), percent(row.accuracy.low, 3), percent(row.accuracy.high, 3)]
        rows.append([row.name, *factors, configuration.optimizer, *accuracies,
                     percent(published["test_accuracy"], 2) if published else ""])  # fmt: skip
    return rows


def _curves_table(content: ReportData) -> Table:
    """Return one row per configuration, epoch and metric."""
    curves = learning_curves(content)
    rows: Table = [["configuration", "metric", "epoch", "accuracy"]]
    rows += [
        [row.name, metric, epoch, percent(value, 2)]
        for row in content.ranked
        for metric, by_name in curves.items()
        for epoch, value in zip(*by_name[row.name], strict=True)
    ]
    return rows


def _confusion_table(content: ReportData) -> Table:
    """Return one row per actual and predicted class of the best and the worst configuration.

    With many classes, only the pairs that occur are in it.
    """
    rows: Table = [["configuration", "actual", "predicted", "images"]]
    rows += [
        [name, actual, predicted, int(count)]
        for name in dict.fromkeys([content.best.name, content.worst.name])
        for actual, counts in zip(content.classes, content.details[name].confusion, strict=True)
        for predicted, count in zip(content.classes, counts, strict=True)
        if count or content.has_few_classes
    ]
    return rows


def figure_tables(content: ReportData) -> dict[str, Table]:
    """Return the numbers of figures that no other table has, for readers who cannot see them.

    Returns:
        By the name of the figure: a header, then the rows.
    """
    curves = learning_curves(content)
    n_epochs = max(len(curve.epochs) for by_name in curves.values() for curve in by_name.values())
    details = {row.name: content.details[row.name] for row in content.ranked}
    confusions = {"confusion_best": content.best.name, "confusion_worst": content.worst.name}
    return {
        "learning_curves": [
            ["accuracy, %",
             *(f"{metric.split()[0]}, epoch {epoch}" for metric in curves for epoch in range(1, n_epochs + 1))],
            *([name, *(cell for by_name in curves.values() for cell in _padded(by_name[name], n_epochs))]
              for name in details),
        ],
        **_label_efficiency_tables(content.label_efficiency),
        **{figure: _confusion_numbers(content, details[name].confusion) for figure, name in confusions.items()},
        "f1": [
            ["F1, %", *details],
            *([content.classes[label], *(percent(detail.f1[label]) for detail in details.values())]
              for label in classes_by_f1(content)),
        ],
        "calibration": [
            ["configuration", "expected calibration error, points"],
            *([row.name, percent(row.metrics["expected_calibration_error"])] for row in content.ranked),
        ],
    }  # fmt: skip


def _padded(curve: MetricCurve, n: int) -> list[str]:
    """Return the values in percent, padded to ``n`` epochs."""
    return [*map(percent, curve.values), *["–"] * (n - len(curve.values))]


def _label_efficiency_tables(efficiency: LabelEfficiency | None) -> dict[str, Table]:
    """Return test errors, early stopping and labels needed: one row per configuration, one column per budget."""
    if efficiency is None:
        return {}
    budgets = sorted({n for curve in efficiency.curves.values() for n in curve.budgets})
    errors: Table = [["test error, %", *(f"{n:,} labels" for n in budgets)]]
    for name, curve in efficiency.curves.items():
        by_budget = dict(zip(curve.budgets, 1 - curve.accuracy, strict=True))
        errors.append([name, *(percent(by_budget[n]) if n in by_budget else "–" for n in budgets)])
    stopped_early: Table = [["stopped early", *(f"{n:,} labels" for n in budgets)]]
    for name, trainings in efficiency.stopped_early.items():
        counts = dict(zip(efficiency.curves[name].budgets, trainings, strict=True))
        stopped_early.append([name, *(counts.get(n, "–") for n in budgets)])
    needed: Table = [["to do as well as", *(f"with {n:,} labels" for n in budgets)]]
    if (savings := efficiency.pretraining_savings) is not None:
        for name in savings.needed:
            rows = label_efficiency.savings_rows(efficiency, savings, name)
            cells = {row["labels"]: _with_interval(row) for row in rows}
            needed.append([name, *(cells.get(f"{n:,}", "–") for n in budgets)])
    return {"labels": errors, "stopped_early": stopped_early, "needed": needed}


def _with_interval(row: Mapping[str, str]) -> str:
    return f"{row['needed']} ({row['needed_interval']})" if row["needed_interval"] else row["needed"]


def _confusion_numbers(content: ReportData, counts: np.ndarray) -> Table:
    """Return the confusion matrix; with many classes the most frequent mistakes."""
    if content.has_few_classes:
        named = zip(content.classes, counts.tolist(), strict=True)
        return [["actual", *content.classes], *([label, *row] for label, row in named)]
    mistakes = mistakes_by_frequency(counts, content.classes)[:MISTAKES]
    header = ["actual", "predicted", "images", "of the class, %"]
    return [header, *([*mistake[:3], percent(mistake.share)] for mistake in mistakes)]
