"""Evaluate one configuration: write its metrics, and its confusion, per-class and calibration tables."""

import sys
from statistics import mean

import numpy as np

from headstart import files
from headstart.console import UserError, run_cli
from headstart.data import splits
from headstart.params import Params
from headstart.results import epochs, evaluation
from pipeline.provenance import Run
from stages.paths import model_file, predictions_file, prepared_file, scores_folder


def main(name: str, study: str = "") -> None:
    run = Run(f"evaluate@{name}", study)
    settings = run.settings
    logits, labels, classes = _read_predictions(name, settings)
    rows = files.read_csv(model_file(settings, name, 0).with_name("epochs.csv"))
    metrics = {
        **evaluation.summary(logits=logits, labels=labels),
        "average_train_loss": round(mean(float(row["train_loss"]) for row in rows), 4),
        "average_train_accuracy": round(mean(float(row["train_accuracy"]) for row in rows), 4),
    }
    if rows[-1]["validation_accuracy"]:  # absent without validation images
        patience = settings.selected_study.patience
        accuracies = [epochs.validation_accuracy(training, patience) for training in epochs.by_seed(rows)]
        metrics["validation_accuracy"] = round(mean(accuracies), 4)
    pooled = evaluation.pool_seeds(logits=logits, labels=labels)
    counts = evaluation.confusion_matrix(**pooled).tolist()
    confusion = [[label, *row] for label, row in zip(classes, counts, strict=True)]
    scores = evaluation.per_class(**pooled)
    columns = [values.tolist() for values in scores.values()]
    bins = [[number, *row] for number, row in enumerate(evaluation.calibration(**pooled).tolist(), 1)]
    with files.atomic_write(scores_folder(settings, name)) as folder:
        files.write_csv(folder / "confusion.csv", ["actual", *classes], confusion)
        files.write_csv(folder / "classes.csv", ["class", *scores], zip(classes, *columns, strict=True))
        files.write_csv(folder / "calibration.csv", ["bin", "confidence", "accuracy", "images"], bins)
    files.write_json(f"metrics/{settings.study}/{name}.json", metrics)
    run.finish()


def _read_predictions(name: str, settings: Params) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read the logits of all seeds for the test images, [seeds, N, classes], the labels [N], and the classes."""
    settings.configuration(name)
    path, prepared = predictions_file(settings, name), prepared_file(settings)
    logits = files.read_arrays(path, "logits").arrays["logits"]
    labels, classes = splits.read_labels(prepared, "test")
    if logits.shape != (len(settings.selected_study.seeds), len(labels), len(classes)) or not np.isfinite(logits).all():
        raise UserError(f"{path} does not match {prepared}. Delete it and run `dvc repro`.")
    return logits, labels, classes


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
