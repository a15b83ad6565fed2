"""Test one configuration: the logits of all test images, and what follows from them."""

import sys
from pathlib import Path
from statistics import mean

import torch

from headstart import compute, evaluation, files, params
from headstart.console import run
from headstart.datasets import CLASSES
from headstart.forward import predict
from headstart.snapshot import Snapshot
from stages.inputs import examples, trainable


def main(name: str) -> None:
    settings, device = params.read(), compute.choose()
    experiment = settings.experiment(name)
    model = Snapshot.read(f"models/{settings.scale}/{name}/model.safetensors")
    _, trunk, head = trainable(experiment, settings, model)
    inputs, labels = examples("test", experiment, settings, model, trunk, device, keep=False)
    head.to(device.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    logits = predict(head, inputs, len(labels), device).cpu()
    epochs = files.read_csv(f"models/{settings.scale}/{name}/epochs.csv")
    metrics = {
        **evaluation.summary(logits=logits, labels=labels),
        "average_train_loss": round(mean(float(epoch["train_loss"]) for epoch in epochs), 4),
        "average_train_accuracy": round(mean(float(epoch["train_accuracy"]) for epoch in epochs), 4),
    }
    if epochs[-1]["validation_accuracy"]:  # absent without validation images
        metrics["validation_accuracy"] = round(float(epochs[-1]["validation_accuracy"]), 4)
    confusion = evaluation.confusion_matrix(logits=logits, labels=labels)
    scores = evaluation.per_class(confusion)
    with files.replacing(f"predictions/{settings.scale}/{name}") as folder:
        files.write_tensors(Path(folder, "logits.safetensors"), {"logits": logits})
        files.write_csv(Path(folder, "confusion.csv"), ["actual", *CLASSES],
                        [[label, *row] for label, row in zip(CLASSES, confusion.tolist(), strict=True)])  # fmt: skip
        files.write_csv(Path(folder, "classes.csv"), ["class", *scores],
                        zip(CLASSES, *(values.tolist() for values in scores.values()), strict=True))  # fmt: skip
    files.write_json(f"metrics/{settings.scale}/{name}.json", metrics)


if __name__ == "__main__":
    run(main, *sys.argv[1:])
