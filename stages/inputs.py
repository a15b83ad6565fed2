"""What a configuration trains, and on what: shared by the stages that train it and test it."""

from pathlib import Path
from typing import NamedTuple

from torch import nn

from headstart import datasets, files, models
from headstart.compute import Compute
from headstart.console import UserError
from headstart.forward import Examples, Kept, activations
from headstart.params import Experiment, Params, Scale
from headstart.snapshot import Snapshot


class Paths(NamedTuple):
    """The files that a configuration's training reads."""

    prepared: Path
    start: Path
    features: Path


def paths(experiment: Experiment, settings: Params) -> Paths:
    """Where the stages before have put them."""
    scale, start = settings.scale, f"pretrained-{str(experiment.pretrained).lower()}.safetensors"
    return Paths(
        prepared=Path(f"data/prepared/{scale}.safetensors"),
        start=Path(f"data/start/{scale}/{start}"),
        features=Path(f"data/features/{scale}/{start}"),
    )


def model_file(folder: Path, seed: int, scale: Scale) -> Path:
    """Where in ``folder`` the network trained with ``seed`` is."""
    return folder / ("model.safetensors" if seed == scale.seeds[0] else f"model-{seed}.safetensors")


class Parts(NamedTuple):
    """What a configuration trains, and what it does not."""

    owner: nn.Module  # which names the head's tensors
    trunk: nn.Module
    head: nn.Module


def trainable(experiment: Experiment, settings: Params, snapshot: Snapshot) -> Parts:
    """The frozen trunk and the head of ``snapshot``'s network."""
    if experiment.finetuning:
        network = snapshot.network()
        return Parts(network, *models.cut(network, settings.current.finetune_from))
    classifier = snapshot.linear_classifier()  # its trunk, all the rest, has run in the stage `features`
    return Parts(nn.ModuleDict({snapshot.classifier: classifier}), nn.Identity(), classifier)


def examples(
    split: str,
    experiment: Experiment,
    settings: Params,
    snapshot: Snapshot,
    trunk: nn.Module,
    compute: Compute,
    *,
    keep: bool,
) -> Examples:
    """The head's inputs for ``split`` ("training", "validation" or "test") and their labels.

    ``keep``: whether they will be used in more than one epoch.
    """
    prepared, _, features = paths(experiment, settings)
    images, labels = datasets.read_split(prepared, split)
    stored = f"{split}_activations" if experiment.finetuning else f"{split}_features"
    if not experiment.finetuning or settings.current.store_activations:
        inputs = files.read_tensors(features, stored).tensors[stored]
        if len(inputs) != len(labels) or not inputs.isfinite().all():
            raise UserError(f"{features} does not fit {prepared}: delete it, and `dvc repro` makes it anew")
        return Examples(Kept.of(inputs, compute), labels)
    label = f"frozen layers, {split} images"
    prepare = snapshot.preprocess
    return Examples(activations(images, trunk, compute=compute, prepare=prepare, keep=keep, label=label), labels)
