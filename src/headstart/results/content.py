"""The content of a report, without figures and HTML: what was measured, and what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from headstart.params import Configuration, Study
from headstart.results import epochs
from headstart.results.comparison import Correct, Difference, Estimate, StudyAnalysis
from headstart.results.epochs import Epoch
from headstart.results.examples import ExampleSet
from headstart.results.issues import IssueReport
from headstart.results.label_efficiency import LabelEfficiency

# The study that was published once: README and script of a public repository. ResNet-50 at 224 pixels.
PUBLISHED_TITLE = "Pretrained Models Experiment Learnings"
PUBLISHED_SETTINGS = {
    "test_images": None,  # all of them
    "dataset": "fashion-mnist",
    "model_name": "resnet50",
    "training_images": 60_000,
    "n_epochs": 10,
    "batch_size": 64,
}
FEW_CLASSES = 20  # at most so many classes are shown with a number for each


@dataclass(frozen=True)
class Row:
    """One configuration, measured and published; None if no study of this size with its settings was published."""

    name: str
    configuration: Configuration
    metrics: Mapping[str, float]
    accuracy: Estimate
    published: Mapping[str, float] | None


@dataclass(frozen=True)
class Details:
    """The numbers of a configuration behind its row."""

    epochs: Sequence[Epoch]  # of all seeds
    training: Mapping[str, Any]  # precision, weights, trained layers
    confusion: np.ndarray  # [classes, classes]
    f1: np.ndarray  # [classes]
    calibration: np.ndarray  # [bins, 3]


@dataclass(frozen=True)
class ReportData:
    """All data of the report and the tables."""

    study_name: str
    study: Study
    dataset: str  # its title
    classes: Sequence[str]
    skipped_files: Mapping[str, str]  # files that could not be used, and why
    rows: Sequence[Row]
    details: Mapping[str, Details]
    analysis: StudyAnalysis
    correct: Correct
    examples: ExampleSet  # of the best configuration
    feature_maps: Mapping[str, np.ndarray]
    from_scratch: Sequence[str]  # the configurations that are trained from scratch
    label_efficiency: LabelEfficiency | None  # None if there is one label budget
    augmented_images: Mapping[str, np.ndarray]  # of training images, by name of the augmentation
    issues: IssueReport | None  # possible issues in the dataset; None if it has no files that you could correct
    majority: tuple[str, float]  # the most frequent class of the training images, and its accuracy as a constant guess

    @property
    def all_from_scratch(self) -> bool:
        """Whether each fine-tuned configuration with random initial weights is trained from scratch."""
        names = [row.name for row in self.rows if row.configuration.finetuning and not row.configuration.pretrained]
        return bool(names) and set(names) == set(self.from_scratch)

    @property
    def has_frozen(self) -> bool:
        """Whether a configuration trains the classifier alone."""
        return not all(row.configuration.finetuning for row in self.rows)

    @property
    def has_finetune_overrides(self) -> bool:
        """Whether a configuration is fine-tuned from another layer than the study's."""
        return any(row.configuration.finetune_from for row in self.rows)

    @property
    def stopped_early(self) -> dict[str, int]:
        """The number of trainings of each configuration that stopped early; empty without early stopping."""
        patience = self.study.patience
        if patience is None:
            return {}
        return {
            name: sum(epochs.has_stopped_early(training, patience) for training in epochs.by_seed(detail.epochs))
            for name, detail in self.details.items()
        }

    @property
    def is_comparable_with_published(self) -> bool:
        return is_comparable_with_published(self.study)

    @cached_property
    def ranked(self) -> list[Row]:
        """The rows, the best test accuracy first."""
        return sort_rows(self.rows)

    @property
    def test_images(self) -> int:
        return next(iter(self.correct.values())).shape[1]

    @property
    def is_balanced(self) -> bool:
        """Whether all classes are equally common in the test images, so that balanced accuracy is accuracy."""
        return all("balanced_accuracy" not in row.metrics for row in self.rows)

    @property
    def has_few_classes(self) -> bool:
        return len(self.classes) <= FEW_CLASSES

    @property
    def best(self) -> Row:
        return self.ranked[0]

    @property
    def worst(self) -> Row:
        return self.ranked[-1]

    @property
    def validation(self) -> dict[str, float]:
        """Accuracy of every configuration on validation images; empty without validation images."""
        key = "validation_accuracy"
        return {row.name: row.metrics[key] for row in self.rows if key in row.metrics}

    @property
    def has_schedule(self) -> bool:
        """Whether the learning rate of a configuration changes during its training."""
        return any(row.configuration.has_schedule for row in self.rows)

    @property
    def optimizers(self) -> list[str]:
        return sorted({row.configuration.optimizer for row in self.rows})

    @property
    def simple_effects_of_pretrained(self) -> list[Difference]:
        """The gain of pretrained weights in each pair of configurations, the smallest gain first."""
        effects = [difference for difference in self.analysis.differences if difference.factor == "pretrained"]
        return sorted(effects, key=lambda difference: difference.gain.value)

    @property
    def configurations(self) -> dict[str, Configuration]:
        return {row.name: row.configuration for row in self.ranked}


class Score(NamedTuple):
    """The accuracy of a configuration or a probe."""

    name: str
    accuracy: Estimate


@dataclass(frozen=True)
class PartialData:
    """The results of a study whose trainings have not all finished."""

    study_name: str
    study: Study
    dataset: str  # its title
    classes: Sequence[str]
    test_images: int
    ranked: Sequence[Score]  # of the finished configurations and of the probes, the best first
    missing: Sequence[str]  # the configurations that have not finished
    majority: tuple[str, float]  # as in ``ReportData``
    issues: IssueReport | None


def sort_rows(rows: Sequence[Row]) -> list[Row]:
    """Sort by test accuracy, the best first."""
    return sorted(rows, key=lambda row: row.metrics["test_accuracy"], reverse=True)


def is_comparable_with_published(study: Study) -> bool:
    """Return whether ``study`` has the size of the published study, so that the two are comparable."""
    values = {key: getattr(study, key) for key in PUBLISHED_SETTINGS}
    return values | {"model_name": study.model_name.lower()} == PUBLISHED_SETTINGS


def published_results(rows: Sequence[Mapping[str, str]]) -> dict[Configuration, dict[str, float]]:
    """Parse the rows of the published table. It has no configuration with another learning rate."""
    return {
        Configuration(
            pretrained=row["pretrained"] == "true",
            finetuning=row["finetuning"] == "true",
            optimizer=row["optimizer"],
            lr=float(row["lr"]),
            momentum=float(row["momentum"]) if row["momentum"] else None,
            weight_decay=float(row["weight_decay"]) if row["weight_decay"] else None,
        ): {name: float(row[name]) for name in ("average_train_loss", "average_train_accuracy", "test_accuracy")}
        for row in rows
    }


class MetricCurve(NamedTuple):
    """One metric of one configuration over its epochs, the mean over the seeds."""

    epochs: Sequence[int]
    values: Sequence[float]


def learning_curves(content: ReportData) -> dict[str, dict[str, MetricCurve]]:
    """Return the curves by metric and configuration; without validation images there is no validation accuracy."""
    columns = {"training accuracy": "train_accuracy"}
    if content.study.validation_images:
        columns["validation accuracy"] = "validation_accuracy"
    return {
        metric: {row.name: _metric_curve(content.details[row.name].epochs, column) for row in content.ranked}
        for metric, column in columns.items()
    }


def _metric_curve(rows: Sequence[Epoch], column: str) -> MetricCurve:
    by_epoch: dict[int, list[float]] = {}
    for row in rows:
        by_epoch.setdefault(int(row["epoch"]), []).append(float(row[column]))
    return MetricCurve(list(by_epoch), [sum(values) / len(values) for values in by_epoch.values()])


def classes_by_f1(content: ReportData) -> list[int]:
    """Return the class indices, the lowest F1 in the best configuration first."""
    return content.details[content.best.name].f1.argsort(stable=True).tolist()


class Mistake(NamedTuple):
    """An actual and a predicted class, the number of such test images, and their share of the actual class."""

    actual: str
    predicted: str
    images: int
    share: float


def mistakes_by_frequency(confusion: np.ndarray, classes: Sequence[str]) -> list[Mistake]:
    """Return all mistakes in ``confusion`` [classes, classes], the most frequent first."""
    wrong = confusion - np.diag(confusion.diagonal())
    order = (-wrong).ravel().argsort(stable=True)[: np.count_nonzero(wrong)]
    return [
        Mistake(classes[actual], classes[predicted], int(wrong[actual, predicted]),
                wrong[actual, predicted] / confusion[actual].sum())
        for actual, predicted in zip(*(index.tolist() for index in np.unravel_index(order, wrong.shape)), strict=True)
    ]  # fmt: skip


def confounders(analysis: StudyAnalysis) -> list[str]:
    """Return the hyperparameters in which pairs of optimizers differ."""
    pairs = [difference for difference in analysis.differences if difference.factor == "optimizer"]
    keys = ("momentum", "weight_decay", "lr")
    return [key for key in keys if any(key in difference.hyperparameters for difference in pairs)]


def run_facts(content: ReportData) -> dict[str, str]:
    """Return how the configurations were run: each fact with all of its values."""
    trainings = [content.details[row.name].training for row in content.rows]
    facts = {"precision": {str(training["precision"]) for training in trainings}}
    facts["weights"] = {
        f"{training['weights']} (SHA-256 {training['weights_sha256']})"
        for training in trainings
        if training["weights_sha256"]
    }
    facts["fine-tuned from"] = {
        f"{training['trained_from']} ({training['trained_parameters']:,} parameters)"
        for row, training in zip(content.rows, trainings, strict=True)
        if row.configuration.finetuning
    }
    return {fact: ", ".join(sorted(values)) for fact, values in facts.items() if values}
