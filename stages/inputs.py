"""What a configuration trains, and on what."""

from typing import Any, NamedTuple

import torch
from torch import nn

from headstart import files
from headstart.console import UserError
from headstart.data import splits
from headstart.network import models
from headstart.network.snapshot import Snapshot
from headstart.params import Experiment, Params
from headstart.training.compute import Compute
from headstart.training.forward import Examples, Kept, activations
from stages.paths import features_file, prepared_file, start_file

# The backbone's activations for the last fine-tuned training by split, and what they were computed from. In a process
# that runs several stages, the next configuration often fine-tunes the same initial weights.
_cached: dict[tuple[Any, ...], dict[str, Kept]] = {}


class Parts(NamedTuple):
    """What a configuration trains, and what it does not."""

    owner: nn.Module  # which names the head's tensors
    trunk: nn.Module
    head: nn.Module
    first: str  # the layer that the head begins with


def trainable(experiment: Experiment, settings: Params, snapshot: Snapshot) -> Parts:
    """The frozen trunk and the head of ``snapshot``'s network."""
    if experiment.finetuning:
        network = snapshot.network()
        first = models.layer(network, experiment.finetune_from or settings.current.finetune_from)
        return Parts(network, *models.cut(network, first), first)
    classifier = snapshot.linear_classifier()  # its trunk, all the rest, has run in the stage `features`
    owner: nn.Module = classifier
    for part in reversed(snapshot.classifier.split(".")):
        owner = nn.ModuleDict({part: owner})
    return Parts(owner, nn.Identity(), classifier, snapshot.classifier)


def examples(
    split: str,
    experiment: Experiment,
    settings: Params,
    snapshot: Snapshot,
    trunk: nn.Module,
    compute: Compute,
    *,
    seed: int,
    keep: bool,
) -> Examples:
    """The head's inputs for ``split`` ("training", "validation" or "test") and their labels.

    ``keep``: whether they will be used in more than one epoch.
    """
    prepared = prepared_file(settings)
    if experiment.finetuning and not _is_stored(experiment, settings, snapshot, trunk):
        start = start_file(settings, experiment.pretrained, seed)
        layer = experiment.finetune_from or settings.current.finetune_from
        key = (*map(files.sha256_as_it_is, (prepared, start)), layer, compute)
        if key not in _cached:
            forget()  # before others take memory
        cache = _cached.setdefault(key, {})
        if split in cache:
            return Examples(cache[split], torch.from_numpy(splits.read_labels(prepared, split)[0]))
        images, labels = map(torch.from_numpy, splits.read_split(prepared, split)[:2])
        label, prepare = f"frozen layers, {split} images", snapshot.preprocess
        inputs = activations(images, trunk, compute=compute, prepare=prepare, keep=keep, label=label)
        if isinstance(inputs, Kept):
            cache[split] = inputs
        return Examples(inputs, labels)
    forget()
    labels = torch.from_numpy(splits.read_labels(prepared, split)[0])
    features = features_file(settings, experiment.pretrained, seed)
    stored = f"{split}_activations" if experiment.finetuning else f"{split}_features"
    tensors, description = files.read_tensors(features, stored)
    precision = description.get("precision", "")
    if precision != compute.precision:
        raise UserError(f"{features} was computed in {precision or 'no known precision'}, and this is "
                        f"{compute.precision}: set HEADSTART_DTYPE={precision or compute.precision}, or compute all "
                        "anew with `dvc repro --force`")  # fmt: skip
    rows = tensors[stored]
    if len(rows) != len(labels) or not rows.isfinite().all():
        raise UserError(f"{features} does not fit {prepared}: delete it, and `dvc repro` makes it anew")
    return Examples(Kept.of(rows, compute), labels)


def forget() -> None:
    """Free the memory of activations that are kept for the next training in this process."""
    _cached.clear()


def _is_stored(experiment: Experiment, settings: Params, snapshot: Snapshot, trunk: nn.Module) -> bool:
    """Return whether the stage `features` has stored the outputs of ``trunk``: it stores those of the study's layer."""
    if not settings.current.store_activations or not models.is_frozen(trunk):
        return False
    own, studys = experiment.finetune_from or settings.current.finetune_from, settings.current.finetune_from
    if models.AUTO in (own, studys) and own != studys:  # it may be the same layer, by its name
        network = snapshot.network()
        own, studys = models.layer(network, own), models.layer(network, studys)
    return own == studys
