"""Load what a training needs: the head to train, and its inputs from the files of earlier stages."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from headstart import files
from headstart.console import UserError
from headstart.data import splits
from headstart.data.label_subsets import LabelSubset
from headstart.network import splitting
from headstart.network.saved_model import SavedModel
from headstart.params import Configuration, Study
from headstart.training.compute import Compute
from headstart.training.inference import BatchedInference
from headstart.training.inputs import AugmentedPass, CachedInputs, Examples, RecomputedInputs, cache_or_recompute

# The inputs of the last fine-tuned training by split, and the files and settings that they depend on. In a process that
# runs several stages, the next configuration often fine-tunes the same initial weights.
_cache: dict[tuple[Any, ...], dict[str, CachedInputs]] = {}


class SplitNetwork(NamedTuple):
    """A network as its frozen backbone and its trainable head."""

    network: nn.Module  # contains the head, with the names of its tensors
    backbone: nn.Module
    head: nn.Module
    first_layer: str  # of the head


class InputFiles(NamedTuple):
    """The files of earlier stages that a training depends on."""

    prepared: Path  # images and labels of the three splits
    initial: Path  # the network before training
    features: Path  # what the backbone computes from the images


def split_for_training(configuration: Configuration, study: Study, initial: SavedModel) -> SplitNetwork:
    """Return the backbone that ``configuration`` freezes and the head that it trains.

    Without fine-tuning, the head is the classifier. The backbone is then an identity, because the stage `features` has
    run it, unless the training images are augmented.
    """
    if configuration.finetuning or configuration.augmentation != "none":
        network = initial.build()
        layer = configuration.finetune_from or study.finetune_from if configuration.finetuning else initial.classifier
        layer = splitting.resolve_layer(network, layer)
        return SplitNetwork(network, *splitting.split_backbone_head(network, layer), layer)
    classifier = initial.linear_classifier()
    network = classifier
    for name in reversed(initial.classifier.split(".")):
        network = nn.ModuleDict({name: network})
    return SplitNetwork(network, nn.Identity(), classifier, initial.classifier)


def clear_cache() -> None:
    """Free the memory of inputs that are cached for the next training in this process."""
    _cache.clear()


def require_unchanged_weights(weights: str, initial: SavedModel) -> None:
    """Raise UserError if the weights file that ``initial`` was made from has changed."""
    path = Path(weights)
    if initial.sha256 and path.is_file() and files.cached_sha256(path) != initial.sha256:
        raise UserError(
            f"{path} has changed since the initial weights were built. Restore it, or run "
            "`dvc repro --force initialize@pretrained`."
        )


@dataclass(frozen=True)
class TrainingData:
    """The examples of one configuration, loaded when they are first used. Seeds with the same features share them."""

    configuration: Configuration
    study: Study
    initial: SavedModel
    backbone: nn.Module
    paths: InputFiles
    compute: Compute

    @cached_property
    def training(self) -> Examples:
        return self.load("training", reuse=True)

    @cached_property
    def validation(self) -> Examples:
        return self.load("validation", reuse=True)

    @cached_property
    def test(self) -> Examples:
        return self.load("test", reuse=bool(self.study.label_budgets))

    def load(self, split: str, *, reuse: bool) -> Examples:
        """Return the examples of ``split``: "training", "validation" or "test".

        Args:
            reuse: whether they are used in more than one epoch.

        Raises:
            UserError: a file is missing or damaged, or its features were computed in another precision.
        """
        if split == "training" and self.configuration.augmentation != "none":
            return self._augment()
        if self.configuration.finetuning and not self._is_on_disk():
            return self._compute(split, reuse)
        clear_cache()
        return self._read(split)

    @property
    def _layer(self) -> str:
        return self.configuration.finetune_from or self.study.finetune_from

    def _is_on_disk(self) -> bool:
        """Return whether the stage `features` has written the outputs of the backbone: it uses the study's layer."""
        if not self.study.cache_activations or not splitting.has_parameters(self.backbone):
            return False
        layers = {self._layer, self.study.finetune_from}
        if splitting.AUTO in layers and len(layers) > 1:  # it may be the same layer, given by its name
            network = self.initial.build()
            layers = {splitting.resolve_layer(network, layer) for layer in layers}
        return len(layers) == 1

    def _augment(self) -> Examples:
        """Return the training examples with inputs that are recomputed from augmented images in each pass."""
        images, labels = map(torch.from_numpy, splits.read_split(self.paths.prepared, "training")[:2])
        backbone = BatchedInference((self.backbone,), self.compute, self.initial.preprocess)
        return Examples(RecomputedInputs(images, backbone, AugmentedPass(self.configuration.augmentation)), labels)

    def _compute(self, split: str, reuse: bool) -> Examples:
        hashes = map(files.cached_sha256, (self.paths.prepared, self.paths.initial))
        key = (*hashes, self._layer, self.compute)
        if key not in _cache:
            clear_cache()  # before the new inputs take memory
        cached = _cache.setdefault(key, {})
        if split in cached:
            return Examples(cached[split], torch.from_numpy(splits.read_labels(self.paths.prepared, split)[0]))
        images, labels = map(torch.from_numpy, splits.read_split(self.paths.prepared, split)[:2])
        inputs = cache_or_recompute(images, self.backbone, compute=self.compute, prepare=self.initial.preprocess,
                                    reuse=reuse, label=f"frozen layers, {split} images")  # fmt: skip
        if isinstance(inputs, CachedInputs):
            cached[split] = inputs
        return Examples(inputs, labels)

    def _read(self, split: str) -> Examples:
        labels = torch.from_numpy(splits.read_labels(self.paths.prepared, split)[0])
        key = f"{split}_activations" if self.configuration.finetuning else f"{split}_features"
        tensors, metadata = files.read_tensors(self.paths.features, key)
        precision = metadata.get("precision", "")
        if precision != self.compute.precision:
            raise UserError(
                f"{self.paths.features} was computed in {precision or 'an unknown precision'}, and this training "
                f"computes in {self.compute.precision}. Set HEADSTART_DTYPE={precision or self.compute.precision}, or "
                "compute everything again with `dvc repro --force`."
            )
        rows = tensors[key]
        if len(rows) != len(labels) or not rows.isfinite().all():
            raise UserError(
                f"{self.paths.features} does not match {self.paths.prepared}. Delete it and run `dvc repro`."
            )
        return Examples(CachedInputs.from_tensor(rows, self.compute), labels)


@dataclass(frozen=True)
class DataSubset:
    """A subset of the training and validation examples, with all test examples."""

    base: TrainingData
    subset: LabelSubset

    @cached_property
    def training(self) -> Examples:
        return self.base.training.subset(torch.from_numpy(self.subset.training))

    @cached_property
    def validation(self) -> Examples:
        return self.base.validation.subset(torch.from_numpy(self.subset.validation))

    @property
    def test(self) -> Examples:
        return self.base.test
