"""Run modules over all images without gradients: once, or anew in every epoch where the results fit nowhere."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from headstart.console import progress
from headstart.training.compute import Compute

Prepare = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Forward:
    """Modules, each run on the output of the one before, in eval mode and without gradients, a chunk at a time.

    Every chunk is filled up to the same size: so what is computed for an image does not depend on how many others are
    computed with it, and results that were kept and results that are computed anew are the same.
    """

    modules: tuple[nn.Module, ...]
    compute: Compute
    prepare: Prepare | None = None  # applied to each chunk first

    def __post_init__(self) -> None:
        for module in self.modules:
            module.to(self.compute.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.no_grad()  # not inference mode, whose results cannot be trained on
    def __call__(self, chunk: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield what each module puts out for at most ``compute.chunk`` inputs, on the device, in its precision.

        Each must be used before the next is asked for: that module may work in place.
        """
        # A copy, because a module may work in place. From pinned memory it travels while the GPU computes.
        batch = torch.empty(self.compute.chunk, *chunk.shape[1:], dtype=chunk.dtype, device=chunk.device,
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

    def over(self, inputs: torch.Tensor, label: str) -> Iterator[tuple[slice, Iterator[torch.Tensor]]]:
        """Yield every stretch of ``inputs`` and the results for it, under a progress bar."""
        with progress(len(inputs), label) as bar:
            for start in range(0, len(inputs), self.compute.chunk):
                stretch = slice(start, min(start + self.compute.chunk, len(inputs)))
                yield stretch, self(inputs[stretch])
                bar.update(stretch.stop - start)


def outputs(
    inputs: torch.Tensor,
    modules: tuple[nn.Module, ...],
    *,
    compute: Compute,
    prepare: Prepare | None = None,
    label: str = "",
) -> list[torch.Tensor]:
    """Run ``modules``, each on the output of the one before, over ``inputs`` [N, ...] in eval mode.

    Returns:
        For each module its outputs, [N, ...] on the CPU, in the order of ``inputs`` and in the precision that they were
        computed in.
    """
    forward = Forward(modules, compute, prepare)
    first = inputs[:1] if len(inputs) else inputs.new_zeros(1, *inputs.shape[1:])
    results = [torch.empty(len(inputs), *like.shape[1:], dtype=like.dtype) for like in forward(first)]
    for stretch, chunks in forward.over(inputs, label):
        for result, chunk in zip(results, chunks, strict=True):
            result[stretch] = chunk
    return results


@dataclass(frozen=True)
class Kept:
    """Inputs of a head in memory: the device's, or the host's, from where each batch travels to the device."""

    rows: torch.Tensor  # [N, ...]; maps as [N, height, width, channels], so that a batch of them is channels last
    device: torch.device

    @classmethod
    def of(cls, inputs: torch.Tensor, compute: Compute) -> "Kept":
        """Keep ``inputs`` [N, ...] on the device if there is room, else in host memory."""
        rows = _as_rows(inputs).contiguous()
        return cls(rows.to(compute.device) if compute.place(rows.nbytes) == "device" else rows, compute.device)

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
class Recomputed:
    """Inputs of a head that fit nowhere: computed whenever they are used, in the order they are used in."""

    images: torch.Tensor  # in host memory: a GPU has only the chunk that it computes
    trunk: Forward
    place = "recompute"

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the same batches as ``Kept`` does."""
        waiting: list[torch.Tensor] = []
        for part in order.split(self.trunk.compute.chunk):
            waiting = [_channels_last(torch.cat([*waiting, *self.trunk(self.images[part])]))]
            while len(waiting[0]) >= batch_size:
                batch, waiting = waiting[0][:batch_size], [waiting[0][batch_size:]]
                yield batch
        if waiting and len(waiting[0]):
            yield waiting[0]


@dataclass(frozen=True)
class Subset:
    """Some of the inputs of a head."""

    all: Kept | Recomputed
    chosen: torch.Tensor  # int64 [n], their indices

    @property
    def place(self) -> str:
        return self.all.place

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the batches that ``Kept`` would if these were all."""
        return self.all.batches(self.chosen[order], batch_size)


Inputs = Kept | Recomputed | Subset


class Examples(NamedTuple):
    """What a head is trained on or tested with."""

    inputs: Inputs
    labels: torch.Tensor  # int64 [N]

    def subset(self, chosen: torch.Tensor) -> "Examples":
        """Those with the indices ``chosen``, int64 [n]."""
        assert not isinstance(self.inputs, Subset)
        return Examples(Subset(self.inputs, chosen), self.labels[chosen])


def activations(
    images: torch.Tensor, trunk: nn.Module, *, compute: Compute, prepare: Prepare, keep: bool, label: str = ""
) -> Kept | Recomputed:
    """What ``trunk`` makes of ``images`` [N, height, width], as the inputs of a head.

    Args:
        keep: whether they will be used more than once, so that keeping them is worth it where there is room.
    """
    forward = Forward((trunk,), compute, prepare)
    if not keep or len(images) == 0:
        return Recomputed(images, forward)
    like, workspace = compute.measure(lambda: _as_rows(next(forward(images[:1]))))
    place = compute.place(len(images) * like.nbytes, workspace)
    if place == "recompute":
        return Recomputed(images, forward)
    home = compute.device if place == "device" else torch.device("cpu")
    rows = torch.empty(len(images), *like.shape[1:], dtype=like.dtype, device=home)
    for stretch, [chunk] in forward.over(images, label):
        rows[stretch] = _as_rows(chunk)
    return Kept(rows, compute.device)


def _channels_last(inputs: torch.Tensor) -> torch.Tensor:
    """Return ``inputs`` in the layout of ``Kept``: convolutions give other bits in another one."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _as_rows(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.permute(0, 2, 3, 1) if inputs.dim() == 4 else inputs


@torch.no_grad()
def predict(head: nn.Module, inputs: Inputs, n: int, compute: Compute) -> torch.Tensor:
    """The logits of ``head`` for ``inputs`` 0 to n - 1 in eval mode: float32 [n, classes], on the device."""
    head.eval()
    with compute.autocast():
        return torch.cat([head(batch).float() for batch in inputs.batches(torch.arange(n), compute.chunk)])
