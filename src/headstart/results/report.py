"""The results of a study as a page, and as tables for the terminal, for Markdown and for DVC's plots."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.resources import files
from typing import Any, NamedTuple, cast

import numpy as np
from jinja2 import Environment
from markupsafe import Markup, escape

from headstart.params import Configuration, Optimizer, Study
from headstart.results import evaluation, examples, figures, label_efficiency
from headstart.results.comparison import ALPHA, Correct, Difference, Estimate, StudyAnalysis
from headstart.results.examples import ExampleSet
from headstart.results.figures import Metric
from headstart.results.label_efficiency import LabelEfficiency, Table
from headstart.training import early_stopping

# The study that was published once: README and script of a public repository. ResNet-50 at 224 pixels.
PUBLISHED_TITLE = "Pretrained Models Experiment Learnings"
PUBLISHED_SIZE = {
    "dataset": "fashion-mnist",
    "model_name": "resnet50",
    "training_images": 60_000,
    "n_epochs": 10,
    "batch_size": 64,
}
TRACKED_FIGURES = (
    "accuracy",
    "learning_curves",
    "examples",
    "labels",
)  # figures that git has, for README and pull requests
NO_FIGURE = '<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"/>\n'  # of labels, where there is one number

MISTAKES = 20  # the most frequent ones, where a table of all would be too large


@dataclass(frozen=True)
class Row:
    """One configuration, measured and published; None where no study of this size with its settings was published."""

    name: str
    configuration: Configuration
    metrics: Mapping[str, float]
    accuracy: Estimate
    published: Mapping[str, float] | None


@dataclass(frozen=True)
class Details:
    """What the page says of a configuration beyond its row."""

    epochs: Sequence[Mapping[str, str]]  # of all seeds
    training: Mapping[str, Any]  # precision, weights, trained layers
    confusion: np.ndarray  # [classes, classes]
    f1: np.ndarray  # [classes]
    calibration: np.ndarray  # [bins, 3]


@dataclass(frozen=True)
class ReportData:
    """Everything that the page and the tables are made of."""

    study: str
    setting: Study
    dataset: str  # its title
    classes: Sequence[str]
    skipped_files: Mapping[str, str]  # files that could not be used, and why
    rows: Sequence[Row]
    details: Mapping[str, Details]
    findings: StudyAnalysis
    right: Correct
    examples: ExampleSet  # of the best configuration
    feature_maps: Mapping[str, np.ndarray]
    scratch: Sequence[str]  # the configurations that train a whole network from random weights
    by_labels: LabelEfficiency | None  # where there are several numbers of labels
    majority: tuple[str, float]  # the most frequent class of the training images, and how accurate it is as a guess

    @property
    def all_from_scratch(self) -> bool:
        """Whether fine-tuning a random network always means to train all of it."""
        ours = [row.name for row in self.rows if row.configuration.finetuning and not row.configuration.pretrained]
        return bool(ours) and set(ours) == set(self.scratch)

    @property
    def has_own_layers(self) -> bool:
        return any(row.configuration.finetune_from for row in self.rows)

    @property
    def stopped_early(self) -> dict[str, int]:
        """How many trainings of each configuration did; empty where they end after a number of epochs."""
        patience = self.setting.patience
        if patience is None:
            return {}
        return {name: stopped_early(detail.epochs, patience) for name, detail in self.details.items()}

    @property
    def is_published_size(self) -> bool:
        return is_published_size(self.setting)

    @cached_property
    def ranked(self) -> list[Row]:
        """The best test accuracy first."""
        return sort_rows(self.rows)

    @property
    def test_images(self) -> int:
        return next(iter(self.right.values())).shape[1]

    @property
    def is_balanced(self) -> bool:
        """Whether all classes are equally common in the test images, so that plain accuracy says it all."""
        return all("balanced_accuracy" not in row.metrics for row in self.rows)

    @property
    def has_few_classes(self) -> bool:
        return len(self.classes) <= figures.FEW_CLASSES

    @property
    def best(self) -> Row:
        return self.ranked[0]

    @property
    def worst(self) -> Row:
        return self.ranked[-1]

    @property
    def validation(self) -> dict[str, float]:
        """Accuracy on validation images of every configuration; empty where there are none."""
        key = "validation_accuracy"
        return {row.name: row.metrics[key] for row in self.rows if key in row.metrics}

    @property
    def optimizers(self) -> list[str]:
        return sorted({row.configuration.optimizer for row in self.rows})

    @property
    def simple_effects_of_pretrained(self) -> list[Difference]:
        """What pretrained weights gain in each pair of configurations, the smallest gain first."""
        ours = [difference for difference in self.findings.differences if difference.factor == "pretrained"]
        return sorted(ours, key=lambda difference: difference.gain.value)

    @property
    def configurations(self) -> dict[str, Configuration]:
        return {row.name: row.configuration for row in self.ranked}


def stopped_early(epochs: Sequence[Mapping[str, str]], patience: int) -> int:
    """How many of the trainings, each with a seed, whose ``epochs`` these are."""
    losses: dict[str, list[float]] = {}
    for epoch in epochs:
        losses.setdefault(epoch["seed"], []).append(float(epoch["validation_loss"]))
    return sum(early_stopping.should_stop(of_seed, patience) for of_seed in losses.values())


def sort_rows(rows: Sequence[Row]) -> list[Row]:
    """The best test accuracy first."""
    return sorted(rows, key=lambda row: row.metrics["test_accuracy"], reverse=True)


def is_published_size(setting: Study) -> bool:
    """Whether the published study had as many images, epochs and layers, so that its numbers may stand beside these."""
    values = {key: getattr(setting, key) for key in PUBLISHED_SIZE}
    return values | {"model_name": setting.model_name.lower()} == PUBLISHED_SIZE


def published_results(rows: Sequence[Mapping[str, str]]) -> dict[Configuration, dict[str, float]]:
    """The published table, read from its CSV file. A configuration with another learning rate is not in it."""
    return {
        Configuration(
            pretrained=row["pretrained"] == "true",
            finetuning=row["finetuning"] == "true",
            optimizer=cast(Optimizer, row["optimizer"]),  # which is checked
            lr=float(row["lr"]),
            momentum=float(row["momentum"]) if row["momentum"] else None,
            weight_decay=float(row["weight_decay"]) if row["weight_decay"] else None,
        ): {name: float(row[name]) for name in ("average_train_loss", "average_train_accuracy", "test_accuracy")}
        for row in rows
    }


def markdown_table(rows: Sequence[Row]) -> str:
    """The results as a Markdown table, accuracies in percent with their 95 % intervals."""
    compared = any(row.published for row in rows)
    lines = [
        "| pretrained | finetuning | optimizer | avg train loss | avg train accuracy | test accuracy % |",
        "|---|---|---|---:|---:|---:|",
    ]
    if compared:
        lines = [f"{lines[0]} published % |", f"{lines[1]}---:|"]
    for row in sort_rows(rows):
        cells = [
            str(row.configuration.pretrained).lower(),
            _finetuned(row.configuration),
            row.configuration.optimizer,
            f"{row.metrics['average_train_loss']:.4f}",
            f"{row.metrics['average_train_accuracy']:.4f}",
            f"{percent(row.accuracy.value, 2)} ({percent(row.accuracy.low)} to {percent(row.accuracy.high)})",
        ]
        if compared:
            cells.append(percent(row.published["test_accuracy"], 2) if row.published else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _finetuned(configuration: Configuration) -> str:
    """Whether it is, and from which layer where that is its own."""
    own = f" ({configuration.finetune_from})" if configuration.finetune_from else ""
    return f"{str(configuration.finetuning).lower()}{own}"


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def points(difference: float, digits: int = 1) -> str:
    """A difference of accuracies in percentage points."""
    return figures.signed(100 * difference, digits)


def tables(content: ReportData) -> dict[str, Table]:
    """What DVC plots, by name: the columns' names, then the rows, accuracies in percent."""
    return {
        "accuracy": _accuracy_table(content),
        "learning_curves": _curves_table(content),
        "confusion": _confusion_table(content),
        "labels": label_efficiency.curves_table(content.by_labels, content.setting.seeds),
        "labels_saved": label_efficiency.saved_table(content.by_labels),
    }


def correct_table(content: ReportData) -> Table:
    """A row a configuration and seed: how many test images, and which of them it has right, as ``decode_bits`` reads it."""
    rows: Table = [["configuration", "seed", "images", "correct"]]
    rows += [
        [name, seed, len(right), evaluation.encode_bits(right)]
        for name, of_seeds in content.right.items()
        for seed, right in zip(content.setting.seeds, of_seeds, strict=True)
    ]
    return rows


def _accuracy_table(content: ReportData) -> Table:
    """A row a configuration."""
    columns = ["configuration", "pretrained", "finetuning", "optimizer", "accuracy", "low", "high", "published"]
    rows: Table = [columns]
    for row in content.ranked:
        e, published = row.configuration, row.published
        factors = [str(e.pretrained).lower(), str(e.finetuning).lower(), e.optimizer]
        # A digit more, or rounding it again would round the wrong way.
        accuracies = [percent(row.accuracy.value, 2), percent(row.accuracy.low, 3), percent(row.accuracy.high, 3)]
        rows.append([row.name, *factors, *accuracies, percent(published["test_accuracy"], 2) if published else ""])
    return rows


def _curves_table(content: ReportData) -> Table:
    """A row a configuration, epoch and metric."""
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
    """A row an actual and a predicted class, of the best configuration and the worst; of many, those that occur."""
    rows: Table = [["configuration", "actual", "predicted", "images"]]
    rows += [
        [name, actual, predicted, int(count)]
        for name in dict.fromkeys([content.best.name, content.worst.name])
        for actual, counts in zip(content.classes, content.details[name].confusion, strict=True)
        for predicted, count in zip(content.classes, counts, strict=True)
        if count or content.has_few_classes
    ]
    return rows


def learning_curves(content: ReportData) -> dict[str, dict[str, Metric]]:
    """By metric and configuration; validation only where there is some."""
    kinds = {"training": "train_accuracy", "validation": "validation_accuracy"}
    if not content.setting.validation_images:
        del kinds["validation"]
    return {
        f"{kind} accuracy": {row.name: _curve(content.details[row.name].epochs, column) for row in content.ranked}
        for kind, column in kinds.items()
    }


def _curve(epochs: Sequence[Mapping[str, str]], column: str) -> Metric:
    by_epoch: dict[int, list[float]] = {}
    for epoch in epochs:
        by_epoch.setdefault(int(epoch["epoch"]), []).append(float(epoch[column]))
    return Metric(list(by_epoch), [sum(values) / len(values) for values in by_epoch.values()])


def render_figures(content: ReportData) -> dict[str, str]:
    """All figures as SVG, by name."""
    found, configurations = content.findings, content.configurations
    published = {row.name: row.published["test_accuracy"] for row in content.rows if row.published}
    details = {name: content.details[name] for name in configurations}
    f1 = np.stack([detail.f1 for detail in details.values()], axis=1)
    shown = classes_by_f1(content)[: figures.FEW_CLASSES]
    calibration = {name: detail.calibration for name, detail in details.items()}
    svg = figures.as_svg
    drawn = {
        "accuracy": svg(figures.accuracy, configurations, found.accuracy, published),
        "learning_curves": svg(figures.learning_curves, configurations, learning_curves(content)),
        "confusion_best": svg(figures.confusion, details[content.best.name].confusion, content.classes),
        "confusion_worst": svg(figures.confusion, details[content.worst.name].confusion, content.classes),
        "f1": svg(figures.f1, f1[shown], [content.classes[at] for at in shown], list(details)),
        "examples": svg(figures.examples, content.examples),
        "calibration": svg(figures.calibration, configurations, calibration),
    }
    if found.effects:
        drawn["effects"] = svg(figures.effects, found)
    if content.by_labels:
        drawn["labels"] = svg(figures.labels, configurations, content.by_labels)
    if content.feature_maps:
        drawn["feature_maps"] = svg(figures.feature_maps, content.feature_maps)
    return drawn


def figure_tables(content: ReportData) -> dict[str, Table]:
    """What figures show and no other table has, for those who cannot see them: by the figure's name, header first."""
    curves = learning_curves(content)
    epochs = range(1, max(len(curve.epochs) for by_name in curves.values() for curve in by_name.values()) + 1)
    details = {row.name: content.details[row.name] for row in content.ranked}
    confusions = {"confusion_best": content.best.name, "confusion_worst": content.worst.name}
    return {
        "learning_curves": [
            ["accuracy, %", *(f"{metric.split()[0]}, epoch {epoch}" for metric in curves for epoch in epochs)],
            *([name, *(said for by_name in curves.values() for said in _filled(by_name[name], len(epochs)))]
              for name in details),
        ],
        **_labels_numbers(content.by_labels),
        **{figure: _confusion_numbers(content, details[name].confusion) for figure, name in confusions.items()},
        "f1": [
            ["F1, %", *details],
            *([content.classes[at], *(percent(detail.f1[at]) for detail in details.values())]
              for at in classes_by_f1(content)),
        ],
        "calibration": [
            ["configuration", "expected calibration error, points"],
            *([row.name, percent(row.metrics["expected_calibration_error"])] for row in content.ranked),
        ],
    }  # fmt: skip


def _filled(curve: Metric, n: int) -> list[str]:
    """Its values in percent, for ``n`` epochs, of which the last may be missing."""
    return [*map(percent, curve.values), *["–"] * (n - len(curve.values))]


def _labels_numbers(found: LabelEfficiency | None) -> dict[str, Table]:
    """The errors that the figure shows: a row a configuration, a column a number of labels."""
    if found is None:
        return {}
    counts = sorted({n for curve in found.curves.values() for n in curve.budgets})
    rows: Table = [["test error, %", *(f"{n:,} labels" for n in counts)]]
    for name, curve in found.curves.items():
        errors = dict(zip(curve.budgets, 1 - curve.accuracy, strict=True))
        rows.append([name, *(percent(errors[n]) if n in errors else "–" for n in counts)])
    stopped_early: Table = [["stopped early", *(f"{n:,} labels" for n in counts)]]
    for name, trainings in found.stopped_early.items():
        by_count = dict(zip(found.curves[name].budgets, trainings, strict=True))
        stopped_early.append([name, *(by_count.get(n, "–") for n in counts)])
    needed: Table = [["to do as well as", *(f"with {n:,} labels" for n in counts)]]
    if (answer := found.pretraining_savings) is not None:
        for name in answer.needed:
            said = {row["labels"]: _with_interval(row) for row in label_efficiency.saved_rows(found, answer, name)}
            needed.append([name, *(said.get(f"{n:,}", "–") for n in counts)])
    return {"labels": rows, "stopped_early": stopped_early, "needed": needed}


def _marked(content: ReportData, answer: label_efficiency.LabelSavings) -> bool:
    """Whether anything in the table of ``answer`` is marked as unsure."""
    found = content.by_labels
    assert found is not None
    return any(
        label_efficiency.has_unstopped_runs(found, answer, answer.headline, at)
        for at in range(len(answer.needed[answer.headline]))
    )


def _with_interval(row: Mapping[str, str]) -> str:
    return f"{row['needed']} ({row['needed_interval']})" if row["needed_interval"] else row["needed"]


def classes_by_f1(content: ReportData) -> list[int]:
    """The numbers of the classes, the one with the lowest F1 in the best configuration first."""
    return content.details[content.best.name].f1.argsort(stable=True).tolist()


def _confusion_numbers(content: ReportData, counts: np.ndarray) -> Table:
    """The matrix, or of many classes the most frequent mistakes."""
    if content.has_few_classes:
        named = zip(content.classes, counts.tolist(), strict=True)
        return [["actual", *content.classes], *([label, *row] for label, row in named)]
    mistakes = worst_mistakes(counts, content.classes)[:MISTAKES]
    return [["actual", "taken for", "images", "of the class, %"],
            *([each.actual, each.predicted, each.images, percent(each.share)] for each in mistakes)]  # fmt: skip


def render_html(content: ReportData, drawn: Mapping[str, str]) -> str:
    """The results as one HTML page that needs nothing else, with the figures that ``draw`` has drawn."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "points": points, "settings": settings_in_words}
    template = environment.from_string(_resource("report.html"))
    return template.render(
        content=content,
        style=_resource("report.css"),
        figure=partial(_inline, drawn),
        numbers=figure_tables(content),
        significant=[difference for difference in content.findings.differences if difference.is_significant],
        not_significant=[difference for difference in content.findings.differences if not difference.is_significant],
        p_value=p_value,
        mistakes=worst_mistakes(content.details[content.best.name].confusion, content.classes),
        published_title=PUBLISHED_TITLE,
        confounder_note=confounder_note(content.findings),
        facts=run_facts(content),
        saved_rows=label_efficiency.saved_rows,
        number=lambda needed, bounds: label_efficiency.format_count(
            label_efficiency.two_digits(needed), bounds, lambda labels: labels
        ),
        not_stopped=[name for name, n in content.stopped_early.items() if n < len(content.setting.seeds)],
        has_unstopped_runs=label_efficiency.has_unstopped_runs,
        marked=partial(_marked, content),
        error=ALPHA,
        shown=examples.MAX_CLASSES,
    )


def settings_in_words(settings: Mapping[str, tuple[float | None, float | None]]) -> str:
    """The settings in which two configurations differ, such as "lr 0.01, not 0.001"."""

    def said(value: float | None) -> str:
        return "none" if value is None else f"{value:g}"

    return "; ".join(
        f"{key.replace('_', ' ')} {said(one)}, not {said(other)}" for key, (one, other) in settings.items()
    )


def confounder_note(findings: StudyAnalysis) -> str:
    """What the two optimizers bring along, in words; empty where it is nothing."""
    settings = [difference.settings for difference in findings.differences if difference.factor == "optimizer"]
    keys = [
        key.replace("_", " ") for key in ("momentum", "weight_decay", "lr") if any(key in each for each in settings)
    ]
    return f"the two have other settings too ({', '.join(keys)})" if keys else ""


def p_value(difference: Difference) -> str:
    return "< 0.0001" if difference.p < 0.0001 else f"{difference.p:.4f}"


class Mistake(NamedTuple):
    """What an image is, what it was taken for, how many such images there are, and what share of their class."""

    actual: str
    predicted: str
    images: int
    share: float


def worst_mistakes(confusion: np.ndarray, classes: Sequence[str]) -> list[Mistake]:
    """All mistakes that were made, the most frequent first."""
    wrong = confusion - np.diag(confusion.diagonal())
    order = (-wrong).ravel().argsort(stable=True)[: np.count_nonzero(wrong)]
    return [
        Mistake(classes[actual], classes[predicted], int(wrong[actual, predicted]),
                wrong[actual, predicted] / confusion[actual].sum())
        for actual, predicted in zip(*(each.tolist() for each in np.unravel_index(order, wrong.shape)), strict=True)
    ]  # fmt: skip


def run_facts(content: ReportData) -> dict[str, str]:
    """How the configurations were run: each fact once, and all its values where they differ."""
    trainings = [content.details[row.name].training for row in content.rows]
    facts = {"precision": {str(each["precision"]) for each in trainings}}
    facts["weights"] = {
        f"{each['weights']} (SHA-256 {each['weights_sha256']})" for each in trainings if each["weights_sha256"]
    }
    facts["fine-tuned from"] = {
        f"{each['trained_from']} ({each['trained_parameters']:,} parameters)"
        for row, each in zip(content.rows, trainings, strict=True) if row.configuration.finetuning
    }  # fmt: skip
    return {fact: ", ".join(sorted(values)) for fact, values in facts.items() if values}


def _resource(name: str) -> str:
    return files("headstart.results").joinpath(name).read_text(encoding="utf-8")


def _inline(drawn: Mapping[str, str], name: str, label: str) -> Markup:
    """The figure ``name`` as a part of the page: its colors are the page's, its ids its own, its size the column's."""
    svg = drawn[name]
    for color, variable in figures.VARIABLES.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    opening = f'<svg role="img" aria-label="{escape(label)}" class="{name}"'
    return Markup(re.sub(r'<svg width="[^"]*" height="[^"]*"', lambda _: opening, svg, count=1))
