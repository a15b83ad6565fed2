"""Train one configuration with each seed, and predict; after an interruption go on after the last complete epoch."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, astuple, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from headstart import files, params
from headstart.console import UserError, progress, run
from headstart.network.snapshot import Snapshot
from headstart.params import Params
from headstart.runs import Clock
from headstart.training import compute
from headstart.training.checkpoints import Checkpoint, fingerprint
from headstart.training.compute import Compute
from headstart.training.forward import Examples, predict
from headstart.training.loop import Epoch, fit, make_optimizer
from stages.inputs import examples, trainable
from stages.paths import features_file, model_file, predictions_file, prepared_file, start_file, write_run

COLUMNS = [field.name for field in fields(Epoch) if field.name != "seconds"]  # times would differ at every run
# What can change a number here, as dvc.yaml has it: after a change of the page, say, a training still goes on.
CODE = (
    "stages/inputs.py",
    "stages/paths.py",
    "stages/train.py",
    "src/headstart/files.py",
    "src/headstart/params.py",
    "src/headstart/data",
    "src/headstart/network",
    "src/headstart/training",
)


class Trained(NamedTuple):
    """What came of one seed."""

    model: Snapshot
    logits: torch.Tensor  # of the test images, float32 [N, classes]
    epochs: list[Epoch]
    checkpoint: Checkpoint
    parameters: int
    trained_from: str  # the first layer of the head
    images: int
    place: str  # where the inputs were kept


def main(name: str) -> None:
    clock = Clock()
    settings, device = params.read(), compute.choose()
    trained = dict(_train(name, settings, device))
    with files.replacing(model_file(settings, name, 0).parent) as folder:
        for seed, result in trained.items():
            result.model.write(folder / model_file(settings, name, seed).name)
        rows = [[seed, *astuple(epoch)[: len(COLUMNS)]] for seed, result in trained.items() for epoch in result.epochs]
        files.write_csv(folder / "epochs.csv", ["seed", *COLUMNS], rows)
    with files.replacing(predictions_file(settings, name).parent) as folder:
        logits = torch.stack([result.logits for result in trained.values()])
        files.write_tensors(folder / predictions_file(settings, name).name, {"logits": logits})
    last = list(trained.values())[-1]
    seconds = [epoch.seconds for result in trained.values() for epoch in result.epochs]
    facts = {
        **device.describe(),
        **device.peak_memory(),
        "activations": last.place,
        "training_seconds": round(sum(seconds), 3),
        "images_per_second": round(last.images / min(seconds), 1),
        "trained_parameters": last.parameters,
        "trained_from": last.trained_from,
        "weights": last.model.weights,
        "weights_sha256": last.model.sha256,
    }
    write_run(settings, f"train-{name}", clock, facts)
    for result in trained.values():
        result.checkpoint.delete()


def _checkpoint(name: str, settings: Params, device: Compute, seed: int) -> Checkpoint:
    experiment = settings.experiment(name)
    without_other_seeds = {**asdict(settings.current), "seeds": [seed]}
    start, features = (where(settings, experiment.pretrained, seed) for where in (start_file, features_file))
    code = files.sources(Path(__file__).parent.parent / path for path in CODE)
    made_from = fingerprint(
        [asdict(experiment), without_other_seeds, device.describe()], [prepared_file(settings), start, features, *code]
    )
    return Checkpoint(Path(f"checkpoints/{settings.study}/{name}/{seed}.safetensors"), made_from)


def _train(name: str, settings: Params, device: Compute) -> Iterator[tuple[int, Trained]]:
    """Yield what comes of each seed; a checkpoint is written after each epoch."""
    experiment, study = settings.experiment(name), settings.current
    inputs: tuple[Examples, Examples] | None = None
    inputs_file: Path | None = None
    for seed in study.seeds:
        start = Snapshot.read(start_file(settings, experiment.pretrained, seed))
        _require_weights(settings.current.weights, start)
        owner, trunk, head, first = trainable(experiment, settings, start)
        of = partial(examples, experiment=experiment, settings=settings, snapshot=start, trunk=trunk, compute=device,
                     seed=seed)  # fmt: skip
        features = features_file(settings, experiment.pretrained, seed)
        if inputs is None or features != inputs_file:  # with pretrained weights all seeds share them
            inputs = None  # or there would be twice as much in memory
            inputs, inputs_file = (of("training", keep=True), of("validation", keep=True)), features
        optimizer = make_optimizer(experiment, head, device)
        checkpoint = _checkpoint(name, settings, device, seed)
        done = checkpoint.restore(head, optimizer)
        images = len(inputs[0].labels)
        with progress(study.n_epochs * images, f"training {name}, seed {seed}", len(done) * images) as bar:
            for epoch in fit(
                head, optimizer, *inputs, epochs=range(len(done) + 1, study.n_epochs + 1),
                batch_size=study.batch_size, seed=seed, compute=device, name=name, on_batch=bar.update,
            ):  # fmt: skip
                done.append(epoch)
                checkpoint.save(head, optimizer, done)
        model = start.trained(owner.state_dict(), device.precision)
        parameters = sum(parameter.numel() for parameter in head.parameters())
        test = of("test", keep=False)
        logits = predict(head, test.inputs, len(test.labels), device).cpu()
        yield seed, Trained(model, logits, done, checkpoint, parameters, first, images, inputs[0].inputs.place)


def _require_weights(weights: str, start: Snapshot) -> None:
    """Raise UserError where the file that ``start`` was made from has other content now."""
    path = Path(weights)
    if start.sha256 and path.is_file() and files.sha256(path) != start.sha256:
        raise UserError(f"{path} is no longer the file that the start was made from: put that back, or run "
                        "`dvc repro --force start@pretrained`")  # fmt: skip


if __name__ == "__main__":
    run(main, *sys.argv[1:])
