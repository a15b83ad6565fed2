"""Run modules over all images without gradients: once, or anew in every epoch where the results fit nowhere."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from headstart.console import progress
from headstart.training.compute import Compute

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class BatchedInference:
    """Modules, each run on the output of the one before, in eval mode and without gradients, a chunk at a time.

    Every chunk is filled up to the same size: so what is computed for an image does not depend on how many others are
    computed with it, and results that were kept and results that are computed anew are the same.
    """

    modules: tuple[nn.Module, ...]
    compute: Compute
    prepare: Transform | None = None  # applied to each chunk first

    def __post_init__(self) -> None:
        for module in self.modules:
            module.to(self.compute.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.no_grad()  # not inference mode, whose results cannot be trained on
    def __call__(self, chunk: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield what each module puts out for at most ``compute.inference_batch_size`` inputs, on the device, in its precision.

        Each must be used before the next is asked for: that module may work in place.
        """
        # A copy, because a module may work in place. From pinned memory it travels while the GPU computes.
        batch = torch.empty(self.compute.inference_batch_size, *chunk.shape[1:], dtype=chunk.dtype, device=chunk.device,
                            pin_memory=chunk.device != self.compute.device)  # fmt: skip
        batch[: len(chunk)] = chunk
        batch[len(chunk) :] = chunk[-1:]
        batch = batch.to(self.compute.device, non_blocking=True)
        if self.prepare is not None:
            batch = self.prepare(batch)
        for module in self.modules:
            with self.compute.autocast():
                batch = module(batch)
            yield batch[: len(chunk)]

    def iter_batches(self, inputs: torch.Tensor, label: str) -> Iterator[tuple[slice, Iterator[torch.Tensor]]]:
        """Yield every batch_slice of ``inputs`` and the results for it, under a progress bar."""
        with progress(len(inputs), label) as bar:
            for start in range(0, len(inputs), self.compute.inference_batch_size):
                batch_slice = slice(start, min(start + self.compute.inference_batch_size, len(inputs)))
                yield batch_slice, self(inputs[batch_slice])
                bar.update(batch_slice.stop - start)


def extract_features(
    inputs: torch.Tensor,
    modules: tuple[nn.Module, ...],
    *,
    compute: Compute,
    prepare: Transform | None = None,
    label: str = "",
) -> list[torch.Tensor]:
    """Run ``modules``, each on the output of the one before, over ``inputs`` [N, ...] in eval mode.

    Returns:
        For each module its outputs, [N, ...] on the CPU, in the order of ``inputs`` and in the precision that they were
        computed in.
    """
    inference = BatchedInference(modules, compute, prepare)
    first = inputs[:1] if len(inputs) else inputs.new_zeros(1, *inputs.shape[1:])
    results = [torch.empty(len(inputs), *template.shape[1:], dtype=template.dtype) for template in inference(first)]
    for batch_slice, chunks in inference.iter_batches(inputs, label):
        for result, chunk in zip(results, chunks, strict=True):
            result[batch_slice] = chunk
    return results


@dataclass(frozen=True)
class CachedInputs:
    """Inputs of a head in memory: the device's, or the host's, from where each batch travels to the device."""

    rows: torch.Tensor  # [N, ...]; maps as [N, height, width, channels], so that a batch of them is channels last
    device: torch.device

    @classmethod
    def from_tensor(cls, inputs: torch.Tensor, compute: Compute) -> "CachedInputs":
        """Keep ``inputs`` [N, ...] on the device if there is room, else in host memory."""
        rows = _as_rows(inputs).contiguous()
        return cls(rows.to(compute.device) if compute.storage_for(rows.nbytes) == "device" else rows, compute.device)

    @property
    def place(self) -> str:
        return "device" if self.rows.device.type == self.device.type else "host"

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the inputs that ``order`` names, on the device: [batch_size, ...], the last ones maybe fewer."""
        for batch in order.to(self.rows.device).split(batch_size):
            # From pinned memory a batch travels while the one before is trained on.
            rows = torch.empty(len(batch), *self.rows.shape[1:], dtype=self.rows.dtype, device=self.rows.device,
                               pin_memory=self.place == "host")  # fmt: skip
            torch.index_select(self.rows, 0, batch, out=rows)
            rows = rows.to(self.device, non_blocking=True)
            yield rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows


@dataclass(frozen=True)
class RecomputedInputs:
    """Inputs of a head that fit nowhere: computed whenever they are used, in the order they are used in."""

    images: torch.Tensor  # in host memory: a GPU has only the chunk that it computes
    backbone: BatchedInference
    place = "recompute"

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the same batches as ``CachedInputs`` does."""
        waiting: list[torch.Tensor] = []
        for part in order.split(self.backbone.compute.inference_batch_size):
            waiting = [_channels_last(torch.cat([*waiting, *self.backbone(self.images[part])]))]
            while len(waiting[0]) >= batch_size:
                batch, waiting = waiting[0][:batch_size], [waiting[0][batch_size:]]
                yield batch
        if waiting and len(waiting[0]):
            yield waiting[0]


@dataclass(frozen=True)
class InputSubset:
    """Some of the inputs of a head."""

    base: CachedInputs | RecomputedInputs
    indices: torch.Tensor  # int64 [n], their indices

    @property
    def place(self) -> str:
        return self.base.place

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the batches that ``CachedInputs`` would if these were all."""
        return self.base.batches(self.indices[order], batch_size)


Inputs = CachedInputs | RecomputedInputs | InputSubset


class Examples(NamedTuple):
    """What a head is trained on or tested with."""

    inputs: Inputs
    labels: torch.Tensor  # int64 [N]

    def subset(self, chosen: torch.Tensor) -> "Examples":
        """Those with the indices ``chosen``, int64 [n]."""
        assert not isinstance(self.inputs, InputSubset)
        return Examples(InputSubset(self.inputs, chosen), self.labels[chosen])


def cache_or_recompute(
    images: torch.Tensor, backbone: nn.Module, *, compute: Compute, prepare: Transform, reuse: bool, label: str = ""
) -> CachedInputs | RecomputedInputs:
    """What ``backbone`` makes of ``images`` [N, height, width], as the inputs of a head.

    Args:
        reuse: whether they will be used more than once, so that keeping them is worth it where there is room.
    """
    inference = BatchedInference((backbone,), compute, prepare)
    if not reuse or len(images) == 0:
        return RecomputedInputs(images, inference)
    template, workspace = compute.measure(lambda: _as_rows(next(inference(images[:1]))))
    place = compute.storage_for(len(images) * template.nbytes, workspace)
    if place == "recompute":
        return RecomputedInputs(images, inference)
    home = compute.device if place == "device" else torch.device("cpu")
    rows = torch.empty(len(images), *template.shape[1:], dtype=template.dtype, device=home)
    for batch_slice, [chunk] in inference.iter_batches(images, label):
        rows[batch_slice] = _as_rows(chunk)
    return CachedInputs(rows, compute.device)


def _channels_last(inputs: torch.Tensor) -> torch.Tensor:
    """Return ``inputs`` in the layout of ``CachedInputs``: convolutions give other bits in another one."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _as_rows(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.permute(0, 2, 3, 1) if inputs.dim() == 4 else inputs


@torch.no_grad()
def predict(head: nn.Module, inputs: Inputs, n: int, compute: Compute) -> torch.Tensor:
    """The logits of ``head`` for ``inputs`` 0 to n - 1 in eval mode: float32 [n, classes], on the device."""
    head.eval()
    with compute.autocast():
        return torch.cat(
            [head(batch).float() for batch in inputs.batches(torch.arange(n), compute.inference_batch_size)]
        )
