"""Test one configuration: the logits of all test images for each seed, and what follows from them."""

import sys
from statistics import mean

import torch

from headstart import files, params
from headstart.console import run
from headstart.data.datasets import CLASSES
from headstart.network.snapshot import Snapshot
from headstart.params import Params
from headstart.results import evaluation
from headstart.runs import Clock
from headstart.training import compute
from headstart.training.compute import Compute
from headstart.training.forward import predict
from stages.inputs import examples, require_precision, trainable
from stages.paths import model_file, write_run


def main(name: str) -> None:
    clock = Clock()
    settings, device = params.read(), compute.choose()
    results = [_logits(name, settings, seed, device) for seed in settings.current.seeds]
    logits, labels = torch.stack([logits for logits, _ in results]), results[0][1]
    epochs = files.read_csv(model_file(settings, name, 0).with_name("epochs.csv"))
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
    with files.replacing(f"predictions/{settings.study}/{name}") as predictions:
        files.write_tensors(predictions / "logits.safetensors", {"logits": logits})
        files.write_csv(predictions / "confusion.csv", ["actual", *CLASSES],
                        [[label, *row] for label, row in zip(CLASSES, confusion.tolist(), strict=True)])  # fmt: skip
        files.write_csv(predictions / "classes.csv", ["class", *scores],
                        zip(CLASSES, *(values.tolist() for values in scores.values()), strict=True))  # fmt: skip
    files.write_json(f"metrics/{settings.study}/{name}.json", metrics)
    write_run(settings, f"evaluate-{name}", clock, device.describe())


def _logits(name: str, settings: Params, seed: int, device: Compute) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the network trained with ``seed``: the logits of all test images, and their labels."""
    experiment, path = settings.experiment(name), model_file(settings, name, seed)
    model = Snapshot.read(path)
    require_precision(str(path), model.precision, device)
    _, trunk, head = trainable(experiment, settings, model)
    inputs, labels = examples("test", experiment, settings, model, trunk, device, seed=seed, keep=False)
    head.to(device.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return predict(head, inputs, len(labels), device).cpu(), labels


if __name__ == "__main__":
    run(main, *sys.argv[1:])
