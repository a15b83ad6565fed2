"""The inputs of a head and their labels: cached in memory, or recomputed in every epoch.

They are recomputed if they do not fit in memory, or if the images are augmented.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from headstart.training import augmentation
from headstart.training.compute import Compute
from headstart.training.inference import BatchedInference, Transform


@dataclass(frozen=True)
class CachedInputs:
    """Inputs of a head in device memory, or in host memory, from which each batch is copied to the device."""

    rows: torch.Tensor  # [N, ...]; maps as [N, height, width, channels], so that a batch of them is channels last
    device: torch.device

    @classmethod
    def from_tensor(cls, inputs: torch.Tensor, compute: Compute) -> "CachedInputs":
        """Cache ``inputs`` [N, ...] on the device if they fit, else in host memory."""
        rows = _as_rows(inputs).contiguous()
        return cls(rows.to(compute.device) if compute.storage_for(rows.nbytes) == "device" else rows, compute.device)

    def for_pass(self, seed: int, number: int) -> "CachedInputs":
        """Return the inputs of a pass over the training images, which are the same in all passes."""
        return self

    @property
    def storage(self) -> str:
        return "device" if self.rows.device.type == self.device.type else "host"

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the inputs with the indices ``order`` on the device: [batch_size, ...]; the last may be smaller."""
        for batch in order.to(self.rows.device).split(batch_size):
            # From pinned memory a batch is copied while the GPU trains on the previous one.
            rows = torch.empty(len(batch), *self.rows.shape[1:], dtype=self.rows.dtype, device=self.rows.device,
                               pin_memory=self.storage == "host")  # fmt: skip
            torch.index_select(self.rows, 0, batch, out=rows)
            rows = rows.to(self.device, non_blocking=True)
            yield rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows


class AugmentedPass(NamedTuple):
    """The augmentation of one pass over the training images."""

    name: str  # a key of ``augmentation.AUGMENTATIONS``
    seed: int = 0
    number: int = 0  # of the pass, from 1

    def __call__(self, images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return augmentation.augment(self.name, images, indices.tolist(), seed=self.seed, number=self.number)


@dataclass(frozen=True)
class RecomputedInputs:
    """Inputs of a head that are recomputed from the images whenever they are used."""

    images: torch.Tensor  # in host memory; only the batch that is computed is on the GPU
    backbone: BatchedInference
    augmented: AugmentedPass | None = None  # None: the images are used as they are
    storage = "recompute"

    def for_pass(self, seed: int, number: int) -> "RecomputedInputs":
        """Return the inputs of a pass over the training images: with other random numbers if they are augmented."""
        return replace(self, augmented=self.augmented and self.augmented._replace(seed=seed, number=number))

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the same batches as ``CachedInputs`` does."""
        buffer: list[torch.Tensor] = []
        for indices in order.split(self.backbone.compute.inference_batch_size):
            images = self.images[indices]
            images = self.augmented(images, indices) if self.augmented else images
            buffer = [_channels_last(torch.cat([*buffer, *self.backbone(images)]))]
            while len(buffer[0]) >= batch_size:
                batch, buffer = buffer[0][:batch_size], [buffer[0][batch_size:]]
                yield batch
        if buffer and len(buffer[0]):
            yield buffer[0]


@dataclass(frozen=True)
class InputSubset:
    """A subset of the inputs of a head."""

    base: CachedInputs | RecomputedInputs
    indices: torch.Tensor  # int64 [n]

    @property
    def storage(self) -> str:
        return self.base.storage

    def for_pass(self, seed: int, number: int) -> "InputSubset":
        return replace(self, base=self.base.for_pass(seed, number))

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the batches that ``CachedInputs`` of the subset alone would yield."""
        return self.base.batches(self.indices[order], batch_size)


Inputs = CachedInputs | RecomputedInputs | InputSubset


class Examples(NamedTuple):
    """The inputs of a head and their labels."""

    inputs: Inputs
    labels: torch.Tensor  # int64 [N]

    def for_pass(self, seed: int, number: int) -> "Examples":
        """Return the examples of pass ``number``, from 1, of a training with ``seed``."""
        return self._replace(inputs=self.inputs.for_pass(seed, number))

    def subset(self, indices: torch.Tensor) -> "Examples":
        """Return the examples with ``indices``, int64 [n]."""
        assert not isinstance(self.inputs, InputSubset)
        return Examples(InputSubset(self.inputs, indices), self.labels[indices])


def cache_or_recompute(
    images: torch.Tensor, backbone: nn.Module, *, compute: Compute, prepare: Transform, reuse: bool, label: str = ""
) -> CachedInputs | RecomputedInputs:
    """Return the outputs of ``backbone`` for ``images`` [N, height, width] as the inputs of a head.

    Args:
        reuse: whether the inputs are used more than once. If so, they are cached if they fit in memory.
    """
    inference = BatchedInference((backbone,), compute, prepare)
    if not reuse or len(images) == 0:
        return RecomputedInputs(images, inference)
    template, workspace = compute.measure(lambda: _as_rows(next(inference(images[:1]))))
    storage = compute.storage_for(len(images) * template.nbytes, workspace)
    if storage == "recompute":
        return RecomputedInputs(images, inference)
    device = compute.device if storage == "device" else torch.device("cpu")
    rows = torch.empty(len(images), *template.shape[1:], dtype=template.dtype, device=device)
    for batch_slice, [outputs] in inference.iter_batches(images, label):
        rows[batch_slice] = _as_rows(outputs)
    return CachedInputs(rows, compute.device)


def _channels_last(inputs: torch.Tensor) -> torch.Tensor:
    """Return ``inputs`` in the layout of ``CachedInputs``: convolutions give other bits in another layout."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _as_rows(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.permute(0, 2, 3, 1) if inputs.dim() == 4 else inputs


@torch.no_grad()
def predict(head: nn.Module, inputs: Inputs, n: int, compute: Compute) -> torch.Tensor:
    """Return the logits of ``head`` in eval mode for the first ``n`` of ``inputs``: float32 [n, classes]."""
    head.eval()
    batches = inputs.batches(torch.arange(n), compute.inference_batch_size)
    with compute.autocast():
        return torch.cat([head(batch).float() for batch in batches])
