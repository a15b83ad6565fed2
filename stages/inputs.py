"""What a configuration trains, and on what: shared by the stages that train it and test it."""

from torch import nn

from headstart import files, models
from headstart.compute import Compute
from headstart.forward import Examples, Kept, activations
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
    prepared = f"data/prepared/{settings.scale}.safetensors"
    features = f"data/features/{settings.scale}/pretrained-{str(experiment.pretrained).lower()}.safetensors"
    labels = files.read_tensors(prepared, f"{split}_labels").tensors[f"{split}_labels"]
    stored = f"{split}_activations" if experiment.finetuning else f"{split}_features"
    if not experiment.finetuning or settings.current.store_activations:
        return Examples(Kept.of(files.read_tensors(features, stored).tensors[stored], compute), labels)
    images = files.read_tensors(prepared, f"{split}_images").tensors[f"{split}_images"]
    label = f"frozen layers, {split} images"
    prepare = snapshot.preprocess
    return Examples(activations(images, trunk, compute=compute, prepare=prepare, keep=keep, label=label), labels)
