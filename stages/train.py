"""Train one configuration with every seed and label budget, and predict the test images."""

import copy
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import groupby

from headstart import files
from headstart.console import run_cli
from headstart.data.label_subsets import label_subsets
from headstart.network.saved_model import SavedModel
from headstart.training import loading, outcomes
from headstart.training.checkpoints import Checkpoint, fingerprint
from headstart.training.compute import Compute, configure
from headstart.training.outcomes import Outcome
from headstart.training.trainings import Training
from pipeline.provenance import Run
from stages import paths


def main(name: str, study: str = "") -> None:
    run, compute = Run(f"train@{name}", study), configure()
    settings = run.settings
    groups = outcomes.by_budget(train(name, run, compute))
    with files.atomic_write(paths.model_file(settings, name, 0).parent) as folder:
        outcomes.write_models(folder, groups)
    with files.atomic_write(paths.predictions_file(settings, name).parent) as folder:
        files.write_tensors(folder / paths.predictions_file(settings, name).name, outcomes.logits(groups))
    run.finish(**compute.describe(), **compute.peak_memory(), **outcomes.costs(groups))
    shutil.rmtree(paths.checkpoints_folder(settings, name), ignore_errors=True)


def train(name: str, run: Run, compute: Compute) -> Iterator[Outcome]:
    """Train with each seed, first on all labels and then on each label budget; yield the outcomes."""
    settings, configuration, study = run.settings, run.settings.configuration(name), run.settings.selected_study
    prepared = paths.prepared_file(settings)
    budgets = (study.full_budget, *study.label_budgets)
    subsets = label_subsets(prepared, study, budgets if study.pool_images else study.label_budgets)
    # With pretrained weights all seeds share their features, so the inputs of the head are loaded once.
    for features, seeds in groupby(study.seeds, partial(paths.features_file, settings, configuration.pretrained)):
        data: loading.TrainingData | None = None
        for seed in seeds:
            initial_file = paths.initial_file(settings, configuration.pretrained, seed)
            inputs = loading.InputFiles(prepared, initial_file, features)
            initial = SavedModel.read(inputs.initial)
            loading.require_unchanged_weights(study.weights, initial)
            network, backbone, head, first_layer = loading.split_for_training(configuration, study, initial)
            untrained = copy.deepcopy(head) if study.label_budgets else head
            data = data or loading.TrainingData(configuration, study, initial, backbone, inputs, compute)
            for budget in budgets:
                is_full = budget == study.full_budget
                training = Training(
                    name=f"{name}, seed {seed}" + ("" if is_full else f", {budget:,} labels"),
                    budget=budget,
                    head=head if is_full else copy.deepcopy(untrained),
                    data=loading.DataSubset(data, subsets[seed, budget]) if (seed, budget) in subsets else data,
                    configuration=configuration,
                    study=study,
                    seed=seed,
                    n_classes=len(initial.classes),
                    checkpoint=_checkpoint(name, run, compute, inputs, seed, budget),
                )
                result = training.train_and_predict(compute)
                model = initial.with_weights(network.state_dict(), compute.precision) if is_full else None
                yield Outcome.of(training, result, model, first_layer)


def _checkpoint(name: str, run: Run, compute: Compute, inputs: loading.InputFiles, *key: int) -> Checkpoint:
    """Return the checkpoint of a training, with a fingerprint of everything that the training depends on."""
    settings, (seed, budget) = run.settings, key
    study = {**asdict(settings.selected_study), "seeds": [seed], "label_budgets": [budget], "probe_budgets": []}
    content = [settings.configuration(name).settings, study, compute.reproducible_on()]
    return Checkpoint(paths.checkpoint_file(settings, name, seed, budget), fingerprint(content, [*inputs, *run.code]))


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
