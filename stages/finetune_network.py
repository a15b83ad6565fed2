"""Fine-tune one pretrained network with every seed, and predict the test images."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from headstart import files
from headstart.console import run_cli
from headstart.data import splits
from headstart.data.label_subsets import label_subsets
from headstart.network import initial_weights
from headstart.training import loading, outcomes
from headstart.training.checkpoints import Checkpoint, fingerprint
from headstart.training.compute import Compute, configure
from headstart.training.outcomes import Outcome
from headstart.training.trainings import Training
from pipeline.provenance import Run
from stages.paths import checkpoints_folder, finetuned_folder, prepared_file


def main(name: str, study: str = "") -> None:
    run, compute = Run(f"finetune_network@{name}", study), configure()
    groups = outcomes.by_budget(_train(name, run, compute))
    with files.atomic_write(finetuned_folder(run.settings, name)) as folder:
        outcomes.write_models(folder, groups)
        files.write_tensors(folder / "logits.safetensors", outcomes.logits(groups))
    run.finish(**compute.describe(), **compute.peak_memory(), **outcomes.costs(groups))
    shutil.rmtree(_checkpoints(run, name), ignore_errors=True)


def _checkpoints(run: Run, name: str) -> Path:
    return checkpoints_folder(run.settings, f"network-{name}")


def _train(name: str, run: Run, compute: Compute) -> Iterator[Outcome]:
    """Train with each seed; yield the outcomes."""
    study, recipe = run.settings.network_study(name), run.settings.finetuning_recipe
    prepared, folder = prepared_file(run.settings), _checkpoints(run, name)
    test, budget = splits.read_split(prepared, "test"), study.full_budget
    subsets = label_subsets(prepared, study, [budget] if study.pool_images else [])
    for seed in study.seeds:
        initial = initial_weights.build_initial_model(
            study, seed=seed, images=None, classes=test.classes, prepared_size=test.images.shape[-1]
        )
        inputs = loading.InputFiles(prepared, folder / f"initial-{seed}.safetensors", features=folder)
        initial.write(inputs.initial)
        network, backbone, head, first_layer = loading.split_for_training(recipe, study, initial)
        data = loading.TrainingData(recipe, study, initial, backbone, inputs, compute)
        content = [recipe.settings, {**asdict(study), "seeds": [seed]}, compute.reproducible_on()]
        key = fingerprint(content, [prepared, inputs.initial, *run.code])
        training = Training(
            name=f"{name}, seed {seed}",
            budget=budget,
            head=head,
            data=loading.DataSubset(data, subsets[seed, budget]) if subsets else data,
            configuration=recipe,
            study=study,
            seed=seed,
            n_classes=len(initial.classes),
            checkpoint=Checkpoint(folder / f"{seed}.safetensors", key),
        )
        result = training.train_and_predict(compute)
        yield Outcome.of(training, result, initial.with_weights(network.state_dict(), compute.precision), first_layer)


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
