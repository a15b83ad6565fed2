"""Train one configuration, going on after its last complete epoch if it was interrupted."""

import sys
from dataclasses import asdict, astuple, fields
from pathlib import Path

from headstart import compute, files, params
from headstart.checkpoints import Checkpoint, fingerprint
from headstart.console import Clock, progress, run
from headstart.snapshot import Snapshot
from headstart.training import Epoch, fit, make_optimizer
from stages.inputs import examples, paths, trainable

COLUMNS = [field.name for field in fields(Epoch) if field.name != "seconds"]  # times would differ at every run
CODE = sorted(Path(__file__).parent.glob("*.py"))


def _checkpoint(name: str, settings: params.Params, device: compute.Compute) -> Checkpoint:
    experiment = settings.experiment(name)
    made_with = [asdict(experiment), asdict(settings.current), device.describe()]
    made_from = fingerprint(made_with, [*paths(experiment, settings), *CODE])
    return Checkpoint(Path("checkpoints", settings.scale, f"{name}.safetensors"), made_from)


def main(name: str) -> None:
    clock = Clock()
    settings, device = params.read(), compute.choose()
    experiment, scale = settings.experiment(name), settings.current
    start = Snapshot.read(paths(experiment, settings).start)
    owner, trunk, head = trainable(experiment, settings, start)
    optimizer = make_optimizer(experiment, head, device)
    checkpoint = _checkpoint(name, settings, device)
    done = checkpoint.restore(head, optimizer)
    training, validation = (
        examples(split, experiment, settings, start, trunk, device, keep=True) for split in ("training", "validation")
    )
    images = len(training.labels)
    with progress(scale.n_epochs * images, f"training {name}", done=len(done) * images) as bar:
        for epoch in fit(
            head, optimizer, training, validation, epochs=range(len(done) + 1, scale.n_epochs + 1),
            batch_size=scale.batch_size, seed=scale.seed, compute=device, name=name, on_batch=bar.update,
        ):  # fmt: skip
            done.append(epoch)
            checkpoint.save(head, optimizer, done)
    record = {
        **clock.describe(),
        **device.describe(),
        **device.peak_memory(),
        "activations": training.inputs.place,
        "training_seconds": round(sum(epoch.seconds for epoch in done), 3),
        "images_per_second": round(images / min(epoch.seconds for epoch in done), 1),
        "trained_parameters": sum(parameter.numel() for parameter in head.parameters()),
        "weights": start.weights,
        "weights_sha256": start.sha256,
    }
    with files.replacing(f"models/{settings.scale}/{name}") as folder:
        start.trained(owner.state_dict()).write(Path(folder, "model.safetensors"))
        files.write_csv(Path(folder, "epochs.csv"), COLUMNS, [astuple(epoch)[: len(COLUMNS)] for epoch in done])
        files.write_json(Path(folder, "run.json"), record)
    checkpoint.delete()


if __name__ == "__main__":
    run(main, *sys.argv[1:])
