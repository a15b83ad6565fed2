"""What a new optimizer for every batch does to the frozen configurations, at the full size of a study.

    python -m benchmarks.renewed

The published script made one, so that Adam lost its moments and SGD its momentum. The frozen features of the study that
params.yaml names must be there (`dvc repro features`): classifiers are trained on them as the study does it, once with
one optimizer and once with a new one a batch, and tested. Prints a Markdown table.
"""

import torch
import torch.nn.functional as F
from torch import nn

from headstart import files, params
from headstart.console import run_cli
from headstart.data import splits
from headstart.network.saved_model import SavedModel
from headstart.params import Configuration
from headstart.training import compute
from headstart.training.loop import image_order, make_optimizer
from stages.paths import features_file, initial_file, prepared_file


def main() -> None:
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
            found = []
            for renewed in (False, True):
                classifier = SavedModel.read(initial_file(settings, configuration.pretrained, seed)).linear_classifier()
                _train(classifier, features["training_features"].float(), labels["training"], configuration,
                       settings.selected_study, device, renewed=renewed)  # fmt: skip
                with torch.no_grad():
                    right = classifier(features["test_features"].float()).argmax(1) == labels["test"]
                found.append(f"{100 * right.double().mean().item():.2f}")
            print(f"| {name} | {' | '.join(found)} |", flush=True)


def _train(
    classifier: nn.Module, features: torch.Tensor, labels: torch.Tensor, configuration: Configuration, study: params.Study,
    device: compute.Compute, *, renewed: bool,
) -> None:  # fmt: skip
    optimizer = make_optimizer(configuration, classifier, device)
    for epoch in range(1, study.n_epochs + 1):
        for batch in image_order(study.seeds[0], epoch, len(labels)).split(study.batch_size):
            if renewed:
                optimizer = make_optimizer(configuration, classifier, device)
            loss = F.cross_entropy(classifier(features[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    run_cli(main)
