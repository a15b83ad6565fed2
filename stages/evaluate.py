"""Test one configuration: the logits of all test images for each seed, and what follows from them."""

import sys
from pathlib import Path
from statistics import mean

import torch

from headstart import compute, evaluation, files, params
from headstart.console import Clock, run
from headstart.datasets import CLASSES
from headstart.forward import predict
from headstart.snapshot import Snapshot
from stages.inputs import examples, model_file, trainable


def main(name: str) -> None:
    clock = Clock()
    settings, device = params.read(), compute.choose()
    experiment, folder = settings.experiment(name), Path("models", settings.scale, name)
    models = [Snapshot.read(model_file(folder, seed, settings.current)) for seed in settings.current.seeds]
    parts = [trainable(experiment, settings, model) for model in models]
    trunk = parts[0].trunk  # the same in all: only heads were trained
    inputs, labels = examples("test", experiment, settings, models[0], trunk, device, keep=len(parts) > 1)
    for part in parts:
        part.head.to(device.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    logits = torch.stack([predict(part.head, inputs, len(labels), device).cpu() for part in parts])
    epochs = files.read_csv(folder / "epochs.csv")
    metrics = {
        **evaluation.summary(logits=logits, labels=labels),
        "average_train_loss": round(mean(float(epoch["train_loss"]) for epoch in epochs), 4),
        "average_train_accuracy": round(mean(float(epoch["train_accuracy"]) for epoch in epochs), 4),
    }
    if epochs[-1]["validation_accuracy"]:  # absent without validation images
        last = [epoch for epoch in epochs if epoch["epoch"] == epochs[-1]["epoch"]]
        metrics["validation_accuracy"] = round(mean(float(epoch["validation_accuracy"]) for epoch in last), 4)
    confusion = evaluation.confusion_matrix(logits=logits.flatten(0, 1), labels=labels.repeat(len(logits)))
    scores = evaluation.per_class(confusion)
    with files.replacing(f"predictions/{settings.scale}/{name}") as predictions:
        files.write_tensors(predictions / "logits.safetensors", {"logits": logits})
        files.write_csv(predictions / "confusion.csv", ["actual", *CLASSES],
                        [[label, *row] for label, row in zip(CLASSES, confusion.tolist(), strict=True)])  # fmt: skip
        files.write_csv(predictions / "classes.csv", ["class", *scores],
                        zip(CLASSES, *(values.tolist() for values in scores.values()), strict=True))  # fmt: skip
    files.write_json(f"metrics/{settings.scale}/{name}.json", metrics)
    files.write_json(f"runs/{settings.scale}/evaluate-{name}.json", clock.describe())


if __name__ == "__main__":
    run(main, *sys.argv[1:])
