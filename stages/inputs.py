"""What a configuration trains, and on what: shared by the stages that train it and test it."""

import torch
from torch import nn

from headstart import files, models
from headstart.compute import Compute
from headstart.datasets import Examples
from headstart.forward import outputs
from headstart.params import Experiment, Params
from headstart.snapshot import Snapshot


def trainable(experiment: Experiment, settings: Params, snapshot: Snapshot) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return (owner, trunk, head): the frozen trunk, the head, and the module that names the head's tensors."""
    if experiment.finetuning:
        network = snapshot.network()
        return network, *models.cut(network, settings.current.finetune_from)
    classifier = snapshot.linear_classifier()  # its trunk, all the rest, has run in the stage `features`
    return nn.ModuleDict({snapshot.classifier: classifier}), nn.Identity(), classifier


def examples(
    split: str, experiment: Experiment, settings: Params, snapshot: Snapshot, trunk: nn.Module, compute: Compute
) -> Examples:
    """The head's inputs for ``split`` ("training", "validation" or "test") and their labels."""
    prepared = f"data/prepared/{settings.scale}.safetensors"
    features = f"data/features/{settings.scale}/pretrained-{str(experiment.pretrained).lower()}.safetensors"
    labels = files.read_tensors(prepared, f"{split}_labels").tensors[f"{split}_labels"]
    stored = "activations" if experiment.finetuning else "features"
    if stored == "features" or settings.current.store_activations:
        return Examples(files.read_tensors(features, f"{split}_{stored}").tensors[f"{split}_{stored}"], labels)
    images = files.read_tensors(prepared, f"{split}_images").tensors[f"{split}_images"]
    return Examples(_activations(images, split, snapshot, trunk, compute), labels)


def _activations(
    images: torch.Tensor, split: str, snapshot: Snapshot, trunk: nn.Module, compute: Compute
) -> torch.Tensor:
    label = f"frozen layers, {split} images"
    return outputs(images, trunk, compute=compute, prepare=snapshot.preprocess, label=label)[0]
