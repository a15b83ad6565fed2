"""Train one configuration."""

import sys
from dataclasses import astuple, fields
from pathlib import Path

from headstart import compute, files, params
from headstart.console import Clock, progress, run
from headstart.snapshot import Snapshot
from headstart.training import Epoch, fit
from stages.inputs import examples, trainable


def main(name: str) -> None:
    clock = Clock()
    settings, device = params.read(), compute.choose()
    experiment, scale = settings.experiment(name), settings.current
    start = Snapshot.read(f"data/start/{settings.scale}/pretrained-{str(experiment.pretrained).lower()}.safetensors")
    owner, trunk, head = trainable(experiment, settings, start)
    training, validation = (
        examples(split, experiment, settings, start, trunk, device, keep=True) for split in ("training", "validation")
    )
    with progress(scale.n_epochs * len(training.labels), f"training {name}") as bar:
        epochs = list(
            fit(
                head, training, validation, experiment=experiment, n_epochs=scale.n_epochs,
                batch_size=scale.batch_size, seed=scale.seed, compute=device, on_batch=bar.update,
            )
        )  # fmt: skip
    columns = [field.name for field in fields(Epoch) if field.name != "seconds"]  # times would differ at every run
    with files.replacing(f"models/{settings.scale}/{name}") as folder:
        start.trained(owner.state_dict()).write(Path(folder, "model.safetensors"))
        files.write_csv(Path(folder, "epochs.csv"), columns, [astuple(epoch)[: len(columns)] for epoch in epochs])
        files.write_json(Path(folder, "run.json"), {
            **clock.describe(),
            **device.describe(),
            "training_seconds": round(sum(epoch.seconds for epoch in epochs), 3),
            "images_per_second": round(len(training.labels) / min(epoch.seconds for epoch in epochs), 1),
            "trained_parameters": sum(parameter.numel() for parameter in head.parameters()),
            "activations": training.inputs.place,
            "weights": start.weights,
            "weights_sha256": start.sha256,
        })  # fmt: skip


if __name__ == "__main__":
    run(main, *sys.argv[1:])
