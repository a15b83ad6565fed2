"""Score one configuration: the metrics that follow from its predictions, and the tables behind them."""

import sys
from itertools import groupby
from operator import itemgetter
from statistics import mean

import numpy as np

from headstart import files
from headstart.console import UserError, run_cli
from headstart.data import splits
from headstart.params import Params
from headstart.results import evaluation
from headstart.training import early_stopping
from pipeline.provenance import Run
from stages.paths import model_file, predictions_file, prepared_file, scores_folder


def main(name: str, study: str = "") -> None:
    run = Run(f"evaluate@{name}", study)
    settings = run.settings
    logits, labels, classes = _predictions(name, settings)
    epochs = files.read_csv(model_file(settings, name, 0).with_name("epochs.csv"))
    metrics = {
        **evaluation.summary(logits=logits, labels=labels),
        "average_train_loss": round(mean(float(epoch["train_loss"]) for epoch in epochs), 4),
        "average_train_accuracy": round(mean(float(epoch["train_accuracy"]) for epoch in epochs), 4),
    }
    if epochs[-1]["validation_accuracy"]:  # absent without validation images
        metrics["validation_accuracy"] = round(mean(_kept_accuracies(epochs, settings.selected_study.patience)), 4)
    every = {"logits": logits.reshape(-1, len(classes)), "labels": np.tile(labels, len(logits))}
    confusion, scores = evaluation.confusion_matrix(**every), evaluation.per_class(**every)
    with files.atomic_write(scores_folder(settings, name)) as folder:
        files.write_csv(folder / "confusion.csv", ["actual", *classes],
                        [[label, *row] for label, row in zip(classes, confusion.tolist(), strict=True)])  # fmt: skip
        files.write_csv(folder / "classes.csv", ["class", *scores],
                        zip(classes, *(values.tolist() for values in scores.values()), strict=True))  # fmt: skip
        files.write_csv(folder / "calibration.csv", ["bin", "confidence", "accuracy", "images"],
                        [[at, *row] for at, row in enumerate(evaluation.calibration(**every).tolist(), 1)])  # fmt: skip
    files.write_json(f"metrics/{settings.study}/{name}.json", metrics)
    run.finish()


def _kept_accuracies(epochs: list[dict[str, str]], patience: int | None) -> list[float]:
    """On validation images, of each seed's network as it is at the end."""
    found = []
    for _, of_seed in groupby(epochs, itemgetter("seed")):
        ours = list(of_seed)
        kept = early_stopping.restored_epoch([float(epoch["validation_loss"]) for epoch in ours], patience)
        found.append(float(ours[kept - 1]["validation_accuracy"]))
    return found


def _predictions(name: str, settings: Params) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The logits of all seeds' networks for the test images, [seeds, N, classes], the labels, and the classes."""
    settings.configuration(name)
    path, prepared = predictions_file(settings, name), prepared_file(settings)
    logits = files.read_arrays(path, "logits").arrays["logits"]
    labels, classes = splits.read_labels(prepared, "test")
    if logits.shape != (len(settings.selected_study.seeds), len(labels), len(classes)) or not np.isfinite(logits).all():
        raise UserError(f"{path} does not fit {prepared}: delete it, and `dvc repro` makes it anew")
    return logits, labels, classes


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
