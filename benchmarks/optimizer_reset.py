"""Measure the effect of a new optimizer for every batch on the frozen configurations of the selected study.

    python -m benchmarks.optimizer_reset

The published script created a new optimizer for every batch, so Adam lost its moments and SGD its momentum. The command
trains classifiers on the frozen features as the study does, once with one optimizer and once with a new one per batch.
Run `dvc repro features` first. It prints a Markdown table.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

from headstart import files, params
from headstart.console import run_cli
from headstart.data import splits
from headstart.network.saved_model import SavedModel
from headstart.params import Configuration
from headstart.training import compute
from headstart.training.loop import image_order
from headstart.training.optimizers import make_optimizer
from scripts import argument_parser
from stages.paths import features_file, initial_file, prepared_file


def main(*arguments: str) -> None:
    argument_parser(__doc__).parse_args(arguments)
    settings, device = params.read(), compute.configure()
    seed = settings.selected_study.seeds[0]
    print("| configuration | one optimizer: test accuracy % | a new one for every batch |\n|---|---:|---:|")
    for name, configuration in settings.configurations.items():
        if not configuration.finetuning:
            path = features_file(settings, configuration.pretrained, seed)
            features = files.read_tensors(path, "training_features", "test_features").tensors
            labels = {
                split: torch.from_numpy(splits.read_split(prepared_file(settings), split).labels)
                for split in ("training", "test")
            }
            accuracies = []
            for reset in (False, True):
                classifier = SavedModel.read(initial_file(settings, configuration.pretrained, seed)).linear_classifier()
                _train(classifier, features["training_features"].float(), labels["training"], configuration,
                       settings.selected_study, device, reset=reset)  # fmt: skip
                with torch.no_grad():
                    correct = classifier(features["test_features"].float()).argmax(1) == labels["test"]
                accuracies.append(f"{100 * correct.double().mean().item():.2f}")
            print(f"| {name} | {' | '.join(accuracies)} |", flush=True)


def _train(
    classifier: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    configuration: Configuration,
    study: params.Study,
    device: compute.Compute,
    *,
    reset: bool,
) -> None:
    optimizer = make_optimizer(configuration, classifier, device)
    for epoch in range(1, study.n_epochs + 1):
        for batch in image_order(study.seeds[0], epoch, len(labels)).split(study.batch_size):
            if reset:
                optimizer = make_optimizer(configuration, classifier, device)
            loss = F.cross_entropy(classifier(features[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
