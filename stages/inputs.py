"""What a configuration trains, and on what."""

from typing import Any, NamedTuple

import torch
from torch import nn

from headstart import files
from headstart.console import UserError
from headstart.data import splits
from headstart.network import splitting
from headstart.network.saved_model import SavedModel
from headstart.params import Configuration, Params
from headstart.training.compute import Compute
from headstart.training.inference import CachedInputs, Examples, cache_or_recompute
from stages.paths import features_file, initial_file, prepared_file

# The backbone's activations for the last fine-tuned training by split, and what they were computed from. In a process
# that runs several stages, the next configuration often fine-tunes the same initial weights.
_cached: dict[tuple[Any, ...], dict[str, CachedInputs]] = {}


class Parts(NamedTuple):
    """What a configuration trains, and what it does not."""

    owner: nn.Module  # which names the head's tensors
    backbone: nn.Module
    head: nn.Module
    first: str  # the layer that the head begins with


def trainable(configuration: Configuration, settings: Params, snapshot: SavedModel) -> Parts:
    """The frozen backbone and the head of ``snapshot``'s network."""
    if configuration.finetuning:
        network = snapshot.build()
        first = splitting.resolve_layer(network, configuration.finetune_from or settings.selected_study.finetune_from)
        return Parts(network, *splitting.split_backbone_head(network, first), first)
    classifier = snapshot.linear_classifier()  # its backbone, all the rest, has run in the stage `features`
    owner: nn.Module = classifier
    for part in reversed(snapshot.classifier.split(".")):
        owner = nn.ModuleDict({part: owner})
    return Parts(owner, nn.Identity(), classifier, snapshot.classifier)


def examples(
    split: str,
    configuration: Configuration,
    settings: Params,
    snapshot: SavedModel,
    backbone: nn.Module,
    compute: Compute,
    *,
    seed: int,
    keep: bool,
) -> Examples:
    """The head's inputs for ``split`` ("training", "validation" or "test") and their labels.

    ``keep``: whether they will be used in more than one epoch.
    """
    prepared = prepared_file(settings)
    if configuration.finetuning and not _is_stored(configuration, settings, snapshot, backbone):
        start = initial_file(settings, configuration.pretrained, seed)
        layer = configuration.finetune_from or settings.selected_study.finetune_from
        key = (*map(files.cached_sha256, (prepared, start)), layer, compute)
        if key not in _cached:
            forget()  # before others take memory
        cache = _cached.setdefault(key, {})
        if split in cache:
            return Examples(cache[split], torch.from_numpy(splits.read_labels(prepared, split)[0]))
        images, labels = map(torch.from_numpy, splits.read_split(prepared, split)[:2])
        label, prepare = f"frozen layers, {split} images", snapshot.preprocess
        inputs = cache_or_recompute(images, backbone, compute=compute, prepare=prepare, reuse=keep, label=label)
        if isinstance(inputs, CachedInputs):
            cache[split] = inputs
        return Examples(inputs, labels)
    forget()
    labels = torch.from_numpy(splits.read_labels(prepared, split)[0])
    features = features_file(settings, configuration.pretrained, seed)
    stored = f"{split}_activations" if configuration.finetuning else f"{split}_features"
    tensors, description = files.read_tensors(features, stored)
    precision = description.get("precision", "")
    if precision != compute.precision:
        raise UserError(f"{features} was computed in {precision or 'no known precision'}, and this is "
                        f"{compute.precision}: set HEADSTART_DTYPE={precision or compute.precision}, or compute all "
                        "anew with `dvc repro --force`")  # fmt: skip
    rows = tensors[stored]
    if len(rows) != len(labels) or not rows.isfinite().all():
        raise UserError(f"{features} does not fit {prepared}: delete it, and `dvc repro` makes it anew")
    return Examples(CachedInputs.from_tensor(rows, compute), labels)


def forget() -> None:
    """Free the memory of activations that are kept for the next training in this process."""
    _cached.clear()


def _is_stored(configuration: Configuration, settings: Params, snapshot: SavedModel, backbone: nn.Module) -> bool:
    """Return whether the stage `features` has stored the outputs of ``backbone``: it stores those of the study's layer."""
    if not settings.selected_study.cache_activations or not splitting.has_parameters(backbone):
        return False
    own, studys = (
        configuration.finetune_from or settings.selected_study.finetune_from,
        settings.selected_study.finetune_from,
    )
    if splitting.AUTO in (own, studys) and own != studys:  # it may be the same layer, by its name
        network = snapshot.build()
        own, studys = splitting.resolve_layer(network, own), splitting.resolve_layer(network, studys)
    return own == studys
