"""Train one configuration with each seed, going on after the last complete epoch if it was interrupted."""

import sys
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

from headstart import compute, files, params
from headstart.checkpoints import Checkpoint, fingerprint
from headstart.console import Clock, progress, run
from headstart.snapshot import Snapshot
from headstart.training import Epoch, fit, make_optimizer
from stages.inputs import examples, model_file, paths, trainable

COLUMNS = [field.name for field in fields(Epoch) if field.name != "seconds"]  # times would differ at every run
CODE = sorted(Path(__file__).parent.glob("*.py"))


def _checkpoints(name: str, settings: params.Params, device: compute.Compute) -> dict[int, Checkpoint]:
    """One a seed."""
    experiment, folder = settings.experiment(name), Path("checkpoints", settings.scale, name)
    made_with = [asdict(experiment), asdict(settings.current), device.describe()]
    made_from = fingerprint(made_with, [*paths(experiment, settings), *CODE])
    return {seed: Checkpoint(folder / f"{seed}.safetensors", made_from) for seed in settings.current.seeds}


def main(name: str) -> None:
    clock = Clock()
    settings, device = params.read(), compute.choose()
    experiment, scale = settings.experiment(name), settings.current
    start = Snapshot.read(paths(experiment, settings).start)
    owner, trunk, head = trainable(experiment, settings, start)
    training, validation = (
        examples(split, experiment, settings, start, trunk, device, keep=True) for split in ("training", "validation")
    )
    checkpoints, images = _checkpoints(name, settings, device), len(training.labels)
    trained: dict[int, tuple[Snapshot, list[Epoch]]] = {}
    with progress(len(scale.seeds) * scale.n_epochs * images, f"training {name}") as bar:
        for seed, checkpoint in checkpoints.items():
            start.restore(owner, new_classifier=seed if trained else None)
            optimizer = make_optimizer(experiment, head, device)
            done = checkpoint.restore(head, optimizer)
            bar.update(len(done) * images)
            for epoch in fit(
                head, optimizer, training, validation, epochs=range(len(done) + 1, scale.n_epochs + 1),
                batch_size=scale.batch_size, seed=seed, compute=device, name=name, on_batch=bar.update,
            ):  # fmt: skip
                done.append(epoch)
                checkpoint.save(head, optimizer, done)
            trained[seed] = start.trained(owner.state_dict()), done
    seconds = [epoch.seconds for _, epochs in trained.values() for epoch in epochs]
    facts = {
        **clock.describe(),
        **device.describe(),
        **device.peak_memory(),
        "activations": training.inputs.place,
        "training_seconds": round(sum(seconds), 3),
        "images_per_second": round(images / min(seconds), 1),
        "trained_parameters": sum(parameter.numel() for parameter in head.parameters()),
    }
    _write(name, settings, trained, facts)
    for checkpoint in checkpoints.values():
        checkpoint.delete()


def _write(
    name: str, settings: params.Params, trained: dict[int, tuple[Snapshot, list[Epoch]]], facts: dict[str, Any]
) -> None:
    with files.replacing(f"models/{settings.scale}/{name}") as folder:
        rows = []
        for seed, (model, epochs) in trained.items():
            model.write(model_file(folder, seed, settings.current))
            rows += [[seed, *astuple(epoch)[: len(COLUMNS)]] for epoch in epochs]
        files.write_csv(folder / "epochs.csv", ["seed", *COLUMNS], rows)
    facts |= {"weights": model.weights, "weights_sha256": model.sha256}
    files.write_json(f"runs/{settings.scale}/train-{name}.json", facts)


if __name__ == "__main__":
    run(main, *sys.argv[1:])
