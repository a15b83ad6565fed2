"""Train one configuration with each seed, and predict; after an interruption resume after the last checkpoint."""

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from headstart import files
from headstart.console import UserError, progress, run_cli
from headstart.network.saved_model import SavedModel
from headstart.params import Params, Study
from headstart.training import compute, early_stopping
from headstart.training.checkpoints import Checkpoint, TrainingResult, fingerprint
from headstart.training.compute import Compute
from headstart.training.inference import Examples, predict
from headstart.training.loop import EpochMetrics, fit, make_optimizer
from pipeline.provenance import Run
from stages.inputs import examples, trainable
from stages.label_subsets import label_subsets
from stages.paths import features_file, initial_file, model_file, predictions_file, prepared_file, training_file

COLUMNS = [field.name for field in fields(EpochMetrics) if field.name != "seconds"]  # times would differ at every run
# What can change a number here, as dvc.yaml has it: after a change of the page, say, a training still goes on.
CODE = (
    "stages/inputs.py",
    "stages/label_subsets.py",
    "stages/paths.py",
    "stages/train.py",
    "src/headstart/files.py",
    "src/headstart/params.py",
    "src/headstart/data",
    "src/headstart/network",
    "src/headstart/training",
)
FEWEST_STEPS = 25  # of an epoch with some of the labels: else it would be over, and patience at its end, too soon
PAUSE = 20  # seconds between the checkpoints of a training with some of the labels
WORTH = 10  # times what writing a checkpoint takes: the training since the last one, where it has all labels


Key = tuple[int, int]  # seed and number of labels


class Trained(NamedTuple):
    """What came of one seed, with all labels."""

    model: SavedModel
    epochs: list[EpochMetrics]
    logits: torch.Tensor  # of the test images, float32 [N, classes]
    parameters: int
    trained_from: str  # the first layer of the head
    images: int
    place: str  # where the inputs were kept


def main(name: str, study: str = "") -> None:
    record = Run(f"train@{name}", study)
    settings, device = record.settings, compute.configure()
    trained, with_some = _train(name, settings, device)
    counts = settings.selected_study.label_budgets
    with files.atomic_write(model_file(settings, name, 0).parent) as folder:
        for seed, result in trained.items():
            result.model.write(folder / model_file(settings, name, seed).name)
        _write_epochs(folder / "epochs.csv", ["seed"], {(seed,): result.epochs for seed, result in trained.items()})
        if counts:
            keyed = {(n, seed): with_some[seed, n].epochs for n in counts for seed in trained}
            _write_epochs(folder / "budget_epochs.csv", ["label_budget", "seed"], keyed)
        files.write_json(folder / training_file(settings, name).name, _summary(list(trained.values())[-1]))
    with files.atomic_write(predictions_file(settings, name).parent) as folder:
        logits = {"logits": torch.stack([result.logits for result in trained.values()])}
        if counts:
            of_counts = [torch.stack([with_some[seed, n].logits for seed in trained]) for n in counts]
            logits["budget_logits"] = torch.stack(of_counts)
        files.write_tensors(folder / predictions_file(settings, name).name, logits)
    record.finish(**device.describe(), **device.peak_memory(), **_costs(trained, with_some))
    shutil.rmtree(_checkpoints(settings, name), ignore_errors=True)  # those of numbers that are no longer asked for too


def _write_epochs(path: Path, columns: list[str], epochs: Mapping[Any, list[EpochMetrics]]) -> None:
    rows = [[*key, *(getattr(epoch, column) for column in COLUMNS)] for key, found in epochs.items() for epoch in found]
    files.write_csv(path, [*columns, *COLUMNS], rows)


def _summary(last: Trained) -> dict[str, Any]:
    """Return what the report says of the training: nothing that differs from run to run."""
    return {
        "precision": last.model.precision,
        "weights": last.model.weights,
        "weights_sha256": last.model.sha256,
        "trained_from": last.trained_from,
        "trained_parameters": last.parameters,
    }


def _costs(trained: Mapping[int, Trained], with_some: Mapping[Key, TrainingResult]) -> dict[str, Any]:
    """Return what all trainings have cost."""
    last = list(trained.values())[-1]
    seconds = [epoch.seconds for result in trained.values() for epoch in result.epochs]
    of_some = sum(epoch.seconds for finished in with_some.values() for epoch in finished.epochs)
    return {
        "activations": last.place,
        "training_seconds": round(sum(seconds), 3),
        **({"label_budgets_seconds": round(of_some, 3)} if with_some else {}),
        "images_per_second": round(last.images / min(seconds), 1),
    }


def _checkpoint(name: str, settings: Params, device: Compute, key: Key) -> Checkpoint:
    (seed, n) = key
    configuration, study = settings.configuration(name), settings.selected_study
    ours = {**asdict(study), "seeds": [seed], "label_budgets": [n], "probe_budgets": []}  # none of the others matter
    start, features = (where(settings, configuration.pretrained, seed) for where in (initial_file, features_file))
    code = files.list_source_files(Path(__file__).parent.parent / path for path in CODE)
    made_from = fingerprint(
        [asdict(configuration), ours, device.reproducible_on()], [prepared_file(settings), start, features, *code]
    )
    file = f"{seed}.safetensors" if n == study.full_budget else f"{seed}-{n}.safetensors"
    return Checkpoint(_checkpoints(settings, name) / file, made_from)


def _checkpoints(settings: Params, name: str) -> Path:
    return Path(f"checkpoints/{settings.study}/{name}")


def _train(name: str, settings: Params, device: Compute) -> tuple[dict[int, Trained], dict[Key, TrainingResult]]:
    """What comes of each seed with all labels, and of each seed and smaller number of them."""
    configuration, study = settings.configuration(name), settings.selected_study
    chosen = label_subsets(settings, study.label_budgets)
    trained: dict[int, Trained] = {}
    with_some: dict[Key, TrainingResult] = {}
    # With pretrained weights all seeds share their inputs.
    for _, seeds in groupby(study.seeds, partial(features_file, settings, configuration.pretrained)):
        inputs: tuple[Examples, Examples] | None = None  # or there would be twice as much in memory
        test: Examples | None = None
        for seed in seeds:
            start = SavedModel.read(initial_file(settings, configuration.pretrained, seed))
            _require_weights(study.weights, start)
            owner, backbone, head, first = trainable(configuration, settings, start)
            of = partial(examples, configuration=configuration, settings=settings, snapshot=start, backbone=backbone,
                         compute=device, seed=seed)  # fmt: skip
            inputs = inputs or (of("training", keep=True), of("validation", keep=True))
            epochs = _fit(head, *inputs, name=name, settings=settings, device=device, key=(seed, study.full_budget))
            test = test or of("test", keep=bool(study.label_budgets))
            model = start.with_weights(owner.state_dict(), device.precision)
            parameters = sum(parameter.numel() for parameter in head.parameters())
            trained[seed] = Trained(model, epochs, _says(head, test, device), parameters, first, len(inputs[0].labels),
                                    inputs[0].inputs.place)  # fmt: skip
            for key in product([seed], study.label_budgets):
                if finished := _checkpoint(name, settings, device, key).read_result():
                    with_some[key] = finished
                    continue
                part = trainable(configuration, settings, start).head
                rows = torch.from_numpy(chosen[key].training), torch.from_numpy(chosen[key].validation)
                passes = _passes(len(rows[0]), len(inputs[0].labels), study.batch_size)
                some = (all.subset(one) for all, one in zip(inputs, rows, strict=True))
                epochs = _fit(part, *some, name=name, settings=settings, device=device, key=key, passes=passes)
                with_some[key] = TrainingResult(epochs, _says(part, test, device))
                _checkpoint(name, settings, device, key).write_result(with_some[key])
    return trained, with_some


def _says(head: nn.Module, test: Examples, device: Compute) -> torch.Tensor:
    """Its logits for the test images, float32 [N, classes], on the CPU."""
    return predict(head.to(device.device), test.inputs, len(test.labels), device).cpu()


def _passes(images: int, of: int, batch_size: int) -> int:
    """Over so few ``images`` in an epoch: for FEWEST_STEPS, or as many steps as all that there are, ``of``, make."""
    steps, of_all = (-(-n // batch_size) for n in (images, of))
    return -(-min(FEWEST_STEPS, of_all) // steps)


def _fit(
    head: nn.Module,
    training: Examples,
    validation: Examples,
    *,
    name: str,
    settings: Params,
    device: Compute,
    key: Key,
    passes: int = 1,
) -> list[EpochMetrics]:
    """Train ``head`` to the end; it is then what it was after the epoch that is kept."""
    (seed, n), study, images = key, settings.selected_study, len(training.labels)
    is_whole = n == study.full_budget
    of = f"{name}, seed {seed}" + ("" if is_whole else f", {n:,} labels")
    optimizer = make_optimizer(settings.configuration(name), head, device)
    checkpoint = _checkpoint(name, settings, device, key)
    done, best = checkpoint.restore(head, optimizer)
    last = len(done) if _stops_early(done, study) else study.n_epochs
    written, cost = time.monotonic(), 0.0  # when the last checkpoint was written, and how many seconds that took
    with progress(study.n_epochs * passes * images, f"training {of}", len(done) * passes * images) as bar:
        for epoch in fit(
            head, optimizer, training, validation, epochs=range(len(done) + 1, last + 1), batch_size=study.batch_size,
            seed=seed, compute=device, passes_per_epoch=passes, name=of, on_batch=bar.update,
        ):  # fmt: skip
            done.append(epoch)
            if study.patience and early_stopping.best_epoch(_losses(done)) == len(done):
                best = {key: tensor.clone() for key, tensor in head.state_dict().items()}
            now = time.monotonic()
            if now - written > (WORTH * cost if is_whole else PAUSE):
                checkpoint.save(head, optimizer, done, best)
                written = time.monotonic()
                cost = written - now
            if _stops_early(done, study):
                break
    if best:
        head.load_state_dict(best)
    return done


def _stops_early(epochs: list[EpochMetrics], study: Study) -> bool:
    return early_stopping.should_stop(_losses(epochs), study.patience)


def _losses(epochs: list[EpochMetrics]) -> list[float]:
    """On validation images, which there are where a training has patience."""
    return [epoch.validation_loss for epoch in epochs if epoch.validation_loss is not None]


def _require_weights(weights: str, start: SavedModel) -> None:
    """Raise UserError where the file that ``start`` was made from has other content now."""
    path = Path(weights)
    if start.sha256 and path.is_file() and files.cached_sha256(path) != start.sha256:
        raise UserError(f"{path} is no longer the file that the start was made from: put that back, or run "
                        "`dvc repro --force initialize@pretrained`")  # fmt: skip


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
